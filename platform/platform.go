package platform

// This file is Tokens as its user sees it: what it can do, and what it has done.
// The line is in line.go, the many sources in sources.go, browsers in handler.go.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

// Tokens are the tokens of one API key. Make one with [New] for each key, and
// share it: it is safe for concurrent use.
//
// All of its token and revoke requests stand in one line, first come first
// served, which moves at 0.97 of [WithRate]. A 429 holds back all who stand in
// it, for what its Retry-After asks, or 250 ms, and slows the line down to what
// the server was seen to take. After 30 s without a 429 it gets faster again, by
// 5 % a second; if that brings a 429, after twice as long, up to 5 minutes. The
// request that was refused gets in line again. API calls through
// [Tokens.Client] do not stand in line, but their 429s count, too.
type Tokens struct {
	creds   func() moovauth.Credentials // behind a call, so that no verb prints the secret
	source  []moovauth.Option           // of each source
	origins []string
	line    *line
	sources *sources

	served, revoked, minted, failed atomic.Uint64
}

// New makes the tokens of an API key. It makes no request. It checks its
// arguments, also those that sources will get, and its error names the one to
// change.
func New(creds moovauth.Credentials, opts ...Option) (*Tokens, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	t := &Tokens{creds: func() moovauth.Credentials { return creds }, source: c.source, origins: c.origins, line: newLine(c.perSecond)}
	sample, err := t.newSource(t.line, "/ping.read")
	if err != nil {
		return nil, err
	}
	if s := sample.Stats(); !s.Expiry.IsZero() || s.HasRefreshToken {
		return nil, errors.New("moovauth: platform: WithSource has WithToken in it, so that all accounts would share one token: leave it out")
	}
	client := *sample.Client()
	transport, ok := client.Transport.(*moovauth.Transport)
	if !ok {
		return nil, fmt.Errorf("moovauth: platform: TokenSource.Client has a %T: use the version of moovauth that go.mod names", client.Transport)
	}
	client.Transport = &observer{tokens: t, base: cmp.Or[http.RoundTripper](transport.Base, http.DefaultTransport)}
	t.source = append(t.source[:len(t.source):len(t.source)], moovauth.WithHTTPClient(&client))
	t.sources, err = newSources(c.capacity, func(scopes []string) (*moovauth.TokenSource, error) {
		return t.newSource(t.line, scopes...)
	})
	return t, err
}

func (t *Tokens) newSource(l moovauth.Limiter, scopes ...string) (*moovauth.TokenSource, error) {
	return moovauth.NewTokenSource(t.creds(), t.options(moovauth.WithLimiter(l), moovauth.WithScopes(scopes...))...)
}

// options are each source's, and more.
func (t *Tokens) options(more ...moovauth.Option) []moovauth.Option {
	return append(t.source[:len(t.source):len(t.source)], more...)
}

// Source returns the source of a set of scopes: the same one for the same set,
// in whatever order and however often each is named. It is an error if there are
// no scopes, or bad ones: see [moovauth.WithScopes].
func (t *Tokens) Source(scopes ...string) (*moovauth.TokenSource, error) {
	return t.sources.get(scopes)
}

// Client returns a client that authorises its requests with [Tokens.Source]: see
// [moovauth.TokenSource.Client]. A 429 is returned as it is, and slows the line.
func (t *Tokens) Client(scopes ...string) (*http.Client, error) {
	s, err := t.Source(scopes...)
	if err != nil {
		return nil, err
	}
	return s.Client(), nil
}

// Mint obtains a token that is nobody else's: it is not kept here, neither in a
// cache, and has no refresh token, also not among what Extra finds, which is the
// scope alone. It is for a page or an app, which must not have more.
//
// Mint waits in line, and gives up with ctx. The refresh token that Moov sends
// along is dropped: it is alive at Moov, and nobody has it. A token whose caller
// leaves after its request was sent is alive, too, until it expires.
func (t *Tokens) Mint(ctx context.Context, scopes ...string) (*oauth2.Token, error) {
	m, err := t.newMinting(ctx, 0, scopes)
	if err != nil {
		return nil, err
	}
	return m.run()
}

// minting is one call of Mint: a source of its own, and its place in line, which
// it leaves with its caller. Another source's grant would go on without a caller,
// so that the next one finds its token; nobody would ever find this token.
type minting struct {
	*line
	tokens *Tokens
	source *moovauth.TokenSource
	ctx    context.Context // the caller's; ends with errLate, too
	cancel context.CancelCauseFunc

	mu    sync.Mutex    // guards what follows
	left  time.Duration // of the time in line; 0: as long as the caller waits
	since time.Time     // when it got in line
	timer *time.Timer   // ends the time in line; nil: it is not in line, or has no bound
}

var errLate = fmt.Errorf("too many requests are in line: %w", context.DeadlineExceeded)

// newMinting prepares one call. Its error is about the scopes. most bounds the
// time in line, 0 does not.
func (t *Tokens) newMinting(ctx context.Context, most time.Duration, scopes []string) (*minting, error) {
	m := &minting{line: t.line, tokens: t, left: most}
	var err error
	m.source, err = moovauth.NewTokenSource(t.creds(), t.options(
		moovauth.WithLimiter(m), moovauth.WithScopes(set(scopes)...), moovauth.WithCache(nothing{}))...)
	if err != nil {
		t.failed.Add(1)
		return nil, err
	}
	m.ctx, m.cancel = context.WithCancelCause(ctx)
	return m, nil
}

func (m *minting) run() (*oauth2.Token, error) {
	defer m.cancel(nil)
	m.enter()
	defer m.leave()
	t, err := m.source.TokenContext(m.ctx)
	if err != nil {
		m.tokens.failed.Add(1)
		return nil, err
	}
	m.tokens.minted.Add(1)
	own := &oauth2.Token{AccessToken: t.AccessToken, TokenType: t.TokenType, Expiry: t.Expiry, ExpiresIn: t.ExpiresIn}
	return own.WithExtra(map[string]any{"scope": t.Extra("scope")}), nil
}

// Wait implements [moovauth.Limiter].
func (m *minting) Wait(ctx context.Context) error {
	if m.ctx.Err() != nil {
		return context.Cause(m.ctx)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(m.ctx, func() { cancel(context.Cause(m.ctx)) })()
	err := m.line.Wait(ctx)
	if err == nil {
		m.leave()
	}
	return err
}

// Refused counts the time that the source waits before it gets in line again as
// time in line.
func (m *minting) Refused(retryAfter time.Duration) {
	m.line.Refused(retryAfter)
	m.enter()
}

func (m *minting) enter() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.left > 0 && m.timer == nil {
		m.since = time.Now()
		m.timer = time.AfterFunc(m.left, func() { m.cancel(errLate) })
	}
}

func (m *minting) leave() {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.timer != nil {
		m.timer.Stop()
		m.timer = nil
		m.left = max(1, m.left-time.Since(m.since))
	}
}

// late reports whether the time in line was what ended it.
func (m *minting) late() bool { return context.Cause(m.ctx) == errLate }

// nothing is a [moovauth.Cache] that keeps nothing.
type nothing struct{}

func (nothing) Get(context.Context, string) ([]byte, error) { return nil, fs.ErrNotExist }
func (nothing) Put(context.Context, string, []byte) error   { return nil }
func (nothing) Delete(context.Context, string) error        { return nil }

// Revoke revokes an access token that was minted: see [moovauth.Revoke]. It
// waits in line, and gives up with ctx.
func (t *Tokens) Revoke(ctx context.Context, token string) error {
	err := moovauth.Revoke(ctx, t.creds(), token, t.options(
		moovauth.WithLimiter(t.line), moovauth.WithTokenTypeHint(moovauth.AccessToken))...)
	if err != nil {
		t.failed.Add(1)
	}
	return err
}

// Stats is what [Tokens] has, and what it did since it was made.
type Stats struct {
	Sources     int           // kept, as far as [WithCapacity] lets them
	Fresh       int           // of them, those with a fresh token: see [moovauth.Stats]
	Stale       int           // … with a stale one, which is good, too
	CoolingDown int           // … that leave the server alone after a failure
	InLine      int           // requests that wait for their turn
	LongestWait time.Duration // of them
	Rate        float64       // requests per second that may go now

	Served  uint64 // token and revoke requests that were answered with success
	Refused uint64 // 429s, also to API calls through [Tokens.Client]
	Minted  uint64 // tokens that Mint, or the handler, returned
	Revoked uint64 // tokens that were revoked
	Failed  uint64 // calls of Mint and Revoke that returned an error, and sources that RevokeAll could not finish
}

// Stats returns what t has and did. It makes no request and takes no time.
func (t *Tokens) Stats() Stats {
	s := Stats{
		Served:  t.served.Load(),
		Minted:  t.minted.Load(),
		Revoked: t.revoked.Load(),
		Failed:  t.failed.Load(),
	}
	t.sources.report(&s)
	t.line.report(&s)
	return s
}

// observer is a RoundTripper that counts how token and revoke requests are
// answered. 429s are not its business: sources, and Transports on them, tell the
// line of those.
type observer struct {
	tokens *Tokens
	base   http.RoundTripper
}

func (o *observer) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := o.base.RoundTrip(req)
	revocation := strings.HasSuffix(req.URL.Path, "/oauth2/revoke")
	if err != nil || resp == nil || !revocation && !strings.HasSuffix(req.URL.Path, "/oauth2/token") {
		return resp, err
	}
	if resp.StatusCode != http.StatusTooManyRequests {
		o.tokens.line.answered()
	}
	if resp.StatusCode/100 == 2 {
		o.tokens.served.Add(1)
		if revocation {
			o.tokens.revoked.Add(1)
		}
	}
	return resp, err
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (o *observer) CloseIdleConnections() {
	if base, ok := o.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}
