package platform

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"
)

// eachLimit runs test with each kind of limit that a server may have.
func eachLimit(t *testing.T, perSecond int, test func(t *testing.T, s *limit)) {
	for _, fixed := range []bool{false, true} {
		for _, retryAfter := range []time.Duration{0, time.Second} {
			window := map[bool]string{false: "sliding", true: "fixed"}[fixed]
			t.Run(fmt.Sprintf("%s window, Retry-After %v", window, retryAfter), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					test(t, &limit{perSecond: perSecond, fixed: fixed, retryAfter: retryAfter})
				})
			})
		}
	}
}

func TestQueueKeepsToItsRate(t *testing.T) {
	eachLimit(t, 10, func(t *testing.T, s *limit) {
		r := crowd(newTestQueue(10), s, 200, 80*time.Millisecond)
		assert.Zero(t, r.failed)
		assert.LessOrEqual(t, r.refused, 4) // 2 %
		assert.Less(t, r.took.Seconds(), 1.15*20)
	})
}

func TestQueueFindsTheRateThatTheServerTakes(t *testing.T) {
	for _, latency := range []time.Duration{0, 80 * time.Millisecond, 400 * time.Millisecond} {
		t.Run(latency.String(), func(t *testing.T) {
			eachLimit(t, 5, func(t *testing.T, s *limit) {
				r := crowd(newTestQueue(10), s, 200, latency)
				t.Logf("%.3f of the floor, %.1f %% refused", r.took.Seconds()/40, 100*float64(r.refused)/float64(200+r.refused))
				assert.Zero(t, r.failed)
				assert.LessOrEqual(t, r.refused, 8) // 4 %
				assert.Less(t, r.took.Seconds(), 1.2*40)
			})
		})
	}
}

// For comparison: a rate.Limiter does not hold back callers that have a reservation,
// and does not change its rate.
func TestARateLimiterDoesNotFindTheRate(t *testing.T) {
	eachLimit(t, 5, func(t *testing.T, s *limit) {
		l := rate.NewLimiter(10, 1)
		start := time.Now()
		var wg sync.WaitGroup
		for range 200 {
			wg.Go(func() {
				for {
					assert.NoError(t, l.Wait(context.Background()))
					if s.admits() {
						return
					}
					time.Sleep(max(s.retryAfter, defaultHold))
				}
			})
		}
		wg.Wait()
		t.Logf("%.3f of the floor, %.1f %% refused", time.Since(start).Seconds()/40, 100*float64(s.refused)/float64(200+s.refused))
		assert.Greater(t, s.refused, 40)
	})
}

func TestTenThousandInTheQueue(t *testing.T) {
	eachLimit(t, 40, func(t *testing.T, s *limit) {
		r := crowd(newTestQueue(40), s, 10_000, 80*time.Millisecond)
		assert.Zero(t, r.failed)
		assert.LessOrEqual(t, r.refused, 200)
		assert.Less(t, r.took.Seconds(), 1.15*250)
	})
}

func TestFirstComeFirstServed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(10)
		var mu sync.Mutex
		var order []int
		for i := range 50 {
			go func() {
				assert.NoError(t, l.Wait(t.Context()))
				mu.Lock()
				defer mu.Unlock()
				order = append(order, i)
			}()
			synctest.Wait()
		}
		time.Sleep(time.Minute)
		mu.Lock()
		defer mu.Unlock()
		require.Len(t, order, 50)
		assert.IsIncreasing(t, order)
	})
}

func TestA429HoldsBackTheWholeQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(10)
		require.NoError(t, l.Wait(t.Context()))
		start := time.Now()
		done := make(chan time.Duration, 5)
		for range 5 {
			go func() {
				assert.NoError(t, l.Wait(t.Context()))
				done <- time.Since(start)
			}()
		}
		synctest.Wait() // the first caller waits for its time
		(&place{queue: l}).Refused(3 * time.Second)
		(&place{queue: l}).Refused(time.Second) // a shorter Retry-After does not end the hold
		first := <-done
		assert.Equal(t, 3*time.Second+comeBack, first)
		second := <-done
		assert.InDelta(t, 1/(0.97*10/2), (second - first).Seconds(), 0.001, "at half of the rate")
		for range 3 {
			<-done
		}
	})
}

func TestA429WithoutRetryAfterHoldsForAQuarterOfASecond(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(10)
		start := time.Now()
		(&place{queue: l}).Refused(0)
		require.NoError(t, l.Wait(t.Context()))
		assert.Equal(t, 250*time.Millisecond, time.Since(start))
	})
}

func TestNoRetryAfterHoldsForMoreThanAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(10)
		start := time.Now()
		(&place{queue: l}).Refused(1000 * time.Hour)
		require.NoError(t, l.Wait(t.Context()))
		assert.Equal(t, time.Hour+comeBack, time.Since(start))
	})
}

// A caller that leaves uses no turn, whatever its place in the queue.
func TestLeavingTheQueue(t *testing.T) {
	for name, leaver := range map[string]int{"first": 0, "in the middle": 2, "last": 4} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				l := newTestQueue(1 / margin) // one a second
				require.NoError(t, l.Wait(t.Context()))
				start := time.Now()
				done := make(chan time.Duration, 5)
				ctx, cancel := context.WithCancel(t.Context())
				for i := range 5 {
					go func() {
						if i == leaver {
							assert.ErrorIs(t, l.Wait(ctx), context.Canceled)
							return
						}
						assert.NoError(t, l.Wait(t.Context()))
						done <- time.Since(start)
					}()
					synctest.Wait()
				}
				time.Sleep(time.Second / 2)
				cancel()
				for i := range 4 {
					assert.InDelta(t, float64(i+1), (<-done).Seconds(), 0.001)
				}
			})
		})
	}
}

// When the last caller leaves, no turn is used, and nothing waits.
func TestAllCallersLeaveTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(1 / margin)
		require.NoError(t, l.Wait(t.Context()))
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		require.ErrorIs(t, l.Wait(ctx), context.DeadlineExceeded)
		var s Stats
		l.report(&s)
		assert.Zero(t, s.InLine)
		assert.Zero(t, s.LongestWait)
		start := time.Now()
		require.NoError(t, l.Wait(t.Context()))
		assert.Equal(t, 900*time.Millisecond, time.Since(start).Round(time.Millisecond))
	})
}

func TestAnEndedContextTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(1)
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		require.ErrorIs(t, l.Wait(ctx), context.Canceled)
		start := time.Now()
		require.NoError(t, l.Wait(t.Context()))
		assert.Zero(t, time.Since(start))
	})
}

// If a caller's turn comes while its context ends, the caller passes the turn on.
func TestNoTurnIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(1 / margin)
		require.NoError(t, l.Wait(t.Context()))
		var served atomic.Int64
		start := time.Now()
		for i := range 200 {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if i%2 == 0 { // it leaves at the moment when its turn may come
				ctx, cancel = context.WithDeadline(t.Context(), start.Add(time.Duration(i/2+1)*time.Second))
			}
			go func() {
				defer cancel()
				if l.Wait(ctx) == nil {
					served.Add(1)
				}
			}()
			synctest.Wait()
		}
		time.Sleep(100*time.Second + time.Second/2)
		assert.EqualValues(t, 100, served.Load(), "one a second, even while others leave")
	})
}

func TestLongestWaitIsTheWaitOfTheFirst(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(1)
		(&place{queue: l}).Refused(time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		for range 3 {
			go l.Wait(ctx)
			synctest.Wait()
			time.Sleep(2 * time.Second)
		}
		var s Stats
		l.report(&s)
		assert.Equal(t, 3, s.InLine)
		assert.Equal(t, 6*time.Second, s.LongestWait)
		assert.EqualValues(t, 1, s.Refused)
		assert.InDelta(t, margin/2, s.Rate, 1e-9)
		assert.Equal(t, 54+7, l.clear(), "held for 54 s more, then three at less than half a second")
	})
}

func TestWaitingCostsNoGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := newTestQueue(0.001)
		require.NoError(t, l.Wait(t.Context()))
		before := runtime.NumGoroutine()
		ctx, cancel := context.WithCancel(t.Context())
		for range 1000 {
			go l.Wait(ctx)
		}
		synctest.Wait()
		assert.Less(t, runtime.NumGoroutine(), before+1100, "only the callers' own")
		cancel()
		synctest.Wait()
		assert.Less(t, runtime.NumGoroutine(), before+100)
	})
}
