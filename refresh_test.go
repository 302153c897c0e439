package moovauth

// What a refresh may do to a source, and to a fleet: nothing blocks a source,
// and nothing kills a token in hand. The evidence is what the server saw.

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

// reaction answers a request, or lets it pass to the server.
type reaction func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error)

// proxy is between sources and their server. It reacts to token requests of some
// grant types, and remembers all of them.
type proxy struct {
	*moovtest.Server
	mu        sync.Mutex
	reactions map[string]reaction // by grant type
	sent      []url.Values
}

func proxyOf(t testing.TB, opts ...moovtest.Option) *proxy {
	return &proxy{Server: inMemory(t, opts...), reactions: make(map[string]reaction)}
}

// source is a source whose requests go through p.
func (p *proxy) source(t testing.TB, opts ...Option) *TokenSource {
	t.Helper()
	return sourceOf(t, p.Server, append([]Option{WithHTTPClient(&http.Client{Transport: p})}, opts...)...)
}

// on sets what happens to token requests of grantType; nil: they pass.
func (p *proxy) on(grantType string, do reaction) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.reactions[grantType] = do
}

func (p *proxy) RoundTrip(r *http.Request) (*http.Response, error) {
	pass := func() (*http.Response, error) { return p.Server.Transport().RoundTrip(r) }
	if r.URL.Path != tokenPath {
		return pass()
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
	p.sent = append(p.sent, form)
	do := p.reactions[form.Get("grant_type")]
	p.mu.Unlock()
	if do == nil {
		return pass()
	}
	return do(r, pass)
}

// grants are the grant types of all token requests.
func (p *proxy) grants() (types []string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, form := range p.sent {
		types = append(types, form.Get("grant_type"))
	}
	return types
}

// refreshTokens are those that were sent, and how often.
func (p *proxy) refreshTokens() map[string]int {
	p.mu.Lock()
	defer p.mu.Unlock()
	times := make(map[string]int)
	for _, form := range p.sent {
		if refresh := form.Get("refresh_token"); refresh != "" {
			times[refresh]++
		}
	}
	return times
}

// serves asks for a token each minute for d, and checks that it is alive.
func (p *proxy) serves(t *testing.T, s *TokenSource, d time.Duration) {
	t.Helper()
	for range d / time.Minute {
		require.True(t, p.Alive(token(t, s).AccessToken))
		time.Sleep(time.Minute)
	}
}

// replies answers by itself.
func replies(status int, body string, header ...string) reaction {
	return func(r *http.Request, _ func() (*http.Response, error)) (*http.Response, error) {
		resp := answer(r, status, strings.NewReader(body))
		for i := 0; i < len(header); i += 2 {
			resp.Header.Set(header[i], header[i+1])
		}
		return resp, nil
	}
}

// breaks fails without an answer.
func breaks(r *http.Request, _ func() (*http.Response, error)) (*http.Response, error) {
	return nil, errors.New("connection reset by peer")
}

// refusesToConnect is a port where nobody listens.
func refusesToConnect(r *http.Request, _ func() (*http.Response, error)) (*http.Response, error) {
	nobody := &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("connection refused")}
	}}
	return nobody.RoundTrip(r)
}

// neverAnswers is a server that goes silent.
func neverAnswers(r *http.Request, _ func() (*http.Response, error)) (*http.Response, error) {
	<-r.Context().Done()
	return nil, r.Context().Err()
}

// losses let the server act and then lose its reply, each at another place.
var losses = map[string]reaction{
	"before the status": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		return nil, io.ErrUnexpectedEOF
	},
	"after the header": cutAfter(0),
	"in mid-body":      cutAfter(20),
	"by the timeout": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		return neverAnswers(r, nil)
	},
	"by a RoundTripper that does not return": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		time.Sleep(time.Hour)
		return nil, errors.New("too late")
	},
	"to a gateway": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		return answer(r, 502, strings.NewReader("<html>")), nil
	},
	"to a gateway that waited": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		return answer(r, 504, strings.NewReader("<html>")), nil
	},
	"to a page of a captive portal": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		return answer(r, 200, strings.NewReader("<html>")), nil
	},
	"to a 408": func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		if _, err := pass(); err != nil {
			return nil, err
		}
		return answer(r, 408, http.NoBody), nil
	},
}

func cutAfter(n int) reaction {
	return func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
		resp, err := pass()
		if err != nil {
			return nil, err
		}
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			return nil, err
		}
		resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body[:n]), failingReader("connection reset by peer")))
		return resp, nil
	}
}

// bubbles runs f in a bubble for each name.
func bubbles[T any](t *testing.T, cases map[string]T, f func(t *testing.T, c T)) {
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(2 * time.Hour) // for RoundTrippers that do not return
				f(t, c)
			})
		})
	}
}

// caches are the caches that sources are run with.
var caches = map[string]func() []Option{
	"without a cache":          func() []Option { return nil },
	"with a cache":             func() []Option { return []Option{WithCache(new(memoryCache))} },
	"with a cache that locks":  func() []Option { return []Option{WithCache(newLockingCache())} },
	"with a cache that is off": func() []Option { return []Option{WithCache(brokenForGood())} },
}

func brokenForGood() Cache {
	failed := errors.New("connection refused")
	return fakeCache{
		get:    func(context.Context) ([]byte, error) { return nil, failed },
		put:    func(context.Context, []byte) error { return failed },
		remove: func(context.Context) error { return failed },
		lock:   func(context.Context) (func(), error) { return nil, failed },
	}
}

const (
	cc      = grantClientCredentials
	refresh = grantRefreshToken
)

// refusals are answers to a refresh grant which say that trying again is no use.
var refusals = map[string]reaction{
	"200 with an error": replies(200, `{"error":"invalid_request"}`),
	"301":               replies(301, "", "Location", "https://moov.test/elsewhere"),
	"307":               replies(307, "", "Location", "https://moov.test/elsewhere"),
	"304":               replies(304, ""),
	"400":               replies(400, `{"error":"unsupported_grant_type"}`),
	"401":               replies(401, ""),
	"403":               replies(403, "<html>"),
	"404":               replies(404, "404 page not found"),
	"405":               replies(405, ""),
	"409":               replies(409, `{}`),
	"410":               replies(410, ""),
	"413":               replies(413, ""),
	"422":               replies(422, `{"refresh_token":"is unknown"}`),
	"451":               replies(451, ""),
}

// deadRefreshTokens are answers which say that the refresh token is dead.
var deadRefreshTokens = map[string]reaction{
	"200 with invalid_grant": replies(200, `{"error":"invalid_grant"}`),
	"400 with invalid_grant": replies(400, `{"error":"invalid_grant"}`),
	"401 with invalid_grant": replies(401, `{"error":"invalid_grant"}`),
}

// useless are replies that succeed and hold no token that can be used.
var useless = map[string]reaction{
	"a page":                  replies(200, "<html>Welcome</html>", "Content-Type", "text/html"),
	"no members":              replies(200, `{}`),
	"nothing":                 replies(200, ""),
	"204":                     replies(204, ""),
	"null":                    replies(200, "null"),
	"a list":                  replies(200, "[]"),
	"an empty token":          replies(200, `{"access_token":""}`),
	"a token that is no text": replies(200, `{"access_token":1}`),
	"a token with a newline":  replies(200, `{"access_token":"a\nb"}`),
	"another token_type":      replies(200, `{"access_token":"x","token_type":"mac"}`),
	"half an object":          replies(200, `{"access_token":"x"`),
	"more than a mebibyte":    replies(200, `{"access_token":"x","more":"`+strings.Repeat("x", 1<<20)+`"}`),
}

// all joins maps whose keys differ.
func all(sets ...map[string]reaction) map[string]reaction {
	joined := make(map[string]reaction)
	for _, m := range sets {
		maps.Copy(joined, m)
	}
	return joined
}

func TestRefusedRefreshIsFollowedByClientCredentialsInTheSameFlight(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, all(refusals, deadRefreshTokens, useless), func(t *testing.T, refuse reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				p.on(refresh, refuse)
				token(t, s)
				time.Sleep(time.Hour)
				began := time.Now()
				second := token(t, s)
				assert.Zero(t, time.Since(began))
				assert.True(t, p.Alive(second.AccessToken))
				want := []string{cc, refresh, cc}
				if cache == "with a cache that is off" {
					want = []string{cc, cc} // nobody knows whether another process has sent it
				}
				assert.Equal(t, want, p.grants())

				time.Sleep(time.Hour)
				p.on(refresh, nil)
				require.True(t, p.Alive(token(t, s).AccessToken))
				for _, times := range p.refreshTokens() {
					assert.Equal(t, 1, times, "a refused refresh token is not sent again")
				}
			})
		})
	}
}

// A source that has a good token still goes on with client credentials at once:
// the refusal will not become another.
func TestRefusedRefreshInTheBackgroundIsFollowedByClientCredentials(t *testing.T) {
	t.Parallel()
	bubbles(t, all(refusals, deadRefreshTokens), func(t *testing.T, refuse reaction) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(refresh, refuse)
		time.Sleep(13 * time.Minute)
		require.Equal(t, first.AccessToken, token(t, s).AccessToken)
		synctest.Wait()
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{cc, refresh, cc}, p.grants())
	})
}

func TestRefusedRefreshDoesNotBlockARestartedProcess(t *testing.T) {
	t.Parallel()
	bubbles(t, all(refusals, deadRefreshTokens, useless), func(t *testing.T, refuse reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection())
		cache := WithCache(newLockingCache())
		token(t, p.source(t, cache))
		p.on(refresh, refuse)
		p.on(cc, replies(403, "")) // the first process meets both
		time.Sleep(time.Hour)
		_, err := p.source(t, cache).Token()
		require.Error(t, err)
		p.on(cc, nil)
		for range 3 {
			require.True(t, p.Alive(token(t, p.source(t, cache)).AccessToken))
			time.Sleep(time.Hour)
		}
		for _, times := range p.refreshTokens() {
			assert.Equal(t, 1, times)
		}
	})
}

// Only the server can say that a refresh token is dead.
func TestRefusedRefreshTokenIsKeptForRevokeUnlessItIsDead(t *testing.T) {
	t.Parallel()
	for name, refuse := range all(refusals, deadRefreshTokens, useless, losses) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				defer time.Sleep(2 * time.Hour) // for RoundTrippers that do not return
				p := proxyOf(t)
				s := p.source(t)
				first := token(t, s)
				p.on(refresh, refuse)
				time.Sleep(time.Hour)
				token(t, s)
				require.NoError(t, s.Revoke(t.Context()))
				_, dead := deadRefreshTokens[name]
				assert.Equal(t, !dead, slices.Contains(revoked(p.Server), "refresh_token="+first.RefreshToken))
				if losses[name] == nil {
					assert.Empty(t, slices.DeleteFunc(p.RefreshTokens(), func(r string) bool { return dead && r == first.RefreshToken }))
				}
			})
		})
	}
}

// It is down for refreshes alone, for as long as the test goes on.
func TestRefreshThatFailsForEverDoesNotBlockASource(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, map[string]reaction{
				"500": replies(500, ""), "501": replies(501, ""), "502": replies(502, "<html>"), "503": replies(503, ""),
				"504": replies(504, ""), "529": replies(529, ""), "408": replies(408, ""), "429": replies(429, ""),
				"no connection": refusesToConnect, "reset": breaks, "silence": neverAnswers,
				"a page": useless["a page"], "404": refusals["404"],
			}, func(t *testing.T, fails reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				p.on(refresh, fails)
				p.serves(t, s, 3*time.Hour)
				synctest.Wait()
				assert.LessOrEqual(t, len(p.grants()), 12*(3*maxAttempts+3), "some in each of 12 lifetimes")
			})
		})
	}
}

// The source has no good token, so it does not wait for the refresh to work.
func TestRefreshThatFailsIsFollowedByClientCredentialsOnceTheAttemptsAreUsedUp(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		fails reaction
		want  []string
	}{
		"500":           {replies(500, ""), []string{cc, refresh, refresh, refresh, cc}},
		"503":           {replies(503, ""), []string{cc, refresh, refresh, refresh, cc}},
		"429":           {replies(429, ""), []string{cc, refresh, refresh, refresh, cc}},
		"no connection": {refusesToConnect, []string{cc, refresh, refresh, refresh, cc}},
		"502":           {replies(502, ""), []string{cc, refresh, cc}},
		"504":           {replies(504, ""), []string{cc, refresh, cc}},
		"408":           {replies(408, ""), []string{cc, refresh, cc}},
		"reset":         {breaks, []string{cc, refresh, cc}},
		"silence":       {neverAnswers, []string{cc, refresh, cc}},
	}, func(t *testing.T, c struct {
		fails reaction
		want  []string
	}) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		time.Sleep(time.Hour)
		p.on(refresh, c.fails)
		assert.True(t, p.Alive(token(t, s).AccessToken))
		assert.Equal(t, c.want, p.grants())
		require.NoError(t, s.Revoke(t.Context()))
		assert.False(t, p.Alive(first.RefreshToken), "it is kept for Revoke")
	})
}

// While a good token is in hand, the refresh token is worth waiting for. With a
// lock, its entry has to be put back as not sent.
func TestRefreshThatFailsForAWhileIsTriedAgainWhileATokenIsInHand(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		if cache == "with a cache that is off" {
			continue // it sends no refresh token
		}
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			testRefreshIsTriedAgain(t, opts)
		})
	}
}

func testRefreshIsTriedAgain(t *testing.T, opts func() []Option) {
	bubbles(t, map[string]reaction{"503": replies(503, ""), "500": replies(500, ""), "429": replies(429, ""), "no connection": refusesToConnect},
		func(t *testing.T, fails reaction) {
			p := proxyOf(t)
			s := p.source(t, opts()...)
			first := token(t, s)
			time.Sleep(13 * time.Minute)
			p.on(refresh, fails)
			require.Equal(t, first.AccessToken, token(t, s).AccessToken)
			synctest.Wait()
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, []string{cc, refresh, refresh, refresh}, p.grants())
			p.on(refresh, nil)
			token(t, s)
			synctest.Wait()
			assert.Equal(t, []string{cc, refresh, refresh, refresh, refresh}, p.grants())
			assert.Len(t, p.refreshTokens(), 1, "the same one")
			assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
		})
}

func TestServerThatWantsToBeLeftAloneAfterARefreshGetsNoClientCredentials(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{
		"503, an hour":   replies(503, "", "Retry-After", "3600"),
		"503, a minute":  replies(503, "", "Retry-After", "60"),
		"503, a second":  replies(503, "", "Retry-After", "1"), // fits into the grant
		"429":            replies(429, "", "Retry-After", "45"),
		"500":            replies(500, "", "Retry-After", "45"),
		"502":            replies(502, "", "Retry-After", "45"),
		"504":            replies(504, "", "Retry-After", "45"),
		"408":            replies(408, "", "Retry-After", "45"),
		"X-Retry-In":     replies(503, "", "X-Retry-In", "45s"),
		"a date far off": replies(503, "", "Retry-After", "Sat, 01 Jan 2028 00:00:00 GMT", "Date", "Fri, 31 Dec 2027 00:00:00 GMT"),
	}, func(t *testing.T, fails reaction) {
		p := proxyOf(t)
		s := p.source(t)
		token(t, s)
		time.Sleep(time.Hour)
		p.on(refresh, fails)
		_, err := s.Token()
		var refused *Error
		require.ErrorAs(t, err, &refused)
		require.Positive(t, refused.RetryAfter)
		assert.NotContains(t, p.grants()[1:], cc)
		asked := min(refused.RetryAfter, time.Hour)
		requests := len(p.grants())
		for began := time.Now(); time.Since(began) < asked-time.Millisecond; time.Sleep(asked / 100) {
			_, err = s.Token()
			require.ErrorAs(t, err, new(*CoolDownError))
		}
		assert.Len(t, p.grants(), requests)
		p.on(refresh, nil)
		time.Sleep(asked/4 + time.Second)
		assert.True(t, p.Alive(token(t, s).AccessToken))
	})
}

// Without scopes there is no other way to a token.
// The same code would make the next request.
func TestCodeThatPanicsInARefreshFailsItsGrantAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		tok := token(t, s)
		p.on(refresh, func(*http.Request, func() (*http.Response, error)) (*http.Response, error) { panic("out of order") })
		time.Sleep(time.Until(tok.Expiry))
		_, err := s.Token()
		assert.ErrorContains(t, err, "out of order")
		assert.Equal(t, []string{cc, refresh}, p.grants())
		token(t, s)
		assert.Equal(t, []string{cc, refresh, cc}, p.grants())
	})
}

func TestRefreshTokenAloneIsSentAgainAfterAnyTemporaryFailure(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{
		"502": replies(502, ""), "503": replies(503, ""), "504": replies(504, ""), "408": replies(408, ""),
		"reset": breaks, "no connection": refusesToConnect, "a page": useless["a page"], "silence": neverAnswers,
	}, func(t *testing.T, fails reaction) {
		p := proxyOf(t)
		saved := token(t, p.source(t))
		s, err := NewTokenSource(credentialsOf(p.Server), WithBaseURL(p.URL), WithHTTPClient(&http.Client{Transport: p}),
			WithToken(&oauth2.Token{RefreshToken: saved.RefreshToken}))
		require.NoError(t, err)
		p.on(refresh, fails)
		_, err = s.Token()
		require.Error(t, err)
		assert.Equal(t, []string{cc, refresh, refresh, refresh}, p.grants())
		time.Sleep(time.Minute)
		p.on(refresh, nil)
		assert.True(t, p.Alive(token(t, s).AccessToken))
		assert.Equal(t, map[string]int{saved.RefreshToken: 4}, p.refreshTokens())
	})
}

// The server has used the refresh token up, and would revoke the whole family if
// it came again.
func TestLostReplyToARefreshKillsNothing(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, losses, func(t *testing.T, lose reaction) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				first := token(t, s)

				// In the background, while client credentials are down.
				p.on(refresh, lose)
				p.on(cc, replies(503, ""))
				time.Sleep(13 * time.Minute)
				for deadline := first.Expiry.Add(-6 * time.Second); time.Now().Before(deadline); time.Sleep(time.Second) {
					require.Equal(t, first.AccessToken, token(t, s).AccessToken)
					require.True(t, p.Alive(first.AccessToken), "the token in hand lives on")
				}
				p.on(cc, nil)
				p.serves(t, s, time.Hour) // each refresh is lost

				p.on(refresh, nil)
				p.serves(t, s, time.Hour)
				for _, times := range p.refreshTokens() {
					assert.Equal(t, 1, times, "no refresh token is sent twice")
				}
			})
		})
	}
}

func TestLostReplyToARefreshIsFollowedByClientCredentialsInTheSameFlight(t *testing.T) {
	t.Parallel()
	bubbles(t, losses, func(t *testing.T, lose reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection())
		s := p.source(t)
		token(t, s)
		p.on(refresh, lose)
		time.Sleep(time.Hour)
		assert.True(t, p.Alive(token(t, s).AccessToken))
		assert.Equal(t, []string{cc, refresh, cc}, p.grants())
	})
}

// moovtest's own way to lose a reply.
func TestLostReplyOnTheWireKillsNothing(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithReuseDetection())
	s := sourceOf(t, server)
	first := token(t, s)
	server.Enqueue(moovtest.Answer{Lost: true})
	var ahead atomic.Int64
	clock := s.endpoint.clock
	s.endpoint.clock = func() instant { return clock().add(time.Duration(ahead.Load())) }
	ahead.Store(int64(time.Hour))
	second := token(t, s)
	assert.True(t, server.Alive(first.AccessToken))
	assert.True(t, server.Alive(second.AccessToken))
	assert.Equal(t, []string{cc, refresh, cc}, grantTypes(server))
}

func TestRestartAfterALostReplyKillsNothing(t *testing.T) {
	t.Parallel()
	bubbles(t, losses, func(t *testing.T, lose reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection(), moovtest.WithLifetime(20*time.Minute))
		cache := WithCache(newLockingCache())
		first := p.source(t, cache)
		inHand := token(t, first)
		time.Sleep(17 * time.Minute)
		p.on(refresh, lose)
		p.on(cc, replies(503, ""))
		require.Equal(t, inHand.AccessToken, token(t, first).AccessToken)
		time.Sleep(time.Minute)

		p.on(refresh, nil)
		p.on(cc, nil)
		for range 5 {
			require.True(t, p.Alive(token(t, p.source(t, cache)).AccessToken))
			require.True(t, p.Alive(token(t, first).AccessToken))
			time.Sleep(time.Second)
		}
		for _, times := range p.refreshTokens() {
			assert.Equal(t, 1, times)
		}
	})
}

// frozen makes a source's clocks jump, as they have when its process goes on
// after it was stopped.
func frozen(s *TokenSource) (jump func(time.Duration)) {
	var ahead atomic.Int64
	clock := s.endpoint.clock
	s.endpoint.clock = func() instant { return clock().add(time.Duration(ahead.Load())) }
	return func(d time.Duration) { ahead.Add(int64(d)) }
}

// The process stops in mid-refresh and goes on when the token has expired and
// the flight's time is up. The endpoint is up.
func TestProcessThatWasStoppedDuringABackgroundRefreshServesItsFirstCall(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		if cache == "with a cache that is off" {
			continue // it sends no refresh token
		}
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			bubbles(t, map[string]struct{ joins, after bool }{
				"a caller that comes during the flight": {joins: true},
				"a caller that comes after it":          {after: true},
				"both":                                  {true, true},
			}, func(t *testing.T, c struct{ joins, after bool }) {
				p := proxyOf(t, moovtest.WithReuseDetection())
				s := p.source(t, opts()...)
				first := token(t, s)
				jump := frozen(s)
				stopped := make(chan struct{})
				p.on(refresh, func(r *http.Request, _ func() (*http.Response, error)) (*http.Response, error) {
					<-stopped
					jump(time.Hour)
					time.Sleep(time.Millisecond) // callers come first
					return nil, context.DeadlineExceeded
				})
				time.Sleep(13 * time.Minute)
				require.Equal(t, first.AccessToken, token(t, s).AccessToken)
				synctest.Wait()
				close(stopped)
				time.Sleep(time.Microsecond)
				began := time.Now()
				if c.joins {
					var callers sync.WaitGroup
					for range 50 {
						callers.Go(func() {
							tok, err := s.Token()
							assert.NoError(t, err)
							assert.True(t, err != nil || p.Alive(tok.AccessToken))
						})
					}
					callers.Wait()
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

// The token expires while its refresh is under way, and callers join it.
func TestCallersThatJoinABackgroundRefreshInVainStartAGrantOfTheirOwn(t *testing.T) {
	t.Parallel()
	bubbles(t, all(refusals, deadRefreshTokens, useless, losses, map[string]reaction{
		"503":                replies(503, ""),
		"503, Retry-After":   replies(503, "", "Retry-After", "3600"),
		"429, Retry-After":   replies(429, "", "Retry-After", "3600"),
		"a reset":            breaks,
		"no connection":      refusesToConnect,
		"silence":            neverAnswers,
		"a panic":            func(*http.Request, func() (*http.Response, error)) (*http.Response, error) { panic("out of order") },
		"neither of the two": func(*http.Request, func() (*http.Response, error)) (*http.Response, error) { return nil, nil },
		"a canceled context": func(*http.Request, func() (*http.Response, error)) (*http.Response, error) {
			return nil, context.Canceled
		},
		"an expired deadline": func(*http.Request, func() (*http.Response, error)) (*http.Response, error) {
			return nil, context.DeadlineExceeded
		},
	}), func(t *testing.T, fails reaction) {
		p := proxyOf(t, moovtest.WithReuseDetection())
		s := p.source(t)
		first := token(t, s)
		inBackground := func() bool { return s.running.Load() != nil && s.running.Load().background }
		p.on(refresh, func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
			if !inBackground() {
				return pass()
			}
			time.Sleep(time.Until(first.Expiry.Add(-time.Second))) // until after the hard expiry
			return fails(r, pass)
		})
		p.on(cc, func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
			if !inBackground() {
				return pass()
			}
			return answer(r, 503, http.NoBody), nil
		})
		time.Sleep(time.Until(first.Expiry.Add(-6 * time.Second)))
		require.Equal(t, first.AccessToken, token(t, s).AccessToken)
		time.Sleep(2 * time.Second)
		require.Zero(t, s.goodFor())
		var callers sync.WaitGroup
		for range 20 {
			callers.Go(func() {
				tok, err := s.Token()
				assert.NoError(t, err)
				assert.True(t, err != nil || p.Alive(tok.AccessToken))
			})
		}
		callers.Wait()
		assert.GreaterOrEqual(t, len(p.grants()), 3)
		assert.LessOrEqual(t, len(p.grants()), 1+2*maxAttempts+2, "one grant for all")
	})
}

// At hard expiry one attempt is made, whatever the server asked for.
func TestWaitThatABackgroundRefreshWasToldEndsWithTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(refresh, replies(503, "", "Retry-After", "3600"))
		p.on(cc, replies(503, "", "Retry-After", "3600"))
		time.Sleep(13 * time.Minute)
		for range 100 {
			require.Equal(t, first.AccessToken, token(t, s).AccessToken)
			time.Sleep(time.Second)
		}
		require.Equal(t, []string{cc, refresh}, p.grants(), "the server is left alone while the token is good")
		time.Sleep(time.Until(first.Expiry))
		for range 100 {
			_, err := s.Token()
			require.Error(t, err)
			time.Sleep(time.Second)
		}
		assert.Equal(t, []string{cc, refresh, refresh}, p.grants(), "one attempt")
	})
}

func TestOneSilentConnectionDoesNotUseUpAGrant(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct {
		timeout, want time.Duration // 0: there is no time for a second attempt
		silent        reaction
	}{
		"30 s":                   {30 * time.Second, 10 * time.Second, neverAnswers},
		"a minute":               {time.Minute, 20 * time.Second, neverAnswers},
		"12 s":                   {12 * time.Second, 5 * time.Second, neverAnswers},
		"6 s":                    {6 * time.Second, 5 * time.Second, neverAnswers},
		"4 s":                    {4 * time.Second, 0, neverAnswers},
		"silence after a header": {30 * time.Second, 10 * time.Second, silentAfterHeader},
		"a RoundTripper that is deaf": {30 * time.Second, 10*time.Second + heed, func(*http.Request, func() (*http.Response, error)) (*http.Response, error) {
			time.Sleep(time.Hour)
			return nil, errors.New("late")
		}},
	}, func(t *testing.T, c struct {
		timeout, want time.Duration
		silent        reaction
	}) {
		p := proxyOf(t)
		s := p.source(t, WithTimeout(c.timeout))
		p.on(cc, func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
			if len(p.grants()) == 1 {
				return c.silent(r, pass)
			}
			return pass()
		})
		began := time.Now()
		tok, err := s.Token()
		if c.want == 0 {
			assert.ErrorContains(t, err, "not done within 4s (see WithTimeout)")
			assert.Equal(t, c.timeout, time.Since(began))
			assert.Len(t, p.grants(), 1)
			return
		}
		require.NoError(t, err)
		assert.True(t, p.Alive(tok.AccessToken))
		assert.Len(t, p.grants(), 2)
		assert.GreaterOrEqual(t, time.Since(began), c.want)
		assert.LessOrEqual(t, time.Since(began), c.want+firstBackOff)
	})
}

// silentAfterHeader has a header and nothing more.
func silentAfterHeader(r *http.Request, _ func() (*http.Response, error)) (*http.Response, error) {
	reader, writer := io.Pipe()
	context.AfterFunc(r.Context(), func() { _ = writer.CloseWithError(r.Context().Err()) })
	return answer(r, 200, reader), nil
}

func TestSilenceForEverEndsAfterThreeAttemptsWithinTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		p.on(cc, neverAnswers)
		began := time.Now()
		_, err := p.source(t).Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 30*time.Second, time.Since(began))
		assert.Len(t, p.grants(), 3)
	})
}

// granting answers with tokens of its own that have scope.
func granting(n *int, scope string) reaction {
	return func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
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
		"one is missing":      {"/fed.read", true},
		"the other is":        {"/ping.read", true},
		"another":             {"/cards.read", true},
		"of one letter":       {"/fed.read /ping.rea", true},
		"of one case":         {"/fed.read /Ping.read", true},
		"all":                 {"/fed.read /ping.read", false},
		"in another order":    {"/ping.read /fed.read", false},
		"more than was asked": {"/cards.read /ping.read /fed.read", false},
		"one twice":           {"/fed.read /ping.read /fed.read", false},
		"with white space":    {"  /fed.read   /ping.read ", false},
		"it does not say":     {"", false},
	}, func(t *testing.T, c struct {
		scope string
		more  bool
	}) {
		n := 0
		p := proxyOf(t)
		p.on(refresh, granting(&n, c.scope))
		p.on(cc, granting(&n, "/ping.read /fed.read"))
		saved := &oauth2.Token{AccessToken: "saved", RefreshToken: "saved-refresh", Expiry: time.Now().Add(-time.Hour)}
		s := p.source(t, WithScopes("/fed.read", "/ping.read"), WithToken(saved))
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
		for _, token := range []string{"refresh_token=refresh-1", "access_token=access-1", "refresh_token=refresh-2", "access_token=access-2"} {
			assert.Contains(t, revoked(p.Server), token, "the narrow token is revoked, too")
		}
	})
}

// A day with moovtest, whose refreshes keep the scopes.
func TestSavedTokenWithTooFewScopesServesAllOfThem(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := proxyOf(t)
				p.Handle("GET /fed", "/fed.read", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
				saved := token(t, p.source(t, WithScopes("/fed.read")))
				s := p.source(t, append(opts(), WithScopes("/fed.read", pingScope), WithToken(saved))...)
				time.Sleep(time.Until(saved.Expiry))
				for range 288 {
					resp, err := s.Client().Get(p.URL + "/ping")
					require.NoError(t, err)
					require.Equal(t, 200, resp.StatusCode)
					time.Sleep(5 * time.Minute)
				}
				_ = s.Revoke(t.Context()) // it complains of a cache that is off
				assert.Empty(t, p.AccessTokens())
			})
		})
	}
}

func TestScopeThatIsNeverGrantedIsLoggedOnceByName(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		p := proxyOf(t)
		p.on(refresh, granting(&n, "/fed.read"))
		p.on(cc, granting(&n, "/fed.read"))
		out := new(page)
		s := p.source(t, WithScopes("/fed.read", "/ping.read", "/cards.read"), WithLogger(slog.New(slog.NewTextHandler(out, nil))))
		for range 24 * 6 {
			token(t, s)
			time.Sleep(10 * time.Minute)
		}
		synctest.Wait()
		assert.Equal(t, 1, strings.Count(out.text.String(), "the server did not grant all scopes"))
		assert.Contains(t, out.text.String(), `missing="[/ping.read /cards.read]"`)
		assert.Equal(t, 1, strings.Count(out.text.String(), "level="))
		grants := p.grants()
		assert.Equal(t, cc, grants[0])
		assert.NotContains(t, grants[1:], cc, "client credentials brought no more the last time")
		assert.Greater(t, len(grants), 70)

		p.on(cc, granting(&n, "/fed.read /ping.read"))
		s.Invalidate(token(t, s).AccessToken)
		p.on(refresh, replies(400, ""))
		token(t, s)
		assert.Contains(t, out.text.String(), "missing=[/cards.read]", "another one is news")
	})
}

func TestNarrowTokenServesIfClientCredentialsFail(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{"503": replies(503, ""), "403": replies(403, ""), "reset": breaks, "a page": useless["a page"], "429": replies(429, "", "Retry-After", "3600")},
		func(t *testing.T, fails reaction) {
			n := 0
			p := proxyOf(t)
			p.on(refresh, granting(&n, "/fed.read"))
			p.on(cc, fails)
			out := new(page)
			s := p.source(t, WithScopes("/fed.read", "/ping.read"), WithToken(&oauth2.Token{RefreshToken: "saved"}),
				WithLogger(slog.New(slog.NewTextHandler(out, nil))))
			assert.Equal(t, "access-1", token(t, s).AccessToken)
			assert.Contains(t, out.text.String(), "going on with a token that lacks a scope")
			assert.Equal(t, "access-1", token(t, s).AccessToken)
			time.Sleep(time.Hour)
			p.on(cc, granting(&n, "/fed.read /ping.read"))
			assert.Equal(t, "access-3", token(t, s).AccessToken, "it is tried again at the next refresh")
			assert.Nil(t, s.memory.load().cooling)
		})
}

// lifeless are values of expires_in that do not say how long a token lives.
var lifeless = []string{"absent", `0`, `-1`, `0.4`, `"0"`, `"soon"`, `null`, `{}`, `[]`, `true`, `1e999`, `"NaN"`, `1000000001`, `"1262304000"`}

func sameAgain(expiresIn string) string {
	if expiresIn == "absent" {
		return `{"access_token":"same","refresh_token":"refresh"}`
	}
	return `{"access_token":"same","refresh_token":"refresh","expires_in":` + expiresIn + `}`
}

func TestTokenInHandIsNotProlongedIfTheServerDoesNotSayHowLongItLives(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			for _, expiresIn := range lifeless {
				t.Run(expiresIn, func(t *testing.T) {
					t.Parallel()
					synctest.Test(t, func(t *testing.T) {
						time.Sleep(30 * 365 * 24 * time.Hour) // a bubble begins in 2000
						p := proxyOf(t)
						p.on(cc, replies(200, `{"access_token":"same","refresh_token":"refresh","expires_in":900}`))
						with := opts()
						s := p.source(t, with...)
						first := token(t, s)
						again := replies(200, sameAgain(expiresIn))
						step := 10 * time.Second
						if testing.Short() {
							step = 2 * time.Minute
						}
						p.on(cc, again)
						p.on(refresh, again)
						for end := first.Expiry.Add(4 * time.Hour); time.Now().Before(end); time.Sleep(step) {
							tok, err := s.Token()
							if time.Until(first.Expiry) >= maxLeeway {
								require.NoError(t, err)
								require.Equal(t, first.Expiry, tok.Expiry)
								continue
							}
							require.Error(t, err, "the token is dead")
						}
						assert.Less(t, len(p.grants()), 4*60*2*2+40, "the server is left alone in between")
						_, err := p.source(t, with...).Token()
						if with != nil && cache != "with a cache that is off" {
							assert.Error(t, err, "a new process finds it in the cache, dead")
						}

						assert.LessOrEqual(t, len(s.memory.past().former), 2, "it is remembered once")

						p.on(refresh, nil)
						p.on(cc, nil)
						time.Sleep(time.Minute)
						assert.True(t, p.Alive(token(t, s).AccessToken), "the source recovers")
					})
				})
			}
		})
	}
}

// Some servers hand out the same token until it expires, and say how long that is.
func TestTokenInHandIsProlongedIfTheServerSaysSo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		again := replies(200, `{"access_token":"same","refresh_token":"refresh","expires_in":900}`)
		p.on(cc, again)
		p.on(refresh, again)
		s := p.source(t)
		for range 24 * 60 {
			assert.Equal(t, "same", token(t, s).AccessToken)
			time.Sleep(time.Minute)
		}
		synctest.Wait()
		assert.Empty(t, formerTokens(s.memory))
	})
}

func TestSavedTokenThatTheServerHandsOutAgainIsNotProlonged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		p.on(cc, replies(200, sameAgain("0")))
		p.on(refresh, replies(200, sameAgain("0")))
		s := p.source(t, WithToken(&oauth2.Token{AccessToken: "same", RefreshToken: "refresh", Expiry: time.Now().Add(-time.Second)}))
		_, err := s.Token()
		assert.ErrorContains(t, err, "the same token once more")
	})
}

func TestThreeDaysAreTakenAsTheyAre(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func() string{
		"seconds":          func() string { return "259200" },
		"seconds as text":  func() string { return `"259200"` },
		"a timestamp":      func() string { return fmt.Sprint(time.Now().Add(72 * time.Hour).Unix()) },
		"a text timestamp": func() string { return fmt.Sprintf(`"%d"`, time.Now().Add(72*time.Hour).Unix()) },
	}, func(t *testing.T, expiresIn func() string) {
		time.Sleep(30 * 365 * 24 * time.Hour) // a bubble begins in 2000
		n := 0
		p := proxyOf(t)
		reply := func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
			n++
			return replies(200, fmt.Sprintf(`{"access_token":"access-%d","refresh_token":"refresh-%d","expires_in":%s}`, n, n, expiresIn()))(r, pass)
		}
		p.on(cc, reply)
		p.on(refresh, reply)
		out := new(page)
		s := p.source(t, WithLogger(slog.New(slog.NewTextHandler(out, nil))))
		assert.Equal(t, time.Now().Add(72*time.Hour), token(t, s).Expiry)
		for range 30 * 24 {
			token(t, s)
			time.Sleep(time.Hour)
		}
		synctest.Wait()
		assert.Empty(t, out.text.String())
		assert.Len(t, p.grants(), 10, "one in three days")
	})
}

func TestSameWarningIsNotRepeatedAtEachGrant(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]string{"absent": "", "0": `,"expires_in":0`, "in the past": `,"expires_in":1000000001`, "too long": `,"expires_in":9999999999`},
		func(t *testing.T, expiresIn string) {
			time.Sleep(30 * 365 * 24 * time.Hour) // a bubble begins in 2000
			n := 0
			p := proxyOf(t)
			reply := func(r *http.Request, pass func() (*http.Response, error)) (*http.Response, error) {
				n++
				return replies(200, fmt.Sprintf(`{"access_token":"access-%d"%s}`, n, expiresIn))(r, pass)
			}
			p.on(cc, reply)
			out := new(page)
			s := p.source(t, WithLogger(slog.New(slog.NewTextHandler(out, nil))))
			for range 100 {
				token(t, s)
				time.Sleep(24 * time.Hour)
			}
			synctest.Wait()
			assert.Equal(t, 1, strings.Count(out.text.String(), "level=WARN"), out.text.String())
			assert.GreaterOrEqual(t, len(p.grants()), 4)
		})
}

func TestInvalidateOfWhatIsInvalidDoesNotEndACoolDown(t *testing.T) {
	t.Parallel()
	const expired, invalidated, unknown = "expired", "invalidated", "unknown"
	bubbles(t, map[string]string{"nothing": "", unknown: unknown, expired: expired, invalidated: invalidated},
		func(t *testing.T, which string) {
			p := proxyOf(t)
			s := p.source(t)
			access := token(t, s).AccessToken
			down := replies(503, "", "Retry-After", "3600")
			p.on(refresh, down)
			p.on(cc, down)
			if which == invalidated {
				s.Invalidate(access)
			} else {
				time.Sleep(15 * time.Minute)
			}
			if which == unknown || which == "" {
				access = which
			}
			for range 60 {
				_, err := s.Token()
				require.Error(t, err)
				s.Invalidate(access)
				time.Sleep(time.Second)
			}
			assert.Equal(t, []string{cc, refresh}, p.grants(), "one in a minute")
		})
}

// refuses is an API that answers 401 to all but good tokens.
func refusesAll(good func(access string) bool) http.RoundTripper {
	return roundTripper(func(r *http.Request) (*http.Response, error) {
		if good(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) {
			return answer(r, 200, http.NoBody), nil
		}
		return answer(r, 401, strings.NewReader("no")), nil
	})
}

func TestAPIThatAnswers401ToAllCostsFewTokenRequests(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := proxyOf(t)
				s := p.source(t, opts()...)
				client := &http.Client{Transport: &Transport{Source: s, Base: refusesAll(func(string) bool { return false })}}
				for began := time.Now(); time.Since(began) < 10*time.Minute; time.Sleep(250 * time.Millisecond) {
					if resp, err := client.Get(p.URL + "/ping"); err == nil {
						require.Equal(t, 401, resp.StatusCode)
					} else {
						require.ErrorContains(t, err, "the API refuses one token after the other")
					}
				}
				requests := len(p.grants())
				assert.GreaterOrEqual(t, requests, 20)
				assert.LessOrEqual(t, requests, 27, "1, 1, 2, 4, 8, 16 s apart, and then 30 s")
			})
		})
	}
}

// What a source adopts counts as a token of its own.
func TestProcessesOnOneCacheWhoseTokensAreRefusedAskNoMoreOftenThanOne(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func() Cache{
		"no lock": func() Cache { return new(memoryCache) }, "a lock": func() Cache { return newLockingCache() },
	}, func(t *testing.T, newCache func() Cache) {
		p := proxyOf(t)
		cache := WithCache(newCache())
		var clients []*http.Client
		for range 4 {
			clients = append(clients, &http.Client{Transport: &Transport{Source: p.source(t, cache), Base: refusesAll(func(string) bool { return false })}})
		}
		for range 10 * 60 {
			for _, client := range clients {
				_, _ = client.Get(p.URL + "/ping")
			}
			time.Sleep(time.Second)
		}
		assert.LessOrEqual(t, len(p.grants()), 40)
		assert.GreaterOrEqual(t, len(p.grants()), 20)
		t.Logf("%d requests", len(p.grants()))
	})
}

// While a source waits for its next request, it looks into the cache at each call.
func TestTokenOfAnotherProcessIsAdoptedAtOnceWhileTheAPIRefusesOnes(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func() Cache{
		"no lock": func() Cache { return new(memoryCache) }, "a lock": func() Cache { return newLockingCache() },
	}, func(t *testing.T, newCache func() Cache) {
		p := proxyOf(t)
		cache := newCache()
		s, other := p.source(t, WithCache(cache)), p.source(t, WithCache(cache))
		good := ""
		client := &http.Client{Transport: &Transport{Source: s, Base: refusesAll(func(access string) bool { return access == good })}}
		get := func() int {
			resp, err := client.Get(p.URL + "/ping")
			if err != nil {
				require.ErrorAs(t, err, new(*CoolDownError))
				return 0
			}
			return resp.StatusCode
		}
		for began := time.Now(); time.Since(began) < 2*time.Minute; time.Sleep(100 * time.Millisecond) {
			require.NotEqual(t, 200, get())
		}
		for get() != 0 || s.memory.load().waitUntil.after(s.endpoint.clock()) < 25*time.Second {
			time.Sleep(100 * time.Millisecond)
		}
		before := len(p.grants())
		other.Invalidate(token(t, other).AccessToken) // the one in the cache
		good = token(t, other).AccessToken
		require.Len(t, p.grants(), before+1)
		assert.Equal(t, 200, get(), "at once")
		assert.Len(t, p.grants(), before+1)
	})
}

func TestFiftyProcessesWhoseTokensAreRefusedStayUnderMoovsLimit(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		refuse := refusesAll(func(string) bool { return false })
		var clients []*http.Client
		for range 50 {
			clients = append(clients, &http.Client{Transport: &Transport{Source: p.source(t), Base: refuse}})
		}
		for range 5 * 60 {
			for _, client := range clients {
				_, _ = client.Get(p.URL + "/ping")
			}
			time.Sleep(time.Second)
		}
		requests := p.TokenRequests()
		late := slices.DeleteFunc(requests, func(r moovtest.Request) bool { return r.Time.Sub(requests[0].Time) < 2*time.Minute })
		assert.LessOrEqual(t, len(late), 50*7, "in the last 3 minutes each asks every 30 s")
	})
}

func TestFleetThatIsToldToWaitDoesNotComeBackInStep(t *testing.T) {
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
		"4 s":          {503, "4", 4 * time.Second}, // within the grant
		"20 minutes":   {503, "1200", 20 * time.Minute},
	}, func(t *testing.T, c struct {
		status int
		header string
		wait   time.Duration
	}) {
		const fleet = 360
		p := proxyOf(t)
		p.on(cc, replies(c.status, "", "Retry-After", c.header))
		began := time.Now()
		var processes sync.WaitGroup
		back := make([]time.Duration, fleet)
		for i := range fleet {
			s := p.source(t)
			processes.Go(func() {
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
		require.Len(t, p.grants(), fleet)
		p.on(cc, nil)
		processes.Wait()
		assert.Len(t, p.grants(), 2*fleet)
		slices.Sort(back)
		assert.GreaterOrEqual(t, back[0], c.wait)
		assert.Less(t, back[fleet-1], c.wait*5/4+c.wait/100+firstBackOff)
		assert.Greater(t, back[fleet-1]-back[0], c.wait/5, "over a quarter of the wait")
		for i := range fleet * 3 / 4 {
			require.Greater(t, back[i+fleet/4]-back[i], c.wait/40, "no quarter of them comes at once")
		}
	})
}

// Grants take longer than those who wait for the lock do.
func TestGrantsThatOutlastTheWaitForTheLockKillNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t, moovtest.WithReuseDetection(), moovtest.WithLatency(3*time.Second), moovtest.WithLifetime(2*time.Minute))
		cache := WithCache(newLockingCache())
		var sources []oauth2.TokenSource
		for range 6 {
			sources = append(sources, oauth2.ReuseTokenSource(nil, p.source(t, cache)))
		}
		for range 300 {
			var all sync.WaitGroup
			for _, s := range sources {
				all.Go(func() {
					tok, err := s.Token()
					assert.NoError(t, err)
					assert.True(t, err != nil || p.Alive(tok.AccessToken), "a dead token")
				})
			}
			all.Wait()
			time.Sleep(5 * time.Second)
		}
		assert.NotEmpty(t, p.refreshTokens())
		for _, times := range p.refreshTokens() {
			assert.Equal(t, 1, times, "no refresh token is sent twice")
		}
	})
}

// A Redis that has become read-only still holds the entry with the refresh token
// that the running process has used up.
func TestCacheThatRefusesWritesKillsNothing(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func(n int) bool{ // does the nth Put from then on fail?
		"all":                            func(int) bool { return true },
		"the one that marks it as sent":  func(n int) bool { return n == 1 },
		"the one of what it brought":     func(n int) bool { return n == 2 },
		"every other one":                func(n int) bool { return n%2 == 0 },
		"every other one, from then on":  func(n int) bool { return n%2 == 1 },
		"those of the first three hours": func(n int) bool { return n < 8 },
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
			require.True(t, p.Alive(token(t, p.source(t, cache)).AccessToken), "of a new process")
			require.True(t, p.Alive(token(t, running).AccessToken), "it has not killed the running one's")
			time.Sleep(4 * time.Minute)
		}
		for _, times := range p.refreshTokens() {
			assert.Equal(t, 1, times)
		}
	})
}

// One entry each: they neither overwrite nor misread one another's.
func TestTwoClientSecretsThatShareACacheAskOnceEach(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		p.SetCredentials(p.ClientID, "the new secret")
		cache := newLockingCache()
		out := new(page)
		var sources []*TokenSource
		for i := range 8 {
			secret := p.ClientSecret
			if i%2 == 1 {
				secret = "the new secret"
			}
			s, err := NewTokenSource(Credentials{p.ClientID, secret}, WithScopes(pingScope), WithBaseURL(p.URL), WithCache(cache),
				WithHTTPClient(&http.Client{Transport: p}), WithLogger(slog.New(slog.NewTextHandler(out, nil))))
			require.NoError(t, err)
			sources = append(sources, s)
		}
		for range 11 { // one for the start of each, and one for each hour
			together(t, sources)
			time.Sleep(time.Hour)
		}
		assert.Len(t, p.grants(), 22)
		assert.Empty(t, out.text.String())
		assert.Len(t, cache.entries, 2)
	})
}
