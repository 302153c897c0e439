package moovauth

// This file is where a token is kept beyond its source: in a Cache, sealed. What
// a cached token is good for, and when it is looked for, is in grant.go.

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
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/guard"
)

const (
	maxCacheTime = 2 * time.Second // of all calls to the cache in one grant
	maxEntry     = 1 << 20         // bytes of a cached token

	entryFormat = "moovauth-2:" // what an entry starts with
)

// Cache keeps a source's token outside of its process: see [WithCache]. It has
// the methods of golang.org/x/crypto/acme/autocert.Cache, so that an
// implementation of that one serves too. It must be safe for concurrent use.
//
// Get returns what was Put last under key; if there is nothing, an error that is
// [fs.ErrNotExist] or ends in "cache miss", or no data. Delete of what is not
// there is no error.
type Cache interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, data []byte) error
	Delete(ctx context.Context, key string) error
}

// Locker is what a [Cache] that several processes share may implement too, so
// that one process obtains a token while the others wait for it. Lock waits for
// the lock on key as long as ctx lets it: ctx bounds the wait alone, not the
// time for which the lock is held. A lock whose holder has died must become free
// by itself. unlock is called once.
type Locker interface {
	Lock(ctx context.Context, key string) (unlock func(), err error)
}

// WithCache keeps the token in c, so that it outlives the process, and is
// shared by all sources with the same base URL, client ID, client secret and
// scopes that use the same cache. Before a source asks the server for a token
// it looks there, and stores there what it obtains. If c is a [Locker] as well,
// only the holder of the lock asks.
//
// No two processes send the same refresh token. With the lock, a source sends
// the one in the entry, which it first marks as sent. Without, it sends only one
// that it obtained itself.
//
// What is stored is sealed with AES-256-GCM. HKDF-SHA256 derives the key, and
// the name under which the entry is stored, from the client secret. A reader of
// the cache learns nothing. A writer causes token requests at worst, or, by
// putting back an older entry, a token that the API refuses and sources then
// drop. A cache that fails, panics or holds garbage costs a token request too,
// and never an error; it is logged. One that is slow costs at most 2 s in each
// grant, or a quarter of [WithTimeout] if that is less. Machines that share a
// cache need clocks that agree to within a few seconds.
//
// It needs [WithScopes]. Default: no cache.
func WithCache(c Cache) Option {
	return option(c != nil, func(s *setup) { s.cache = c },
		"WithCache: there is no cache: leave the option out to do without")
}

// entry is what is stored: a token as JSON, and what else a source has to know.
type entry struct {
	oauth2.Token
	Members map[string]any `json:"extra,omitempty"`   // what Extra finds
	Spent   string         `json:"spent,omitempty"`   // the refresh token that was used up for it
	Sent    bool           `json:"sent,omitempty"`    // the refresh token may be used up
	Assumed bool           `json:"assumed,omitempty"` // the lifetime is
}

// token is e's token with what Extra finds in it.
func (e *entry) token() oauth2.Token {
	if e.Members == nil {
		return e.Token
	}
	return *e.WithExtra(e.Members)
}

// store is the place of one source's token in its cache.
type store struct {
	*config
	cache Cache
	key   string
	seal  cipher.AEAD
}

// newStore returns nil if c has no cache.
func newStore(c *setup) (*store, error) {
	if c.cache == nil {
		return nil, nil
	}
	if len(c.scopes) == 0 {
		return nil, errors.New("moovauth: WithCache needs WithScopes: the scopes tell apart what is stored")
	}
	st, err := sealed(c)
	if err != nil {
		return nil, fmt.Errorf("moovauth: WithCache: %w", err)
	}
	return st, nil
}

// sealed derives the name of the entry and the key that seals it from the client
// secret and from whose token it is. Two secrets, or two versions of the format,
// have an entry each.
func sealed(c *setup) (*store, error) {
	// JSON keeps apart where one ends and the next begins.
	id, err := json.Marshal([]any{entryFormat, c.baseURL, c.creds.ClientID, slices.Compact(slices.Sorted(slices.Values(c.scopes)))})
	if err != nil {
		return nil, err
	}
	derived, err := hkdf.Key(sha256.New, []byte(c.creds.ClientSecret), nil, string(id), 64)
	if err != nil {
		return nil, err
	}
	block, err := aes.NewCipher(derived[:32])
	if err != nil {
		return nil, err
	}
	seal, err := cipher.NewGCMWithRandomNonce(block)
	return &store{config: c.config, cache: c.cache, key: "moovauth-" + hex.EncodeToString(derived[32:]), seal: seal}, err
}

// open reads what was sealed.
func (st *store) open(data []byte) (*entry, error) {
	text, ok := bytes.CutPrefix(data, []byte(entryFormat))
	if !ok || len(data) > maxEntry {
		return nil, errors.New("it is not of this format")
	}
	text, err := st.seal.Open(nil, nil, text, []byte(st.key))
	if err != nil {
		return nil, errors.New("it was altered")
	}
	e := new(entry)
	if err := json.Unmarshal(text, e); err != nil || !usable(e.AccessToken) {
		return nil, errors.New("it holds no token")
	}
	st.redact.Add(e.AccessToken, e.RefreshToken)
	return e, nil
}

// visit is the calls to the cache within one grant or one Revoke, which share a
// bound on their time. A nil visit finds and keeps nothing.
type visit struct {
	*store
	left time.Duration
}

func (st *store) visit() *visit {
	if st == nil {
		return nil
	}
	return &visit{st, min(maxCacheTime, st.timeout/4)}
}

// within leaves v no more time than b has.
func (v *visit) within(b *budget) {
	if v != nil {
		v.left = min(v.left, b.left())
	}
}

// locker is the cache's Locker, or nil.
func (v *visit) locker() Locker {
	if v == nil {
		return nil
	}
	l, _ := v.cache.(Locker)
	return l
}

// get returns what is cached, or nil. Its error says why that is unknown.
func (v *visit) get(ctx context.Context) (*entry, error) {
	if v == nil {
		return nil, nil
	}
	data, err := call(ctx, v, "Get", v.left, func(ctx context.Context) ([]byte, error) { return v.cache.Get(ctx, v.key) }, nil)
	if err != nil || len(data) == 0 {
		return nil, err
	}
	e, err := v.open(data)
	if err != nil {
		v.log(slog.LevelWarn, "moovauth: the cached entry is unusable", "key", v.key, "error", err)
	}
	return e, err
}

// lock waits for the lock, if the cache has one, but leaves enough time for
// put. unlock is to be called in any case.
func (v *visit) lock(ctx context.Context) (unlock func(), locked bool) {
	unlock = func() {}
	l := v.locker()
	if l == nil {
		return unlock, false
	}
	free, err := call(ctx, v, "Lock", v.left*3/4, func(ctx context.Context) (func(), error) {
		free, err := l.Lock(ctx, v.key)
		if free == nil && err == nil {
			err = errors.New("it returned neither an unlock function nor an error")
		}
		return free, err
	}, func(late func()) { late() })
	if err != nil || free == nil {
		return unlock, false
	}
	return func() {
		v.left = max(v.left, time.Millisecond) // it is called in any case
		_, _ = call(context.WithoutCancel(ctx), v, "unlock", v.left, func(context.Context) (struct{}, error) { free(); return struct{}{}, nil }, nil)
	}, true
}

// put stores e, and reports whether it did.
func (v *visit) put(ctx context.Context, e *entry) bool {
	if v == nil {
		return false
	}
	text, err := json.Marshal(e)
	if err == nil && len(text) > maxEntry/2 {
		err = errors.New("the token is too large to be cached")
	}
	if err != nil {
		v.log(slog.LevelWarn, "moovauth: the token is not cached", "key", v.key, "error", err)
		return false
	}
	data := append([]byte(entryFormat), v.seal.Seal(nil, nil, text, []byte(v.key))...)
	_, err = call(ctx, v, "Put", v.left, func(ctx context.Context) (struct{}, error) { return struct{}{}, v.cache.Put(ctx, v.key, data) }, nil)
	return err == nil
}

// remove deletes the entry if it still holds what e does.
func (v *visit) remove(ctx context.Context, e *entry) {
	if now, err := v.get(ctx); err != nil || now == nil || now.AccessToken != e.AccessToken || now.RefreshToken != e.RefreshToken {
		return
	}
	_, _ = call(ctx, v, "Delete", v.left, func(ctx context.Context) (struct{}, error) { return struct{}{}, v.cache.Delete(ctx, v.key) }, nil)
}

var errNoTime = errors.New("moovauth: no time is left for the cache")

// call calls the cache, which may fail, panic or hang. lost, if not nil, is
// given what comes too late. A failure is logged; that there is no entry is none.
func call[T any](ctx context.Context, v *visit, op string, most time.Duration, f func(context.Context) (T, error), lost func(T)) (value T, err error) {
	if v.left <= 0 {
		return value, errNoTime
	}
	start := time.Now()
	bounded, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not done within %v: %w", most.Round(time.Millisecond), context.DeadlineExceeded))
	defer cancel()
	value, err = guard.Call(bounded, guard.Code{Name: "Cache", Redact: &v.redact}, func() (none T, _ error) {
		value, err := f(bounded)
		if err != nil && missing(err) {
			return none, nil
		}
		return value, err
	}, lost)
	v.left -= time.Since(start)
	if err == nil {
		return value, nil
	}
	if bounded.Err() != nil {
		err = context.Cause(bounded)
	}
	err = v.redact.Error("moovauth: cache: "+op, err)
	v.log(slog.LevelWarn, "moovauth: the cache failed; going on without it", withStack(err, "key", v.key, "error", err)...)
	return value, err
}

// missing reports whether err only says that there is no entry.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) ||
		strings.HasSuffix(err.Error(), "cache miss") // autocert.ErrCacheMiss, which cannot be named without its module
}
