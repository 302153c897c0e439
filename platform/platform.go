package platform

// This file is Tokens as its user sees it: its methods, and its counters. The
// queue is in queue.go, the sources are in sources.go, and the endpoint for
// browsers is in handler.go.

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"math"
	"net/http"
	"strings"
	"sync/atomic"
	"time"
	"weak"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

// Tokens manages the tokens of one API key. Make one with [New] for each key, and
// share it: it is safe for concurrent use.
//
// All of its token and revoke requests wait in one queue, which has three
// classes. Interactive requests go first: those of [Tokens.Mint],
// [Tokens.Handler] and [Tokens.Revoke], for which a person waits. Next come
// requests for sources without a valid token, whose callers wait, and
// revocations of sources. Last come background refreshes, for which no one
// waits. Of every ten requests that the queue sends, each class that has
// requests gets at least one. Within a class, the request that came first is
// sent first.
//
// The queue sends requests at 0.97 of [WithRate]. If Moov answers a token or
// revoke request with 429, the queue stops for the time that Retry-After asks
// for, or for 250 ms. It then continues at the rate at which Moov last accepted
// requests. After 30 s without a 429 its rate rises by 5 % a second. If the
// higher rate leads to a 429, the next rise comes after twice as long, up to 5
// minutes. The request that was refused keeps its place in the queue. API calls
// through [Tokens.Client] do not wait in the queue, and their 429s do not slow
// it down.
type Tokens struct {
	config
	creds   func() moovauth.Credentials // a function, so that fmt cannot print the secret
	queue   *queue                      // nil in a zero Tokens
	sources *sources
	counts  *counts
}

// counts are the counters in Stats that the queue and the sources do not keep.
type counts struct {
	served, revoked, minted, failed atomic.Uint64
	timedOut, abandoned, evicted    atomic.Uint64
}

var errZero = errors.New("moovauth: platform: this Tokens is a zero value: make one with New")

// New returns the Tokens of an API key. It makes no request. It checks all of its
// arguments, including the options in [WithSource]. Its error names the argument to
// change.
func New(creds moovauth.Credentials, opts ...Option) (*Tokens, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	t := &Tokens{config: c, creds: func() moovauth.Credentials { return creds }, counts: new(counts)}
	sample, err := moovauth.NewTokenSource(creds, t.options(moovauth.WithScopes("/ping.read"))...)
	if err != nil {
		return nil, err
	}
	if s := sample.Stats(); !s.Expiry.IsZero() || s.HasRefreshToken {
		return nil, errors.New("moovauth: platform: WithSource contains WithToken, so all accounts would share one token: leave it out")
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	p := new(probe)
	_ = moovauth.Revoke(ended, creds, "none", append([]moovauth.Option{moovauth.WithLimiter(p)},
		t.options(moovauth.WithLogger(slog.New(slog.DiscardHandler)))...)...)
	if !p.asked {
		return nil, errors.New("moovauth: platform: WithSource contains moovauth.WithLimiter: use platform.WithLimiter, so that all requests wait for it in one queue")
	}
	client := *sample.Client()
	base := client.Transport.(*moovauth.Transport).Base
	client.Transport = &observer{tokens: t, base: cmp.Or[http.RoundTripper](base, http.DefaultTransport)}
	t.source = t.options(moovauth.WithHTTPClient(&client))
	t.queue = newQueue(&t.config)
	t.sources = &sources{tokens: t, known: make(map[string]weak.Pointer[place])}
	return t, nil
}

// probe is a limiter that notes whether it was asked. It is not if the options
// after it contain another limiter. Its context has ended, so nothing is sent.
type probe struct{ asked bool }

func (p *probe) Wait(ctx context.Context) error {
	p.asked = true
	return ctx.Err()
}

// options returns the options of all sources, followed by more.
func (t *Tokens) options(more ...moovauth.Option) []moovauth.Option {
	return append(t.source[:len(t.source):len(t.source)], more...)
}

// Source returns the source of a set of scopes. The same set has the same source,
// whatever the order of the scopes, and even if a scope is repeated. After a source was
// removed, Source may return a new one: see [WithCapacity]. Source returns an error if
// there are no scopes, or if one is invalid: see [moovauth.WithScopes].
func (t *Tokens) Source(scopes ...string) (*moovauth.TokenSource, error) {
	if t.queue == nil {
		return nil, errZero
	}
	return t.sources.get(scopes)
}

// Client returns an HTTP client that authorizes its requests with the source
// that [Tokens.Source] returns: see [moovauth.TokenSource.Client]. If the API
// answers 429, the client returns that response, and does not retry the call.
func (t *Tokens) Client(scopes ...string) (*http.Client, error) {
	s, err := t.Source(scopes...)
	if err != nil {
		return nil, err
	}
	return s.Client(), nil
}

// Mint requests a new access token for a page or an app, and does not keep the
// token. Its Extra method finds only "scope".
//
// Mint waits in the queue as an interactive request. If ctx ends first, Mint
// returns an error. Mint discards the refresh token that Moov sends with the
// access token. No one has that refresh token, but it stays valid at Moov. If
// ctx ends after the request was sent, Moov may issue an access token that no
// one receives.
func (t *Tokens) Mint(ctx context.Context, scopes ...string) (*oauth2.Token, error) {
	token, _, err := t.mint(ctx, math.MaxInt64, "", scopes)
	return token, err
}

// Revoke revokes an access token that Mint or Handler has minted: see
// [moovauth.Revoke]. It waits in the queue as an interactive request, and stops
// when ctx ends.
func (t *Tokens) Revoke(ctx context.Context, token string) error {
	if t.queue == nil {
		return errZero
	}
	err := moovauth.Revoke(ctx, t.creds(), token, t.options(
		moovauth.WithLimiter(&place{queue: t.queue}), moovauth.WithTokenTypeHint(moovauth.AccessToken))...)
	if err != nil {
		t.counts.failed.Add(1)
	}
	return err
}

// Stats holds the state of a [Tokens], and counts what it has done since it was
// made. The fields of type uint64 are the counts, which never decrease.
type Stats struct {
	Sources     int           // sources that are kept: see [WithCapacity]
	Fresh       int           // kept sources whose token is fresh: see [moovauth.PhaseFresh]
	Stale       int           // kept sources whose token is valid, but needs a refresh: see [moovauth.PhaseStale]
	CoolingDown int           // kept sources that make no request for a while, after a failure
	InLine      int           // requests that wait in the queue
	LongestWait time.Duration // how long the request that came first has waited in the queue
	Rate        float64       // requests per second that the queue may send at present; with WithLimiter, it applies while the limiter fails
	Needed      float64       // refreshes per second that the sources in use need; if it exceeds Rate, refreshes fall behind

	Served       uint64 // successful token and revoke requests
	Refused      uint64 // token and revoke requests that Moov answered with 429
	Minted       uint64 // tokens that Mint and Handler obtained
	Revoked      uint64 // tokens that were revoked
	TimedOut     uint64 // calls to Mint and Handler whose time ended in the queue; Handler answered 503
	Abandoned    uint64 // calls to Mint and Handler whose context was canceled: the caller has left
	Failed       uint64 // other failed requests of Mint, Handler and Revoke, and sources that RevokeAll did not finish
	GrantsFailed uint64 // failed token requests of sources; retries and 429s do not count
	Evicted      uint64 // sources that were removed while their token was valid: see [WithCapacity]
}

// Stats returns the state and the counts of t. It makes no request. With
// 100,000 sources it takes some tens of milliseconds, and delays other calls by
// a few milliseconds.
func (t *Tokens) Stats() Stats {
	if t.queue == nil {
		return Stats{}
	}
	c := t.counts
	var s Stats
	t.sources.report(&s, t.queue.report(&s))
	if s.Needed > 0.9*t.perSecond {
		t.logger.Warn("moovauth: platform: the accounts in use need more than 0.9 of WithRate", "needed", s.Needed, "rate", t.perSecond)
	}
	s.Served, s.Minted, s.Revoked, s.Failed = c.served.Load(), c.minted.Load(), c.revoked.Load(), c.failed.Load()
	s.TimedOut, s.Abandoned, s.Evicted = c.timedOut.Load(), c.abandoned.Load(), c.evicted.Load()
	return s
}

// observer is a RoundTripper that counts the answers to token and revoke requests.
// It ignores 429s, because each place in the queue is told of its own.
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
	q, c := o.tokens.queue, o.tokens.counts
	if resp.StatusCode != http.StatusTooManyRequests {
		q.mu.Lock()
		q.pace.answer(time.Now())
		q.mu.Unlock()
	}
	if resp.StatusCode/100 == 2 {
		if revocation {
			c.revoked.Add(1)
		}
		if c.served.Add(1)%1000 == 0 {
			o.tokens.Stats() // checks Needed, even if no one else calls it
		}
	}
	return resp, nil
}

// CloseIdleConnections implements [http.Client.CloseIdleConnections].
func (o *observer) CloseIdleConnections() {
	if base, ok := o.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}
