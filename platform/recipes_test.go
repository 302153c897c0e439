package platform_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// What the SignOut example does when sign-out and Moov fail.

func newTokens(t *testing.T, server *moovtest.Server, opts ...platform.Option) *platform.Tokens {
	t.Helper()
	tokens, err := platform.New(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		append(opts, platform.WithSource(moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client())), platform.WithRate(1000))...)
	require.NoError(t, err)
	return tokens
}

func newSessions(t *testing.T, server *moovtest.Server) *sessions {
	s := &sessions{open: map[string]map[string]time.Time{"ada": {}}, ended: make(map[string]time.Time)}
	s.tokens = newTokens(t, server, platform.WithMinted(s.minted))
	return s
}

// Pages request tokens while the user signs out.
func TestNoTokenIsAliveAfterSignOut(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	s := newSessions(t, server)
	endpoint := s.tokens.Handler(func(*http.Request) ([]string, error) { return []string{"/ping.read"}, nil })
	fetch := func() {
		r := httptest.NewRequest(http.MethodPost, "/moov-token", nil)
		r.AddCookie(&http.Cookie{Name: "session", Value: "ada"})
		endpoint.ServeHTTP(httptest.NewRecorder(), r)
	}
	fetch()
	fetch()
	require.Len(t, server.AccessTokens(), 2)
	var pages sync.WaitGroup
	for range 20 {
		pages.Go(fetch)
	}
	require.NoError(t, s.signOut(t.Context(), "ada"))
	pages.Wait()
	assert.EqualValues(t, 22, s.tokens.Stats().Minted)
	assert.EqualValues(t, 22, s.tokens.Stats().Revoked)
	assert.Empty(t, server.AccessTokens())
}

// A token whose revocation failed is kept until it is revoked or has expired.
func TestSignOutWhileMoovIsDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLifetime(time.Minute))
		defer server.Close()
		s := newSessions(t, server)
		for _, session := range []string{"ada", "grace"} {
			s.open[session] = make(map[string]time.Time)
			r := httptest.NewRequest(http.MethodPost, "/moov-token", nil)
			r.AddCookie(&http.Cookie{Name: "session", Value: session})
			s.tokens.Handler(func(*http.Request) ([]string, error) { return []string{"/ping.read"}, nil }).ServeHTTP(httptest.NewRecorder(), r)
		}
		require.Len(t, server.AccessTokens(), 2)
		server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		require.Error(t, s.signOut(t.Context(), "ada"))
		assert.Len(t, s.ended, 1)
		server.SetAnswer(nil)
		require.NoError(t, s.revokeEnded(t.Context()))
		assert.Len(t, server.AccessTokens(), 1)
		assert.Empty(t, s.ended)

		server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		require.Error(t, s.signOut(t.Context(), "grace"))
		time.Sleep(time.Minute)
		require.NoError(t, s.revokeEnded(t.Context()))
		assert.Empty(t, s.ended)
	})
}
