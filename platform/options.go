package platform

// This file holds what New is given, and refuses what cannot work.

import (
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"golang.org/x/net/idna"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

const (
	defaultRate     = 10 // requests per second: all that Moov takes from a test account
	defaultCapacity = 10_000
)

// An Option configures [New]. If one is given twice, the last counts, except
// for [WithSource] and [WithOrigins], which add up.
type Option func(*config) error

// config is what the options add up to. It is not changed after New.
type config struct {
	perSecond float64
	capacity  int
	source    []moovauth.Option
	origins   map[string]bool
	shared    moovauth.Limiter // nil: none
	minted    func(*http.Request, *oauth2.Token) error
	logger    *slog.Logger // nil: nowhere
}

func newConfig(opts []Option) (*config, error) {
	c := &config{perSecond: defaultRate, capacity: defaultCapacity, origins: make(map[string]bool)}
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("moovauth: platform: option %d is nil: leave it out", i+1)
		}
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("moovauth: platform: %w", err)
		}
	}
	return c, nil
}

// option refuses what is not ok, with an error that says what is wanted.
func option(ok bool, set func(*config), wanted string, args ...any) Option {
	return func(c *config) error {
		if !ok {
			return fmt.Errorf(wanted, args...)
		}
		set(c)
		return nil
	}
}

// WithRate sets how many token and revoke requests a second may go. Moov takes 40
// requests a second from one account and IP address, 10 if it is a test account.
// API calls count, too, and do not wait in the queue: leave room for them. If the
// server takes fewer than this, its 429s slow the queue down. Default: 10.
//
// With Moov's tokens of 15 minutes, which are refreshed after 12, the rate
// suffices if
//
//	accounts in use / 720 s + pages a second < 0.97 of the rate
//
// so that 10 requests a second are enough for 5,000 accounts and 2 pages a
// second. [Stats] has the first part as Needed.
func WithRate(perSecond float64) Option {
	return option(perSecond > 0 && !math.IsInf(perSecond, 0), func(c *config) { c.perSecond = perSecond },
		"WithRate: want a number of requests per second above 0, such as 10; got %v", perSecond)
}

// WithCapacity sets how many sources are kept. Beyond it the least recently used
// is removed. A caller that holds a removed source can continue to use it.
// Otherwise the next [Tokens.Source] makes another, which needs a token of its own. So the capacity
// should be at least the number of accounts in use. [Stats] counts the sources that were
// let go with a good token as Evicted. Default: 10,000.
func WithCapacity(n int) Option {
	return option(n > 0, func(c *config) { c.capacity = n }, "WithCapacity: want a number of sources of 1 or more, got %d", n)
}

// WithLimiter makes all token and revoke requests wait for a limiter that the
// processes of a fleet share, such as rediscache's, instead of keeping a rate of
// its own. A turn goes to the request that is first in the queue when Wait returns.
// At most 8 calls of Wait are under way at a time. If l has the method Unused(), it
// is called for each turn that no request needs any more. If l has the method
// Refused(retryAfter time.Duration), it is called for each 429.
//
// If Wait returns an error, the queue keeps to [WithRate] for a second, and then
// asks l again. Default: no limiter.
func WithLimiter(l moovauth.Limiter) Option {
	return option(l != nil, func(c *config) { c.shared = l }, "WithLimiter: the limiter is nil: leave the option out to do without")
}

// WithSource sets options for each source, and for what [Tokens.Mint] and
// [Tokens.Revoke] do: where the API is, the origin, the HTTP client, the cache.
// Given twice, they add up. WithScopes among them has no effect. [New] refuses
// WithToken, since all accounts would share the token, and moovauth.WithLimiter:
// see [WithLimiter].
func WithSource(opts ...moovauth.Option) Option {
	return option(!slices.ContainsFunc(opts, func(o moovauth.Option) bool { return o == nil }),
		func(c *config) { c.source = append(c.source, opts...) }, "WithSource: an option is nil: leave it out")
}

// WithLogger sets where the sources, and what is minted and revoked, are logged:
// see [moovauth.WithLogger]. A warning about the scopes or the lifetime that Moov
// has granted is logged once for each set of scopes. Three more warnings are
// logged once: if [WithRate] is too low for the accounts in use, if
// [WithCapacity] is, and if the limiter of [WithLimiter] fails. Default: nowhere.
func WithLogger(l *slog.Logger) Option {
	return option(l != nil, func(c *config) { c.logger = l }, "WithLogger: the logger is nil: leave the option out to log nothing")
}

// WithMinted sets a function that [Tokens.Handler] calls with each token before it
// replies, even if the page has disconnected: note the token there, to revoke it at
// sign-out. If it returns an error, the token is revoked, and Handler replies as it
// does to an error of the scopes function.
func WithMinted(f func(*http.Request, *oauth2.Token) error) Option {
	return option(f != nil, func(c *config) { c.minted = f }, "WithMinted: the function is nil: leave the option out to note nothing")
}

// WithOrigins sets the pages of other origins that may use [Tokens.Handler],
// such as https://app.example.com, or capacitor://localhost. Their CORS preflight
// is answered, and their requests may carry cookies. Given twice, they add up.
//
// The token request for a page of an https origin among them carries that origin.
// So each of these must be on the API key's list of allowed domains at Moov, too.
// For all other pages the token request carries the origin of
// [moovauth.WithOrigin] in [WithSource]. Default: none.
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

// hosts maps names as browsers do (UTS #46).
var hosts = idna.New(idna.MapForLookup(), idna.BidiRule(), idna.StrictDomainName(false))

// normalise returns an origin as a browser sends it (RFC 6454 §6.2).
func normalise(origin string) (string, error) {
	wanted := fmt.Errorf("want only a scheme and a host, such as %q, with no path or slash after it", "https://app.example.com")
	if strings.Contains(origin, "*") {
		return "", errors.New("name each origin: there are no wildcards")
	}
	_, authority, _ := strings.Cut(origin, "://")
	u, err := url.Parse(origin)
	if err != nil || u.Hostname() == "" || u.Host != authority {
		return "", wanted
	}
	host := u.Hostname()
	if ip, err := netip.ParseAddr(host); err == nil {
		host = ip.String()
	} else if host, err = hosts.ToASCII(host); err != nil {
		return "", fmt.Errorf("%w: %w", wanted, err)
	}
	if strings.Contains(host, ":") { // IPv6
		host = "[" + host + "]"
	}
	if port := u.Port(); port != "" && port != map[string]string{"http": "80", "https": "443"}[u.Scheme] {
		host += ":" + port
	}
	return u.Scheme + "://" + host, nil
}
