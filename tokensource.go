// Package moovauth obtains, refreshes and revokes OAuth2 access tokens for
// Moov's API (https://moov.io), as an [oauth2.TokenSource].
//
//	source, err := moovauth.NewTokenSource(
//		moovauth.Credentials{ClientID: publicKey, ClientSecret: secretKey},
//		moovauth.WithScopes("/ping.read"),
//		moovauth.WithOrigin("https://example.com"),
//	)
//	if err != nil {
//		return err
//	}
//	resp, err := source.Client().Get("https://api.moov.io/ping")
//
// A [TokenSource] plugs into any code that takes an [oauth2.TokenSource]. Its
// [TokenSource.Client], or a [Transport] of your own, also sends the
// X-Moov-Version header and keeps the token from other hosts. Package moovtest
// is a Moov to test against.
package moovauth

// This file is who waits for whom: callers, the flight that they share, and the
// refresh in the background. What a source remembers is in memory.go, and how a
// token is obtained in grant.go.

import (
	"context"
	"errors"
	"fmt"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"
)

// TokenSource is an [oauth2.TokenSource] that always has a good token, or an
// error that says why not. Make one with [NewTokenSource] for each set of
// scopes, and share it: it is safe for concurrent use.
//
// A token is fresh until its refresh point, then stale until its hard expiry,
// then expired. A fresh token is returned without a lock. A stale token is
// returned too, while one refresh runs in the background. Callers that meet an
// expired token, or none, wait together for one grant. The refresh point lies
// before the hard expiry by what [WithEarlyRefresh] says. The hard expiry lies
// before the server's by 5 s, or a tenth of the lifetime if that is less.
type TokenSource struct {
	endpoint *endpoint
	store    *store // nil: there is no cache

	memory  *memory
	flights atomic.Pointer[singleflight.Group] // the flight that callers share; nil: there is none
	turn    *semaphore.Weighted                // held by a flight and by Revoke: who may talk to the server
	running atomic.Pointer[grant]              // the flight's, while it has the turn
	revokes atomic.Int32                       // calls of Revoke that wait for the turn
	waiting atomic.Int32                       // callers that wait for a flight
}

// NewTokenSource makes a source for the API key's tokens. It makes no request:
// the first Token does. It checks its arguments, and its error names the one
// to change. Needed are [WithScopes], or a refresh token given with [WithToken].
func NewTokenSource(creds Credentials, opts ...Option) (*TokenSource, error) {
	c, err := newSetup(creds, opts)
	if err != nil {
		return nil, err
	}
	if len(c.scopes) == 0 && (c.token == nil || c.token.RefreshToken == "") {
		return nil, errors.New(`moovauth: no scopes: name what the token may do, such as WithScopes("/ping.read")`)
	}
	st, err := newStore(c)
	if err != nil {
		return nil, err
	}
	s := &TokenSource{endpoint: &endpoint{c.config}, store: st, memory: new(memory), turn: semaphore.NewWeighted(1)}
	if t := c.token; t != nil {
		now := c.clock()
		life := assumedLifetime
		if !t.Expiry.IsZero() {
			life = max(min(t.Expiry.Sub(now.time()), maxLifetime), 0)
		}
		h := s.endpoint.newHeld(*t, now, life)
		h.since, h.sendable = now, c.cache == nil
		s.memory.obtain(h, "", now)
	}
	return s, nil
}

// Token returns a token that is good now. It implements [oauth2.TokenSource].
// It waits for the network only if there is no good token, and then no longer
// than [WithTimeout], plus the time in line if there is a [WithLimiter]. What
// the server refuses comes back as an [*Error], and while the server is left
// alone after a failure, as a [*CoolDownError]. Each call returns a token of its
// own, which the caller may change.
func (s *TokenSource) Token() (*oauth2.Token, error) {
	return s.TokenContext(context.Background())
}

// TokenContext is [TokenSource.Token], but it waits no longer than ctx lets it;
// its error then is ctx's. The grant goes on for other callers. It is nobody's:
// nothing of ctx, such as a trace, reaches the token request.
func (s *TokenSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	h, err := s.grantedToken(ctx)
	if err != nil {
		return nil, err
	}
	t := h.token
	return &t, nil
}

// grantedToken is TokenContext without the copy.
func (s *TokenSource) grantedToken(ctx context.Context) (*held, error) {
	if s.endpoint == nil {
		return nil, errZero
	}
	if v := s.memory.current.Load(); v != nil && v.held != nil {
		now := s.endpoint.clock()
		if !now.reached(v.held.refreshAt) {
			return v.held, nil
		}
		if !now.reached(v.held.expireAt) {
			s.refresh(now)
			return v.held, nil
		}
	}
	return s.wait(ctx)
}

// refresh starts a refresh in the background if one is due.
func (s *TokenSource) refresh(now instant) {
	revokes, due := s.memory.startRefresh(now)
	if !due {
		return
	}
	over := s.fly(true, revokes, s.endpoint.timeout)
	go func() { <-over; s.memory.endRefresh() }() // not by the flight, which can still be joined while it ends
}

var errZero = errors.New("moovauth: this TokenSource is a zero value: make one with NewTokenSource")

// wait joins the shared flight, or starts it.
func (s *TokenSource) wait(ctx context.Context) (*held, error) {
	began, joined := time.Now(), false
	s.waiting.Add(1)
	defer func() {
		s.waiting.Add(-1)
		if joined {
			s.memory.counts.waited.Add(1)
			s.memory.counts.waits.Add(uint64(time.Since(began)))
		}
	}()
	timeout := s.endpoint.timeout
	var late <-chan time.Time
	if s.endpoint.limiter == nil { // else time in line does not count
		// The flights that it joins may begin later than it, or wait for a Revoke.
		timer := time.NewTimer(timeout + grace)
		defer timer.Stop()
		late = timer.C
	}
	for {
		if ctx.Err() != nil {
			return nil, gaveUp(ctx)
		}
		if c := s.memory.load().blocked(s.endpoint.clock()); c != nil {
			return nil, c.failure()
		}
		joined = true
		// A caller that joined a background refresh in vain has less time left.
		within := timeout
		if late != nil {
			within = max(timeout-time.Since(began), timeout/10)
		}
		select {
		case r := <-s.fly(false, 0, within):
			landed := r.Val.(landing)
			switch {
			case landed.err == nil && (s.memory.gone(landed.held.token.AccessToken) || s.endpoint.clock().reached(landed.held.expireAt)):
				// It was invalidated or revoked, or expired, while the flight was ending.
			case landed.err == nil:
				s.refresh(s.endpoint.clock()) // if the cache had a stale token
				return landed.held, nil
			case !landed.nobodys:
				return nil, landed.err
			}
		case <-ctx.Done():
			return nil, gaveUp(ctx)
		case <-late:
			return nil, failure("moovauth: gave up waiting for a token", notWithin(timeout))
		}
	}
}

// grace is how much longer than WithTimeout a caller waits, so that it gets the
// error of the grant, which says more than its own. It is a little more than heed.
const grace = 300 * time.Millisecond

func gaveUp(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return failure("", fmt.Errorf("moovauth: gave up waiting for a token: %w: %w", ctx.Err(), cause))
	}
	return failure("moovauth: gave up waiting for a token", ctx.Err())
}

// landing is how a flight ended.
type landing struct {
	held    *held
	err     error
	nobodys bool // err is no caller's: each starts a flight of its own
}

// fly starts the shared flight, or joins the one under way. The grant that it
// starts is a background one or not; revokes is how many Revokes there had been.
func (s *TokenSource) fly(background bool, revokes int, within time.Duration) <-chan singleflight.Result {
	flight := s.flights.Load()
	if flight == nil {
		s.flights.CompareAndSwap(nil, new(singleflight.Group))
		if flight = s.flights.Load(); flight == nil { // another flight has come and gone
			flight = new(singleflight.Group)
		}
	}
	return flight.DoChan("", func() (any, error) {
		h, err := s.obtain(&grant{background: background, revokes: revokes, within: within})
		// The group has a map, which an idle source need not hold. A caller that
		// still joins finds no flight there and starts one: that has to wait its turn.
		s.flights.CompareAndSwap(flight, nil)
		return landing{h, err, err != nil && (background || errors.Is(err, errRevoked))}, nil
	})
}

// obtain runs g when it has the turn. What was checked before it waited is
// checked again.
func (s *TokenSource) obtain(g *grant) (*held, error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	_ = s.turn.Acquire(ctx, 1) // ctx does not end before
	defer s.turn.Release(1)

	now, v := s.endpoint.clock(), s.memory.load()
	switch {
	case g.background && v.revokes != g.revokes:
		return nil, errRevoked
	case v.good(now) > 0 && !(g.background && v.stale(now)):
		return v.held, nil
	case v.blocked(now) != nil && !g.background:
		return nil, v.blocked(now).failure()
	}
	g.endpoint, g.memory, g.cache = s.endpoint, s.memory, s.store.visit()
	g.waiting, g.cancel = &s.waiting, cancel
	s.running.Store(g)
	defer s.running.Store(nil)
	if s.revokes.Load() > 0 { // one that came before there was a grant to give way
		g.giveWay()
	}
	began := time.Now()
	h, err := g.run(ctx)
	if err != nil && context.Cause(ctx) == errRevoked { // whatever else went wrong at that moment
		err = errRevoked
	}
	if err != nil && !errors.Is(err, errRevoked) && !errors.Is(err, errRefused) {
		g.coolDown(err, time.Since(began))
	}
	return h, err
}

// failure is what a caller gets while c lasts.
func (c *coolOff) failure() error { return &CoolDownError{Until: c.until.time(), Err: c.err} }

// Invalidate forgets the access token if it is still the current one, as after
// a 401 to it, so that the next call obtains another. It does not revoke it: see
// [TokenSource.Revoke]. The refresh token is kept. The next token request
// follows at once. If one token after the other is invalidated, the time between
// two such requests doubles from 1 s to 30 s, so that an API that answers 401 to
// everything does not cause a flood of token requests; callers get a
// [*CoolDownError] meanwhile. It is back at 1 s once a token has lasted.
func (s *TokenSource) Invalidate(accessToken string) {
	if s.endpoint != nil && s.memory.invalidate(accessToken, s.endpoint.clock()) {
		s.memory.counts.invalidated.Add(1)
	}
}
