package fleet

import (
	"bytes"
	"encoding/xml"
	"errors"
	"flag"
	"io"
	"os"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	text = flag.String("o", "", "`file` to write the tables of a full run to")
	svg  = flag.String("svg", "", "`file` to draw a full run to")
)

func measure(t *testing.T, p plan) *results {
	r := &results{plan: p}
	for _, l := range loads {
		var sizes [][]*crowd
		for _, replicas := range p.replicas {
			var crowds []*crowd
			for _, s := range subjects {
				synctest.Test(t, func(t *testing.T) {
					c, err := p.run(s, l, replicas)
					require.NoError(t, err)
					crowds = append(crowds, c)
				})
			}
			sizes = append(sizes, crowds)
		}
		r.crowds = append(r.crowds, sizes)
	}
	return r
}

// The test measures the short plan, or the full plan if a flag asks for its results.
func TestMeasure(t *testing.T) {
	p := short
	if *text != "" || *svg != "" {
		p = full
	}
	r := measure(t, p)
	for i := range loads {
		for j := range p.replicas {
			c := r.crowds[i][j][0]
			require.Len(t, c.served, p.accounts)
			assert.Less(t, c.served[p.accounts-1].Seconds(), 1.08*r.floor())
			assert.Zero(t, c.refused)
		}
	}
	var tables, picture bytes.Buffer
	r.write(&tables)
	require.NoError(t, r.paint(&picture))
	for _, s := range subjects {
		assert.Equal(t, len(loads), strings.Count(tables.String(), "| "+s.title+" |"))
		assert.Equal(t, 1, strings.Count(picture.String(), ">"+s.title+": "))
	}
	for decoder := xml.NewDecoder(&picture); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	t.Log(tables.String())
	if *text != "" {
		require.NoError(t, os.WriteFile(*text, tables.Bytes(), 0o644))
	}
	if *svg != "" {
		picture.Reset()
		require.NoError(t, r.paint(&picture))
		require.NoError(t, os.WriteFile(*svg, picture.Bytes(), 0o644))
	}
}

// docs/fleet.md must have the first table of the last full run.
func TestPageHasTheResults(t *testing.T) {
	page, err := os.ReadFile("../../docs/fleet.md")
	require.NoError(t, err)
	tables, err := os.ReadFile("../results/fleet.txt")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(tables), loads[0].title+":\n\n")
	require.True(t, found)
	first, _, found := strings.Cut(after, "\n\n")
	require.True(t, found)
	assert.Contains(t, string(page), first)
}
