package platform

// This file is the queue in which all token and revoke requests of an API key
// wait. It decides which request is next. The rate is decided in pace.go, or by
// the limiter that a fleet shares.
//
// A turn is the permission to send one request: what a Limiter's Wait grants.

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

// The classes of requests. The first class has the highest priority.
const (
	interactive = iota // Mint, Handler and Tokens.Revoke: a person waits
	accounts           // a source without a valid token: callers wait, or it is being revoked
	refreshes          // a source with a valid token: no one waits
	classes            // the number of classes
)

const (
	// A class that was passed over this many times is next. So each class gets at
	// least one turn in ten, even if two classes were passed over as often.
	maxPassedOver = 8

	maxAsking = 8           // calls of a shared limiter's Wait at a time
	lookAgain = time.Second // until the rate may have risen, or the shared limiter may work again
)

// queue lets requests go, one at a time.
type queue struct {
	shared moovauth.Limiter // of the fleet; nil: the queue has its own pace
	logger *slog.Logger

	mu           sync.Mutex // guards the fields below, and each place
	pace         pace
	waiting      [classes]list.List // of *place
	passedOver   [classes]int       // turns that went to other classes while this class waited
	waited       bool               // a request has been waiting for the next turn
	timer        *time.Timer        // for the next turn
	asking       int                // calls of shared.Wait in progress
	ownPaceUntil time.Time          // the queue has its own pace until then, because shared failed
	refused      uint64             // 429s since the start
}

func newQueue(c *config) *queue {
	q := &queue{shared: c.shared, logger: c.logger, pace: newPace(c.perSecond)}
	q.timer = time.AfterFunc(time.Hour, func() {
		q.mu.Lock()
		defer q.mu.Unlock()
		q.serve()
	})
	q.timer.Stop() // serve starts it
	return q
}

// place is the [moovauth.Limiter] of one source, one minted token or one
// revocation. Each of these makes one request at a time. If Moov refuses the
// request with 429, it gets its former place in the queue.
type place struct {
	queue  *queue
	source *moovauth.TokenSource // nil: an interactive request

	turn    chan struct{} // closed when the request may go; nil: no request waits
	since   int64         // when the request came to the queue, in ns since 1970
	refused bool          // the last request was answered with 429
	kept    *list.Element // of sources.kept, guarded by sources.mu; nil: the source is not kept

	went   atomic.Int64 // when the last request went, in ns since 1970; 0: it did not
	failed uint64       // the source's failed token requests, when sources.report last looked
}

// needs returns how many refreshes per second the source needs if its token
// expires at expiry. For a token that came from a cache, that is almost 0.
func (p *place) needs(expiry time.Time) float64 {
	life := expiry.Sub(time.Unix(0, p.went.Load()))
	return 1 / (life - min(life/5, 5*time.Minute)).Seconds() // see moovauth.WithEarlyRefresh
}

// Wait waits until the request may go, or until ctx ends.
func (p *place) Wait(ctx context.Context) error {
	q, class, turn := p.queue, interactive, make(chan struct{})
	if p.source != nil {
		class = refreshes
		if p.source.Stats().Phase == moovauth.PhaseNone {
			class = accounts
		}
	}
	q.mu.Lock()
	p.turn = turn
	element := q.enter(p, class)
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
	granted := p.turn == nil // perhaps while ctx ended
	q.waiting[class].Remove(element)
	q.mu.Unlock()
	if granted {
		p.Unused()
	}
	return context.Cause(ctx)
}

// Refused notes a 429. No request goes until retryAfter has passed.
func (p *place) Refused(retryAfter time.Duration) {
	q := p.queue
	q.mu.Lock()
	q.refused++
	p.refused = true
	p.since-- // so that it goes before requests that came at the same time
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

// passOn gives a turn to the next request. If there is none, it gives the turn back.
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

// enter puts p into the queue. The caller holds q.mu, as for all methods that do
// not lock it.
func (q *queue) enter(p *place, class int) *list.Element {
	if !p.refused {
		p.since = time.Now().UnixNano()
	}
	p.refused = false
	waiting := &q.waiting[class]
	before := waiting.Back()
	for before != nil && before.Value.(*place).since > p.since {
		before = before.Prev()
	}
	if before == nil {
		return waiting.PushFront(p)
	}
	return waiting.InsertAfter(p, before)
}

// serve lets all requests go that may go at this moment. If others remain, it
// arranges for the next turn.
func (q *queue) serve() {
	now := time.Now()
	for q.len() > 0 {
		if q.shared != nil && !now.Before(q.ownPaceUntil) {
			for ; q.asking < min(q.len(), maxAsking); q.asking++ {
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

// ask waits for a turn of the shared limiter. The turn goes to the request that is
// first in the queue when the wait ends.
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
		q.logger.Warn("moovauth: platform: the limiter of WithLimiter failed: requests keep to WithRate until it works again", "reason", err)
	}
	q.serve()
}

// next lets the next request go, and reports whether there is one.
func (q *queue) next() bool {
	next := -1
	for class, passed := range q.passedOver {
		if q.waiting[class].Len() > 0 && (next < 0 || passed >= maxPassedOver && passed > q.passedOver[next]) {
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
	return q.waiting[interactive].Len() + q.waiting[accounts].Len() + q.waiting[refreshes].Len()
}

// report fills in what the queue knows of Stats. It returns how many requests of
// sources wait.
func (q *queue) report(s *Stats) (sources int) {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	s.InLine, s.Refused = q.len(), q.refused
	s.Rate = q.pace.rate(now)
	for class := range classes {
		if first := q.waiting[class].Front(); first != nil {
			s.LongestWait = max(s.LongestWait, time.Duration(now.UnixNano()-first.Value.(*place).since))
		}
	}
	return s.InLine - q.waiting[interactive].Len()
}

// clear returns how many seconds it takes to serve the interactive requests that
// wait at this moment. It returns at least 1.
func (q *queue) clear() int {
	q.mu.Lock()
	defer q.mu.Unlock()
	now := time.Now()
	seconds := max(0, q.pace.heldTo.Sub(now).Seconds()) + float64(q.waiting[interactive].Len())/q.pace.rate(now)
	return int(min(max(1, math.Ceil(seconds)), maxHold.Seconds()))
}
