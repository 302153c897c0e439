package interop

// This file has what the tests share: a loopback API that requires a token of Moov's
// in every request, and the steps of a token's life that each client is tested with.

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

	// Such a token is refreshed after about 0.6 s. It is used for 2.7 s, and expires
	// at the server after 3 s.
	shortLife = 3 * time.Second

	patience = 15 * time.Second      // for an event that must happen
	tick     = 20 * time.Millisecond // between two checks
)

// early makes a source refresh a token as early as possible.
var early = moovauth.WithEarlyRefresh(time.Hour)

// api is a loopback server. It has Moov's token and revoke endpoints, and on every
// other path an API that requires a valid token.
type api struct {
	*httptest.Server
	tokens *moovtest.Server

	mu       sync.Mutex    // guards the fields below
	arrivals []arrival     // requests to the API, in order
	held     chan struct{} // token requests wait until it is closed; nil: they do not wait
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

// newAPI starts an API that answers authorised requests with answer, or with an empty
// JSON object if answer is nil. start is a function like (*httptest.Server).Start.
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

// holdsGrant reports whether a token request has arrived since holdGrants.
func (a *api) holdsGrant() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.asked > 0
}

// admit records a request, and reports whether its token is valid.
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

// lastToken returns the token of the last request that was accepted.
func (a *api) lastToken() string {
	for _, c := range slices.Backward(a.seen()) {
		if c.accepted {
			return c.token()
		}
	}
	return ""
}

// refused counts the requests that were not accepted.
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

// newSource returns a source that uses a.
func (a *api) newSource(t *testing.T, opts ...moovauth.Option) *moovauth.TokenSource {
	t.Helper()
	s, err := moovauth.NewTokenSource(a.credentials(), append([]moovauth.Option{
		moovauth.WithScopes(pingScope), moovauth.WithBaseURL(a.URL), moovauth.WithHTTPClient(a.Client()), early,
	}, opts...)...)
	require.NoError(t, err)
	return s
}

// after401 is what happens when the server has revoked a client's token.
type after401 int

const (
	replays after401 = iota // the request is sent again with another token, and the caller sees no 401
	asks                    // the caller sees a 401 until Invalidate is called
	caches                  // like asks, but also until the client's own cache has expired
)

// life is a token's life, with which each client is tested.
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

// rollOver: when the token gets older, callers get another one. No caller waits for
// it, and no request is refused.
func (l *life) rollOver(t *testing.T) {
	t.Helper()
	first := l.api.lastToken()
	release := l.api.holdGrants(t)
	var err error
	require.Eventually(t, func() bool {
		held := l.api.holdsGrant()
		err = l.callAtOnce()
		return err != nil || held
	}, patience, tick, "there was no refresh, or callers waited for it")
	require.NoError(t, err)
	require.Equal(t, first, l.api.lastToken())
	release()
	require.Eventually(t, func() bool {
		err = l.callAtOnce()
		return err != nil || l.api.lastToken() != first
	}, patience, tick, "callers got no other token")
	require.NoError(t, err)
	require.Zero(t, l.api.refused())
	require.NotZero(t, l.api.grants("refresh_token"))
	require.Equal(t, 1, l.api.grants("client_credentials"), "the refresh token was used")

	l.api.tokens.Revoke(first) // as if it had expired already
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

// revoke: no token that the source obtained is valid any more, and the next request
// gets a new token.
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
	require.True(t, strings.HasPrefix(revoked[0], "refresh_token "), "a refresh token can obtain other tokens")

	l.succeed(t)
	require.NotEqual(t, last, l.api.lastToken())
	require.Greater(t, l.api.grants("client_credentials"), granted)
}

// loseTokens: the server itself revokes all tokens, including the refresh tokens.
func (l *life) loseTokens(t *testing.T) {
	t.Helper()
	l.api.tokens.RevokeAll()
	last, refused, granted := l.api.lastToken(), l.api.refused(), l.api.grants("client_credentials")
	if l.after != replays {
		require.Error(t, l.call(), "the token was revoked")
		require.Greater(t, l.api.refused(), refused)
		l.source.Invalidate(last)
	}
	l.succeed(t)
	require.Greater(t, l.api.refused(), refused)
	require.NotEqual(t, last, l.api.lastToken())
	require.Greater(t, l.api.grants("client_credentials"), granted)
}

// succeed: requests succeed again, at once or when the client's cache has expired.
func (l *life) succeed(t *testing.T) {
	t.Helper()
	if l.after != caches {
		require.NoError(t, l.call())
		return
	}
	var err error
	require.Eventually(t, func() bool { err = l.call(); return err == nil }, patience, tick)
	require.NoError(t, err)
}

// get returns a call that sends a GET request to url.
func get(client *http.Client, url string) func() error {
	return func() error {
		resp, err := client.Get(url)
		return ok(resp, err)
	}
}

// post returns a call that sends payload in a POST request to url.
func post(client *http.Client, url string) func() error {
	return func() error {
		resp, err := client.Post(url, "text/plain", strings.NewReader(payload))
		return ok(resp, err)
	}
}

const payload = "as it was sent"

// wantPayload answers a post. It fails if the body is not the payload.
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

// ok closes resp, and returns an error if the status is not 2xx.
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

// noSecrets asserts that text contains none of secrets.
func noSecrets(t *testing.T, text string, secrets ...string) {
	t.Helper()
	for _, secret := range secrets {
		require.NotEmpty(t, secret)
		assert.NotContains(t, text, secret)
	}
}
