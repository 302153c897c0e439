package platform

// This file is Tokens as its user sees it: what it can do, and what it has done.
// The queue is in queue.go, the many sources in sources.go, browsers in handler.go.

import (
	"cmp"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
	"weak"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

// Tokens are the tokens of one API key. Make one with [New] for each key, and
// share it: it is safe for concurrent use.
//
// All of its token and revoke requests wait in one queue. People go first: what
// [Tokens.Mint], [Tokens.Handler] and [Tokens.Revoke] ask for. Then come sources
// without a good token, whose callers wait, and sources that are revoked. Last
// come refreshes, for which no one waits. Of ten requests each of these three
// gets at least one if it has any. Within each it is first come, first served.
//
// The queue moves at 0.97 of [WithRate]. A 429 to a token or revoke request holds
// it, for what Retry-After asks, or 250 ms, and slows it down to what the server
// was seen to take. After 30 s without a 429 it gets faster again, by 5 % a
// second; if that brings a 429, after twice as long, up to 5 minutes. The request
// that was refused keeps its place. API calls through [Tokens.Client] do not wait
// in the queue, and their 429s do not slow it down.
type Tokens struct {
	*config
	creds   func() moovauth.Credentials // behind a call, so that no verb prints the secret
	queue   *queue                      // nil: a zero value
	sources *sources
	counts  *counts
}

// counts is what Tokens has done.
type counts struct {
	served, revoked, minted, failed atomic.Uint64
	timedOut, abandoned, evicted    atomic.Uint64
	nextLook                        atomic.Int64 // at Needed, in ns since 1970
}

var errZero = errors.New("moovauth: platform: this Tokens is a zero value: make one with New")

// New makes the tokens of an API key. It makes no request. It checks its
// arguments, also those that sources will get, and its error names the one to
// change.
func New(creds moovauth.Credentials, opts ...Option) (*Tokens, error) {
	c, err := newConfig(opts)
	if err != nil {
		return nil, err
	}
	t := &Tokens{config: c, creds: func() moovauth.Credentials { return creds }, counts: new(counts)}
	if c.logger == nil {
		c.logger = slog.New(slog.DiscardHandler)
	} else {
		c.logger = slog.New(once{c.logger.Handler(), new(sync.Map)})
		c.source = t.options(moovauth.WithLogger(c.logger))
	}
	sample, err := moovauth.NewTokenSource(creds, t.options(moovauth.WithScopes("/ping.read"))...)
	if err != nil {
		return nil, err
	}
	if s := sample.Stats(); !s.Expiry.IsZero() || s.HasRefreshToken {
		return nil, errors.New("moovauth: platform: WithSource has WithToken in it, so that all accounts would share one token: leave it out")
	}
	p := new(probe)
	ctx, cancel := context.WithTimeout(context.Background(), 100*time.Millisecond) // for a limiter in WithSource
	defer cancel()
	_ = moovauth.Revoke(ctx, creds, "none", append([]moovauth.Option{moovauth.WithLimiter(p)}, t.options(
		moovauth.WithLogger(slog.New(slog.DiscardHandler)), moovauth.WithHTTPClient(&http.Client{Transport: p}))...)...)
	if !p.asked {
		return nil, errors.New("moovauth: platform: WithSource has moovauth.WithLimiter in it: use platform.WithLimiter, so that requests wait for it in one queue")
	}
	client := *sample.Client()
	base := client.Transport.(*moovauth.Transport).Base
	client.Transport = &observer{tokens: t, base: cmp.Or[http.RoundTripper](base, http.DefaultTransport)}
	c.source = t.options(moovauth.WithHTTPClient(&client))
	t.queue = newQueue(c)
	t.sources = &sources{tokens: t, known: make(map[string]weak.Pointer[place]), clearAt: 2 * c.capacity}
	return t, nil
}

// probe is a limiter that notes that it was asked, and lets nothing go.
type probe struct{ asked bool }

var errProbe = errors.New("nothing is sent")

func (p *probe) Wait(context.Context) error                    { p.asked = true; return errProbe }
func (*probe) RoundTrip(*http.Request) (*http.Response, error) { return nil, errProbe }

func (t *Tokens) newSource(scopes []string) (p *place, err error) {
	p = &place{queue: t.queue}
	p.source, err = moovauth.NewTokenSource(t.creds(), t.options(moovauth.WithLimiter(p), moovauth.WithScopes(scopes...))...)
	return p, err
}

// options are each source's, and more.
func (t *Tokens) options(more ...moovauth.Option) []moovauth.Option {
	return append(t.source[:len(t.source):len(t.source)], more...)
}

// Source returns the source of a set of scopes: the same one for the same set,
// in whatever order and however often each is named. It is an error if there are
// no scopes, or bad ones: see [moovauth.WithScopes].
func (t *Tokens) Source(scopes ...string) (*moovauth.TokenSource, error) {
	if t.queue == nil {
		return nil, errZero
	}
	return t.sources.get(scopes)
}

// Client returns a client that authorises its requests with [Tokens.Source]: see
// [moovauth.TokenSource.Client]. A 429 of the API is returned and not retried.
func (t *Tokens) Client(scopes ...string) (*http.Client, error) {
	s, err := t.Source(scopes...)
	if err != nil {
		return nil, err
	}
	return s.Client(), nil
}

// Mint requests a new access token for a page or an app, which must not have
// more. The token is not kept or cached. It comes without a refresh token, and
// its Extra finds only the scope.
//
// Mint waits in the queue, before all sources, and gives up with ctx. The refresh
// token that Moov sends along is dropped: it stays alive at Moov, but no one has it.
// A token whose caller leaves after its request was sent is alive, too, until it
// expires.
func (t *Tokens) Mint(ctx context.Context, scopes ...string) (*oauth2.Token, error) {
	token, _, err := t.mint(ctx, 0, "", scopes)
	return token, err
}

// Revoke revokes an access token that was minted: see [moovauth.Revoke]. It
// waits in the queue, before all sources, and gives up with ctx.
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

// Stats is what [Tokens] has, and what it did since it was made.
type Stats struct {
	Sources     int           // kept, as far as [WithCapacity] lets them
	Fresh       int           // of them, those with a fresh token: see [moovauth.Stats]
	Stale       int           // … with a stale one, which is good, too
	CoolingDown int           // … that make no request after a failure, for a while
	InLine      int           // requests in the queue
	LongestWait time.Duration // of them
	Rate        float64       // requests per second that may go now; with WithLimiter, while that fails
	Needed      float64       // refreshes per second that the sources in use need: if it exceeds the rate, refreshes fall behind

	Served       uint64 // token and revoke requests that were answered with success
	Refused      uint64 // 429s to token and revoke requests
	Minted       uint64 // tokens that Mint, or the handler, returned
	Revoked      uint64 // tokens that were revoked
	TimedOut     uint64 // calls of Mint, or of the handler, whose time was over in the queue: the pages got a 503
	Abandoned    uint64 // calls of Mint, or of the handler, whose caller has left
	Failed       uint64 // other calls of Mint and Revoke that returned an error, and sources that RevokeAll could not finish
	GrantsFailed uint64 // failed grants of all sources
	Evicted      uint64 // sources that were let go with a good token: see [WithCapacity]
}

// Stats returns what t has and did. It makes no request, and other calls do not
// wait for it. With 100,000 sources it takes some tens of milliseconds.
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

// lookEvery is how often Needed is looked at if Stats is not called.
const lookEvery = time.Minute

// observer is a RoundTripper that counts how token and revoke requests are
// answered. 429s are not its business: sources tell their place in the queue of
// those.
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
		c.served.Add(1)
		if revocation {
			c.revoked.Add(1)
		}
	}
	now, next := time.Now().UnixNano(), c.nextLook.Load()
	if now >= next && c.nextLook.CompareAndSwap(next, now+int64(lookEvery)) {
		o.tokens.Stats()
	}
	return resp, err
}

// CloseIdleConnections is for [http.Client.CloseIdleConnections].
func (o *observer) CloseIdleConnections() {
	if base, ok := o.base.(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}
