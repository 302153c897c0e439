package platform

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/time/rate"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// eachServer runs test against a server with each kind of limit, in fake time.
func eachServer(t *testing.T, perSecond int, test func(t *testing.T, server *moovtest.Server, client moovauth.Option)) {
	for window, opts := range map[string][]moovtest.Option{"sliding": nil, "fixed": {moovtest.WithFixedWindow()}} {
		for header, change := range map[string]func(*http.Response){"with": func(*http.Response) {}, "without": withoutRetryAfter} {
			t.Run(fmt.Sprintf("%s window, %s Retry-After", window, header), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server := moovtest.NewInMemory(append(opts, moovtest.WithRateLimit(perSecond), moovtest.WithLatency(80*time.Millisecond))...)
					defer server.Close()
					test(t, server, moovauth.WithHTTPClient(changing(server.Client(), change)))
				})
			})
		}
	}
}

// atOnce requests tokens for n accounts at the same time. It returns how many got
// none, how long the last one took, and how many requests were refused.
func atOnce(t *testing.T, server *moovtest.Server, n int, source func(scopes ...string) (*moovauth.TokenSource, error)) (failed int, took time.Duration, refused int) {
	t.Helper()
	sources := make([]*moovauth.TokenSource, n)
	for i := range sources {
		var err error
		sources[i], err = source(account(i)...)
		require.NoError(t, err)
	}
	start := time.Now()
	errs := make([]error, n)
	var callers sync.WaitGroup
	for i, s := range sources {
		callers.Go(func() { _, errs[i] = s.Token() })
	}
	callers.Wait()
	took = time.Since(start)
	for _, err := range errs {
		if err != nil {
			failed++
		}
	}
	return failed, took, len(server.TokenRequests()) - len(server.AccessTokens())
}

func TestTwoHundredAccountsAtOnce(t *testing.T) {
	eachServer(t, 10, func(t *testing.T, server *moovtest.Server, client moovauth.Option) {
		tokens := newTokens(t, server, WithSource(client))
		failed, took, refused := atOnce(t, server, 200, tokens.Source)
		t.Logf("%d failed, %.3f of the floor, %d of %d requests refused", failed, took.Seconds()/20, refused, 200+refused)
		assert.Zero(t, failed)
		assert.LessOrEqual(t, refused, 4)
		assert.Less(t, took.Seconds(), 1.15*20)
		assert.Len(t, server.AccessTokens(), 200)
		s := tokens.Stats()
		assert.EqualValues(t, 200, s.Served)
		assert.EqualValues(t, refused, s.Refused)
		assert.Equal(t, 200, s.Sources)
		assert.Zero(t, s.InLine)
	})
}

func TestTheServerTakesHalfOfTheRate(t *testing.T) {
	eachServer(t, 5, func(t *testing.T, server *moovtest.Server, client moovauth.Option) {
		tokens := newTokens(t, server, WithRate(10), WithSource(client))
		failed, took, refused := atOnce(t, server, 200, tokens.Source)
		t.Logf("%d failed, %.3f of the floor, %d of %d requests refused", failed, took.Seconds()/40, refused, 200+refused)
		assert.Zero(t, failed)
		assert.LessOrEqual(t, refused, 8)
		assert.Less(t, took.Seconds(), 1.2*40)
		assert.EqualValues(t, refused, tokens.Stats().Refused)
	})
}

// For comparison: a map of sources that share one rate.Limiter. No account fails, but
// the limiter does not find the server's rate.
func TestAMapOfSourcesOnOneRateLimiter(t *testing.T) {
	for perSecond, most := range map[int]float64{10: 0.02, 5: 0.6} {
		t.Run(fmt.Sprint(perSecond), func(t *testing.T) {
			eachServer(t, perSecond, func(t *testing.T, server *moovtest.Server, client moovauth.Option) {
				limiter := rate.NewLimiter(10*margin, 1)
				failed, took, refused := atOnce(t, server, 200, func(scopes ...string) (*moovauth.TokenSource, error) {
					return moovauth.NewTokenSource(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
						moovauth.WithBaseURL(server.URL), client, moovauth.WithLimiter(limiter), moovauth.WithScopes(scopes...))
				})
				share := float64(refused) / float64(200+refused)
				t.Logf("%d failed, %.3f of the floor, %.1f %% refused", failed, took.Seconds()/(200/float64(perSecond)), 100*share)
				assert.Zero(t, failed)
				assert.LessOrEqual(t, share, most)
			})
		})
	}
}

func TestTenThousandAccountsAtOnce(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithRateLimit(40), moovtest.WithLatency(80*time.Millisecond))
		defer server.Close()
		tokens := newTokens(t, server, WithRate(40))
		failed, took, refused := atOnce(t, server, 10_000, tokens.Source)
		t.Logf("%d failed, %.3f of the floor, %d refused", failed, took.Seconds()/250, refused)
		assert.Zero(t, failed)
		assert.LessOrEqual(t, refused, 200)
		assert.Less(t, took.Seconds(), 1.15*250)
	})
}

// Each set of scopes has one token of its own, whatever the order of the scopes, and
// even if scopes are repeated.
func TestASetOfScopesHasOneToken(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1e6), WithCapacity(3)) // even if sources are removed
	all := []string{"/accounts/1/cards.read", "/accounts/1/cards.write", "/accounts/2/cards.read", "/ping.read"}
	type seen struct {
		source *moovauth.TokenSource
		token  string
	}
	var mu sync.Mutex
	bySet := make(map[string]seen)
	var callers sync.WaitGroup
	for n := range 100 {
		callers.Go(func() {
			for m := range 20 {
				bits := 1 + (n*7+m*13)%15
				var scopes []string
				for i, scope := range all {
					if bits&(1<<i) != 0 {
						scopes = append(scopes, scope, scope)
					}
				}
				if n%2 == 0 {
					slices.Reverse(scopes)
				}
				own := slices.Clone(scopes)
				source, err := tokens.Source(scopes...)
				if !assert.NoError(t, err) {
					return
				}
				token, err := source.Token()
				if !assert.NoError(t, err) {
					return
				}
				assert.Equal(t, own, scopes, "the caller's slice is not changed")
				slices.Sort(own)
				key := strings.Join(slices.Compact(own), " ")
				assert.Equal(t, key, token.Extra("scope"))
				mu.Lock()
				if before, ok := bySet[key]; ok {
					assert.Same(t, before.source, source)
					assert.Equal(t, before.token, token.AccessToken)
				}
				bySet[key] = seen{source, token.AccessToken}
				mu.Unlock()
			}
		})
	}
	callers.Wait()
	assert.Len(t, bySet, 15)
	assert.Len(t, server.TokenRequests(), 15)
	assert.Equal(t, 3, tokens.Stats().Sources)
	distinct := make(map[string]bool)
	for _, s := range bySet {
		distinct[s.token] = true
	}
	assert.Len(t, distinct, 15)
}

func TestInvalidScopesAreRefused(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server)
	_, err := tokens.Source("/a.read", "/b.read")
	require.NoError(t, err)
	for _, scopes := range [][]string{{"/a.read /b.read"}, {}, {""}, {"/a.read", ""}, {"/accounts/{accountID}/cards.read"}} {
		_, err := tokens.Source(scopes...)
		assert.ErrorContains(t, err, "cope", "%q", scopes)
		_, err = tokens.Client(scopes...)
		assert.Error(t, err, "%q", scopes)
		_, err = tokens.Mint(t.Context(), scopes...)
		assert.Error(t, err, "%q", scopes)
	}
	assert.Equal(t, 1, tokens.Stats().Sources)
	assert.Empty(t, server.Requests())
}

func TestAMintedTokenIsNotShared(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	cache := &countingCache{}
	tokens := newTokens(t, server, WithRate(1e6), WithSource(moovauth.WithCache(cache)))
	source, err := tokens.Source("/b.read", "/a.read")
	require.NoError(t, err)
	kept, err := source.Token()
	require.NoError(t, err)
	calls := cache.calls()
	require.NotZero(t, calls)

	one, err := tokens.Mint(t.Context(), "/b.read", "/a.read")
	require.NoError(t, err)
	two, err := tokens.Mint(t.Context(), "/a.read", "/b.read")
	require.NoError(t, err)
	assert.NotEqual(t, one.AccessToken, two.AccessToken)
	assert.NotEqual(t, one.AccessToken, kept.AccessToken)
	assert.Equal(t, calls, cache.calls(), "no cache")
	assert.Len(t, server.RefreshTokens(), 3)
	for _, token := range []*oauth2.Token{one, two} {
		assert.True(t, server.Alive(token.AccessToken))
		assert.Equal(t, "Bearer", token.TokenType)
		assert.WithinDuration(t, time.Now().Add(15*time.Minute), token.Expiry, 2*time.Second)
		assert.InDelta(t, 900, token.ExpiresIn, 2)
		assert.Equal(t, "/a.read /b.read", token.Extra("scope"))
		assert.Empty(t, token.RefreshToken)
		for _, member := range []string{"refresh_token", "access_token", "token_type"} {
			assert.Nil(t, token.Extra(member))
		}
		for _, refresh := range server.RefreshTokens() {
			assert.NotContains(t, fmt.Sprintf("%+v %#v", *token, *token), refresh)
		}
	}
	assert.EqualValues(t, 2, tokens.Stats().Minted)
	assert.Equal(t, 1, tokens.Stats().Sources)
}

// countingCache is an empty cache that counts the calls to it.
type countingCache struct {
	mu sync.Mutex
	n  int
}

func (c *countingCache) count() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.n++
	return nil
}
func (c *countingCache) calls() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.n
}
func (c *countingCache) Get(context.Context, string) ([]byte, error) { return nil, c.count() }
func (c *countingCache) Put(context.Context, string, []byte) error   { return c.count() }
func (c *countingCache) Delete(context.Context, string) error        { return c.count() }

// net/http makes an error of a RoundTripper that returns neither a response nor an error.
func TestMintWithARoundTripperThatReturnsNothing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		nothing := roundTripper(func(*http.Request) (*http.Response, error) { return nil, nil })
		tokens := newTokens(t, server, WithSource(moovauth.WithHTTPClient(&http.Client{Transport: nothing})))
		_, err := tokens.Mint(t.Context(), "/ping.read")
		assert.ErrorContains(t, err, "nil *Response")
	})
}

func TestMintSaysThatItsTimeInTheQueueIsOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		server.SetAnswer(&moovtest.Answer{Status: http.StatusTooManyRequests})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		_, err := tokens.Mint(ctx, "/ping.read")
		assert.ErrorContains(t, err, "the request is still in the queue")
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		var timeout interface{ Timeout() bool }
		assert.True(t, errors.As(err, &timeout) && timeout.Timeout())
		assert.EqualValues(t, 1, tokens.Stats().TimedOut)
	})
}

// If the caller of Mint leaves, its request leaves the queue: no one else could use
// the token.
func TestMintLeavesTheQueueWithItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server, WithRate(1))
		_, err := tokens.Mint(t.Context(), "/ping.read")
		require.NoError(t, err)
		ctx, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for range 100 {
			callers.Go(func() {
				_, err := tokens.Mint(ctx, "/ping.read")
				assert.ErrorIs(t, err, context.Canceled)
			})
		}
		synctest.Wait()
		assert.Equal(t, 100, tokens.Stats().InLine)
		cancel()
		callers.Wait()
		synctest.Wait()
		assert.Zero(t, tokens.Stats().InLine)
		start := time.Now()
		_, err = tokens.Mint(t.Context(), "/ping.read")
		require.NoError(t, err)
		assert.Less(t, time.Since(start), 2*time.Second)
		assert.Len(t, server.TokenRequests(), 2)
		s := tokens.Stats()
		assert.EqualValues(t, 2, s.Minted)
		assert.EqualValues(t, 100, s.Abandoned)
		assert.Zero(t, s.Failed)
	})
}

// If the caller of a source leaves, the token request continues, for the next caller.
func TestASourceStaysInTheQueueWithoutItsCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server, WithRate(1))
		_, err := tokens.Mint(t.Context(), "/ping.read")
		require.NoError(t, err)
		source, err := tokens.Source("/ping.read")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
		defer cancel()
		_, err = source.TokenContext(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(2 * time.Second)
		start := time.Now()
		_, err = source.Token()
		require.NoError(t, err)
		assert.Zero(t, time.Since(start))
	})
}

func TestRevokeAMintedToken(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1e6))
	token, err := tokens.Mint(t.Context(), "/ping.read")
	require.NoError(t, err)
	require.NoError(t, tokens.Revoke(t.Context(), token.AccessToken))
	assert.False(t, server.Alive(token.AccessToken))
	assert.Equal(t, "access_token", server.RevokeRequests()[0].Form.Get("token_type_hint"))
	assert.Error(t, tokens.Revoke(t.Context(), ""))
	server.Enqueue(moovtest.Answer{Status: http.StatusBadRequest, Body: `{"error":"invalid_request"}`})
	refused := new(moovauth.Error)
	assert.ErrorAs(t, tokens.Revoke(t.Context(), token.AccessToken), &refused)
	s := tokens.Stats()
	assert.EqualValues(t, 1, s.Revoked)
	assert.EqualValues(t, 2, s.Served)
	assert.EqualValues(t, 2, s.Failed)
}

// Revocations wait in the same queue.
func TestRevokeWaitsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server, WithRate(1/margin))
		token, err := tokens.Mint(t.Context(), "/ping.read")
		require.NoError(t, err)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second/2)
		defer cancel()
		require.ErrorIs(t, tokens.Revoke(ctx, token.AccessToken), context.DeadlineExceeded)
		start := time.Now()
		require.NoError(t, tokens.Revoke(t.Context(), token.AccessToken))
		assert.Equal(t, time.Second/2, time.Since(start).Round(time.Millisecond))
	})
}

// Under endless 429s a caller can leave at any time. Requests that no one waits for
// end. Revoke is not delayed.
func TestEndless429s(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithRateLimit(1))
		defer server.Close()
		_, _ = server.Client().Get(server.URL + "/ping")
		endless := changing(server.Client(), func(resp *http.Response) {
			if resp.Request.URL.Path == "/oauth2/token" {
				resp.StatusCode = http.StatusTooManyRequests
				resp.Header.Set("Retry-After", "1")
			}
		})
		before := runtime.NumGoroutine()
		tokens := newTokens(t, server, WithSource(moovauth.WithHTTPClient(endless)))
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		start := time.Now()
		var callers sync.WaitGroup
		for i := range 50 {
			callers.Go(func() {
				source, err := tokens.Source(account(i)...)
				assert.NoError(t, err)
				_, err = source.TokenContext(ctx)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
			callers.Go(func() {
				_, err := tokens.Mint(ctx, account(i)...)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
			})
		}
		time.Sleep(time.Minute)
		source, err := tokens.Source(account(0)...)
		require.NoError(t, err)
		revoking := time.Now()
		require.NoError(t, source.Revoke(t.Context()))
		assert.Less(t, time.Since(revoking), time.Second)

		callers.Wait()
		assert.Equal(t, 5*time.Minute, time.Since(start))
		requests := len(server.TokenRequests())
		assert.Less(t, requests, 100, "the queue moves slowly")
		time.Sleep(time.Hour) // requests that no one waits for end at their next 429
		synctest.Wait()
		assert.Zero(t, tokens.Stats().InLine)
		assert.LessOrEqual(t, len(server.TokenRequests()), requests+50)
		assert.LessOrEqual(t, runtime.NumGoroutine(), before)
	})
}

func TestNewChecksItsArguments(t *testing.T) {
	creds := moovauth.Credentials{ClientID: "id", ClientSecret: "secret"}
	for wanted, opts := range map[string][]Option{
		"option 2 is nil": {WithRate(1), nil},
		"WithRate: want a number of requests per second above 0, such as 10; got 0": {WithRate(0)},
		"got -1":                   {WithRate(-1)},
		"got NaN":                  {WithRate(nan())},
		"got +Inf":                 {WithRate(1 / zero)},
		"WithCapacity":             {WithCapacity(0)},
		"WithOrigins":              {WithOrigins("https://app.example.com/")},
		`got "app.example.com"`:    {WithOrigins("app.example.com")},
		`got "*"`:                  {WithOrigins("https://a.example", "*")},
		`got "null"`:               {WithOrigins("null")},
		"platform.WithLimiter, so": {WithSource(moovauth.WithLimiter(rate.NewLimiter(1, 1)))},
		"WithLimiter: the limiter": {WithLimiter(nil)},
		"WithLogger: the logger":   {WithLogger(nil)},
		"WithMinted: the function": {WithMinted(nil)},
		"WithSource: an option":    {WithSource(moovauth.WithVersion("dev"), nil)},
		"WithVersion":              {WithSource(moovauth.WithVersion("1"))},
		"contains WithToken":       {WithSource(moovauth.WithToken(&oauth2.Token{AccessToken: "secret-access"}))},
		"contains WithToken, so":   {WithSource(moovauth.WithToken(&oauth2.Token{RefreshToken: "secret-refresh"}))},
		"all accounts would":       {WithSource(moovauth.WithToken(&oauth2.Token{AccessToken: "secret-access", Expiry: time.Now().Add(-time.Hour)}))},
	} {
		_, err := New(creds, opts...)
		require.ErrorContains(t, err, wanted)
		assert.True(t, strings.HasPrefix(err.Error(), "moovauth: "), err)
		assert.NotContains(t, err.Error(), "secret-")
	}
	_, err := New(moovauth.Credentials{ClientID: "id"})
	require.ErrorContains(t, err, "Credentials.ClientSecret")
}

var zero float64

func nan() float64 { return zero / zero }

// WithScopes in WithSource has no effect, and the options of two WithSource add up.
func TestWithSourceDoesNotChangeScopes(t *testing.T) {
	server := moovtest.NewServer(moovtest.WithOrigins("https://example.com"))
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1e6),
		WithSource(moovauth.WithScopes("/accounts.write"), moovauth.WithTokenTypeHint(moovauth.RefreshToken)),
		WithSource(moovauth.WithOrigin("https://example.com")))
	source, err := tokens.Source("/ping.read")
	require.NoError(t, err)
	token, err := source.Token()
	require.NoError(t, err)
	assert.Equal(t, "/ping.read", token.Extra("scope"))
	token, err = tokens.Mint(t.Context(), "/ping.read")
	require.NoError(t, err)
	assert.Equal(t, "/ping.read", token.Extra("scope"))
	require.NoError(t, tokens.Revoke(t.Context(), token.AccessToken))
}

// The HTTP client in WithSource is used, with all of its fields.
func TestTheHTTPClientInWithSourceIsUsed(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	base := &closer{RoundTripper: server.Client().Transport}
	given := &http.Client{Transport: base, Timeout: 7 * time.Second, CheckRedirect: func(*http.Request, []*http.Request) error { return nil }}
	tokens := newTokens(t, server, WithSource(moovauth.WithHTTPClient(given)))
	client, err := tokens.Client("/ping.read")
	require.NoError(t, err)
	assert.Equal(t, given.Timeout, client.Timeout)
	assert.NotNil(t, client.CheckRedirect)
	assert.Same(t, base, given.Transport)
	resp, err := client.Get(server.URL + "/ping")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Equal(t, 2, base.requests)
	client.CloseIdleConnections()
	assert.Equal(t, 1, base.closed)
}

type closer struct {
	http.RoundTripper
	requests, closed int
}

func (c *closer) RoundTrip(req *http.Request) (*http.Response, error) {
	c.requests++
	return c.RoundTripper.RoundTrip(req)
}
func (c *closer) CloseIdleConnections() { c.closed++ }

func TestStatsSumUpTheSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		for _, scope := range []string{"/a.read", "/b.read", "/c.read"} {
			s, err := tokens.Source(scope)
			require.NoError(t, err)
			if scope != "/c.read" {
				_, err = s.Token()
				require.NoError(t, err)
			}
		}
		st := tokens.Stats()
		assert.Equal(t, []int{3, 2, 0, 0}, []int{st.Sources, st.Fresh, st.Stale, st.CoolingDown})
		time.Sleep(14 * time.Minute)
		server.Enqueue(moovtest.Answer{Status: 403})
		s, err := tokens.Source("/c.read")
		require.NoError(t, err)
		_, err = s.Token()
		require.Error(t, err)
		st = tokens.Stats()
		assert.Equal(t, []int{3, 0, 2, 1}, []int{st.Sources, st.Fresh, st.Stale, st.CoolingDown})
	})
}
