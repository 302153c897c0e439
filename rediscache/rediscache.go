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
// It is a module of its own, so that Redis reaches only those who want it.
package rediscache

// This file is all of it: entries, which are plain string keys, and the lock,
// which is redislock's. What an entry holds, and when it is read or locked, is
// moovauth's.

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
	defaultTTL     = 24 * time.Hour // moovauth takes no token for longer-lived
	defaultLockTTL = 10 * time.Second

	maxEntry = 1 << 20     // bytes that Get reads: as long as moovauth lets an entry be
	patience = time.Second // for one command of Lock or unlock, whose caller's context is not heeded

	firstPoll = 10 * time.Millisecond // doubled with each look at a lock that is held
	maxPoll   = 50 * time.Millisecond
)

var (
	_ moovauth.Cache  = (*Cache)(nil)
	_ moovauth.Locker = (*Cache)(nil)
)

// Cache is a [moovauth.Cache] and [moovauth.Locker] in Redis. Make one with
// [New]. It is safe for concurrent use, and any number of sources may share it.
//
// Its errors are go-redis's, with "rediscache: " before them. A
// [moovauth.TokenSource] logs them and goes on without the cache.
//
// The user that the client logs in as needs the commands GETRANGE, SET and DEL
// on the keys that begin with [WithPrefix] and "moovauth-". The lock is a Lua
// script besides: EVAL, EVALSHA and, for what is in it, GET. Where scripts are
// not allowed, each grant logs a warning, tokens are shared all the same, and
// processes that need one at the same time may each ask for it.
type Cache struct {
	client  redis.UniversalClient
	locks   *redislock.Client
	prefix  string
	ttl     time.Duration
	lockTTL time.Duration
}

// An Option configures [New]. Where one is given twice, the last counts.
type Option func(*Cache) error

// WithPrefix puts prefix before every key. Default: none. Keys begin with
// "moovauth-" without it too, and differ by base URL, client ID and scopes.
func WithPrefix(prefix string) Option {
	return func(c *Cache) error {
		c.prefix = prefix
		return nil
	}
}

// WithTTL sets how long an entry stays that is not written anew; each token
// writes it anew. One that is gone early costs a token request. At least 1 ms.
// Default: 24 hours, the longest that moovauth keeps a token.
func WithTTL(d time.Duration) Option {
	return func(c *Cache) error {
		c.ttl = d
		return check("WithTTL", d)
	}
}

// WithLockTTL sets how long a lock stays whose holder has died. A holder that
// takes longer loses it: then two processes may ask for a token at once, which
// costs a token request and nothing else. At least 1 ms. Default: 10 s.
func WithLockTTL(d time.Duration) Option {
	return func(c *Cache) error {
		c.lockTTL = d
		return check("WithLockTTL", d)
	}
}

// check refuses what Redis cannot count.
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
// A Redis that is down or silent costs a source up to 2 s in each grant. With
// DialerRetries: 1 in the client's options one that refuses connections costs
// less than half a second. With ContextTimeoutEnabled one that is silent holds a
// connection no longer than the source waits; without, as by default in go-redis,
// for as long as the client's own timeouts say.
func New(client redis.UniversalClient, opts ...Option) (*Cache, error) {
	if client == nil {
		return nil, errors.New("rediscache: the client is nil: make one with redis.NewClient or redis.NewUniversalClient")
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

// Get returns the entry. Its error is [fs.ErrNotExist] where there is none. It
// reads 1 MiB at most: what is longer is none of moovauth's.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	data, err := c.client.GetRange(ctx, c.prefix+key, 0, maxEntry-1).Bytes()
	if err == nil && len(data) == 0 {
		err = fs.ErrNotExist // to GETRANGE an absent key is an empty one
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
// ctx's. It looks every 5 to 10 ms at first, every 25 to 50 ms later. A holder
// that has died frees the lock after [WithLockTTL]. A command under way when ctx
// ends is waited for, so that Redis keeps no lock that nobody has.
//
// The lock saves token requests: it is no more than that. Two processes may
// have it at once after its time to live has passed, or a Redis failed over to
// a replica that had not heard of it.
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

// obtain tries once. The lock has the entry's key and more: a permission or a
// hash tag of the one covers the other.
func (c *Cache) obtain(ctx context.Context, key string) (*redislock.Lock, error) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), patience)
	defer cancel()
	return c.locks.Obtain(ctx, c.prefix+key+":lock", c.lockTTL, nil)
}

// release gives a lock back. Where that fails, its time to live does.
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
