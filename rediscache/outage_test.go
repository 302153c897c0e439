package rediscache

// This file tests what happens if Redis is down: no call to Token fails, and none
// waits longer than moovauth allows for the cache.

import (
	"bytes"
	"context"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// bound is the longest that a caller may wait: 2 s, and more on a busy machine.
// The tests of package moovauth check the 2 s exactly.
const bound = 5 * time.Second

func TestRedisThatIsNotThere(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() }) // clients can connect, but no one replies

	for _, c := range []struct {
		name, addr string
		opts       redis.Options
	}{
		{"down", net.JoinHostPort("127.0.0.1", freePort(t)), redis.Options{}},
		{"silent", l.Addr().String(), redis.Options{}},
		{"silent, with ContextTimeoutEnabled", l.Addr().String(), redis.Options{ContextTimeoutEnabled: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			c.opts.Addr = c.addr
			client := redis.NewClient(&c.opts)
			defer client.Close()
			cache, err := New(client)
			require.NoError(t, err)
			server := moovtest.NewServer()
			defer server.Close()
			var log bytes.Buffer
			source := sourcesOf(t, server, 1, moovauth.WithCache(cache), moovauth.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))[0]
			start := time.Now()
			token, err := source.Token()
			took := time.Since(start)
			require.NoError(t, err)
			limit := bound
			if !c.opts.ContextTimeoutEnabled { // a command ends only with go-redis's own timeouts
				limit *= 2
			}
			assert.Less(t, took, limit)
			t.Logf("the first token took %v", took.Round(time.Millisecond))
			require.ErrorContains(t, source.Revoke(t.Context()), "the cache's lock could not be obtained", "the token in Redis may still be alive")
			assert.False(t, server.Alive(token.AccessToken))
			assert.Len(t, server.TokenRequests(), 1)
			assert.Contains(t, log.String(), "the cache failed; continuing without it")
		})
	}
}

func TestRedisGoesDownAndComesBack(t *testing.T) {
	t.Parallel()
	r := startRedis(t)
	server := moovtest.NewServer(moovtest.WithLifetime(2 * time.Second)) // sources refresh after 1.4 s
	defer server.Close()
	const n = 5
	var sources []*moovauth.TokenSource
	for range n {
		cache := cacheOn(t, r.addr) // each has its own client, as in its own process
		sources = append(sources, sourcesOf(t, server, 1, moovauth.WithCache(cache))...)
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var callers sync.WaitGroup
	var calls, longest atomic.Int64
	for _, s := range sources {
		callers.Go(func() {
			ticker := time.NewTicker(5 * time.Millisecond)
			defer ticker.Stop()
			for ctx.Err() == nil {
				start := time.Now()
				_, err := s.Token()
				took := int64(time.Since(start))
				if !assert.NoError(t, err) {
					return
				}
				for old := longest.Load(); took > old && !longest.CompareAndSwap(old, took); old = longest.Load() {
				}
				calls.Add(1)
				<-ticker.C
			}
		})
	}
	// grown waits for by more token requests, and returns how many there are.
	grown := func(from, by int) int {
		require.Eventually(t, func() bool { return len(server.TokenRequests()) >= from+by }, soon, tick)
		return len(server.TokenRequests())
	}

	up := grown(0, 2)
	assert.LessOrEqual(t, up, 3, "one request for each token")
	r.kill()
	t.Log("Redis was killed after", up, "token requests")
	down := grown(up, 2*n)
	r.start()
	t.Log("Redis was back, and empty, after", down)
	// Each source may still request the first token itself. After that the sources
	// share tokens again.
	require.Eventually(t, func() bool { return len(distinct(t, sources)) == 1 }, soon, tick)
	shared := len(server.TokenRequests())
	last := grown(shared, 2)
	assert.LessOrEqual(t, last, shared+3, "one request for each token")
	stop()
	callers.Wait()
	t.Logf("sources shared tokens again after %d token requests; of %d calls none failed, and the longest took %v",
		shared, calls.Load(), time.Duration(longest.Load()).Round(time.Millisecond))
	assert.Less(t, time.Duration(longest.Load()), bound)
}

// distinct returns the set of the sources' tokens.
func distinct(t *testing.T, sources []*moovauth.TokenSource) map[string]bool {
	t.Helper()
	tokens := make(map[string]bool)
	for _, token := range together(t, sources) {
		tokens[token] = true
	}
	return tokens
}
