package main

import (
	"bytes"
	"encoding/xml"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/bench/peers"
)

func TestQuickRun(t *testing.T) {
	var out bytes.Buffer
	svg := filepath.Join(t.TempDir(), "rollover.svg")
	all, err := report(short, &out, svg)
	require.NoError(t, err)

	require.Len(t, all.steady, len(peers.All()))
	require.Len(t, all.outage, len(peers.All()))
	for _, l := range slices.Concat(all.steady, all.outage) {
		assert.NotEmpty(t, l.calls, l.peer.Name)
		most := int64(20) // a few requests per token, and not one per caller
		if l.outage {
			most += callers // x/oauth2 makes a request for each caller in turn while the endpoint is down
		}
		assert.LessOrEqual(t, l.requests, most, l.peer.Name)
		if l.peer.Name == peers.Floor {
			assert.EqualValues(t, 1, l.requests)
		} else {
			assert.Greater(t, l.requests, int64(1), l.peer.Name)
		}
	}
	for _, l := range []*lane{all.steady[0], all.outage[0]} {
		assert.Equal(t, peers.Moovauth, l.peer.Name)
		assert.Zero(t, summarize(l.calls).failed)
	}

	rows := 0
	for line := range strings.Lines(out.String()) {
		if strings.HasPrefix(line, "|") {
			rows++
			assert.Equal(t, 9, strings.Count(line, "|"), line)
		}
	}
	assert.Equal(t, len(all.steady)+len(all.outage)+4, rows)

	text, err := os.ReadFile(svg)
	require.NoError(t, err)
	for decoder := xml.NewDecoder(bytes.NewReader(text)); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	for _, l := range all.outage {
		assert.Equal(t, 2, strings.Count(string(text), ">"+titles[l.peer.Name]+":"), "a panel for each run")
	}
}

func TestTable(t *testing.T) {
	l := &lane{peer: peers.All()[0], requests: 2}
	for i := range 10 {
		l.calls = append(l.calls, call{took: time.Duration(i) * 2 * time.Millisecond, failed: i == 3})
	}
	var out bytes.Buffer
	table(&out, []*lane{l})
	assert.Equal(t, strings.Join([]string{
		"| | calls | token requests | p50 | p99.9 | longest | calls over 10 ms | calls failed |",
		"|---|--:|--:|--:|--:|--:|--:|--:|",
		"| moovauth | 10 | 2 | 8 ms | 16 ms | 18 ms | 4 | 1 |",
		"",
	}, "\n"), out.String())
}

func TestDurationsToThreeFigures(t *testing.T) {
	for d, text := range map[time.Duration]string{
		1234:                    "1.23 µs",
		200 * time.Millisecond:  "200 ms",
		1500 * time.Millisecond: "1.5 s",
	} {
		assert.Equal(t, text, in(d))
	}
}
