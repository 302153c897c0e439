package platform

// This file writes the tables of the results.

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// results are the results of all subjects, in the order of subjects.
type results struct {
	plan
	crowds [2][]*crowd // the server accepts p.perSecond, or half of it
	days   [2][]*day
	weighs []*weight
	people []*people
}

// takes returns how many requests per second the server accepts: perSecond, or half of
// it if half is 1.
func (p plan) takes(half int) int { return []int{p.perSecond, p.perSecond / 2}[half] }

// floor returns the shortest possible time until the last account is served, in
// seconds.
func (p plan) floor(half int) float64 { return float64(p.accounts) / float64(p.takes(half)) }

func (r *results) write(out io.Writer) {
	fmt.Fprintf(out, "%d accounts share one API key, and each has its own token. A request takes 60 to 100 ms. All but the plain x/oauth2 are set to %d requests per second.\n",
		r.accounts, r.perSecond)
	for half, crowds := range r.crowds {
		fmt.Fprintf(out, "\nAll accounts request a token at once, and the server accepts %d requests per second:\n\n", r.takes(half))
		fmt.Fprintln(out, "| | served | failed | requests refused | last served after | ratio to the minimum |")
		fmt.Fprintln(out, "|---|--:|--:|--:|--:|--:|")
		for i, c := range crowds {
			last, beside := "", ""
			if len(c.served) > 0 {
				at := c.served[len(c.served)-1]
				last = fmt.Sprintf("%.1f s", at.Seconds())
				if c.failed == 0 {
					beside = fmt.Sprintf("%.2f×", at.Seconds()/r.floor(half))
				}
			}
			fmt.Fprintf(out, "| %s | %d | %d | %d | %s | %s |\n", subjects[i].name, len(c.served), c.failed, c.refused, last, beside)
		}
	}
	for half, days := range r.days {
		fmt.Fprintf(out, "\nAll accounts start at once and ask for a token every %s for %s. Tokens live for %s, and the server accepts %d requests per second:\n\n",
			plain(r.every), plain(r.length), plain(lifetime), r.takes(half))
		fmt.Fprintln(out, "| | calls | failed | waited for over 1 s | longest wait | token requests | refused |")
		fmt.Fprintln(out, "|---|--:|--:|--:|--:|--:|--:|")
		for i, d := range days {
			fmt.Fprintf(out, "| %s | %d | %d | %d | %.1f s | %d | %d |\n",
				subjects[i].name, d.calls, d.failed, d.slow, d.longest.Round(100*time.Millisecond).Seconds(), d.requests, d.refused)
		}
	}
	fmt.Fprintf(out, "\n%d accounts request a token at once, and then one page per second does. The server accepts %d requests per second:\n\n", r.waiting, r.perSecond)
	fmt.Fprintln(out, "| | pages | failed | waited for over 1 s | over 10 s | longest wait | accounts that failed |")
	fmt.Fprintln(out, "|---|--:|--:|--:|--:|--:|--:|")
	for i, met := range r.people {
		fmt.Fprintf(out, "| %s | %d | %d | %d | %d | %s | %d |\n",
			subjects[i].name, len(met.waited), met.count(), met.over(time.Second), met.over(10*time.Second), met.longest(), met.accounts.Load())
	}
	fmt.Fprintf(out, "\nMemory in bytes for each of %d accounts, including its token of %d bytes:\n\n", r.weighed, tokenSize)
	fmt.Fprintln(out, "| | with its first token | after an hour |")
	fmt.Fprintln(out, "|---|--:|--:|")
	for i, w := range r.weighs {
		fmt.Fprintf(out, "| %s | %.0f | %.0f |\n", subjects[i].name, w.first, w.later)
	}
}

// count returns how many pages failed.
func (met *people) count() (n int) {
	for _, failed := range met.failed {
		if failed {
			n++
		}
	}
	return n
}

// over returns how many pages waited for longer than d.
func (met *people) over(d time.Duration) (n int) {
	for _, waited := range met.waited {
		if waited > d {
			n++
		}
	}
	return n
}

func (met *people) longest() string {
	return fmt.Sprintf("%.1f s", slices.Max(met.waited).Seconds())
}

// plain formats d without minutes and seconds that are 0.
func plain(d time.Duration) string {
	text := d.String()
	if strings.HasSuffix(text, "m0s") {
		text = strings.TrimSuffix(text, "0s")
	}
	if strings.HasSuffix(text, "h0m") {
		text = strings.TrimSuffix(text, "0m")
	}
	return text
}
