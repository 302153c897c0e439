package rediscache

// This file tests limiters on a real Redis, also while that Redis fails. The rate is
// high, so that the tests are short. They depend on the speed of the machine in only
// one way: a command that takes over a second counts as failed.

import (
	"context"
	"math"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestNewLimiterNamesTheArgumentThatIsWrong(t *testing.T) {
	client := redis.NewClient(&redis.Options{Addr: "127.0.0.1:1"})
	defer client.Close()
	for _, c := range []struct {
		client    redis.UniversalClient
		name      string
		perSecond float64
		want      string
	}{
		{nil, "moov", 40, "rediscache: the client is nil"},
		{client, "", 40, "rediscache: the limiter's name is empty"},
		{client, "moov", 0, "rediscache: the limiter's perSecond must be a number of requests per second above 0, such as 10; got 0"},
		{client, "moov", -1, "got -1"},
		{client, "moov", math.NaN(), "got NaN"},
		{client, "moov", math.Inf(1), "got +Inf"},
	} {
		_, err := NewLimiter(c.client, c.name, c.perSecond)
		require.ErrorContains(t, err, c.want)
	}
	_, err := NewLimiter(client, "moov", 0.1)
	require.NoError(t, err, "NewLimiter sends no command")
}

// callers keep a limiter busy until stop is called.
type callers struct {
	turns   atomic.Int64
	longest atomic.Int64 // the longest wait, in ns
	stop    func()
}

func keepBusy(t *testing.T, l *Limiter, n int) *callers {
	t.Helper()
	c := new(callers)
	ctx, cancel := context.WithCancel(t.Context())
	var all sync.WaitGroup
	for range n {
		all.Go(func() {
			for {
				start := time.Now()
				err := l.Wait(ctx)
				if ctx.Err() != nil {
					return
				}
				if !assert.NoError(t, err) {
					return
				}
				c.turns.Add(1)
				took := int64(time.Since(start))
				for old := c.longest.Load(); took > old && !c.longest.CompareAndSwap(old, took); old = c.longest.Load() {
				}
			}
		})
	}
	c.stop = func() { cancel(); all.Wait() }
	t.Cleanup(c.stop)
	return c
}

// more waits until the callers have got n more turns.
func (c *callers) more(t *testing.T, n int64) {
	t.Helper()
	to := c.turns.Load() + n
	require.Eventually(t, func() bool { return c.turns.Load() >= to }, soon, tick)
}

// limiterOn returns a limiter that uses the Redis at addr.
func limiterOn(t *testing.T, addr, name string, perSecond float64) *Limiter {
	t.Helper()
	l, err := NewLimiter(connect(t, addr), name, perSecond)
	require.NoError(t, err)
	return l
}

func TestProcessesShareARate(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	const perSecond, requests = 400, 800
	start := time.Now()
	var all sync.WaitGroup
	for i := range 4 {
		l := limiterOn(t, r.addr, t.Name(), perSecond)
		for range requests * (1 + 6*max(0, 1-i)) / 10 { // 70 % at the first process
			all.Go(func() { assert.NoError(t, l.Wait(t.Context())) })
		}
	}
	all.Wait()
	took := time.Since(start)
	t.Logf("%v for %d turns at %d a second", took, requests, perSecond)
	assert.Greater(t, took.Seconds(), float64(requests-1)/perSecond)
	assert.Empty(t, logged(t, t.Name()))
}

// Each row disturbs a Redis that three limiters use, one for each process. No caller
// gets an error or waits for long.
func TestLimiterContinuesWhileRedisFails(t *testing.T) {
	for name, c := range map[string]struct {
		disturb func(t *testing.T, r *testRedis)
		warns   bool
		real    bool // miniredis cannot do this
	}{
		"killed and restarted": {warns: true, disturb: func(_ *testing.T, r *testRedis) {
			r.kill()
			time.Sleep(5 * time.Second)
			r.start()
		}},
		"FLUSHALL": {disturb: func(t *testing.T, r *testRedis) {
			require.NoError(t, connect(t, r.addr).FlushAll(t.Context()).Err())
		}},
		"SCRIPT FLUSH": {disturb: func(t *testing.T, r *testRedis) {
			require.NoError(t, connect(t, r.addr).ScriptFlush(t.Context()).Err())
		}},
		"CLIENT PAUSE": {warns: true, real: true, disturb: func(t *testing.T, r *testRedis) {
			require.NoError(t, connect(t, r.addr).ClientPause(t.Context(), 4*time.Second).Err())
		}},
		"CLIENT KILL": {real: true, disturb: func(t *testing.T, r *testRedis) {
			require.NoError(t, connect(t, r.addr).ClientKillByFilter(t.Context(), "TYPE", "normal", "SKIPME", "yes").Err())
		}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if c.real && redisBinary == "" {
				t.Skip("miniredis cannot do this")
			}
			if c.warns && testing.Short() {
				t.Skip("this takes some seconds")
			}
			r := startRedis(t)
			var busy []*callers
			for range 3 {
				busy = append(busy, keepBusy(t, limiterOn(t, r.addr, t.Name(), 300), 10))
			}
			for _, b := range busy {
				b.more(t, 20)
			}
			c.disturb(t, r)
			for _, b := range busy {
				b.more(t, 100)
			}
			if !c.warns {
				assert.Empty(t, logged(t, t.Name()))
			} else {
				require.Eventually(t, func() bool { return len(logged(t, t.Name())) >= 2*len(busy) }, soon, tick, "all use Redis again")
			}
			time.Sleep(200 * time.Millisecond)
			var longest time.Duration
			for _, b := range busy {
				b.stop()
				longest = max(longest, time.Duration(b.longest.Load()))
			}
			assert.Less(t, longest, bound)
			t.Logf("the longest wait was %v", longest.Round(time.Millisecond))
			if !c.warns {
				assert.Empty(t, logged(t, t.Name()))
				return
			}
			failed, back := 0, 0
			for _, line := range logged(t, t.Name()) {
				if strings.HasPrefix(line, "WARN rediscache: Redis failed; this process continues with its own limit") {
					failed++
				}
				if strings.HasPrefix(line, "WARN rediscache: Redis is back; the processes share the limit again") {
					back++
				}
			}
			t.Log(strings.Join(logged(t, t.Name()), "\n"))
			assert.Equal(t, len(busy), failed)
			assert.Equal(t, len(busy), back)
		})
	}
}

func TestLimiterWithoutARedis(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() }) // clients can connect, but no one replies
	for name, options := range map[string]redis.Options{
		"down":                               {Addr: net.JoinHostPort("127.0.0.1", freePort(t))},
		"silent":                             {Addr: l.Addr().String()},
		"silent, with ContextTimeoutEnabled": {Addr: l.Addr().String(), ContextTimeoutEnabled: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			client := redis.NewClient(&options)
			defer client.Close()
			l, err := NewLimiter(client, t.Name(), 100)
			require.NoError(t, err)
			start := time.Now()
			require.NoError(t, l.Wait(t.Context()))
			first := time.Since(start)
			keepBusy(t, l, 10).more(t, 100)
			t.Logf("the first turn after %v", first.Round(time.Millisecond))
			assert.Less(t, first, bound)
			assert.Less(t, time.Since(start), bound+5*time.Second)
			require.Eventually(t, func() bool { return len(logged(t, t.Name())) == 1 }, soon, tick)
		})
	}
}

// far returns the address of a proxy to addr. A round trip through it takes trip.
func far(t *testing.T, addr string, trip time.Duration) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	pipe := func(from, to net.Conn) {
		defer to.Close()
		for buffer := make([]byte, 64<<10); ; {
			n, err := from.Read(buffer)
			if err != nil {
				return
			}
			time.Sleep(trip / 2)
			if _, err := to.Write(buffer[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			there, err := net.Dial("tcp", addr)
			if err != nil {
				_ = near.Close()
				return
			}
			go pipe(near, there)
			go pipe(there, near)
		}
	}()
	return l.Addr().String()
}

func TestRedisIsFarAway(t *testing.T) {
	t.Parallel()
	addr := far(t, startRedis(t).addr, 100*time.Millisecond)
	l := limiterOn(t, addr, t.Name(), 40)
	require.NoError(t, l.Wait(t.Context())) // connects
	start := time.Now()
	const turns = 80
	keepBusy(t, l, 50).more(t, turns)
	took := time.Since(start)
	t.Logf("%d turns at 40 a second in %v", turns, took.Round(time.Millisecond))
	assert.Less(t, took.Seconds(), 1.5*turns/40)
	assert.Empty(t, logged(t, t.Name()))
}

func TestPermissionsThatTheLimiterNeeds(t *testing.T) {
	if redisBinary == "" {
		t.Skip("miniredis has no permissions")
	}
	r := startRedis(t)
	admin := connect(t, r.addr)
	limiter := func(t *testing.T, name string, rules ...any) *Limiter {
		require.NoError(t, admin.Do(t.Context(), append([]any{"ACL", "SETUSER", "fleet", "reset", "on", ">password", "~moovauth-limit-moov"}, rules...)...).Err())
		client := redis.NewClient(&redis.Options{Addr: r.addr, Username: "fleet", Password: "password"})
		t.Cleanup(func() { _ = client.Close() })
		l, err := NewLimiter(client, name, 100)
		require.NoError(t, err)
		require.NoError(t, l.Wait(t.Context()))
		return l
	}
	all := []any{"+evalsha", "+eval", "+time", "+get", "+set"}
	l := limiter(t, "moov", all...)
	l.Refused(0)
	require.NoError(t, l.Wait(t.Context()))
	assert.Empty(t, logged(t, "moov"))

	t.Run("each command is needed", func(t *testing.T) {
		for i := range all {
			require.NoError(t, admin.ScriptFlush(t.Context()).Err())
			limiter(t, "moov", append(append([]any{}, all[:i]...), all[i+1:]...)...)
			require.Eventually(t, func() bool { return len(logged(t, "moov")) == i+1 }, soon, tick)
			assert.Regexp(t, "NOPERM|can't run this command", logged(t, "moov")[i])
		}
	})
	t.Run("only its own key is allowed", func(t *testing.T) {
		limiter(t, "other", all...)
		require.Eventually(t, func() bool { return len(logged(t, "other")) == 1 }, soon, tick)
	})
}

func TestLimiterInACluster(t *testing.T) {
	if redisBinary == "" {
		t.Skip("miniredis is not a cluster")
	}
	t.Parallel()
	r := startRedis(t, "--cluster-enabled", "yes")
	require.NoError(t, connect(t, r.addr).ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{r.addr}})
	defer client.Close()
	require.Eventually(t, func() bool { return client.Set(context.Background(), "up", "", 0).Err() == nil }, soon, tick)
	l, err := NewLimiter(client, t.Name(), 200)
	require.NoError(t, err)
	for range 20 {
		require.NoError(t, l.Wait(t.Context()))
	}
	l.Refused(0)
	require.NoError(t, l.Wait(t.Context()))
	assert.Empty(t, logged(t, t.Name()))
}

// The client's address leads to the replica after the failover, as with a failover by
// DNS.
func TestLimiterKeepsItsStateWhenAReplicaIsPromoted(t *testing.T) {
	if redisBinary == "" {
		t.Skip("miniredis has no replicas")
	}
	t.Parallel()
	master := startRedis(t, "--repl-diskless-sync-delay", "0")
	host, port, err := net.SplitHostPort(master.addr)
	require.NoError(t, err)
	replica := startRedis(t, "--replicaof", host+" "+port)
	copied := connect(t, replica.addr)
	require.Eventually(t, func() bool {
		return strings.Contains(copied.Info(t.Context(), "replication").Val(), "master_link_status:up")
	}, soon, tick)

	var address atomic.Value
	address.Store(master.addr)
	client := redis.NewClient(&redis.Options{Dialer: func(ctx context.Context, network, _ string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address.Load().(string))
	}})
	defer client.Close()
	l, err := NewLimiter(client, t.Name(), 100)
	require.NoError(t, err)
	require.NoError(t, l.Wait(t.Context()))
	l.Refused(4 * time.Second)
	start := time.Now()
	state := func(c *redis.Client) string { return c.Get(t.Context(), l.key).Val() }
	require.Eventually(t, func() bool {
		return strings.Count(state(copied), " ") == 5 && state(copied) == state(connect(t, master.addr))
	}, soon, tick)
	require.NoError(t, copied.ReplicaOf(t.Context(), "NO", "ONE").Err())
	address.Store(replica.addr)
	master.kill()

	other := limiterOn(t, replica.addr, t.Name(), 100)
	require.NoError(t, other.Wait(t.Context()))
	assert.Greater(t, time.Since(start), 3900*time.Millisecond, "the new master knows the pause")
	require.NoError(t, l.Wait(t.Context()))
	assert.False(t, l.redisDown)
}
