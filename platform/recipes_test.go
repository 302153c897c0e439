package platform_test

import (
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// What the recipes do on a bad day.

func newTokens(t *testing.T, server *moovtest.Server) *platform.Tokens {
	t.Helper()
	tokens, err := platform.New(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithSource(moovauth.WithBaseURL(server.URL)), platform.WithRate(1000))
	require.NoError(t, err)
	return tokens
}

func TestRotationToAWrongKeyChangesNothing(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	r := &rotating{opts: []platform.Option{platform.WithSource(moovauth.WithBaseURL(server.URL))}}
	first := newTokens(t, server)
	r.current.Store(first)
	_, err := r.rotate(t.Context(), moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "mistyped"})
	require.ErrorAs(t, err, new(*moovauth.Error))
	assert.Same(t, first, r.current.Load())
}

// However pages and the sign-out come in each other's way.
func TestNoTokenIsAliveAfterSignOut(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	s := &sessions{tokens: newTokens(t, server), open: map[string]map[string]time.Time{"ada": {}}}
	endpoint := s.remember(s.tokens.Handler(func(*http.Request) ([]string, error) { return []string{"/ping.read"}, nil }))
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

func TestRememberPassesOnWhatIsNoToken(t *testing.T) {
	s := &sessions{open: map[string]map[string]time.Time{}}
	reply := httptest.NewRecorder()
	s.remember(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "7")
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = w.Write([]byte(`{"error":"service_unavailable"}`))
	})).ServeHTTP(reply, httptest.NewRequest(http.MethodPost, "/moov-token", nil))
	assert.Equal(t, http.StatusServiceUnavailable, reply.Code)
	assert.Equal(t, "7", reply.Header().Get("Retry-After"))
	assert.JSONEq(t, `{"error":"service_unavailable"}`, reply.Body.String())
}

func TestSessionForgetsTokensThatHaveExpired(t *testing.T) {
	s := &sessions{open: map[string]map[string]time.Time{"ada": {}}}
	require.True(t, s.note("ada", "old", time.Now().Add(-time.Second)))
	require.True(t, s.note("ada", "new", time.Now().Add(time.Minute)))
	assert.Len(t, s.open["ada"], 1)
	assert.Contains(t, s.open["ada"], "new")
}
