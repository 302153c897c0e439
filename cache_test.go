package moovauth

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/http"
	"strings"
	"sync"
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

// bothCaches returns a cache with a lock and one without.
func bothCaches() map[string]Cache {
	return map[string]Cache{"with a lock": newLockingCache(), "without a lock": new(memoryCache)}
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
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestCachedTokenIsRefreshedWhenItsSourceWouldHave(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(11 * time.Minute) // before the refresh point, which is 11.9 to 12.2 minutes after the grant
		s := sourceOf(t, server, WithCache(cache))
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		time.Sleep(90 * time.Second)
		assert.Equal(t, first.AccessToken, token(t, s).AccessToken, "a stale token is returned, and refreshed in the background")
		synctest.Wait()
		assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken}, grantTypes(server))
	})
}

func TestStaleCachedTokenIsReturnedAtOnceAndRefreshedInTheBackground(t *testing.T) {
	t.Parallel()
	for name, cache := range bothCaches() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				first := token(t, sourceOf(t, server, WithCache(cache)))
				time.Sleep(13 * time.Minute)
				server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
				s := sourceOf(t, server, WithCache(cache))
				began := time.Now()
				assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
				time.Sleep(30 * time.Second)
				assert.Equal(t, first.AccessToken, token(t, s).AccessToken, "also while the endpoint is down")
				assert.Equal(t, 30*time.Second, time.Since(began), "no caller waits")
				server.SetAnswer(nil)
				time.Sleep(30 * time.Second)
				token(t, s)
				synctest.Wait()
				assert.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
			})
		})
	}
}

func TestRefreshTokenInTheCacheIsSentAfterTheAccessTokenHasExpired(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		awake, asleep := sourceOf(t, server, WithCache(cache)), sourceOf(t, server, WithCache(cache))
		first := token(t, awake)
		token(t, asleep)
		time.Sleep(time.Hour)
		second := token(t, awake)
		time.Sleep(time.Hour)
		token(t, asleep) // asleep knows only an older refresh token
		time.Sleep(time.Hour)
		token(t, sourceOf(t, server, WithCache(cache)))
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantRefreshToken, grantRefreshToken}, grantTypes(server))
		assert.Equal(t, first.RefreshToken, server.TokenRequests()[1].Form.Get("refresh_token"))
		assert.Equal(t, second.RefreshToken, server.TokenRequests()[2].Form.Get("refresh_token"), "the refresh token in the cache")
		assert.Len(t, server.RefreshTokens(), 1, "a fleet keeps one refresh token alive")
	})
}

func TestRefreshTokenIsMarkedInTheCacheBeforeItIsSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithReuseDetection())
		cache := newLockingCache()
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(time.Hour)

		// This process dies before it receives a reply.
		var dying *TokenSource
		dying = sourceOf(t, server, WithCache(cache), WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			_, data := cache.only(t)
			e, err := dying.core.cache.open(data)
			assert.NoError(t, err)
			assert.True(t, e.Sent)
			assert.Equal(t, first.RefreshToken, e.RefreshToken)
			return nil, errors.New("the process dies")
		})}))
		_, err := dying.Token()
		require.Error(t, err)

		s := sourceOf(t, server, WithCache(cache))
		token(t, s)
		assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server), "a marked refresh token is not sent")
		require.NoError(t, s.Revoke(t.Context()))
		assert.False(t, server.Alive(first.RefreshToken), "but it is revoked")
	})
}

func TestRefreshTokenThatCannotBeMarkedIsOnlyRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		kept := newLockingCache()
		token(t, sourceOf(t, server, WithCache(kept.asFake())))
		time.Sleep(time.Hour)
		readOnly := kept.asFake()
		readOnly.put = func(context.Context, []byte) error { return errors.New("read only") }
		s := sourceOf(t, server, WithCache(readOnly))
		token(t, s)
		assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, server)
	})
}

// A 429 means that the server has not used up the refresh token. Another
// process may send it, too.
func TestMarkIsRemovedIfTheRefreshTokenIsNotUsedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithReuseDetection())
		cache := newLockingCache()
		first := token(t, sourceOf(t, server, WithCache(cache)))
		time.Sleep(time.Hour)
		server.SetAnswer(&moovtest.Answer{Status: http.StatusTooManyRequests})
		_, err := sourceOf(t, server, WithCache(cache)).Token()
		require.Error(t, err)
		server.SetAnswer(nil)
		token(t, sourceOf(t, server, WithCache(cache)))
		requests := server.TokenRequests()
		last := requests[len(requests)-1]
		assert.Equal(t, first.RefreshToken, last.Form.Get("refresh_token"))
		assert.Len(t, server.RefreshTokens(), 1)
	})
}

// Without a lock the entry is not marked as sent. When the refusal arrives,
// another process may have replaced the entry.
func TestRefusedRefreshWithoutALockDoesNotChangeTheEntry(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		fleet := fleetOf(t, server, 2, WithCache(cache))
		together(t, fleet[:1])
		together(t, fleet[1:]) // adopts the token
		time.Sleep(time.Hour)
		server.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"60"}}, Latency: time.Second})
		var refused sync.WaitGroup
		refused.Go(func() {
			_, err := fleet[0].Token()
			assert.ErrorContains(t, err, "429")
		})
		synctest.Wait()
		newer := token(t, fleet[1])
		refused.Wait()
		assert.Equal(t, newer.AccessToken, token(t, sourceOf(t, server, WithCache(cache))).AccessToken)
	})
}

func TestRefreshTokenOfWithTokenIsNotSentIfThereIsACache(t *testing.T) {
	t.Parallel()
	for name, cache := range bothCaches() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				given := token(t, sourceOf(t, server))
				time.Sleep(time.Hour)
				s := sourceOf(t, server, WithCache(cache), WithToken(given))
				token(t, s)
				assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
				require.NoError(t, s.Revoke(t.Context()))
				assert.False(t, server.Alive(given.RefreshToken), "the given refresh token is kept for Revoke")
			})
		})
	}
}

func TestFleetWithALockMakesOneRequestForEachToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(200*time.Millisecond))
		cache := newLockingCache()
		cache.latency = time.Millisecond
		fleet := fleetOf(t, server, 50, WithCache(cache))
		for began := time.Now(); time.Since(began) < 40*time.Minute; time.Sleep(20 * time.Second) { // with a refresh point every 11.9 to 12.2 minutes
			for _, tok := range together(t, fleet) {
				assert.True(t, server.Alive(tok.AccessToken))
			}
		}
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantRefreshToken, grantRefreshToken}, grantTypes(server))
		assert.Empty(t, cache.held, "the lock is free")
	})
}

// Two processes have the same refresh token. A server with reuse detection
// accepts it once. If it received the refresh token again, it would revoke the
// tokens of the first process.
func TestWithoutALockOnlyTheSourceThatObtainedARefreshTokenSendsIt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithReuseDetection())
		cache := new(memoryCache)
		fleet := fleetOf(t, server, 2, WithCache(cache))
		require.Equal(t, token(t, fleet[0]).RefreshToken, token(t, fleet[1]).RefreshToken)
		time.Sleep(time.Hour)
		server.SetLatency(100 * time.Millisecond)
		for _, tok := range together(t, fleet) { // both read the cache before either has stored its token
			assert.True(t, server.Alive(tok.AccessToken))
		}
		assert.ElementsMatch(t, []string{grantClientCredentials, grantRefreshToken, grantClientCredentials}, grantTypes(server))
	})
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
		assert.True(t, server.Alive(second.AccessToken), "the invalidated token in the cache is not adopted")
		_, entry := cache.only(t)

		// Another process has the first token, and the API refused it there,
		// too.
		other := sourceOf(t, server, WithCache(cache), WithToken(first))
		other.Invalidate(first.AccessToken)
		assert.Equal(t, second.AccessToken, token(t, other).AccessToken, "the token of another process is adopted without a request")
		assert.Len(t, server.TokenRequests(), 2)
		_, same := cache.only(t)
		assert.Equal(t, entry, same)
	})
}

func TestCachedTokenThatExpiresSoonerIsNotAdopted(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		old := token(t, sourceOf(t, server, WithCache(cache)))
		key, entry := cache.only(t)
		time.Sleep(5 * time.Minute)
		require.NoError(t, cache.Delete(t.Context(), key))
		s := sourceOf(t, server, WithCache(cache), WithEarlyRefresh(12*time.Minute))
		second := token(t, s)
		require.NoError(t, cache.Put(t.Context(), key, entry)) // as anyone who can write to the cache could do
		time.Sleep(5 * time.Minute)
		assert.Equal(t, second.AccessToken, token(t, s).AccessToken) // this call starts a refresh
		synctest.Wait()
		assert.NotContains(t, []string{old.AccessToken, second.AccessToken}, token(t, s).AccessToken)
		assert.Len(t, server.TokenRequests(), 3)
	})
}

// Whatever the cache does, the source returns a token within a few seconds.
func TestCacheThatFails(t *testing.T) {
	t.Parallel()
	const seconds = time.Second
	down := errors.New("no route to cache")
	fails := func(c *fakeCache) {
		c.get = func(context.Context) ([]byte, error) { return nil, down }
		c.put = func(context.Context, []byte) error { return down }
		c.remove = func(context.Context) error { return down }
		c.lock = func(context.Context) (func(), error) { return nil, down }
	}
	hangs := func(c *fakeCache) {
		c.get = func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		c.put = func(ctx context.Context, _ []byte) error { <-ctx.Done(); return ctx.Err() }
		c.remove = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	}
	hangsIn := func(op string) func(c *fakeCache) {
		return func(c *fakeCache) {
			get, n := c.get, 0
			c.get = func(ctx context.Context) ([]byte, error) {
				if n++; op == "second Get" && n == 2 {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				return get(ctx)
			}
			if op == "Put" {
				c.put = func(ctx context.Context, _ []byte) error { <-ctx.Done(); return ctx.Err() }
			}
		}
	}
	finds := func(data []byte, err error) func(c *fakeCache) {
		return func(c *fakeCache) { c.get = func(context.Context) ([]byte, error) { return data, err } }
	}
	for _, c := range []struct {
		name     string
		change   func(c *fakeCache) // changes a cache that works
		calls    string             // the calls that are made for the first token
		failures uint64             // how many of the calls fail
		want     string             // a part of LastCacheError and of the log; "": no call fails
		took     time.Duration
		unknown  bool // Revoke cannot know what the cache holds
	}{
		{"works", func(*fakeCache) {}, "Get Lock Get Put", 0, "", 0, false},
		{"fails", fails, "Get Lock Get Put", 4, "Put: no route to cache", 0, true},
		{"fails in Lock", func(c *fakeCache) { c.lock = func(context.Context) (func(), error) { return nil, down } },
			"Get Lock Get Put", 1, "Lock: no route to cache", 0, true},
		{"fails in Put, as if there were no entry", func(c *fakeCache) {
			c.put = func(context.Context, []byte) error {
				return fmt.Errorf("the bucket does not exist: %w", fs.ErrNotExist)
			}
		}, "Get Lock Get Put", 1, "Put: the bucket does not exist", 0, false},
		{"fails in Delete, as if there were no entry", func(c *fakeCache) {
			c.remove = func(context.Context) error { return fs.ErrNotExist }
		}, "Get Lock Get Put", 0, "", 0, false},
		{"hangs", hangs, "Get", 1, "Get: not done within 2s", 2 * seconds, true},
		{"hangs in the second Get", hangsIn("second Get"), "Get Lock Get", 1, "Get: not done within 2s", 2 * seconds, false},
		{"hangs in Put", hangsIn("Put"), "Get Lock Get Put", 1, "Put: not done within 2s", 2 * seconds, false},
		{"is locked by another process", func(c *fakeCache) {
			c.lock = func(ctx context.Context) (func(), error) { <-ctx.Done(); return nil, ctx.Err() }
		}, "Get Lock Get Put", 0, "", 2 * seconds, true},
		{"has no entry, and says so as autocert does", finds(nil, errors.New("acme/autocert: certificate cache miss")), "Get Lock Get Put", 0, "", 0, false},
		{"has no entry, and says so as package os does", finds(nil, fmt.Errorf("redis: %w", fs.ErrNotExist)), "Get Lock Get Put", 0, "", 0, false},
		{"holds garbage", finds([]byte("garbage"), nil), "Get Lock Get Put", 2, "not of this format", 0, true},
		{"holds garbage of the format", finds([]byte(entryFormat+"garbage"), nil), "Get Lock Get Put", 2, "was altered", 0, true},
		{"holds another format", finds([]byte("moovauth-0:garbage"), nil), "Get Lock Get Put", 2, "not of this format", 0, true},
		{"holds too much", finds(append([]byte(entryFormat), make([]byte, maxEntry)...), nil), "Get Lock Get Put", 2, "not of this format", 0, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				cache := newLockingCache().asFake()
				c.change(&cache)
				var calls []string
				var log bytes.Buffer
				s := sourceOf(t, server, WithCache(cache.counted(&calls)), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
				began := time.Now()
				token(t, s)
				assert.Equal(t, c.took, time.Since(began))
				assert.Equal(t, c.calls, strings.Join(calls, " "))
				assert.Len(t, server.TokenRequests(), 1)
				stats := s.Stats()
				assert.Equal(t, c.failures, stats.CacheFailures)
				assert.Equal(t, int(c.failures), strings.Count(log.String(), "level=WARN"), "each failure is logged: %s", &log)
				if c.want == "" {
					assert.NoError(t, stats.LastCacheError)
				} else {
					assert.ErrorContains(t, stats.LastCacheError, c.want)
					assert.Contains(t, log.String(), c.want)
				}
				assert.NotContains(t, log.String(), "garbage")

				err := s.Revoke(t.Context())
				assert.Equal(t, c.unknown, err != nil, "Revoke says whether it knows what the cache holds: %v", err)
				assertAllDead(t, server)
			})
		})
	}
}

// If a refresh token were sent without the mark, another process could send it,
// too.
func TestNoRefreshTokenIsSentIfTheTimeForTheCacheIsUsedUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		kept := newLockingCache()
		token(t, sourceOf(t, server, WithCache(kept.asFake())))
		time.Sleep(time.Hour)
		slow := kept.asFake()
		slow.put = func(ctx context.Context, _ []byte) error { <-ctx.Done(); return ctx.Err() }
		var calls []string
		token(t, sourceOf(t, server, WithCache(slow.counted(&calls))))
		assert.Equal(t, []string{"Get", "Lock", "Get", "Put"}, calls, "the new token is not stored")
		assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
		assert.Empty(t, kept.held, "the lock is free")
	})
}

func TestSlowCacheLeavesTimeForTheGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(600*time.Millisecond))
		cache := newLockingCache().asFake()
		cache.get = func(ctx context.Context) ([]byte, error) { <-ctx.Done(); return nil, ctx.Err() }
		began := time.Now()
		token(t, sourceOf(t, server, WithTimeout(time.Second), WithCache(cache)))
		assert.Equal(t, 850*time.Millisecond, time.Since(began), "a quarter of WithTimeout for the cache")
	})
}

func TestLockIsReleasedAfterAFailedGrant(t *testing.T) {
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

func TestTwoClientSecretsCanShareACache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		cache := new(memoryCache)
		before := inMemory(t, moovtest.WithCredentials("public-key", "old-secret"))
		after := inMemory(t, moovtest.WithCredentials("public-key", "new-secret"))
		for range 10 {
			for _, server := range []*moovtest.Server{before, after} {
				s := sourceOf(t, server, WithCache(cache))
				assert.True(t, server.Alive(token(t, s).AccessToken))
				assert.Zero(t, s.Stats().CacheFailures)
			}
		}
		assert.Len(t, cache.entries, 2)
		assert.Len(t, before.TokenRequests(), 1)
		assert.Len(t, after.TokenRequests(), 1)
	})
}

func TestTokenThatIsTooLargeIsNotCached(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"` + strings.Repeat("x", maxEntry/2) + `"}`})
		s := sourceOf(t, server, WithCache(cache))
		token(t, s)
		assert.Empty(t, cache.entries)
		assert.ErrorContains(t, s.Stats().LastCacheError, "too large")
		assert.Less(t, len(s.Stats().LastCacheError.Error()), 200)
	})
}

// A machine whose clock is wrong must not use a token that has expired.
func TestCachedTokenLivesNoLongerThanItsLifetime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		first := sourceOf(t, server, WithCache(cache))
		real := first.core.config.clock
		first.core.config.clock = func() instant { return real().add(time.Hour) } // an hour ahead
		token(t, first)
		s := sourceOf(t, server, WithCache(cache))
		assert.WithinDuration(t, time.Now().Add(15*time.Minute), token(t, s).Expiry, time.Second)
	})
}

func TestInvalidateWhileATokenIsPutIntoTheCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache().asFake()
		cache.put = func(context.Context, []byte) error { time.Sleep(time.Second); return nil }
		s := sourceOf(t, server, WithCache(cache))
		go func() { _, _ = s.Token() }()
		time.Sleep(100 * time.Millisecond)
		refused := token(t, s)
		server.Revoke(refused.AccessToken)
		s.Invalidate(refused.AccessToken)
		assert.True(t, server.Alive(token(t, s).AccessToken))
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
		for end := 8; end <= len(secret); end++ {
			assert.NotContains(t, string(data), secret[end-8:end])
			assert.NotContains(t, key, secret[end-8:end])
		}
	}
	store := first.core.cache
	e, err := store.open(data)
	require.NoError(t, err)
	require.Equal(t, tok.AccessToken, e.AccessToken)

	for i := range data {
		for bit := range 8 {
			data[i] ^= 1 << bit
			_, err := store.open(data)
			require.Error(t, err, "byte %d, bit %d", i, bit)
			data[i] ^= 1 << bit
		}
		_, err := store.open(data[:i])
		require.Error(t, err, "cut after %d bytes", i)
	}

	other := sourceOf(t, server, WithCache(cache), WithScopes("/fed.read"))
	_, err = other.core.cache.open(data)
	require.Error(t, err, "an entry cannot be moved to another key")
	require.True(t, store.session(time.Minute).put(t.Context(), e))
	_, again := cache.only(t)
	assert.NotEqual(t, data, again, "no nonce is used twice")
}

func TestCacheKeyDependsOnTheClientAndItsScopes(t *testing.T) {
	t.Parallel()
	keyOf := func(creds Credentials, opts ...Option) string {
		s, err := NewTokenSource(creds, append([]Option{WithCache(new(memoryCache))}, opts...)...)
		require.NoError(t, err)
		return s.core.cache.key
	}
	a := keyOf(testCredentials, WithScopes("/ping.read", "/fed.read"))
	assert.Equal(t, a, keyOf(testCredentials, WithScopes("/fed.read", "/ping.read", "/fed.read"), WithOrigin("https://example.com")))
	for _, other := range []string{
		keyOf(testCredentials, WithScopes("/ping.read")),
		keyOf(testCredentials, WithScopes("/ping.read", "/fed.read"), WithBaseURL("https://gateway.example.com")),
		keyOf(Credentials{"another", testCredentials.ClientSecret}, WithScopes("/ping.read", "/fed.read")),
		keyOf(Credentials{testCredentials.ClientID, "another"}, WithScopes("/ping.read", "/fed.read")),
	} {
		assert.NotEqual(t, a, other)
	}
	assert.Regexp(t, `^moovauth-[0-9a-f]{64}$`, a, "it can be used as a file name")
}

func TestInvalidCacheOptions(t *testing.T) {
	t.Parallel()
	_, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithCache(nil))
	assert.ErrorContains(t, err, "WithCache")
	_, err = NewTokenSource(testCredentials, WithToken(&oauth2.Token{RefreshToken: "x"}), WithCache(new(memoryCache)))
	assert.ErrorContains(t, err, "WithScopes")
}

func FuzzOpenCached(f *testing.F) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithCache(new(memoryCache)))
	require.NoError(f, err)
	store := s.core.cache
	sealed := func(text string) []byte {
		return append([]byte(entryFormat), store.seal.Seal(nil, nil, []byte(text), []byte(store.key))...)
	}
	f.Add([]byte(nil))
	f.Add([]byte(entryFormat))
	f.Add(sealed(`{"access_token":"x"}`))
	f.Add([]byte(`{"access_token":"x","expires_in":900,"extra":{"list":[1]}}`))
	f.Add([]byte(`null`))
	f.Fuzz(func(t *testing.T, data []byte) {
		if e, err := store.open(data); err == nil {
			require.True(t, headerSafe(e.AccessToken))
		}
		if e, err := store.open(sealed(string(data))); err == nil { // such as an entry of a later version
			require.True(t, headerSafe(e.AccessToken))
			text, err := json.Marshal(e)
			require.NoError(t, err)
			again, err := store.open(sealed(string(text)))
			require.NoError(t, err)
			require.Equal(t, e.Token, again.Token)
			require.NotNil(t, s.core.config.newCurrentToken(*e.WithExtra(e.Members), clock(), time.Duration(e.ExpiresIn)*time.Second))
		}
	})
}
