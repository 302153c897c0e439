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
// A [TokenSource] plugs into whatever takes an [oauth2.TokenSource]; its
// [TokenSource.Client], or a [Transport] of your own, also sends the
// X-Moov-Version header and keeps the token from other hosts. Package moovtest
// is a Moov to test against.
package moovauth

// This file is the life of a token: when one is good, when it is refreshed,
// and who waits for whom. What goes over the wire is endpoint.go's.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/sync/semaphore"
	"golang.org/x/sync/singleflight"

	"github.com/moovauth/moovauth/internal/guard"
	"github.com/moovauth/moovauth/internal/redact"
)

const (
	maxEarly  = 5 * time.Minute // of the default early refresh
	maxLeeway = 5 * time.Second // must stay under the 10 s of oauth2.ReuseTokenSource

	invalidateEvery = time.Second // at most one invalidation in this time counts
	maxPast         = 20          // tokens that are remembered for Revoke and for masking
	maxDead         = 4           // of them, those that are not alive
	maxSkew         = time.Minute // between the clocks of machines that share a cache

	firstCoolDown = 250 * time.Millisecond // doubled with each failure in a row
	maxCoolDown   = 30 * time.Second
)

// TokenSource is an [oauth2.TokenSource] that always has a good token, or an
// error that says why not. Make one with [NewTokenSource] for each set of
// scopes, and share it: it is safe for concurrent use.
//
// A token is fresh until its refresh point, then stale until its hard expiry,
// then expired. A fresh one is handed out without a lock. A stale one is
// handed out as well, while one grant runs in the background. Callers that
// meet an expired one, or none, wait together for one grant. The refresh point
// lies before the hard expiry by what [WithEarlyRefresh] says; the hard expiry
// lies before the server's by 5 s, or a tenth of the lifetime if that is less.
type TokenSource struct {
	endpoint *endpoint
	store    *store // nil: there is no cache

	current    atomic.Pointer[held]     // nil: nothing is held. Written with mu held.
	cooling    atomic.Pointer[coolDown] // nil: the last flight succeeded, or there was none
	refreshing atomic.Bool              // a background grant is under way
	flight     singleflight.Group       // the one shared grant
	granting   *semaphore.Weighted      // held during a grant, and by Revoke while it takes the tokens
	revoking   *semaphore.Weighted      // held during Revoke

	mu          sync.Mutex   // guards what follows; never held during I/O
	past        []*pastToken // no longer handed out, oldest first
	invalidated *instant     // when an invalidation last counted
}

// held is what a source has at one time: an access token, a refresh token, or
// both. It is not changed once it is published.
type held struct {
	token         oauth2.Token // AccessToken is "" where there is only a refresh token
	authorization string       // the Authorization header
	refreshAt     instant
	expireAt      instant // the hard expiry
	endAt         instant // when it is dead for certain, also on the server's clock; zero: unknown
	spent         string  // the refresh token that was used up for it, or refused
}

// pastToken is a token that is no longer handed out.
type pastToken struct {
	token string
	hint  TokenTypeHint
	endAt instant // as in held
	dead  bool    // used up, refused or revoked
}

// alive reports whether t may be. Where the clocks differ as to whether it has
// expired, it may.
func (t *pastToken) alive(now instant) bool {
	return !t.dead && (t.endAt == instant{} || now.wall < t.endAt.wall || now.monotonic < t.endAt.monotonic)
}

// coolDown is the time after a failed flight in which no request is made.
type coolDown struct {
	until    instant
	failures int   // in a row
	err      error // the last one's
}

// instant is a moment on both clocks, in nanoseconds. The wall clock goes on
// while a machine is suspended, the monotonic one is never set back.
type instant struct {
	wall      int64 // since 1970
	monotonic int64 // since the clock was made
}

// reached reports whether either clock has come to t.
func (now instant) reached(t instant) bool { return now.wall >= t.wall || now.monotonic >= t.monotonic }

func (now instant) add(d time.Duration) instant {
	return instant{now.wall + int64(d), now.monotonic + int64(d)}
}

// after is how long it is from now to t, on the clock that gets there first.
func (t instant) after(now instant) time.Duration {
	return time.Duration(max(0, min(t.wall-now.wall, t.monotonic-now.monotonic)))
}

// newClock reads both clocks.
func newClock() func() instant {
	start := time.Now()
	return func() instant {
		now := time.Now()
		return instant{now.UnixNano(), int64(now.Sub(start))}
	}
}

func (now instant) time() time.Time { return time.Unix(0, now.wall) }

// NewTokenSource makes a source for the API key's tokens. It makes no request:
// the first Token does. It checks its arguments, and its error names the one
// to change. Needed are [WithScopes], or a refresh token given with [WithToken].
func NewTokenSource(creds Credentials, opts ...Option) (*TokenSource, error) {
	c, err := newConfig(creds, opts)
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
	s := &TokenSource{
		endpoint: newEndpoint(c),
		store:    st,
		granting: semaphore.NewWeighted(1),
		revoking: semaphore.NewWeighted(1),
	}
	if t := c.token; t != nil {
		now := c.clock()
		life := assumedLifetime
		if !t.Expiry.IsZero() {
			life = max(min(t.Expiry.Sub(now.time()), maxLifetime), 0)
		}
		s.current.Store(s.hold(*t, now, life))
	}
	return s, nil
}

// hold reckons when t, which lives for life from now on, is refreshed and expires.
func (s *TokenSource) hold(t oauth2.Token, now instant, life time.Duration) *held {
	if t.AccessToken == "" {
		return &held{token: t}
	}
	usable := life - min(maxLeeway, life/10)
	early := s.endpoint.early
	if early < 0 {
		early = min(life/5, maxEarly)
	}
	early = min(early, usable*4/5)
	early -= time.Duration(s.endpoint.random() * float64(early) / 10)
	t.Expiry = now.add(life).time()
	t.ExpiresIn = int64(life / time.Second)
	authorization := t.Type() + " " + t.AccessToken
	t.AccessToken = authorization[len(authorization)-len(t.AccessToken):] // so that it is held once
	return &held{
		token:         t,
		authorization: authorization,
		refreshAt:     now.add(usable - early),
		expireAt:      now.add(usable),
	}
}

// Token returns a token that is good now. It implements [oauth2.TokenSource].
// It waits for the network only where there is no good token, and then no
// longer than [WithTimeout]. What the server refuses comes back as an [*Error].
// Each call returns a token of its own, which the caller may change.
func (s *TokenSource) Token() (*oauth2.Token, error) {
	return s.TokenContext(context.Background())
}

// TokenContext is [TokenSource.Token], but it waits no longer than ctx lets
// it; its error then is ctx's. The grant goes on for other callers. Values of
// ctx, such as a trace, reach the requests of a grant that this call starts.
func (s *TokenSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	h, err := s.good(ctx)
	if err != nil {
		return nil, err
	}
	t := h.token
	return &t, nil
}

// good is TokenContext without the copy.
func (s *TokenSource) good(ctx context.Context) (*held, error) {
	if h := s.current.Load(); h != nil {
		now := s.endpoint.clock()
		if !now.reached(h.refreshAt) {
			return h, nil
		}
		if !now.reached(h.expireAt) {
			if c := s.cooling.Load(); (c == nil || now.reached(c.until)) && !s.refreshing.Load() && s.refreshing.CompareAndSwap(false, true) {
				over := s.grant(ctx)
				go func() { <-over; s.refreshing.Store(false) }() // not by the flight, which can still be joined while it ends
			}
			return h, nil
		}
	}
	return s.wait(ctx)
}

var errZero = errors.New("moovauth: this TokenSource is a zero value: make one with NewTokenSource")

// wait joins the shared grant, or starts it.
func (s *TokenSource) wait(ctx context.Context) (*held, error) {
	if s.endpoint == nil {
		return nil, errZero
	}
	if ctx.Err() != nil {
		return nil, gaveUp(ctx)
	}
	if err := s.cooled(s.endpoint.clock()); err != nil {
		return nil, err
	}
	for {
		select {
		case r := <-s.grant(ctx):
			if r.Err != nil {
				return nil, r.Err
			}
			h := r.Val.(*held)
			if c := s.current.Load(); c != nil && c != h && c.token.AccessToken == h.token.AccessToken {
				continue // invalidated while the flight was ending
			}
			return h, nil
		case <-ctx.Done():
			return nil, gaveUp(ctx)
		}
	}
}

func gaveUp(ctx context.Context) error {
	if cause := context.Cause(ctx); cause != ctx.Err() {
		return fmt.Errorf("moovauth: gave up waiting for a token: %w: %w", ctx.Err(), cause)
	}
	return fmt.Errorf("moovauth: gave up waiting for a token: %w", ctx.Err())
}

// grant starts the shared grant, or joins the one under way. It is nobody's:
// it does not end with ctx, only within WithTimeout.
func (s *TokenSource) grant(ctx context.Context) <-chan singleflight.Result {
	return s.flight.DoChan("", func() (any, error) {
		ctx, cancel := s.endpoint.limit(context.WithoutCancel(ctx))
		defer cancel()
		if err := s.granting.Acquire(ctx, 1); err != nil {
			return nil, gaveUp(ctx)
		}
		defer s.granting.Release(1)
		// Whoever comes just after a flight has ended finds here what it left.
		now := s.endpoint.clock()
		if h := s.current.Load(); h != nil && !now.reached(h.refreshAt) {
			return h, nil
		}
		if err := s.cooled(now); err != nil {
			return nil, err
		}
		h, err := guard.Call(ctx, network(s.secrets()), func() (*held, error) { return s.obtain(ctx) }, nil)
		if err == nil {
			s.cooling.Store(nil)
			return h, nil
		}
		s.coolDown(ctx, err)
		if h != nil {
			return h, nil
		}
		return nil, err
	})
}

// cooled returns nil where a request may be made, else the error that says why
// not, and when the next one is due.
func (s *TokenSource) cooled(now instant) error {
	c := s.cooling.Load()
	if c == nil || now.reached(c.until) {
		return nil
	}
	return fmt.Errorf("%w; no request is made before the next attempt, which is due in %v", c.err, c.until.after(now).Round(time.Millisecond))
}

// coolDown makes s leave the endpoint alone for a while after a failed flight.
// It ends with the token in hand in any case.
func (s *TokenSource) coolDown(ctx context.Context, err error) {
	failures := 1
	if c := s.cooling.Load(); c != nil {
		failures = c.failures + 1
	}
	wait := min(firstCoolDown<<min(failures-1, 16), maxCoolDown)
	wait -= time.Duration(s.endpoint.random() * float64(wait) / 2)
	if errors.As(err, new(*guard.PanicError)) && failures == 1 {
		wait = 0 // the endpoint has not failed
	}
	good := s.left()
	wait = s.endpoint.delay(wait, good, err)
	if good > 0 {
		wait = min(wait, good)
	}
	s.cooling.Store(&coolDown{s.endpoint.clock().add(wait), failures, err})

	s.endpoint.warn(ctx, "moovauth: no token obtained",
		withStack(err, "error", err, "failures", failures, "delay", wait, "token_good_for", good)...)
}

// left is how long the token in hand is good; 0: there is none.
func (s *TokenSource) left() time.Duration {
	h := s.current.Load()
	if h == nil {
		return 0
	}
	return h.expireAt.after(s.endpoint.clock())
}

// obtain gets a token: from the cache, which is looked at again once another
// process may have had the lock, or from the server. Where that fails, what
// the cache had comes with the error, as long as it is good.
func (s *TokenSource) obtain(ctx context.Context) (*held, error) {
	cache := s.store.visit(s.secrets())
	if h := s.adopt(ctx, cache); h != nil {
		return h, nil
	}
	unlock, locker := cache.lock(ctx)
	defer unlock()
	if locker {
		if h := s.adopt(ctx, cache); h != nil {
			return h, nil
		}
	}
	h, err := s.ask(ctx, cache)
	if err != nil && s.left() > 0 {
		h = s.current.Load()
	}
	return h, err
}

// adopt takes over what is cached. It returns nil where the server has to be
// asked all the same: there is nothing, or only what s has had already, or
// the token is due for its refresh, for which its refresh token then serves.
func (s *TokenSource) adopt(ctx context.Context, cache *visit) *held {
	e := cache.get(ctx)
	if e == nil {
		return nil
	}
	now := s.endpoint.clock()
	life := time.Duration(e.ExpiresIn) * time.Second
	left := min(e.Expiry.Sub(now.time()), life)
	h := s.hold(e.token(), now.add(left-life), life)
	h.spent = e.Spent
	if !e.Assumed {
		h.endAt = now.add(left + maxSkew)
	}
	fresh := !now.reached(h.refreshAt)
	if !s.publishNews(h, fresh) || !fresh {
		return nil
	}
	s.endpoint.logger.DebugContext(ctx, "moovauth: token adopted from the cache", "expiry", h.token.Expiry)
	return h
}

// publishNews publishes h unless s has had it already, or has one that is as
// good. A fresh one is always better, since ours is due for its refresh.
func (s *TokenSource) publishNews(h *held, fresh bool) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	had := slices.ContainsFunc(s.past, func(t *pastToken) bool { return t.token == h.token.AccessToken })
	if old := s.current.Load(); old != nil {
		had = had || old.token.AccessToken == h.token.AccessToken || !fresh && old.expireAt.wall >= h.expireAt.wall
	}
	if !had {
		s.publish(h)
	}
	return !had
}

// ask gets a token from the server: with the refresh token where there is one,
// with client credentials where there is none or the server refuses it for
// good and no other process has put what it got for it into the cache.
func (s *TokenSource) ask(ctx context.Context, cache *visit) (*held, error) {
	if h := s.current.Load(); h != nil && h.token.RefreshToken != "" {
		refresh := h.token.RefreshToken
		h, err := s.request(ctx, cache, grantRefreshToken, url.Values{"refresh_token": {refresh}}, refresh)
		if err == nil || len(s.endpoint.scopes) == 0 || !refusedForGood(err) {
			return h, err
		}
		s.endpoint.logger.WarnContext(ctx, "moovauth: the refresh token was refused; going on with client credentials", "error", err)
		s.dropRefreshToken(refresh)
		if h := s.adopt(ctx, cache); h != nil {
			return h, nil
		}
	}
	if len(s.endpoint.scopes) == 0 {
		return nil, errors.New("moovauth: no refresh token and no scopes to obtain a token with: give NewTokenSource WithScopes")
	}
	return s.request(ctx, cache, grantClientCredentials, url.Values{"scope": {strings.Join(s.endpoint.scopes, " ")}}, "")
}

// request makes one grant, publishes its token, and puts it into the cache.
// refresh is the refresh token to keep where the reply has none.
func (s *TokenSource) request(ctx context.Context, cache *visit, grantType string, form url.Values, refresh string) (*held, error) {
	r, err := s.endpoint.token(ctx, s.left, grantType, form, s.secrets())
	if err != nil {
		return nil, err
	}
	if ctx.Err() != nil { // the flight has been given up, and another may be under way
		s.mu.Lock()
		s.remember(&pastToken{token: r.token.RefreshToken, hint: RefreshToken})
		s.remember(&pastToken{token: r.token.AccessToken, hint: AccessToken})
		s.mu.Unlock()
		return nil, gaveUp(ctx)
	}
	t := *r.token
	t.RefreshToken = cmp.Or(t.RefreshToken, refresh)
	h := s.hold(t, r.sent, r.lifetime)
	h.spent = refresh
	if r.warning == "" { // the lifetime is the server's word, which it gave in whole seconds between then and now
		h.endAt = s.endpoint.clock().add(r.lifetime + time.Second)
	}
	s.mu.Lock()
	s.publish(h)
	s.mu.Unlock()
	if r.warning != "" {
		s.endpoint.logger.WarnContext(ctx, "moovauth: "+r.warning, "grant_type", grantType, "request_id", r.requestID)
	}
	s.endpoint.logger.DebugContext(ctx, "moovauth: token obtained", "grant_type", grantType, "request_id", r.requestID, "expiry", h.token.Expiry)
	cache.put(ctx, entryOf(h))
	return h, nil
}

// refusedForGood reports whether the refresh token that err is about can't
// be used again.
func refusedForGood(err error) bool {
	var refused *Error
	return errors.As(err, &refused) &&
		slices.Contains([]int{http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusUnprocessableEntity}, refused.StatusCode)
}

// publish makes h what is handed out, and remembers what it replaces. s.mu is held.
func (s *TokenSource) publish(h *held) {
	old := s.current.Swap(h)
	if old == nil {
		return
	}
	if old.token.AccessToken != h.token.AccessToken {
		s.remember(&pastToken{token: old.token.AccessToken, hint: AccessToken, endAt: old.endAt})
	}
	if old.token.RefreshToken != h.token.RefreshToken {
		s.remember(&pastToken{token: old.token.RefreshToken, hint: RefreshToken, dead: old.token.RefreshToken == h.spent})
	}
}

// dropRefreshToken forgets a refresh token that was refused.
func (s *TokenSource) dropRefreshToken(refresh string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if h := s.current.Load(); h != nil && h.token.RefreshToken == refresh {
		without := *h
		without.token.RefreshToken, without.spent = "", refresh
		s.publish(&without)
	}
}

// remember adds t to the past, and forgets the oldest of it. s.mu is held.
func (s *TokenSource) remember(t *pastToken) {
	if t.token == "" {
		return
	}
	s.past = append(s.past, t)
	now := s.endpoint.clock()
	spare := len(s.past) - maxDead
	s.past = slices.DeleteFunc(s.past, func(t *pastToken) bool {
		spare--
		return spare >= 0 && !t.alive(now)
	})
	s.past = s.past[max(0, len(s.past)-maxPast):]
}

// take takes away all that s has obtained and that may be alive, refresh tokens
// first.
func (s *TokenSource) take() []*pastToken {
	s.mu.Lock()
	defer s.mu.Unlock()
	var taken []*pastToken
	if h := s.current.Swap(nil); h != nil {
		s.endCoolDown(s.endpoint.clock())
		taken = append(taken,
			&pastToken{token: h.token.RefreshToken, hint: RefreshToken},
			&pastToken{token: h.token.AccessToken, hint: AccessToken, endAt: h.endAt})
	}
	now := s.endpoint.clock()
	taken = append(taken, s.past...)
	slices.SortStableFunc(taken, func(a, b *pastToken) int { return -cmp.Compare(a.hint, b.hint) })
	s.past = slices.DeleteFunc(s.past, func(t *pastToken) bool { return t.alive(now) })
	return slices.DeleteFunc(taken, func(t *pastToken) bool { return t.token == "" || !t.alive(now) })
}

// secrets are all that no message may carry.
func (s *TokenSource) secrets() *redact.Set { return &s.endpoint.redact }

// Invalidate forgets the access token where it is still the current one, as
// after a 401 to it, so that the next call obtains another; the refresh token
// is kept. At most one invalidation a second leads to a grant: an API that
// answers 401 to everything must not turn into a flood of token requests.
func (s *TokenSource) Invalidate(accessToken string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := s.current.Load()
	if h == nil || accessToken == "" || h.token.AccessToken != accessToken {
		return
	}
	now := s.endpoint.clock()
	if !s.refreshing.Load() { // else the grant under way is the one that follows
		if s.invalidated != nil && !now.reached(s.invalidated.add(invalidateEvery)) {
			return
		}
		s.invalidated = &now
	}
	refused := *h
	refused.refreshAt, refused.expireAt = now, now
	s.publish(&refused)
	s.endCoolDown(now)
}

// endCoolDown ends the cool-down with the token in hand.
func (s *TokenSource) endCoolDown(now instant) {
	if c := s.cooling.Load(); c != nil {
		s.cooling.Store(&coolDown{now, c.failures, c.err})
	}
}

// Format implements [fmt.Formatter]: no verb prints more of s than its client
// ID and scopes.
func (s *TokenSource) Format(f fmt.State, _ rune) {
	if s == nil || s.endpoint == nil {
		_, _ = io.WriteString(f, "moovauth.TokenSource{}")
		return
	}
	_, _ = fmt.Fprintf(f, "moovauth.TokenSource{ClientID:%s Scopes:%v}", s.endpoint.creds.ClientID, s.endpoint.scopes)
}

// Client returns a client that authorises its requests to the base URL's host
// with s, through a [Transport] on the transport of the client given with
// [WithHTTPClient], whose CheckRedirect, Jar and Timeout it keeps.
func (s *TokenSource) Client() *http.Client {
	var c http.Client
	if s.endpoint != nil { // else its requests fail, and say why
		c = *s.endpoint.client
	}
	c.Transport = &Transport{Base: c.Transport, Source: s}
	return &c
}
