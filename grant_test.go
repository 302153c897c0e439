package moovauth

// This file tests how a grant changes a source, and all processes that share a
// cache. It tests which refresh token is sent and when, and for how long no
// request is made after a failure. The tests look at the requests that the
// server received.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/moovauth/moovauth/moovtest"
)

const (
	cc      = grantClientCredentials
	refresh = grantRefreshToken
)

// reaction answers a token request, or passes it to the server.
type reaction func(r *http.Request, pass roundTripper) (*http.Response, error)

// proxy stands between sources and their server, without sockets. It records
// token requests and lets its reactions answer them.
type proxy struct {
	*moovtest.Server

	mu        sync.Mutex
	reactions map[string]reaction // by grant type
	sent      []url.Values
	times     []time.Time // when each form was sent
}

func proxyOf(t testing.TB, opts ...moovtest.Option) *proxy {
	return &proxy{Server: inMemory(t, opts...), reactions: make(map[string]reaction)}
}

// source returns a source whose requests go through p.
func (p *proxy) source(t testing.TB, opts ...Option) *TokenSource {
	t.Helper()
	return sourceOf(t, p.Server, append([]Option{p.client()}, opts...)...)
}

func (p *proxy) client() Option { return WithHTTPClient(&http.Client{Transport: p}) }

// on sets the reaction to token requests of the given grant types, or of all if
// none is given. If do is nil, the requests go to the server.
func (p *proxy) on(do reaction, grantTypes ...string) {
	if len(grantTypes) == 0 {
		grantTypes = []string{cc, refresh}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, grantType := range grantTypes {
		p.reactions[grantType] = do
	}
}

func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	pass := p.Server.Transport().RoundTrip
	if r.URL.Path != endpointPath+opToken {
		return pass(r)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil {
		return nil, err
	}
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	p.mu.Lock()
	p.sent, p.times = append(p.sent, form), append(p.times, time.Now())
	do := p.reactions[form.Get("grant_type")]
	p.mu.Unlock()
	if do == nil {
		return pass(r)
	}
	return do(r, pass)
}

// grants returns the grant types of all token requests.
func (p *proxy) grants() (types []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, form := range p.sent {
		types = append(types, form.Get("grant_type"))
	}
	return types
}

// refreshTokens returns how often each refresh token was sent.
func (p *proxy) refreshTokens() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	times := make(map[string]int)
	for _, form := range p.sent {
		if sent := form.Get("refresh_token"); sent != "" {
			times[sent]++
		}
	}
	return times
}

// assertNoneSentTwice fails the test if a refresh token was sent more than
// once.
func (p *proxy) assertNoneSentTwice(t testing.TB) {
	t.Helper()
	for _, times := range p.refreshTokens() {
		assert.Equal(t, 1, times, "a refresh token was sent more than once")
	}
}

// gaps returns the times between token requests, from the nth on.
func (p *proxy) gaps(n int) (gaps []time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := max(n, 1); i < len(p.times); i++ {
		gaps = append(gaps, p.times[i].Sub(p.times[i-1]))
	}
	return gaps
}

// serves calls Token each minute for d, and checks that the token is alive.
func (p *proxy) serves(t *testing.T, s *TokenSource, d time.Duration) {
	t.Helper()
	for range d / time.Minute {
		require.True(t, p.Alive(token(t, s).AccessToken))
		time.Sleep(time.Minute)
	}
}

// replies returns a reaction that answers without the server. header holds
// names and values in turn.
func replies(status int, body string, header ...string) reaction {
	return func(r *http.Request, _ roundTripper) (*http.Response, error) {
		h := make(http.Header)
		for i := 0; i < len(header); i += 2 {
			h.Add(header[i], header[i+1])
		}
		return &http.Response{StatusCode: status, Header: h, Body: io.NopCloser(strings.NewReader(body)), Request: r}, nil
	}
}

// breaks fails as a broken connection does. The request may have arrived.
func breaks(*http.Request, roundTripper) (*http.Response, error) {
	return nil, errors.New("connection reset by peer")
}

// refusesToConnect fails as if no one listened on the server's port.
func refusesToConnect(r *http.Request, _ roundTripper) (*http.Response, error) {
	closed := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}}
	return closed.RoundTrip(r)
}

// neverAnswers waits until the request's context ends.
func neverAnswers(r *http.Request, _ roundTripper) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// loses passes the request to the server and then replaces the reply.
func loses(then func(r *http.Request, resp *http.Response) (*http.Response, error)) reaction {
	return func(r *http.Request, pass roundTripper) (*http.Response, error) {
		resp, err := pass(r)
		if err != nil {
			return nil, err
		}
		return then(r, resp)
	}
}

// cutAfter passes the request to the server and cuts the reply's body after n
// bytes.
func cutAfter(n int64) reaction {
	return loses(func(_ *http.Request, resp *http.Response) (*http.Response, error) {
		resp.Body = io.NopCloser(io.MultiReader(io.LimitReader(resp.Body, n), iotest.ErrReader(errors.New("connection reset by peer"))))
		return resp, nil
	})
}

// rewrites passes the request to the server and then answers as a proxy that
// has lost the reply.
func rewrites(status int, body string) reaction {
	return loses(func(r *http.Request, _ *http.Response) (*http.Response, error) { return replies(status, body)(r, nil) })
}

// losses pass the request to the server and then lose its reply, each at a
// different point.
var losses = map[string]reaction{
	"lost before the status": loses(func(*http.Request, *http.Response) (*http.Response, error) { return nil, io.ErrUnexpectedEOF }),
	"lost after the header":  cutAfter(0),
	"lost in the body":       cutAfter(20),
	"replaced by a page":     rewrites(200, "<html>"),
	"replaced by a 408":      rewrites(408, ""),
	"replaced by a 500":      rewrites(500, ""),
	"replaced by a 502":      rewrites(502, "<html>"),
	"replaced by a 503":      rewrites(503, ""),
	"replaced by a 504":      rewrites(504, "<html>"),
}

// refusals are answers which say that the server would refuse the same request
// again.
var refusals = map[string]reaction{
	"200 with an error": replies(200, `{"error":"invalid_request"}`),
	"301":               replies(301, "", "Location", "https://moov.test/elsewhere"),
	"307":               replies(307, "", "Location", "https://moov.test/elsewhere"),
	"400":               replies(400, `{"error":"invalid_grant"}`),
	"401":               replies(401, `{"error":"invalid_grant"}`),
	"403":               replies(403, "<html>"),
	"404":               replies(404, "404 page not found"),
	"410":               replies(410, ""),
	"422":               replies(422, `{"refresh_token":"is unknown"}`),
}

// unusable are replies that report success but contain no token that can be
// used.
var unusable = map[string]reaction{
	"a page":                       replies(200, "<html>Welcome</html>", "Content-Type", "text/html"),
	"nothing":                      replies(200, ""),
	"204":                          replies(204, ""),
	"null":                         replies(200, "null"),
	"a list":                       replies(200, "[]"),
	"an empty token":               replies(200, `{"access_token":""}`),
	"a token that is not a string": replies(200, `{"access_token":1}`),
	"a token with a newline":       replies(200, `{"access_token":"a\nb"}`),
	"another token_type":           replies(200, `{"access_token":"x","token_type":"mac"}`),
	"more than a mebibyte":         replies(200, `{"access_token":"x","more":"`+strings.Repeat("x", 1<<20)+`"}`),
}

// interrupted are temporary failures of requests that may have arrived.
var interrupted = map[string]reaction{
	"408": replies(408, ""), "421": replies(421, ""), "425": replies(425, ""), "500": replies(500, ""), "501": replies(501, ""),
	"502": replies(502, "<html>"), "503": replies(503, ""), "504": replies(504, ""), "529": replies(529, ""), "a reset": breaks,
}

// notArrived are failures of requests on which the server has not acted.
var notArrived = map[string]reaction{"429": replies(429, ""), "no connection": refusesToConnect}

// all joins maps whose keys differ.
func all(sets ...map[string]reaction) map[string]reaction {
	joined := make(map[string]reaction)
	for _, m := range sets {
		maps.Copy(joined, m)
	}
	return joined
}

// bubbles runs f for each case, in a subtest and a synctest bubble of its own.
func bubbles[T any](t *testing.T, cases map[string]T, f func(t *testing.T, c T)) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { f(t, c) })
		})
	}
}

// caches holds the options for each kind of cache.
var caches = map[string]func() []Option{
	"without a cache":         func() []Option { return nil },
	"with a cache":            func() []Option { return []Option{WithCache(new(memoryCache))} },
	"with a cache that locks": func() []Option { return []Option{WithCache(newLockingCache())} },
}

func TestFailedRefreshIsFollowedByClientCredentialsInTheSameFlight(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, all(refusals, unusable, interrupted, losses), func(t *testing.T, fails reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				p.on(fails, refresh)
				first := token(t, s)
				time.Sleep(time.Hour)
				began := time.Now()
				assert.True(t, p.Alive(token(t, s).AccessToken))
				assert.Zero(t, time.Since(began))
				assert.Equal(t, []string{cc, refresh, cc}, p.grants())

				time.Sleep(time.Hour)
				p.on(nil)
				assert.True(t, p.Alive(token(t, s).AccessToken))
				p.assertNoneSentTwice(t)
				require.NoError(t, s.Revoke(t.Context()))
				assert.False(t, p.Alive(first.RefreshToken), "Revoke still knows the first refresh token")
			})
		})
	}
}

// The current token is still valid, but the source does not wait for a later
// refresh.
func TestFailedRefreshInTheBackgroundIsFollowedByClientCredentials(t *testing.T) {
	t.Parallel()
	bubbles(t, all(refusals, unusable, interrupted, losses), func(t *testing.T, fails reaction) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(fails, refresh)
		time.Sleep(13 * time.Minute)
		require.Equal(t, first.AccessToken, token(t, s).AccessToken)
		synctest.Wait()
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{cc, refresh, cc}, p.grants())
	})
}

func TestRefreshTokenThatTheServerHasNotUsedUpIsSentAgain(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, notArrived, func(t *testing.T, fails reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				token(t, s)
				time.Sleep(time.Hour)
				p.on(fails)
				_, err := s.Token()
				require.ErrorContains(t, err, "after 3 attempts")
				assert.Equal(t, []string{cc, refresh, refresh, refresh}, p.grants(), "client credentials would fail in the same way")
				p.on(nil)
				time.Sleep(time.Second)
				assert.True(t, p.Alive(token(t, s).AccessToken))
				assert.Equal(t, []string{cc, refresh, refresh, refresh, refresh}, p.grants())
				assert.Len(t, p.refreshTokens(), 1)
			})
		})
	}
}

// Without scopes, the source has no other credential.
func TestRefreshTokenOfASourceWithoutScopesIsSentAgain(t *testing.T) {
	t.Parallel()
	bubbles(t, all(interrupted, notArrived, unusable), func(t *testing.T, fails reaction) {
		p := proxyOf(t)
		saved := token(t, p.source(t))
		s, err := NewTokenSource(credentialsOf(p.Server), WithBaseURL(p.URL), p.client(), WithToken(&oauth2.Token{RefreshToken: saved.RefreshToken}))
		require.NoError(t, err)
		p.on(fails)
		_, err = s.Token()
		require.ErrorContains(t, err, "after 3 attempts")
		assert.Equal(t, []string{cc, refresh, refresh, refresh}, p.grants())
		time.Sleep(time.Minute)
		p.on(nil)
		assert.True(t, p.Alive(token(t, s).AccessToken))
		assert.Equal(t, map[string]int{saved.RefreshToken: 4}, p.refreshTokens())
	})
}

func TestRefreshThatFailsForEverDoesNotBlockASource(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, map[string]reaction{
				"500": interrupted["500"], "503": interrupted["503"], "a reset": breaks, "silence": neverAnswers, "a page": unusable["a page"], "404": refusals["404"],
			}, func(t *testing.T, fails reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				p.on(fails, refresh)
				p.serves(t, s, 3*time.Hour)
				synctest.Wait()
				assert.LessOrEqual(t, len(p.grants()), 1+15*2, "two requests for each token")
			})
		})
	}
}

func TestFailedRefreshDoesNotBlockARestartedProcess(t *testing.T) {
	t.Parallel()
	bubbles(t, all(refusals, unusable, losses), func(t *testing.T, fails reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection())
		cache := WithCache(newLockingCache())
		token(t, p.source(t, cache))
		time.Sleep(time.Hour)
		p.on(fails, refresh)
		p.on(replies(403, ""), cc)
		_, err := p.source(t, cache).Token()
		require.Error(t, err)
		p.on(nil, cc)
		for range 3 {
			require.True(t, p.Alive(token(t, p.source(t, cache)).AccessToken))
			time.Sleep(time.Hour)
		}
		p.assertNoneSentTwice(t)
	})
}

func TestRetryAfterOfARefreshDelaysTheNextRequest(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		fails reaction
		next  string // the grant type of the next request
	}{
		"503, an hour":   {replies(503, "", "Retry-After", "3600"), cc},
		"503, a minute":  {replies(503, "", "Retry-After", "60"), cc},
		"408":            {replies(408, "", "Retry-After", "45"), cc},
		"X-Retry-In":     {replies(503, "", "X-Retry-In", "45s"), cc},
		"a distant date": {replies(502, "", "Retry-After", "Sat, 01 Jan 2028 00:00:00 GMT", "Date", "Fri, 31 Dec 2027 00:00:00 GMT"), cc},
		"429":            {replies(429, "", "Retry-After", "45"), refresh},
	}, func(t *testing.T, c struct {
		fails reaction
		next  string
	}) {
		p := proxyOf(t)
		s := p.source(t)
		token(t, s)
		time.Sleep(time.Hour)
		p.on(c.fails, refresh)
		_, err := s.Token()
		var refused *Error
		require.ErrorAs(t, err, &refused)
		asked := min(refused.RetryAfter, time.Hour)
		require.Positive(t, asked)
		for began := time.Now(); time.Since(began) < asked-time.Millisecond; time.Sleep(asked / 100) {
			_, err = s.Token()
			require.ErrorAs(t, err, new(*CoolDownError))
		}
		assert.Equal(t, []string{cc, refresh}, p.grants())
		p.on(nil)
		time.Sleep(asked/4 + time.Second)
		assert.True(t, p.Alive(token(t, s).AccessToken))
		assert.Equal(t, []string{cc, refresh, c.next}, p.grants())
	})
}

func TestShortRetryAfterPassesBeforeClientCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		token(t, s)
		time.Sleep(time.Hour)
		p.on(replies(503, "", "Retry-After", "4"), refresh)
		began := time.Now()
		token(t, s)
		assert.Equal(t, []string{cc, refresh, cc}, p.grants())
		assert.GreaterOrEqual(t, time.Since(began), 4*time.Second)
		assert.LessOrEqual(t, time.Since(began), 5*time.Second)
	})
}

// The server has used up the refresh token. If it received the refresh token
// again, it would revoke all tokens that came from it.
func TestTokensStayAliveAfterALostReplyToARefresh(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, losses, func(t *testing.T, lose reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				first := token(t, s)

				// The reply to a refresh in the background is lost, and client
				// credentials fail, too.
				p.on(lose, refresh)
				p.on(replies(503, ""), cc)
				time.Sleep(13 * time.Minute)
				for deadline := first.Expiry.Add(-6 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
					require.Equal(t, first.AccessToken, token(t, s).AccessToken)
					require.True(t, p.Alive(first.AccessToken))
				}
				p.on(nil, cc)
				p.serves(t, s, time.Hour) // the reply to each refresh is lost
				p.on(nil)
				p.serves(t, s, time.Hour)
				p.assertNoneSentTwice(t)
			})
		})
	}
}

func TestTokensStayAliveAfterALostReplyOnTheWire(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithReuseDetection())
	s := sourceOf(t, server)
	first := token(t, s)
	server.Enqueue(moovtest.Answer{Lost: true})
	movableClock(s)(time.Hour)
	second := token(t, s)
	assert.True(t, server.Alive(first.AccessToken))
	assert.True(t, server.Alive(second.AccessToken))
	assert.Equal(t, []string{cc, refresh, cc}, grantTypes(server))
}

func TestTokensStayAliveAfterALostReplyAndARestart(t *testing.T) {
	t.Parallel()
	bubbles(t, losses, func(t *testing.T, lose reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection(), moovtest.WithLifetime(20*time.Minute))
		cache := WithCache(newLockingCache())
		first := p.source(t, cache)
		current := token(t, first)
		time.Sleep(17 * time.Minute)
		p.on(lose, refresh)
		p.on(replies(503, ""), cc)
		require.Equal(t, current.AccessToken, token(t, first).AccessToken)
		time.Sleep(time.Minute)

		p.on(nil)
		for range 5 {
			require.True(t, p.Alive(token(t, p.source(t, cache)).AccessToken))
			require.True(t, p.Alive(token(t, first).AccessToken))
			time.Sleep(time.Second)
		}
		p.assertNoneSentTwice(t)
	})
}

// movableClock returns a function that moves the clocks of s forward. They move
// like that for a process that was stopped and then continues.
func movableClock(s *TokenSource) (jump func(time.Duration)) {
	var ahead atomic.Int64
	clock := s.core.config.clock
	s.core.config.clock = func() instant { return clock().add(time.Duration(ahead.Load())) }
	return func(d time.Duration) { ahead.Add(int64(d)) }
}

// The process stops during a refresh. When it continues, the token has expired,
// and the flight has no time left.
func TestProcessThatWasStoppedDuringABackgroundRefreshServesItsFirstCall(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, map[string]struct{ joins, after bool }{
				"a caller that comes during the flight": {joins: true},
				"a caller that comes after it":          {after: true},
				"both":                                  {true, true},
			}, func(t *testing.T, c struct{ joins, after bool }) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				jump := movableClock(s)
				first := token(t, s)
				stopped := make(chan struct{})
				p.on(func(*http.Request, roundTripper) (*http.Response, error) {
					<-stopped
					jump(time.Hour)
					time.Sleep(time.Millisecond) // callers join the flight before it fails
					return nil, context.DeadlineExceeded
				}, refresh)
				time.Sleep(13 * time.Minute)
				require.Equal(t, first.AccessToken, token(t, s).AccessToken)
				synctest.Wait()
				close(stopped)
				time.Sleep(time.Microsecond)
				began := time.Now()
				if c.joins {
					for _, tok := range together(t, slices.Repeat([]*TokenSource{s}, 50)) {
						assert.True(t, p.Alive(tok.AccessToken))
					}
				}
				if c.after {
					time.Sleep(2 * time.Millisecond)
					assert.True(t, p.Alive(token(t, s).AccessToken))
				}
				assert.Less(t, time.Since(began), time.Second)
				assert.Equal(t, []string{cc, refresh, cc}, p.grants(), "one grant for all")
			})
		})
	}
}

// The token expires during its refresh, and callers join the refresh.
func TestCallersThatJoinABackgroundRefreshInVainGetATokenFromTheNextGrant(t *testing.T) {
	t.Parallel()
	bubbles(t, all(refusals, unusable, interrupted, notArrived, losses, map[string]reaction{
		"503, Retry-After":    replies(503, "", "Retry-After", "3600"),
		"429, Retry-After":    replies(429, "", "Retry-After", "3600"),
		"silence":             neverAnswers,
		"a cancelled context": func(*http.Request, roundTripper) (*http.Response, error) { return nil, context.Canceled },
	}), func(t *testing.T, fails reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection())
		s := p.source(t)
		first := token(t, s)
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			p.on(nil)
			time.Sleep(time.Until(first.Expiry.Add(-time.Second))) // after the hard expiry
			return fails(r, pass)
		}, refresh)
		time.Sleep(time.Until(first.Expiry.Add(-6 * time.Second)))
		require.Equal(t, first.AccessToken, token(t, s).AccessToken)
		time.Sleep(2 * time.Second)
		require.Zero(t, s.timeLeft())
		began := time.Now()
		for _, tok := range together(t, slices.Repeat([]*TokenSource{s}, 20)) {
			assert.True(t, p.Alive(tok.AccessToken))
		}
		assert.LessOrEqual(t, time.Since(began), defaultTimeout)
		assert.Len(t, p.grants(), 3, "one grant for all")
	})
}

func TestTokenThatExpiredOnItsWayIsNotReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t, moovtest.WithLifetime(5*time.Second))
		p.on(loses(func(_ *http.Request, resp *http.Response) (*http.Response, error) {
			time.Sleep(6 * time.Second)
			return resp, nil
		}))
		s := p.source(t)
		_, err := s.Token()
		assert.ErrorContains(t, err, "expired on its way")
		p.on(nil)
		time.Sleep(time.Second)
		assert.True(t, p.Alive(token(t, s).AccessToken))
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, p.Server)
	})
}

func TestTokenThatExpiresWhileItIsPutIntoTheCacheIsNotReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLifetime(time.Second))
		var puts atomic.Int32
		s := sourceOf(t, server, WithCache(fakeCache{
			get: func(context.Context) ([]byte, error) { return nil, nil },
			put: func(ctx context.Context, _ []byte) error {
				if puts.Add(1) == 1 {
					<-ctx.Done()
				}
				return ctx.Err()
			},
			lock: func(context.Context) (func(), error) { return func() {}, nil },
		}))
		assert.True(t, server.Alive(token(t, s).AccessToken))
		assert.Len(t, server.TokenRequests(), 2)
	})
}

func TestRefreshTokenIsKeptIfTheReplyToARefreshHasNone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		time.Sleep(15 * time.Minute)
		p.on(replies(200, `{"access_token":"second","expires_in":900}`))
		assert.Equal(t, first.RefreshToken, token(t, s).RefreshToken)

		time.Sleep(15 * time.Minute)
		p.on(replies(400, ""), refresh)
		assert.Empty(t, token(t, s).RefreshToken, "client credentials do not keep it")
		assert.Equal(t, map[string]int{first.RefreshToken: 2}, p.refreshTokens())
	})
}

func TestServerWithoutRefreshTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithoutRefreshTokens())
		s := sourceOf(t, server)
		token(t, s)
		time.Sleep(15 * time.Minute)
		token(t, s)
		assert.Equal(t, []string{cc, cc}, grantTypes(server))
	})
}

// granting returns a reaction that issues tokens with the given scope. n counts
// the tokens.
func granting(n *int, scope string) reaction {
	return func(r *http.Request, pass roundTripper) (*http.Response, error) {
		*n++
		return replies(200, fmt.Sprintf(`{"access_token":"access-%d","refresh_token":"refresh-%d","expires_in":900,"scope":%q}`, *n, *n, scope))(r, pass)
	}
}

func TestRefreshThatLacksAScopeIsFollowedByClientCredentials(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		scope string
		more  bool // client credentials follow
	}{
		"one is missing":        {"/fed.read", true},
		"the other is missing":  {"/ping.read", true},
		"another scope":         {"/cards.read", true},
		"a scope is cut off":    {"/fed.read /ping.rea", true},
		"another letter case":   {"/fed.read /Ping.read", true},
		"all":                   {"/fed.read /ping.read", false},
		"in another order":      {"/ping.read /fed.read", false},
		"more than requested":   {"/cards.read /ping.read /fed.read", false},
		"with white space":      {"  /fed.read   /ping.read ", false},
		"no scope in the reply": {"", false},
	}, func(t *testing.T, c struct {
		scope string
		more  bool
	}) {
		n := 0
		p := proxyOf(t)
		p.on(granting(&n, c.scope), refresh)
		p.on(granting(&n, "/ping.read /fed.read"), cc)
		s := p.source(t, WithScopes("/fed.read", "/ping.read"), WithToken(&oauth2.Token{RefreshToken: "saved"}))
		tok := token(t, s)
		if !c.more {
			assert.Equal(t, []string{refresh}, p.grants())
			assert.Equal(t, "access-1", tok.AccessToken)
			return
		}
		assert.Equal(t, []string{refresh, cc}, p.grants())
		assert.Equal(t, "access-2", tok.AccessToken)
		assert.Equal(t, "/ping.read /fed.read", tok.Extra("scope"))
		require.NoError(t, s.Revoke(t.Context()))
		var tokens []string
		for _, r := range p.RevokeRequests() {
			tokens = append(tokens, r.Form.Get("token"))
		}
		assert.ElementsMatch(t, []string{"refresh-1", "access-1", "refresh-2", "access-2"}, tokens)
	})
}

func TestScopeThatIsNeverGrantedIsAskedForOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n, log := 0, new(logged)
		p := proxyOf(t)
		p.on(granting(&n, "/fed.read"))
		s := p.source(t, WithScopes("/fed.read", "/ping.read", "/cards.read"), log.option())
		for range 24 * 6 {
			token(t, s)
			time.Sleep(10 * time.Minute)
		}
		synctest.Wait()
		grants := p.grants()
		assert.Equal(t, cc, grants[0])
		assert.NotContains(t, grants[1:], cc, "client credentials did not grant more the last time")
		assert.Greater(t, len(grants), 70)
		warnings := log.of("the token is not what was asked for")
		require.Len(t, warnings, 1)
		assert.Equal(t, "/ping.read /cards.read", warnings[0]["missing_scopes"].String())
	})
}

func TestTokenThatLacksAScopeIsUsedIfClientCredentialsFail(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{
		"503": replies(503, ""), "403": replies(403, ""), "a reset": breaks, "a page": unusable["a page"], "429": replies(429, "", "Retry-After", "3600"),
	}, func(t *testing.T, fails reaction) {
		n := 0
		p := proxyOf(t)
		p.on(granting(&n, "/fed.read"), refresh)
		p.on(fails, cc)
		s := p.source(t, WithScopes("/fed.read", "/ping.read"), WithToken(&oauth2.Token{RefreshToken: "saved"}))
		assert.Equal(t, "access-1", token(t, s).AccessToken)
		assert.Equal(t, "access-1", token(t, s).AccessToken)
		time.Sleep(2 * time.Hour)
		p.on(granting(&n, "/fed.read /ping.read"), cc)
		assert.Equal(t, "access-3", token(t, s).AccessToken, "client credentials are tried again at the next refresh")
	})
}

// constant holds what expires_in may be in a reply that is always the same.
// Moov's own example is a timestamp in the past. A server that is generated
// from Moov's API description sends it.
var constant = map[string]string{
	"Moov's example": `,"expires_in":1736964352`, "Moov's example as text": `,"expires_in":"1736964352"`, "seconds": `,"expires_in":900`, "absent": ``, "unreadable": `,"expires_in":"soon"`,
}

func TestConstantReplyIsAcceptedAgain(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, constant, func(t *testing.T, expiresIn string) {
				time.Sleep(30 * 365 * 24 * time.Hour) // a bubble starts in the year 2000
				p := proxyOf(t)
				p.on(replies(200, `{"access_token":"same","refresh_token":"refresh"`+expiresIn+`}`))
				s := p.source(t, opts()...)
				for range 12 * 60 {
					require.Equal(t, "same", token(t, s).AccessToken)
					time.Sleep(time.Minute)
				}
				for range 100 { // as if the API answered 401 to some calls
					s.Invalidate("same")
					require.Equal(t, "same", token(t, s).AccessToken)
					time.Sleep(10 * time.Second)
				}
				for range 3 {
					require.NoError(t, s.Revoke(t.Context()))
					require.Equal(t, "same", token(t, s).AccessToken)
				}
				assert.Zero(t, s.Stats().LastError)
				assert.Empty(t, former(s.core.state))
				assert.Equal(t, "same", token(t, p.source(t, opts()...)).AccessToken)
			})
		})
	}
}

func TestCurrentTokenIsNotProlongedIfTheServerSaysThatItHasExpired(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, map[string]string{"0": "0", "-1": "-1", "text": `"0"`}, func(t *testing.T, expiresIn string) {
				p := proxyOf(t)
				p.on(replies(200, `{"access_token":"same","refresh_token":"refresh","expires_in":900}`))
				s := p.source(t, opts()...)
				first := token(t, s)
				p.on(replies(200, `{"access_token":"same","refresh_token":"refresh","expires_in":`+expiresIn+`}`))
				for end := first.Expiry.Add(4 * time.Hour); time.Now().Before(end); time.Sleep(time.Minute) {
					tok, err := s.Token()
					if time.Until(first.Expiry) >= maxLeeway {
						require.NoError(t, err)
						require.Equal(t, first.Expiry, tok.Expiry)
					} else {
						require.ErrorContains(t, err, "the same token again")
					}
				}
				assert.LessOrEqual(t, len(p.grants()), 4*60*maxAttempts+20, "one grant a minute")
				p.on(nil)
				time.Sleep(time.Minute)
				assert.True(t, p.Alive(token(t, s).AccessToken), "the source recovers")
			})
		})
	}
}

func TestExtraFindsWhatXOAuth2FindsAlsoFromTheCache(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	for _, members := range []string{
		``,
		`,"token_type":"bearer","expires_in":900`,
		`,"scope":"/ping.read","text":"é","empty":"","number":1.5,"large":12345678901234567890,"yes":true,"nothing":null,
			"list":[1,"two",{"three":[4]}],"object":{"nested":{"deep":[null,false]}}`,
	} {
		server.SetAnswer(&moovtest.Answer{Body: `{"access_token":"a","refresh_token":"r"` + members + `}`})
		theirs, err := (&clientcredentials.Config{
			ClientID: server.ClientID, ClientSecret: server.ClientSecret, TokenURL: server.URL + endpointPath + opToken, AuthStyle: oauth2.AuthStyleInHeader,
		}).Token(t.Context())
		require.NoError(t, err)
		requested, err := RequestToken(t.Context(), credentialsOf(server), WithBaseURL(server.URL), WithScopes(pingScope))
		require.NoError(t, err)
		cache := WithCache(new(memoryCache))
		requests := len(server.TokenRequests())
		for name, ours := range map[string]*oauth2.Token{
			"a source": token(t, sourceOf(t, server, cache)), "the cache": token(t, sourceOf(t, server, cache)), "RequestToken": requested,
		} {
			for _, member := range []string{"token_type", "expires_in", "scope", "text", "empty", "number", "large", "yes", "nothing", "list", "object", "unknown"} {
				assert.Equal(t, theirs.Extra(member), ours.Extra(member), "%s: %s", name, member)
			}
			assert.Nil(t, ours.Extra("access_token"), name)
			assert.Nil(t, ours.Extra("refresh_token"), name)
		}
		assert.Len(t, server.TokenRequests(), requests+1)
	}
}

func TestCoolDownAnswersAtOnceWithTheLastError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := noJitter(p.source(t))
		p.on(replies(401, ""))
		_, first := s.Token()
		for range 100 {
			_, err := s.Token()
			require.ErrorIs(t, err, first)
			var cooling *CoolDownError
			require.ErrorAs(t, err, &cooling)
			assert.Equal(t, firstCoolDown, time.Until(cooling.Until))
			require.ErrorAs(t, err, new(*Error))
		}
		assert.Len(t, p.grants(), 1)

		for len(p.grants()) < 10 {
			_, err := s.Token()
			require.Error(t, err)
			time.Sleep(50 * time.Millisecond)
		}
		assert.Equal(t, []time.Duration{250 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second,
			4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}, p.gaps(1))

		p.on(nil)
		time.Sleep(30 * time.Second)
		tok := token(t, s)
		p.on(replies(401, ""))
		time.Sleep(time.Until(tok.Expiry))
		_, err := s.Token()
		require.Error(t, err)
		_, err = s.Token()
		assert.ErrorContains(t, err, "due in 250ms", "the success ended the former cool-down")
	})
}

func TestCoolDownIsJittered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		waits := make(map[time.Duration]bool)
		p := proxyOf(t)
		p.on(replies(401, ""))
		for range 100 {
			s := p.source(t)
			_, err := s.Token()
			require.Error(t, err)
			wait := time.Until(s.Stats().CoolDownUntil)
			assert.GreaterOrEqual(t, wait, 125*time.Millisecond)
			assert.LessOrEqual(t, wait, 250*time.Millisecond)
			waits[wait] = true
		}
		assert.Greater(t, len(waits), 50)
	})
}

// If the scopes are refused, only the owner of the account can change that. An
// incident, such as a firewall's, ends by itself.
func TestCoolDownAfterRefusedScopesIsLonger(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		fails reaction
		most  time.Duration
	}{
		"422 that names scope":         {replies(422, `{"scope":"the account is not known"}`), 5 * time.Minute},
		"invalid_scope":                {replies(400, `{"error":"invalid_scope"}`), 5 * time.Minute},
		"422 that names another field": {replies(422, `{"client_id":"is unknown"}`), 30 * time.Second},
		"a bare 422":                   {replies(422, ""), 30 * time.Second},
		"400":                          {replies(400, `{"error":"invalid_request"}`), 30 * time.Second},
		"401":                          {replies(401, `{"error":"invalid_client"}`), 30 * time.Second},
		"a firewall's 403":             {replies(403, "<html>scope</html>"), 30 * time.Second},
		"503":                          {replies(503, ""), 30 * time.Second},
	}, func(t *testing.T, c struct {
		fails reaction
		most  time.Duration
	}) {
		p := proxyOf(t)
		p.on(c.fails)
		s := noJitter(p.source(t))
		for began := time.Now(); time.Since(began) < time.Hour/2; time.Sleep(time.Second) {
			_, err := s.Token()
			require.Error(t, err)
		}
		assert.Equal(t, c.most, slices.Max(p.gaps(1)))

		// After any other failure, the cool-down is 30 s at most.
		p.on(replies(403, ""))
		time.Sleep(c.most)
		_, err := s.Token()
		require.NotErrorAs(t, err, new(*CoolDownError))
		assert.Equal(t, 30*time.Second, time.Until(s.Stats().CoolDownUntil))
	})
}

func TestFailingEndpointGetsFewRequests(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		fails reaction
		most  int
	}{"503": {replies(503, ""), 40}, "401": {replies(401, ""), 20}}, func(t *testing.T, c struct {
		fails reaction
		most  int
	}) {
		p := proxyOf(t)
		p.on(c.fails)
		s := p.source(t)
		began := time.Now()
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() {
				for time.Since(began) < time.Minute {
					_, err := s.Token()
					assert.Error(t, err)
					time.Sleep(250 * time.Millisecond)
				}
			})
		}
		all.Wait()
		assert.LessOrEqual(t, len(p.grants()), c.most)
		assert.GreaterOrEqual(t, len(p.grants()), 6, "it continues to try")
	})
}

func TestRetryAfterLongerThanTheTimeoutIsObserved(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		asks string
		wait time.Duration
	}{
		"7 s":                      {"7", 7 * time.Second},
		"longer than any duration": {"99999999999999999999", time.Hour},
	}, func(t *testing.T, c struct {
		asks string
		wait time.Duration
	}) {
		p := proxyOf(t)
		p.on(replies(503, "", "Retry-After", c.asks))
		s := p.source(t, WithTimeout(5*time.Second))
		began := time.Now()
		_, err := s.Token()
		assert.ErrorContains(t, err, "not retried")
		assert.Zero(t, time.Since(began))
		p.on(nil)
		for err != nil {
			time.Sleep(c.wait / 1000)
			_, err = s.Token()
		}
		assert.GreaterOrEqual(t, time.Since(began), c.wait)
		assert.LessOrEqual(t, time.Since(began), c.wait*5/4+c.wait/1000)
		assert.Len(t, p.grants(), 2)
	})
}

// The endpoint fails from a minute before the refresh point until 10 s before the
// hard expiry.
func TestOutageBetweenRefreshPointAndExpiryIsNotSeenByCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		old := token(t, s)
		began, hard := time.Now(), s.timeLeft()
		refreshAt := s.core.config.clock().until(s.core.state.load().current.refreshAt)
		time.AfterFunc(refreshAt-time.Minute, func() { p.on(replies(503, "")) })
		time.AfterFunc(hard-10*time.Second, func() { p.on(nil) })
		for time.Since(began) < hard+time.Minute {
			called := time.Now()
			tok := token(t, s)
			require.Zero(t, time.Since(called))
			require.True(t, p.Alive(tok.AccessToken))
			time.Sleep(100 * time.Millisecond)
		}
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.LessOrEqual(t, len(p.grants()), 60)
		assert.GreaterOrEqual(t, len(p.grants()), 10)
		assert.LessOrEqual(t, slices.Max(p.gaps(2)), 31*time.Second)
		assert.GreaterOrEqual(t, slices.Max(p.gaps(2)), 10*time.Second, "the cool-down grows")
	})
}

// While the token is valid, no request is made for as long as the server asks.
// When the token has ended, one attempt is made.
func TestCoolDownOfTheBackgroundEndsWithTheToken(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func(t *testing.T, s *TokenSource, first *oauth2.Token){
		"it expires":        func(_ *testing.T, _ *TokenSource, first *oauth2.Token) { time.Sleep(time.Until(first.Expiry)) },
		"it is invalidated": func(_ *testing.T, s *TokenSource, first *oauth2.Token) { s.Invalidate(first.AccessToken) },
		"it is revoked":     func(t *testing.T, s *TokenSource, _ *oauth2.Token) { require.NoError(t, s.Revoke(t.Context())) },
	}, func(t *testing.T, end func(*testing.T, *TokenSource, *oauth2.Token)) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(replies(429, "", "Retry-After", "3600"))
		time.Sleep(13 * time.Minute)
		for range 100 {
			require.Equal(t, first.AccessToken, token(t, s).AccessToken)
			time.Sleep(time.Second)
		}
		require.Len(t, p.grants(), 2)
		end(t, s, first)
		for range 5 {
			_, _ = s.Token()
			time.Sleep(time.Second)
		}
		assert.Len(t, p.grants(), 3, "one attempt")
		p.on(nil)
		time.Sleep(time.Hour * 5 / 4)
		assert.True(t, p.Alive(token(t, s).AccessToken))
	})
}

func TestWaitWithinABackgroundGrantEndsWithTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t, WithEarlyRefresh(10*time.Second))
		token(t, s)
		time.Sleep(s.timeLeft() - 5*time.Second)
		p.on(replies(429, "", "Retry-After", "20"))
		token(t, s)
		synctest.Wait()
		p.on(nil)
		time.Sleep(s.timeLeft())
		began := time.Now()
		token(t, s)
		assert.Zero(t, time.Since(began))
	})
}

func TestRevokeEndsACoolDownThatTheServerDidNotAskFor(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		fails reaction
		ends  bool
	}{
		"403":              {replies(403, ""), true},
		"scopes":           {replies(400, `{"error":"invalid_scope"}`), true},
		"503":              {replies(503, ""), true},
		"503, Retry-After": {replies(503, "", "Retry-After", "60"), false},
		"429, Retry-After": {replies(429, "", "Retry-After", "60"), false},
		"X-Retry-In":       {replies(429, "", "X-Retry-In", "60s"), false},
	}, func(t *testing.T, c struct {
		fails reaction
		ends  bool
	}) {
		p := proxyOf(t)
		p.on(c.fails)
		s := p.source(t)
		_, err := s.Token()
		require.Error(t, err)
		p.on(nil)
		require.NoError(t, s.Revoke(t.Context()))
		_, err = s.Token()
		if c.ends {
			assert.NoError(t, err)
		} else {
			assert.ErrorAs(t, err, new(*CoolDownError))
		}
	})
}

func TestProcessesDoNotAllReturnAtOnceAfterRetryAfter(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	bubbles(t, map[string]struct {
		status int
		header string
		wait   time.Duration
	}{
		"503 for 30 s": {503, "30", 30 * time.Second},
		"429 for 30 s": {429, "30", 30 * time.Second},
		"4 s":          {503, "4", 4 * time.Second}, // the grant itself waits
		"20 minutes":   {503, "1200", 20 * time.Minute},
	}, func(t *testing.T, c struct {
		status int
		header string
		wait   time.Duration
	}) {
		const processes = 120
		p := proxyOf(t)
		p.on(replies(c.status, "", "Retry-After", c.header))
		began := time.Now()
		var all sync.WaitGroup
		back := make([]time.Duration, processes)
		for i := range processes {
			s := p.source(t)
			all.Go(func() {
				for {
					if _, err := s.Token(); err == nil {
						back[i] = time.Since(began)
						return
					}
					time.Sleep(c.wait / 400)
				}
			})
		}
		time.Sleep(time.Millisecond)
		require.Len(t, p.grants(), processes)
		p.on(nil)
		all.Wait()
		assert.Len(t, p.grants(), 2*processes)
		slices.Sort(back)
		assert.GreaterOrEqual(t, back[0], c.wait)
		assert.Less(t, back[processes-1], c.wait*5/4+c.wait/100+firstBackOff)
		for i := range processes * 3 / 4 {
			require.Greater(t, back[i+processes/4]-back[i], c.wait/40, "no quarter of them returns at once")
		}
	})
}

// A grant takes longer than the other processes wait for the lock.
func TestTokensStayAliveIfGrantsOutlastTheWaitForTheLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t, moovtest.WithReuseDetection(), moovtest.WithLatency(3*time.Second), moovtest.WithLifetime(2*time.Minute))
		cache := WithCache(newLockingCache())
		var sources []*TokenSource
		for range 6 {
			sources = append(sources, p.source(t, cache))
		}
		for range 300 {
			for _, tok := range together(t, sources) {
				require.True(t, p.Alive(tok.AccessToken))
			}
			time.Sleep(5 * time.Second)
		}
		assert.NotEmpty(t, p.refreshTokens())
		p.assertNoneSentTwice(t)
	})
}

// A Redis that has become read-only keeps the entry with a refresh token that
// the running process has already used up.
func TestTokensStayAliveIfTheCacheRefusesWrites(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func(n int) bool{ // reports whether the nth Put fails
		"every Put": func(int) bool { return true },
		"the Put that marks the refresh token as sent": func(n int) bool { return n == 1 },
		"the Put of the new token":                     func(n int) bool { return n == 2 },
		"every second Put":                             func(n int) bool { return n%2 == 0 },
		"every second Put, from the first on":          func(n int) bool { return n%2 == 1 },
		"the first seven Puts":                         func(n int) bool { return n < 8 },
	}, func(t *testing.T, failing func(int) bool) {
		p := proxyOf(t, moovtest.WithReuseDetection())
		locking, puts, on := newLockingCache(), 0, false
		cache := WithCache(fakeCache{
			get: func(ctx context.Context) ([]byte, error) { return locking.Get(ctx, "") },
			put: func(ctx context.Context, data []byte) error {
				if puts++; on && failing(puts) {
					return errors.New("READONLY You can't write against a read only replica")
				}
				return locking.Put(ctx, "", data)
			},
			remove: func(ctx context.Context) error { return locking.Delete(ctx, "") },
			lock:   func(ctx context.Context) (func(), error) { return locking.Lock(ctx, "") },
		})
		running := p.source(t, cache)
		token(t, running)
		on, puts = true, 0
		for range 60 {
			require.True(t, p.Alive(token(t, running).AccessToken))
			require.True(t, p.Alive(token(t, p.source(t, cache)).AccessToken), "the token of a new process is alive")
			require.True(t, p.Alive(token(t, running).AccessToken))
			time.Sleep(4 * time.Minute)
		}
		p.assertNoneSentTwice(t)
	})
}

// Without the lock, the source cannot know whether another process has sent the
// refresh token.
func TestRefreshTokenIsNotSentWithoutTheLock(t *testing.T) {
	t.Parallel()
	failed := errors.New("connection refused")
	bubbles(t, map[string]func(cache *lockingCache) Cache{
		"another process holds it": func(cache *lockingCache) Cache { cache.held <- struct{}{}; return cache },
		"the cache fails": func(*lockingCache) Cache {
			return fakeCache{
				get:  func(context.Context) ([]byte, error) { return nil, failed },
				put:  func(context.Context, []byte) error { return failed },
				lock: func(context.Context) (func(), error) { return nil, failed },
			}
		},
	}, func(t *testing.T, breakIt func(*lockingCache) Cache) {
		p, cache := proxyOf(t), newLockingCache()
		token(t, p.source(t, WithCache(cache)))
		time.Sleep(time.Hour)
		p.serves(t, p.source(t, WithCache(breakIt(cache))), time.Hour)
		assert.NotContains(t, p.grants(), refresh)
	})
}

// requestToken calls RequestToken with the credentials, base URL and client
// that sources of p have.
func (p *proxy) requestToken(ctx context.Context, opts ...Option) (*oauth2.Token, error) {
	return RequestToken(ctx, credentialsOf(p.Server), append([]Option{WithBaseURL(p.URL), p.client()}, opts...)...)
}

func TestRequestTokenWithScopesUsesTheClientCredentials(t *testing.T) {
	t.Parallel()
	server, cache := onLoopback(t), new(memoryCache)
	for n := range 2 {
		tok, err := RequestToken(t.Context(), credentialsOf(server), WithBaseURL(server.URL), WithScopes(pingScope, "/fed.read"), WithCache(cache))
		require.NoError(t, err)
		assert.True(t, server.Alive(tok.AccessToken))
		assert.True(t, server.Alive(tok.RefreshToken))
		assert.Equal(t, "Bearer", tok.TokenType)
		assert.InDelta(t, 900, tok.ExpiresIn, 1)
		assert.WithinDuration(t, time.Now().Add(15*time.Minute), tok.Expiry, time.Minute)
		require.Len(t, server.TokenRequests(), n+1, "nothing is kept")
		r := server.TokenRequests()[n]
		assert.Equal(t, url.Values{"grant_type": {cc}, "scope": {"/ping.read /fed.read"}}, r.Form)
		assert.Equal(t, server.ClientID, r.ClientID)
	}
	assert.Len(t, server.AccessTokens(), 2)
	assert.Empty(t, cache.entries)
}

func TestRequestTokenWithARefreshTokenRefreshes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		saved := token(t, p.source(t))
		tok, err := p.requestToken(t.Context(), WithToken(saved))
		require.NoError(t, err)
		assert.True(t, p.Alive(tok.AccessToken))
		assert.True(t, p.Alive(tok.RefreshToken))
		assert.NotEqual(t, saved.AccessToken, tok.AccessToken)
		assert.Equal(t, url.Values{"grant_type": {refresh}, "refresh_token": {saved.RefreshToken}}, p.sent[1])

		p.on(replies(200, `{"access_token":"x"}`))
		tok, err = p.requestToken(t.Context(), WithToken(&oauth2.Token{RefreshToken: "saved"}))
		require.NoError(t, err)
		assert.Equal(t, "saved", tok.RefreshToken, "the refresh token stays valid (RFC 6749 §6)")
	})
}

func TestRequestTokenSaysWhatTheServerGranted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		p := proxyOf(t)
		p.on(granting(&n, "/fed.read"))
		tok, err := p.requestToken(t.Context(), WithScopes("/fed.read", "/ping.read"))
		require.NoError(t, err)
		assert.Equal(t, "/fed.read", tok.Extra("scope"))
		assert.Equal(t, []string{cc}, p.grants())
	})
}

func TestRequestTokenChecksItsArguments(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		for name, c := range map[string]struct {
			opts []Option
			want string
		}{
			"no options":           {nil, "either WithScopes"},
			"no scopes":            {[]Option{WithScopes()}, "either WithScopes"},
			"both":                 {[]Option{WithScopes(pingScope), WithToken(&oauth2.Token{RefreshToken: "r"})}, "not both"},
			"an access token only": {[]Option{WithToken(&oauth2.Token{AccessToken: "a"})}, "a refresh token"},
			"a wrong option":       {[]Option{WithScopes(pingScope), WithTimeout(0)}, "WithTimeout"},
		} {
			_, err := p.requestToken(t.Context(), c.opts...)
			assert.ErrorContains(t, err, c.want, name)
		}
		_, err := RequestToken(t.Context(), Credentials{}, WithScopes(pingScope))
		assert.ErrorContains(t, err, "Credentials.ClientID")
		assert.Empty(t, p.grants())
	})
}

func TestRequestTokenRetriesTemporaryFailures(t *testing.T) {
	t.Parallel()
	for kind, option := range map[string]Option{cc: WithScopes(pingScope), refresh: WithToken(&oauth2.Token{RefreshToken: "saved"})} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			bubbles(t, map[string]struct {
				fails reaction
				want  int
			}{
				"503": {replies(503, ""), 3}, "429": {replies(429, ""), 3}, "no connection": {refusesToConnect, 3}, "a page": {unusable["a page"], 3},
				"401": {replies(401, ""), 1}, "422": {replies(422, ""), 1}, "silence": {neverAnswers, 1},
			}, func(t *testing.T, c struct {
				fails reaction
				want  int
			}) {
				p := proxyOf(t)
				p.on(c.fails)
				for n := range 3 { // RequestToken has no cool-down
					began := time.Now()
					_, err := p.requestToken(t.Context(), option, WithTimeout(7*time.Second))
					require.Error(t, err)
					require.NotErrorAs(t, err, new(*CoolDownError))
					assert.Equal(t, slices.Repeat([]string{kind}, (n+1)*c.want), p.grants())
					assert.LessOrEqual(t, time.Since(began), 7*time.Second)
					assert.NotContains(t, err.Error(), "saved")
				}
			})
		})
	}
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			p.on(nil)
			return replies(503, "")(r, pass)
		})
		_, err := p.requestToken(t.Context(), WithScopes(pingScope))
		require.NoError(t, err)
		assert.Len(t, p.grants(), 2)

		p.on(replies(403, `{"error":"x"}`, "X-Request-Id", "abc"))
		_, err = p.requestToken(t.Context(), WithScopes(pingScope))
		var refused *Error
		require.ErrorAs(t, err, &refused)
		assert.Equal(t, []any{opToken, cc, 403, "x", "abc"}, []any{refused.Op, refused.GrantType, refused.StatusCode, refused.Code, refused.RequestID})
	})
}

func TestRequestTokenEndsWithItsContext(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{
		"during an attempt":    neverAnswers,
		"between two attempts": replies(503, "", "Retry-After", "20"),
	}, func(t *testing.T, fails reaction) {
		p := proxyOf(t)
		p.on(fails)
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		_, err := p.requestToken(ctx, WithScopes(pingScope))
		assert.ErrorIs(t, err, context.Canceled)
		assert.Equal(t, time.Second, time.Since(began))
		assert.Len(t, p.grants(), 1)
	})
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		_, err := p.requestToken(ctx, WithScopes(pingScope))
		assert.ErrorIs(t, err, context.Canceled)
		assert.Empty(t, p.Requests())
	})
}

func TestRequestTokenUsesItsContextsValues(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		p := proxyOf(t)
		var seen any
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			seen = r.Context().Value(key{})
			return pass(r)
		})
		_, err := p.requestToken(context.WithValue(t.Context(), key{}, "trace"), WithScopes(pingScope))
		require.NoError(t, err)
		assert.Equal(t, "trace", seen)
	})
}

// turns is a Limiter whose Wait takes a second.
type turns struct{ refused []time.Duration }

func (l *turns) Wait(ctx context.Context) error { return sleep(ctx, time.Second) }

func (l *turns) Refused(retryAfter time.Duration) { l.refused = append(l.refused, retryAfter) }

func TestRequestTokenWaitsForTheLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p, limiter := proxyOf(t), new(turns)
		n := 0
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			if n++; n <= 5 {
				return replies(429, "", "Retry-After", "10")(r, pass)
			}
			return pass(r)
		})
		began := time.Now()
		_, err := p.requestToken(t.Context(), WithScopes(pingScope), WithLimiter(limiter), WithTimeout(time.Second))
		require.NoError(t, err, "the wait for the Limiter does not count")
		assert.Equal(t, 56*time.Second, time.Since(began))
		assert.Equal(t, slices.Repeat([]time.Duration{10 * time.Second}, 5), limiter.refused)

		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		_, err = p.requestToken(ctx, WithScopes(pingScope), WithLimiter(limiter))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Len(t, p.grants(), 6)
	})
}
