package moovtest_test

import (
	"net/http"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// as sends fields like post, with the credentials of another client.
func as(t *testing.T, s *moovtest.Server, id, secret, path string, fields ...string) reply {
	t.Helper()
	req := posting(t, s, path, fields...)
	req.SetBasicAuth(id, secret)
	return do(t, s, req)
}

func TestCredentialsCanChangeWhileTheServerRuns(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithCredentials("id", "old"))
		works := func(secret string) bool {
			t.Helper()
			r := as(t, s, "id", secret, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
			revoked := as(t, s, "id", secret, "/oauth2/revoke", "token", "x")
			require.Equal(t, r.StatusCode == 200, revoked.StatusCode == 204)
			if r.StatusCode != 200 {
				require.Equal(t, "invalid_client", r.member(t, "error"))
			}
			return r.StatusCode == 200
		}
		assert.True(t, works("old"))
		assert.False(t, works("new"))
		refreshToken := s.RefreshTokens()[0]

		s.SetCredentials("id", "new")
		assert.True(t, works("new"))
		assert.True(t, works("old"), "until DropOldCredentials")
		assert.Equal(t, "old", s.ClientSecret, "the field does not change")

		s.DropOldCredentials()
		assert.True(t, works("new"))
		assert.False(t, works("old"))
		s.DropOldCredentials()
		assert.True(t, works("new"))

		r := as(t, s, "id", "new", "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken)
		assert.Equal(t, 200, r.StatusCode, "tokens issued before stay valid")

		s.SetCredentials("id", "third")
		s.SetCredentials("id", "fourth")
		assert.True(t, works("new") && works("third") && works("fourth"))
		s.DropOldCredentials()
		assert.False(t, works("new") || works("third"))
	})
}

func TestTokensBelongToTheClientTheyWereIssuedTo(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithCredentials("old", "secret"), moovtest.WithReuseDetection())
		first := grant(t, s)
		access, refreshToken := first.member(t, "access_token"), first.member(t, "refresh_token")
		s.SetCredentials("new", "secret")

		use := func(id string) reply {
			return as(t, s, id, "secret", "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken)
		}
		r := use("new")
		assert.Equal(t, 400, r.StatusCode)
		assert.Equal(t, "invalid_grant", r.member(t, "error"))
		r = as(t, s, "new", "secret", "/oauth2/revoke", "token", access)
		assert.Equal(t, 400, r.StatusCode)
		assert.Equal(t, "invalid_grant", r.member(t, "error"))
		assert.True(t, s.Alive(access))
		assert.Equal(t, 204, as(t, s, "new", "secret", "/oauth2/revoke", "token", "unknown").StatusCode)

		require.Equal(t, 200, use("old").StatusCode)
		assert.Equal(t, 400, use("new").StatusCode)
		assert.True(t, s.Alive(access), "use by another client does not count as reuse")
		assert.Equal(t, 200, ping(t, s, "Bearer "+access).StatusCode)
		assert.Equal(t, 400, use("old").StatusCode)
		assert.False(t, s.Alive(access))
	})
}

func TestCredentialsChangeUnderConcurrentRequests(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		var all sync.WaitGroup
		for range 20 {
			req := posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
			all.Go(func() {
				resp, err := s.Client().Do(req)
				if assert.NoError(t, err) {
					resp.Body.Close()
					assert.Equal(t, http.StatusOK, resp.StatusCode)
				}
			})
			all.Go(func() { s.SetCredentials("id", "secret") })
		}
		all.Wait()
		assert.Len(t, s.AccessTokens(), 20)
	})
}
