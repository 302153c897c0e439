package moovauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net/http"
	"os"
	"os/exec"
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

	"github.com/moovauth/moovauth/moovtest"
)

func TestFirstTokenIsAClientCredentialsGrant(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	assert.Empty(t, server.Requests())
	tok := token(t, s)
	assert.Equal(t, []string{cc}, grantTypes(server))
	assert.Equal(t, "Bearer", tok.TokenType)
	assert.True(t, server.Alive(tok.AccessToken))
	assert.Equal(t, []string{tok.RefreshToken}, server.RefreshTokens())
	assert.Equal(t, pingScope, tok.Extra("scope"))
	assert.InDelta(t, 900, tok.ExpiresIn, 1)
	assert.WithinDuration(t, time.Now().Add(15*time.Minute), tok.Expiry, time.Minute)
	assert.Equal(t, time.Local, tok.Expiry.Location())
}

func TestFreshTokenIsReturnedWithoutARequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		first := token(t, s)
		for range 11 {
			time.Sleep(time.Minute)
			assert.Equal(t, first, token(t, s))
		}
		synctest.Wait()
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestFreshTokenIsReturnedWithoutALock(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, onLoopback(t))
	first := token(t, s)
	s.core.state.mu.Lock() // a call that takes this lock would never return
	defer s.core.state.mu.Unlock()
	assert.Equal(t, first, token(t, s))
}

func TestCallersMayChangeTheirToken(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, onLoopback(t))
	first := token(t, s)
	want := *first
	*first = oauth2.Token{AccessToken: "changed"}
	assert.Equal(t, want, *token(t, s))
}

func TestStaleTokenIsReturnedDuringOneRefreshInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(2*time.Second))
		s := sourceOf(t, server)
		old := token(t, s)
		time.Sleep(12*time.Minute + 20*time.Second) // after the refresh point, whatever the jitter is

		began := time.Now()
		for _, tok := range together(t, slices.Repeat([]*TokenSource{s}, 100)) {
			assert.Equal(t, old.AccessToken, tok.AccessToken)
		}
		assert.Zero(t, time.Since(began))
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{cc, refresh}, grantTypes(server))
	})
}

func TestExpiredTokenIsNotReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		old := token(t, s)
		time.Sleep(15*time.Minute - maxLeeway - 1)
		require.Equal(t, time.Duration(1), s.timeLeft())
		time.Sleep(time.Nanosecond)
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.Len(t, server.TokenRequests(), 2)
	})
}

func TestThousandCallersOfAnExpiredTokenShareOneGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second))
		s := sourceOf(t, server)
		token(t, s)
		time.Sleep(time.Hour)
		distinct := make(map[*oauth2.Token]bool)
		for _, tok := range together(t, slices.Repeat([]*TokenSource{s}, 1000)) {
			distinct[tok] = true
			assert.True(t, server.Alive(tok.AccessToken))
		}
		assert.Len(t, distinct, 1000)
		assert.Len(t, server.TokenRequests(), 2)
	})
}

// A caller finds no token and starts a flight. In between, the grant of another
// caller ends.
func TestFlightChecksAgainWhetherATokenIsNeeded(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{"the grant succeeded": nil, "the grant failed": replies(403, "")}, func(t *testing.T, do reaction) {
		p := proxyOf(t)
		p.on(do)
		s := p.source(t)
		var want error
		clock, calls := s.core.config.clock, 0
		s.core.config.clock = func() instant {
			if calls++; calls == 3 { // the caller has looked for a token twice, and now looks for a cool-down
				_, want = s.Token()
			}
			return clock()
		}
		_, err := s.Token()
		assert.Len(t, p.grants(), 1)
		if do == nil {
			assert.NoError(t, err)
		} else {
			require.ErrorIs(t, err, want)
			assert.ErrorAs(t, err, new(*CoolDownError))
		}
	})
}

func TestCancelledCallerLeavesOthersWaiting(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(3*time.Second))
		s := sourceOf(t, server)
		ctx, cancel := context.WithCancel(t.Context())
		began := time.Now()

		first := make(chan error)
		go func() {
			_, err := s.TokenContext(ctx)
			assert.Equal(t, time.Second, time.Since(began))
			first <- err
		}()
		synctest.Wait() // the first caller's grant is in progress
		time.AfterFunc(time.Second, cancel)
		var all sync.WaitGroup
		all.Go(func() {
			for _, tok := range together(t, slices.Repeat([]*TokenSource{s}, 10)) {
				assert.True(t, server.Alive(tok.AccessToken))
				assert.Equal(t, 3*time.Second, time.Since(began))
			}
		})
		assert.ErrorIs(t, <-first, context.Canceled)
		all.Wait()
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestCallerWhoseContextHasEndedStartsNoGrant(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	why := errors.New("shutting down")
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(why)

	_, err := s.TokenContext(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	assert.ErrorIs(t, err, why)
	assert.Empty(t, server.Requests())

	token(t, s)
	_, err = s.TokenContext(ctx)
	assert.NoError(t, err, "a fresh token is returned without a wait")
}

func TestNilContextIsAnError(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	var none context.Context
	for range 2 { // first without a token, then with one
		_, err := s.TokenContext(none)
		assert.ErrorContains(t, err, "the context is nil: pass context.Background()")
		token(t, s)
	}
	assert.ErrorContains(t, s.Revoke(none), "the context is nil")
	assert.ErrorContains(t, Revoke(none, testCredentials, "x"), "the context is nil")
	_, err := RequestToken(none, testCredentials, WithScopes(pingScope))
	assert.ErrorContains(t, err, "the context is nil")
	assert.Len(t, server.Requests(), 1)
}

func TestGrantEndsWithinTheTimeout(t *testing.T) {
	t.Parallel()
	for timeout, opts := range map[time.Duration][]Option{7 * time.Second: {WithTimeout(7 * time.Second)}, 30 * time.Second: nil} {
		synctest.Test(t, func(t *testing.T) {
			s := sourceOf(t, inMemory(t, moovtest.WithLatency(time.Hour)), opts...)
			began := time.Now()
			_, err := s.Token()
			assert.ErrorIs(t, err, context.DeadlineExceeded)
			assert.ErrorContains(t, err, fmt.Sprintf("not done within %v (see WithTimeout)", timeout))
			assert.Equal(t, timeout, time.Since(began))
		})
	}
}

func TestTimeoutOfTheConfiguredClientCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(5*time.Second))
		client := *server.Client()
		client.Timeout = time.Second
		began := time.Now()
		_, err := sourceOf(t, server, WithHTTPClient(&client)).Token()
		assert.ErrorContains(t, err, "after 3 attempts")
		assert.Less(t, time.Since(began), 4*time.Second)
	})
}

// If Revoke cancels a flight, its callers start another.
func TestCallerWaitsNoLongerThanTheTimeoutForSeveralFlights(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Hour))
		s := sourceOf(t, server)
		var callers sync.WaitGroup
		defer callers.Wait()
		for i := range 6 {
			callers.Go(func() {
				time.Sleep(time.Duration(i) * 5 * time.Second)
				if i%2 == 1 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					_ = s.Revoke(ctx)
				}
				began := time.Now()
				_, err := s.Token()
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.LessOrEqual(t, time.Since(began), defaultTimeout+grace)
			})
		}
	})
}

func TestRefreshInTheBackgroundThatWaitedForARevokeDoesNothing(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithCache(&memoryCache{latency: time.Second}))
		token(t, s)
		time.Sleep(13 * time.Minute)
		var all sync.WaitGroup
		all.Go(func() { assert.NoError(t, s.Revoke(t.Context())) })
		synctest.Wait() // Revoke reads the cache
		token(t, s)     // tries to start a refresh
		all.Wait()
		synctest.Wait()
		assert.Len(t, server.TokenRequests(), 1)
		assertAllDead(t, server)
	})
}

func TestTokenRequestDoesNotUseItsCallersContext(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		type key struct{}
		p := proxyOf(t)
		var seen any
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			seen = r.Context().Value(key{})
			return pass(r)
		})
		_, err := p.source(t).TokenContext(context.WithValue(t.Context(), key{}, "trace"))
		require.NoError(t, err)
		assert.Nil(t, seen)
	})
}

// The test makes a call every two seconds for an hour, with 15-minute tokens.
func TestNoCallWaitsDuringAnHour(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func(*TokenSource) oauth2.TokenSource{
		"a source":         func(s *TokenSource) oauth2.TokenSource { return s },
		"ReuseTokenSource": func(s *TokenSource) oauth2.TokenSource { return oauth2.ReuseTokenSource(nil, s) },
		"ReuseTokenSourceWithExpiry": func(s *TokenSource) oauth2.TokenSource {
			return oauth2.ReuseTokenSourceWithExpiry(nil, s, time.Minute)
		},
	}, func(t *testing.T, wrap func(*TokenSource) oauth2.TokenSource) {
		server := inMemory(t, moovtest.WithLatency(500*time.Millisecond))
		s := wrap(sourceOf(t, server))
		client := oauth2.NewClient(context.WithValue(t.Context(), oauth2.HTTPClient, server.Client()), s)
		token(t, s)
		for began := time.Now(); time.Since(began) < time.Hour; time.Sleep(2 * time.Second) {
			called := time.Now()
			require.True(t, server.Alive(token(t, s).AccessToken), "after %v", time.Since(began))
			resp, err := client.Get(server.URL + "/ping")
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.StatusCode)
			resp.Body.Close()
			require.Zero(t, time.Since(called), "waited after %v", time.Since(began))
		}
		synctest.Wait()
		grants := grantTypes(server)
		assert.GreaterOrEqual(t, len(grants), 4)
		assert.LessOrEqual(t, len(grants), 6)
		assert.Equal(t, cc, grants[0])
		assert.NotContains(t, grants[1:], cc)
	})
}

func TestTwoOAuth2ClientsShareOneSource(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLifetime(11*time.Second)) // so that both clients soon ask the source again
		s := sourceOf(t, server)
		ctx := context.WithValue(t.Context(), oauth2.HTTPClient, server.Client())
		var all sync.WaitGroup
		for range 2 {
			client := oauth2.NewClient(ctx, s)
			for range 8 {
				all.Go(func() {
					for range 10 {
						resp, err := client.Get(server.URL + "/ping")
						if assert.NoError(t, err) {
							assert.Equal(t, http.StatusOK, resp.StatusCode)
							resp.Body.Close()
						}
						time.Sleep(300 * time.Millisecond)
					}
				})
			}
		}
		all.Wait()
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestShortLivedTokenIsUsed(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLifetime(8*time.Second))
		s := sourceOf(t, server)
		first := token(t, s)
		for range 5 {
			time.Sleep(time.Second)
			assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		}
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestLifetimeDecidesHowOftenTheServerIsAsked(t *testing.T) {
	t.Parallel()
	in := func(d time.Duration, format string) func() string {
		return func() string { return fmt.Sprintf(format, time.Now().Add(d).Unix()) }
	}
	is := func(text string) func() string { return func() string { return text } }
	const threeDays, fiveMinutes, thirtyDays = 72 * time.Hour, 5 * time.Minute, 30 * 24 * time.Hour
	bubbles(t, map[string]struct {
		expiresIn func() string
		want      time.Duration // the time between two requests, at most
	}{
		"three days":                       {is(`259200`), threeDays},
		"three days as text":               {is(`"259200"`), threeDays},
		"a timestamp":                      {in(threeDays, "%d"), threeDays},
		"a timestamp as text":              {in(threeDays, `"%d"`), threeDays},
		"55 years":                         {in(20_000*24*time.Hour, "%d"), thirtyDays},
		"longer than any duration":         {is(`1e308`), thirtyDays},
		"null":                             {is(`null`), fiveMinutes},
		"0":                                {is(`0`), fiveMinutes},
		"negative":                         {is(`-1`), fiveMinutes},
		"a thousandth":                     {is(`0.001`), fiveMinutes},
		"not a number":                     {is(`"NaN"`), fiveMinutes},
		"a word":                           {is(`"soon"`), fiveMinutes},
		"an object":                        {is(`{}`), fiveMinutes},
		"Moov's example":                   {is(`1736964352`), fiveMinutes},
		"a timestamp of long ago":          {is(`1e9`), fiveMinutes},
		"a timestamp of long ago, as text": {is(`"1262304000"`), fiveMinutes},
		"a timestamp of a day ago":         {in(-24*time.Hour, "%d"), fiveMinutes},
		"a timestamp of a year ago":        {in(-365*24*time.Hour, `"%d"`), fiveMinutes},
	}, func(t *testing.T, c struct {
		expiresIn func() string
		want      time.Duration
	}) {
		time.Sleep(30 * 365 * 24 * time.Hour) // a bubble starts in the year 2000
		p, n := proxyOf(t), 0
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			n++
			return replies(200, fmt.Sprintf(`{"access_token":"access-%d","expires_in":%s}`, n, c.expiresIn()))(r, pass)
		})
		s := p.source(t)
		assert.Equal(t, time.Now().Add(c.want), token(t, s).Expiry)
		for range 1000 {
			token(t, s)
			time.Sleep(c.want / 100)
		}
		synctest.Wait()
		for _, gap := range p.gaps(1) {
			assert.GreaterOrEqual(t, gap, c.want*4/5-maxLeeway)
			assert.LessOrEqual(t, gap, c.want)
		}
	})
}

func TestEarlyRefresh(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lifetime   time.Duration
		opts       []Option
		from, till time.Duration // the bounds of the refresh point, from the grant on
	}{
		{15 * time.Minute, nil, 15*time.Minute - 5*time.Second - 3*time.Minute, 15*time.Minute - 5*time.Second - 162*time.Second},
		{10 * time.Hour, nil, 10*time.Hour - 5*time.Second - 5*time.Minute, 10*time.Hour - 5*time.Second - 270*time.Second},
		{10 * time.Second, nil, 7 * time.Second, 7200 * time.Millisecond},
		{15 * time.Minute, []Option{WithEarlyRefresh(10 * time.Minute)}, 295 * time.Second, 355 * time.Second},
		{100 * time.Second, []Option{WithEarlyRefresh(time.Hour)}, 19 * time.Second, 26600 * time.Millisecond},
	} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t, moovtest.WithLifetime(c.lifetime))
			spread := make(map[time.Duration]bool)
			for range 100 {
				s := sourceOf(t, server, c.opts...)
				token(t, s)
				at := s.core.config.clock().until(s.core.state.load().current.refreshAt)
				assert.GreaterOrEqual(t, at, c.from)
				assert.LessOrEqual(t, at, c.till)
				spread[at] = true
			}
			assert.Greater(t, len(spread), 50, "a fleet must not refresh all at once")
		})
	}
}

func TestWithoutEarlyRefreshCallersWaitAtTheExpiry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second))
		s := sourceOf(t, server, WithEarlyRefresh(0))
		first := token(t, s)
		time.Sleep(s.timeLeft() - 1)
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		synctest.Wait()
		assert.Len(t, server.TokenRequests(), 1)
		time.Sleep(time.Nanosecond)
		began := time.Now()
		token(t, s)
		assert.Equal(t, time.Second, time.Since(began))
	})
}

func TestEitherClockExpiresAToken(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]func(now *instant, d time.Duration){
		"the wall clock is set back":            func(now *instant, d time.Duration) { now.monotonic += int64(d); now.wall -= int64(time.Hour) },
		"the monotonic clock stands still":      func(now *instant, d time.Duration) { now.wall += int64(d) },
		"both run":                              func(now *instant, d time.Duration) { *now = now.add(d) },
		"the wall clock is set an hour forward": func(now *instant, _ time.Duration) { now.wall += int64(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			server := onLoopback(t)
			s := sourceOf(t, server)
			now := s.core.config.clock()
			s.core.config.clock = func() instant { return now }
			first := token(t, s)
			move(&now, 15*time.Minute)
			assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
			assert.Len(t, server.TokenRequests(), 2)
		})
	}
}

func TestStartsFromASavedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		saved := token(t, sourceOf(t, server))
		s := sourceOf(t, server, WithToken(saved))
		got := token(t, s)
		assert.Equal(t, saved.AccessToken, got.AccessToken)
		assert.Equal(t, saved.Expiry, got.Expiry)
		assert.Equal(t, pingScope, got.Extra("scope"))
		assert.Len(t, server.TokenRequests(), 1)

		time.Sleep(time.Hour)
		assert.True(t, server.Alive(token(t, s).AccessToken))
		assert.Equal(t, []string{cc, refresh}, grantTypes(server))
	})
}

func TestStartsFromAnExpiredToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		saved := token(t, sourceOf(t, server))
		time.Sleep(time.Hour)
		assert.True(t, server.Alive(token(t, sourceOf(t, server, WithToken(saved))).AccessToken))
		assert.Equal(t, []string{cc, refresh}, grantTypes(server))
	})
}

func TestStartsFromARefreshTokenOnly(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		saved := token(t, sourceOf(t, server))
		s, err := NewTokenSource(credentialsOf(server), WithBaseURL(server.URL), WithHTTPClient(server.Client()),
			WithToken(&oauth2.Token{RefreshToken: saved.RefreshToken}))
		require.NoError(t, err)
		first := token(t, s)
		assert.Equal(t, pingScope, first.Extra("scope"))
		assert.Equal(t, []string{cc, refresh}, grantTypes(server))

		// Without scopes, the refresh token is the only credential, so the
		// source keeps it.
		server.RevokeAll()
		time.Sleep(time.Hour)
		for range 2 {
			_, err = s.Token()
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, refresh, refused.GrantType)
			time.Sleep(time.Second)
		}
		assert.Len(t, server.TokenRequests(), 4)
		require.NoError(t, s.Revoke(t.Context()))
		_, err = s.Token()
		assert.ErrorContains(t, err, "give NewTokenSource WithScopes")
	})
}

func TestScopesOrARefreshTokenAreNeeded(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{"nothing": nil, "an access token": {WithToken(&oauth2.Token{AccessToken: "x"})}, "no scopes": {WithScopes()}} {
		_, err := NewTokenSource(testCredentials, opts...)
		assert.ErrorContains(t, err, "WithScopes", name)
	}
}

func TestLifetimeOfASavedToken(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]struct{ claims, want time.Duration }{
		"none":        {0, 5 * time.Minute},
		"ten minutes": {10 * time.Minute, 10 * time.Minute},
		"55 years":    {20_000 * 24 * time.Hour, 30 * 24 * time.Hour},
	}, func(t *testing.T, c struct{ claims, want time.Duration }) {
		saved := &oauth2.Token{AccessToken: "saved"}
		if c.claims > 0 {
			saved.Expiry = time.Now().Add(c.claims)
		}
		s := sourceOf(t, inMemory(t), WithToken(saved), WithEarlyRefresh(0))
		assert.Equal(t, time.Now().Add(c.want), token(t, s).Expiry)
		assert.EqualValues(t, c.want/time.Second, token(t, s).ExpiresIn)
		time.Sleep(c.want - maxLeeway - time.Second)
		assert.Equal(t, "saved", token(t, s).AccessToken)
		time.Sleep(time.Second)
		assert.NotEqual(t, "saved", token(t, s).AccessToken)
	})
}

func TestSavedTokenIsBearer(t *testing.T) {
	t.Parallel()
	for _, tokenType := range []string{"opaque", "JWT", "bearer", ""} {
		saved := &oauth2.Token{AccessToken: "x", TokenType: tokenType}
		s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(saved))
		require.NoError(t, err)
		assert.Equal(t, "Bearer", token(t, s).TokenType)
		assert.Equal(t, tokenType, saved.TokenType, "the caller's is not changed")
	}
}

func TestInvalidateIsAboutTheCurrentToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithToken(&oauth2.Token{RefreshToken: "unknown"}))
		s.Invalidate("")
		s.Invalidate("before there is one")
		first := token(t, s)
		s.Invalidate("another")
		s.Invalidate("")
		s.Invalidate(first.RefreshToken)
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		requests := len(server.TokenRequests())

		s.Invalidate(first.AccessToken)
		second := token(t, s)
		assert.NotEqual(t, first.AccessToken, second.AccessToken)
		require.Len(t, server.TokenRequests(), requests+1)
		assert.Equal(t, first.RefreshToken, server.TokenRequests()[requests].Form.Get("refresh_token"))
		assert.True(t, server.Alive(first.AccessToken), "it is not revoked")

		time.Sleep(time.Minute)
		s.Invalidate(first.AccessToken)
		assert.Equal(t, second.AccessToken, token(t, s).AccessToken, "a 401 to an old token changes nothing")
	})
}

// If an API answers 401 to everything, the time between two token requests
// doubles from 1 s to 30 s.
func TestInvalidationsThatFollowEachOtherCauseFewRequests(t *testing.T) {
	t.Parallel()
	for cache, opts := range caches {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				p := proxyOf(t)
				s := p.source(t, opts()...)
				refuseFor := func(d time.Duration) {
					for began := time.Now(); time.Since(began) < d; time.Sleep(100 * time.Millisecond) {
						tok := token(t, s)
						require.True(t, p.Alive(tok.AccessToken))
						s.Invalidate(tok.AccessToken)
					}
				}
				refuseFor(10 * time.Minute)
				var seconds []time.Duration
				for _, gap := range p.gaps(1) {
					seconds = append(seconds, gap.Round(time.Second)/time.Second)
				}
				require.Greater(t, len(seconds), 20)
				assert.Equal(t, []time.Duration{0, 1, 2, 4, 8, 16, 30, 30}, seconds[:8])
				assert.Equal(t, time.Duration(30), slices.Min(seconds[6:]))

				// A token that lives to its refresh point resets the pause.
				token(t, s)
				time.Sleep(time.Until(token(t, s).Expiry))
				requests := len(p.grants())
				refuseFor(2900 * time.Millisecond)
				assert.Len(t, p.grants(), requests+3, "one for the new token, one at once, and one after 1 s")
			})
		})
	}
}

// One endpoint of the API answers 401 to every call. All others accept the
// token.
func TestNoCallFailsAfterInvalidations(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]reaction{
		"the endpoint works": nil,
		"503":                replies(503, ""),
		"401":                replies(401, ""),
		"refused scopes":     replies(422, `{"scope":"is unknown"}`),
		"429, an hour":       replies(429, "", "Retry-After", "3600"),
		"no connection":      refusesToConnect,
		"a reset":            breaks,
		"a page":             unusable["a page"],
		"silence":            neverAnswers,
	}, func(t *testing.T, fails reaction) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(fails)
		for time.Until(first.Expiry) > time.Minute {
			for range 4 {
				require.True(t, p.Alive(token(t, s).AccessToken))
			}
			s.Invalidate(token(t, s).AccessToken)
			time.Sleep(time.Second)
		}
		assert.LessOrEqual(t, len(p.grants()), maxAttempts*(8+14*4), "one grant in 15 to 30 s, once the cool-down has grown")
		if fails == nil {
			return
		}
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		time.Sleep(time.Until(first.Expiry))
		_, err := s.Token()
		require.Error(t, err, "no token is returned after its expiry")
		p.on(nil)
		time.Sleep(time.Hour * 5 / 4)
		assert.True(t, p.Alive(token(t, s).AccessToken))
	})
}

func TestRefusedTokenIsReturnedUntilTheNextAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := noJitter(p.source(t))
		first := token(t, s)
		p.on(replies(403, ""))
		s.Invalidate(first.AccessToken)
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{cc, refresh, cc}, p.grants(), "the call waited for one grant")
		s.Invalidate(first.AccessToken)
		time.Sleep(firstCoolDown - 1)
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		assert.Len(t, p.grants(), 3, "no request is made during the cool-down")
		p.on(nil)
		time.Sleep(time.Nanosecond)
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
	})
}

func TestInvalidateDoesNotEndACoolDownWithoutAToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(replies(503, "", "Retry-After", "3600"))
		time.Sleep(15 * time.Minute)
		for range 60 {
			_, err := s.Token()
			require.Error(t, err)
			for _, access := range []string{"", "unknown", first.AccessToken} {
				s.Invalidate(access)
			}
			time.Sleep(time.Second)
		}
		assert.Equal(t, []string{cc, refresh}, p.grants())
	})
}

// Processes that share a cache also share the tokens that replace refused ones.
func TestProcessesThatShareACacheMakeFewRequestsIfTheirTokensAreRefused(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func() Cache{
		"without a lock": func() Cache { return new(memoryCache) }, "with a lock": func() Cache { return newLockingCache() },
	}, func(t *testing.T, newCache func() Cache) {
		p, cache := proxyOf(t), WithCache(newCache())
		var sources []*TokenSource
		for range 4 {
			sources = append(sources, p.source(t, cache))
		}
		for range 10 * 60 {
			for _, s := range sources {
				s.Invalidate(token(t, s).AccessToken)
			}
			time.Sleep(time.Second)
		}
		assert.LessOrEqual(t, len(p.grants()), 40)
		assert.GreaterOrEqual(t, len(p.grants()), 20)
	})
}

// Some servers revoke the old token when they issue the new one.
func TestInvalidateDuringARefreshInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		first := token(t, s)
		time.Sleep(13 * time.Minute)
		server.SetLatency(time.Second)
		token(t, s) // starts the refresh
		time.Sleep(100 * time.Millisecond)
		s.Invalidate(first.AccessToken)
		began := time.Now()
		second := token(t, s)
		assert.NotEqual(t, first.AccessToken, second.AccessToken)
		assert.Equal(t, 900*time.Millisecond, time.Since(began), "it waits for the refresh")
		assert.Len(t, server.TokenRequests(), 2)

		time.Sleep(time.Second)
		s.Invalidate(second.AccessToken)
		assert.NotEqual(t, second.AccessToken, token(t, s).AccessToken)
	})
}

// The logger is called at the end of a grant, when the new token is already the
// current one.
func TestInvalidateWhileAGrantIsEnding(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLogger(slog.New(handler(func(slog.Record) { time.Sleep(100 * time.Millisecond) }))))
		go func() { _, _ = s.Token() }()
		time.Sleep(10 * time.Millisecond)
		refused := token(t, s)
		s.Invalidate(refused.AccessToken)
		assert.NotEqual(t, refused.AccessToken, token(t, s).AccessToken)
	})
}

// atTheWait is a context that calls do when its caller has joined a flight and
// is about to wait. The source must have a Limiter: otherwise the caller waits
// with a context that is derived from this one.
type atTheWait struct {
	context.Context
	do func()
}

func (c *atTheWait) Done() <-chan struct{} {
	if do := c.do; do != nil {
		c.do = nil
		do()
	}
	return c.Context.Done()
}

// unlimited is a Limiter that never waits.
type unlimited struct{}

func (unlimited) Wait(context.Context) error { return nil }

// A flight that has ended keeps its result for callers that have not read it
// yet.
func TestResultOfAFlightIsNotReturnedAfterRevokeOrInvalidate(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func(s *TokenSource, access string){
		"Revoke":     func(s *TokenSource, _ string) { _ = s.Revoke(context.Background()) },
		"Invalidate": func(s *TokenSource, access string) { s.Invalidate(access) },
	}, func(t *testing.T, end func(s *TokenSource, access string)) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(unlimited{}))
		var first string
		tok, err := s.TokenContext(&atTheWait{t.Context(), func() {
			synctest.Wait() // the flight has ended
			first = s.core.state.load().current.AccessToken
			end(s, first)
		}})
		require.NoError(t, err)
		require.NotEmpty(t, first)
		assert.NotEqual(t, first, tok.AccessToken)
		assert.True(t, server.Alive(tok.AccessToken))
		assert.Len(t, server.TokenRequests(), 2)
	})
}

func TestFailedRefreshInTheBackgroundIsNotSeenByCallers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		time.Sleep(14 * time.Minute)
		p.on(replies(404, ""))
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		synctest.Wait()
		assert.Equal(t, []string{cc, refresh, cc}, p.grants())
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
	})
}

func TestZeroTokenSourceSaysWhatToDo(t *testing.T) {
	t.Parallel()
	zero := new(TokenSource)
	_, err := zero.Token()
	assert.ErrorContains(t, err, "NewTokenSource")
	_, err = (*TokenSource)(nil).Token()
	assert.ErrorContains(t, err, "NewTokenSource")
	assert.ErrorContains(t, zero.Revoke(t.Context()), "NewTokenSource")
	_, err = zero.Client().Get(DefaultBaseURL)
	assert.ErrorContains(t, err, "NewTokenSource")
	zero.Invalidate("x")
}

// As in net/http, the package does not recover from the panic.
func TestPanicOfPluggedInCodeEndsTheProgram(t *testing.T) {
	t.Parallel()
	if os.Getenv("MOOVAUTH_PANIC") != "" {
		client := &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) { panic("from a mock") })}
		_, _ = sourceOf(t, onLoopback(t), WithHTTPClient(client)).Token()
		return
	}
	again := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^"+t.Name()+"$")
	again.Env = append(os.Environ(), "MOOVAUTH_PANIC=1")
	output, err := again.CombinedOutput()
	assert.Error(t, err)
	assert.Contains(t, string(output), "panic: from a mock")
}

// In a mock, t.FailNow calls Goexit.
func TestCallersWaitUntilTheTimeoutAfterGoexitOfPluggedInCode(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		p.on(func(*http.Request, roundTripper) (*http.Response, error) { runtime.Goexit(); return nil, nil })
		s := p.source(t)
		began := time.Now()
		_, err := s.Token()
		assert.ErrorContains(t, err, "not done within 30s")
		assert.Equal(t, defaultTimeout+grace, time.Since(began))
		p.on(nil)
		token(t, s)
	})
}

// A source has no Format method. What it knows is behind pointers, which
// package fmt does not follow. With the race detector, the test also shows that
// printing reads nothing that the source changes.
func TestNoVerbPrintsASecretOfASource(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server, WithCache(new(memoryCache)))
	secrets := []string{server.ClientSecret}
	obtain := func() {
		tok := token(t, s)
		secrets = append(secrets, tok.AccessToken, tok.RefreshToken)
	}
	obtain()
	s.Invalidate(secrets[1])
	obtain()

	type box struct {
		Source  *TokenSource
		value   any
		Nested  struct{ Deep []*TokenSource }
		private *TokenSource
	}
	boxed := box{Source: s, value: s, private: s}
	boxed.Nested.Deep = []*TokenSource{s}
	shapes := map[string]any{
		"pointer":             s,
		"value":               *s,
		"pointer to pointer":  &boxed.Source,
		"in a struct":         boxed,
		"in a pointed struct": &boxed,
		"in a slice":          []*TokenSource{s},
		"in a pointed slice":  &[]any{s},
		"values in an array":  [1]TokenSource{*s},
		"as a map's value":    map[string]*TokenSource{"key": s},
		"as a map's key":      map[*TokenSource]bool{s: true},
		"in a transport":      &Transport{Source: s},
		"in a client":         *s.Client(),
		"reused":              oauth2.ReuseTokenSource(nil, s),
	}
	var spellings []string
	for _, secret := range secrets {
		spellings = append(spellings, secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), strings.Trim(fmt.Sprint([]byte(secret)), "[]"))
	}

	stop := make(chan struct{})
	var users sync.WaitGroup
	defer users.Wait()
	defer close(stop)
	users.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				s.Invalidate(token(t, s).AccessToken)
				s.Stats()
			}
		}
	})
	for name, v := range shapes {
		for _, verb := range "vTtbcdoOqxXUeEfFgGsp" {
			for _, flags := range []string{"", "+", "#", "-", " ", "0", "+#", "# ", "200", ".200"} {
				format := "%" + flags + string(verb)
				text := fmt.Sprintf(format, v)
				for _, spelling := range spellings {
					if strings.Contains(text, spelling) {
						require.Fail(t, "a secret is printed", "%s, %s: %s", name, format, text)
					}
				}
			}
		}
	}
}

// A call that has 5 s must not fail because the token endpoint is silent.
// Callers wait without a short limit only for the first attempt to replace a
// refused token.
func TestSilentEndpointDelaysCallsOnlyBrieflyAfterTheFirstAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		refused := token(t, s).AccessToken
		p.on(neverAnswers)
		s.Invalidate(refused)
		_, err := s.Token()
		require.NoError(t, err)
		for range 300 {
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			tok, err := s.TokenContext(ctx)
			require.NoError(t, err)
			require.NoError(t, ctx.Err())
			require.Equal(t, refused, tok.AccessToken)
			cancel()
			time.Sleep(time.Second)
		}
		p.on(nil)
		time.Sleep(s.core.config.timeout + maxCoolDown)
		assert.NotEqual(t, refused, token(t, s).AccessToken)
	})
}

func TestCallerThatJoinsAFlightNearItsEndHasTimeForAnother(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		token(t, s)
		time.Sleep(s.timeLeft() - time.Second)
		p.on(neverAnswers)
		token(t, s) // starts a refresh in the background
		time.Sleep(2 * time.Second)
		early := make(chan error)
		go func() {
			_, err := s.Token()
			early <- err
		}()
		time.Sleep(27 * time.Second)
		p.on(func(r *http.Request, pass roundTripper) (*http.Response, error) {
			time.Sleep(4 * time.Second)
			return pass(r)
		})
		token(t, s)
		<-early // the early caller has already given up
	})
}

func TestLongestTimeoutIsNoTimeout(t *testing.T) {
	t.Parallel()
	token(t, sourceOf(t, inMemory(t), WithTimeout(math.MaxInt64)))
}
