package interop

// This file is what the tests share: a loopback API that wants a token of
// Moov's on every request, and the life of a token that each client is put
// through.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sync/errgroup"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const (
	pingScope = "/ping.read"

	// Refreshed from about 0.6 s on, used up to 2.7 s, dead at the server after 3 s.
	shortLife = 3 * time.Second

	patience = 15 * time.Second      // for what must come
	tick     = 20 * time.Millisecond // between two looks
)

// early makes a source refresh a token as soon as it may.
var early = moovauth.WithEarlyRefresh(time.Hour)

// api is a loopback server: Moov's own endpoints, and on every other path an
// API that wants a live token.
type api struct {
	*httptest.Server
	tokens *moovtest.Server

	mu       sync.Mutex    // guards what follows
	arrivals []arrival     // at the API, in order
	held     chan struct{} // token requests wait for its end; nil: they do not
	asked    int           // token requests since holdGrants
}

// arrival is one request to the API.
type arrival struct {
	authorization []string
	accepted      bool
	header        http.Header
	proto         int
}

func (c arrival) token() string {
	token, _ := strings.CutPrefix(strings.Join(c.authorization, "\n"), "Bearer ")
	return token
}

// newAPI starts an API that answers authorised requests with answer (nil: an
// empty JSON object). start is (*httptest.Server).Start or another way.
func newAPI(t *testing.T, start func(*httptest.Server), answer http.HandlerFunc, opts ...moovtest.Option) *api {
	t.Helper()
	if answer == nil {
		answer = func(w http.ResponseWriter, _ *http.Request) { writeJSON(w, "{}") }
	}
	a := &api{tokens: moovtest.NewInMemory(opts...)}
	mux := http.NewServeMux()
	mux.HandleFunc("/oauth2/token", func(w http.ResponseWriter, r *http.Request) {
		a.waitForRelease(r.Context())
		a.tokens.ServeHTTP(w, r)
	})
	mux.Handle("/oauth2/revoke", a.tokens)
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if !a.admit(r.Header, r.ProtoMajor) {
			w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
			http.Error(w, `{"error":"invalid_token"}`, http.StatusUnauthorized)
			return
		}
		answer(w, r)
	})
	a.Server = httptest.NewUnstartedServer(mux)
	start(a.Server)
	t.Cleanup(a.Close)
	return a
}

// holdGrants makes token requests wait until release is called.
func (a *api) holdGrants(t *testing.T) (release func()) {
	held := make(chan struct{})
	release = sync.OnceFunc(func() { close(held) })
	t.Cleanup(release)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.held, a.asked = held, 0
	return release
}

func (a *api) waitForRelease(ctx context.Context) {
	a.mu.Lock()
	held := a.held
	a.asked++
	a.mu.Unlock()
	if held != nil {
		select {
		case <-held:
		case <-ctx.Done():
		}
	}
}

// holdsGrant reports whether a token request has come since holdGrants.
func (a *api) holdsGrant() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked > 0
}

// admit records a request, and reports whether its token is good.
func (a *api) admit(header http.Header, proto int) bool {
	c := arrival{authorization: header.Values("Authorization"), header: header.Clone(), proto: proto}
	c.accepted = len(c.authorization) == 1 && strings.HasPrefix(c.authorization[0], "Bearer ") && a.tokens.Alive(c.token())
	a.mu.Lock()
	defer a.mu.Unlock()
	a.arrivals = append(a.arrivals, c)
	return c.accepted
}

func (a *api) seen() []arrival {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.arrivals)
}

// lastToken is that of the last request that was let in.
func (a *api) lastToken() string {
	for _, c := range slices.Backward(a.seen()) {
		if c.accepted {
			return c.token()
		}
	}
	return ""
}

// refused counts the requests that were not let in.
func (a *api) refused() (n int) {
	for _, c := range a.seen() {
		if !c.accepted {
			n++
		}
	}
	return n
}

// grants counts the token requests of one grant type.
func (a *api) grants(grantType string) (n int) {
	for _, r := range a.tokens.TokenRequests() {
		if r.GrantType == grantType {
			n++
		}
	}
	return n
}

func (a *api) credentials() moovauth.Credentials {
	return moovauth.Credentials{ClientID: a.tokens.ClientID, ClientSecret: a.tokens.ClientSecret}
}

// newSource makes a source on a.
func (a *api) newSource(t *testing.T, opts ...moovauth.Option) *moovauth.TokenSource {
	t.Helper()
	s, err := moovauth.NewTokenSource(a.credentials(), append([]moovauth.Option{
		moovauth.WithScopes(pingScope), moovauth.WithBaseURL(a.URL), moovauth.WithHTTPClient(a.Client()), early,
	}, opts...)...)
	require.NoError(t, err)
	return s
}

// after401 is what becomes of a token that the server has revoked.
type after401 int

const (
	replays after401 = iota // the request is made again with another token; the caller sees nothing
	asks                    // the caller sees a 401, until somebody calls Invalidate
	caches                  // as asks, and then until the client's own cache has run out
)

// life is what each client is put through.
type life struct {
	api    *api
	source *moovauth.TokenSource
	call   func() error // makes one request to the API
	after  after401
}

func (l *life) run(t *testing.T) {
	t.Helper()
	l.begin(t)
	l.rollOver(t)
	l.revoke(t)
	l.loseTokens(t)
}

// begin: the first request carries the token that the source holds.
func (l *life) begin(t *testing.T) {
	t.Helper()
	require.NoError(t, l.call())
	require.Contains(t, l.api.tokens.AccessTokens(), l.api.lastToken())
	require.Equal(t, 1, l.api.grants("client_credentials"))
}

// rollOver: as the token ages, callers come by another one. None of them waits
// for it, and none is refused.
func (l *life) rollOver(t *testing.T) {
	t.Helper()
	first := l.api.lastToken()
	release := l.api.holdGrants(t)
	var err error
	require.Eventually(t, func() bool {
		held := l.api.holdsGrant()
		err = l.callAtOnce()
		return err != nil || held
	}, patience, tick, "no refresh, or callers wait for it")
	require.NoError(t, err)
	require.Equal(t, first, l.api.lastToken())
	release()
	require.Eventually(t, func() bool {
		err = l.callAtOnce()
		return err != nil || l.api.lastToken() != first
	}, patience, tick, "no rollover")
	require.NoError(t, err)
	require.Zero(t, l.api.refused())
	require.NotZero(t, l.api.grants("refresh_token"))
	require.Equal(t, 1, l.api.grants("client_credentials"), "there was a refresh token")

	l.api.tokens.Revoke(first) // its expiry, sooner
	require.NoError(t, l.call())
	require.Zero(t, l.api.refused())
}

// callAtOnce makes a few calls at the same time.
func (l *life) callAtOnce() error {
	var callers errgroup.Group
	for range 3 {
		callers.Go(l.call)
	}
	return callers.Wait()
}

// revoke: nothing that the source obtained is alive, and the next request comes
// by a new token.
func (l *life) revoke(t *testing.T) {
	t.Helper()
	last, granted := l.api.lastToken(), l.api.grants("client_credentials")
	obtained := append(l.api.tokens.AccessTokens(), l.api.tokens.RefreshTokens()...)
	require.Contains(t, obtained, last)
	require.NoError(t, l.source.Revoke(t.Context()))
	for _, token := range obtained {
		require.False(t, l.api.tokens.Alive(token))
	}
	var revoked []string
	for _, r := range l.api.tokens.RevokeRequests() {
		revoked = append(revoked, r.Form.Get("token_type_hint")+" "+r.Form.Get("token"))
	}
	require.Contains(t, revoked, "access_token "+last)
	require.True(t, strings.HasPrefix(revoked[0], "refresh_token "), "it could mint more")

	l.goOn(t)
	require.NotEqual(t, last, l.api.lastToken())
	require.Greater(t, l.api.grants("client_credentials"), granted)
}

// loseTokens: the server revokes all tokens by itself, refresh tokens too.
func (l *life) loseTokens(t *testing.T) {
	t.Helper()
	l.api.tokens.RevokeAll()
	last, refused, granted := l.api.lastToken(), l.api.refused(), l.api.grants("client_credentials")
	if l.after != replays {
		require.Error(t, l.call(), "the token is dead")
		require.Greater(t, l.api.refused(), refused)
		l.source.Invalidate(last)
	}
	l.goOn(t)
	require.Greater(t, l.api.refused(), refused)
	require.NotEqual(t, last, l.api.lastToken())
	require.Greater(t, l.api.grants("client_credentials"), granted)
}

// goOn: requests succeed again, at once or when the client's cache has run out.
func (l *life) goOn(t *testing.T) {
	t.Helper()
	if l.after != caches {
		require.NoError(t, l.call())
		return
	}
	var err error
	require.Eventually(t, func() bool { err = l.call(); return err == nil }, patience, tick)
	require.NoError(t, err)
}

// get is a call that GETs url.
func get(client *http.Client, url string) func() error {
	return func() error {
		resp, err := client.Get(url)
		return ok(resp, err)
	}
}

// post is a call that POSTs a body to url, of which nothing may get lost.
func post(client *http.Client, url string) func() error {
	return func() error {
		resp, err := client.Post(url, "text/plain", strings.NewReader(payload))
		return ok(resp, err)
	}
}

const payload = "as it was sent"

// wantPayload answers a post.
func wantPayload(w http.ResponseWriter, r *http.Request) {
	if body, err := io.ReadAll(r.Body); err != nil || string(body) != payload {
		http.Error(w, fmt.Sprintf("got %q, %v", body, err), http.StatusBadRequest)
		return
	}
	writeJSON(w, "{}")
}

func writeJSON(w http.ResponseWriter, body string) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = io.WriteString(w, body)
}

// ok closes resp, and makes an error of a status that is none of success.
func ok(resp *http.Response, err error) error {
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s: %s", resp.Status, body)
	}
	return errors.Join(err, resp.Body.Close())
}

// noSecrets asserts that text carries none of secrets.
func noSecrets(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		require.NotEmpty(t, secret)
		assert.NotContains(t, text, secret)
	}
}
