// Package rediscache stores the tokens of package moovauth in Redis, so that a
// fleet of processes shares them:
//
//	cache, err := rediscache.New(redis.NewClient(&redis.Options{Addr: "localhost:6379"}))
//	if err != nil {
//		return err
//	}
//	source, err := moovauth.NewTokenSource(creds,
//		moovauth.WithScopes("/ping.read"), moovauth.WithCache(cache))
//
// A fleet can also share a rate limit: see [NewLimiter].
//
// The package is a module of its own, so programs that do not use Redis do not
// depend on go-redis.
package rediscache

// This file is the cache. An entry is a plain string key, and package redislock
// provides the lock. Package moovauth decides what an entry holds and when it is
// read or locked.

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
	defaultTTL     = 30 * 24 * time.Hour // moovauth keeps no token longer
	defaultLockTTL = 10 * time.Second

	maxEntry = 1 << 20     // bytes that Get reads; the entries of moovauth are shorter
	patience = time.Second // for one command that does not end with its caller's context

	firstPoll = 10 * time.Millisecond // doubles with each attempt to get a lock that is held
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
// Its methods return the errors of go-redis, prefixed with "rediscache: ". A
// [moovauth.TokenSource] logs these errors and continues without the cache.
//
// The client's Redis user needs the commands GETRANGE, SET and DEL on the keys
// that start with the [WithPrefix] prefix and "moovauth-". The lock is a Lua
// script, which also needs EVAL, EVALSHA and GET. If the user may not run
// scripts, each attempt to obtain a token logs a warning. Processes still share
// tokens, but if several need one at the same time, each requests its own with
// the client credentials: without the lock, no process sends a refresh token
// that it found in Redis.
type Cache struct {
	client  redis.UniversalClient
	locks   *redislock.Client
	prefix  string
	ttl     time.Duration
	lockTTL time.Duration
}

// An Option configures [New]. If an option is given twice, the last one applies.
type Option func(*Cache) error

// WithPrefix puts prefix before every key. By default there is no prefix.
//
// A key is "moovauth-" and 64 hexadecimal digits, which are derived from the client
// secret, the base URL, the client ID, the scopes, and the version of the format.
// So the entries of two secrets, or of two versions of moovauth, do not collide.
func WithPrefix(prefix string) Option {
	return func(c *Cache) error {
		c.prefix = prefix
		return nil
	}
}

// WithTTL sets how long Redis keeps an entry after it was last written. Each
// new token is written to the entry. If an entry expires before its token does,
// the next process that needs the token requests another. The minimum is 1 ms.
// The default is 30 days, which is the longest that moovauth keeps a token.
func WithTTL(d time.Duration) Option {
	return func(c *Cache) error {
		c.ttl = d
		return check("WithTTL", d)
	}
}

// WithLockTTL sets how long a process may hold the lock. After that, another
// process can get the lock, and both may request a token: see [Cache.Lock]. If
// a process dies, Redis releases its lock after this time. The minimum is 1 ms.
// The default of 10 s is enough for a token request to a server that answers.
func WithLockTTL(d time.Duration) Option {
	return func(c *Cache) error {
		c.lockTTL = d
		return check("WithLockTTL", d)
	}
}

// check returns an error if d is too short: Redis counts a TTL in milliseconds.
func check(option string, d time.Duration) error {
	if d < time.Millisecond {
		return fmt.Errorf("%s: %v is less than a millisecond", option, d)
	}
	return nil
}

// New returns a cache in the Redis server that client connects to. The client is a
// *redis.Client, a *redis.ClusterClient, or the result of redis.NewUniversalClient.
// The caller closes client after the last use of the cache. New sends no command,
// so it does not return an error if Redis is down. An error from New names the
// argument to change.
//
// If Redis is down or does not reply, a source waits up to 2 s each time that
// it obtains a token. Two options of the client help. With DialerRetries: 1, a
// source waits less than half a second if Redis refuses connections. With
// ContextTimeoutEnabled, which is off by default, a command that gets no reply
// ends when the source stops waiting. Otherwise it ends with the client's own
// timeouts.
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

// Get returns the entry for key. If there is none, the error wraps
// [fs.ErrNotExist]. Get reads at most 1 MiB. The entries of moovauth are
// shorter.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	data, err := c.client.GetRange(ctx, c.prefix+key, 0, maxEntry-1).Bytes()
	if err == nil && len(data) == 0 {
		err = fs.ErrNotExist // GETRANGE returns an empty string if there is no such key
	}
	if err != nil {
		return nil, wrap(err)
	}
	return data, nil
}

// Put writes the entry for key. Redis removes it after the [WithTTL] duration.
func (c *Cache) Put(ctx context.Context, key string, data []byte) error {
	return wrap(c.client.Set(ctx, c.prefix+key, data, c.ttl).Err())
}

// Delete removes the entry for key, if there is one.
func (c *Cache) Delete(ctx context.Context, key string) error {
	return wrap(c.client.Del(ctx, c.prefix+key).Err())
}

// Lock waits for the lock on key. If ctx ends first, the error wraps that of
// ctx. Lock tries every 5 to 10 ms at first, and every 25 to 50 ms later. If a
// process dies while it holds the lock, the lock becomes free after the
// [WithLockTTL] duration. If ctx ends during a command, Lock waits up to a
// second for the reply, so that no lock stays in Redis without a holder.
//
// Two processes may hold the lock at the same time: after the first has held it for
// longer than [WithLockTTL], or after a failover to a replica that does not have the
// lock. That costs a token request with client credentials, but no process gets a
// dead token: a process marks the entry as sent before it sends the entry's refresh
// token, and no process sends a refresh token that is marked. A refresh token can be
// sent twice in two cases: a process stops for longer than [WithLockTTL] between
// reading and marking the entry, which are two commands in a row; or a failover loses
// the mark.
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
		case <-time.After(wait/2 + rand.N(wait/2)): // jitter, so that processes do not try all at once
		case <-ctx.Done():
		}
	}
}

// obtain tries to get the lock once. The lock's key starts with the entry's key, so
// that permissions and hash tags apply to both.
func (c *Cache) obtain(ctx context.Context, key string) (*redislock.Lock, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return c.locks.Obtain(ctx, c.prefix+key+":lock", c.lockTTL, nil)
}

// release frees a lock. If that fails, the lock expires after its TTL.
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
