package platform

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
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var (
	text = flag.String("o", "", "`file` to write the tables of a full run to")
	svg  = flag.String("svg", "", "`file` to draw a full run to")
)

// bubble calls f in fake time and returns its result.
func bubble[T any](t *testing.T, f func() (T, error)) (result T) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var err error
		result, err = f()
		require.NoError(t, err)
	})
	return result
}

func measure(t *testing.T, p plan) *results {
	r := &results{plan: p}
	for _, s := range subjects {
		for half := range r.crowds {
			r.crowds[half] = append(r.crowds[half], bubble(t, func() (*crowd, error) { return p.atOnce(s, p.takes(half)) }))
			r.days[half] = append(r.days[half], bubble(t, func() (*day, error) { return p.run(s, p.takes(half)) }))
		}
		r.people = append(r.people, bubble(t, func() (*people, error) { return p.meet(s) }))
		r.weighs = append(r.weighs, bubble(t, func() (*weight, error) { return p.weigh(s) }))
	}
	return r
}

// TestMeasure checks the code that is measured. It makes a short run, or a full one
// if -o or -svg asks for the results.
func TestMeasure(t *testing.T) {
	p := short
	if *text != "" || *svg != "" {
		p = full
	}
	r := measure(t, p)
	for half := range r.crowds {
		platform := r.crowds[half][0]
		assert.Len(t, platform.served, p.accounts)
		assert.Zero(t, platform.failed)
		assert.LessOrEqual(t, platform.refused, p.accounts/25)
		assert.Zero(t, r.days[half][0].failed)
		for i := range subjects {
			assert.Equal(t, p.accounts, len(r.crowds[half][i].served)+r.crowds[half][i].failed)
			assert.GreaterOrEqual(t, r.days[half][i].requests, p.accounts, subjects[i].name)
		}
		assert.NotZero(t, r.crowds[half][len(subjects)-1].failed)
	}

	assert.Zero(t, r.people[0].count())
	assert.Zero(t, r.people[0].over(time.Second))

	var tables, picture bytes.Buffer
	r.write(&tables)
	require.NoError(t, r.paint(&picture))
	for _, s := range subjects {
		assert.Equal(t, 6, strings.Count(tables.String(), "| "+s.name+" |"))
		assert.Equal(t, 3, strings.Count(picture.String(), ">"+s.name+": "))
	}
	for decoder := xml.NewDecoder(bytes.NewReader(picture.Bytes())); ; {
		_, err := decoder.Token()
		if errors.Is(err, io.EOF) {
			break
		}
		require.NoError(t, err)
	}
	if *text != "" {
		require.NoError(t, os.WriteFile(*text, tables.Bytes(), 0o644))
	}
	if *svg != "" {
		require.NoError(t, os.WriteFile(*svg, picture.Bytes(), 0o644))
	}
}
