package platform

// This file is the arithmetic of the rate: how fast requests go, and how a 429
// changes that. It takes the time as an argument, and neither waits nor locks.

import (
	"math"
	"slices"
	"time"
)

const (
	margin = 0.97 // of the rate assumed, and of what the server was seen to take
	floor  = 0.02 // of the full rate: it is never cut below, so that it recovers

	holdDefault = 250 * time.Millisecond // after a 429 without Retry-After
	holdMost    = time.Hour              // whatever a Retry-After asks for
	comeBack    = 20 * time.Millisecond  // after that, for those who were refused to be back in the queue

	cutEvery = 500 * time.Millisecond // the 429s that follow sooner are of the same overload

	quietFirst = 30 * time.Second // without a 429, before the rate is raised
	quietMost  = 5 * time.Minute
	raise      = 1.05 // each second
)

// pace is the rate at which requests may go. A 429 cuts it to what the server
// was seen to take, and after a while without one it is raised step by step.
type pace struct {
	full     float64       // requests per second as long as nothing is refused
	cut      float64       // requests per second after the last cut; full if there was none
	cutAt    time.Time     // zero: never
	heldTo   time.Time     // no request goes before; zero: there was no 429
	last     time.Time     // when the last request went, or was due to; zero: there was none
	quiet    time.Duration // without a 429, before the rate is raised
	answered []time.Time   // when a request was answered otherwise, in the last second
}

func newPace(perSecond float64) pace {
	return pace{full: margin * perSecond, cut: margin * perSecond, quiet: quietFirst}
}

// rate is in requests per second.
func (p *pace) rate(now time.Time) float64 {
	raising := now.Sub(p.heldTo.Add(p.quiet))
	if p.cut == p.full || raising < 0 {
		return p.cut
	}
	steps := 1 + raising/time.Second
	return min(p.full, p.cut*math.Pow(raise, float64(steps)))
}

// held is how long no request may go.
func (p *pace) held(now time.Time) time.Duration { return max(0, p.heldTo.Sub(now)) }

// due is when the next request may go.
func (p *pace) due(now time.Time) time.Time {
	due := p.last.Add(p.interval(now))
	if held := p.heldTo.Add(comeBack); held.After(due) {
		return held
	}
	return due
}

// goes notes a request that goes now, and was due earlier than that if a timer
// was late. Not more than one turn is made up for.
func (p *pace) goes(due, now time.Time) {
	if least := now.Add(-p.interval(now)); due.Before(least) {
		due = least
	}
	p.last = due
}

// giveBack notes that the last request did not go after all.
func (p *pace) giveBack(now time.Time) { p.last = p.last.Add(-p.interval(now)) }

func (p *pace) interval(now time.Time) time.Duration {
	return time.Duration(float64(time.Second) / p.rate(now))
}

// answer takes note of an answer other than 429.
func (p *pace) answer(now time.Time) {
	p.forget(now)
	p.answered = append(p.answered, now)
}

// refuse takes note of a 429. asked is its Retry-After; 0: it has none.
func (p *pace) refuse(now time.Time, asked time.Duration) {
	if p.cutAt.IsZero() || now.Sub(p.cutAt) >= cutEvery {
		p.forget(now)
		before := p.rate(now)
		p.setQuiet(now, before)
		seen := margin * float64(len(p.answered))
		p.cut = max(floor*p.full, min(0.95*before, max(before/2, seen)))
		p.cutAt = now
	}
	if asked <= 0 {
		asked = holdDefault - comeBack
	}
	if to := now.Add(min(asked, holdMost)); to.After(p.heldTo) {
		p.heldTo = to
	}
}

// setQuiet sets how long to wait before the next raise: longer if a raise led to
// this 429, but not if the rate had been full for as long.
func (p *pace) setQuiet(now time.Time, before float64) {
	if before == p.cut {
		return
	}
	steps := math.Ceil(math.Log(p.full/p.cut) / math.Log(raise))
	recovered := p.heldTo.Add(p.quiet + time.Duration(steps)*time.Second)
	if now.Sub(recovered) >= p.quiet {
		p.quiet = quietFirst
	} else {
		p.quiet = min(2*p.quiet, quietMost)
	}
}

// forget drops the answers that are more than a second old.
func (p *pace) forget(now time.Time) {
	old := 0
	for old < len(p.answered) && now.Sub(p.answered[old]) >= time.Second {
		old++
	}
	p.answered = slices.Delete(p.answered, 0, old)
}
