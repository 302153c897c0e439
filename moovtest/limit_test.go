package moovtest_test

import (
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"

	"github.com/moovauth/moovauth/moovtest"
)

// statuses sends n pings without a token. It counts the replies of 401 and of 429.
func statuses(t *testing.T, s *moovtest.Server, n int) (unauthorized, limited int) {
	t.Helper()
	for range n {
		switch r := ping(t, s, ""); r.StatusCode {
		case http.StatusUnauthorized:
			unauthorized++
			assert.Empty(t, r.Header.Get("Retry-After"))
		case http.StatusTooManyRequests:
			limited++
			assert.Equal(t, "1", r.Header.Get("Retry-After"))
			assert.Equal(t, "too_many_requests", r.member(t, "error"))
		}
	}
	return unauthorized, limited
}

// clock is a server's clock that a test can set.
type clock struct{ at atomic.Pointer[time.Time] }

func (c *clock) set(at time.Time) { c.at.Store(&at) }
func (c *clock) now() time.Time   { return *c.at.Load() }

func TestRateLimitWindows(t *testing.T) {
	midnight := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
	type burst struct {
		at        time.Duration // after midnight
		n, served int
		why       string
	}
	for name, c := range map[string]struct {
		opts   []moovtest.Option
		bursts []burst
	}{
		"sliding": {nil, []burst{
			{900 * time.Millisecond, 5, 3, "three in a second"},
			{1100 * time.Millisecond, 5, 0, "the window slides over the whole second"},
			{1900*time.Millisecond - 1, 5, 0, "a nanosecond too early"},
			{1900 * time.Millisecond, 2, 2, "a second later; refused requests did not count"},
			{2 * time.Second, 2, 1, "the rest"},
			{2900 * time.Millisecond, 5, 2, "two of three have left the window"},
			{900 * time.Millisecond, 3, 3, "the clock was set back"},
		}},
		"fixed": {[]moovtest.Option{moovtest.WithFixedWindow()}, []burst{
			{900 * time.Millisecond, 5, 3, "three in a second"},
			{time.Second - 1, 5, 0, "the same second"},
			{time.Second, 5, 3, "the next one"},
			{1900 * time.Millisecond, 5, 0, "the same second"},
			{2100 * time.Millisecond, 2, 2, "the next one"},
			{2200 * time.Millisecond, 2, 1, "the rest"},
			{900 * time.Millisecond, 3, 3, "the clock was set back"},
		}},
		"none": {[]moovtest.Option{moovtest.WithRateLimit(0)}, []burst{{0, 100, 100, "all"}}},
	} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, start start) {
				var now clock
				now.set(midnight)
				s := start(append([]moovtest.Option{moovtest.WithRateLimit(3), moovtest.WithClock(now.now)}, c.opts...)...)
				for _, b := range c.bursts {
					now.set(midnight.Add(b.at))
					served, limited := statuses(t, s, b.n)
					assert.Equal(t, b.served, served, "%v: %s", b.at, b.why)
					assert.Equal(t, b.n-b.served, limited, b.why)
				}
			})
		})
	}
}

func TestRateLimitIsForAllEndpointsTogether(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		s := start(moovtest.WithRateLimit(4), moovtest.WithClock(func() time.Time { return at }))
		s.Enqueue(moovtest.Answer{Status: 503})

		assert.Equal(t, 503, grant(t, s).StatusCode)
		assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", "x").StatusCode)
		assert.Equal(t, 401, ping(t, s, "").StatusCode)
		assert.Equal(t, 404, post(t, s, "/nowhere").StatusCode)
		s.Enqueue(moovtest.Answer{Status: 504})
		s.SetLatency(time.Hour)
		for _, r := range []reply{grant(t, s), post(t, s, "/oauth2/revoke", "token", "x"), ping(t, s, ""), post(t, s, "/nowhere")} {
			assert.Equal(t, 429, r.StatusCode)
			assert.Regexp(t, uuidV4, r.Header.Get("X-Request-Id"))
		}
		assert.Len(t, s.Requests(), 8, "refused requests are recorded")
		assert.Empty(t, s.AccessTokens())

		at = at.Add(time.Second)
		s.SetLatency(0)
		assert.Equal(t, 504, grant(t, s).StatusCode, "a refused request takes no prepared answer")
	})
}

func TestRateLimitHoldsUnderConcurrentRequests(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		// This clock advances by a nanosecond each time it is read.
		var reads atomic.Int64
		began := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		s := start(moovtest.WithRateLimit(10), moovtest.WithClock(func() time.Time { return began.Add(time.Duration(reads.Add(1))) }))
		var served, limited atomic.Int64
		var all sync.WaitGroup
		for range 40 {
			all.Go(func() {
				resp, err := s.Client().Get(s.URL + "/ping")
				if assert.NoError(t, err) {
					resp.Body.Close()
					if resp.StatusCode == http.StatusTooManyRequests {
						limited.Add(1)
					} else {
						served.Add(1)
					}
				}
			})
		}
		all.Wait()
		assert.EqualValues(t, 10, served.Load())
		assert.EqualValues(t, 30, limited.Load())
	})
}
