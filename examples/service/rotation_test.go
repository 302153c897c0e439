package main

import (
	"fmt"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// Fifty accounts are called all the time: before, during and after a
// rotation, and after the former key is deleted.
func TestNoCallFailsDuringARotation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, "", moovtest.WithLatency(200*time.Millisecond))
		f.travel = 3 * time.Second
		r := f.run()
		var slowest, calls atomic.Int64
		stop := make(chan struct{})
		var accounts sync.WaitGroup
		for i := range 50 {
			session := f.sessions.begin(fmt.Sprint("a", i))
			require.Equal(t, 200, f.send("GET", "/cards", session).Code)
			accounts.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(250 * time.Millisecond):
					}
					begin := time.Now()
					if !assert.Equal(t, 200, f.send("GET", "/cards", session).Code) {
						return
					}
					calls.Add(1)
					slowest.Store(max(slowest.Load(), int64(time.Since(begin))))
				}
			})
		}
		time.Sleep(5 * time.Second)
		former := f.server.AccessTokens()
		f.newKey()
		r.hangup <- syscall.SIGHUP
		time.Sleep(40 * time.Second)
		for _, token := range former {
			assert.False(t, f.server.Alive(token))
		}
		assert.Len(t, f.server.AccessTokens(), 51, "no call under way has obtained another token with the former key")
		f.server.DropOldCredentials()
		time.Sleep(10 * time.Second)
		close(stop)
		accounts.Wait()
		assert.Greater(t, calls.Load(), int64(50*15))
		assert.EqualValues(t, f.travel, slowest.Load(), "no call waits for a token")
	})
}

func TestRotationThatFailsChangesNothing(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		first, alive := f.keys.current.Load(), f.server.AccessTokens()
		for name, key := range map[string]*moovauth.Credentials{
			"unreadable":  nil,
			"mistyped":    {ClientID: "new-public-key", ClientSecret: "mistyped"},
			"not changed": {ClientID: f.server.ClientID, ClientSecret: f.server.ClientSecret},
		} {
			f.key.Store(key)
			r.hangup <- syscall.SIGHUP
			time.Sleep(time.Minute)
			assert.Same(t, first, f.keys.current.Load(), name)
			assert.Equal(t, alive, f.server.AccessTokens(), name)
		}
		assert.Equal(t, 200, f.get("a1"))
		f.newKey()
		r.hangup <- syscall.SIGHUP
		time.Sleep(time.Minute)
		assert.NotSame(t, first, f.keys.current.Load(), "the next key is tried anyway")
	})
}

// The former key has leaked, and is deleted already.
func TestRotationFromADeletedKey(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		f.newKey()
		f.server.DropOldCredentials()
		r.hangup <- syscall.SIGHUP
		time.Sleep(time.Minute)
		assert.Equal(t, 200, f.get("a1"))
		requests := f.server.TokenRequests()
		assert.Equal(t, "new-public-key", requests[len(requests)-1].ClientID)
	})
}

func TestShutdownRevokesTheTokensOfAFormerKey(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		minted := f.mint(f.sessions.begin("a1"))
		f.newKey()
		r.hangup <- syscall.SIGHUP
		time.Sleep(time.Second) // its calls may still be under way
		require.Equal(t, 200, f.get("a1"))
		require.True(t, f.server.Alive(minted))
		require.NoError(t, r.stop())
		assert.Empty(t, f.server.AccessTokens())
	})
}

// A cache has entries of both keys for a while.
func TestRotationWithACache(t *testing.T) {
	cache := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, cache)
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		former := f.server.AccessTokens()
		f.newKey()
		r.hangup <- syscall.SIGHUP
		time.Sleep(time.Minute)
		for _, token := range former {
			assert.False(t, f.server.Alive(token))
		}
		assert.Len(t, f.server.AccessTokens(), 2)
		require.NoError(t, r.stop())
		require.NoError(t, f.start(cache))
		before := len(f.server.TokenRequests())
		assert.Equal(t, 200, f.get("a1"))
		assert.Len(t, f.server.TokenRequests(), before)
	})
}
