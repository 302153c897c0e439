package platform

// This file is the queue in which all token and revoke requests of an API key
// wait: it decides which one is next. How fast it moves is decided in pace.go, or
// by the limiter that a fleet shares.

import (
	"container/list"
	"context"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moovauth/moovauth"
)

// The classes of requests. Within a class it is first come, first served.
const (
	people    = iota // Mint, Handler and Tokens.Revoke: a person waits
	accounts         // a source without a good token: its callers wait, or it is revoked
	refreshes        // a source with a good token: no one waits
	classes          // how many there are
)

const (
	// A class that was passed over so often goes next. So each class gets at least
	// one turn in ten, also if two classes are due at the same time.
	passedOverMost = 8

	waitsMost = 8           // turns of a shared limiter that are waited for at a time
	lookAgain = time.Second // the rate may be higher then, or the shared limiter work again
)

// queue lets requests go, one at a time.
type queue struct {
	shared moovauth.Limiter // of the fleet; nil: the queue keeps a pace of its own
	logger *slog.Logger

	mu           sync.Mutex // guards what follows, and each place
	pace         pace
	waiting      [classes]list.List // of *place
	passedOver   [classes]int       // turns that others got while this class waited
	waited       bool               // a request has been waiting for the next turn
	timer        *time.Timer        // for that turn
	asking       int                // Waits of shared that are under way
	ownPaceUntil time.Time          // shared has failed: the queue keeps its own pace
	refused      uint64             // 429s, ever
}

func newQueue(c *config) *queue {
	q := &queue{shared: c.shared, logger: c.logger, pace: newPace(c.perSecond)}
	q.timer = time.AfterFunc(time.Hour, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.serve()
	})
	q.timer.Stop()
	return q
}

// place is the [moovauth.Limiter] of one source, one minted token or one
// revocation, which make one request at a time. A request that was refused with
// 429 gets its former place in the queue.
type place struct {
	queue  *queue
	source *moovauth.TokenSource // nil: a person waits

	turn    chan struct{} // closed when the request may go; nil: there is none
	since   int64         // when it came to the queue, in ns since 1970
	refused bool          // it went, and got a 429
	class   int8
	index   int32         // in sources.list; sources.mu guards it
	kept    *list.Element // of sources.kept, too; nil: it is not kept

	went   atomic.Int64 // when the last request went, in ns since 1970
	failed uint64       // the source's failed grants, when sources.report looked last
}

// needs is how many refreshes a second the source needs if its token expires at
// expiry. It is 0 if the token came from a cache.
func (p *place) needs(expiry time.Time) float64 {
	life := expiry.Sub(time.Unix(0, p.went.Load()))
	if p.went.Load() == 0 || life <= 0 {
		return 0
	}
	return 1 / (life - min(life/5, 5*time.Minute)).Seconds() // see moovauth.WithEarlyRefresh
}

// Wait waits until the request may go, or until ctx ends.
func (p *place) Wait(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	q, class, turn := p.queue, int8(people), make(chan struct{})
	if p.source != nil {
		class = refreshes
		if p.source.Stats().Phase == moovauth.PhaseNone {
			class = accounts
		}
	}
	q.mu.Lock()
	p.class, p.turn = class, turn
	element := q.enter(p)
	q.serve()
	q.mu.Unlock()
	select {
	case <-turn:
		if ctx.Err() == nil {
			return nil
		}
	case <-ctx.Done():
	}
	q.mu.Lock()
	went := p.turn == nil // at the same moment
	q.waiting[class].Remove(element)
	q.mu.Unlock()
	if went {
		p.Unused()
	}
	return context.Cause(ctx)
}

// Refused notes a 429: no request goes for as long as it asks.
func (p *place) Refused(retryAfter time.Duration) {
	q := p.queue
	q.mu.Lock()
	q.refused++
	p.refused = true
	q.pace.refuse(time.Now(), retryAfter)
	q.mu.Unlock()
	if l, ok := q.shared.(interface{ Refused(time.Duration) }); ok {
		l.Refused(retryAfter)
	}
}

// Unused passes on the turn that Wait has granted.
func (p *place) Unused() {
	p.went.Store(0)
	p.queue.passOn()
}

// passOn gives a turn to the next request, or back.
func (q *queue) passOn() {
	q.mu.Lock()
	given := q.next()
	if !given && q.shared == nil {
		q.pace.giveBack(time.Now())
	}
	q.mu.Unlock()
	if l, ok := q.shared.(interface{ Unused() }); ok && !given {
		l.Unused()
	}
}

// enter has p wait. q.mu is held, as for all methods that do not lock it.
func (q *queue) enter(p *place) *list.Element {
	after := p.since // those who came then or later go after p
	if !p.refused {
		p.since = time.Now().UnixNano()
		after = p.since + 1
	}
	p.refused = false
	waiting := &q.waiting[p.class]
	before := waiting.Back()
	for before != nil && before.Value.(*place).since >= after {
		before = before.Prev()
	}
	if before == nil {
		return waiting.PushFront(p)
	}
	return waiting.InsertAfter(p, before)
}

// serve lets go all who may go now, and sees to it that the others will.
func (q *queue) serve() {
	now := time.Now()
	for q.len() > 0 {
		if q.shared != nil && !now.Before(q.ownPaceUntil) {
			for ; q.asking < min(q.len(), waitsMost); q.asking++ {
				go q.ask()
			}
			return
		}
		due := q.pace.due(now)
		if due.After(now) {
			q.waited = true
			q.timer.Reset(min(due.Sub(now), lookAgain))
			return
		}
		if !q.waited {
			due = now
		}
		q.pace.goes(due, now)
		q.next()
	}
	q.waited = false
}

// ask waits for a turn of the shared limiter. The request that is next by then gets it.
func (q *queue) ask() {
	err := q.shared.Wait(context.Background())
	if err == nil {
		q.passOn()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	q.asking--
	if err != nil {
		q.ownPaceUntil = time.Now().Add(lookAgain)
		q.logger.Warn("moovauth: platform: the limiter of WithLimiter failed: requests keep to WithRate while it does", "reason", err)
	}
	q.serve()
}

// next lets the next request go, and reports whether there is one.
func (q *queue) next() bool {
	next := -1
	for class, passed := range q.passedOver {
		if q.waiting[class].Len() > 0 && (next < 0 || passed >= passedOverMost && passed > q.passedOver[next]) {
			next = class
		}
	}
	if next < 0 {
		return false
	}
	p := q.waiting[next].Remove(q.waiting[next].Front()).(*place)
	p.went.Store(time.Now().UnixNano())
	close(p.turn)
	p.turn = nil
	for class := range classes {
		q.passedOver[class]++
		if class == next || q.waiting[class].Len() == 0 {
			q.passedOver[class] = 0
		}
	}
	return true
}

func (q *queue) len() int {
	return q.waiting[people].Len() + q.waiting[accounts].Len() + q.waiting[refreshes].Len()
}

// report fills in what the queue knows of Stats. It returns how many sources wait.
func (q *queue) report(s *Stats) (sources int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	s.InLine = q.len()
	s.Refused = q.refused
	s.Rate = q.pace.rate(now)
	for class := range classes {
		if first := q.waiting[class].Front(); first != nil {
			s.LongestWait = max(s.LongestWait, time.Duration(now.UnixNano()-first.Value.(*place).since))
		}
	}
	return s.InLine - q.waiting[people].Len()
}

// clear is how many seconds it takes until the people who wait now have been
// served: 1 at least.
func (q *queue) clear() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	seconds := q.pace.held(now).Seconds() + float64(q.waiting[people].Len())/q.pace.rate(now)
	return int(min(max(1, math.Ceil(seconds)), holdMost.Seconds()))
}
