package moovtest_test

import (
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

func TestLostReplies(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		lost := func(req *http.Request) {
			t.Helper()
			s.Enqueue(moovtest.Answer{
				Lost: true, Status: 503, Header: http.Header{"X-Request-Id": {"mine"}}, Body: "not sent",
				Handler: func(http.ResponseWriter, *http.Request) { t.Error("the handler is not called") },
			})
			_, err := s.Client().Do(req)
			assert.Error(t, err)
		}

		lost(posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read"))
		require.Len(t, s.AccessTokens(), 1, "issued")
		access, refreshToken := s.AccessTokens()[0], s.RefreshTokens()[0]

		lost(posting(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken))
		assert.False(t, s.Alive(refreshToken), "used up")
		assert.Len(t, s.AccessTokens(), 2)
		assert.Equal(t, 400, refresh(t, s, refreshToken).StatusCode)

		lost(posting(t, s, "/oauth2/revoke", "token", access))
		assert.False(t, s.Alive(access), "revoked")

		lost(posting(t, s, "/oauth2/token", "grant_type", "client_credentials"))
		assert.Len(t, s.AccessTokens(), 1, "a request that would be refused gets no token")
		for _, r := range s.Requests() {
			assert.Regexp(t, uuidV4, r.RequestID)
		}
		assert.Equal(t, 200, grant(t, s).StatusCode, "the queue is empty")
	})
}

func TestLostReplyComesAfterItsLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t, moovtest.WithLatency(time.Second))
		s.Enqueue(moovtest.Answer{Lost: true, Latency: time.Minute})
		began := time.Now()
		_, err := s.Client().Do(posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read"))
		assert.ErrorContains(t, err, "hung up")
		assert.Equal(t, 61*time.Second, time.Since(began))
		assert.Len(t, s.AccessTokens(), 1)
	})
}

func TestLostReplyWithReuseDetection(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithReuseDetection())
		first := grant(t, s)
		s.Enqueue(moovtest.Answer{Lost: true})
		_, err := s.Client().Do(posting(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", first.member(t, "refresh_token")))
		require.Error(t, err)
		assert.True(t, s.Alive(first.member(t, "access_token")))

		assert.Equal(t, 400, refresh(t, s, first.member(t, "refresh_token")).StatusCode)
		assert.Empty(t, s.AccessTokens(), "a second use of the refresh token revokes its family")
	})
}
