package main

import (
	"errors"
	"io"
	"net"
	"net/http"
	"net/url"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

func TestEachTokenIsForOneAccountAndPurpose(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		session := f.signedIn("a1")
		assert.Equal(t, 200, f.send("GET", "/cards", session).Code)
		f.mint(session)
		var scopes []string
		for _, r := range f.server.TokenRequests() {
			scopes = append(scopes, r.Form.Get("scope"))
		}
		assert.Equal(t, []string{"/ping.read", "/accounts/a1/cards.read", "/accounts/a1/cards.write"}, scopes)
	})
}

func TestOutageOfTheTokenEndpoint(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		require.Equal(t, 200, f.get("a1"))
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		time.Sleep(13 * time.Minute)
		assert.Equal(t, 200, f.get("a1"), "its token is stale, and good")
		assert.Equal(t, 503, f.get("a2"))
		assert.Equal(t, 200, f.send("GET", "/live", nil).Code, "a restart would not help")

		time.Sleep(3 * time.Minute)
		assert.Equal(t, 503, f.get("a1"), "its token has expired")
		backingOff := f.send("GET", "/cards", f.signedIn("a1"))
		assert.Equal(t, 503, backingOff.Code)
		assert.NotEmpty(t, backingOff.Header().Get("Retry-After"))
		assert.Equal(t, 503, f.send("GET", "/ready", nil).Code)

		f.server.SetAnswer(nil)
		time.Sleep(time.Minute)
		assert.Equal(t, 200, f.get("a1"))
		assert.Equal(t, 200, f.get("a2"))
		assert.Equal(t, 200, f.send("GET", "/ready", nil).Code)
	})
}

func TestIdleAccountsAreReady(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		require.Equal(t, 200, f.get("a1"))
		time.Sleep(time.Hour)
		assert.Equal(t, 200, f.send("GET", "/ready", nil).Code, "all tokens have expired, and no one wants one")
	})
}

func TestTokenThatTheAPIRefusesIsReplaced(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		require.Equal(t, 200, f.get("a1"))
		f.server.RevokeAll()
		before := len(f.server.TokenRequests())
		assert.Equal(t, 200, f.get("a1"))
		assert.Greater(t, len(f.server.TokenRequests()), before)

		f.answerWith(http.StatusUnauthorized)
		for range 10 {
			assert.Equal(t, 502, f.get("a1"), "not a 401, which would sign the user out")
		}
		assert.LessOrEqual(t, len(f.server.TokenRequests()), before+4, "an API that answers 401 to everything causes few token requests")
		f.answer.Store(nil)
		assert.Equal(t, 200, f.get("a1"))
	})
}

func TestExpiredTokenIsRefreshed(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		for range 24 {
			require.Equal(t, 200, f.get("a1"))
			time.Sleep(time.Hour)
		}
		requests := f.server.TokenRequests()[1:] // without the one at the start
		require.Len(t, requests, 24)
		assert.Equal(t, "client_credentials", requests[0].GrantType)
		assert.Equal(t, "refresh_token", requests[23].GrantType)
	})
}

func TestServiceWaitsForTheRateLimitOfTheTokenEndpoint(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.server.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"2"}}})
		begin := time.Now()
		assert.Equal(t, 200, f.get("a1"))
		assert.InDelta(t, 2, time.Since(begin).Seconds(), 0.5)
	})
}

func TestRateLimitOfTheAPIIsForTheCaller(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.answerWith(http.StatusTooManyRequests, "Retry-After", "7")
		w := f.send("GET", "/cards", f.signedIn("a1"))
		assert.Equal(t, 503, w.Code)
		assert.Equal(t, "7", w.Header().Get("Retry-After"))
		f.answer.Store(nil)
		assert.Equal(t, 200, f.get("a2"), "other accounts do not wait")
	})
}

func TestSignInAndOut(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		assert.Equal(t, 401, f.send("GET", "/cards", nil).Code)
		assert.Equal(t, 401, f.send("POST", "/moov-token", nil).Code)
		session := f.send("POST", "/sign-in", nil).Result().Cookies()[0]
		assert.True(t, session.HttpOnly)
		assert.True(t, session.Secure)
		assert.Equal(t, http.SameSiteStrictMode, session.SameSite)
		first, second := f.mint(session), f.mint(session)
		others := f.mint(f.signedIn("a2"))
		assert.Equal(t, 200, f.send("POST", "/sign-out", session).Code)
		assert.False(t, f.server.Alive(first))
		assert.False(t, f.server.Alive(second))
		assert.True(t, f.server.Alive(others))
		assert.Equal(t, 401, f.send("POST", "/moov-token", session).Code, "a copy of the cookie is worth nothing")
		assert.Equal(t, 401, f.send("GET", "/cards", session).Code)
		assert.Equal(t, 200, f.send("POST", "/sign-out", session).Code, "to sign out twice is no error")
	})
}

func TestSignInEndsTheFormerSession(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		former := f.signedIn("a1")
		token := f.mint(former)
		require.Equal(t, 200, f.send("POST", "/sign-in", former).Code)
		assert.False(t, f.server.Alive(token))
		assert.Equal(t, 401, f.send("POST", "/moov-token", former).Code)
	})
}

func TestSignInAndOutDoNotWaitForMoov(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		for _, path := range []string{"/sign-in", "/sign-out"} {
			session := f.signedIn("a1")
			f.mint(session)
			f.server.SetAnswer(&moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"3600"}}})
			begin := time.Now()
			assert.Equal(t, 200, f.send("POST", path, session).Code)
			assert.LessOrEqual(t, time.Since(begin), 5*time.Second)
			f.server.SetAnswer(nil)
			time.Sleep(2 * time.Hour)
		}
	})
}

func TestOneUserCannotMintAllTokens(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		session := f.signedIn("a1")
		for range 10 {
			f.mint(session)
		}
		assert.Equal(t, 429, f.send("POST", "/moov-token", session).Code)
		f.mint(f.signedIn("a2"))
		time.Sleep(10 * time.Second)
		f.mint(session)
	})
}

func TestReplyThatBreaksOffIsNotComplete(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			_, _ = io.WriteString(w, "[")
		})))
		session := f.signedIn("a1")
		assert.PanicsWithValue(t, http.ErrAbortHandler, func() { f.send("GET", "/cards", session) })
	})
}

func TestFailedConnectionIsWorthARetry(t *testing.T) {
	assert.True(t, temporary(&url.Error{Op: "Get", Err: &net.OpError{Op: "dial", Err: errors.New("connection refused")}}))
	assert.False(t, temporary(errors.New("another")))
}

func TestOtherOriginCannotSignOut(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		session := f.signedIn("a1")
		r, _ := http.NewRequest("POST", "https://example.com/sign-out", nil)
		r.Header.Set("Sec-Fetch-Site", "cross-site")
		r.AddCookie(session)
		assert.Equal(t, 403, f.serveHTTP(r).Code)
		assert.Equal(t, 200, f.send("GET", "/cards", session).Code)
	})
}

func TestNoTokenIsAliveAfterSignOut(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		before := len(f.server.AccessTokens())
		session := f.signedIn("a1")
		f.mint(session)
		var pages sync.WaitGroup
		for range 20 { // some get their token before the sign-out, some during it, some never
			pages.Go(func() { f.send("POST", "/moov-token", session) })
		}
		time.Sleep(time.Second)
		f.send("POST", "/sign-out", session)
		pages.Wait()
		time.Sleep(time.Minute)
		assert.Len(t, f.server.AccessTokens(), before)
	})
}

func TestSignOutDuringAnOutage(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		log := captureLog(t)
		require.NoError(t, f.start(nil))
		session := f.signedIn("a1")
		f.mint(session)
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		assert.Equal(t, 200, f.send("POST", "/sign-out", session).Code, "the user is signed out anyway")
		assert.Equal(t, 401, f.send("POST", "/moov-token", session).Code)
		assert.Contains(t, log.String(), "moovauth: token not revoked")
	})
}

func TestSessionForgetsTokensThatHaveExpired(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		session := f.signedIn("a1")
		for range 20 {
			f.mint(session)
			time.Sleep(12 * time.Minute)
		}
		f.send("POST", "/sign-out", session)
		assert.LessOrEqual(t, len(f.server.RevokeRequests()), 2)
	})
}

func TestSignOutAfterARotationRevokesWithTheFormerKey(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		session := f.signedIn("a1")
		old := f.mint(session)
		f.newKey()
		r.hangup()
		time.Sleep(time.Minute)
		assert.True(t, f.server.Alive(old), "the page continues with its token")
		recent := f.mint(session)
		f.send("POST", "/sign-out", session)
		assert.False(t, f.server.Alive(old))
		assert.False(t, f.server.Alive(recent))
	})
}
