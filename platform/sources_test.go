package platform

import (
	"bytes"
	"context"
	"fmt"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func TestTheLeastRecentlyUsedSourceIsRemoved(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithCapacity(1000))
	held := make(map[int]*moovauth.TokenSource)
	clients := make(map[int]*http.Client)
	for i := range 10_000 {
		source, err := tokens.Source(account(i)...)
		require.NoError(t, err)
		switch i % 500 {
		case 0:
			held[i] = source
		case 1:
			clients[i] = source.Client()
		}
		require.LessOrEqual(t, tokens.Stats().Sources, 1000)
	}
	assert.Equal(t, 1000, tokens.Stats().Sources)
	runtime.GC()
	for i, want := range held {
		source, err := tokens.Source(account(i)...)
		require.NoError(t, err)
		assert.Same(t, want, source, "a caller holds it")
	}
	for i, client := range clients {
		source, err := tokens.Source(account(i)...)
		require.NoError(t, err)
		assert.Same(t, client.Transport.(*moovauth.Transport).Source, source, "a caller holds its client")
	}
	assert.Equal(t, 1000, tokens.Stats().Sources)
}

// A removed source that no one holds is freed, even if it was removed and kept again
// several times.
func TestRemovedSourcesAreFreed(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithCapacity(2))
	var freed atomic.Int64
	func() {
		for range 3 {
			var held []*moovauth.TokenSource
			for i := range 50 {
				source, err := tokens.Source(account(i)...)
				require.NoError(t, err)
				held = append(held, source)
			}
			for _, source := range held {
				runtime.AddCleanup(source, func(*atomic.Int64) { freed.Add(1) }, &freed)
			}
		}
	}()
	for i := range 200 {
		if i%20 == 0 {
			runtime.GC()
		}
		_, err := tokens.Source(account(100 + i)...)
		require.NoError(t, err)
	}
	tokens.sources.mu.Lock()
	defer tokens.sources.mu.Unlock()
	assert.LessOrEqual(t, len(tokens.sources.known), 2*22, "few entries of freed sources")
	assert.Equal(t, 2, tokens.sources.kept.Len())
	assert.GreaterOrEqual(t, freed.Load(), int64(48))
}

// A source that is removed and kept again many times takes no more memory.
func TestKeepingASourceAgainTakesNoMemory(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithCapacity(1))
	var held [2]*moovauth.TokenSource
	use := func(times int) {
		for i := range times {
			source, err := tokens.Source(account(i % 2)...)
			require.NoError(t, err)
			held[i%2] = source
		}
	}
	use(10)
	before := used()
	use(20_000)
	assert.Less(t, used()-before, int64(500_000))
	runtime.KeepAlive(held)
}

// revocation returns a Tokens whose accounts all have tokens.
func revocation(t *testing.T, server *moovtest.Server, accounts int, opts ...Option) *Tokens {
	t.Helper()
	tokens := newTokens(t, server, append(opts, WithRate(1e6))...)
	var callers sync.WaitGroup
	for i := range accounts {
		source, err := tokens.Source(account(i)...)
		require.NoError(t, err)
		callers.Go(func() {
			_, err := source.Token()
			assert.NoError(t, err)
		})
	}
	callers.Wait()
	tokens.queue.mu.Lock()
	defer tokens.queue.mu.Unlock()
	tokens.queue.pace = newPace(10) // for the revocations
	return tokens
}

func TestRevokeAllInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLatency(80 * time.Millisecond))
		defer server.Close()
		tokens := revocation(t, server, 200)
		start := time.Now()
		require.NoError(t, tokens.RevokeAll(t.Context()))
		assert.InDelta(t, 400/9.7, time.Since(start).Seconds(), 0.5)
		assert.Empty(t, server.RefreshTokens())
		assert.Empty(t, server.AccessTokens())
		assert.EqualValues(t, 400, tokens.Stats().Revoked)
		assert.Zero(t, tokens.Stats().Failed)
		for i, r := range server.RevokeRequests() {
			want := "refresh_token"
			if i >= 200 {
				want = "access_token"
			}
			require.Equal(t, want, r.Form.Get("token_type_hint"), i)
		}
		start = time.Now()
		require.NoError(t, tokens.RevokeAll(t.Context()), "no token is left")
		assert.Zero(t, time.Since(start))
	})
}

func TestRevokeAllInFiveSeconds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithRateLimit(1000), moovtest.WithLatency(80*time.Millisecond))
		defer server.Close()
		tokens := revocation(t, server, 200)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		err := tokens.RevokeAll(ctx)
		assert.Less(t, time.Since(start), 5*time.Second+500*time.Millisecond)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "0 sources finished, 200 left")
		assert.NotContains(t, err.Error(), "\n")
		requests := server.RevokeRequests()
		assert.InDelta(t, 5*9.7, len(requests), 2, "within the rate")
		for _, r := range requests {
			assert.Equal(t, "refresh_token", r.Form.Get("token_type_hint"))
		}
		assert.InDelta(t, 200-5*9.7, len(server.RefreshTokens()), 2)
		assert.EqualValues(t, 200, tokens.Stats().Failed)
		synctest.Wait()
		assert.Zero(t, tokens.Stats().InLine)

		require.NoError(t, tokens.RevokeAll(t.Context()))
		assert.Empty(t, server.RefreshTokens())
		assert.Empty(t, server.AccessTokens())
	})
}

func TestRevokeAllIsHalfDone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := revocation(t, server, 20)
		server.Enqueue(moovtest.Answer{Status: http.StatusBadRequest, Body: `{"error":"invalid_request"}`})
		ctx, cancel := context.WithTimeout(t.Context(), 3100*time.Millisecond) // 31 of 41 requests
		defer cancel()
		err := tokens.RevokeAll(ctx)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "10 sources finished, 10 left")
		require.NoError(t, tokens.RevokeAll(t.Context()))
		assert.Empty(t, server.RefreshTokens())

		_, err = tokens.Source(account(1)...)
		require.NoError(t, err)
		assert.NoError(t, tokens.RevokeAll(t.Context()))
	})
}

func TestRevokeAllReturnsTheErrorOfMoov(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := revocation(t, server, 20)
		server.Enqueue(moovtest.Answer{Status: http.StatusBadRequest, Body: `{"error":"invalid_request"}`})
		err := tokens.RevokeAll(t.Context())
		refused := new(moovauth.Error)
		require.ErrorAs(t, err, &refused)
		assert.ErrorContains(t, err, "19 sources finished, 1 left")
		assert.NotErrorIs(t, err, context.DeadlineExceeded)
		require.NoError(t, tokens.RevokeAll(t.Context()))
	})
}

func TestRevokeAllWithAnEndedContext(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server)
	source, err := tokens.Source("/ping.read")
	require.NoError(t, err)
	_, err = source.Token()
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err = tokens.RevokeAll(ctx)
	require.ErrorIs(t, err, context.Canceled)
	assert.ErrorContains(t, err, "0 sources finished, 1 left")
	assert.Empty(t, server.RevokeRequests())
}

// RevokeAll also revokes removed sources that a caller still holds.
func TestRevokeAllReachesSourcesThatACallerHolds(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1e6), WithCapacity(1))
	var held []*moovauth.TokenSource
	for i := range 20 {
		source, err := tokens.Source(account(i)...)
		require.NoError(t, err)
		_, err = source.Token()
		require.NoError(t, err)
		held = append(held, source)
	}
	require.NoError(t, tokens.RevokeAll(t.Context()))
	assert.Empty(t, server.RefreshTokens())
	runtime.KeepAlive(held)
}

// There are more sources than RevokeAll revokes at the same time.
func TestRevokeAllOfManySources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := revocation(t, server, revokeAtOnce+100)
		require.NoError(t, tokens.RevokeAll(t.Context()))
		assert.Empty(t, server.RefreshTokens())
		assert.Empty(t, server.AccessTokens())
	})
}

// used returns how much memory the heap and the stacks use.
func used() int64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc + m.StackInuse)
}

// No verb of fmt prints a secret of a Tokens.
func TestPrintingTokens(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1e6))
	source, err := tokens.Source("/ping.read")
	require.NoError(t, err)
	token, err := source.Token()
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		text := fmt.Sprintf(verb, tokens) + fmt.Sprintf(verb, struct{ t any }{tokens})
		for _, secret := range []string{server.ClientSecret, token.AccessToken, server.RefreshTokens()[0]} {
			assert.NotContains(t, text, secret, verb)
			assert.NotContains(t, text, fmt.Sprintf("%x", secret), verb)
			assert.False(t, bytes.Contains([]byte(text), []byte(secret[:8])), verb)
		}
	}
}
