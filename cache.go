package moovauth

// This file stores a source's token, sealed, in a Cache. grant.go decides when
// to look it up and how to use it.

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

const (
	maxCacheTime = 2 * time.Second // for all calls to the cache in one grant
	maxEntry     = 1 << 20         // bytes of a cached token

	entryFormat = "moovauth-2:" // what an entry starts with
)

// Cache keeps a source's token outside of its process: see [WithCache]. It has
// the methods of golang.org/x/crypto/acme/autocert.Cache, so that an
// implementation of that interface can be used here. It must be safe for
// concurrent use.
//
// Get returns the data that was last Put under key. If there is none, it
// returns no data, or an error that wraps [fs.ErrNotExist] or whose text ends
// in "cache miss". Delete of a key that does not exist is not an error.
type Cache interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, data []byte) error
	Delete(ctx context.Context, key string) error
}

// A [Cache] that several processes share may also implement Locker, so that one
// process requests a token while the others wait for it. Lock waits for the
// lock on key. If ctx ends first, Lock returns an error. ctx bounds only this
// wait, and not the time for which the lock is held. If the holder dies, the
// lock must become free by itself. unlock is called once.
type Locker interface {
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// WithCache keeps the token in a cache, so that it outlives the process. All
// sources that use the same cache with the same base URL, client ID, client
// secret and scopes share one token. A source reads the cache before it makes a
// token request, and stores the tokens that it obtains in the cache. If the
// cache is also a [Locker], only the holder of the lock makes the token
// request. Other processes make their own request if they cannot get the lock
// in time. [RequestToken] does not use the cache.
//
// A server may revoke all tokens that descend from a refresh token if it
// receives that token twice. So a source with a lock marks the entry's refresh
// token as sent, and then sends it. A source without a lock sends only a
// refresh token that it obtained itself.
//
// Entries are sealed with AES-256-GCM. HKDF-SHA256 derives the key, and the name
// of the entry, from the client secret. Anyone who can read the cache learns
// nothing. Anyone who can write to it can cause token requests, or put back an older
// entry: its token may be refused by the API, and with a lock its refresh token may
// be sent a second time.
//
// If the cache fails or an entry is damaged, Token does not return an error:
// the source requests a token, logs the failure and counts it in [Stats].
// Revoke returns an error if it cannot lock or read the entry. Each token
// request spends at most 2 s on the cache, or a quarter of [WithTimeout] if
// that is less, and as much again on the wait for the lock. The clocks of
// machines that share a cache must agree to within a few seconds. WithCache
// requires [WithScopes]. By default there is no cache.
func WithCache(cache Cache) Option {
	return option(cache != nil, func(c *config) { c.cache = cache }, "WithCache: the cache is nil: leave the option out to do without")
}

// entry is what a cache stores: a token as JSON, and what else a source has to
// know.
type entry struct {
	oauth2.Token
	Members map[string]any `json:"extra,omitempty"`   // for Extra
	Sent    bool           `json:"sent,omitempty"`    // the refresh token was sent and may be used up
	Assumed bool           `json:"assumed,omitempty"` // the server did not say how long the token lives
}

// store keeps one source's token in its cache.
type store struct {
	*config
	locker Locker // nil: the cache has no lock
	key    string
	seal   cipher.AEAD

	failures  atomic.Uint64
	lastError atomic.Pointer[error]
}

// newStore derives the name of the entry, and the key that seals it, from the
// client secret and from the base URL, the client ID and the scopes. It returns
// nil if c has no cache.
func newStore(c *config) (*store, error) {
	if c.cache == nil {
		return nil, nil
	}
	if len(c.scopes) == 0 {
		return nil, errors.New("moovauth: WithCache needs WithScopes: the scopes tell apart what is stored")
	}
	// In JSON, the parts cannot run into each other.
	id, err := json.Marshal([]any{entryFormat, c.baseURL, c.creds.ClientID, slices.Compact(slices.Sorted(slices.Values(c.scopes)))})
	if err != nil {
		return nil, err
	}
	derived, err := hkdf.Key(sha256.New, []byte(c.creds.ClientSecret), nil, string(id), 64)
	if err != nil {
		return nil, err // the client secret is too short for FIPS 140-3 mode
	}
	block, err := aes.NewCipher(derived[:32])
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	locker, _ := c.cache.(Locker)
	return &store{config: c, locker: locker, key: "moovauth-" + hex.EncodeToString(derived[32:]), seal: seal}, err
}

// open reads a sealed entry.
func (s *store) open(data []byte) (*entry, error) {
	text, ok := bytes.CutPrefix(data, []byte(entryFormat))
	if !ok || len(data) > maxEntry {
		return nil, errors.New("the entry is not of this format")
	}
	text, err := s.seal.Open(nil, nil, text, []byte(s.key))
	if err != nil {
		return nil, errors.New("the entry was altered")
	}
	e := new(entry)
	if err := json.Unmarshal(text, e); err != nil || !headerSafe(e.AccessToken) {
		return nil, errors.New("the entry holds no token")
	}
	return e, nil
}

// cacheSession makes the calls to the cache within one grant or one Revoke.
// They share a bound on their time: after one call has used it up, no other is
// made. A nil session finds and stores nothing.
type cacheSession struct {
	*store
	left time.Duration
}

func (s *store) session(within time.Duration) *cacheSession {
	if s == nil {
		return nil
	}
	return &cacheSession{s, min(maxCacheTime, within/4)}
}

// hasLock reports whether the cache is a Locker.
func (s *cacheSession) hasLock() bool { return s != nil && s.locker != nil }

// get returns the entry, or nil if there is none. Its error says why that is
// unknown.
func (s *cacheSession) get(ctx context.Context) (e *entry, err error) {
	if s == nil {
		return nil, nil
	}
	err = s.call(ctx, "Get", func(ctx context.Context) error {
		data, err := s.cache.Get(ctx, s.key)
		// autocert.ErrCacheMiss cannot be named without its module.
		if err != nil && (errors.Is(err, fs.ErrNotExist) || strings.HasSuffix(err.Error(), "cache miss")) || err == nil && len(data) == 0 {
			return nil
		}
		if err == nil {
			e, err = s.open(data)
		}
		return err
	})
	return e, err
}

// lock waits for the lock, if the cache has one. It is not a failure if another
// process holds the lock until the time is over. Call unlock in any case.
func (s *cacheSession) lock(ctx context.Context) (unlock func(), locked bool) {
	unlock = func() {}
	if !s.hasLock() || s.left <= 0 {
		return unlock, false
	}
	ctx, cancel := context.WithTimeout(ctx, s.left)
	defer cancel()
	free, err := s.locker.Lock(ctx, s.key)
	if err != nil {
		if ctx.Err() == nil {
			s.failed("Lock", err)
		}
		return unlock, false
	}
	return free, true
}

// put stores e, and reports whether it did.
func (s *cacheSession) put(ctx context.Context, e *entry) bool {
	if s == nil {
		return false
	}
	return s.call(ctx, "Put", func(ctx context.Context) error {
		text, err := json.Marshal(e)
		if err == nil && len(text) > maxEntry/2 {
			err = errors.New("the token is too large to be cached")
		}
		if err != nil {
			return err
		}
		return s.cache.Put(ctx, s.key, append([]byte(entryFormat), s.seal.Seal(nil, nil, text, []byte(s.key))...))
	}) == nil
}

// call calls the cache in the time that is left.
func (s *cacheSession) call(ctx context.Context, op string, f func(context.Context) error) error {
	if s.left <= 0 {
		return errors.New("moovauth: no time is left for the cache")
	}
	began := time.Now()
	ctx, cancel := context.WithTimeoutCause(ctx, s.left, fmt.Errorf("not done within %v: %w", s.left.Round(time.Millisecond), context.DeadlineExceeded))
	defer cancel()
	err := causeOf(ctx, f(ctx))
	s.left -= time.Since(began)
	if err != nil {
		err = s.failed(op, err)
	}
	return err
}

// failed records a failure of the cache.
func (s *cacheSession) failed(op string, err error) error {
	err = fmt.Errorf("moovauth: cache: %s: %w", op, err)
	s.failures.Add(1)
	s.lastError.Store(&err)
	s.log(slog.LevelWarn, "moovauth: the cache failed; continuing without it", "key", s.key, "error", err)
	return err
}
