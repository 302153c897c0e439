package moovauth

// What happens when a grant fails, in fake time: retries, cool-down, panics.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// outage makes server answer status, while it is switched on, to each token and
// revoke request.
type outage struct {
	http.RoundTripper
	mu     sync.Mutex
	status int // 0: none
	header http.Header
	seen   []time.Time // when requests came while it was on
}

func (o *outage) RoundTrip(r *http.Request) (*http.Response, error) {
	o.mu.Lock()
	if o.status == 0 {
		o.mu.Unlock()
		return o.RoundTripper.RoundTrip(r)
	}
	defer o.mu.Unlock()
	o.seen = append(o.seen, time.Now())
	return &http.Response{StatusCode: o.status, Header: o.header.Clone(), Body: http.NoBody, Request: r}, nil
}

func (o *outage) set(status int, header http.Header) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.status, o.header = status, header
}

func (o *outage) requests() []time.Time {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.seen
}

// withOutage is a source whose requests go through an outage.
func withOutage(t testing.TB, opts ...Option) (*TokenSource, *outage, *moovtest.Server) {
	server := inMemory(t)
	o := &outage{RoundTripper: server.Transport()}
	return sourceOf(t, server, append([]Option{WithHTTPClient(&http.Client{Transport: o})}, opts...)...), o, server
}

func retryAfterHeader(value string) http.Header { return http.Header{"Retry-After": {value}} }

func TestTemporaryFailureIsTriedThreeTimes(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 429, 500, 502, 503, 504} {
		synctest.Test(t, func(t *testing.T) {
			s, o, _ := withOutage(t)
			o.set(status, nil)
			_, err := s.Token()
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, status, refused.StatusCode)
			assert.ErrorContains(t, err, "after 3 attempts")
			seen := o.requests()
			require.Len(t, seen, 3)
			assert.LessOrEqual(t, seen[1].Sub(seen[0]), 200*time.Millisecond)
			assert.LessOrEqual(t, seen[2].Sub(seen[1]), 400*time.Millisecond)
		})
	}
}

func TestBackOffHasFullJitter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := make(map[time.Duration]bool), make(map[time.Duration]bool)
		var longest time.Duration
		for range 100 {
			s, o, _ := withOutage(t)
			o.set(503, nil)
			_, _ = s.Token()
			seen := o.requests()
			first[seen[1].Sub(seen[0])] = true
			second[seen[2].Sub(seen[1])] = true
			longest = max(longest, seen[2].Sub(seen[1]))
		}
		assert.Greater(t, len(first), 50)
		assert.Greater(t, len(second), 50)
		assert.Greater(t, longest, 200*time.Millisecond, "it grows")
	})
}

func TestPermanentFailureIsTriedOnce(t *testing.T) {
	t.Parallel()
	for _, status := range []int{400, 401, 403, 404, 410, 422, 302} {
		synctest.Test(t, func(t *testing.T) {
			s, o, _ := withOutage(t)
			o.set(status, nil)
			_, err := s.Token()
			require.Error(t, err)
			assert.Len(t, o.requests(), 1, status)
		})
	}
}

func TestSecondAttemptSucceeds(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Status: 503})
	token(t, sourceOf(t, server))
	assert.Len(t, server.TokenRequests(), 2)
}

func TestRevocationIsRetriedAlike(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := hurried(sourceOf(t, server))
	token(t, s)
	server.Enqueue(moovtest.Answer{Status: 503}, moovtest.Answer{Status: 500})
	require.NoError(t, s.Revoke(t.Context()))
	assert.Len(t, server.RevokeRequests(), 4)

	server.Enqueue(moovtest.Answer{Status: 400})
	assert.Error(t, Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL)))
	assert.Len(t, server.RevokeRequests(), 5)
}

func TestCancelledRevokeDoesNotWaitForItsNextAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		server.Enqueue(moovtest.Answer{Status: 429, Header: retryAfterHeader("20")})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		err := Revoke(ctx, credentialsOf(server), "x", WithBaseURL(server.URL), WithHTTPClient(server.Client()))
		assert.ErrorIs(t, err, context.Canceled)
		assert.ErrorContains(t, err, "429")
		assert.Equal(t, time.Second, time.Since(began))
	})
}

func TestServersWaitReplacesTheBackOff(t *testing.T) {
	t.Parallel()
	for _, header := range []http.Header{
		retryAfterHeader("7"),
		{"X-Retry-In": {"7000"}},
		{"X-Retry-In": {"7s"}},
		{"Retry-After": {"Sat, 01 Jan 2000 12:00:07 GMT"}, "Date": {"Sat, 01 Jan 2000 12:00:00 GMT"}},
	} {
		synctest.Test(t, func(t *testing.T) {
			s, o, _ := withOutage(t)
			o.set(429, header)
			go func() {
				time.Sleep(time.Second)
				o.set(0, nil)
			}()
			began := time.Now()
			token(t, s)
			assert.GreaterOrEqual(t, time.Since(began), 7*time.Second, header)
			assert.Less(t, time.Since(began), 7*time.Second*5/4+firstBackOff, header)
		})
	}
}

func TestWaitThatDoesNotFitFailsAtOnceAndIsKeptToAfterwards(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t, WithTimeout(5*time.Second))
		o.set(503, retryAfterHeader("7"))
		began := time.Now()
		_, err := s.Token()
		assert.ErrorContains(t, err, "not tried again")
		assert.Zero(t, time.Since(began))
		o.set(0, nil)
		for {
			_, err := s.Token()
			if err == nil {
				break
			}
			assert.ErrorContains(t, err, "due in")
			time.Sleep(10 * time.Millisecond)
		}
		assert.GreaterOrEqual(t, time.Since(began), 7*time.Second)
		assert.Less(t, time.Since(began), 7*time.Second*5/4+time.Second)
		assert.Len(t, o.requests(), 1)
	})
}

func TestAbsurdWaitIsCutToAnHour(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t)
		o.set(429, retryAfterHeader("99999999999999999999"))
		_, err := s.Token()
		require.Error(t, err)
		o.set(0, nil)
		time.Sleep(time.Hour - time.Second)
		_, err = s.Token()
		require.Error(t, err)
		time.Sleep(15*time.Minute + 2*time.Second)
		token(t, s)
	})
}

func TestCoolDownAnswersAtOnceWithTheLastError(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t)
		s.endpoint.random = func() float64 { return 0 }
		o.set(401, nil)
		_, first := s.Token()
		for range 1000 {
			_, err := s.Token()
			require.ErrorIs(t, err, first)
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, 401, refused.StatusCode)
			assert.ErrorContains(t, err, "due in 250ms")
		}
		assert.Len(t, o.requests(), 1)

		var gaps []time.Duration
		for len(o.requests()) < 10 {
			_, err := s.Token()
			require.Error(t, err)
			time.Sleep(time.Millisecond)
		}
		seen := o.requests()
		for i := range seen[1:] {
			gaps = append(gaps, seen[i+1].Sub(seen[i]).Round(100*time.Millisecond))
		}
		assert.Equal(t, []time.Duration{300 * time.Millisecond, 500 * time.Millisecond, time.Second, 2 * time.Second,
			4 * time.Second, 8 * time.Second, 16 * time.Second, 30 * time.Second, 30 * time.Second}, gaps)

		o.set(0, nil)
		time.Sleep(30 * time.Second)
		tok := token(t, s)
		o.set(401, nil)
		time.Sleep(2 * time.Second)
		s.Invalidate(tok.AccessToken)
		_, err := s.Token()
		require.Error(t, err)
		_, err = s.Token()
		assert.ErrorContains(t, err, "due in 250ms", "success has ended it: it begins anew")
	})
}

func TestCoolDownIsJittered(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		waits := make(map[time.Duration]bool)
		for range 100 {
			s, o, _ := withOutage(t)
			o.set(401, nil)
			_, _ = s.Token()
			wait := s.memory.load().cooling.until.after(s.endpoint.clock())
			assert.GreaterOrEqual(t, wait, 125*time.Millisecond)
			assert.LessOrEqual(t, wait, 250*time.Millisecond)
			waits[wait] = true
		}
		assert.Greater(t, len(waits), 50)
	})
}

// A thousand goroutines that call in a loop for a minute, while the endpoint fails.
func TestFailingEndpointIsLeftAlone(t *testing.T) {
	t.Parallel()
	for status, most := range map[int]int{503: 40, 401: 20} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s, o, _ := withOutage(t)
				o.set(status, nil)
				began := time.Now()
				callers := 1000
				if testing.Short() {
					callers = 50
				}
				var wg sync.WaitGroup
				for range callers {
					wg.Go(func() {
						for time.Since(began) < time.Minute {
							_, err := s.Token()
							assert.Error(t, err)
							time.Sleep(100 * time.Millisecond)
						}
					})
				}
				wg.Wait()
				t.Logf("%d: %d requests in a minute", status, len(o.requests()))
				assert.LessOrEqual(t, len(o.requests()), most)
				assert.GreaterOrEqual(t, len(o.requests()), 6, "it goes on trying")
			})
		})
	}
}

// The endpoint fails from a minute before the refresh point until 10 s before
// hard expiry: no caller sees it.
func TestOutageInTheEarlyWindowIsNotSeen(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, server := withOutage(t)
		old := token(t, s)
		h := s.memory.load().held
		began := time.Now()
		at := func(i instant) time.Duration { return i.after(s.endpoint.clock()) }
		refresh, hard := at(h.refreshAt), at(h.expireAt)
		go func() {
			time.Sleep(refresh - time.Minute)
			o.set(503, nil)
			time.Sleep(hard - 10*time.Second - (refresh - time.Minute))
			o.set(0, nil)
		}()
		for time.Since(began) < hard+time.Minute {
			called := time.Now()
			tok := token(t, s)
			require.Zero(t, time.Since(called))
			require.True(t, server.Alive(tok.AccessToken))
			time.Sleep(100 * time.Millisecond)
		}
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		seen := o.requests()
		t.Logf("%d requests in an outage of %v after the refresh point", len(seen), hard-10*time.Second-refresh)
		assert.LessOrEqual(t, len(seen), 60)
		assert.GreaterOrEqual(t, len(seen), 10)
		var longest time.Duration
		for i := range seen[1:] {
			longest = max(longest, seen[i+1].Sub(seen[i]))
		}
		assert.LessOrEqual(t, longest, 31*time.Second)
		assert.GreaterOrEqual(t, longest, 10*time.Second, "they follow the back-off")
	})
}

// An outage that ends ever closer to hard expiry, and past it.
func TestAttemptsComeCloserTogetherAsExpiryNears(t *testing.T) {
	t.Parallel()
	for _, before := range []time.Duration{5 * time.Second, time.Second, 300 * time.Millisecond, 100 * time.Millisecond} {
		for _, status := range []int{503, 404} {
			synctest.Test(t, func(t *testing.T) {
				s, o, _ := withOutage(t)
				token(t, s)
				hard := s.goodFor()
				began := time.Now()
				o.set(status, nil)
				go func() {
					time.Sleep(hard - before)
					o.set(0, nil)
				}()
				time.Sleep(11 * time.Minute) // the token is fresh
				for ; time.Since(began) < hard-10*time.Second; time.Sleep(100 * time.Millisecond) {
					token(t, s)
				}
				for time.Since(began) < hard+time.Second {
					called := time.Now()
					token(t, s)
					require.Zero(t, time.Since(called))
					time.Sleep(10 * time.Millisecond)
				}
				assert.Less(t, len(o.requests()), 100)
			})
		}
	}
}

func TestCoolDownOfTheBackgroundEndsWithTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t)
		token(t, s)
		hard := s.goodFor()
		time.Sleep(14 * time.Minute)
		o.set(429, retryAfterHeader("3000"))
		token(t, s)
		synctest.Wait()
		require.Len(t, o.requests(), 1)
		o.set(0, nil)
		for time.Since(o.requests()[0]) < hard-14*time.Minute-time.Millisecond {
			token(t, s)
			time.Sleep(time.Second / 2)
		}
		assert.Len(t, o.requests(), 1, "the server's wish is kept to while the token lasts")
		time.Sleep(time.Second)
		token(t, s) // one blocking attempt is made in any case
	})
}

func TestCoolDownOfTheBackgroundEndsWithAnInvalidatedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t)
		old := token(t, s)
		time.Sleep(13 * time.Minute)
		o.set(429, retryAfterHeader("60"))
		token(t, s)
		synctest.Wait()
		s.Invalidate(old.AccessToken)
		_, err := s.Token()
		require.Error(t, err)
		require.Len(t, o.requests(), 2, "one attempt is made in any case")
		_, err = s.Token()
		require.ErrorContains(t, err, "due in")
		o.set(0, nil)
		time.Sleep(76 * time.Second)
		token(t, s)
	})
}

func TestPanicsBecomeErrors(t *testing.T) {
	t.Parallel()
	type custom struct{ why string }
	for name, c := range map[string]struct {
		misbehave func()
		want      string
	}{
		"panic":              {func() { panic("out of order") }, "out of order"},
		"panic of an error":  {func() { panic(errors.ErrUnsupported) }, "unsupported"},
		"panic of a struct":  {func() { panic(custom{"out of order"}) }, "moovauth.custom"},
		"panic of nil":       {func() { panic(nil) }, "nil"},
		"runtime error":      {func() { var none []int; none[0] = 1 }, "index out of range"},
		"Goexit":             {runtime.Goexit, "Goexit"},
		"panic with secrets": {func() { panic("moovtest-secret-key") }, "***"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				broken := true
				client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					if broken {
						c.misbehave()
					}
					return server.Transport().RoundTrip(r)
				})}
				var log strings.Builder
				s := sourceOf(t, server, WithHTTPClient(client), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
				_, err := s.Token()
				require.ErrorContains(t, err, c.want)
				assert.ErrorContains(t, err, "plugged in")
				assert.NotContains(t, err.Error(), "\n")
				assert.NotContains(t, err.Error()+log.String(), server.ClientSecret)
				if name == "panic of an error" {
					assert.ErrorIs(t, err, errors.ErrUnsupported)
				}
				if name != "Goexit" {
					assert.Contains(t, log.String(), "failures_test.go", "the log has the stack")
				}
				broken = false
				token(t, s) // at once: it is not the endpoint that failed
				broken = true
				require.ErrorContains(t, s.Revoke(t.Context()), c.want)
				broken = false
				require.NoError(t, s.Revoke(t.Context()), "what was not revoked is not lost")
				token(t, s)
			})
		})
	}
}

func TestPanicsInARowCoolDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := 0
		client := &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			n++
			panic("out of order")
		})}
		s := sourceOf(t, inMemory(t), WithHTTPClient(client))
		for range 1000 {
			_, err := s.Token()
			require.Error(t, err)
		}
		assert.Equal(t, 2, n)
	})
}

// panicking is a slog handler that is out of order.
type panicking struct{ slog.Handler }

func (panicking) Enabled(context.Context, slog.Level) bool  { return true }
func (panicking) Handle(context.Context, slog.Record) error { panic("handler out of order") }

func TestPanickingLoggerHangsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLogger(slog.New(panicking{})))
		_, err := s.Token()
		assert.ErrorContains(t, err, "handler out of order")
		assert.True(t, server.Alive(token(t, s).AccessToken), "the token is there")
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestRoundTripperThatDoesNotHeedItsContextHangsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		release := make(chan struct{})
		var stuck atomic.Bool
		stuck.Store(true)
		client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if stuck.Load() {
				<-release
			}
			return server.Transport().RoundTrip(r.WithContext(context.WithoutCancel(r.Context())))
		})}
		s := sourceOf(t, server, WithHTTPClient(client))
		began := time.Now()
		_, err := s.Token()
		assert.ErrorContains(t, err, "has not returned, though its context has ended")
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, 30*time.Second+heed, time.Since(began))
		require.ErrorIs(t, Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL), WithHTTPClient(client)), context.DeadlineExceeded)

		stuck.Store(false)
		time.Sleep(time.Second)
		first := token(t, s)
		close(release) // the late reply must not take the place of the current token
		synctest.Wait()
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
	})
}

// A client that asks the source itself for a token would wait for its own grant.
func TestSourceThatWaitsForItselfHangsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var s *TokenSource
		client := &http.Client{Transport: roundTripper(func(*http.Request) (*http.Response, error) {
			_, err := s.Token()
			return nil, err
		})}
		s = sourceOf(t, inMemory(t), WithHTTPClient(client))
		_, err := s.Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded)
	})
}

func TestLogTellsWhatHappened(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var log strings.Builder
		logger := slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
		s, o, _ := withOutage(t, WithLogger(logger))
		token(t, s)
		assert.Regexp(t, `level=DEBUG msg="moovauth: token obtained" grant_type=client_credentials request_id=\S+ expiry=`, log.String())
		assert.NotContains(t, log.String(), "WARN")

		time.Sleep(14 * time.Minute)
		log.Reset()
		o.set(503, http.Header{"X-Request-Id": {"abc"}})
		token(t, s)
		time.Sleep(5 * time.Second)
		synctest.Wait()
		assert.Regexp(t, `level=DEBUG msg="moovauth: attempt failed" grant_type=refresh_token attempt=1 delay=\S+ error=.*abc`, log.String())
		assert.Regexp(t, `level=DEBUG msg="moovauth: attempt failed" grant_type=refresh_token attempt=2`, log.String())
		assert.Regexp(t, `level=WARN msg="moovauth: no token obtained" error=.*503.*abc.* failures=1 delay=\S+ token_good_for=`, log.String())
	})
}

func TestSilentByDefault(t *testing.T) {
	var log strings.Builder
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Status: 404})
	_, err := sourceOf(t, server).Token()
	require.Error(t, err)
	assert.Empty(t, log.String())
}

// handler is a slog handler that does what it says.
type handler func(slog.Record)

func (h handler) Enabled(context.Context, slog.Level) bool      { return true }
func (h handler) Handle(_ context.Context, r slog.Record) error { h(r); return nil }
func (h handler) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h handler) WithGroup(string) slog.Handler                 { return h }

func onWarning(f func()) Option {
	return WithLogger(slog.New(handler(func(r slog.Record) {
		if r.Level >= slog.LevelWarn {
			f()
		}
	})))
}

func TestLoggerThatDoesNotReturnAfterAFailedGrantHangsNobody(t *testing.T) {
	t.Parallel()
	for name, log := range map[string]func(){
		"ends its goroutine": runtime.Goexit,
		"hangs":              func() { time.Sleep(time.Hour) },
		"panics":             func() { panic("out of order") },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				server.Enqueue(moovtest.Answer{Status: http.StatusUnauthorized})
				s := sourceOf(t, server, onWarning(log))
				began := time.Now()
				_, err := s.Token()
				assert.ErrorContains(t, err, "401")
				assert.LessOrEqual(t, time.Since(began), 2*time.Second)
				time.Sleep(time.Minute)
				assert.True(t, server.Alive(token(t, s).AccessToken))
				time.Sleep(2 * time.Hour)
			})
		})
	}
}

// The API's last word to the background need not be heeded once there is no
// token to lose.
func TestCoolDownOfTheBackgroundEndsWithARevokedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, server := withOutage(t)
		token(t, s)
		time.Sleep(s.goodFor() - time.Minute)
		o.set(http.StatusTooManyRequests, retryAfterHeader("50"))
		token(t, s)
		synctest.Wait()
		o.set(0, nil)
		require.NoError(t, s.Revoke(t.Context()))
		assert.True(t, server.Alive(token(t, s).AccessToken))
	})
}

func TestWaitWithinABackgroundGrantDoesNotOutliveTheToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t, WithEarlyRefresh(10*time.Second))
		token(t, s)
		time.Sleep(s.goodFor() - 5*time.Second)
		o.set(http.StatusTooManyRequests, retryAfterHeader("20"))
		token(t, s)
		synctest.Wait()
		o.set(0, nil)
		time.Sleep(s.goodFor())
		began := time.Now()
		token(t, s)
		assert.Zero(t, time.Since(began), "one attempt is made at hard expiry")
	})
}

func TestOutageThatEndsShortlyBeforeHardExpiryIsNotSeen(t *testing.T) {
	t.Parallel()
	for _, before := range []time.Duration{20 * time.Second, 5 * time.Second, time.Second, 300 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			s, o, server := withOutage(t)
			token(t, s)
			server.SetLatency(20 * time.Millisecond) // so that a blocking grant is seen
			hard := s.goodFor()
			began := time.Now()
			o.set(http.StatusServiceUnavailable, nil)
			time.AfterFunc(hard-before, func() { o.set(0, nil) })
			time.Sleep(11 * time.Minute) // the token is fresh
			for ; time.Since(began) < hard-30*time.Second; time.Sleep(100 * time.Millisecond) {
				token(t, s)
			}
			for time.Since(began) < hard+time.Second {
				called := time.Now()
				token(t, s)
				require.Zero(t, time.Since(called), "before %v", before)
				time.Sleep(10 * time.Millisecond)
			}
		})
	}
}

func TestAttemptsAreNeverTooClose(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, o, _ := withOutage(t)
		token(t, s)
		hard := s.goodFor()
		began := time.Now()
		o.set(http.StatusNotFound, nil)
		time.Sleep(11 * time.Minute) // the token is fresh
		for step := 20 * time.Millisecond; time.Since(began) < hard-time.Millisecond; time.Sleep(step) {
			token(t, s)
			if time.Since(began) > hard-10*time.Second {
				step = time.Millisecond
			}
		}
		synctest.Wait()
		r := o.requests()
		require.Greater(t, len(r), 3)
		for i := 2; i < len(r); i++ {
			assert.GreaterOrEqual(t, r[i].Sub(r[i-1]), leastDelay/2)
		}
	})
}

func TestWaitThatTheServerAsksForIsSpread(t *testing.T) {
	t.Parallel()
	assert.Equal(t, 4500*time.Millisecond, spread(4*time.Second, 0.5))
	assert.Equal(t, time.Minute, spread(time.Minute, 0))
	assert.Equal(t, time.Hour+15*time.Minute, spread(24*time.Hour, 1))
	assert.Zero(t, spread(-time.Second, 1))
}
