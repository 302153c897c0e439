package rediscache

// This file provides the Redis for the tests. If the machine has a redis-server, each
// test starts its own. Otherwise the tests use miniredis in this process.

import (
	"context"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/alicebob/miniredis/v2"
	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/logging"
	"github.com/stretchr/testify/require"
)

const (
	soon = 30 * time.Second      // how long a test waits for a condition
	tick = 10 * time.Millisecond // how often it checks the condition
)

// redisBinary is the path of redis-server, or "" if the machine has none.
var redisBinary = func() string {
	path, _ := exec.LookPath("redis-server")
	return path
}()

func TestMain(m *testing.M) {
	if role := os.Getenv(roleVariable); role != "" {
		if err := roles[role](os.Stdin, os.Stdout); err != nil {
			fmt.Fprintln(os.Stderr, role+":", err)
			os.Exit(1)
		}
		return
	}
	redis.SetLogger(new(logging.VoidLogger)) // without this it logs each failed connection
	slog.SetDefault(slog.New(&limiterLog))
	if redisBinary == "" {
		fmt.Println("the tests use miniredis, since there is no redis-server")
	} else {
		version, _ := exec.Command(redisBinary, "--version").Output()
		fmt.Printf("the tests use %s: %s", redisBinary, version)
	}
	os.Exit(m.Run())
}

// testRedis is a Redis without persistence: it is empty when it starts again.
type testRedis struct {
	addr  string
	start func()
	kill  func()
}

// startRedis starts a Redis on a loopback port, and stops it after the test.
func startRedis(t *testing.T, args ...string) *testRedis {
	t.Helper()
	var r *testRedis
	if redisBinary == "" {
		t.Log("with miniredis")
		r = miniRedis(t)
	} else {
		t.Log("with", redisBinary)
		r = realRedis(t, args)
	}
	r.start()
	t.Cleanup(func() { r.kill() })
	return r
}

func realRedis(t *testing.T, args []string) *testRedis {
	port := freePort(t)
	r := &testRedis{addr: net.JoinHostPort("127.0.0.1", port)}
	args = append([]string{
		"--bind", "127.0.0.1", "--port", port, "--dir", t.TempDir(),
		"--save", "", "--appendonly", "no", "--loglevel", "warning",
	}, args...)
	var running *exec.Cmd
	r.start = func() {
		running = exec.Command(redisBinary, args...)
		running.Stderr = os.Stderr
		require.NoError(t, running.Start())
		client := redis.NewClient(&redis.Options{Addr: r.addr})
		defer client.Close()
		require.Eventually(t, func() bool { return client.Ping(context.Background()).Err() == nil }, soon, tick)
	}
	r.kill = func() {
		if running != nil {
			_ = running.Process.Kill()
			_ = running.Wait()
			running = nil
		}
	}
	return r
}

func miniRedis(t *testing.T) *testRedis {
	server := miniredis.NewMiniRedis()
	r := new(testRedis)
	r.start = func() {
		if r.addr == "" {
			require.NoError(t, server.Start())
			r.addr = server.Addr()
			return
		}
		server.FlushAll()
		require.NoError(t, server.Restart())
	}
	r.kill = server.Close
	go func() { // miniredis expires keys only when it is told that time has passed
		ticker := time.NewTicker(tick)
		defer ticker.Stop()
		for last := time.Now(); ; {
			select {
			case now := <-ticker.C:
				server.FastForward(now.Sub(last))
				last = now
			case <-t.Context().Done():
				return
			}
		}
	}()
	return r
}

// freePort returns a free port below the range of outgoing connections, so that the
// port is still free when a Redis that was killed starts again.
func freePort(t *testing.T) string {
	t.Helper()
	for range 100 {
		port := strconv.Itoa(15000 + rand.N(15000))
		if l, err := net.Listen("tcp", net.JoinHostPort("127.0.0.1", port)); err == nil {
			require.NoError(t, l.Close())
			return port
		}
	}
	t.Fatal("no port is free")
	return ""
}

// connect returns a client, and closes it after the test.
func connect(t *testing.T, addr string) *redis.Client {
	t.Helper()
	client := redis.NewClient(&redis.Options{Addr: addr, ContextTimeoutEnabled: true})
	t.Cleanup(func() { _ = client.Close() })
	return client
}

// cacheOn returns a cache that uses the Redis at addr.
func cacheOn(t *testing.T, addr string, opts ...Option) *Cache {
	t.Helper()
	cache, err := New(connect(t, addr), opts...)
	require.NoError(t, err)
	return cache
}

// limiterLog has the log records of the limiters, by their keys.
var limiterLog logByKey

type logByKey struct {
	slog.Handler
	mu      sync.Mutex
	records map[string][]string
}

func (*logByKey) Enabled(_ context.Context, level slog.Level) bool { return level >= slog.LevelInfo }

func (l *logByKey) Handle(_ context.Context, r slog.Record) error {
	key, text := "", r.Level.String()+" "+r.Message
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "key" {
			key = a.Value.String()
		}
		text += " " + a.String()
		return true
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.records == nil {
		l.records = make(map[string][]string)
	}
	l.records[key] = append(l.records[key], text)
	return nil
}

// logged returns what the limiters of this name have logged. The records are deleted
// after the test.
func logged(t *testing.T, name string) []string {
	t.Cleanup(func() {
		limiterLog.mu.Lock()
		defer limiterLog.mu.Unlock()
		delete(limiterLog.records, limitPrefix+name)
	})
	limiterLog.mu.Lock()
	defer limiterLog.mu.Unlock()
	return slices.Clone(limiterLog.records[limitPrefix+name])
}
