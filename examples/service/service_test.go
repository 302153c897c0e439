package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func TestEachTokenIsForOneAccountAndPurpose(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		session := f.sessions.begin("a1")
		assert.Equal(t, 200, f.send("GET", "/cards", session).Code)
		f.mint(session)
		var scopes []string
		for _, r := range f.server.TokenRequests() {
			scopes = append(scopes, r.Form.Get("scope"))
		}
		assert.Equal(t, []string{"/ping.read", "/accounts/a1/cards.read", "/accounts/a1/cards.write"}, scopes)
	})
}

func TestNothingWithoutASession(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		assert.Equal(t, 401, f.send("GET", "/cards", nil).Code)
		assert.Equal(t, 401, f.send("POST", "/moov-token", nil).Code)
		assert.Len(t, f.server.TokenRequests(), 1, "that of the start")
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
		backingOff := f.send("GET", "/cards", f.sessions.begin("a1"))
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

		f.answer(http.StatusUnauthorized)
		for range 10 {
			assert.Equal(t, 502, f.get("a1"), "not a 401, which would sign the user out")
		}
		assert.LessOrEqual(t, len(f.server.TokenRequests()), before+4, "an API that answers 401 to everything causes few token requests")
		f.cards.Store(nil)
		assert.Equal(t, 200, f.get("a1"))
	})
}

func TestExpiredTokenIsRefreshed(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		for range 24 {
			require.Equal(t, 200, f.get("a1"))
			time.Sleep(time.Hour)
		}
		requests := f.server.TokenRequests()[1:] // after that of the start
		require.Len(t, requests, 24)
		assert.Equal(t, "client_credentials", requests[0].GrantType)
		assert.Equal(t, "refresh_token", requests[23].GrantType)
	})
}

func TestRateLimitOfTheTokenEndpointIsWaitedFor(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.server.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"2"}}})
		begin := time.Now()
		assert.Equal(t, 200, f.get("a1"))
		assert.InDelta(t, 2, time.Since(begin).Seconds(), 0.5)
	})
}

func TestRateLimitOfTheAPIIsForTheCaller(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.answer(http.StatusTooManyRequests, "Retry-After", "7")
		w := f.send("GET", "/cards", f.sessions.begin("a1"))
		assert.Equal(t, 503, w.Code)
		assert.Equal(t, "7", w.Header().Get("Retry-After"))
		f.cards.Store(nil)
		assert.Equal(t, 200, f.get("a2"), "the others do not wait")
	})
}

func TestStart(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.key.Store(&moovauth.Credentials{ClientID: "mistyped", ClientSecret: "mistyped"})
		require.ErrorContains(t, f.start(""), "invalid_client", "a wrong key is found at once")
		f.key.Store(&moovauth.Credentials{ClientID: f.server.ClientID, ClientSecret: f.server.ClientSecret})
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		require.NoError(t, f.start(""), "an outage does not keep the service from starting")
		f.server.SetAnswer(nil)
		assert.Equal(t, 200, f.get("a1"))
	})
}

func TestShutdownRevokes(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		session := f.sessions.begin("a1")
		f.mint(session)
		slow := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { time.Sleep(5 * time.Second) })
		f.cards.Store(&slow)
		called := make(chan int)
		go func() {
			status, err := r.get(session)
			assert.NoError(t, err)
			called <- status
		}()
		synctest.Wait()
		ended := make(chan error)
		go func() { ended <- r.stop() }()
		assert.Equal(t, 200, <-called, "a call that has begun is completed")
		require.NoError(t, <-ended)
		assert.Empty(t, f.server.AccessTokens())
	})
}

// A handler that does not end would obtain another token.
func TestShutdownBreaksOffACallThatDoesNotEnd(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		inner := f.handler
		f.handler = http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
			for r.Context().Err() == nil { // as one that reads page after page
				inner.ServeHTTP(httptest.NewRecorder(), r)
				time.Sleep(time.Second)
			}
		})
		r := f.run()
		session := f.sessions.begin("a1")
		go func() { _, _ = r.get(session) }()
		time.Sleep(10 * time.Second)
		begin := time.Now()
		require.ErrorIs(t, r.stop(), context.DeadlineExceeded)
		assert.LessOrEqual(t, time.Since(begin), closing)
		time.Sleep(time.Minute)
		assert.Empty(t, f.server.AccessTokens())
	})
}

func TestShutdownDuringAnOutageEnds(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		for _, account := range []string{"a1", "a2", "a3"} {
			require.Equal(t, 200, f.get(account))
		}
		f.mint(f.sessions.begin("a1"))
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		begin := time.Now()
		require.ErrorContains(t, r.stop(), "0 sources finished, 4 left")
		assert.LessOrEqual(t, time.Since(begin), closing)
	})
}

func TestShutdownWithACacheLeavesTheAccountsTokens(t *testing.T) {
	cache := filepath.Join(t.TempDir(), "moov")
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, cache)
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		minted := f.mint(f.sessions.begin("a1"))
		require.NoError(t, r.stop())
		assert.False(t, f.server.Alive(minted))
		before := len(f.server.TokenRequests())

		require.NoError(t, f.start(cache))
		assert.Equal(t, 200, f.get("a1"))
		assert.Len(t, f.server.TokenRequests(), before, "the next process has the token")
	})
}

func TestHelpNamesEveryVariable(t *testing.T) {
	var out strings.Builder
	err := run(t.Context(), &out, []string{"-h"}, func(name string) string { return "" }, nil)
	require.Error(t, err)
	source, err := os.ReadFile("main.go")
	require.NoError(t, err)
	for _, part := range strings.Split(string(source), `env("`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		assert.Contains(t, out.String(), name)
	}
}

func TestKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(name, []byte("public\nsecret\n"), 0o600))
	creds, err := readKey(name)
	require.NoError(t, err)
	assert.Equal(t, moovauth.Credentials{ClientID: "public", ClientSecret: "secret"}, creds)
	require.NoError(t, os.WriteFile(name, []byte("secret"), 0o600))
	_, err = readKey(name)
	require.ErrorContains(t, err, "want the public key and the secret key")
	assert.NotContains(t, err.Error(), "secret\n")
}
