package rediscache

// This file is the limit that a fleet shares: who waits for a turn in this
// process, and how turns are obtained, from Redis or without it. When a turn is,
// is schedule.go's.

import (
	"container/list"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"slices"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/moovauth/moovauth"
)

const (
	mostTurns = 8    // that a process has reserved at a time
	fewTurns  = 4    // it asks for more when it has no more than these
	margin    = 0.97 // of the rate is used, since requests take different times to arrive

	retry     = time.Second            // between two attempts to reach a Redis that failed
	pauseMin  = 250 * time.Millisecond // after a 429 without Retry-After
	pauseMost = time.Hour              // whatever Retry-After asks for

	limitPrefix = "moovauth-limit-"
)

var _ moovauth.Limiter = (*Limiter)(nil)

// Limiter is a [moovauth.Limiter] for a whole fleet: all processes that use the
// same name, in the same Redis, share one rate. Make one with [NewLimiter]. It is
// safe for concurrent use.
//
// Turns are spaced evenly, on Redis's clock, and go to the processes in the order
// in which they ask. A busy process gets all turns that the others do not need. A
// process reserves up to 8 turns in one command, so a turn costs 0.25 to 1
// commands. Turns that were reserved are lost if the process dies: at 40 a second
// that is 0.2 s at most.
//
// A 429 that any process is told (see [Limiter.Refused]) pauses all of them for
// as long as the server asks, and lowers the rate to 0.95 of itself; the 429s that
// follow it lower it further, to a half at most. After 30 s without a 429 the rate
// rises by 5 % a second. These 30 s double, up to 5 minutes, each time that a 429
// comes before the rate is back.
//
// If Redis fails, or does not reply within a second, the process continues on its
// own, at the full rate, and tries Redis once a second. No caller gets an error.
// A warning is logged when this begins, and another when it is over, with
// [slog.Default]: there is nothing else to log, and a program whose logs go
// elsewhere has called [slog.SetDefault].
//
// The state is one key, so it lives in one slot of a cluster: "moovauth-limit-"
// and the name. It expires after 2 hours without use. The user that the client
// logs in as needs the commands EVALSHA, EVAL, TIME, GET and SET on that key.
// Redis has to be version 5 or newer.
type Limiter struct {
	client    redis.UniversalClient
	key       string
	perSecond float64 // the margin is taken off
	began     time.Time

	mu       sync.Mutex // guards what follows
	waiting  list.List  // of chan struct{}, in the order in which they came
	turns    []time.Time
	interval time.Duration // between two turns, when they were last reserved
	timer    *time.Timer   // when to serve next; nil: nobody has waited yet
	asking   bool          // a command is under way
	askAt    time.Time     // not before this
	refusals int           // that Redis has not been told yet
	pause    time.Duration // the longest that these ask for
	alone    bool          // Redis failed
	own      schedule      // for as long as alone; it knows the 429s of this process
}

// NewLimiter makes a limiter that allows perSecond requests per second to all
// processes that use the same name, in the Redis that client is connected to. The
// processes should agree on perSecond. It uses 0.97 of the rate, because requests
// do not all take the same time to arrive.
//
// Moov counts requests by IP address and account. So use one name for each pair
// of these, such as "moov" if there is one. API calls count at Moov too, so leave
// room for them in perSecond.
//
// The caller closes client, after the last use of the limiter. NewLimiter sends
// nothing: a Redis that is down is no error. Its error names the argument to
// change. Set [redis.Options].ContextTimeoutEnabled, so that a Redis that does not
// reply is given up, and tried again, after a second.
func NewLimiter(client redis.UniversalClient, name string, perSecond float64) (*Limiter, error) {
	switch {
	case client == nil:
		return nil, errNoClient
	case name == "":
		return nil, errors.New(`rediscache: the limiter's name is empty: use one name for all processes that share the limit, such as "moov"`)
	case !(perSecond > 0) || math.IsInf(perSecond, 0):
		return nil, fmt.Errorf("rediscache: the limiter's perSecond: want a number of requests per second above 0, such as 10; got %v", perSecond)
	}
	return &Limiter{client: client, key: limitPrefix + name, perSecond: margin * perSecond, began: time.Now(), own: newSchedule()}, nil
}

// Wait waits for a turn. Callers of one process get their turns in the order in
// which they came. Its error is always that ctx has ended: its cause.
func (l *Limiter) Wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	turn := make(chan struct{})
	l.mu.Lock()
	if now := time.Now(); l.waiting.Len() == 0 { // nobody used the turns that have passed, so they are lost
		l.turns = slices.DeleteFunc(l.turns, func(t time.Time) bool { return now.Sub(t) > l.interval })
	}
	place := l.waiting.PushBack(turn)
	l.serve()
	l.mu.Unlock()
	select {
	case <-turn:
		if ctx.Err() == nil {
			return nil
		}
	case <-ctx.Done():
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	select {
	case <-turn: // at the same moment
		l.giveBack()
	default:
		l.waiting.Remove(place)
	}
	return context.Cause(ctx)
}

// Refused takes note of a 429, whose Retry-After is given; 0 means that there was
// none, and counts as 250 ms. An hour is the most that counts.
func (l *Limiter) Refused(retryAfter time.Duration) {
	if retryAfter <= 0 {
		retryAfter = pauseMin
	}
	retryAfter = min(retryAfter, pauseMost)
	l.mu.Lock()
	defer l.mu.Unlock()
	now := time.Now()
	l.own.step(l.micros(now), l.perSecond, 0, 1, retryAfter)
	l.turns = slices.DeleteFunc(l.turns, l.tooEarly)
	if !l.alone {
		l.refusals++
		l.pause = max(l.pause, retryAfter)
	}
	l.serve()
}

// Unused takes note that a turn which Wait granted was not needed. The next
// caller of Wait in this process gets it, if it comes before the turn after it
// is due.
func (l *Limiter) Unused() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.giveBack()
}

func (l *Limiter) giveBack() {
	l.turns = slices.Insert(l.turns, 0, time.Now())
	l.serve()
}

// serve gives the turns that are due to those who wait, asks for more in time,
// and sets the timer for the next turn. l.mu is held, as for all methods below
// that do not lock it.
func (l *Limiter) serve() {
	now := time.Now()
	l.reserve(now)
	for l.waiting.Len() > 0 && len(l.turns) > 0 {
		if wait := l.turns[0].Sub(now); wait > 0 {
			l.wake(wait)
			return
		}
		l.turns = slices.Delete(l.turns, 0, 1)
		close(l.waiting.Remove(l.waiting.Front()).(chan struct{}))
		l.reserve(now)
	}
}

func (l *Limiter) wake(after time.Duration) {
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

// reserve obtains turns if more are needed than there are. Redis is asked in the
// background, one command at a time.
func (l *Limiter) reserve(now time.Time) {
	n := len(l.turns)
	want := min(mostTurns, l.waiting.Len()) - n
	if want < 0 || n > fewTurns || n > 0 && l.turns[n-1].Sub(now) > ahead {
		want = 0
	}
	if l.alone && want > 0 {
		l.add(now, l.own.step(l.micros(now), l.perSecond, want, 0, 0))
	}
	if want == 0 && l.refusals == 0 || l.asking || now.Before(l.askAt) {
		return
	}
	l.asking = true
	go l.ask(want, l.refusals, l.pause)
	l.refusals, l.pause = 0, 0
}

// add takes over turns that were reserved.
func (l *Limiter) add(now time.Time, r reservation) {
	l.interval = r.interval
	for i := range r.n {
		turn := now.Add(r.delay + time.Duration(i)*r.interval)
		if !l.tooEarly(turn) {
			l.turns = append(l.turns, turn)
		}
	}
}

// tooEarly reports whether a 429 has moved the turn. Turns that were reserved
// before it would fall into the pause.
func (l *Limiter) tooEarly(turn time.Time) bool { return l.micros(turn) < l.own.held }

// micros is t on the clock of l.own.
func (l *Limiter) micros(t time.Time) float64 { return micros(t.Sub(l.began)) }

// ask runs the script. What it reserves counts also if it took longer than
// patience: a Redis that was paused runs the script when it goes on.
func (l *Limiter) ask(want, refusals int, pause time.Duration) {
	late := time.AfterFunc(patience, func() { l.failed(fmt.Errorf("no reply within %v", patience)) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := script.Run(ctx, l.client, []string{l.key}, l.perSecond, want, refusals, pause.Microseconds()).Int64Slice()
	late.Stop()
	if err == nil && len(reply) != 3 {
		err = fmt.Errorf("unexpected reply %v", reply)
	}
	l.mu.Lock()
	l.asking = false
	if err != nil {
		l.mu.Unlock()
		l.failed(err)
		return
	}
	back := l.alone
	if back {
		l.alone, l.turns = false, nil
	}
	l.add(time.Now(), reservation{int(reply[0]), time.Duration(reply[1]) * time.Microsecond, time.Duration(reply[2]) * time.Microsecond})
	l.serve()
	l.mu.Unlock()
	if back {
		slog.Warn("rediscache: Redis is back; the limit is shared again", "key", l.key)
	}
}

// failed goes on without Redis. It locks l.mu.
func (l *Limiter) failed(err error) {
	l.mu.Lock()
	first := !l.alone
	l.alone, l.askAt = true, time.Now().Add(retry)
	l.serve()
	l.mu.Unlock()
	if first {
		slog.Warn("rediscache: Redis failed; this process continues with a limit of its own", "key", l.key, "per_second", l.perSecond, "error", err)
	}
}
