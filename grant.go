package moovauth

// This file obtains one token: from the cache, with the refresh token, or with
// the client credentials. A grant writes what it learned to the source's state,
// and nowhere else. RequestToken makes a token request without a source.

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

var errNoScopes = &grantError{text: "moovauth: no refresh token and no scopes to obtain a token with: give NewTokenSource WithScopes"}

// grant obtains one token for a source. It has one goroutine.
type grant struct {
	*core
	cache      *cacheSession
	queue      context.Context // for its waits: it ends with the grant, or with flight.leave when a caller or Revoke needs the turn
	background bool            // it refreshes a valid token, and no caller was waiting when it began
	budget     *budget
}

// run obtains a token. With a Limiter, it tries again after a 429 as long as a
// caller waits.
func (g *grant) run(ctx context.Context) error {
	waitedFor := func() bool { return g.flights.waiting.Load() > 0 }
	return failure(g.config.whileThrottled(g.queue, g.budget, waitedFor, func() error { return g.once(ctx) }))
}

// once looks into the cache, waits for the Limiter, takes the cache's lock and
// looks again. Then it sends the refresh token, and falls back to the client
// credentials.
func (g *grant) once(ctx context.Context) error {
	adopted, cached := g.lookUp(ctx)
	if adopted {
		return nil
	}
	if err := g.config.waitForLimiter(g.queue, g.budget); err != nil {
		return err
	}
	if g.background && !g.state.load().refreshDue(g.config.clock()) { // the token has expired, and no caller has asked for another
		g.config.returnPermit()
		return nil
	}
	unlock, locked := g.cache.lock(ctx)
	defer unlock()
	if g.config.limiter != nil || g.cache.hasLock() {
		if adopted, cached = g.lookUp(ctx); adopted {
			g.config.returnPermit()
			return nil
		}
	}
	if cached != nil {
		g.state.keepForRevoke(cached.RefreshToken, g.config.clock())
	}
	refresh, hasPermit := g.claimRefreshToken(ctx, cached, locked), true
	if refresh != "" {
		t, err := g.refresh(ctx, refresh, hasPermit)
		if err == nil && (g.missingScopes(t) == "" || g.state.narrow.Load()) {
			return nil
		}
		if err != nil && !g.fallBack(ctx, refresh, cached, err) {
			return err
		}
		hasPermit = false
	}
	if len(g.config.scopes) == 0 {
		return errNoScopes
	}
	t, err := g.clientCredentials(ctx, hasPermit) // if it fails, callers get the refreshed token, which lacks a scope
	if err == nil {
		g.state.narrow.Store(g.missingScopes(t) != "")
	}
	return err
}

// lookUp reads the cache, and makes the cached token the current one if it is
// better. It also returns the cache's entry.
func (g *grant) lookUp(ctx context.Context) (adopted bool, e *entry) {
	e, _ = g.cache.get(ctx) // a failure costs a token request
	if e == nil {
		return false, nil
	}
	now := g.config.clock()
	life := time.Duration(e.ExpiresIn) * time.Second
	left := min(e.Expiry.Sub(now.time()), life)
	t := g.config.newCurrentToken(*e.WithExtra(e.Members), now.add(left-life), life)
	if !e.Assumed {
		t.deadAt = now.add(left + maxSkew)
	}
	if adopted = g.state.adopt(t, now); adopted {
		g.state.counts.adopted.Add(1)
		g.config.log(slog.LevelDebug, "moovauth: token adopted from the cache", "expiry", t.Expiry)
	}
	return adopted, e
}

// claimRefreshToken returns the refresh token that this grant may send, if
// there is one, and marks it as sent. A server that detects reuse revokes a
// refresh token's whole family when it receives the token twice. So no two
// processes may send the same refresh token. With a lock, the mark is in the
// cache. Without a lock, only the source that obtained the refresh token sends
// it.
func (g *grant) claimRefreshToken(ctx context.Context, cached *entry, locked bool) string {
	if !g.cache.hasLock() {
		return g.state.claimRefreshToken(len(g.config.scopes) > 0)
	}
	if !locked || cached == nil || cached.Sent || cached.RefreshToken == "" {
		return ""
	}
	sent := *cached
	sent.Sent = true
	if !g.cache.put(ctx, &sent) {
		return ""
	}
	return cached.RefreshToken
}

// refresh makes a token request with a refresh token. A source without scopes
// cannot fall back to the client credentials. It repeats the request after any
// temporary failure, and does not give up an attempt early.
func (g *grant) refresh(ctx context.Context, refresh string, hasPermit bool) (*currentToken, error) {
	form := url.Values{"refresh_token": {refresh}}
	return g.request(ctx, refresh, &request{grantType: grantRefreshToken, form: form, hasPermit: hasPermit, spends: len(g.config.scopes) > 0})
}

// clientCredentials makes a token request with the client credentials.
func (g *grant) clientCredentials(ctx context.Context, hasPermit bool) (*currentToken, error) {
	form := url.Values{"scope": {strings.Join(g.config.scopes, " ")}}
	return g.request(ctx, "", &request{grantType: grantClientCredentials, form: form, hasPermit: hasPermit})
}

// fallBack reports whether to try the client credentials after the refresh
// request has failed with err. Revoke still knows the refresh token.
func (g *grant) fallBack(ctx context.Context, refresh string, cached *entry, err error) bool {
	if len(g.config.scopes) == 0 {
		return false // without scopes there are no client credentials to try
	}
	if notUsedUp(err) {
		if g.cache.hasLock() {
			g.cache.put(ctx, cached) // removes the mark
		}
		g.state.returnRefreshToken(refresh)
		return false // the next request would fail in the same way
	}
	delay := spread(askedWait(err), g.config.random())
	if ctx.Err() != nil || delay >= g.budget.left() {
		return false
	}
	g.config.log(slog.LevelWarn, "moovauth: the refresh token failed; the client credentials follow", "error", err, "delay", delay)
	return sleep(g.queue, delay) == nil
}

// request makes one token request. It makes the new token the current one and
// puts it into the cache. refresh is the refresh token that r sends. If the
// reply has no refresh token, that one is kept (RFC 6749 §6).
func (g *grant) request(ctx context.Context, refresh string, r *request) (*currentToken, error) {
	r.op, r.budget, r.queue = opToken, g.budget, g.queue
	r.secrets = append(g.state.tokens(), refresh)
	r.form.Set("grant_type", r.grantType)
	began, counts := time.Now(), &g.state.counts
	succeeded, failed := &counts.clientCredentials, &counts.clientCredentialsFailed
	if refresh != "" {
		succeeded, failed = &counts.refreshes, &counts.refreshesFailed
	}
	reply, err := g.config.do(ctx, r)
	if err != nil {
		if g.config.limiter == nil || !throttled(err) { // else whileThrottled may repeat it
			failed.Add(1)
		}
		return nil, err
	}
	now := g.config.clock()
	if t := g.state.load().current; reply.expired && t != nil && t.AccessToken == reply.token.AccessToken {
		failed.Add(1)
		g.state.keepForRevoke(reply.token.RefreshToken, now)
		return nil, reply.unusable(r, "the server returned the same token again, and says that it has expired")
	}
	reply.token.RefreshToken = cmp.Or(reply.token.RefreshToken, refresh)
	t := g.config.newCurrentToken(*reply.token, reply.sent, reply.lifetime)
	if reply.warning == "" { // the server counted in whole seconds, from a moment between the request and now
		t.deadAt = now.add(reply.lifetime + time.Second)
	}
	g.state.obtain(t, refresh, now)
	if now.reached(t.expireAt) {
		failed.Add(1)
		return nil, reply.unusable(r, "the token expired on its way")
	}
	succeeded.Add(1)
	attrs, missing := []any{"grant_type", r.grantType, "request_id", reply.requestID}, ""
	if refresh == "" {
		missing = g.missingScopes(t)
	}
	odd := missing+reply.warning != ""
	if before := g.state.warned.Swap(odd); odd && !before {
		g.config.log(slog.LevelWarn, "moovauth: the token is not what was asked for", append(attrs, "missing_scopes", missing, "lifetime", reply.warning)...)
	}
	g.config.log(slog.LevelDebug, "moovauth: token obtained", append(attrs, "expiry", t.Expiry, "duration", time.Since(began))...)
	g.cache.put(ctx, &entry{Token: t.Token, Members: reply.members, Assumed: reply.warning != ""})
	return t, nil
}

// missingScopes returns the configured scopes that a reply lacks, if the reply
// names its scope (RFC 6749 §5.1).
func (g *grant) missingScopes(t *currentToken) string {
	scope, _ := t.Extra("scope").(string)
	if scope == "" {
		return ""
	}
	granted := strings.Fields(scope)
	return strings.Join(slices.DeleteFunc(slices.Clone(g.config.scopes), func(s string) bool { return slices.Contains(granted, s) }), " ")
}

// fail begins a cool-down after the grant has failed with err.
func (g *grant) fail(err error) {
	c, known, failures, most := g.config, g.state.load(), 1, maxCoolDown
	if known.coolDown != nil {
		failures += known.coolDown.failures
	}
	if refused := new(Error); errors.As(err, &refused) && refused.refusesScopes() {
		most = maxScopesDown // only the account's owner can change that
	}
	now, asked := c.clock(), askedWait(err)
	wait := max(coolDownAfter(failures, most, c.random()), spread(asked, c.random()))
	if g.background { // the cool-down ends when the token expires
		wait = min(wait, known.timeLeft(now))
	}
	g.state.fail(&coolDown{now.add(wait), failures, err, g.background, asked > 0}, now)
	c.log(slog.LevelWarn, "moovauth: no token obtained", "error", err, "failures", failures, "delay", wait, "token_good_for", known.timeLeft(now))
}

// newCurrentToken returns t with the times of a token that lives for life from
// at on.
func (c *config) newCurrentToken(t oauth2.Token, at instant, life time.Duration) *currentToken {
	current := &currentToken{Token: t, deadAt: never}
	if t.AccessToken == "" {
		return current
	}
	fresh, usable := phases(life, c.early, c.random())
	current.Expiry, current.ExpiresIn = at.add(life).time(), int64(life/time.Second)
	header := t.Type() + " " + t.AccessToken
	current.authorization[0] = header
	current.AccessToken = header[len(header)-len(t.AccessToken):] // shares the header's memory
	current.refreshAt, current.expireAt = at.add(fresh), at.add(usable)
	return current
}

// RequestToken requests a token for this caller and returns it. It does not
// keep the token in a source or a cache. The API's name for this operation is
// createAccessToken. Either [WithScopes] or [WithToken] with a refresh token is
// required, but not both: WithScopes makes it use the client credentials, and
// WithToken the refresh grant.
//
// RequestToken makes up to three attempts if failures are temporary, even with
// a refresh token. It stops when ctx ends or after [WithTimeout]. If the server
// refuses the request, the error is an [*Error]. WithCache, WithEarlyRefresh
// and WithTokenTypeHint are validated and ignored.
//
// The server may grant fewer scopes than requested: see Extra("scope").
func RequestToken(ctx context.Context, creds Credentials, opts ...Option) (*oauth2.Token, error) {
	c, err := newConfig(creds, opts)
	if err != nil {
		return nil, err
	}
	refresh := ""
	if c.token != nil {
		refresh = c.token.RefreshToken
	}
	switch {
	case ctx == nil:
		return nil, errNilContext
	case (refresh == "") == (len(c.scopes) == 0):
		return nil, errors.New("moovauth: RequestToken: give either WithScopes, for the client credentials, or WithToken with a refresh token, and not both")
	}
	g := &grant{core: &core{config: c, state: newState()}, queue: ctx, budget: newBudget(c.timeout)}
	var t *currentToken
	err = c.whileThrottled(ctx, g.budget, nil, func() (err error) {
		if refresh != "" {
			t, err = g.refresh(ctx, refresh, false)
		} else {
			t, err = g.clientCredentials(ctx, false)
		}
		return err
	})
	if err != nil {
		return nil, failure(err)
	}
	return &t.Token, nil
}
