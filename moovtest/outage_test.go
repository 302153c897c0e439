package moovtest_test

import (
	"context"
	"net/http"
	"net/http/httptest"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/moovauth/moovauth/moovtest"
)

// statusOf sends a token request and returns the status of the reply.
func statusOf(t *testing.T, s *moovtest.Server) int {
	t.Helper()
	return grant(t, s).StatusCode
}

func TestOutageLastsUntilItIsEnded(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Handle("GET /cards", "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		current := grant(t, s).member(t, "access_token")
		refreshToken := s.RefreshTokens()[0]

		s.SetAnswer(&moovtest.Answer{Status: 503, Body: `{"error":"down"}`})
		for range 20 {
			r := grant(t, s)
			assert.Equal(t, 503, r.StatusCode)
			assert.Equal(t, "down", r.member(t, "error"))
			assert.Equal(t, 503, refresh(t, s, refreshToken).StatusCode)
			assert.Equal(t, 503, post(t, s, "/oauth2/revoke", "token", current).StatusCode)
			assert.Equal(t, 200, ping(t, s, "Bearer "+current).StatusCode)
			assert.Equal(t, 200, call(t, s, http.MethodGet, "/cards", current).StatusCode)
		}
		assert.Equal(t, []string{current}, s.AccessTokens(), "no token is issued or revoked")
		assert.Equal(t, []string{refreshToken}, s.RefreshTokens(), "no refresh token is used")
		assert.Len(t, s.TokenRequests(), 1+40)
		assert.Len(t, s.RevokeRequests(), 20)

		s.SetAnswer(&moovtest.Answer{Status: 401})
		assert.Equal(t, 401, statusOf(t, s), "a later answer replaces an earlier one")

		s.SetAnswer(nil)
		assert.Equal(t, 200, statusOf(t, s))
		assert.Equal(t, 200, refresh(t, s, refreshToken).StatusCode)
		assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", current).StatusCode)
		s.SetAnswer(nil)
		assert.Equal(t, 200, statusOf(t, s), "SetAnswer(nil) without an outage has no effect")
	})
}

func TestQueueIsUsedBeforeAnOutage(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.SetAnswer(&moovtest.Answer{Status: 503})
		s.Enqueue(moovtest.Answer{Status: 429}, moovtest.Answer{Status: 500})
		assert.Equal(t, 429, statusOf(t, s))
		assert.Equal(t, 500, statusOf(t, s))
		assert.Equal(t, 503, statusOf(t, s))
		s.Enqueue(moovtest.Answer{Status: 502})
		s.SetAnswer(nil)
		assert.Equal(t, 502, statusOf(t, s), "SetAnswer(nil) does not change the queue")
		assert.Equal(t, 200, statusOf(t, s))
	})
}

func TestOutageWithoutReplies(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		fails := func() {
			t.Helper()
			_, err := s.Client().Do(posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read"))
			assert.Error(t, err)
		}
		s.SetAnswer(&moovtest.Answer{Handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }})
		fails()
		fails()
		assert.Empty(t, s.AccessTokens())
		s.SetAnswer(&moovtest.Answer{Lost: true})
		fails()
		fails()
		assert.Len(t, s.AccessTokens(), 2, "the tokens were issued and the replies were lost")
		s.SetAnswer(nil)
		assert.Equal(t, 200, statusOf(t, s))
	})
}

func TestEndOfASilentOutageAppliesToLaterRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t, moovtest.WithLatency(time.Second))
		var early, silent sync.WaitGroup
		early.Go(func() { assert.Equal(t, 200, statusOf(t, s), "the request arrived before the outage") })
		synctest.Wait()
		s.SetAnswer(&moovtest.Answer{
			Latency: time.Minute,
			Handler: func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		})
		early.Wait()

		begun := time.Now()
		client := &http.Client{Transport: s.Transport(), Timeout: time.Hour}
		for range 2 {
			silent.Go(func() {
				_, err := client.Do(posting(t, s, "/oauth2/token"))
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.Equal(t, time.Hour, time.Since(begun))
			})
		}
		synctest.Wait()
		s.SetAnswer(nil)
		assert.Equal(t, 200, statusOf(t, s))
		assert.Equal(t, time.Second, time.Since(begun))
		silent.Wait()

		s.SetAnswer(&moovtest.Answer{Status: 503, Latency: time.Minute})
		for range 2 {
			begun = time.Now()
			assert.Equal(t, 503, statusOf(t, s))
			assert.Equal(t, time.Minute+time.Second, time.Since(begun), "every request has the latency")
		}
	})
}

func TestRateLimitAppliesBeforeAnOutage(t *testing.T) {
	c := new(clock)
	c.set(time.Unix(1_700_000_000, 0))
	s := inMemory(t, moovtest.WithRateLimit(2), moovtest.WithClock(c.now))
	s.SetAnswer(&moovtest.Answer{Status: 503})
	assert.Equal(t, 503, statusOf(t, s))
	assert.Equal(t, 503, statusOf(t, s))
	assert.Equal(t, 429, statusOf(t, s))
}

func TestSetAnswerCopies(t *testing.T) {
	s := inMemory(t)
	seconds := []string{"7"}
	answer := moovtest.Answer{Status: 503, Header: http.Header{"retry-after": seconds, "X-Request-Id": {"ours"}}}
	s.SetAnswer(&answer)
	answer.Status = 200
	answer.Header.Set("X-Request-Id", "another")
	seconds[0] = "8"
	for range 2 {
		r := grant(t, s)
		assert.Equal(t, 503, r.StatusCode)
		assert.Equal(t, "7", r.Header.Get("Retry-After"))
	}
	assert.Equal(t, "ours", s.TokenRequests()[1].RequestID)
}

// A handler that wraps the server may change the header of a reply.
func TestRepliesDoNotShareTheHeaderOfAnAnswer(t *testing.T) {
	s := inMemory(t)
	s.SetAnswer(&moovtest.Answer{Status: 503, Header: http.Header{"Retry-After": {"7"}}})
	for range 2 {
		w := httptest.NewRecorder()
		s.ServeHTTP(w, httptest.NewRequest(http.MethodPost, "/oauth2/token", nil))
		assert.Equal(t, []string{"7"}, w.Header()["Retry-After"])
		w.Header()["Retry-After"][0] = "8"
	}
}

func TestOutageStartsAndEndsDuringConcurrentRequests(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		outage := &moovtest.Answer{Status: 503, Header: http.Header{"Retry-After": {"1"}}}
		var issued, refused atomic.Int32
		var clients sync.WaitGroup
		for i := range 8 {
			clients.Go(func() {
				for range 25 {
					switch i {
					case 0:
						s.SetAnswer(outage)
					case 1:
						s.SetAnswer(nil)
					}
					switch r := grant(t, s); r.StatusCode {
					case 200:
						issued.Add(1)
					case 503:
						refused.Add(1)
						assert.Equal(t, []string{"1"}, r.Header["Retry-After"])
					}
				}
			})
		}
		clients.Wait()
		assert.Len(t, s.TokenRequests(), 200)
		assert.Len(t, s.AccessTokens(), int(issued.Load()))
		assert.EqualValues(t, 200, issued.Load()+refused.Load())
	})
}
