package platform

// This file holds what New is given, and refuses what cannot work.

import (
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/url"
	"slices"

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
	origins   []string
}

func newConfig(opts []Option) (*config, error) {
	c := &config{perSecond: defaultRate, capacity: defaultCapacity}
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

// WithRate sets how many token and revoke requests a second the line may let go.
// Moov takes 40 requests a second from one account and IP address, 10 if it is a
// test account, and API calls count, too. They do not stand in line, so leave
// room for them, and for other processes. If the server takes fewer than this,
// its 429s slow the line down. Default: 10.
func WithRate(perSecond float64) Option {
	return func(c *config) error {
		if !(perSecond > 0) || math.IsInf(perSecond, 0) {
			return fmt.Errorf("WithRate: want a number of requests per second above 0, such as 10; got %v", perSecond)
		}
		c.perSecond = perSecond
		return nil
	}
}

// WithCapacity sets how many sources are kept. Beyond it the least recently used
// is let go: it goes on working for those who have it, and if nobody has it, the
// next [Tokens.Source] makes another. Default: 10,000.
func WithCapacity(n int) Option {
	return func(c *config) error {
		if n < 1 {
			return fmt.Errorf("WithCapacity: want a number of sources of 1 or more, got %d", n)
		}
		c.capacity = n
		return nil
	}
}

// WithSource sets options for each source, and for what [Tokens.Mint] and
// [Tokens.Revoke] do: where the API is, the origin, the HTTP client, the logger,
// the cache. Given twice, they add up. WithScopes and WithLimiter among them
// have no effect. [New] refuses WithToken: all accounts would share the token.
func WithSource(opts ...moovauth.Option) Option {
	return func(c *config) error {
		if slices.ContainsFunc(opts, func(o moovauth.Option) bool { return o == nil }) {
			return errors.New("WithSource: an option is nil: leave it out")
		}
		c.source = append(c.source, opts...)
		return nil
	}
}

// WithOrigins sets the pages of other origins that may use [Tokens.Handler],
// such as https://app.example.com. Their CORS preflight is answered, and their
// requests may carry cookies. Given twice, they add up. Default: none.
func WithOrigins(origins ...string) Option {
	return func(c *config) error {
		for _, origin := range origins {
			u, err := url.Parse(origin)
			ok := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && origin == u.Scheme+"://"+u.Host
			if ok {
				err = http.NewCrossOriginProtection().AddTrustedOrigin(origin)
			}
			if !ok || err != nil {
				return fmt.Errorf("WithOrigins: want a scheme and a host alone, such as %q, with no path or slash after it; got %q", "https://app.example.com", origin)
			}
		}
		c.origins = append(c.origins, origins...)
		return nil
	}
}
