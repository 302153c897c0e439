package moovauth

// This file is one grant: where a token is looked for, and in which order. A
// grant has one goroutine. What it learns goes into memory, and nowhere else.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/guard"
)

// What memory.first tells apart.
const (
	aboutLifetime = iota
	aboutScopes
)

var (
	errRevoked  = errors.New("moovauth: given up for a Revoke")
	errNoScopes = permanent("moovauth: no refresh token and no scopes to obtain a token with: give NewTokenSource WithScopes")
	errRefused  = errors.New("moovauth: the API refuses one token after the other (Invalidate): check the scopes, the account and the environment that the API key belongs to")
)

// grant obtains one token.
type grant struct {
	*endpoint
	memory     *memory
	cache      *visit // nil: there is none
	cancel     context.CancelCauseFunc
	background bool          // it refreshes a good token, and nobody waited when it began
	revokes    int           // of a background grant: how many Revokes there had been by then
	waiting    *atomic.Int32 // callers that wait now
	within     time.Duration // WithTimeout, or what is left of it
	budget     *budget
	end        time.Time // of its time in line
	cached     string    // the access token that the cache had

	mu      sync.Mutex
	given   bool                    // up, for a Revoke
	leave   context.CancelCauseFunc // ends the wait in line; nil: it does not wait
	unknown bool                    // a request was given up, and may have brought a token
}

// run obtains a token. With a limiter, a 429 sends the grant back to the end of
// the line for as long as somebody waits for it.
func (g *grant) run(ctx context.Context) (*held, error) {
	g.end = time.Now().Add(maxLine)
	for {
		g.budget = newBudget(g.within)
		h, err := g.once(ctx)
		delay := max(backOff(1, 0, g.random()), spread(asked(err), g.random()))
		if g.limiter == nil || !throttled(err) || g.waiting.Load() == 0 || time.Until(g.end) < delay {
			return h, err
		}
		g.log(slog.LevelDebug, "moovauth: refused with 429; getting in line again", "delay", delay, "error", err)
		if late := g.inLine(ctx, time.Until(g.end), func(ctx context.Context) error { return sleep(ctx, delay) }); late != nil {
			return nil, late
		}
	}
}

// once looks in the cache, waits in line, takes the cache's lock and looks again,
// sends the refresh token, and asks with client credentials.
func (g *grant) once(ctx context.Context) (*held, error) {
	h, found := g.look(ctx)
	if h != nil {
		return h, nil
	}
	if err := g.mayAsk(); err != nil {
		return nil, err
	}
	if err := g.line(ctx); err != nil {
		return nil, err
	}
	var cached *entry
	unlock, locked := g.cache.lock(ctx)
	defer unlock()
	if g.cache.locker() != nil {
		if h, cached = g.look(ctx); h != nil {
			return h, nil
		}
		found = cached
	}
	if found != nil { // it is about to be overwritten
		g.memory.keep(found.RefreshToken, g.clock())
	}
	if g.background && g.gaveWay() {
		return nil, errRevoked
	}

	var narrow *held // lacks a scope
	if refresh := g.sendable(ctx, cached, locked); refresh != "" {
		h, err := g.ask(ctx, grantRefreshToken, url.Values{"refresh_token": {refresh}}, refresh)
		switch {
		case err == nil && !g.lacksScope(h):
			return h, nil
		case err == nil:
			narrow = h
		case !g.goOn(ctx, refresh, cached, err):
			return nil, err
		default:
			g.log(slog.LevelWarn, "moovauth: the refresh grant failed; going on with client credentials", "error", err)
		}
	}
	if len(g.scopes) == 0 {
		return nil, errNoScopes
	}
	h, err := g.ask(ctx, grantClientCredentials, url.Values{"scope": {strings.Join(g.scopes, " ")}}, "")
	if err != nil && narrow != nil {
		g.log(slog.LevelWarn, "moovauth: client credentials failed; going on with a token that lacks a scope", "error", err)
		return narrow, nil
	}
	return h, err
}

// look looks into the cache. It returns the token in hand if that is the cached
// one now, and the entry.
func (g *grant) look(ctx context.Context) (*held, *entry) {
	e, _ := g.cache.get(ctx) // a failure is logged, and costs a request
	if e == nil {
		return nil, nil
	}
	g.cached = e.AccessToken
	now := g.clock()
	life := time.Duration(e.ExpiresIn) * time.Second
	left := min(e.Expiry.Sub(now.time()), life)
	h := g.newHeld(e.token(), now.add(left-life), life)
	h.since = now
	if !e.Assumed {
		h.endAt = now.add(left + maxSkew)
	}
	if !g.memory.adopt(h, e.Spent, now) {
		return nil, e
	}
	g.memory.counts.adopted.Add(1)
	g.log(slog.LevelDebug, "moovauth: token adopted from the cache", "expiry", h.token.Expiry)
	return h, e
}

// mayAsk returns an error if the API refuses one token after the other, and the
// next request is not due yet.
func (g *grant) mayAsk() error {
	now, s := g.clock(), g.memory.load()
	if now.reached(s.waitUntil) {
		return nil
	}
	return &CoolDownError{Until: s.waitUntil.time(), Err: errRefused}
}

// sendable returns the refresh token that may be sent, and marks it as sent: in
// the cache if it is shared, else in memory. So it is not sent again if this
// grant, or this process, ends in the middle. No two processes send the same:
// a server that detects reuse would revoke all tokens of the family.
func (g *grant) sendable(ctx context.Context, cached *entry, locked bool) string {
	if g.cache.locker() == nil {
		h := g.memory.load().held
		if h == nil || h.token.RefreshToken == "" || !h.sendable && len(g.scopes) > 0 {
			return ""
		}
		g.memory.mark(h.token.RefreshToken, false)
		return h.token.RefreshToken
	}
	if !locked || cached == nil || cached.Sent || cached.RefreshToken == "" || g.memory.gone(cached.RefreshToken) {
		return ""
	}
	sent := *cached
	sent.Sent = true
	if !g.cache.put(ctx, &sent) {
		return ""
	}
	return cached.RefreshToken
}

// goOn decides what becomes of the refresh token after a refresh grant that
// failed with err, and reports whether client credentials are to be tried.
func (g *grant) goOn(ctx context.Context, refresh string, cached *entry, err error) bool {
	refused := new(Error)
	answered := errors.As(err, &refused)
	if len(g.scopes) == 0 { // the refresh token is all that there is
		return false
	}
	if reusable(err) {
		if cached != nil {
			g.cache.put(ctx, cached)
		} else {
			g.memory.mark(refresh, true)
		}
	} else {
		g.memory.setAside(refresh, answered && refused.Code == "invalid_grant", g.clock())
	}
	switch {
	case ctx.Err() != nil || g.limiter != nil && throttled(err) || errors.As(err, new(*guard.PanicError)):
		return false // the next request would fare no better
	case answered && !refused.Temporary():
		return true
	}
	return g.memory.load().good(g.clock()) == 0 && asked(err) == 0 && g.budget.left() > 0
}

// ask makes one token request, takes its token in hand, and puts it into the
// cache. refresh is the refresh token that was sent; it stays if the reply has
// none.
func (g *grant) ask(ctx context.Context, grantType string, form url.Values, refresh string) (*held, error) {
	form.Set("grant_type", grantType)
	began := time.Now()
	r, err := g.do(ctx, &request{
		op: opToken, grantType: grantType, form: form, budget: g.budget, line: g.line,
		good:   func() time.Duration { return g.memory.load().good(g.clock()) },
		repeat: func(err error) bool { return refresh == "" || len(g.scopes) == 0 || reusable(err) },
		late:   g.tooLate,
	})
	n := &g.memory.counts
	succeeded, failed := &n.grants, &n.failed
	if grantType == grantRefreshToken {
		succeeded, failed = &n.refreshes, &n.failedOnes
	}
	if err != nil {
		failed.Add(1)
		g.mu.Lock()
		g.unknown = g.unknown || context.Cause(ctx) == errRevoked && !errors.As(err, new(*unsent))
		g.mu.Unlock()
		return nil, err
	}
	if ctx.Err() != nil {
		g.tooLate(r)
		return nil, errRevoked
	}
	now := g.clock()
	inHand := g.memory.load().held
	if r.assumed && (r.token.AccessToken == g.cached || inHand != nil && r.token.AccessToken == inHand.token.AccessToken) {
		g.tooLate(r)
		return nil, g.useless(grantType, r, "the server handed out the same token once more, and does not say how long it lives")
	}
	t := *r.token
	t.RefreshToken = cmp.Or(t.RefreshToken, refresh)
	h := g.newHeld(t, r.sent, r.lifetime)
	h.since, h.sendable = now, t.RefreshToken != ""
	if r.warning == "" { // the server gave the lifetime in whole seconds, between then and now
		h.endAt = now.add(r.lifetime + time.Second)
	}
	if now.reached(h.expireAt) {
		g.tooLate(r)
		return nil, g.useless(grantType, r, "the token expired on its way")
	}
	if !g.memory.obtain(h, refresh, now) {
		g.tooLate(r)
		return nil, g.useless(grantType, r, "the server handed out a token that was invalidated or revoked")
	}
	g.redact.Keep(g.memory.texts(now))
	succeeded.Add(1)
	broken := g.report(grantType, r, h, time.Since(began))
	g.cache.put(ctx, &entry{Token: h.token, Members: r.members, Spent: refresh, Assumed: r.warning != ""})
	if broken != nil {
		return nil, failure("", broken)
	}
	return h, nil
}

// useless is the error of a reply whose token cannot be used.
func (g *grant) useless(grantType string, r *reply, why string) error {
	return failure("", fmt.Errorf("moovauth: reply to the token request (%s, request ID %s) is unusable: %s", grantType, quoted(r.requestID), why))
}

// tooLate remembers the tokens of a reply that nobody takes any more, so that
// Revoke reaches them.
func (g *grant) tooLate(r *reply) {
	if r != nil {
		g.memory.late(r.token, g.clock())
	}
}

// report logs what a grant brought, and what is odd about it: once.
func (g *grant) report(grantType string, r *reply, h *held, took time.Duration) error {
	var errs []error
	log := func(level slog.Level, msg string, attrs ...any) {
		errs = append(errs, g.log(level, msg, append([]any{"grant_type", grantType, "request_id", r.requestID}, attrs...)...))
	}
	missing := g.missingScopes(h)
	if grantType == grantClientCredentials {
		g.memory.narrow.Store(len(missing) > 0)
		if g.memory.first(aboutScopes, strings.Join(missing, " ")) {
			log(slog.LevelWarn, "moovauth: the server did not grant all scopes", "missing", missing)
		}
	}
	if g.memory.first(aboutLifetime, r.warning) {
		log(slog.LevelWarn, "moovauth: "+r.warning)
	}
	log(slog.LevelDebug, "moovauth: token obtained", "expiry", h.token.Expiry, "duration", took)
	return errors.Join(errs...)
}

// missingScopes are the configured scopes that a reply lacks, if it names its
// scope (RFC 6749 §5.1).
func (g *grant) missingScopes(h *held) []string {
	scope, _ := h.token.Extra("scope").(string)
	if scope == "" {
		return nil
	}
	granted := strings.Fields(scope)
	return slices.DeleteFunc(slices.Clone(g.scopes), func(s string) bool { return slices.Contains(granted, s) })
}

// lacksScope reports whether client credentials may bring a scope that h lacks.
func (g *grant) lacksScope(h *held) bool {
	return len(g.missingScopes(h)) > 0 && !g.memory.narrow.Load()
}

// newHeld is t, which lives for life from at on, with its phases.
func (e *endpoint) newHeld(t oauth2.Token, at instant, life time.Duration) *held {
	h := &held{token: t, endAt: never}
	if t.AccessToken == "" {
		return h
	}
	fresh, usable := phases(life, e.early, e.random())
	h.token.Expiry = at.add(life).time()
	h.token.ExpiresIn = int64(life / time.Second)
	h.authorization = t.Type() + " " + t.AccessToken
	h.token.AccessToken = h.authorization[len(h.authorization)-len(t.AccessToken):] // so that it is held once,
	e.redact.Add(h.token.AccessToken)                                               // here too
	h.refreshAt, h.expireAt = at.add(fresh), at.add(usable)
	return h
}

// coolDown leaves the server alone for a while after this grant has failed.
func (g *grant) coolDown(err error, took time.Duration) {
	var wait, good time.Duration
	c := g.memory.fail(err, g.background, g.clock(), func(failures int, left time.Duration) time.Duration {
		good = left
		if failures > 1 || !errors.As(err, new(*guard.PanicError)) { // else the server has not failed
			wait = coolDown(failures, left, g.random())
		}
		wait = max(wait, spread(asked(err), g.random()))
		return wait
	})
	g.log(slog.LevelWarn, "moovauth: no token obtained",
		withStack(err, "error", err, "failures", c.failures, "delay", wait, "token_good_for", good, "duration", took)...)
}
