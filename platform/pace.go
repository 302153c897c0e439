package platform

// This file calculates the rate at which requests go, and how a 429 changes it.
// It takes the time as an argument. It does not wait, and takes no lock.

import (
	"math"
	"time"
)

const (
	margin = 0.97 // of the configured rate, and of the rate that the server was seen to take
	floor  = 0.02 // of the full rate: the lowest rate, from which the queue can recover

	defaultHold = 250 * time.Millisecond // after a 429 without Retry-After
	maxHold     = time.Hour              // even if Retry-After asks for more
	comeBack    = 20 * time.Millisecond  // after a hold: refused requests return to the queue first

	cutEvery = 500 * time.Millisecond // 429s that follow sooner come from the same overload

	minQuiet = 30 * time.Second // without a 429, before the rate rises
	maxQuiet = 5 * time.Minute
	raise    = 1.05 // each second
)

// pace is the rate at which requests may go. A 429 cuts the rate to what the
// server was seen to take. After a while without a 429 the rate rises step by step.
type pace struct {
	full     float64       // requests per second as long as none is refused
	cut      float64       // requests per second after the last cut; full if there was none
	cutAt    time.Time     // of the last cut; zero: there was none
	heldTo   time.Time     // no request goes before; zero: there was no 429
	last     time.Time     // when the last request went, or should have gone; zero: there was none
	quiet    time.Duration // without a 429, before the rate rises
	answered []time.Time   // answers other than 429, in the last second
}

func newPace(perSecond float64) pace {
	return pace{full: margin * perSecond, cut: margin * perSecond, quiet: minQuiet}
}

// rate returns the current rate, in requests per second.
func (p *pace) rate(now time.Time) float64 {
	raising := now.Sub(p.heldTo.Add(p.quiet))
	if p.cut == p.full || raising < 0 {
		return p.cut
	}
	steps := 1 + raising/time.Second
	return min(p.full, p.cut*math.Pow(raise, float64(steps)))
}

// due returns when the next request may go.
func (p *pace) due(now time.Time) time.Time {
	due := p.last.Add(p.interval(now))
	if held := p.heldTo.Add(comeBack); held.After(due) {
		return held
	}
	return due
}

// goes notes that a request goes now. due is earlier than now if a timer was late.
// The next request makes up for the delay, but for one interval at most.
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

// answer notes an answer other than 429.
func (p *pace) answer(now time.Time) {
	p.forget(now)
	p.answered = append(p.answered, now)
}

// refuse notes a 429. asked is its Retry-After, or 0 if it has none.
func (p *pace) refuse(now time.Time, asked time.Duration) {
	if now.Sub(p.cutAt) >= cutEvery {
		p.forget(now)
		before := p.rate(now)
		rise := time.Duration(math.Log(p.full/p.cut) / math.Log(raise) * float64(time.Second)) // to the full rate
		switch quiet := now.Sub(p.heldTo); {
		case quiet >= 2*p.quiet+rise:
			p.quiet = minQuiet
		case quiet >= p.quiet: // the rise led to this 429
			p.quiet = min(2*p.quiet, maxQuiet)
		}
		seen := margin * float64(len(p.answered))
		p.cut = max(floor*p.full, min(0.95*before, max(before/2, seen)))
		p.cutAt = now
	}
	if asked <= 0 {
		asked = defaultHold - comeBack
	}
	if to := now.Add(min(asked, maxHold)); to.After(p.heldTo) {
		p.heldTo = to
	}
}

// forget drops the answers that are more than a second old.
func (p *pace) forget(now time.Time) {
	for len(p.answered) > 0 && now.Sub(p.answered[0]) >= time.Second {
		p.answered = p.answered[1:]
	}
}
