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
// A [TokenSource] works with any code that accepts an [oauth2.TokenSource]. The
// client of [TokenSource.Client], and a [Transport] of your own, also send the
// X-Moov-Version header, and never send the token to another host. Package
// moovtest is an in-process fake of Moov for tests.
//
// The package calls the code that you plug in, such as an [http.RoundTripper],
// a [Cache] or a [Limiter], directly, as an [http.Client] calls its Transport.
// Such code must return when its context ends. A panic in it ends the program.
// If it calls [runtime.Goexit], as t.FailNow does in a mock, callers wait for
// [WithTimeout]. With a Limiter, callers of TokenContext wait until their
// context ends, and callers of Token wait forever.
package moovauth

// This file follows a token through its life: fresh, stale, expired. It decides
// which callers wait, lets them share one token request, and starts the refresh
// in the background. A shared token request is called a flight. It runs a
// grant, which obtains one token: see grant.go. What a source knows is in
// state.go.

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

// TokenSource is an [oauth2.TokenSource] for one set of scopes. Make one with
// [NewTokenSource] and share it: it is safe for concurrent use.
//
// A token is fresh until its refresh point, then stale until its hard expiry,
// then expired. A fresh token is returned at once, without a mutex. A stale
// token is returned at once too, while one refresh runs in the background.
// Callers wait only if there is no token, or if the token has expired or was
// refused (see [TokenSource.Invalidate]). Callers that wait share one token
// request.
//
// The hard expiry is 5 s before the expiry that the server set, or a tenth of
// the lifetime if that is less. [WithEarlyRefresh] sets the time between the
// refresh point and the hard expiry.
type TokenSource struct{ core *core }

// core holds the parts of a TokenSource. The pointers are immutable. Package
// fmt does not follow them when it prints a TokenSource.
type core struct {
	config  *config
	cache   *store // nil: none
	state   *state
	flights *flights
}

// flights coordinates the goroutines that make token and revoke requests for a
// source.
type flights struct {
	shared     atomic.Pointer[singleflight.Group] // lets callers share one flight
	turn       *semaphore.Weighted                // held by the running flight or Revoke, so that only one of them runs at a time
	running    atomic.Pointer[flight]             // the flight that holds turn; nil: none
	revoking   atomic.Int32                       // calls to Revoke that wait for the turn
	refreshing atomic.Bool                        // a refresh is running in the background
	waiting    atomic.Int32                       // callers that wait for a flight
}

// flight can end a grant in progress, or only its waits.
type flight struct {
	background bool
	leave      context.CancelCauseFunc // ends the waits for the Limiter and between attempts
	cancel     context.CancelCauseFunc // ends the grant
}

// NewTokenSource returns a source of tokens for an API key. It makes no
// request: the first call to Token does. It checks its arguments, and its error
// names the argument to change. [WithScopes], or [WithToken] with a refresh
// token, is required, and both may be given. Without scopes, the source cannot
// replace a refresh token that was refused or revoked: Token then returns an
// error.
func NewTokenSource(creds Credentials, opts ...Option) (*TokenSource, error) {
	c, err := newConfig(creds, opts)
	if err != nil {
		return nil, err
	}
	if len(c.scopes) == 0 && (c.token == nil || c.token.RefreshToken == "") {
		return nil, errors.New(`moovauth: no scopes: name what the token may do, such as WithScopes("/ping.read")`)
	}
	st := newState()
	store, err := newStore(c)
	if err != nil {
		return nil, err
	}
	if t := c.token; t != nil {
		now, life := c.clock(), assumedLifetime
		if !t.Expiry.IsZero() {
			life = max(min(t.Expiry.Sub(now.time()), maxLifetime), 0)
		}
		st.obtain(c.newCurrentToken(*t, now, life), "", now)
		if store != nil {
			st.claimRefreshToken(true) // another process may send it
		}
		c.token = nil
	}
	f := &flights{turn: semaphore.NewWeighted(1)}
	f.shared.Store(new(singleflight.Group))
	return &TokenSource{&core{c, store, st, f}}, nil
}

// Token returns a valid token. It implements [oauth2.TokenSource]. It waits
// only if there is no valid token. It waits for about [WithTimeout] at most,
// plus the time that the token request waits for a [Limiter]. If the server
// refuses the token request, the error is an [*Error]. If there is no valid
// token and the source is backing off after a failure, the error is a
// [*CoolDownError].
//
// Each call returns a copy, which the caller may change, except for the maps
// and slices that its Extra method returns. Its Expiry is the one that the
// server set. Token returns it until the hard expiry, although
// [oauth2.Token.Valid] reports false 10 s before the Expiry.
func (s *TokenSource) Token() (*oauth2.Token, error) {
	return s.TokenContext(context.Background())
}

// TokenContext is like [TokenSource.Token], but if ctx ends first, it returns
// an error that wraps the error of ctx. The token request is shared and does
// not use ctx, so it does not inherit values such as a trace span, and it
// continues for other callers.
func (s *TokenSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	current, err := s.currentToken(ctx)
	if err != nil {
		return nil, err
	}
	t := current.Token
	return &t, nil
}

var (
	errZero       = errors.New("moovauth: this TokenSource is a zero value: make one with NewTokenSource")
	errNilContext = errors.New("moovauth: the context is nil: pass context.Background()")
	errRevoked    = errors.New("moovauth: interrupted by TokenSource.Revoke")
	errNeeded     = errors.New("moovauth: a refresh in the background gives way to waiting callers")
)

// currentToken is TokenContext without the copy.
func (s *TokenSource) currentToken(ctx context.Context) (*currentToken, error) {
	switch {
	case s == nil || s.core == nil:
		return nil, errZero
	case ctx == nil:
		return nil, errNilContext
	}
	if t := s.core.usable(); t != nil {
		return t, nil
	}
	return s.core.wait(ctx)
}

// usable returns the token that callers get now, or nil if they have to wait.
// If the token is stale, usable starts a refresh in the background.
func (c *core) usable() *currentToken {
	now, known := c.config.clock(), c.state.load()
	t := known.usable(now)
	if t != nil && now.reached(t.refreshAt) && known.refreshDue(now) && c.flights.refreshing.CompareAndSwap(false, true) {
		go func() {
			defer c.flights.refreshing.Store(false)
			_, _, _ = c.flights.shared.Load().Do("", c.flight(true))
		}()
	}
	return t
}

// wait joins or starts shared flights until there is a token or an error. If
// the current token was refused and no other can be obtained, wait returns the
// refused token rather than an error. After one attempt to replace it has
// failed, callers wait for the next attempt only briefly.
func (c *core) wait(ctx context.Context) (*currentToken, error) {
	began, known := time.Now(), c.state.load()
	var longEnough <-chan time.Time
	if known.coolDown != nil && known.current != nil && known.current.refused {
		longEnough = time.After(maxWaitAgain)
	}
	if c.config.limiter == nil { // with a Limiter, only the caller's context bounds the wait
		limited, cancel := context.WithTimeoutCause(ctx, c.config.timeout+grace, notWithin(c.config.timeout))
		defer cancel()
		ctx = limited
	}
	c.flights.waiting.Add(1)
	defer c.flights.waiting.Add(-1)
	var err error
	for waited, over := false, false; ; waited = true {
		if t := c.usable(); t != nil {
			return t, nil
		}
		if err != nil {
			return nil, err
		}
		if t := c.state.load().current; (over || ctx.Err() != nil) && t != nil && t.refused && !c.config.clock().reached(t.expireAt) {
			return t, nil // no other token came in time
		}
		if ctx.Err() != nil {
			return nil, failure(fmt.Errorf("moovauth: stopped waiting for a token: %w", causeOf(ctx, ctx.Err())))
		}
		if cooling := c.state.load().coolingDown(c.config.clock()); cooling != nil {
			return nil, &CoolDownError{Until: cooling.until.time(), Err: cooling.err}
		}
		if !waited {
			defer func() { c.state.counts.waitTime.Add(int64(time.Since(began))) }()
			c.state.counts.waited.Add(1)
		}
		if running := c.flights.running.Load(); running != nil && running.background {
			running.leave(errNeeded)
		}
		select {
		case ended := <-c.flights.shared.Load().DoChan("", c.flight(false)):
			err = ended.Err
		case <-longEnough:
			over = true
		case <-ctx.Done(): // the loop checks once more whether there is a token
		}
	}
}

// A caller waits for grace longer than WithTimeout, so that it gets the error
// of the grant, which says more than its own.
const grace = 250 * time.Millisecond

const maxWaitAgain = time.Second // for another attempt to replace a refused token

// flight returns a function that runs a grant as soon as it holds the turn. A
// caller can start a new flight just after another has finished, so the
// function first checks again whether a token is needed. It returns only errors
// that callers should see. A failed refresh in the background is not such an
// error: a caller that needs a token starts another flight.
func (c *core) flight(background bool) func() (any, error) {
	return func() (any, error) {
		ctx, cancel := context.WithCancelCause(context.Background())
		defer cancel(nil)
		_ = c.flights.turn.Acquire(ctx, 1) // it cannot fail: ctx has not ended
		defer c.flights.turn.Release(1)
		defer c.flights.shared.Store(new(singleflight.Group)) // frees the old group's map, which an idle source does not need
		queue, leave := context.WithCancelCause(ctx)
		c.flights.running.Store(&flight{background, leave, cancel})
		defer c.flights.running.Store(nil)

		if c.flights.revoking.Load() > 0 { // Revoke looked before this flight was running
			leave(errRevoked)
		}
		now, known := c.config.clock(), c.state.load()
		if background && !known.refreshDue(now) || !background && (known.usable(now) != nil || known.coolingDown(now) != nil) {
			return nil, nil
		}
		g := &grant{core: c, cache: c.cache.session(c.config.timeout), queue: queue, background: background, budget: newBudget(c.config.timeout)}
		err := g.run(ctx)
		if err == nil || queue.Err() != nil && (background || askedWait(err) == 0) {
			return nil, nil
		}
		g.fail(err)
		if background {
			return nil, nil
		}
		return nil, err
	}
}

// Invalidate marks the access token as refused if it is the current one. Call
// it after the API has answered 401 to this token. The next call to Token waits
// for another token. If that token request fails, Token returns the refused
// token until it expires, since other API calls may still accept it. After each
// cool-down, one call to Token starts another attempt, and waits for it for 1 s
// at most.
//
// An invalidation that follows the last one too soon has no effect, so that an
// API that answers 401 to everything causes few token requests. The pause
// between two invalidations is 1 s at first, and doubles to 30 s. It starts
// over once a token has lived to its refresh point.
//
// Invalidate does not revoke the token: see [TokenSource.Revoke].
func (s *TokenSource) Invalidate(accessToken string) {
	if s.core != nil && s.core.state.invalidate(accessToken, s.core.config.clock()) {
		s.core.state.counts.invalidated.Add(1)
	}
}
