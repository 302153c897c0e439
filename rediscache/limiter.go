package rediscache

// This file is the limiter that a fleet shares: the callers that wait for a turn in
// this process, and how the process reserves turns, from Redis or without it.
// schedule.go decides when the turns are.

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
	mostTurns = 8    // the most that a process reserves at a time
	fewTurns  = 4    // with this many or fewer left, it reserves more
	margin    = 0.97 // the part of the rate that is used, since requests take different times to arrive

	retry     = time.Second            // between two attempts to reach a Redis that failed
	pauseMin  = 250 * time.Millisecond // after a 429 without Retry-After
	pauseMost = time.Hour              // even if Retry-After is longer

	limitPrefix = "moovauth-limit-"
)

var _ moovauth.Limiter = (*Limiter)(nil)

// Limiter is a [moovauth.Limiter] for a whole fleet: all processes that use the
// same name in the same Redis share one rate. Create one with [NewLimiter]. It is
// safe for concurrent use.
//
// A request may go when it gets a turn. Turns are spaced evenly on Redis's
// clock, and processes get them in the order in which they ask. A busy process
// gets all turns that the others do not need. It reserves up to 8 turns in
// advance, several in one command, so a turn costs 0.25 to 1 commands. If a
// process dies, the turns that it has reserved are lost. At 40 requests per
// second that is 0.2 s at most.
//
// If the server answers any process with 429 (see [Limiter.Refused]), all processes
// pause for as long as the server asks, and the rate falls by 5 %. The 429s that
// follow lower it further, but to no less than half of what it was. After 30 s
// without a 429 the rate rises by 5 % a second. If a 429 comes while the rate rises,
// these 30 s double, up to 5 minutes.
//
// If Redis fails, or does not reply within a second, each process continues on
// its own at the full rate, so the fleet may exceed the rate until Redis is
// back. The process tries Redis once a second. No caller gets an error. The
// limiter logs a warning to [slog.Default] when Redis fails, and another when
// Redis is back. It logs nothing else.
//
// The state is stored in one key, which is "moovauth-limit-" and the name. So in a
// cluster it is in one slot. The key expires after 2 hours without use. The client's
// Redis user needs the commands EVALSHA, EVAL, TIME, GET and SET on that key. Redis
// must be version 5 or newer.
type Limiter struct {
	client    redis.UniversalClient
	key       string
	perSecond float64   // times margin already
	began     time.Time // when the clock of own starts

	mu        sync.Mutex // guards what follows
	waiting   list.List  // of chan struct{}, first come first served
	turns     []time.Time
	interval  time.Duration // between the turns that were reserved last
	timer     *time.Timer   // runs serve at the next turn; nil until it is first needed
	asking    bool          // a command is under way
	askAt     time.Time     // the next command is sent at this time or later
	refusals  int           // 429s that Redis does not know yet
	pause     time.Duration // the longest of their Retry-After
	redisDown bool          // the last command failed
	own       schedule      // used while redisDown; it counts only the 429s of this process
}

// NewLimiter returns a limiter that allows perSecond requests per second to all
// processes that use the same name in the Redis server that client connects to. All
// of them should give the same perSecond. The limiter uses 0.97 of it, because
// requests do not all take the same time to arrive.
//
// Moov counts requests by IP address and account. So use one name for each pair of
// address and account, such as "moov" if there is only one pair. API calls count at
// Moov too, so leave room for them in perSecond.
//
// The caller closes client after the last use of the limiter. NewLimiter sends no
// command, so it does not return an error if Redis is down. An error from NewLimiter
// names the argument to change. Set [redis.Options].ContextTimeoutEnabled, so that a
// command that gets no reply ends after a second and can be retried.
func NewLimiter(client redis.UniversalClient, name string, perSecond float64) (*Limiter, error) {
	switch {
	case client == nil:
		return nil, errNoClient
	case name == "":
		return nil, errors.New(`rediscache: the limiter's name is empty: use one name for all processes that share the limit, such as "moov"`)
	case !(perSecond > 0) || math.IsInf(perSecond, 0):
		return nil, fmt.Errorf("rediscache: the limiter's perSecond must be a number of requests per second above 0, such as 10; got %v", perSecond)
	}
	return &Limiter{client: client, key: limitPrefix + name, perSecond: margin * perSecond, began: time.Now(), own: newSchedule()}, nil
}

// Wait waits for a turn. The callers in one process get their turns in the
// order of their calls. Wait returns an error only if ctx has ended:
// [context.Cause] of ctx.
func (l *Limiter) Wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	turn := make(chan struct{})
	l.mu.Lock()
	if now := time.Now(); l.waiting.Len() == 0 { // no one used the turns that have passed, so they are lost
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
	case <-turn: // the turn came at the same moment
		l.giveBack()
	default:
		l.waiting.Remove(place)
	}
	return context.Cause(ctx)
}

// Refused tells the limiter that the server answered 429. retryAfter is the
// delay from the Retry-After header. 0 means that there was no such header, and
// counts as 250 ms. More than an hour counts as an hour.
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
	if !l.redisDown {
		l.refusals++
		l.pause = max(l.pause, retryAfter)
	}
	l.serve()
}

// Unused tells the limiter that a turn from Wait was not needed. The next call
// to Wait in this process gets the turn, unless the following turn is due by
// then.
func (l *Limiter) Unused() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.giveBack()
}

func (l *Limiter) giveBack() {
	l.turns = slices.Insert(l.turns, 0, time.Now())
	l.serve()
}

// serve gives turns whose time has come to the callers that wait, reserves more turns
// if needed, and sets the timer for the next turn. The caller holds l.mu, as for all
// methods below that do not lock it.
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

// reserve reserves more turns if they are needed. It asks Redis in the background,
// with one command at a time.
func (l *Limiter) reserve(now time.Time) {
	n := len(l.turns)
	want := min(mostTurns, l.waiting.Len()) - n
	if want < 0 || n > fewTurns || n > 0 && l.turns[n-1].Sub(now) > ahead {
		want = 0
	}
	if l.redisDown && want > 0 {
		l.add(now, l.own.step(l.micros(now), l.perSecond, want, 0, 0))
	}
	if want == 0 && l.refusals == 0 || l.asking || now.Before(l.askAt) {
		return
	}
	l.asking = true
	go l.ask(want, l.refusals, l.pause)
	l.refusals, l.pause = 0, 0
}

// add adds turns that were reserved.
func (l *Limiter) add(now time.Time, r reservation) {
	l.interval = r.interval
	for i := range r.n {
		turn := now.Add(r.delay + time.Duration(i)*r.interval)
		if !l.tooEarly(turn) {
			l.turns = append(l.turns, turn)
		}
	}
}

// tooEarly reports whether a turn falls into the pause after a 429. Such a turn was
// reserved before the 429.
func (l *Limiter) tooEarly(turn time.Time) bool { return l.micros(turn) < l.own.held }

// micros returns t on the clock of l.own.
func (l *Limiter) micros(t time.Time) float64 { return micros(t.Sub(l.began)) }

// ask runs the script. The turns in a late reply are used, too: a Redis that was
// paused runs the script when it continues, so they are reserved.
func (l *Limiter) ask(want, refusals int, pause time.Duration) {
	timeout := time.AfterFunc(patience, func() { l.failed(fmt.Errorf("no reply within %v", patience)) })
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	reply, err := script.Run(ctx, l.client, []string{l.key}, l.perSecond, want, refusals, pause.Microseconds()).Int64Slice()
	timeout.Stop()
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
	back := l.redisDown
	if back {
		l.redisDown, l.turns = false, nil
	}
	l.add(time.Now(), reservation{int(reply[0]), time.Duration(reply[1]) * time.Microsecond, time.Duration(reply[2]) * time.Microsecond})
	l.serve()
	l.mu.Unlock()
	if back {
		slog.Warn("rediscache: Redis is back; the processes share the limit again", "key", l.key)
	}
}

// failed makes the process continue without Redis. It locks l.mu.
func (l *Limiter) failed(err error) {
	l.mu.Lock()
	first := !l.redisDown
	l.redisDown, l.askAt = true, time.Now().Add(retry)
	l.serve()
	l.mu.Unlock()
	if first {
		slog.Warn("rediscache: Redis failed; this process continues with its own limit", "key", l.key, "per_second", l.perSecond, "error", err)
	}
}
