// Package rediscache keeps the tokens of package moovauth in Redis, where a
// fleet of processes shares them:
//
//	cache, err := rediscache.New(redis.NewClient(&redis.Options{Addr: "localhost:6379"}))
//	if err != nil {
//		return err
//	}
//	source, err := moovauth.NewTokenSource(creds,
//		moovauth.WithScopes("/ping.read"), moovauth.WithCache(cache))
//
// [NewLimiter] makes the fleet share a rate limit, too.
//
// It is a module of its own: programs that do not use Redis do not depend on it.
package rediscache

// This file is the whole cache. Entries are plain string keys, and the lock is
// redislock's. What an entry holds, and when it is read or locked, is moovauth's.

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"time"

	"github.com/bsm/redislock"
	"github.com/redis/go-redis/v9"

	"github.com/moovauth/moovauth"
)

const (
	defaultTTL     = 30 * 24 * time.Hour // moovauth keeps no token for longer
	defaultLockTTL = 10 * time.Second

	maxEntry = 1 << 20     // bytes that Get reads: the longest entry of moovauth
	patience = time.Second // for one command of Lock or unlock, which ignore the end of their caller's context

	firstPoll = 10 * time.Millisecond // doubled with each look at a lock that is held
	maxPoll   = 50 * time.Millisecond
)

var (
	_ moovauth.Cache  = (*Cache)(nil)
	_ moovauth.Locker = (*Cache)(nil)
)

var errNoClient = errors.New("rediscache: the client is nil: make one with redis.NewClient or redis.NewUniversalClient")

// Cache is a [moovauth.Cache] and [moovauth.Locker] in Redis. Make one with
// [New]. It is safe for concurrent use, and any number of sources may share it.
//
// Its errors are go-redis's, with "rediscache: " before them. A
// [moovauth.TokenSource] logs them and goes on without the cache.
//
// The user that the client logs in as needs the commands GETRANGE, SET and DEL
// on the keys that begin with [WithPrefix] and "moovauth-". The lock is a Lua
// script, which needs EVAL, EVALSHA and GET too. If scripts are not allowed, each
// grant logs a warning. Tokens are still shared, but processes that need one at
// the same time each ask for it, with client credentials: without the lock no
// process sends a refresh token that it found in Redis.
type Cache struct {
	client  redis.UniversalClient
	locks   *redislock.Client
	prefix  string
	ttl     time.Duration
	lockTTL time.Duration
}

// An Option configures [New]. If one is given twice, the last counts.
type Option func(*Cache) error

// WithPrefix puts prefix before every key. Default: none. Without it, a key is
// "moovauth-" and 64 hexadecimal digits. They are derived from the client secret,
// and differ by client secret, base URL, client ID, scopes, and the version of the
// format. So two secrets, or two versions of moovauth, live side by side.
func WithPrefix(prefix string) Option {
	return func(c *Cache) error {
		c.prefix = prefix
		return nil
	}
}

// WithTTL sets how long an entry stays after it was last written; each new token
// writes it. An entry that is gone early costs a token request. At least 1 ms.
// Default: 30 days, the longest that moovauth keeps a token.
func WithTTL(d time.Duration) Option {
	return func(c *Cache) error {
		c.ttl = d
		return check("WithTTL", d)
	}
}

// WithLockTTL sets how long the lock of a holder that has died stays. A holder
// that takes longer loses its lock, which costs a token request: see [Cache.Lock].
// At least 1 ms. Default: 10 s.
func WithLockTTL(d time.Duration) Option {
	return func(c *Cache) error {
		c.lockTTL = d
		return check("WithLockTTL", d)
	}
}

// check refuses a time to live that Redis cannot count.
func check(option string, d time.Duration) error {
	if d < time.Millisecond {
		return fmt.Errorf("%s: %v is less than a millisecond", option, d)
	}
	return nil
}

// New makes a cache in the Redis that client is connected to: a *redis.Client,
// a *redis.ClusterClient, or what redis.NewUniversalClient returns. The caller
// closes client, after the last use of the cache. New sends nothing: a Redis
// that is down is no error. Its error names the argument to change.
//
// A Redis that is down or silent costs a source up to 2 s in each grant. Two of
// the client's options help. With DialerRetries: 1, a Redis that refuses
// connections costs less than half a second. With ContextTimeoutEnabled, a Redis
// that is silent holds a connection no longer than the source waits; without it,
// go-redis's default, for as long as the client's own timeouts say.
func New(client redis.UniversalClient, opts ...Option) (*Cache, error) {
	if client == nil {
		return nil, errNoClient
	}
	c := &Cache{client: client, locks: redislock.New(client), ttl: defaultTTL, lockTTL: defaultLockTTL}
	for _, opt := range opts {
		if opt == nil {
			return nil, errors.New("rediscache: an option is nil")
		}
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("rediscache: %w", err)
		}
	}
	return c, nil
}

// Get returns the entry. If there is none, its error is [fs.ErrNotExist]. It
// reads 1 MiB at most: a longer entry is not moovauth's.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	data, err := c.client.GetRange(ctx, c.prefix+key, 0, maxEntry-1).Bytes()
	if err == nil && len(data) == 0 {
		err = fs.ErrNotExist // GETRANGE of an absent key is empty
	}
	if err != nil {
		return nil, wrap(err)
	}
	return data, nil
}

// Put writes the entry, for as long as [WithTTL] says.
func (c *Cache) Put(ctx context.Context, key string, data []byte) error {
	return wrap(c.client.Set(ctx, c.prefix+key, data, c.ttl).Err())
}

// Delete removes the entry, if there is one.
func (c *Cache) Delete(ctx context.Context, key string) error {
	return wrap(c.client.Del(ctx, c.prefix+key).Err())
}

// Lock waits for the lock on key as long as ctx lets it; its error then is
// ctx's. It tries every 5 to 10 ms at first, every 25 to 50 ms later. The lock of
// a holder that has died becomes free after [WithLockTTL]. If ctx ends during a
// command, Lock waits for the reply, so that Redis keeps no lock that nobody has.
//
// The lock can be lost: once its time to live is over, or after a failover to a
// replica that did not know of it, two processes may have it at once. That costs
// a token request with client credentials, and no dead token: a holder marks the
// entry as sent before it sends the refresh token that is in it, and no process
// sends a refresh token that is marked. The exception is a holder that is stopped
// between reading the entry and marking it, two commands in a row, for longer
// than [WithLockTTL]; or a failover that loses the mark.
func (c *Cache) Lock(ctx context.Context, key string) (unlock func(), err error) {
	for wait := firstPoll; ; wait = min(2*wait, maxPoll) {
		if ctx.Err() != nil {
			return nil, wrap(ctx.Err())
		}
		lock, err := c.obtain(ctx, key)
		if err == nil {
			return func() { release(ctx, lock) }, nil
		}
		if !errors.Is(err, redislock.ErrNotObtained) {
			return nil, wrap(err)
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): // jitter, so that waiters do not come in step
		case <-ctx.Done():
		}
	}
}

// obtain tries once. The lock's key begins with the entry's, so that permissions
// and hash tags cover both.
func (c *Cache) obtain(ctx context.Context, key string) (*redislock.Lock, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return c.locks.Obtain(ctx, c.prefix+key+":lock", c.lockTTL, nil)
}

// release frees a lock. If that fails, the lock ends with its time to live.
func release(ctx context.Context, lock *redislock.Lock) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	_ = lock.Release(ctx)
}

func wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("rediscache: %w", err)
}
