package moovauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
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
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

func fleetOf(t testing.TB, server *moovtest.Server, n int, opts ...Option) []*TokenSource {
	sources := make([]*TokenSource, n)
	for i := range sources {
		sources[i] = sourceOf(t, server, opts...)
	}
	return sources
}

func TestRestartTakesTheCachedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(time.Minute)
		again := token(t, sourceOf(t, server, WithCache(cache)))
		assert.Equal(t, first.AccessToken, again.AccessToken)
		assert.Equal(t, first.RefreshToken, again.RefreshToken)
		assert.WithinDuration(t, first.Expiry, again.Expiry, time.Second)
		assert.Equal(t, first.ExpiresIn, again.ExpiresIn)
		assert.Equal(t, pingScope, again.Extra("scope"))
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestCachedTokenIsRefreshedWhenItsSourceWouldHave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(11 * time.Minute) // of 15: the refresh point is after 11.9 to 12.2 of them
		s := sourceOf(t, server, WithCache(cache))
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		time.Sleep(90 * time.Second)
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken, "stale: handed out, and refreshed in the background")
		synctest.Wait()
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{"client_credentials", "refresh_token"}, grantTypes(server))
	})
}

func TestCachedRefreshTokenServesAfterTheAccessTokenHasExpired(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(time.Hour)
		assert.NotEqual(t, first.AccessToken, token(t, sourceOf(t, server, WithCache(cache))).AccessToken)
		assert.Equal(t, []string{"client_credentials", "refresh_token"}, grantTypes(server))
		assert.Equal(t, first.RefreshToken, server.TokenRequests()[1].Form.Get("refresh_token"))
	})
}

func TestStaleCachedTokenIsHandedOutAtOnceAndRefreshedInTheBackground(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		cache Cache
		grant string
	}{
		"with a lock":    {newLockingCache(), grantRefreshToken},
		"without a lock": {new(memoryCache), grantClientCredentials},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				first := token(t, sourceOf(t, server, WithCache(c.cache)))
				time.Sleep(13 * time.Minute)
				server.SetLatency(time.Minute)
				s := sourceOf(t, server, WithCache(c.cache), WithTimeout(5*time.Minute))
				began := time.Now()
				assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
				assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
				assert.Zero(t, time.Since(began), "no caller waits")
				time.Sleep(61 * time.Second)
				assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
				assert.Equal(t, []string{grantClientCredentials, c.grant}, grantTypes(server))
			})
		})
	}
}

func TestStaleCachedTokenServesWhileTheEndpointIsDown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(13 * time.Minute)
		s := sourceOf(t, server, WithCache(cache))
		for range maxAttempts {
			server.Enqueue(moovtest.Answer{Status: http.StatusServiceUnavailable})
		}
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
	})
}

// A process that slept while another one refreshed has an old refresh token.
func TestRefreshTokenInTheCacheServesAndNotAnOlderOne(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		awake, asleep := sourceOf(t, server, WithCache(cache)), sourceOf(t, server, WithCache(cache))
		token(t, awake)
		token(t, asleep)
		time.Sleep(time.Hour)
		newer := token(t, awake)
		time.Sleep(time.Hour)
		token(t, asleep)
		assert.Equal(t, newer.RefreshToken, server.TokenRequests()[2].Form.Get("refresh_token"))
		assert.Len(t, server.TokenRequests(), 3)
	})
}

func TestRefreshTokenOfWithTokenIsNotSentIfThereIsACache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		given := token(t, sourceOf(t, server))
		time.Sleep(time.Hour)
		s := sourceOf(t, server, WithCache(newLockingCache()), WithToken(given))
		token(t, s)
		assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
		require.NoError(t, s.Revoke(t.Context()))
		assert.False(t, server.Alive(given.RefreshToken), "it is kept for Revoke")
	})
}

func TestFleetSharesEachToken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		cache func() Cache
		want  int // token requests at the start, and for 3 rollovers
	}{
		{"none", func() Cache { return nil }, 32},
		{"with a lock", func() Cache { return newLockingCache() }, 4},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithLatency(200*time.Millisecond))
				var opts []Option
				if cache := c.cache(); cache != nil {
					opts = append(opts, WithCache(cache))
				}
				fleet := fleetOf(t, server, 8, opts...)
				for range 40 * 60 { // 3 rollovers: one every 11.9 to 12.2 minutes
					for _, tok := range together(t, fleet) {
						assert.True(t, server.Alive(tok.AccessToken))
					}
					time.Sleep(time.Second)
				}
				assert.Len(t, server.TokenRequests(), c.want)
			})
		})
	}
}

func TestFleetThatStartsAtOnceAsksOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(200*time.Millisecond))
		cache := newLockingCache()
		cache.latency = time.Millisecond
		tokens := together(t, fleetOf(t, server, 200, WithCache(cache)))
		for _, tok := range tokens {
			assert.Equal(t, tokens[0].AccessToken, tok.AccessToken)
		}
		assert.Len(t, server.TokenRequests(), 1)
		assert.Empty(t, cache.held, "the lock is free")
	})
}

// Two processes hold the same refresh token, which a server with reuse detection
// takes once: a second use would kill the first one's tokens. There is no lock.
func TestWithoutALockOnlyTheSourceThatObtainedARefreshTokenSendsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithReuseDetection())
		cache := new(memoryCache)
		a, b := sourceOf(t, server, WithCache(cache)), sourceOf(t, server, WithCache(cache))
		require.Equal(t, token(t, a).RefreshToken, token(t, b).RefreshToken)
		time.Sleep(time.Hour)

		// Both look into the cache before either has stored what it got.
		server.SetLatency(100 * time.Millisecond)
		var tokens [2]*oauth2.Token
		var both sync.WaitGroup
		both.Go(func() { tokens[0] = token(t, a) })
		both.Go(func() {
			time.Sleep(50 * time.Millisecond)
			tokens[1] = token(t, b)
		})
		both.Wait()
		assert.True(t, server.Alive(tokens[0].AccessToken))
		assert.True(t, server.Alive(tokens[1].AccessToken))
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantClientCredentials}, grantTypes(server))
	})
}

func TestRevokeDeletesWhatIsCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		s := sourceOf(t, server, WithCache(cache))
		first := token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		assert.Empty(t, cache.entries)
		next := token(t, sourceOf(t, server, WithCache(cache)))
		assert.NotEqual(t, first.AccessToken, next.AccessToken)
		assert.Equal(t, next.AccessToken, token(t, s).AccessToken)
		assert.Len(t, server.TokenRequests(), 2)
	})
}

// Two processes that start at once without a lock get a refresh token each. One
// then adopts what the other stores, and still revokes its own.
func TestRevokeReachesTheRefreshTokenFromBeforeAnAdoption(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(100*time.Millisecond))
		cache := new(memoryCache)
		a, b := sourceOf(t, server, WithCache(cache)), sourceOf(t, server, WithCache(cache))
		var first *oauth2.Token
		var callers sync.WaitGroup
		callers.Go(func() { first = token(t, a) })
		time.Sleep(time.Millisecond) // so that b overwrites what a stores
		second := token(t, b)
		callers.Wait()
		require.NotEqual(t, first.RefreshToken, second.RefreshToken)
		time.Sleep(time.Hour)
		require.Equal(t, token(t, a).AccessToken, token(t, b).AccessToken)
		require.Len(t, server.RefreshTokens(), 2, "one was used up, one is in use, and one is nobody's")
		seen := 0
		for _, s := range []*TokenSource{a, b} {
			require.NoError(t, s.Revoke(t.Context()))
			var hints []string
			for _, r := range server.RevokeRequests()[seen:] {
				hints = append(hints, r.Form.Get("token_type_hint"))
			}
			seen += len(hints)
			assert.IsNonIncreasing(t, hints, "those that could mint more come first")
		}
		assert.Equal(t, 6, seen, "of each, two tokens, and the refresh token that it read in the cache before it overwrote it, or replaced by adopting")
		assert.Empty(t, server.RefreshTokens())
		assert.Empty(t, server.AccessTokens())
	})
}

func TestRevokeOfAnAdoptedTokenMakesTwoRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		a, b := sourceOf(t, server, WithCache(cache)), sourceOf(t, server, WithCache(cache))
		for range 10 {
			token(t, a)
			token(t, b)
			time.Sleep(time.Hour)
		}
		last := token(t, a)
		require.Equal(t, last.AccessToken, token(t, b).AccessToken)
		require.NoError(t, b.Revoke(t.Context()))
		assert.False(t, server.Alive(last.AccessToken))
		assert.Len(t, server.RevokeRequests(), 2, "what other processes used up is not revoked again")
	})
}

func TestRefusedRefreshTokenIsNotRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		server.Revoke(token(t, s).RefreshToken)
		time.Sleep(time.Hour)
		last := token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		var revoked []string
		for _, r := range server.RevokeRequests() {
			revoked = append(revoked, r.Form.Get("token"))
		}
		assert.Equal(t, []string{last.RefreshToken, last.AccessToken}, revoked)
	})
}

// Nobody knows when a token dies whose lifetime the server did not say.
func TestAdoptedTokenOfUnknownLifetimeIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"who-knows-how-long"}`})
		token(t, sourceOf(t, server, WithCache(cache)))
		s := sourceOf(t, server, WithCache(cache))
		require.Equal(t, "who-knows-how-long", token(t, s).AccessToken)
		time.Sleep(time.Hour)
		token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		var revoked []string
		for _, r := range server.RevokeRequests() {
			revoked = append(revoked, r.Form.Get("token"))
		}
		assert.Contains(t, revoked, "who-knows-how-long")
	})
}

// The clock of a machine is ahead by up to a minute: to that machine, what others cached
// expires earlier, and is alive for that long afterwards.
func TestAdoptedTokenIsRevokedWhileTheOtherMachinesClockSaysThatItLives(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{0, 30 * time.Second, 59 * time.Second} {
		t.Run(ahead.String(), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				cache := newLockingCache()
				first := token(t, sourceOf(t, server, WithCache(cache)))
				s := sourceOf(t, server, WithCache(cache))
				clock := s.endpoint.clock
				s.endpoint.clock = func() instant {
					now := clock()
					now.wall += int64(ahead)
					return now
				}
				require.Equal(t, first.AccessToken, token(t, s).AccessToken)
				require.Len(t, server.TokenRequests(), 1)

				time.Sleep(15*time.Minute - 2*time.Second)
				require.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
				require.True(t, server.Alive(first.AccessToken))
				require.NoError(t, s.Revoke(t.Context()))
				assert.False(t, server.Alive(first.AccessToken))
				assert.Empty(t, server.AccessTokens())
			})
		})
	}
}

func TestInvalidatedTokenIsNotAdoptedAgain(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		s := sourceOf(t, server, WithCache(cache))
		first := token(t, s)
		server.Revoke(first.AccessToken)
		s.Invalidate(first.AccessToken)
		second := token(t, s)
		assert.True(t, server.Alive(second.AccessToken))
		_, entry := cache.only(t)

		// Another process has adopted the refused one as well.
		old := sourceOf(t, server, WithCache(cache), WithToken(first))
		old.Invalidate(first.AccessToken)
		assert.Equal(t, second.AccessToken, token(t, old).AccessToken, "no token request is needed")
		assert.Len(t, server.TokenRequests(), 2)
		_, same := cache.only(t)
		assert.Equal(t, entry, same)

		// What is older than the current token is not adopted either.
		key, _ := cache.only(t)
		time.Sleep(time.Hour)
		third := token(t, s)
		cache.entries[key] = entry
		time.Sleep(2 * time.Second)
		s.Invalidate(third.AccessToken)
		assert.NotEqual(t, second.AccessToken, token(t, s).AccessToken)
	})
}

func TestRevokedTokenIsNotAdoptedIfItCouldNotBeDeleted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		kept := new(memoryCache)
		cache := fakeCache{
			get:    func(ctx context.Context) ([]byte, error) { return kept.Get(ctx, "") },
			put:    func(ctx context.Context, data []byte) error { return kept.Put(ctx, "", data) },
			remove: func(context.Context) error { return errors.New("read only") },
			lock:   func(context.Context) (func(), error) { return func() {}, nil },
		}
		s := sourceOf(t, server, WithCache(cache))
		token(t, s)
		require.NoError(t, s.Revoke(t.Context()), "the tokens are dead, whatever the cache does")
		assert.True(t, server.Alive(token(t, s).AccessToken))
	})
}

// Whatever a cache does, there is a token, after 2 s at most.
func TestCacheThatFails(t *testing.T) {
	t.Parallel()
	failed := errors.New("no route to cache")
	fail := fakeCache{
		get:    func(context.Context) ([]byte, error) { return nil, failed },
		put:    func(context.Context, []byte) error { return failed },
		remove: func(context.Context) error { return failed },
		lock:   func(context.Context) (func(), error) { return nil, failed },
	}
	panics := fakeCache{
		get:    func(context.Context) ([]byte, error) { panic("Get out of order") },
		put:    func(context.Context, []byte) error { panic("Put out of order") },
		remove: func(context.Context) error { panic("Delete out of order") },
		lock:   func(context.Context) (func(), error) { panic("Lock out of order") },
	}
	exits := fakeCache{
		get:    func(context.Context) ([]byte, error) { runtime.Goexit(); return nil, nil },
		put:    func(context.Context, []byte) error { runtime.Goexit(); return nil },
		remove: func(context.Context) error { runtime.Goexit(); return nil },
		lock:   func(context.Context) (func(), error) { runtime.Goexit(); return nil, nil },
	}
	hangs := fakeCache{
		get:    func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
		put:    func(ctx context.Context, _ []byte) error { <-ctx.Done(); return ctx.Err() },
		remove: func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
		lock:   func(ctx context.Context) (func(), error) { <-ctx.Done(); return nil, ctx.Err() },
	}
	deaf := fakeCache{
		get:    func(context.Context) ([]byte, error) { time.Sleep(time.Minute); return nil, nil },
		put:    func(context.Context, []byte) error { time.Sleep(time.Minute); return nil },
		remove: func(context.Context) error { time.Sleep(time.Minute); return nil },
		lock:   func(context.Context) (func(), error) { time.Sleep(time.Minute); return func() {}, nil },
	}
	answers := func(data []byte) fakeCache {
		c := fail
		c.get = func(context.Context) ([]byte, error) { return data, nil }
		c.put = func(context.Context, []byte) error { return nil }
		c.lock = func(context.Context) (func(), error) { return nil, nil }
		return c
	}
	only := func(base fakeCache, change func(c *fakeCache)) fakeCache { change(&base); return base }
	works := only(answers(nil), func(c *fakeCache) {
		c.remove = func(context.Context) error { return nil }
		c.lock = func(context.Context) (func(), error) { return func() {}, nil }
	})
	for _, c := range []struct {
		name  string
		cache Cache
		want  string // in the log; "": nothing
		took  time.Duration
		read  bool // it can be locked and read
	}{
		{"works", works, "", 0, true},
		{"fails", fail, "no route to cache", 0, false},
		{"panics", panics, "Get out of order", 0, false},
		{"ends its goroutine", exits, "runtime.Goexit", 0, false},
		{"hangs", hangs, "not done within 2s", 2 * time.Second, false},
		{"does not heed its context", deaf, "not done within 2s", 2 * time.Second, false},
		{"hangs in Lock", only(works, func(c *fakeCache) { c.lock = hangs.lock }), "Lock", 1500 * time.Millisecond, false},
		{"hangs in Put", only(works, func(c *fakeCache) { c.put = hangs.put }), "Put", 2 * time.Second, true},
		{"hangs in unlock", only(works, func(c *fakeCache) {
			c.lock = func(context.Context) (func(), error) { return func() { time.Sleep(time.Minute) }, nil }
		}), "unlock", 2 * time.Second, true},
		{"panics in unlock", only(works, func(c *fakeCache) {
			c.lock = func(context.Context) (func(), error) { return func() { panic("unlock out of order") }, nil }
		}), "unlock out of order", 0, true},
		{"has nothing, and says so as autocert does", only(works, func(c *fakeCache) {
			c.get = func(context.Context) ([]byte, error) { return nil, errors.New("acme/autocert: certificate cache miss") }
		}), "", 0, true},
		{"has nothing, and says so as package os does", only(works, func(c *fakeCache) {
			c.get = func(context.Context) ([]byte, error) { return nil, fmt.Errorf("redis: %w", fs.ErrNotExist) }
		}), "", 0, true},
		{"returns nothing instead of an unlock", answers(nil), "neither an unlock function nor an error", 0, false},
		{"holds garbage", answers([]byte("garbage")), "not of this format", 0, false},
		{"holds garbage of the format", answers([]byte(entryFormat + "garbage")), "it was altered", 0, false},
		{"holds another format", answers([]byte("moovauth-0:garbage")), "not of this format", 0, false},
		{"holds too much", answers(append([]byte(entryFormat), make([]byte, maxEntry)...)), "not of this format", 0, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				var log bytes.Buffer
				s := sourceOf(t, server, WithCache(c.cache), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
				began := time.Now()
				first := token(t, s)
				assert.InDelta(t, c.took, time.Since(began), float64(2*time.Millisecond))
				assert.True(t, server.Alive(first.AccessToken))
				assert.Len(t, server.TokenRequests(), 1)
				if c.want == "" {
					assert.Empty(t, log.String())
				} else {
					assert.Contains(t, log.String(), c.want)
					assert.Contains(t, log.String(), "level=WARN")
				}
				assert.Equal(t, strings.Contains(c.name, "panics"), strings.Contains(log.String(), "stack="))
				assert.NotContains(t, log.String(), "garbage")
				err := s.Revoke(t.Context())
				assert.Equal(t, c.read, err == nil, "Revoke tells whether it knows what the cache held: %v", err)
				assert.False(t, server.Alive(first.AccessToken))
				time.Sleep(2 * time.Minute) // for those that do not heed their context
			})
		})
	}
}

func TestTwoClientSecretsShareACacheSideBySide(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cache := new(memoryCache)
		var log bytes.Buffer
		logged := WithLogger(slog.New(slog.NewTextHandler(&log, nil)))
		before := inMemory(t, moovtest.WithCredentials("public-key", "old-secret"))
		after := inMemory(t, moovtest.WithCredentials("public-key", "new-secret"))
		for range 10 {
			for _, server := range []*moovtest.Server{before, after} {
				assert.True(t, server.Alive(token(t, sourceOf(t, server, WithCache(cache), logged)).AccessToken))
			}
		}
		assert.Len(t, cache.entries, 2)
		assert.Len(t, before.TokenRequests(), 1)
		assert.Len(t, after.TokenRequests(), 1)
		assert.Empty(t, log.String())
	})
}

func TestSlowCacheLeavesTimeForTheGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(600*time.Millisecond))
		hang := func(ctx context.Context) { <-ctx.Done() }
		s := sourceOf(t, server, WithTimeout(time.Second), WithCache(fakeCache{
			get:  func(ctx context.Context) ([]byte, error) { hang(ctx); return nil, ctx.Err() },
			put:  func(ctx context.Context, _ []byte) error { hang(ctx); return ctx.Err() },
			lock: func(ctx context.Context) (func(), error) { hang(ctx); return nil, ctx.Err() },
		}))
		began := time.Now()
		token(t, s)
		assert.Equal(t, 850*time.Millisecond, time.Since(began))
	})
}

func TestLockThatComesTooLateIsGivenBack(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		slow := fakeCache{
			get: func(context.Context) ([]byte, error) { return nil, nil },
			put: func(context.Context, []byte) error { return nil },
			lock: func(context.Context) (func(), error) {
				time.Sleep(time.Minute)
				return cache.Lock(context.Background(), "")
			},
		}
		token(t, sourceOf(t, server, WithCache(slow)))
		time.Sleep(2 * time.Minute)
		assert.Empty(t, cache.held)
	})
}

func TestLockIsGivenBackIfNoTimeIsLeft(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		var gets atomic.Int32
		token(t, sourceOf(t, server, WithCache(fakeCache{
			get: func(ctx context.Context) ([]byte, error) {
				if gets.Add(1) == 2 {
					<-ctx.Done()
				}
				return nil, ctx.Err()
			},
			put:  func(context.Context, []byte) error { panic("no time is left") },
			lock: func(ctx context.Context) (func(), error) { return cache.Lock(ctx, "") },
		})))
		synctest.Wait()
		assert.Empty(t, cache.held)
	})
}

func TestCacheThatHangsIsAskedOnceInEachGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		var log bytes.Buffer
		token(t, sourceOf(t, server, WithLogger(slog.New(slog.NewTextHandler(&log, nil))), WithCache(fakeCache{
			get: func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() },
		})))
		assert.Equal(t, 1, strings.Count(log.String(), "\n"), log.String())
	})
}

func TestUnlockThatPanicsTooLateHarmsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		token(t, sourceOf(t, server, WithCache(fakeCache{
			get: func(context.Context) ([]byte, error) { return nil, nil },
			put: func(context.Context, []byte) error { return nil },
			lock: func(context.Context) (func(), error) {
				time.Sleep(time.Minute)
				return func() { panic("out of order") }, nil
			},
		})))
		time.Sleep(2 * time.Minute)
	})
}

func TestTokenThatIsTooLargeIsNotCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"` + strings.Repeat("x", maxEntry/2) + `"}`})
		var log bytes.Buffer
		token(t, sourceOf(t, server, WithCache(cache), WithLogger(slog.New(slog.NewTextHandler(&log, nil)))))
		assert.Empty(t, cache.entries)
		assert.Contains(t, log.String(), "too large")
		assert.Less(t, log.Len(), 1000)
	})
}

func TestLockIsGivenBackAfterAFailedGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		server.Enqueue(moovtest.Answer{Status: http.StatusForbidden})
		_, err := sourceOf(t, server, WithCache(cache)).Token()
		require.Error(t, err)
		assert.Empty(t, cache.held)
	})
}

// A machine whose clock is wrong must not take a token for good that has expired.
func TestCachedTokenLivesNoLongerThanItsLifetime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		first := sourceOf(t, server, WithCache(cache))
		clock := first.endpoint.clock
		first.endpoint.clock = func() instant { return clock().add(time.Hour) } // an hour fast
		token(t, first)
		s := sourceOf(t, server, WithCache(cache))
		assert.WithinDuration(t, time.Now().Add(15*time.Minute), token(t, s).Expiry, time.Second)
	})
}

func TestWhatIsCachedIsSealed(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithCredentials("public-key", "secret-key-of-the-client"))
	cache := new(memoryCache)
	first := sourceOf(t, server, WithCache(cache))
	tok := token(t, first)
	key, data := cache.only(t)
	for _, secret := range []string{tok.AccessToken, tok.RefreshToken, server.ClientSecret, server.ClientID, pingScope} {
		for size := 8; size <= len(secret); size++ {
			assert.NotContains(t, string(data), secret[:size])
			assert.NotContains(t, key, secret[:size])
		}
	}
	e, err := first.store.open(data)
	require.NoError(t, err)
	require.Equal(t, tok.AccessToken, e.AccessToken)

	for i := range data {
		for bit := range 8 {
			data[i] ^= 1 << bit
			_, err := first.store.open(data)
			require.Error(t, err, "byte %d, bit %d", i, bit)
			data[i] ^= 1 << bit
		}
		_, err := first.store.open(data[:i])
		require.Error(t, err, "cut after %d bytes", i)
	}

	other := sourceOf(t, server, WithCache(cache), WithScopes("/fed.read"))
	require.NotEqual(t, key, other.store.key)
	_, err = other.store.open(data)
	require.Error(t, err, "it is bound to its key")
	again, err := json.Marshal(e)
	require.NoError(t, err)
	assert.NotEqual(t, data, append([]byte(entryFormat), first.store.seal.Seal(nil, nil, again, []byte(entryFormat))...), "no nonce is used twice")
}

func TestCacheKeyIsOfOneClientAndItsScopes(t *testing.T) {
	t.Parallel()
	keyOf := func(creds Credentials, opts ...Option) string {
		s, err := NewTokenSource(creds, append([]Option{WithCache(new(memoryCache))}, opts...)...)
		require.NoError(t, err)
		return s.store.key
	}
	a := keyOf(testCredentials, WithScopes("/ping.read", "/fed.read"))
	assert.Equal(t, a, keyOf(testCredentials, WithScopes("/fed.read", "/ping.read", "/fed.read"), WithOrigin("https://example.com")))
	for _, other := range []string{
		keyOf(testCredentials, WithScopes("/ping.read")),
		keyOf(testCredentials, WithScopes("/ping.read", "/fed.read"), WithBaseURL("https://gateway.example.com")),
		keyOf(Credentials{"another", testCredentials.ClientSecret}, WithScopes("/ping.read", "/fed.read")),
	} {
		assert.NotEqual(t, a, other)
	}
	assert.Regexp(t, `^moovauth-[0-9a-f]{64}$`, a, "it can be a file's name")
}

func TestCacheOptionsThatCannotWork(t *testing.T) {
	t.Parallel()
	_, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithCache(nil))
	assert.ErrorContains(t, err, "WithCache")
	_, err = NewTokenSource(testCredentials, WithToken(&oauth2.Token{RefreshToken: "x"}), WithCache(new(memoryCache)))
	assert.ErrorContains(t, err, "WithScopes")
}

func FuzzOpenCached(f *testing.F) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithCache(new(memoryCache)))
	require.NoError(f, err)
	sealed := func(text string) []byte {
		return append([]byte(entryFormat), s.store.seal.Seal(nil, nil, []byte(text), []byte(entryFormat))...)
	}
	f.Add([]byte(nil))
	f.Add([]byte(entryFormat))
	f.Add(sealed(`{"access_token":"x"}`))
	f.Add(sealed(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := s.store.open(data); err == nil {
			require.True(t, usable(e.AccessToken))
		}
		if e, err := s.store.open(sealed(string(data))); err == nil { // of a later version, say
			require.True(t, usable(e.AccessToken))
			h := s.endpoint.newHeld(e.token(), s.endpoint.clock(), time.Duration(e.ExpiresIn)*time.Second)
			require.NotNil(t, h)
		}
	})
}

func TestInvalidateWhileATokenIsPutIntoTheCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithCache(fakeCache{
			get:  func(context.Context) ([]byte, error) { return nil, nil },
			put:  func(context.Context, []byte) error { time.Sleep(time.Second); return nil },
			lock: func(context.Context) (func(), error) { return func() {}, nil },
		}))
		go func() { _, _ = s.Token() }()
		time.Sleep(100 * time.Millisecond)
		refused := token(t, s)
		server.Revoke(refused.AccessToken)
		s.Invalidate(refused.AccessToken)
		assert.True(t, server.Alive(token(t, s).AccessToken))
	})
}

func TestLoggerThatPanicsDuringRevokeHarmsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, onWarning(func() { panic("out of order") }), WithCache(fakeCache{
			get:    func(context.Context) ([]byte, error) { return nil, nil },
			put:    func(context.Context, []byte) error { return nil },
			remove: func(context.Context) error { return errors.New("down") },
			lock:   func(context.Context) (func(), error) { return func() {}, nil },
		}))
		for range 2 {
			token(t, s)
			require.NoError(t, s.Revoke(t.Context()))
		}
		assert.Empty(t, server.AccessTokens())
	})
}

// brokenCache is a lockingCache that does what its mood says.
type brokenCache struct {
	*lockingCache
	mood atomic.Value // of a string
}

func (c *brokenCache) is(mood string) bool { return c.mood.Load() == mood }

func (c *brokenCache) try(ctx context.Context) error {
	switch c.mood.Load() {
	case "down":
		return errors.New("no route to cache")
	case "silent":
		<-ctx.Done()
		return ctx.Err()
	case "out of order":
		panic("out of order")
	}
	return nil
}

func (c *brokenCache) Get(ctx context.Context, key string) ([]byte, error) {
	if err := c.try(ctx); err != nil {
		return nil, err
	}
	data, err := c.lockingCache.Get(ctx, key)
	if c.is("damaged") && len(data) > 0 {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	return data, err
}

func (c *brokenCache) Put(ctx context.Context, key string, data []byte) error {
	if err := c.try(ctx); err != nil {
		return err
	}
	return c.lockingCache.Put(ctx, key, data)
}

func (c *brokenCache) Delete(ctx context.Context, key string) error {
	if err := c.try(ctx); err != nil {
		return err
	}
	return c.lockingCache.Delete(ctx, key)
}

func (c *brokenCache) Lock(ctx context.Context, key string) (func(), error) {
	if err := c.try(ctx); err != nil {
		return nil, err
	}
	return c.lockingCache.Lock(ctx, key)
}

// A day of a fleet of six, in which the cache, the endpoint and the processes
// fail at random. While the endpoint is up there is a token for every call, and
// it is one that the server takes within a few seconds.
func TestFleetSoak(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // else the race detector itself crashes now and then: see golang/go#78156
	seeds := uint64(4)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			server := inMemory(t, moovtest.WithLatency(200*time.Millisecond))
			o := &outage{RoundTripper: server.Transport()}
			cache := &brokenCache{lockingCache: newLockingCache()}
			cache.latency = time.Millisecond
			cache.mood.Store("")
			start := func() *TokenSource {
				return sourceOf(t, server, WithCache(cache), WithHTTPClient(&http.Client{Transport: o}))
			}
			fleet := make([]*TokenSource, 6)
			for i := range fleet {
				fleet[i] = start()
			}
			var up, restored time.Time // when the endpoint was last put right, and when tokens last died before their time
			down := false
			for began := time.Now(); time.Since(began) < 24*time.Hour; {
				switch random.IntN(60) {
				case 0:
					down = true
					o.set([]int{http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusUnauthorized}[random.IntN(3)], retryAfterHeader("5"))
				case 1, 2, 3:
					if down {
						up, down = time.Now(), false
						o.set(0, nil)
					}
				case 4:
					cache.mood.Store([]string{"down", "silent", "out of order", "damaged"}[random.IntN(4)])
				case 5, 6:
					cache.mood.Store("")
				case 7:
					fleet[random.IntN(len(fleet))] = start()
				case 8:
					if random.IntN(10) == 0 {
						server.RevokeAll()
						restored = time.Now()
					}
				case 9:
					if random.IntN(10) == 0 && !down {
						if err := fleet[random.IntN(len(fleet))].Revoke(t.Context()); err != nil && time.Since(up) > time.Minute && cache.is("") {
							t.Errorf("seed %d: Revoke: %v", seed, err)
						}
						restored = time.Now()
					}
				}
				var all sync.WaitGroup
				for i, s := range fleet {
					if random.IntN(3) == 0 {
						continue // it does nothing this time
					}
					all.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), defaultTimeout+time.Second)
						defer cancel()
						for tries := 0; ; tries++ {
							tok, err := s.TokenContext(ctx)
							switch {
							case err != nil:
								if !down && time.Since(up) > time.Minute {
									t.Errorf("seed %d, source %d: %v", seed, i, err)
								}
								return
							case server.Alive(tok.AccessToken):
								return
							case time.Since(restored) > time.Hour || tries > 5:
								t.Errorf("seed %d, source %d: a dead token, %d times", seed, i, tries)
								return
							}
							s.Invalidate(tok.AccessToken)
							time.Sleep(time.Second)
						}
					})
				}
				all.Wait()
				time.Sleep(time.Duration(random.Int64N(int64(2 * time.Minute))))
			}
			time.Sleep(time.Hour)
			assert.Empty(t, cache.held, "seed %d: the lock is free", seed)
			assert.Less(t, len(server.TokenRequests()), 500, "seed %d", seed)
			t.Logf("seed %d: %d token requests", seed, len(server.TokenRequests()))
		})
	}
}

// The record of a refresh token is gone once its entry is overwritten.
func TestRefreshTokenInAnEntryThatIsOverwrittenIsRevoked(t *testing.T) {
	t.Parallel()
	for name, cache := range map[string]Cache{"with a lock": newLockingCache(), "without": new(memoryCache)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				token(t, sourceOf(t, server, WithCache(cache)))
				time.Sleep(time.Hour)
				s := sourceOf(t, server, WithCache(cache))
				token(t, s)
				require.NoError(t, s.Revoke(t.Context()))
				assertAllDead(t, server)
			})
		})
	}
}
