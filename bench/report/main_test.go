package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const output = `go: 1.26.0
cores: 4
os: Plan 9
goos: plan9
goarch: amd64
pkg: example.com/bench
cpu: Fast
BenchmarkToken/goroutines=1/peer=moovauth-4   	 100	  90.0 ns/op	 112 B/op	 1 allocs/op
BenchmarkToken/goroutines=1/peer=moovauth-4   	 100	 100.0 ns/op	 112 B/op	 1 allocs/op
BenchmarkToken/goroutines=1/peer=moovauth-4   	 100	 900.0 ns/op	 112 B/op	 1 allocs/op
BenchmarkToken/goroutines=1/peer=aws-4        	 100	  50.0 ns/op	   0 B/op	 0 allocs/op
BenchmarkRequest/peer=x-oauth2-4              	 100	  1386 ns/op	2864 B/op	13 allocs/op
BenchmarkExpired/peer=moovauth-4              	 100	6326573 ns/op	         1.000 requests
BenchmarkMemory/peer=moovauth-4               	   1	      3678 bytes/source
PASS
`

func TestTables(t *testing.T) {
	results, err := read(strings.NewReader(output), "output")
	require.NoError(t, err)
	text := results.markdown()
	assert.Contains(t, text, "Measured on: Fast, 4 cores, amd64, Plan 9, Go 1.26.0.\n")
	for _, line := range []string{
		"| one goroutine | 100 ns |  |  |  | 50 ns (0.50×) |  |",
		"| allocations | 1 |  |  |  | 0 |  |",
		"| time |  | 1.39 µs |  |  |  |  |",
		"| time until the last one has a token | 6.33 ms |  |  |  |  |  |",
		"| token requests | 1 |  |  |  |  |  |",
		"| memory | 3678 B |  |  |  |  |  |",
	} {
		assert.Contains(t, text, line+"\n")
	}
}

func TestNoResults(t *testing.T) {
	_, err := read(strings.NewReader("PASS\n"), "output")
	assert.ErrorContains(t, err, "no benchmark results")
}

func TestSectionsAreReplaced(t *testing.T) {
	text := []byte("a\n<!-- x -->\nold\n<!-- end of x -->\nb\n")
	for range 2 {
		var err error
		text, err = splice(text, "x", "new\n")
		require.NoError(t, err)
		assert.Equal(t, "a\n<!-- x -->\n\nnew\n\n<!-- end of x -->\nb\n", string(text))
	}
	_, err := splice(text, "y", "")
	assert.Error(t, err)
}

func TestTablesAreFromTheResults(t *testing.T) {
	files := []string{"../README.md", "../../docs/peers.md"}
	before := make([]string, len(files))
	copies := make([]string, len(files))
	for i, file := range files {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		before[i], copies[i] = string(text), filepath.Join(t.TempDir(), "copy.md")
		require.NoError(t, os.WriteFile(copies[i], text, 0o600))
	}
	require.NoError(t, update("../results/bench.txt", "../results/rollover.txt", "../results/platform.txt", copies[0], copies[1]))
	for i, file := range copies {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		assert.Equal(t, before[i], string(text), "run measure again")
	}
}
