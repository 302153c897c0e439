// Report reads the output of the benchmarks, of rollover and of platform. It writes
// their tables into README.md, and the rollover's into docs/peers.md, each between
// two marks:
//
//	go run ./report -bench results/bench.txt -rollover results/rollover.txt -platform results/platform.txt -o README.md -brief ../docs/peers.md
//
// If the output has several results of a benchmark, report uses the median.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"golang.org/x/perf/benchfmt"

	"github.com/moovauth/moovauth/bench/peers"
)

func main() {
	bench := flag.String("bench", "results/bench.txt", "`file` with the output of go test -bench")
	rollover := flag.String("rollover", "results/rollover.txt", "`file` with the output of rollover")
	platform := flag.String("platform", "results/platform.txt", "`file` with the tables of platform")
	out := flag.String("o", "README.md", "`file` to write the tables to")
	brief := flag.String("brief", "../docs/peers.md", "`file` to write only the rollover's tables to")
	flag.Parse()
	if err := update(*bench, *rollover, *platform, *out, *brief); err != nil {
		fmt.Fprintln(os.Stderr, "report:", err)
		os.Exit(1)
	}
}

// update writes the tables into the files readme and brief.
func update(bench, rollover, platform, readme, brief string) error {
	f, err := os.Open(bench)
	if err != nil {
		return err
	}
	defer f.Close()
	results, err := read(f, bench)
	if err != nil {
		return err
	}
	rolled, err := os.ReadFile(rollover)
	if err != nil {
		return err
	}
	served, err := os.ReadFile(platform)
	if err != nil {
		return err
	}
	return errors.Join(
		rewrite(readme, section{"benchmarks", results.markdown()}, section{"rollover", string(rolled)}, section{"platform", string(served)}),
		rewrite(brief, section{"rollover", tablesOf(string(rolled))}),
	)
}

// section is the text between two marks.
type section struct{ name, text string }

func rewrite(file string, sections ...section) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	for _, s := range sections {
		if text, err = splice(text, s.name, s.text); err != nil {
			return fmt.Errorf("%s: %w", file, err)
		}
	}
	return os.WriteFile(file, text, 0o644)
}

// tablesOf returns rolled without the list of each peer's configuration.
func tablesOf(rolled string) string {
	var out strings.Builder
	for line := range strings.Lines(rolled) {
		if !strings.HasPrefix(line, "- ") {
			out.WriteString(line)
		}
	}
	return strings.ReplaceAll(out.String(), "\n\n\n", "\n\n")
}

// splice replaces the text between the marks of a section with what.
func splice(text []byte, section, what string) ([]byte, error) {
	begin, end := "<!-- "+section+" -->\n", "<!-- end of "+section+" -->\n"
	before, rest, found := bytes.Cut(text, []byte(begin))
	_, after, ended := bytes.Cut(rest, []byte(end))
	if !found || !ended {
		return nil, fmt.Errorf("no %q and %q", begin, end)
	}
	return slices.Concat(before, []byte(begin+"\n"+strings.Trim(what, "\n")+"\n\n"+end), after), nil
}

// results are the figures of one run, and the machine that it ran on.
type results struct {
	machine map[string]string
	values  map[key][]float64
}

// key identifies a figure.
type key struct{ benchmark, peer, unit string }

// read reads the output of go test -bench.
func read(r io.Reader, name string) (*results, error) {
	all := &results{make(map[string]string), make(map[key][]float64)}
	lines := benchfmt.NewReader(r, name)
	for lines.Scan() {
		line, ok := lines.Result().(*benchfmt.Result)
		if !ok {
			continue
		}
		for _, c := range line.Config {
			all.machine[c.Key] = string(c.Value)
		}
		base, parts := line.Name.Parts()
		at := key{benchmark: string(base)}
		for _, part := range parts {
			if peer, ok := strings.CutPrefix(string(part), "/peer="); ok {
				at.peer = peer
			} else if part[0] == '/' {
				at.benchmark += string(part)
			}
		}
		for _, value := range line.Values {
			at.unit = value.Unit
			all.values[at] = append(all.values[at], value.Value)
		}
	}
	if len(all.values) == 0 && lines.Err() == nil {
		return nil, errors.New("no benchmark results")
	}
	return all, lines.Err()
}

// value returns the median of the figures for at, and whether there is one.
func (r *results) value(at key) (float64, bool) {
	values := slices.Sorted(slices.Values(r.values[at]))
	n := len(values)
	if n == 0 {
		return 0, false
	}
	return (values[(n-1)/2] + values[n/2]) / 2, true
}

// row is a row of a table.
type row struct {
	title, benchmark, unit string
}

var tables = []struct {
	title string
	rows  []row
}{
	{"`Token` with a fresh token", []row{
		{"one goroutine", "Token/goroutines=1", "sec/op"},
		{"one goroutine per core", "Token/goroutines=cores", "sec/op"},
		{"1,000 goroutines", "Token/goroutines=1000", "sec/op"},
		{"memory", "Token/goroutines=1", "B/op"},
		{"allocations", "Token/goroutines=1", "allocs/op"},
	}},
	{"A request through the transport, with a base that does nothing", []row{
		{"time", "Request", "sec/op"},
		{"memory", "Request", "B/op"},
		{"allocations", "Request", "allocs/op"},
	}},
	{"1,000 goroutines find an expired token at the same time, and the endpoint takes 5 ms", []row{
		{"time until the last one has a token", "Expired", "sec/op"},
		{"token requests", "Expired", "requests"},
	}},
	{"Memory of a source with a token", []row{
		{"memory", "Memory", "bytes/source"},
	}},
}

var columns = []struct{ peer, title string }{
	{peers.Moovauth, "moovauth"},
	{peers.XOAuth2, "x/oauth2"},
	{peers.CloudAuth, "cloud auth"},
	{peers.Azcore, "azcore"},
	{peers.AWS, "aws"},
	{peers.Floor, "floor"},
}

// describe returns what the output says about the machine.
func (r *results) describe() []string {
	var parts []string
	for _, part := range []struct{ key, format string }{
		{"cpu", "%s"}, {"cores", "%s cores"}, {"l3", "L3 %s"}, {"hypervisor", "a guest of %s"}, {"goarch", "%s"},
		{"os", "%s"}, {"kernel", "%s"}, {"go", "Go %s"},
	} {
		if value := r.machine[part.key]; value != "" {
			parts = append(parts, fmt.Sprintf(part.format, value))
		}
	}
	return parts
}

func (r *results) markdown() string {
	var out strings.Builder
	fmt.Fprintf(&out, "Measured on: %s.\n", strings.Join(r.describe(), ", "))
	for _, table := range tables {
		fmt.Fprintf(&out, "\n**%s**\n\n|", table.title)
		for _, column := range columns {
			fmt.Fprintf(&out, " | %s", column.title)
		}
		fmt.Fprintf(&out, " |\n|---%s|\n", strings.Repeat("|--:", len(columns)))
		for _, row := range table.rows {
			fmt.Fprintf(&out, "| %s |", row.title)
			for _, column := range columns {
				fmt.Fprintf(&out, " %s |", r.cell(row, column.peer))
			}
			fmt.Fprintln(&out)
		}
	}
	return out.String()
}

// cell returns a figure. For a peer it adds the ratio to moovauth's figure: 2× is
// twice as much.
func (r *results) cell(row row, peer string) string {
	value, ok := r.value(key{row.benchmark, peer, row.unit})
	if !ok {
		return ""
	}
	text := write(value, row.unit)
	if ours, ok := r.value(key{row.benchmark, peers.Moovauth, row.unit}); ok && ours > 0 && value > 0 && peer != peers.Moovauth {
		text += fmt.Sprintf(" (%.2f×)", value/ours)
	}
	return text
}

// write formats value, times with three significant figures.
func write(value float64, unit string) string {
	switch {
	case unit == "sec/op" && value < 1e-6:
		return fmt.Sprintf("%.3g ns", value*1e9)
	case unit == "sec/op" && value < 1e-3:
		return fmt.Sprintf("%.3g µs", value*1e6)
	case unit == "sec/op":
		return fmt.Sprintf("%.3g ms", value*1e3)
	case unit == "B/op" || unit == "bytes/source":
		return fmt.Sprintf("%.0f B", value)
	}
	return fmt.Sprintf("%.4g", value)
}
