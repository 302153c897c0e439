package rediscache

// This file tests what the documentation of Cache says about entries, the lock and
// the options.

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestEntries(t *testing.T) {
	r := startRedis(t)
	cache, client := cacheOn(t, r.addr, WithPrefix("fleet/")), connect(t, r.addr)

	_, err := cache.Get(t.Context(), "a")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, cache.Delete(t.Context(), "a"), "deleting nothing is not an error")

	for _, want := range []string{"first", "second, which is longer", "\x00\xff\r\n"} {
		require.NoError(t, cache.Put(t.Context(), "a", []byte(want)))
		got, err := cache.Get(t.Context(), "a")
		require.NoError(t, err)
		assert.Equal(t, want, string(got))
	}
	assert.Equal(t, []string{"fleet/a"}, client.Keys(t.Context(), "*").Val())
	assert.InDelta(t, 30*24*time.Hour, client.PTTL(t.Context(), "fleet/a").Val(), float64(time.Minute))

	require.NoError(t, cache.Delete(t.Context(), "a"))
	_, err = cache.Get(t.Context(), "a")
	require.ErrorIs(t, err, fs.ErrNotExist)
}

func TestEntryExpiresAfterItsTTL(t *testing.T) {
	r := startRedis(t)
	cache := cacheOn(t, r.addr, WithTTL(50*time.Millisecond))
	require.NoError(t, cache.Put(t.Context(), "a", []byte("x")))
	require.Eventually(t, func() bool {
		_, err := cache.Get(t.Context(), "a")
		return errors.Is(err, fs.ErrNotExist)
	}, soon, tick)
}

func TestGetReadsAtMostOneMiB(t *testing.T) {
	r := startRedis(t)
	cache := cacheOn(t, r.addr)
	require.NoError(t, connect(t, r.addr).Set(t.Context(), "a", bytes.Repeat([]byte("x"), 3<<20), 0).Err())
	data, err := cache.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Len(t, data, 1<<20)
}

func TestKeyThatIsNotAStringIsAnError(t *testing.T) {
	r := startRedis(t)
	cache := cacheOn(t, r.addr)
	require.NoError(t, connect(t, r.addr).RPush(t.Context(), "a", "x").Err())
	_, err := cache.Get(t.Context(), "a")
	require.ErrorContains(t, err, "rediscache: WRONGTYPE")
}

func TestOneHolderAtATime(t *testing.T) {
	r := startRedis(t)
	caches := []*Cache{cacheOn(t, r.addr), cacheOn(t, r.addr)}
	var inside, held atomic.Int32
	done := make(chan error)
	for i := range 20 {
		go func() {
			unlock, err := caches[i%2].Lock(t.Context(), "a")
			if err == nil {
				held.Add(1)
				assert.Equal(t, int32(1), inside.Add(1))
				_, err = caches[i%2].Get(t.Context(), "a") // the lock has another key than the entry
				assert.ErrorIs(t, err, fs.ErrNotExist)
				inside.Add(-1)
				unlock()
				err = nil
			}
			done <- err
		}()
	}
	for range 20 {
		require.NoError(t, <-done)
	}
	assert.Equal(t, int32(20), held.Load())
	assert.Empty(t, connect(t, r.addr).Keys(t.Context(), "*").Val(), "no key is left")
}

func TestLockEndsWithItsContext(t *testing.T) {
	r := startRedis(t)
	cache := cacheOn(t, r.addr)
	unlock, err := cache.Lock(t.Context(), "a")
	require.NoError(t, err)
	defer unlock()

	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	_, err = cache.Lock(ctx, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "rediscache: ")

	other, err := cache.Lock(t.Context(), "b")
	require.NoError(t, err, "another key has another lock")
	other()
}

func TestLockIsFreedAfterItsContextHasEnded(t *testing.T) {
	r := startRedis(t)
	cache := cacheOn(t, r.addr)
	ctx, cancel := context.WithCancel(t.Context())
	unlock, err := cache.Lock(ctx, "a")
	require.NoError(t, err)
	cancel()
	unlock()
	assert.Empty(t, connect(t, r.addr).Keys(t.Context(), "*").Val())
}

func TestLockHasATimeToLive(t *testing.T) {
	r := startRedis(t)
	client := connect(t, r.addr)
	_, err := cacheOn(t, r.addr, WithPrefix("fleet/")).Lock(t.Context(), "a")
	require.NoError(t, err)
	require.Equal(t, []string{"fleet/a:lock"}, client.Keys(t.Context(), "*").Val())
	left := client.PTTL(t.Context(), "fleet/a:lock").Val()
	assert.LessOrEqual(t, left, 10*time.Second)
	assert.Greater(t, left, 5*time.Second)
}

func TestHolderThatIsTooSlowDoesNotReleaseTheNextHoldersLock(t *testing.T) {
	r := startRedis(t)
	slow, err := cacheOn(t, r.addr, WithLockTTL(20*time.Millisecond)).Lock(t.Context(), "a")
	require.NoError(t, err)
	unlock, err := cacheOn(t, r.addr).Lock(t.Context(), "a")
	require.NoError(t, err)
	slow()
	assert.Equal(t, []string{"a:lock"}, connect(t, r.addr).Keys(t.Context(), "*").Val())
	unlock()
	assert.Empty(t, connect(t, r.addr).Keys(t.Context(), "*").Val())
}

// A caller's context ends while Redis gives it the lock. The lock must not stay in
// Redis, so the caller gets it and can release it.
func TestLockIsReturnedIfTheContextEndsDuringTheCommand(t *testing.T) {
	r := startRedis(t)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	client := redis.NewClient(&redis.Options{Addr: r.addr, ContextTimeoutEnabled: true,
		Dialer: func(dialing context.Context, network, addr string) (net.Conn, error) {
			cancel()
			return new(net.Dialer).DialContext(dialing, network, addr)
		}})
	defer client.Close()
	cache, err := New(client)
	require.NoError(t, err)
	unlock, err := cache.Lock(ctx, "a")
	require.NoError(t, err)
	unlock()
	assert.Empty(t, connect(t, r.addr).Keys(t.Context(), "*").Val())
}

func TestNewNamesWhatToChange(t *testing.T) {
	client := redis.NewClient(new(redis.Options))
	defer client.Close()
	for name, c := range map[string]struct {
		client redis.UniversalClient
		opts   []Option
		want   string
	}{
		"no client":          {nil, nil, "the client is nil"},
		"no option":          {client, []Option{nil}, "an option is nil"},
		"no time":            {client, []Option{WithTTL(0)}, "WithTTL: 0s is less than a millisecond"},
		"negative":           {client, []Option{WithTTL(-time.Second)}, "WithTTL: -1s"},
		"no time for a lock": {client, []Option{WithLockTTL(time.Microsecond)}, "WithLockTTL: 1µs is less than a millisecond"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := New(c.client, c.opts...)
			require.ErrorContains(t, err, c.want)
			assert.ErrorContains(t, err, "rediscache: ")
		})
	}
	cache, err := New(client, WithTTL(0), WithTTL(time.Hour))
	require.ErrorContains(t, err, "WithTTL", "a later option does not hide the error of an earlier one")
	assert.Nil(t, cache)
}
