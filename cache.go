package moovauth

// This file is where a token is kept beyond its source: in a Cache, sealed. What
// a cached token is good for, and when it is looked for, is tokensource.go's.

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/guard"
	"github.com/moovauth/moovauth/internal/redact"
)

const (
	maxCacheTime = 2 * time.Second // of all calls to the cache in one grant
	maxEntry     = 1 << 20         // bytes of a cached token

	entryFormat = "moovauth-1:" // what an entry starts with
)

// Cache keeps a source's token outside of its process: see [WithCache]. It has
// the methods of golang.org/x/crypto/acme/autocert.Cache, so that whatever
// implements that one serves. It must be safe for concurrent use.
//
// Get returns what was Put last under key; where there is nothing, an error,
// or no data. Delete of what is not there is no error.
type Cache interface {
	Get(ctx context.Context, key string) ([]byte, error)
	Put(ctx context.Context, key string, data []byte) error
	Delete(ctx context.Context, key string) error
}

// Locker is what a [Cache] that a fleet shares may implement too, so that one
// process obtains a token while the others wait for it. Lock waits for the lock
// on key as long as ctx lets it. A lock whose holder has died must become free
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
// What is stored is sealed with AES-256-GCM, under a key that HKDF-SHA256
// derives from the client secret: who can read the cache learns nothing; who
// can write to it causes token requests at worst, or, by putting back an older
// entry, a token that the API refuses and sources then drop. A cache that
// fails, panics or holds garbage costs a token request too, and never an error;
// it is logged.
// One that is slow costs at most 2 s in each grant, or a quarter of
// [WithTimeout] if that is less. Machines that share a cache need clocks that
// agree to within a few seconds.
//
// It needs [WithScopes]. Default: no cache.
func WithCache(c Cache) Option {
	return option(c != nil && c != DirCache(""), func(cfg *config) { cfg.cache = c },
		"WithCache: there is no cache, or DirCache names no directory: leave the option out to do without")
}

// entry is what is stored: a token as JSON, and what else a source has to know.
type entry struct {
	oauth2.Token
	Scope   string `json:"scope,omitempty"`   // of the reply
	Spent   string `json:"spent,omitempty"`   // the refresh token that was used up for it
	Assumed bool   `json:"assumed,omitempty"` // the lifetime is
}

func entryOf(h *held) *entry {
	scope, _ := h.token.Extra("scope").(string)
	return &entry{h.token, scope, h.spent, h.endAt == instant{}}
}

// token is e's token with what Extra finds in it.
func (e *entry) token() oauth2.Token { return *e.WithExtra(map[string]any{"scope": e.Scope}) }

// store is the place of one source's token in its cache.
type store struct {
	*config
	key  string
	seal cipher.AEAD
}

// newStore returns nil where c has no cache.
func newStore(c *config) (*store, error) {
	if c.cache == nil {
		return nil, nil
	}
	if len(c.scopes) == 0 {
		return nil, errors.New("moovauth: WithCache needs WithScopes: the scopes tell apart what is stored")
	}
	// JSON keeps apart where one ends and the next begins.
	id, err := json.Marshal([]any{c.baseURL.String(), c.creds.ClientID, slices.Compact(slices.Sorted(slices.Values(c.scopes)))})
	if err != nil {
		return nil, fmt.Errorf("moovauth: WithCache: %w", err)
	}
	hash := sha256.Sum256(id)
	st := &store{config: c, key: "moovauth-" + hex.EncodeToString(hash[:])}
	key, err := hkdf.Key(sha256.New, []byte(c.creds.ClientSecret), nil, entryFormat+st.key, 32)
	if err != nil {
		return nil, fmt.Errorf("moovauth: WithCache: %w", err)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("moovauth: WithCache: %w", err)
	}
	st.seal, err = cipher.NewGCMWithRandomNonce(block)
	return st, err
}

// open reads what was sealed.
func (st *store) open(data []byte) (*entry, error) {
	sealed, ok := bytes.CutPrefix(data, []byte(entryFormat))
	if !ok || len(data) > maxEntry {
		return nil, errors.New("it is not of this format")
	}
	text, err := st.seal.Open(nil, nil, sealed, []byte(entryFormat))
	if err != nil {
		return nil, errors.New("it was sealed with another client secret, or altered")
	}
	e := new(entry)
	if err := json.Unmarshal(text, e); err != nil || !usable(e.AccessToken) {
		return nil, errors.New("it holds no token")
	}
	st.redact.Add(e.AccessToken, e.RefreshToken)
	return e, nil
}

// visit is the calls to the cache within one grant, which share a bound on
// their time. A nil visit finds and keeps nothing.
type visit struct {
	*store
	hide *redact.Set
	left time.Duration
}

func (st *store) visit(hide *redact.Set) *visit {
	if st == nil {
		return nil
	}
	return &visit{st, hide, min(maxCacheTime, st.timeout/4)}
}

// get returns what is cached, or nil.
func (v *visit) get(ctx context.Context) *entry {
	if v == nil {
		return nil
	}
	data, ok := call(ctx, v, "Get", v.left, func(ctx context.Context) ([]byte, error) { return v.cache.Get(ctx, v.key) }, nil)
	if !ok || len(data) == 0 {
		return nil
	}
	e, err := v.open(data)
	if err != nil {
		v.logger.WarnContext(ctx, "moovauth: what is cached is of no use", "key", v.key, "error", err)
		return nil
	}
	return e
}

// lock waits for the lock, where the cache has one, but leaves enough time for
// put. unlock is to be called in any case.
func (v *visit) lock(ctx context.Context) (unlock func(), locker bool) {
	unlock = func() {}
	if v == nil {
		return unlock, false
	}
	l, locker := v.cache.(Locker)
	if !locker {
		return unlock, false
	}
	free, ok := call(ctx, v, "Lock", v.left*3/4, func(ctx context.Context) (func(), error) { return l.Lock(ctx, v.key) }, func(late func()) { late() })
	if ok && free != nil {
		unlock = func() {
			v.left = max(v.left, time.Millisecond) // it is called in any case
			call(ctx, v, "unlock", v.left, func(context.Context) (struct{}, error) { free(); return struct{}{}, nil }, nil)
		}
	}
	return unlock, true
}

func (v *visit) put(ctx context.Context, e *entry) {
	if v == nil {
		return
	}
	text, err := json.Marshal(e)
	if err == nil && len(text) > maxEntry/2 {
		err = errors.New("the token is too large to be cached")
	}
	if err != nil {
		v.logger.WarnContext(ctx, "moovauth: cache: Put", "key", v.key, "error", err)
		return
	}
	data := append([]byte(entryFormat), v.seal.Seal(nil, nil, text, []byte(entryFormat))...)
	call(ctx, v, "Put", v.left, func(ctx context.Context) (struct{}, error) { return struct{}{}, v.cache.Put(ctx, v.key, data) }, nil)
}

func (v *visit) delete(ctx context.Context) {
	if v == nil {
		return
	}
	call(ctx, v, "Delete", v.left, func(ctx context.Context) (struct{}, error) { return struct{}{}, v.cache.Delete(ctx, v.key) }, nil)
}

// call calls the cache, which may fail, panic or hang. lost, if not nil, is
// given what comes too late.
func call[T any](ctx context.Context, v *visit, op string, most time.Duration, f func(context.Context) (T, error), lost func(T)) (value T, ok bool) {
	if v.left <= 0 {
		return value, false
	}
	start := time.Now()
	bounded, cancel := context.WithTimeoutCause(ctx, most, fmt.Errorf("not done within %v: %w", most.Round(time.Millisecond), context.DeadlineExceeded))
	defer cancel()
	value, err := guard.Call(bounded, guard.Code{Name: "Cache", Redact: v.hide}, func() (T, error) { return f(bounded) }, lost)
	v.left -= time.Since(start)
	switch {
	case err == nil:
		return value, true
	case missing(err):
		return value, false
	case bounded.Err() != nil:
		err = context.Cause(bounded)
	}
	v.warn(ctx, "moovauth: the cache failed; going on without it",
		withStack(err, "key", v.key, "error", v.hide.Error("moovauth: "+op, err))...)
	return value, false
}

// missing reports whether err only says that there is no entry.
func missing(err error) bool {
	return errors.Is(err, fs.ErrNotExist) ||
		strings.HasSuffix(err.Error(), "cache miss") // autocert.ErrCacheMiss, which cannot be named without its module
}

// DirCache is a [Cache] in a directory, for processes that run one after the
// other, or a few on one machine. It makes the directory where there is none,
// for its owner alone (0700), with files that only the owner can read (0600). A
// file is written whole or not at all.
type DirCache string

// Get reads a file. Its error is [fs.ErrNotExist] where there is none.
func (d DirCache) Get(ctx context.Context, key string) ([]byte, error) {
	dir, err := d.open(ctx)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := dir.Open(key)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// Put writes a file.
func (d DirCache) Put(ctx context.Context, key string, data []byte) error {
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	dir, err := d.open(ctx)
	if err != nil {
		return err
	}
	defer dir.Close()
	part := key + ".part-" + rand.Text()
	if err := dir.WriteFile(part, data, 0o600); err != nil {
		return errors.Join(err, dir.Remove(part))
	}
	if err := dir.Rename(part, key); err != nil {
		return errors.Join(err, dir.Remove(part))
	}
	return nil
}

// Delete removes a file.
func (d DirCache) Delete(ctx context.Context, key string) error {
	dir, err := d.open(ctx)
	if err == nil {
		defer dir.Close()
		err = dir.Remove(key)
	}
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// open opens the directory. No key leads out of it.
func (d DirCache) open(ctx context.Context) (*os.Root, error) {
	if err := ctx.Err(); err != nil {
		return nil, err
	}
	return os.OpenRoot(string(d))
}

// network is the code that a request goes through.
func network(hide *redact.Set) guard.Code {
	return guard.Code{Name: "http.RoundTripper or slog.Handler", Heed: 250 * time.Millisecond, Redact: hide}
}

// withStack adds to a log record's attributes if err is a panic.
func withStack(err error, attrs ...any) []any {
	if stack := guard.Stack(err); stack != "" {
		attrs = append(attrs, "stack", stack)
	}
	return attrs
}

// warn logs, and returns soon whatever the handler does.
func (c *config) warn(ctx context.Context, msg string, attrs ...any) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = guard.Call(ctx, network(nil), func() (struct{}, error) { c.logger.WarnContext(ctx, msg, attrs...); return struct{}{}, nil }, nil)
}
