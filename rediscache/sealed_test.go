package rediscache

// This file tests the security of the cache: what Redis stores and receives, what
// altered entries do, and which permissions the client needs.

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/hex"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// recorder records what is written to connections.
type recorder struct {
	mu   sync.Mutex
	sent bytes.Buffer
}

func (r *recorder) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	return &recordedConn{conn, r}, err
}

type recordedConn struct {
	net.Conn
	*recorder
}

func (c *recordedConn) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent.Write(p)
	return c.Conn.Write(p)
}

func TestRedisHoldsNoSecret(t *testing.T) {
	r := startRedis(t)
	var wire recorder
	client := redis.NewClient(&redis.Options{Addr: r.addr, Dialer: wire.dial})
	defer client.Close()
	cache, err := New(client)
	require.NoError(t, err)
	server := moovtest.NewInMemory()
	source := sourcesOf(t, server, 1, moovauth.WithCache(cache), moovauth.WithEarlyRefresh(time.Hour))[0]
	_, err = source.Token()
	require.NoError(t, err)
	// A lock that is held, so that Redis stores a lock too.
	unlock, err := cache.Lock(t.Context(), "moovauth-another")
	require.NoError(t, err)
	defer unlock()

	looker := connect(t, r.addr)
	keys := looker.Keys(t.Context(), "*").Val()
	require.Len(t, keys, 2)
	var stored bytes.Buffer
	for _, key := range keys {
		stored.WriteString(key)
		stored.WriteString(looker.Get(t.Context(), key).Val())
		stored.WriteString(looker.Dump(t.Context(), key).Val())
	}
	secrets := append(append(server.AccessTokens(), server.RefreshTokens()...), server.ClientSecret)
	require.Len(t, secrets, 3)
	require.Contains(t, wire.sent.String(), "moovauth-2:", "the entry was sent over this connection")
	for _, secret := range append(secrets, server.ClientID) {
		for _, text := range []string{secret, hex.EncodeToString([]byte(secret)), base64.RawStdEncoding.EncodeToString([]byte(secret))} {
			assert.False(t, bytes.Contains(stored.Bytes(), []byte(text)), "stored: %s", secret)
			assert.False(t, bytes.Contains(wire.sent.Bytes(), []byte(text)), "sent: %s", secret)
		}
	}
}

// An entry with one altered bit costs one token request with client credentials.
func TestAlteredEntryIsAMiss(t *testing.T) {
	r := startRedis(t)
	server := moovtest.NewInMemory(moovtest.WithExpiresInSeconds())
	client := connect(t, r.addr)
	_, err := sourcesOf(t, server, 1, moovauth.WithCache(cacheOn(t, r.addr)))[0].Token()
	require.NoError(t, err)
	key := client.Keys(t.Context(), "*").Val()[0]
	whole, err := client.Get(t.Context(), key).Bytes()
	require.NoError(t, err)

	bits := make(chan int)
	var workers sync.WaitGroup
	for i := range 4 * runtime.GOMAXPROCS(0) {
		prefix := string(rune('a' + i))
		cache := cacheOn(t, r.addr, WithPrefix(prefix))
		mine := moovtest.NewInMemory(moovtest.WithExpiresInSeconds())
		workers.Go(func() {
			for bit := range bits {
				altered := bytes.Clone(whole)
				altered[bit/8] ^= 1 << (bit % 8)
				before := len(mine.TokenRequests())
				if !assert.NoError(t, client.Set(context.Background(), prefix+key, altered, 0).Err()) {
					continue
				}
				_, err := sourcesOf(t, mine, 1, moovauth.WithCache(cache))[0].Token()
				assert.NoError(t, err)
				requests := mine.TokenRequests()[before:]
				if assert.Len(t, requests, 1, "bit %d", bit) {
					assert.Equal(t, "client_credentials", requests[0].GrantType)
				}
			}
		})
	}
	for bit := range 8 * len(whole) {
		bits <- bit
	}
	close(bits)
	workers.Wait()
	t.Logf("%d bits", 8*len(whole))

	require.NoError(t, client.Set(t.Context(), key, whole, 0).Err())
	_, err = sourcesOf(t, server, 1, moovauth.WithCache(cacheOn(t, r.addr)))[0].Token()
	require.NoError(t, err)
	assert.Len(t, server.TokenRequests(), 1, "the unaltered entry is used")
}

func TestEntriesOfTwoSecretsDoNotCollide(t *testing.T) {
	r := startRedis(t)
	theirs := moovtest.NewInMemory()
	ours := moovtest.NewInMemory(moovtest.WithCredentials(theirs.ClientID, "another-secret"))
	var log bytes.Buffer
	for range 3 {
		for _, server := range []*moovtest.Server{theirs, ours} {
			_, err := sourcesOf(t, server, 1, moovauth.WithCache(cacheOn(t, r.addr)), moovauth.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))[0].Token()
			require.NoError(t, err)
			assert.Len(t, server.TokenRequests(), 1)
		}
	}
	keys := connect(t, r.addr).Keys(t.Context(), "*").Val()
	require.Len(t, keys, 2)
	for _, key := range keys {
		assert.Regexp(t, "^moovauth-[0-9a-f]{64}$", key)
	}
	assert.Empty(t, log.String())
}

// The permissions that the documentation of Cache names are enough. Without
// permission to run scripts there are warnings, but sources still share tokens.
func TestPermissionsThatTheCacheNeeds(t *testing.T) {
	if redisBinary == "" {
		t.Skip("miniredis has no permissions")
	}
	for name, c := range map[string]struct {
		rules []any
		quiet bool
	}{
		"all that it needs": {[]any{"+getrange", "+set", "+del", "+eval", "+evalsha", "+get"}, true},
		"no scripts":        {[]any{"+getrange", "+set", "+del"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			r := startRedis(t)
			require.NoError(t, connect(t, r.addr).Do(t.Context(),
				append([]any{"ACL", "SETUSER", "fleet", "on", ">password", "~fleet/moovauth-*"}, c.rules...)...).Err())
			client := redis.NewClient(&redis.Options{Addr: r.addr, Username: "fleet", Password: "password"})
			defer client.Close()
			cache, err := New(client, WithPrefix("fleet/"))
			require.NoError(t, err)
			server := moovtest.NewInMemory()
			var log bytes.Buffer
			logger := moovauth.WithLogger(slog.New(slog.NewTextHandler(&log, nil)))
			var tokens []string
			for _, s := range sourcesOf(t, server, 3, moovauth.WithCache(cache), logger) {
				token, err := s.Token()
				require.NoError(t, err)
				tokens = append(tokens, token.AccessToken)
			}
			assert.Len(t, server.TokenRequests(), 1)
			for _, token := range tokens {
				assert.Equal(t, tokens[0], token)
			}
			if c.quiet {
				assert.Empty(t, log.String())
			} else {
				assert.Contains(t, log.String(), "Lock: rediscache: NOPERM")
			}
		})
	}
}

func TestRedisCluster(t *testing.T) {
	if redisBinary == "" {
		t.Skip("miniredis is not a cluster")
	}
	r := startRedis(t, "--cluster-enabled", "yes")
	require.NoError(t, connect(t, r.addr).ClusterAddSlotsRange(t.Context(), 0, 16383).Err())
	client := redis.NewClusterClient(&redis.ClusterOptions{Addrs: []string{r.addr}})
	defer client.Close()
	require.Eventually(t, func() bool { return client.Set(context.Background(), "up", "", 0).Err() == nil }, soon, tick)
	cache, err := New(client)
	require.NoError(t, err)
	server := moovtest.NewInMemory(moovtest.WithLatency(50 * time.Millisecond))
	together(t, sourcesOf(t, server, 20, moovauth.WithCache(cache)))
	assert.Len(t, server.TokenRequests(), 1)
}
