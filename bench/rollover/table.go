package main

// This file writes the table of what the callers of each lane saw.

import (
	"fmt"
	"io"
	"slices"
	"time"
)

// stall is a limit: a call that takes longer has most likely waited for a token.
const stall = 10 * time.Millisecond

// summary is what the table says about a lane.
type summary struct {
	calls, stalled, failed int
	p50, p999, max         time.Duration
}

func summarize(calls []call) summary {
	s := summary{calls: len(calls)}
	took := make([]time.Duration, len(calls))
	for i, c := range calls {
		took[i] = c.took
		if c.took > stall {
			s.stalled++
		}
		if c.failed {
			s.failed++
		}
	}
	if len(took) == 0 {
		return s
	}
	slices.Sort(took)
	last := len(took) - 1
	s.p50, s.p999, s.max = took[last/2], took[last*999/1000], took[last]
	return s
}

// table writes the lanes as Markdown.
func table(out io.Writer, lanes []*lane) {
	fmt.Fprintln(out, "| | calls | token requests | p50 | p99.9 | longest | calls over 10 ms | calls failed |")
	fmt.Fprintln(out, "|---|--:|--:|--:|--:|--:|--:|--:|")
	for _, l := range lanes {
		s := summarize(l.calls)
		fmt.Fprintf(out, "| %s | %d | %d | %s | %s | %s | %d | %d |\n",
			titles[l.peer.Name], s.calls, l.requests, in(s.p50), in(s.p999), in(s.max), s.stalled, s.failed)
	}
}

// in formats d with three significant figures.
func in(d time.Duration) string {
	switch {
	case d < time.Millisecond:
		return fmt.Sprintf("%.3g µs", float64(d)/float64(time.Microsecond))
	case d < time.Second:
		return fmt.Sprintf("%.3g ms", float64(d)/float64(time.Millisecond))
	}
	return fmt.Sprintf("%.3g s", d.Seconds())
}
