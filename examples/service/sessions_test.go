package main

import (
	"net/http"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

func TestSignInAndOut(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.config.account = "a1"
		session := f.send("POST", "/sign-in", nil).Result().Cookies()[0]
		assert.True(t, session.HttpOnly)
		assert.True(t, session.Secure)
		assert.Equal(t, http.SameSiteStrictMode, session.SameSite)
		first, second := f.mint(session), f.mint(session)
		others := f.mint(f.sessions.begin("a2"))
		assert.Equal(t, 204, f.send("POST", "/sign-out", session).Code)
		assert.False(t, f.server.Alive(first))
		assert.False(t, f.server.Alive(second))
		assert.True(t, f.server.Alive(others))
		assert.Equal(t, 401, f.send("POST", "/moov-token", session).Code, "a copy of the cookie is worth nothing")
		assert.Equal(t, 401, f.send("GET", "/cards", session).Code)
		assert.Equal(t, 204, f.send("POST", "/sign-out", session).Code, "twice is no error")
	})
}

// However pages and the sign-out come in each other's way.
func TestNoTokenIsAliveAfterSignOut(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		before := len(f.server.AccessTokens())
		session := f.sessions.begin("a1")
		f.mint(session)
		var pages sync.WaitGroup
		for range 20 {
			pages.Go(func() { f.send("POST", "/moov-token", session) })
		}
		time.Sleep(time.Second)
		f.send("POST", "/sign-out", session)
		pages.Wait()
		time.Sleep(time.Minute)
		assert.Len(t, f.server.AccessTokens(), before)
	})
}

func TestSignOutDuringAnOutageIsCompletedLater(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.run()
		session := f.sessions.begin("a1")
		token := f.mint(session)
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		assert.Equal(t, 204, f.send("POST", "/sign-out", session).Code, "the user is signed out anyway")
		assert.Equal(t, 401, f.send("POST", "/moov-token", session).Code)
		time.Sleep(time.Minute)
		require.True(t, f.server.Alive(token))
		f.server.SetAnswer(nil)
		time.Sleep(time.Minute)
		assert.False(t, f.server.Alive(token))
		requests := len(f.server.RevokeRequests())
		time.Sleep(time.Hour)
		assert.Len(t, f.server.RevokeRequests(), requests, "it is revoked once")
	})
}

func TestTokenThatCannotBeRevokedIsForgottenWhenItExpires(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.run()
		session := f.sessions.begin("a1")
		f.mint(session)
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		f.send("POST", "/sign-out", session)
		time.Sleep(time.Hour)
		f.sessions.mu.Lock()
		defer f.sessions.mu.Unlock()
		assert.Empty(t, f.sessions.ended)
	})
}

func TestSessionNotesOnlyTokensThatAreAlive(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		session := f.sessions.begin("a1")
		for range 20 {
			f.mint(session)
			time.Sleep(12 * time.Minute)
		}
		assert.LessOrEqual(t, len(f.sessions.open[session.Value].minted), 2)
	})
}

func TestSignOutAfterARotationRevokesWithTheFormerKey(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		session := f.sessions.begin("a1")
		old := f.mint(session)
		f.newKey()
		r.hangup <- syscall.SIGHUP
		time.Sleep(time.Minute)
		assert.True(t, f.server.Alive(old), "the page goes on with its token")
		recent := f.mint(session)
		f.send("POST", "/sign-out", session)
		assert.False(t, f.server.Alive(old))
		assert.False(t, f.server.Alive(recent))
	})
}
