package moovauth

// This file holds helpers that several test files use.

import (
	"bytes"
	"context"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

// timeLeft returns how much longer callers get the current token of s.
func (s *TokenSource) timeLeft() time.Duration {
	return s.core.state.load().timeLeft(s.core.config.clock())
}

const pingScope = "/ping.read"

var testCredentials = Credentials{ClientID: "public-key", ClientSecret: "s3cr3t-key"}

// sourceOf returns a source that obtains its tokens from server.
func sourceOf(t testing.TB, server *moovtest.Server, opts ...Option) *TokenSource {
	t.Helper()
	s, err := NewTokenSource(credentialsOf(server), append([]Option{
		WithScopes(pingScope), WithBaseURL(server.URL), WithHTTPClient(server.Client()),
	}, opts...)...)
	require.NoError(t, err)
	return s
}

func credentialsOf(server *moovtest.Server) Credentials {
	return Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret}
}

// inMemory returns a server without sockets, which works in a synctest bubble.
func inMemory(t testing.TB, opts ...moovtest.Option) *moovtest.Server {
	server := moovtest.NewInMemory(opts...)
	t.Cleanup(server.Close)
	return server
}

// onLoopback returns a server that listens on a loopback port.
func onLoopback(t testing.TB, opts ...moovtest.Option) *moovtest.Server {
	server := moovtest.NewServer(opts...)
	t.Cleanup(server.Close)
	return server
}

// answering returns a loopback server that answers with handler.
func answering(t testing.TB, handler http.HandlerFunc) *httptest.Server {
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server
}

// roundTripper adapts a function to http.RoundTripper.
type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func token(t testing.TB, s oauth2.TokenSource) *oauth2.Token {
	t.Helper()
	tok, err := s.Token()
	require.NoError(t, err)
	require.NotNil(t, tok)
	return tok
}

// together calls Token of all sources at once and returns the tokens.
func together(t testing.TB, sources []*TokenSource) []*oauth2.Token {
	t.Helper()
	tokens := make([]*oauth2.Token, len(sources))
	errs := make([]error, len(sources))
	var all sync.WaitGroup
	for i, s := range sources {
		all.Go(func() { tokens[i], errs[i] = s.Token() })
	}
	all.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	return tokens
}

// grantTypes returns the grant types of the token requests that server
// received.
func grantTypes(server *moovtest.Server) []string {
	var types []string
	for _, r := range server.TokenRequests() {
		types = append(types, r.GrantType)
	}
	return types
}

// assertAllDead fails the test if any token is alive at server.
func assertAllDead(t testing.TB, server *moovtest.Server) {
	t.Helper()
	assert.Empty(t, server.RefreshTokens(), "refresh tokens are still alive")
	assert.Empty(t, server.AccessTokens(), "access tokens are still alive")
}

// refusal returns the error of a source's first call if the server gives the
// same answer to each of its three attempts.
func refusal(t *testing.T, answer moovtest.Answer, opts ...Option) error {
	t.Helper()
	server := onLoopback(t)
	server.Enqueue(answer, answer, answer)
	_, err := noJitter(sourceOf(t, server, opts...)).Token()
	require.Error(t, err)
	return err
}

// noJitter replaces the random numbers of s with 0 and returns s. Its attempts
// then follow each other without a wait, and its cool-downs have their full
// length.
func noJitter(s *TokenSource) *TokenSource {
	s.core.config.random = func() float64 { return 0 }
	return s
}

func readAll(t testing.TB, resp *http.Response) string {
	t.Helper()
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

// memoryCache is a Cache in memory. Each call takes latency.
type memoryCache struct {
	latency time.Duration

	mu      sync.Mutex
	entries map[string][]byte
}

func (c *memoryCache) Get(_ context.Context, key string) ([]byte, error) {
	time.Sleep(c.latency)
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.entries[key], nil
}

func (c *memoryCache) Put(_ context.Context, key string, data []byte) error {
	time.Sleep(c.latency)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.entries == nil {
		c.entries = make(map[string][]byte)
	}
	c.entries[key] = bytes.Clone(data)
	return nil
}

func (c *memoryCache) Delete(_ context.Context, key string) error {
	time.Sleep(c.latency)
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.entries, key)
	return nil
}

// only returns the only entry of the cache.
func (c *memoryCache) only(t testing.TB) (key string, data []byte) {
	t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	require.Len(t, c.entries, 1)
	for key, data = range c.entries {
	}
	return key, data
}

// lockingCache is a memoryCache that is also a Locker. It has one lock for all
// keys.
type lockingCache struct {
	memoryCache
	held chan struct{}
}

func (c *lockingCache) Lock(ctx context.Context, _ string) (func(), error) {
	select {
	case c.held <- struct{}{}:
		return func() { <-c.held }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func newLockingCache() *lockingCache { return &lockingCache{held: make(chan struct{}, 1)} }

// fakeCache is a Cache and a Locker that calls its functions.
type fakeCache struct {
	get    func(ctx context.Context) ([]byte, error)
	put    func(ctx context.Context, data []byte) error
	remove func(ctx context.Context) error
	lock   func(ctx context.Context) (func(), error)
}

func (c fakeCache) Get(ctx context.Context, _ string) ([]byte, error) { return c.get(ctx) }

func (c fakeCache) Put(ctx context.Context, _ string, data []byte) error { return c.put(ctx, data) }

func (c fakeCache) Delete(ctx context.Context, _ string) error { return c.remove(ctx) }

func (c fakeCache) Lock(ctx context.Context, _ string) (func(), error) { return c.lock(ctx) }

// logged collects the log records of a source.
type logged struct{ records []slog.Record }

func (l *logged) option() Option {
	return WithLogger(slog.New(handler(func(r slog.Record) { l.records = append(l.records, r) })))
}

// of returns the attributes of the records with the given message, in order.
func (l *logged) of(message string) (all []map[string]slog.Value) {
	for _, r := range l.records {
		if r.Message == "moovauth: "+message {
			all = append(all, attributesOf(r))
		}
	}
	return all
}
func attributesOf(r slog.Record) map[string]slog.Value {
	attrs := make(map[string]slog.Value)
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value; return true })
	return attrs
}

// handler is a slog.Handler that calls the function for each record.
type handler func(slog.Record)

func (h handler) Enabled(context.Context, slog.Level) bool      { return true }
func (h handler) Handle(_ context.Context, r slog.Record) error { h(r); return nil }
func (h handler) WithAttrs([]slog.Attr) slog.Handler            { return h }
func (h handler) WithGroup(string) slog.Handler                 { return h }

// asFake returns a fakeCache that behaves as c does. A test replaces the
// functions that should fail.
func (c *lockingCache) asFake() fakeCache {
	return fakeCache{
		get:    func(ctx context.Context) ([]byte, error) { return c.Get(ctx, "") },
		put:    func(ctx context.Context, data []byte) error { return c.Put(ctx, "", data) },
		remove: func(ctx context.Context) error { return c.Delete(ctx, "") },
		lock:   func(ctx context.Context) (func(), error) { return c.Lock(ctx, "") },
	}
}

// counted returns a cache that behaves as c does, and appends the name of each
// call to calls.
func (c fakeCache) counted(calls *[]string) fakeCache {
	note := func(op string) { *calls = append(*calls, op) }
	return fakeCache{
		get:    func(ctx context.Context) ([]byte, error) { note("Get"); return c.get(ctx) },
		put:    func(ctx context.Context, data []byte) error { note("Put"); return c.put(ctx, data) },
		remove: func(ctx context.Context) error { note("Delete"); return c.remove(ctx) },
		lock:   func(ctx context.Context) (func(), error) { note("Lock"); return c.lock(ctx) },
	}
}
