package platform

// This file is the one line before the server. All requests for tokens, and all
// revocations, wait in it. How fast it moves is pace.go's.

import (
	"container/list"
	"context"
	"math"
	"sync"
	"time"

	"golang.org/x/time/rate"
)

// line is a [moovauth.Limiter] that lets requests go in the order in which they
// came. Only the first in line has a reservation at the [rate.Limiter]: it is
// given back when the rate changes, which a reservation does not notice.
type line struct {
	mu       sync.Mutex // guards what follows
	pace     pace
	limiter  *rate.Limiter
	waiting  list.List         // of *waiter, in the order in which they came
	reserved *rate.Reservation // the first one's; nil: none
	timer    *time.Timer       // when to serve next; nil: nobody has waited yet
	refused  uint64            // 429s, ever
}

// waiter is a request in line.
type waiter struct {
	since time.Time
	turn  chan struct{} // closed when it may go; it is no longer in line then
}

func newLine(perSecond float64) *line {
	l := &line{pace: newPace(perSecond)}
	l.limiter = rate.NewLimiter(rate.Limit(l.pace.full), 1)
	return l
}

// Wait waits in line until a request may go, or until ctx ends.
func (l *line) Wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w := &waiter{since: time.Now(), turn: make(chan struct{})}
	l.mu.Lock()
	place := l.waiting.PushBack(w)
	l.serve()
	l.mu.Unlock()
	select {
	case <-w.turn:
		if ctx.Err() == nil {
			return nil
		}
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-w.turn: // at the same moment: the next in line goes instead
		l.next()
	default:
		l.waiting.Remove(place)
		l.serve()
	}
	return context.Cause(ctx)
}

// Refused takes note of a 429: nobody goes for as long as it asks, and then
// more slowly.
func (l *line) Refused(retryAfter time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused++
	now := time.Now()
	l.pace.refuse(now, retryAfter)
	l.unreserve(now)
	l.serve()
}

// answered takes note of any other answer.
func (l *line) answered() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.pace.answer(time.Now())
}

// serve lets go all who may go now, and sets the timer for the next. l.mu is
// held, as for all methods below.
func (l *line) serve() {
	now := time.Now()
	for l.waiting.Len() > 0 {
		if wait := l.delay(now); wait > 0 {
			l.wake(wait)
			return
		}
		l.reserved = nil
		l.next()
	}
	l.unreserve(now)
	if l.timer != nil {
		l.timer.Stop()
	}
}

// delay is how long the first in line has to wait, or to ask again.
func (l *line) delay(now time.Time) time.Duration {
	if held := l.pace.held(now); held > 0 {
		return held
	}
	perSecond := l.pace.rate(now)
	if rate.Limit(perSecond) != l.limiter.Limit() {
		l.unreserve(now)
		l.limiter.SetLimitAt(now, rate.Limit(perSecond))
	}
	if l.reserved == nil {
		l.reserved = l.limiter.ReserveN(now, 1)
	}
	wait := l.reserved.DelayFrom(now)
	if perSecond < l.pace.full {
		wait = min(wait, time.Second) // the rate may be higher then
	}
	return wait
}

func (l *line) unreserve(now time.Time) {
	if l.reserved != nil {
		l.reserved.CancelAt(now)
		l.reserved = nil
	}
}

// next lets the first in line go.
func (l *line) next() {
	if first := l.waiting.Front(); first != nil {
		close(l.waiting.Remove(first).(*waiter).turn)
	}
}

func (l *line) wake(after time.Duration) {
	if l.timer != nil {
		l.timer.Reset(after)
		return
	}
	l.timer = time.AfterFunc(after, func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.serve()
	})
}

// report fills in what the line knows of Stats.
func (l *line) report(s *Stats) {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	s.InLine = l.waiting.Len()
	s.Refused = l.refused
	s.Rate = l.pace.rate(now)
	if first := l.waiting.Front(); first != nil {
		s.LongestWait = now.Sub(first.Value.(*waiter).since)
	}
}

// clear is how many seconds the line needs for those who are in it now: 1 at least.
func (l *line) clear() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	seconds := l.pace.held(now).Seconds() + float64(l.waiting.Len())/l.pace.rate(now)
	return int(min(max(1, math.Ceil(seconds)), holdMost.Seconds()))
}
