package moovtest_test

import (
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/assert"

	"github.com/moovauth/moovauth/moovtest"
)

func TestReuseOfARefreshTokenRevokesItsFamily(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithReuseDetection())
		first, other := grant(t, s), grant(t, s)
		second := refresh(t, s, first.member(t, "refresh_token"))
		third := refresh(t, s, second.member(t, "refresh_token"))
		assert.Equal(t, 200, third.StatusCode)
		assert.Len(t, s.AccessTokens(), 4)

		again := refresh(t, s, first.member(t, "refresh_token"))
		assert.Equal(t, 400, again.StatusCode)
		assert.Equal(t, "invalid_grant", again.member(t, "error"))
		for _, r := range []reply{first, second, third} {
			assert.False(t, s.Alive(r.member(t, "access_token")))
			assert.False(t, s.Alive(r.member(t, "refresh_token")))
		}
		assert.Equal(t, 401, ping(t, s, "Bearer "+third.member(t, "access_token")).StatusCode)
		assert.Equal(t, 400, refresh(t, s, third.member(t, "refresh_token")).StatusCode)

		assert.Equal(t, []string{other.member(t, "access_token")}, s.AccessTokens(), "tokens of another grant stay valid")
		assert.Equal(t, 200, refresh(t, s, other.member(t, "refresh_token")).StatusCode)
	})
}

func TestUseByAnotherClientOrOfARevokedTokenIsNotReuse(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithReuseDetection())
		first := grant(t, s).member(t, "refresh_token")
		second := refresh(t, s, first)

		stranger := posting(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", first)
		stranger.SetBasicAuth("someone", "else")
		assert.Equal(t, 401, do(t, s, stranger).StatusCode)
		assert.True(t, s.Alive(second.member(t, "access_token")))

		assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", second.member(t, "refresh_token")).StatusCode)
		assert.Equal(t, 400, refresh(t, s, second.member(t, "refresh_token")).StatusCode)
		assert.True(t, s.Alive(second.member(t, "access_token")), "the refresh token was revoked, not used")

		assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", first).StatusCode, "a used refresh token")
		assert.True(t, s.Alive(second.member(t, "access_token")))
	})
}

func TestWithoutReuseDetectionTheFamilyStaysValid(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		first := grant(t, s).member(t, "refresh_token")
		second := refresh(t, s, first)
		assert.Equal(t, 400, refresh(t, s, first).StatusCode)
		assert.True(t, s.Alive(second.member(t, "access_token")))
		assert.Equal(t, 200, refresh(t, s, second.member(t, "refresh_token")).StatusCode)
	})
}

func TestConcurrentReuseRevokesTheFamily(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithReuseDetection())
		refreshToken := grant(t, s).member(t, "refresh_token")
		var served atomic.Int64
		var all sync.WaitGroup
		for range 20 {
			req := posting(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken)
			all.Go(func() {
				resp, err := s.Client().Do(req)
				if assert.NoError(t, err) {
					resp.Body.Close()
					if resp.StatusCode == 200 {
						served.Add(1)
					}
				}
			})
		}
		all.Wait()
		assert.EqualValues(t, 1, served.Load())
		assert.Empty(t, s.AccessTokens())
		assert.Empty(t, s.RefreshTokens())
	})
}
