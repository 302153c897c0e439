package moovauth

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/cookiejar"
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

func TestFirstTokenIsAClientCredentialsGrant(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	tok := token(t, sourceOf(t, server))

	assert.Equal(t, "Bearer", tok.TokenType)
	assert.True(t, server.Alive(tok.AccessToken))
	assert.Equal(t, []string{tok.RefreshToken}, server.RefreshTokens())
	assert.Equal(t, pingScope, tok.Extra("scope"))
	assert.InDelta(t, 900, tok.ExpiresIn, 1)
	assert.WithinDuration(t, time.Now().Add(15*time.Minute), tok.Expiry, time.Second)
	assert.Equal(t, time.Local, tok.Expiry.Location())
}

func TestFreshTokenIsHandedOutWithoutARequest(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		first := token(t, s)
		for range 11 {
			time.Sleep(time.Minute)
			again := token(t, s)
			assert.Equal(t, first, again)
			assert.NotSame(t, first, again)
		}
		synctest.Wait()
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestCallersMayChangeTheirToken(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, onLoopback(t))
	first := token(t, s)
	want := first.AccessToken
	first.AccessToken = "changed"
	assert.Equal(t, want, token(t, s).AccessToken)
}

func TestStaleTokenIsHandedOutDuringOneBackgroundGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(2*time.Second))
		s := sourceOf(t, server)
		old := token(t, s)
		time.Sleep(12*time.Minute + 20*time.Second) // past the refresh point, whatever the jitter

		began := time.Now()
		for range 100 {
			assert.Equal(t, old.AccessToken, token(t, s).AccessToken)
		}
		assert.Zero(t, time.Since(began), "nobody waits")
		time.Sleep(2 * time.Second)
		synctest.Wait()
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken}, grantTypes(server))
	})
}

func TestExpiredTokenIsNotHandedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		old := token(t, s)

		time.Sleep(15*time.Minute - 6*time.Second) // the hard expiry is 5 s before the server's
		synctest.Wait()
		require.Equal(t, old.AccessToken, s.memory.load().held.token.AccessToken)
		time.Sleep(time.Second)
		fresh := token(t, s)
		assert.NotEqual(t, old.AccessToken, fresh.AccessToken)
		assert.Len(t, server.TokenRequests(), 2)
	})
}

func TestThousandCallersOfAnExpiredTokenShareOneGrant(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithLatency(20*time.Millisecond))
	s := sourceOf(t, server)

	tokens := make([]*oauth2.Token, 1000)
	var wg sync.WaitGroup
	for i := range tokens {
		wg.Go(func() { tokens[i], _ = s.Token() })
	}
	wg.Wait()

	distinct := make(map[*oauth2.Token]bool)
	for _, tok := range tokens {
		require.NotNil(t, tok)
		distinct[tok] = true
		assert.Equal(t, tokens[0].AccessToken, tok.AccessToken)
	}
	assert.Len(t, distinct, 1000)
	assert.Len(t, server.TokenRequests(), 1)
}

func TestCallersAtTheEndOfAGrantStartNoOther(t *testing.T) {
	t.Parallel()
	for range 20 {
		server := onLoopback(t)
		s := sourceOf(t, server)
		stop := make(chan struct{})
		var wg sync.WaitGroup
		for range 64 { // they come one after the other all through the grant, and past its end
			wg.Go(func() {
				for {
					_, err := s.wait(t.Context())
					assert.NoError(t, err)
					select {
					case <-stop:
						return
					default:
					}
				}
			})
		}
		token(t, s)
		close(stop)
		wg.Wait()
		require.Len(t, server.TokenRequests(), 1)
	}
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
		synctest.Wait() // the first caller's grant is under way
		var wg sync.WaitGroup
		for range 10 {
			wg.Go(func() {
				tok, err := s.TokenContext(t.Context())
				assert.NoError(t, err)
				assert.True(t, server.Alive(tok.AccessToken))
				assert.Equal(t, 3*time.Second, time.Since(began))
			})
		}
		time.Sleep(time.Second)
		cancel()
		assert.ErrorIs(t, <-first, context.Canceled)
		wg.Wait()
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestCallerWithADeadContextStartsNoGrant(t *testing.T) {
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
	assert.NoError(t, err, "a fresh token needs no waiting")
}

func TestGrantEndsWithinTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := sourceOf(t, inMemory(t, moovtest.WithLatency(time.Hour)), WithTimeout(7*time.Second))
		began := time.Now()
		_, err := s.Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "not done within 7s (see WithTimeout)")
		assert.Equal(t, 7*time.Second, time.Since(began))
	})
}

func TestDefaultTimeoutIsThirtySeconds(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := sourceOf(t, inMemory(t, moovtest.WithLatency(time.Hour)))
		began := time.Now()
		_, err := s.Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 30*time.Second, time.Since(began))
	})
}

func TestGrantCarriesNothingOfItsCallersContext(t *testing.T) {
	t.Parallel()
	type key struct{}
	server := onLoopback(t)
	var seen any
	client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		seen = r.Context().Value(key{})
		return server.Client().Transport.RoundTrip(r)
	})}
	_, err := sourceOf(t, server, WithHTTPClient(client)).TokenContext(context.WithValue(t.Context(), key{}, "trace"))
	require.NoError(t, err)
	assert.Nil(t, seen)
}

// An hour of calls, one a second, with 15-minute tokens.
func TestHourWithoutAWait(t *testing.T) {
	t.Parallel()
	for name, wrap := range map[string]func(*TokenSource) oauth2.TokenSource{
		"by itself":        func(s *TokenSource) oauth2.TokenSource { return s },
		"ReuseTokenSource": func(s *TokenSource) oauth2.TokenSource { return oauth2.ReuseTokenSource(nil, s) },
		"ReuseTokenSourceWithExpiry": func(s *TokenSource) oauth2.TokenSource {
			return oauth2.ReuseTokenSourceWithExpiry(nil, s, time.Minute)
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithLatency(500*time.Millisecond))
				s := wrap(sourceOf(t, server))
				began := time.Now()
				token(t, s)
				for time.Since(began) < time.Hour {
					called := time.Now()
					tok := token(t, s)
					require.Zero(t, time.Since(called), "waited after %v", time.Since(began))
					require.True(t, server.Alive(tok.AccessToken), "dead after %v", time.Since(began))
					time.Sleep(time.Second)
				}
				synctest.Wait()
				grants := grantTypes(server)
				assert.GreaterOrEqual(t, len(grants), 4)
				assert.LessOrEqual(t, len(grants), 6)
				assert.Equal(t, grantClientCredentials, grants[0])
				assert.NotContains(t, grants[1:], grantClientCredentials)
			})
		})
	}
}

// The same hour through an http.Client of x/oauth2.
func TestHourWithoutAWaitThroughNewClient(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		slow := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			time.Sleep(500 * time.Millisecond) // token requests alone
			return server.Transport().RoundTrip(r)
		})}
		ctx := context.WithValue(t.Context(), oauth2.HTTPClient, server.Client())
		client := oauth2.NewClient(ctx, sourceOf(t, server, WithHTTPClient(slow)))
		began := time.Now()
		for time.Since(began) < time.Hour {
			called := time.Now()
			resp, err := client.Get(server.URL + "/ping")
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.StatusCode)
			resp.Body.Close()
			if called != began {
				require.Zero(t, time.Since(called))
			}
			time.Sleep(time.Second)
		}
		synctest.Wait()
		grants := grantTypes(server)
		assert.GreaterOrEqual(t, len(grants), 4)
		assert.LessOrEqual(t, len(grants), 6)
		assert.NotContains(t, grants[1:], grantClientCredentials)
	})
}

func TestTwoOAuth2ClientsShareOneSource(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithLifetime(11*time.Second)) // soon stale in both wrappers
	s := sourceOf(t, server)
	ctx := context.WithValue(t.Context(), oauth2.HTTPClient, server.Client())
	var wg sync.WaitGroup
	for range 2 {
		client := oauth2.NewClient(ctx, s)
		for range 8 {
			wg.Go(func() {
				for range 10 {
					resp, err := client.Get(server.URL + "/ping")
					if assert.NoError(t, err) {
						assert.Equal(t, http.StatusOK, resp.StatusCode)
						resp.Body.Close()
					}
				}
			})
		}
	}
	wg.Wait()
	assert.Len(t, server.TokenRequests(), 1)
}

func TestRefusedRefreshTokenIsReplacedInTheSameFlight(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403, 422} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				s := sourceOf(t, server)
				token(t, s)
				time.Sleep(15 * time.Minute)
				server.Enqueue(moovtest.Answer{Status: status, Body: `{"error":"invalid_grant"}`})
				tok := token(t, s)
				assert.True(t, server.Alive(tok.AccessToken))
				assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantClientCredentials}, grantTypes(server))

				time.Sleep(15 * time.Minute)
				token(t, s)
				requests := server.TokenRequests()
				assert.Equal(t, tok.RefreshToken, requests[3].Form.Get("refresh_token"), "the refused one is not tried again")
			})
		})
	}
}

func TestRefusedRefreshTokenIsDroppedEvenIfClientCredentialsFail(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		token(t, s)
		time.Sleep(15 * time.Minute)
		server.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_grant"}`}, moovtest.Answer{Status: 403})
		_, err := s.Token()
		require.Error(t, err)
		time.Sleep(time.Minute)
		token(t, s)
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantClientCredentials, grantClientCredentials}, grantTypes(server))
	})
}

func TestReplyWithoutARefreshTokenKeepsTheOneInUseAfterARefreshGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		first := token(t, s)
		time.Sleep(15 * time.Minute)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"second","expires_in":900}`})
		assert.Equal(t, first.RefreshToken, token(t, s).RefreshToken)

		time.Sleep(15 * time.Minute)
		server.Enqueue(moovtest.Answer{Status: 400}, moovtest.Answer{Body: `{"access_token":"third","expires_in":900}`})
		assert.Empty(t, token(t, s).RefreshToken, "client credentials keep none")
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
		assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
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

func TestNonsenseInExpiresInDoesNotHammerTheServer(t *testing.T) {
	t.Parallel()
	for _, expiresIn := range []string{`null`, `0`, `-1`, `0.001`, `1e308`, `1e999`, `"NaN"`, `"soon"`, `{}`, `1736964352`, `"1736964352"`, `1e9`} {
		t.Run(expiresIn, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(30 * 365 * 24 * time.Hour) // a bubble begins in 2000
				server := inMemory(t)
				s := sourceOf(t, server)
				for i := range 300 {
					server.Enqueue(moovtest.Answer{Body: fmt.Sprintf(`{"access_token":"token-%d","expires_in":%s}`, i, expiresIn)})
				}
				for range 24 * 60 / 2 {
					token(t, s)
					time.Sleep(2 * time.Minute)
				}
				if expiresIn == "1e308" {
					time.Sleep(29 * 24 * time.Hour)
				}
				assert.GreaterOrEqual(t, len(server.TokenRequests()), 1)
				assert.LessOrEqual(t, len(server.TokenRequests()), 24*60/4)
				if expiresIn == "1e308" {
					time.Sleep(time.Minute)
					token(t, s)
					synctest.Wait()
					assert.Len(t, server.TokenRequests(), 2, "30 days at most")
				}
			})
		})
	}
}

func TestEarlyRefresh(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		lifetime   time.Duration
		opts       []Option
		from, till time.Duration // of the refresh point, after the grant
	}{
		{15 * time.Minute, nil, 15*time.Minute - 5*time.Second - 3*time.Minute, 15*time.Minute - 5*time.Second - 162*time.Second},
		{10 * time.Hour, nil, 10*time.Hour - 5*time.Second - 5*time.Minute, 10*time.Hour - 5*time.Second - 270*time.Second},
		{10 * time.Second, nil, 7 * time.Second, 7200 * time.Millisecond},
		{15 * time.Minute, []Option{WithEarlyRefresh(10 * time.Minute)}, 295 * time.Second, 355 * time.Second},
		{100 * time.Second, []Option{WithEarlyRefresh(time.Hour)}, 19 * time.Second, 26600 * time.Millisecond},
		{15 * time.Minute, []Option{WithEarlyRefresh(0)}, 895 * time.Second, 895 * time.Second},
	} {
		s := sourceOf(t, onLoopback(t), c.opts...)
		var now instant
		spread := make(map[int64]bool)
		for range 100 {
			at := time.Duration(s.endpoint.newHeld(oauth2.Token{AccessToken: "t"}, now, c.lifetime).refreshAt.monotonic)
			assert.GreaterOrEqual(t, at, c.from)
			assert.LessOrEqual(t, at, c.till)
			spread[int64(at)] = true
		}
		if c.from != c.till {
			assert.Greater(t, len(spread), 50, "a fleet must not refresh in step")
		}
	}
}

func TestHardExpiryStaysUnderReuseTokenSourcesMargin(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, onLoopback(t))
	for life, want := range map[time.Duration]time.Duration{
		8 * time.Second:  7200 * time.Millisecond,
		50 * time.Second: 45 * time.Second,
		15 * time.Minute: 895 * time.Second,
		24 * time.Hour:   24*time.Hour - 5*time.Second,
	} {
		assert.Equal(t, want, time.Duration(s.endpoint.newHeld(oauth2.Token{AccessToken: "t"}, instant{}, life).expireAt.wall), life)
	}
}

func TestBothClocksExpireAToken(t *testing.T) {
	t.Parallel()
	for name, move := range map[string]func(now *instant, d time.Duration){
		"wall clock set back":           func(now *instant, d time.Duration) { now.monotonic += int64(d); now.wall -= int64(time.Hour) },
		"monotonic clock stood still":   func(now *instant, d time.Duration) { now.wall += int64(d) },
		"both went on":                  func(now *instant, d time.Duration) { *now = now.add(d) },
		"wall clock set an hour onward": func(now *instant, d time.Duration) { now.wall += int64(time.Hour) },
	} {
		t.Run(name, func(t *testing.T) {
			server := onLoopback(t)
			s := sourceOf(t, server)
			now := s.endpoint.clock()
			s.endpoint.clock = func() instant { return now }
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

		time.Sleep(15 * time.Minute)
		assert.True(t, server.Alive(token(t, s).AccessToken))
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken}, grantTypes(server))
	})
}

func TestStartsFromAnExpiredToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		saved := token(t, sourceOf(t, server))
		time.Sleep(time.Hour)
		assert.True(t, server.Alive(token(t, sourceOf(t, server, WithToken(saved))).AccessToken))
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken}, grantTypes(server))
	})
}

func TestStartsFromARefreshTokenAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		saved := token(t, sourceOf(t, server))
		s, err := NewTokenSource(credentialsOf(server), WithBaseURL(server.URL), WithHTTPClient(server.Client()),
			WithToken(&oauth2.Token{RefreshToken: saved.RefreshToken}))
		require.NoError(t, err)
		assert.Equal(t, pingScope, token(t, s).Extra("scope"))
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken}, grantTypes(server))

		// Without scopes there is no other way to a token: the refresh token is kept.
		server.RevokeAll()
		s.Invalidate(token(t, s).AccessToken)
		for range 2 {
			_, err = s.Token()
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, grantRefreshToken, refused.GrantType)
			time.Sleep(time.Second)
		}
		assert.Len(t, server.TokenRequests(), 4)
		require.NoError(t, s.Revoke(t.Context()))
		_, err = s.Token()
		assert.ErrorContains(t, err, "WithScopes")
	})
}

func TestSavedTokenWithoutExpiryIsUsedForFiveMinutes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithToken(&oauth2.Token{AccessToken: "saved"}), WithEarlyRefresh(0))
		assert.Equal(t, time.Now().Add(5*time.Minute), token(t, s).Expiry)
		time.Sleep(294 * time.Second)
		assert.Equal(t, "saved", token(t, s).AccessToken)
		time.Sleep(time.Second)
		assert.NotEqual(t, "saved", token(t, s).AccessToken)
	})
}

func TestSavedTokenThatClaims55YearsIsUsedForThirtyDays(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithToken(&oauth2.Token{AccessToken: "saved", Expiry: time.Now().AddDate(55, 0, 0)}))
		assert.Equal(t, time.Now().Add(30*24*time.Hour), token(t, s).Expiry)
	})
}

func TestInvalidateForgetsTheCurrentTokenAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		s.Invalidate("before there is one")
		first := token(t, s)
		s.Invalidate("another")
		s.Invalidate("")
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)

		s.Invalidate(first.AccessToken)
		second := token(t, s)
		assert.NotEqual(t, first.AccessToken, second.AccessToken)
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken}, grantTypes(server), "the refresh token is kept")

		time.Sleep(2 * time.Second)
		s.Invalidate(first.AccessToken)
		assert.Equal(t, second.AccessToken, token(t, s).AccessToken, "a late 401 for an old token changes nothing")
	})
}

// If the API refuses one token after the other, the time between two token
// requests doubles.
func TestRequestsThatFollowInvalidationsBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		for began := time.Now(); time.Since(began) < 10*time.Minute; time.Sleep(100 * time.Millisecond) {
			tok, err := s.Token()
			if cooling := new(CoolDownError); errors.As(err, &cooling) {
				assert.Positive(t, time.Until(cooling.Until))
				assert.ErrorContains(t, err, "the API refuses one token after the other")
				continue
			}
			require.NoError(t, err)
			s.Invalidate(tok.AccessToken)
		}
		var gaps []time.Duration
		requests := server.TokenRequests()
		for i, r := range requests[1:] {
			gaps = append(gaps, r.Time.Sub(requests[i].Time).Round(time.Second))
		}
		require.Len(t, requests, 25)
		assert.Equal(t, []time.Duration{0, 1, 2, 4, 8, 16, 30, 30}, slices.Collect(func(yield func(time.Duration) bool) {
			for _, gap := range gaps[:8] {
				if !yield(gap / time.Second) {
					return
				}
			}
		}))

		time.Sleep(time.Minute)
		lasting := token(t, s)
		time.Sleep(31 * time.Second)
		s.Invalidate(lasting.AccessToken)
		next := token(t, s)
		s.Invalidate(next.AccessToken)
		time.Sleep(time.Second)
		token(t, s) // a token that lasted ends it
	})
}

func TestInvalidateDuringABackgroundGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second))
		s := sourceOf(t, server)
		old := token(t, s)
		time.Sleep(14 * time.Minute)
		token(t, s) // starts it
		s.Invalidate(old.AccessToken)
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.Len(t, server.TokenRequests(), 2)
	})
}

// Some servers kill the old token the moment that they issue the new one.
func TestInvalidateDuringABackgroundGrantCountsAtOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second), moovtest.WithLifetime(4*time.Second))
		s := sourceOf(t, server, WithEarlyRefresh(3*time.Second))
		first := token(t, s)
		s.Invalidate(first.AccessToken)
		second := token(t, s)
		time.Sleep(500 * time.Millisecond)
		token(t, s) // starts a grant
		synctest.Wait()
		require.True(t, s.memory.load().refreshing)
		s.Invalidate(second.AccessToken)
		assert.NotEqual(t, second.AccessToken, token(t, s).AccessToken)
		assert.Len(t, server.TokenRequests(), 3)
	})
}

func TestFailedBackgroundGrantIsNotSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		old := token(t, s)
		time.Sleep(14 * time.Minute)
		server.Enqueue(moovtest.Answer{Status: 404}, moovtest.Answer{Status: 404})
		assert.Equal(t, old.AccessToken, token(t, s).AccessToken)
		synctest.Wait()
		assert.Equal(t, old.AccessToken, token(t, s).AccessToken)
	})
}

func TestZeroTokenSourceSaysWhatToDo(t *testing.T) {
	t.Parallel()
	zero := new(TokenSource)
	_, err := zero.Token()
	assert.ErrorContains(t, err, "NewTokenSource")
	assert.ErrorContains(t, zero.Revoke(t.Context()), "NewTokenSource")
	_, err = zero.Client().Get(DefaultBaseURL)
	assert.ErrorContains(t, err, "NewTokenSource")
	zero.Invalidate("x")
}

func TestClientKeepsTheConfiguredClient(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	own := &http.Client{
		Transport:     server.Client().Transport,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Jar:           jar,
		Timeout:       time.Minute,
	}
	client := sourceOf(t, server, WithHTTPClient(own)).Client()
	assert.NotSame(t, own, client)
	assert.NotNil(t, client.CheckRedirect)
	assert.Same(t, jar, client.Jar)
	assert.Equal(t, time.Minute, client.Timeout)

	resp, err := client.Get(server.URL + "/ping")
	require.NoError(t, err)
	defer resp.Body.Close()
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.IsType(t, http.DefaultTransport, own.Transport, "the caller's client is not changed")
}

func TestLogsGrantsAndWarnings(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		server := inMemory(t)
		s := sourceOf(t, server, WithLogger(logger))
		token(t, s)
		assert.Contains(t, log.String(), "level=DEBUG")
		assert.Contains(t, log.String(), "grant_type=client_credentials")
		assert.Contains(t, log.String(), "request_id="+server.TokenRequests()[0].RequestID)

		time.Sleep(15 * time.Minute)
		log.Reset()
		server.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_grant"}`}, moovtest.Answer{Body: `{"access_token":"x"}`})
		token(t, s)
		assert.Contains(t, log.String(), "level=WARN")
		assert.Contains(t, log.String(), "going on with client credentials")
		assert.Contains(t, log.String(), "5 minutes are assumed")
	})
}

// The logger is called while the grant is ending: its token is there already.
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
		synctest.Wait()
	})
}

// atTheWait is a context that does something at the moment when its caller has
// joined a flight and is about to wait for it.
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

// A flight that has ended has its result ready for a caller that has not come to
// read it yet.
func TestFlightThatHasEndedDoesNotHandOutWhatIsGone(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(s *TokenSource){
		"Revoke":     func(s *TokenSource) { require.NoError(t, s.Revoke(context.Background())) },
		"Invalidate": func(s *TokenSource) { s.Invalidate(s.memory.load().held.token.AccessToken) },
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				s := sourceOf(t, server)
				var first string
				tok, err := s.TokenContext(&atTheWait{t.Context(), func() {
					synctest.Wait() // the flight has ended
					first = s.memory.load().held.token.AccessToken
					take(s)
				}})
				require.NoError(t, err)
				require.NotEmpty(t, first)
				assert.NotEqual(t, first, tok.AccessToken)
				assert.True(t, server.Alive(tok.AccessToken))
				assert.Len(t, server.TokenRequests(), 2)
			})
		})
	}
}

func TestInvalidateDuringABackgroundGrantIsNotCounted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		first := token(t, s)
		time.Sleep(13 * time.Minute)
		server.SetLatency(100 * time.Millisecond)
		token(t, s) // starts a background grant
		time.Sleep(10 * time.Millisecond)
		s.Invalidate(first.AccessToken)
		second := token(t, s)
		synctest.Wait()
		s.Invalidate(second.AccessToken)
		assert.NotEqual(t, second.AccessToken, token(t, s).AccessToken)
	})
}

func TestInvalidateOfNothingDoesNotCount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithToken(&oauth2.Token{RefreshToken: "unknown"}))
		s.Invalidate("")
		first := token(t, s)
		s.Invalidate(first.AccessToken)
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
	})
}

func TestSavedTokenIsBearer(t *testing.T) {
	t.Parallel()
	for _, tokenType := range []string{"opaque", "JWT", "bearer", ""} {
		saved := &oauth2.Token{AccessToken: "x", TokenType: tokenType, Expiry: time.Now().Add(10*time.Minute + time.Second/2)}
		s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(saved))
		require.NoError(t, err)
		assert.Equal(t, "Bearer", token(t, s).TokenType)
		assert.EqualValues(t, 600, token(t, s).ExpiresIn)
		assert.Equal(t, tokenType, saved.TokenType, "the caller's is not touched")
	}
}

func TestTimeLeftIsNotNegative(t *testing.T) {
	t.Parallel()
	assert.Zero(t, instant{}.after(instant{wall: 1}))
	assert.Equal(t, time.Duration(1), instant{wall: 5, monotonic: 1}.after(instant{}))
}

func TestTimeoutOfTheConfiguredClientCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(5*time.Second))
		client := *server.Client()
		client.Timeout = time.Second
		began := time.Now()
		_, err := sourceOf(t, server, WithHTTPClient(&client)).Token()
		assert.Error(t, err)
		assert.Less(t, time.Since(began), 4*time.Second, "three attempts")
	})
}

func TestCallerWhoseFlightsAreCancelledWaitsNoLongerThanTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Hour))
		s := sourceOf(t, server)
		var callers sync.WaitGroup
		defer callers.Wait()
		for i := range 6 {
			callers.Go(func() { // each Revoke starts the time of the flight anew
				time.Sleep(time.Duration(i) * 5 * time.Second)
				if i%2 == 1 {
					ctx, cancel := context.WithTimeout(t.Context(), time.Second)
					defer cancel()
					s.Revoke(ctx)
				}
				began := time.Now()
				_, err := s.Token()
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.LessOrEqual(t, time.Since(began), defaultTimeout+grace)
			})
		}
	})
}

func TestTokenThatExpiredOnItsWayIsNotHandedOut(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLifetime(5*time.Second))
		late := 6 * time.Second
		s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := server.Transport().RoundTrip(r)
			time.Sleep(late)
			return resp, err
		})}))
		_, err := s.Token()
		assert.ErrorContains(t, err, "expired on its way")
		late = 0
		time.Sleep(time.Second)
		assert.True(t, server.Alive(token(t, s).AccessToken))
		require.NoError(t, s.Revoke(t.Context()))
		assert.Empty(t, server.RefreshTokens(), "also that of the late reply")
	})
}

func TestTokenThatExpiresWhileItIsPutIntoTheCacheIsNotHandedOut(t *testing.T) {
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
