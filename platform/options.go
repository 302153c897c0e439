package platform

// This file holds the options of New, and refuses values that cannot work.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"golang.org/x/net/idna"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

// An Option configures [New]. If an option is given twice, the last one
// applies, except for [WithSource] and [WithOrigins].
type Option func(*config) error

// config is the sum of the options. It does not change after New.
type config struct {
	perSecond float64
	capacity  int
	source    []moovauth.Option
	origins   map[string]bool
	shared    moovauth.Limiter // of a fleet; nil: none
	minted    func(*http.Request, *oauth2.Token) error
	logger    *slog.Logger
}

func newConfig(opts []Option) (config, error) {
	c := config{
		perSecond: 10, // all that Moov allows a test account
		capacity:  10_000,
		origins:   make(map[string]bool),
		minted:    func(*http.Request, *oauth2.Token) error { return nil },
		logger:    slog.New(slog.DiscardHandler),
	}
	for i, opt := range opts {
		if opt == nil {
			return c, fmt.Errorf("moovauth: platform: option %d is nil: leave it out", i+1)
		}
		if err := opt(&c); err != nil {
			return c, fmt.Errorf("moovauth: platform: %w", err)
		}
	}
	return c, nil
}

// option calls set if ok, and otherwise returns an error that says what is wanted.
func option(ok bool, set func(*config), wanted string, args ...any) Option {
	return func(c *config) error {
		if !ok {
			return fmt.Errorf(wanted, args...)
		}
		set(c)
		return nil
	}
}

// WithRate sets how many token and revoke requests the queue may send per
// second. Moov allows 40 requests a second from one IP address for the account
// that owns the API key, or 10 if it is a test account. API calls count towards
// Moov's limit too, and do not wait in the queue, so leave room for them. If
// Moov allows fewer requests than this, its 429s slow the queue down. The
// default is 10.
//
// Moov's tokens live for 15 minutes and are refreshed after 12 minutes. With
// these tokens the rate suffices if
//
//	sources in use / 720 s + mints per second < 0.97 of the rate
//
// For example, 10 requests a second suffice for 5,000 sources and 2 mints a
// second. An account has a source for each set of scopes. An open page needs a
// mint every 12 minutes. [Stats] reports the first term as Needed.
func WithRate(perSecond float64) Option {
	return option(perSecond > 0 && !math.IsInf(perSecond, 0), func(c *config) { c.perSecond = perSecond },
		"WithRate: want a number of requests per second above 0, such as 10; got %v", perSecond)
}

// WithCapacity sets how many sources are kept. If there are more, the least
// recently used source is removed. A caller that holds a removed source can
// continue to use it, and [Tokens.Source] still finds it. If no caller holds
// it, the next call to Source makes a new source, which costs a token request.
// So the capacity should be at least the number of sources in use: the
// accounts, times the sets of scopes for each. Stats.Evicted counts the sources
// that were removed while their token was valid. The default is 10,000.
func WithCapacity(n int) Option {
	return option(n > 0, func(c *config) { c.capacity = n }, "WithCapacity: want a number of sources of 1 or more, got %d", n)
}

// WithLimiter makes all token and revoke requests wait for a limiter that the
// processes of a fleet share, such as rediscache's. The limiter then sets the rate of
// the queue. Each call of l.Wait that returns nil grants one turn: one request may be
// sent. The turn goes to the request that is first in the queue at that moment. At
// most 8 calls of l.Wait run at a time.
//
// l may have two more methods. If l has Unused(), it is called for each turn that no
// request needs. If l has Refused(retryAfter time.Duration), it is called for each 429
// to a token or revoke request.
//
// If l.Wait returns an error, the queue keeps to [WithRate] for a second, and
// then asks l again. By default there is no limiter.
func WithLimiter(l moovauth.Limiter) Option {
	return option(l != nil, func(c *config) { c.shared = l }, "WithLimiter: the limiter is nil: leave the option out to do without")
}

// WithSource sets options for all sources, and for the requests of
// [Tokens.Mint], [Tokens.Handler] and [Tokens.Revoke]: for example the base
// URL, the origin, the HTTP client and the cache. If WithSource is given twice,
// all options apply.
//
// A WithScopes among the options has no effect. [New] refuses WithToken, because all
// accounts would share the token. It refuses moovauth.WithLimiter too: use
// [WithLimiter] of this package.
func WithSource(opts ...moovauth.Option) Option {
	return option(!slices.ContainsFunc(opts, func(o moovauth.Option) bool { return o == nil }),
		func(c *config) { c.source = append(c.source, opts...) }, "WithSource: an option is nil: leave it out")
}

// WithLogger sets the logger of all sources, and of all requests that mint or revoke a
// token: see [moovauth.WithLogger]. A warning about the scopes or the lifetime that
// Moov has granted is logged only once for each set of scopes, as far as the log shows
// the scopes. Three more warnings are logged only once: [WithRate] is too low for the
// sources in use, [WithCapacity] is too low for them, and the limiter of [WithLimiter]
// has failed. By default, nothing is logged. A moovauth.WithLogger in a later
// [WithSource] replaces this logger in the sources and requests.
func WithLogger(l *slog.Logger) Option {
	return option(l != nil, func(c *config) {
		c.logger = slog.New(once{l.Handler(), new(sync.Map)})
		c.source = append(c.source, moovauth.WithLogger(c.logger))
	}, "WithLogger: the logger is nil: leave the option out to log nothing")
}

// once is a [slog.Handler] that passes each warning on only once for a set of
// scopes. It always passes on warnings that have an error.
type once struct {
	slog.Handler
	logged *sync.Map // the keys are message and scopes
}

func (o once) Handle(ctx context.Context, r slog.Record) error {
	key, failed := r.Message, false
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "scopes" {
			key += a.Value.String()
		}
		failed = failed || a.Key == "error"
		return true
	})
	if r.Level == slog.LevelWarn && !failed {
		if _, before := o.logged.LoadOrStore(key, true); before {
			return nil
		}
	}
	return o.Handler.Handle(ctx, r)
}

// WithMinted sets a function that [Tokens.Handler] calls with each token before
// it replies to the page. Use it to store the token, so that you can revoke the
// token at sign-out, with the same Tokens: Moov lets no other API key revoke
// it. The function is called even if the page has disconnected, and the context
// of the request has ended then. If the function returns an error, Handler
// revokes the token, and replies as it does to an error of its scopes function.
func WithMinted(f func(*http.Request, *oauth2.Token) error) Option {
	return option(f != nil, func(c *config) { c.minted = f }, "WithMinted: the function is nil: leave the option out to note nothing")
}

// WithOrigins sets the other origins whose pages may use [Tokens.Handler], such
// as https://app.example.com or capacitor://localhost. Handler answers their
// CORS preflight requests, and their requests may carry cookies. If WithOrigins
// is given twice, all origins apply.
//
// For a page of an https origin in this list, the token request to Moov carries the
// page's origin. So each of these origins must also be on the API key's list of
// allowed domains at Moov. For all other pages the token request carries the origin
// of [moovauth.WithOrigin] in [WithSource]. Default: none.
func WithOrigins(origins ...string) Option {
	return func(c *config) error {
		for _, origin := range origins {
			normal, err := normalise(origin)
			if err != nil {
				return fmt.Errorf("WithOrigins: %w; got %q", err, origin)
			}
			c.origins[normal] = true
		}
		return nil
	}
}

// hosts maps host names as browsers do (UTS #46).
var hosts = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false))

// normalise returns an origin as a browser sends it (RFC 6454 §6.2).
func normalise(origin string) (string, error) {
	wanted := fmt.Errorf("want only a scheme and a host, such as %q, with no path or slash after it", "https://app.example.com")
	if strings.Contains(origin, "*") {
		return "", errors.New("name each origin: there are no wildcards")
	}
	_, authority, _ := strings.Cut(origin, "://")
	u, err := url.Parse(origin)
	if err != nil || u.Hostname() == "" || u.Host != authority || strings.HasSuffix(authority, ":") {
		return "", wanted
	}
	host, err := hosts.ToASCII(u.Hostname())
	if err != nil {
		return "", fmt.Errorf("%w: %w", wanted, err)
	}
	defaultPort := map[string]string{"http": ":80", "https": ":443"}[u.Scheme]
	return u.Scheme + "://" + strings.TrimSuffix(strings.Replace(authority, u.Hostname(), host, 1), defaultPort), nil
}
