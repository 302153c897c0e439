package rediscache

// This file runs fleets in fake time: many limiters share a simulated Redis, which
// calls step, and send requests to a server that counts them.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// limitRedis is a Redis in memory that does what the limiter's script does. Its clock
// is an hour ahead of the processes' clocks.
type limitRedis struct {
	redis.UniversalClient
	trip time.Duration // the time of a round trip

	mu       sync.Mutex // guards what follows
	states   map[string]*schedule
	commands int
	dead     bool // it refuses connections
	silent   bool // it does not reply
}

func newLimitRedis(trip time.Duration) *limitRedis {
	return &limitRedis{trip: trip, states: make(map[string]*schedule)}
}

// set changes r while it is in use.
func (r *limitRedis) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

func (r *limitRedis) EvalSha(ctx context.Context, _ string, keys []string, args ...any) *redis.Cmd {
	time.Sleep(r.trip / 2)
	r.mu.Lock()
	r.commands++
	if r.dead {
		r.mu.Unlock()
		return redis.NewCmdResult(nil, errors.New("connection refused"))
	}
	if r.silent {
		r.mu.Unlock()
		<-ctx.Done()
		return redis.NewCmdResult(nil, ctx.Err())
	}
	s := r.states[keys[0]]
	if s == nil {
		fresh := newSchedule()
		s = &fresh
		r.states[keys[0]] = s
	}
	now := micros(time.Duration(time.Now().Add(time.Hour).UnixNano()))
	reply := s.step(now, args[0].(float64), args[1].(int), args[2].(int), time.Duration(args[3].(int64))*time.Microsecond)
	r.mu.Unlock()
	time.Sleep(r.trip / 2)
	return redis.NewCmdResult([]any{int64(reply.n), reply.delay.Microseconds(), reply.interval.Microseconds()}, nil)
}

// countingServer accepts perSecond requests in any second.
type countingServer struct {
	retryAfter   time.Duration // 0: its 429s have no Retry-After
	countRefused bool          // refused requests count towards the limit, too

	mu        sync.Mutex // guards what follows
	perSecond int
	counted   []time.Time // in the last second
	served    int
	refused   int
}

// admits reports whether the server accepts a request that arrives now.
func (s *countingServer) admits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for len(s.counted) > 0 && now.Sub(s.counted[0]) >= time.Second {
		s.counted = s.counted[1:]
	}
	ok := len(s.counted) < s.perSecond
	if ok || s.countRefused {
		s.counted = append(s.counted, now)
	}
	if ok {
		s.served++
	} else {
		s.refused++
	}
	return ok
}

// network is the network to the server. It takes 30 to 50 ms in each direction.
type network struct {
	mu     sync.Mutex
	random *rand.Rand
}

func newNetwork() *network { return &network{random: rand.New(rand.NewPCG(1, 2))} }

func (n *network) pass() {
	n.mu.Lock()
	half := 30*time.Millisecond + time.Duration(n.random.Int64N(int64(20*time.Millisecond)))
	n.mu.Unlock()
	time.Sleep(half)
}

// request waits for l and sends a request to s, and retries until s accepts it.
func (n *network) request(ctx context.Context, l moovauth.Limiter, s *countingServer) error {
	for {
		if err := l.Wait(ctx); err != nil {
			return err
		}
		n.pass()
		ok := s.admits()
		n.pass()
		if ok {
			return nil
		}
		l.(interface{ Refused(time.Duration) }).Refused(s.retryAfter)
		time.Sleep(max(s.retryAfter, pauseMin))
	}
}

// limiters returns n limiters, one for each process of a fleet.
func limiters(t *testing.T, n int, client redis.UniversalClient, name string, perSecond float64) []*Limiter {
	t.Helper()
	all := make([]*Limiter, n)
	for i := range all {
		var err error
		all[i], err = NewLimiter(client, name, perSecond)
		require.NoError(t, err)
	}
	return all
}

// replicaOf returns the replica that makes an account's requests. One replica has 70 %
// of the accounts, and the others share the rest evenly.
func replicaOf(account, replicas int) int {
	if account%10 < 7 || replicas == 1 {
		return 0
	}
	return 1 + (account/10*3+account%10-7)%(replicas-1)
}

// fewWaits limits how many callers wait for the limiter at a time, as package
// platform does.
type fewWaits struct {
	*Limiter
	places chan struct{}
}

func (f fewWaits) Wait(ctx context.Context) error {
	f.places <- struct{}{}
	defer func() { <-f.places }()
	return f.Limiter.Wait(ctx)
}

// serve sends a request for each account, all at once, and returns how long that
// took. If waits is above 0, it limits how many callers of a replica wait for the
// limiter at a time.
func serve(t *testing.T, fleet []*Limiter, s *countingServer, accounts, waits int) time.Duration {
	t.Helper()
	replicas := make([]moovauth.Limiter, len(fleet))
	for i, l := range fleet {
		replicas[i] = l
		if waits > 0 {
			replicas[i] = fewWaits{l, make(chan struct{}, waits)}
		}
	}
	n := newNetwork()
	start := time.Now()
	var all sync.WaitGroup
	for account := range accounts {
		all.Go(func() { assert.NoError(t, n.request(t.Context(), replicas[replicaOf(account, len(fleet))], s)) })
	}
	all.Wait()
	return time.Since(start)
}

func TestFleetKeepsToOneRate(t *testing.T) {
	t.Parallel()
	const accounts, perSecond = 2000, 40
	for _, trip := range []time.Duration{time.Millisecond, 100 * time.Millisecond} {
		for _, waits := range []int{0, 8} {
			for _, replicas := range []int{1, 2, 4, 8, 16, 100} {
				t.Run(fmt.Sprint(replicas, " replicas, Redis ", trip, " away, ", waits, " waits at a time"), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						r := newLimitRedis(trip)
						s := &countingServer{perSecond: perSecond, retryAfter: time.Second}
						took := serve(t, limiters(t, replicas, r, t.Name(), perSecond), s, accounts, waits)
						floor := took.Seconds() / (accounts / perSecond)
						t.Logf("%.3f of the floor, %d refused, %.2f commands a turn", floor, s.refused, float64(r.commands)/accounts)
						assert.Less(t, floor, 1.05)
						assert.Zero(t, s.refused)
						assert.Less(t, float64(r.commands)/accounts, 0.65)
						assert.Empty(t, logged(t, t.Name()))
					})
				})
			}
		}
	}
}

func TestServerTakesHalfOfWhatIsAssumed(t *testing.T) {
	t.Parallel()
	const accounts, assumed, takes = 2000, 40, 20
	for _, countRefused := range []bool{false, true} {
		for _, retryAfter := range []time.Duration{0, time.Second} {
			for _, replicas := range []int{2, 4, 8, 16, 100} {
				t.Run(fmt.Sprint(replicas, " replicas, Retry-After ", retryAfter, ", refused requests count: ", countRefused), func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						s := &countingServer{perSecond: takes, retryAfter: retryAfter, countRefused: countRefused}
						took := serve(t, limiters(t, replicas, newLimitRedis(time.Millisecond), t.Name(), assumed), s, accounts, 0)
						floor := took.Seconds() / (accounts / takes)
						refused := float64(s.refused) / float64(s.refused+s.served)
						t.Logf("%.3f of the floor, %.1f %% refused", floor, 100*refused)
						mostFloor, mostRefused := 1.25, 0.05
						if countRefused {
							mostFloor = 1.5
							if replicas > 16 { // each has a request under way when the server first refuses one
								mostRefused = 0.08
							}
						}
						assert.Less(t, floor, mostFloor)
						assert.Less(t, refused, mostRefused)
					})
				})
			}
		}
	}
}

func TestRateRisesAgainAfterAnOverload(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &countingServer{perSecond: 20, retryAfter: time.Second}
		fleet := limiters(t, 2, newLimitRedis(time.Millisecond), t.Name(), 40)
		serve(t, fleet, s, 200, 0)
		s.perSecond = 40
		time.Sleep(quietMin + 20*time.Second)
		s.refused = 0
		took := serve(t, fleet, s, 400, 0)
		assert.Less(t, took.Seconds(), 1.05*400/40)
		assert.Zero(t, s.refused)
	})
}

func TestRedisFailsInAFleet(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		begin, end func(r *limitRedis)
		took       float64 // the most, as a multiple of the floor
		warns      bool
	}{
		"killed for 5 s, and empty then": {
			begin: func(r *limitRedis) { r.dead = true },
			end:   func(r *limitRedis) { r.dead = false; clear(r.states) },
			took:  1.35, warns: true,
		},
		"silent for 5 s": {
			begin: func(r *limitRedis) { r.silent = true },
			end:   func(r *limitRedis) { r.silent = false },
			took:  1.35, warns: true,
		},
		"FLUSHALL": {
			begin: func(r *limitRedis) { clear(r.states) }, end: func(r *limitRedis) { clear(r.states) },
			took: 1.35, // turns from before and after are used together, which causes 429s
		},
	} {
		for _, replicas := range []int{1, 4, 16} {
			t.Run(fmt.Sprint(name, ", ", replicas, " replicas"), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					const accounts, perSecond = 4000, 40
					r := newLimitRedis(time.Millisecond)
					s := &countingServer{perSecond: perSecond, retryAfter: time.Second}
					time.AfterFunc(10*time.Second, func() { r.set(func() { c.begin(r) }) })
					time.AfterFunc(15*time.Second, func() { r.set(func() { c.end(r) }) })
					took := serve(t, limiters(t, replicas, r, t.Name(), perSecond), s, accounts, 0)
					floor := took.Seconds() / (accounts / perSecond)
					t.Logf("%.3f of the floor, %d of %d refused", floor, s.refused, s.refused+s.served)
					assert.Less(t, floor, c.took)
					warnings := logged(t, t.Name())
					if c.warns {
						assert.Len(t, warnings, 2*replicas, "each process logs one when Redis fails and one when it is back")
					} else {
						assert.Empty(t, warnings)
					}
				})
			})
		}
	}
}

func TestRedisIsNeverThere(t *testing.T) {
	for name, disturb := range map[string]func(*limitRedis){
		"dead":   func(r *limitRedis) { r.dead = true },
		"silent": func(r *limitRedis) { r.silent = true },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				r := newLimitRedis(time.Millisecond)
				disturb(r)
				s := &countingServer{perSecond: 40, retryAfter: time.Second}
				took := serve(t, limiters(t, 1, r, t.Name(), 40), s, 400, 0)
				t.Logf("%v for %d requests, %d refused, %d commands", took, s.served, s.refused, r.commands)
				assert.Less(t, took.Seconds(), 1.05*400/40+1)
				assert.Zero(t, s.refused)
				assert.Less(t, r.commands, 13, "one command a second")
				assert.Len(t, logged(t, t.Name()), 1)
			})
		})
	}
}

// The turns that a process has reserved are lost when it dies. They are 8 at most.
func TestReplicaDiesWithTurnsReserved(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond, requests = 40, 200
		fleet := limiters(t, 2, newLimitRedis(time.Millisecond), t.Name(), perSecond)
		ctx, die := context.WithCancel(t.Context())
		for range 100 {
			go fleet[0].Wait(ctx)
		}
		var all sync.WaitGroup
		start := time.Now()
		for range requests {
			all.Go(func() { assert.NoError(t, fleet[1].Wait(t.Context())) })
		}
		time.Sleep(time.Second)
		die()
		time.Sleep(time.Nanosecond)
		fleet[1].mu.Lock()
		left := fleet[1].waiting.Len()
		fleet[1].mu.Unlock()
		all.Wait()
		lost := time.Since(start) - time.Second - time.Duration(float64(left)/(margin*perSecond)*float64(time.Second))
		t.Logf("%v lost", lost)
		assert.Less(t, lost, 220*time.Millisecond)
	})
}

func TestBusyReplicaGetsTheTurnsOfIdleOnes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		fleet := limiters(t, 8, newLimitRedis(time.Millisecond), t.Name(), 40)
		for i, l := range fleet { // one replica after the other is busy
			start := time.Now()
			var all sync.WaitGroup
			for range 80 {
				all.Go(func() { assert.NoError(t, l.Wait(t.Context())) })
			}
			all.Wait()
			took := time.Since(start)
			assert.InDelta(t, 80/(margin*40), took.Seconds(), 0.1, "replica %d", i)
		}
	})
}

func TestTwoNamesAreTwoLimits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newLimitRedis(time.Millisecond)
		var all sync.WaitGroup
		start := time.Now()
		for _, name := range []string{t.Name() + "1", t.Name() + "2"} {
			l := limiters(t, 1, r, name, 40)[0]
			if name == t.Name()+"1" {
				l.Refused(time.Second)
			}
			for range 40 {
				all.Go(func() { assert.NoError(t, l.Wait(t.Context())) })
			}
			if name == t.Name()+"2" {
				require.NoError(t, l.Wait(t.Context()))
				assert.Less(t, time.Since(start), 1100*time.Millisecond, "this name has the full rate")
			}
		}
		all.Wait()
		assert.InDelta(t, 1+40/(0.95*margin*40), time.Since(start).Seconds(), 0.1, "a pause, and then 0.95 of the rate")
	})
}

func TestFirstComeFirstServedInAProcess(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiters(t, 1, newLimitRedis(time.Millisecond), t.Name(), 10)[0]
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

// If a caller's context ends just when its turn comes, the next caller gets the turn.
func TestNoTurnIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiters(t, 1, newLimitRedis(0), t.Name(), 1/margin)[0] // one turn a second
		require.NoError(t, l.Wait(t.Context()))
		var served atomic.Int64
		start := time.Now()
		for i := range 200 {
			ctx, cancel := t.Context(), context.CancelFunc(func() {})
			if i%2 == 0 { // its context ends when its turn may come
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
		assert.EqualValues(t, 100, served.Load(), "one a second, although the contexts of others end")
	})
}

func TestUnusedTurnGoesToTheNextCaller(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiters(t, 1, newLimitRedis(0), t.Name(), 1/margin)[0]
		require.NoError(t, l.Wait(t.Context()))
		start := time.Now()
		done := make(chan time.Duration, 2)
		for range 2 {
			go func() {
				assert.NoError(t, l.Wait(t.Context()))
				done <- time.Since(start)
			}()
		}
		time.Sleep(time.Second / 2)
		l.Unused()
		assert.Equal(t, time.Second/2, <-done)
		assert.Equal(t, time.Second, <-done)

		time.Sleep(time.Hour)
		l.Unused()
		time.Sleep(time.Second / 2)
		start = time.Now()
		require.NoError(t, l.Wait(t.Context()))
		assert.Zero(t, time.Since(start), "the turn can be used until the next turn")
		l.Unused()
		time.Sleep(time.Minute)
		l.Unused()
		l.Unused()
		time.Sleep(2 * time.Second)
		start = time.Now()
		require.NoError(t, l.Wait(t.Context()))
		require.NoError(t, l.Wait(t.Context()))
		assert.Equal(t, time.Second, time.Since(start), "the turns can no longer be used")
	})
}

func TestA429PausesTheWholeFleet(t *testing.T) {
	for asked, pause := range map[time.Duration]time.Duration{0: pauseMin, 3 * time.Second: 3 * time.Second, 24 * time.Hour: pauseMost} {
		t.Run(asked.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fleet := limiters(t, 3, newLimitRedis(0), t.Name(), 10)
				for _, l := range fleet {
					require.NoError(t, l.Wait(t.Context()))
				}
				start := time.Now()
				fleet[0].Refused(asked)
				var all sync.WaitGroup
				for _, l := range fleet {
					synctest.Wait()
					all.Go(func() {
						assert.NoError(t, l.Wait(t.Context()))
						assert.GreaterOrEqual(t, time.Since(start), pause)
					})
				}
				all.Wait()
				assert.InDelta(t, (pause + 2*time.Second/9).Seconds(), time.Since(start).Seconds(), 0.1)
			})
		})
	}
}

// Redis has reserved the turn, but its reply arrives after the 429.
func TestTurnsThatWereReservedBeforeA429AreNotUsed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiters(t, 1, newLimitRedis(100*time.Millisecond), t.Name(), 40)[0]
		start := time.Now()
		done := make(chan time.Duration)
		go func() {
			assert.NoError(t, l.Wait(t.Context()))
			done <- time.Since(start)
		}()
		time.Sleep(75 * time.Millisecond)
		l.Refused(2 * time.Second)
		assert.GreaterOrEqual(t, <-done, 2*time.Second)
	})
}

func TestEndedContextTakesNoTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := limiters(t, 1, newLimitRedis(0), t.Name(), 1)[0]
		ctx, cancel := context.WithCancelCause(t.Context())
		cancel(io.EOF)
		require.ErrorIs(t, l.Wait(ctx), io.EOF)
		start := time.Now()
		require.NoError(t, l.Wait(t.Context()))
		assert.Zero(t, time.Since(start))
	})
}

// The sources of two replicas use moovauth.WithLimiter.
func TestSourcesOfAFleetShareTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const perSecond, accounts = 40, 400
		server := moovtest.NewInMemory(moovtest.WithRateLimit(perSecond), moovtest.WithLatency(80*time.Millisecond))
		fleet := limiters(t, 2, newLimitRedis(time.Millisecond), t.Name(), perSecond)
		start := time.Now()
		var sources []*moovauth.TokenSource
		for i := range accounts {
			sources = append(sources, sourcesOf(t, server, 1, moovauth.WithLimiter(fleet[replicaOf(i, 2)]))...)
		}
		together(t, sources)
		took := time.Since(start)
		assert.Less(t, took.Seconds(), 1.05*accounts/perSecond)
		assert.Len(t, server.TokenRequests(), accounts, "the server refused none")
	})
}
