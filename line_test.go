package moovauth

import (
	"context"
	"errors"
	"net/http"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// queue is a Limiter that lets a request go after a time.
type queue struct {
	mu      sync.Mutex
	long    time.Duration
	waits   int
	dated   int // contexts with a deadline
	refused []time.Duration
}

func (q *queue) Wait(ctx context.Context) error {
	q.mu.Lock()
	q.waits++
	if _, ok := ctx.Deadline(); ok {
		q.dated++
	}
	long := q.long
	q.mu.Unlock()
	return sleep(ctx, long)
}

func (q *queue) Refused(retryAfter time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.refused = append(q.refused, retryAfter)
}

func (q *queue) set(long time.Duration) {
	q.mu.Lock()
	defer q.mu.Unlock()
	q.long = long
}

// limiterFunc is a Limiter that does what it likes.
type limiterFunc func(ctx context.Context) error

func (f limiterFunc) Wait(ctx context.Context) error { return f(ctx) }

func TestEachRequestWaitsInLine(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		q := new(queue)
		s := sourceOf(t, server, WithLimiter(q))
		server.Enqueue(moovtest.Answer{Status: 503})
		tok := token(t, s)
		assert.Equal(t, 2, q.waits, "also a second attempt")
		require.NoError(t, Revoke(t.Context(), credentialsOf(server), tok.AccessToken,
			WithBaseURL(server.URL), WithHTTPClient(server.Client()), WithLimiter(q)))
		assert.Equal(t, 3, q.waits)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		require.NoError(t, s.Revoke(ctx))
		assert.Equal(t, 5, q.waits)
		assert.Zero(t, q.dated, "a rate.Limiter refuses at once if it sees a deadline that is too near")
		assert.Len(t, server.Requests(), q.waits)
	})
}

func TestTimeInLineDoesNotCountTowardsTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(4*time.Second))
		q := &queue{long: 10 * time.Minute}
		s := sourceOf(t, server, WithLimiter(q), WithTimeout(5*time.Second))
		began := time.Now()
		token(t, s)
		assert.Equal(t, 10*time.Minute+4*time.Second, time.Since(began))
		began = time.Now()
		server.SetLatency(time.Second)
		require.NoError(t, s.Revoke(t.Context()), "two tokens, and ten minutes in line for each")
		assert.Equal(t, 20*time.Minute+2*time.Second, time.Since(began))

		server.SetLatency(time.Hour)
		_, err := s.Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded, "the request itself is bounded")
	})
}

func TestCallerLeavesTheLineAndTheGrantGoesOn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(&queue{long: time.Minute}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := s.TokenContext(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(began))
		token(t, s)
		assert.Equal(t, time.Minute, time.Since(began), "the place in line was kept")
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func Test429GetsInLineAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		q := &queue{long: time.Second}
		s := sourceOf(t, server, WithLimiter(q))
		for range 10 {
			server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"20"}}})
		}
		server.Enqueue(moovtest.Answer{Status: 429})
		began := time.Now()
		token(t, s)
		assert.GreaterOrEqual(t, time.Since(began), 200*time.Second, "each 429 was heeded, and none counted as an attempt")
		assert.Equal(t, 12, q.waits)
		assert.Len(t, q.refused, 11)
		assert.Equal(t, 20*time.Second, q.refused[0])
		assert.Zero(t, q.refused[10], "it did not say")

		server.Enqueue(moovtest.Answer{Status: 429}, moovtest.Answer{Status: 429})
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, server)
		assert.Len(t, q.refused, 13)
	})
}

func TestOnlyA429GetsInLineAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t, WithLimiter(new(queue)))
		p.on(cc, replies(401, ""))
		_, err := s.Token()
		require.Error(t, err)
		assert.Len(t, p.grants(), 1)

		time.Sleep(time.Minute)
		p.on(cc, nil)
		tok := token(t, s)
		p.on(refresh, replies(404, ""))
		time.Sleep(time.Until(tok.Expiry))
		token(t, s)
		assert.Equal(t, []string{cc, cc, refresh, cc}, p.grants(), "a refresh that is refused for good is followed at once, in line or not")
	})
}

func TestA429WithoutRetryAfterWaitsForTheFirstBackOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(new(queue)))
		s.endpoint.random = func() float64 { return .5 }
		server.Enqueue(moovtest.Answer{Status: 429})
		began := time.Now()
		token(t, s)
		assert.Equal(t, firstBackOff/2, time.Since(began))
	})
}

func TestNoGrantGoesOnForNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		busy := make([]moovtest.Answer, 1000)
		for i := range busy {
			busy[i] = moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"10"}}}
		}
		q := new(queue)
		s := sourceOf(t, server, WithLimiter(q))
		server.Enqueue(busy...)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		_, err := s.TokenContext(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(20 * time.Second)
		asked := len(server.TokenRequests())
		assert.LessOrEqual(t, asked, 7)
		time.Sleep(time.Hour)
		assert.Len(t, server.TokenRequests(), asked, "it ended at the first 429 that nobody waited for")
	})
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(new(queue)))
		old := token(t, s)
		time.Sleep(13 * time.Minute)
		server.Enqueue(moovtest.Answer{Status: 429})
		token(t, s) // starts a refresh in the background
		time.Sleep(20 * time.Second)
		assert.Len(t, server.TokenRequests(), 2, "nobody waits for a refresh in the background")
		assert.Equal(t, old.AccessToken, token(t, s).AccessToken)
	})
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(limiterFunc(func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() })))
		began := time.Now()
		_, err := s.Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "no place came up in time")
		assert.Equal(t, maxLine, time.Since(began))
	})
}

func TestRefreshInLineEndsWithTheTokenInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		q := new(queue)
		s := sourceOf(t, server, WithLimiter(q))
		old := token(t, s)
		time.Sleep(14 * time.Minute)
		q.set(30 * time.Minute)
		token(t, s)
		time.Sleep(2 * time.Minute)
		q.set(0)
		began := time.Now()
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.Zero(t, time.Since(began), "a caller does not wait behind a refresh that has lost its purpose")
	})
}

func TestRevokeIsNotHeldUpByAGrantInLine(t *testing.T) {
	t.Parallel()
	for name, background := range map[string]bool{"callers wait": false, "in the background": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				q := new(queue)
				s := sourceOf(t, server, WithLimiter(q))
				tok := token(t, s)
				time.Sleep(14 * time.Minute)
				q.set(time.Minute)
				var caller sync.WaitGroup
				if !background {
					s.Invalidate(tok.AccessToken)
				}
				caller.Go(func() {
					_, err := s.Token()
					assert.NoError(t, err, "a caller whose grant gave way starts another")
				})
				synctest.Wait()
				q.set(0)
				began := time.Now()
				require.NoError(t, s.Revoke(t.Context()))
				assert.Zero(t, time.Since(began))
				assert.False(t, server.Alive(tok.RefreshToken))
				caller.Wait()
			})
		})
	}
}

func TestLimiterThatMisbehavesFailsOneGrant(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		wait func(ctx context.Context) error
		want string
	}{
		"fails":   {func(context.Context) error { return errors.New("burst exceeded") }, "waiting for the Limiter: burst exceeded"},
		"panics":  {func(context.Context) error { panic("out of order") }, "the Limiter plugged in panicked: out of order"},
		"exits":   {func(context.Context) error { runtime.Goexit(); return nil }, "the Limiter plugged in called runtime.Goexit"},
		"secrets": {func(context.Context) error { panic("moovtest-secret-key") }, "***"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				broken := true
				s := sourceOf(t, server, WithLimiter(limiterFunc(func(ctx context.Context) error {
					if broken {
						return c.wait(ctx)
					}
					return nil
				})))
				_, err := s.Token()
				require.ErrorContains(t, err, c.want)
				var kind interface {
					Temporary() bool
					Timeout() bool
				}
				require.ErrorAs(t, err, &kind)
				assert.False(t, kind.Timeout())
				broken = false
				time.Sleep(time.Second)
				token(t, s)
				assert.Len(t, server.TokenRequests(), 1)
			})
		})
	}
}

func TestLimiterHearsOfThe429sOfAPICalls(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		q := new(queue)
		api := roundTripper(func(r *http.Request) (*http.Response, error) {
			if r.URL.Path == tokenPath {
				return server.Transport().RoundTrip(r)
			}
			resp := answer(r, http.StatusTooManyRequests, http.NoBody)
			resp.Header.Set("Retry-After", "3")
			return resp, nil
		})
		s := sourceOf(t, server, WithLimiter(q), WithHTTPClient(&http.Client{Transport: api}))
		resp, err := s.Client().Get(server.URL + "/ping")
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusTooManyRequests, resp.StatusCode, "the caller gets it as it is")
		assert.Equal(t, []time.Duration{3 * time.Second}, q.refused)
	})
}

func TestLineEndsBeforeAnHourIsOver(t *testing.T) {
	t.Parallel()
	for _, after := range []string{"", "60", "1000", "3000", "7200"} {
		synctest.Test(t, func(t *testing.T) {
			refuse := roundTripper(func(r *http.Request) (*http.Response, error) {
				resp := answer(r, http.StatusTooManyRequests, http.NoBody)
				resp.Header.Set("Retry-After", after)
				return resp, nil
			})
			opts := []Option{WithScopes("/ping.read"), WithHTTPClient(&http.Client{Transport: refuse}), WithLimiter(&queue{long: 20 * time.Second})}
			creds := Credentials{"public-key", "secret-key"}
			s, err := NewTokenSource(creds, opts...)
			require.NoError(t, err)
			for op, ask := range map[string]func() error{
				"Token":  func() error { _, err := s.Token(); return err },
				"Revoke": func() error { return Revoke(t.Context(), creds, "some-token", opts...) },
			} {
				began := time.Now()
				require.Error(t, ask(), op)
				assert.LessOrEqual(t, time.Since(began), time.Hour, "%s, Retry-After %s", op, after)
			}
		})
	}
}

// refusedHangs is a Limiter that hangs when it hears of a 429.
type refusedHangs struct{ queue }

func (*refusedHangs) Refused(time.Duration) { time.Sleep(time.Hour) }

func TestLimiterThatHangsInRefusedKeepsNoAnswerBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		server.Handle("/busy", "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusTooManyRequests) }))
		s := sourceOf(t, server, WithLimiter(new(refusedHangs)))
		began := time.Now()
		resp, err := s.Client().Get(server.URL + "/busy")
		require.NoError(t, err)
		resp.Body.Close()
		assert.LessOrEqual(t, time.Since(began), maxTell+heed)
		time.Sleep(2 * time.Hour)
	})
}
