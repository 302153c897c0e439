package interop

// This file tests the package with authorization servers that others wrote: a token,
// its refresh and revocation, and refused requests. Each server is built in its own
// file.

import (
	"bytes"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"

	"github.com/moovauth/moovauth"
)

// Each server knows two clients, both with pingScope. Form encoding would change the
// secret of oddClient.
var (
	plainClient = moovauth.Credentials{ClientID: "client", ClientSecret: "the-client's-secret"}
	oddClient   = moovauth.Credentials{ClientID: "odd-client", ClientSecret: "sl%2Fash+plus&and"}
	clients     = []moovauth.Credentials{plainClient, oddClient}
)

// foreign is an authorization server other than Moov, with an API.
type foreign struct {
	URL  string
	life time.Duration // of access tokens; some servers round it to seconds

	issuesRefresh  bool                      // with client credentials
	decodesBasic   bool                      // the server form-decodes Basic credentials (RFC 6749 §2.3.1)
	refusedRefresh int                       // status of a refused refresh token
	mintRefresh    func(t *testing.T) string // returns a refresh token of plainClient

	mu       sync.Mutex
	requests []foreignRequest
	bearers  []string // tokens that the API has accepted
}

// foreignRequest is a token or revoke request, and the status of its answer.
type foreignRequest struct {
	path   string
	form   url.Values
	basic  bool
	status int
}

// newListener returns a server that listens, and its base URL.
func newListener(t *testing.T) (*httptest.Server, string) {
	t.Helper()
	server := httptest.NewUnstartedServer(nil)
	t.Cleanup(server.Close)
	return server, "http://" + server.Listener.Addr().String()
}

// serve starts server with f's endpoints. alive reports whether an access token is
// valid and has pingScope.
func (f *foreign) serve(server *httptest.Server, token, revoke http.HandlerFunc, alive func(token string) bool) {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /oauth2/token", f.record(token))
	mux.HandleFunc("POST /oauth2/revoke", f.record(revoke))
	mux.HandleFunc("GET /ping", func(w http.ResponseWriter, r *http.Request) {
		bearer, ok := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
		if !ok || !alive(bearer) {
			http.Error(w, "invalid_token", http.StatusUnauthorized)
			return
		}
		f.mu.Lock()
		f.bearers = append(f.bearers, bearer)
		f.mu.Unlock()
		writeJSON(w, "{}")
	})
	server.Config.Handler = mux
	server.Start()
}

func (f *foreign) record(handler http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		r.Body = io.NopCloser(bytes.NewReader(body))
		form, _ := url.ParseQuery(string(body))
		_, _, basic := r.BasicAuth()
		recorder := &statusRecorder{ResponseWriter: w, status: http.StatusOK}
		handler(recorder, r)
		f.mu.Lock()
		defer f.mu.Unlock()
		f.requests = append(f.requests, foreignRequest{r.URL.Path, form, basic, recorder.status})
	}
}

type statusRecorder struct {
	http.ResponseWriter
	status int
}

func (r *statusRecorder) WriteHeader(status int) {
	r.status = status
	r.ResponseWriter.WriteHeader(status)
}

// since returns the requests to path, in order, without the first n requests.
func (f *foreign) since(n int, path string) []foreignRequest {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(f.requests[n:]), func(r foreignRequest) bool { return r.path != path })
}

// grants returns the grant types and statuses of the token requests, without the first
// n requests.
func (f *foreign) grants(n int) (grants []string) {
	for _, r := range f.since(n, "/oauth2/token") {
		grants = append(grants, fmt.Sprintf("%s %d", r.form.Get("grant_type"), r.status))
	}
	return grants
}

func (f *foreign) mark() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.requests)
}

func (f *foreign) lastBearer() string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.bearers[len(f.bearers)-1]
}

func (f *foreign) options(more ...moovauth.Option) []moovauth.Option {
	return append([]moovauth.Option{moovauth.WithBaseURL(f.URL), moovauth.WithOrigin("https://example.com")}, more...)
}

func (f *foreign) newSource(t *testing.T, creds moovauth.Credentials, more ...moovauth.Option) *moovauth.TokenSource {
	t.Helper()
	s, err := moovauth.NewTokenSource(creds, f.options(append([]moovauth.Option{moovauth.WithScopes(pingScope)}, more...)...)...)
	require.NoError(t, err)
	return s
}

// ping calls the API with any token.
func (f *foreign) ping(token string) error {
	source := oauth2.StaticTokenSource(&oauth2.Token{AccessToken: token})
	return get(oauth2.NewClient(context.Background(), source), f.URL+"/ping")()
}

// testServer runs all tests with servers from start, which takes the lifetime of
// tokens. The rollover has its own server, and the other tests share one.
func testServer(t *testing.T, start func(*testing.T, time.Duration) *foreign) {
	f := start(t, time.Hour)
	t.Run("token", f.testToken)
	t.Run("refresh", f.testRefresh)
	t.Run("revocation", f.testRevocation)
	t.Run("refused client", f.testRefusedClient)
	t.Run("refused scope", f.testRefusedScope)
	t.Run("client authentication", f.testClientAuthentication)
	t.Run("rollover", start(t, 4*time.Second).testRollover)
}

func (f *foreign) testToken(t *testing.T) {
	n, before := f.mark(), time.Now()
	source := f.newSource(t, plainClient)
	token, err := source.Token()
	require.NoError(t, err)
	assert.Equal(t, "Bearer", token.TokenType)
	assert.WithinRange(t, token.Expiry, before.Add(f.life-time.Second), time.Now().Add(f.life), "expires_in is in seconds")
	assert.Equal(t, pingScope, token.Extra("scope"))
	assert.Equal(t, f.issuesRefresh, token.RefreshToken != "")
	require.NoError(t, get(source.Client(), f.URL+"/ping")())
	assert.Equal(t, token.AccessToken, f.lastBearer())
	assert.Equal(t, []string{"client_credentials 200"}, f.grants(n))
}

// Some servers revoke an access token as soon as they issue the next one, even before
// the reply has arrived.
func (f *foreign) testRollover(t *testing.T) {
	n := f.mark()
	client := f.newSource(t, plainClient, early).Client()
	require.NoError(t, get(client, f.URL+"/ping")())
	first := f.lastBearer()
	var err error
	require.Eventually(t, func() bool {
		var callers errgroup.Group
		for range 8 {
			callers.Go(get(client, f.URL+"/ping"))
		}
		err = callers.Wait()
		return err != nil || f.lastBearer() != first
	}, patience, tick, "no rollover")
	require.NoError(t, err)
	second := "client_credentials 200"
	if f.issuesRefresh {
		second = "refresh_token 200"
	}
	assert.Equal(t, []string{"client_credentials 200", second}, f.grants(n)[:2])
}

func (f *foreign) testRefresh(t *testing.T) {
	n := f.mark()
	refresh := f.mintRefresh(t)
	source := f.newSource(t, plainClient, moovauth.WithToken(&oauth2.Token{RefreshToken: refresh}))
	require.NoError(t, get(source.Client(), f.URL+"/ping")())
	require.Equal(t, []string{"refresh_token 200"}, f.grants(n))
	token, err := source.Token()
	require.NoError(t, err)
	require.NotEmpty(t, token.RefreshToken)
	require.NotEqual(t, refresh, token.RefreshToken)

	// The used refresh token is refused. The same call then uses the client credentials.
	n = f.mark()
	again := f.newSource(t, plainClient, moovauth.WithToken(&oauth2.Token{RefreshToken: refresh}))
	require.NoError(t, get(again.Client(), f.URL+"/ping")())
	require.Equal(t, []string{fmt.Sprintf("refresh_token %d", f.refusedRefresh), "client_credentials 200"}, f.grants(n))

	f.refusesRefresh(t, refresh)
}

// refusesRefresh asserts that a source which has only this refresh token returns the
// server's refusal.
func (f *foreign) refusesRefresh(t *testing.T, refresh string) {
	t.Helper()
	source, err := moovauth.NewTokenSource(plainClient, f.options(moovauth.WithToken(&oauth2.Token{RefreshToken: refresh}))...)
	require.NoError(t, err)
	n := f.mark()
	_, err = source.Token()
	var refused *moovauth.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, f.refusedRefresh, refused.StatusCode)
	assert.Equal(t, "invalid_grant", refused.Code)
	assert.False(t, refused.Temporary())
	assert.Len(t, f.grants(n), 1)
	noSecrets(t, err.Error(), refresh, plainClient.ClientSecret)
}

func (f *foreign) testRevocation(t *testing.T) {
	source := f.newSource(t, plainClient, moovauth.WithToken(&oauth2.Token{RefreshToken: f.mintRefresh(t)}))
	client := source.Client()
	require.NoError(t, get(client, f.URL+"/ping")())
	token, err := source.Token()
	require.NoError(t, err)
	require.NoError(t, f.ping(token.AccessToken))

	n := f.mark()
	require.NoError(t, source.Revoke(t.Context()))
	var hints []string
	for _, r := range f.since(n, "/oauth2/revoke") {
		assert.Equal(t, http.StatusOK, r.status)
		hints = append(hints, r.form.Get("token_type_hint"))
	}
	assert.Equal(t, []string{"refresh_token", "access_token"}, hints)
	require.ErrorContains(t, f.ping(token.AccessToken), "401")
	f.refusesRefresh(t, token.RefreshToken)

	n = f.mark()
	require.NoError(t, get(client, f.URL+"/ping")())
	assert.Equal(t, []string{"client_credentials 200"}, f.grants(n))

	// The function Revoke revokes a token that came with the client credentials.
	token, err = source.Token()
	require.NoError(t, err)
	require.NoError(t, moovauth.Revoke(t.Context(), plainClient, token.AccessToken, f.options(moovauth.WithTokenTypeHint(moovauth.AccessToken))...))
	require.ErrorContains(t, f.ping(token.AccessToken), "401")
	require.NoError(t, moovauth.Revoke(t.Context(), plainClient, token.AccessToken, f.options()...), "the server does not know the token")
	require.NoError(t, moovauth.Revoke(t.Context(), plainClient, "never-issued", f.options()...))

	// The 401 tells the source that its token was revoked.
	require.NoError(t, get(client, f.URL+"/ping")())
}

func (f *foreign) testRefusedClient(t *testing.T) {
	wrong := moovauth.Credentials{ClientID: plainClient.ClientID, ClientSecret: "another-secret"}
	n := f.mark()
	_, err := f.newSource(t, wrong).Token()
	f.refused(t, err, http.StatusUnauthorized, "invalid_client")
	assert.Equal(t, []string{"client_credentials 401"}, f.grants(n))
	noSecrets(t, err.Error(), wrong.ClientSecret, basic(wrong))

	n = f.mark()
	err = moovauth.Revoke(t.Context(), wrong, "some-token", f.options()...)
	f.refused(t, err, http.StatusUnauthorized, "invalid_client")
	assert.Len(t, f.since(n, "/oauth2/revoke"), 1)
	noSecrets(t, err.Error(), wrong.ClientSecret, basic(wrong), "some-token")
}

func basic(creds moovauth.Credentials) string {
	return base64.StdEncoding.EncodeToString([]byte(creds.ClientID + ":" + creds.ClientSecret))
}

func (f *foreign) testRefusedScope(t *testing.T) {
	n := f.mark()
	_, err := f.newSource(t, plainClient, moovauth.WithScopes(pingScope, "/accounts.write")).Token()
	f.refused(t, err, http.StatusBadRequest, "invalid_scope")
	assert.Equal(t, []string{"client_credentials 400"}, f.grants(n))
}

// refused asserts that err is a permanent refusal, as an *Error and as an
// *oauth2.RetrieveError.
func (f *foreign) refused(t *testing.T, err error, status int, code string) {
	t.Helper()
	var refused *moovauth.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, status, refused.StatusCode)
	assert.Equal(t, code, refused.Code)
	assert.False(t, refused.Temporary())
	var retrieve *oauth2.RetrieveError
	require.True(t, errors.As(err, &retrieve))
	assert.Equal(t, code, retrieve.ErrorCode)
}

// Moov does not form-decode Basic credentials. If a server does, a secret that
// decoding would change must be sent in the body.
func (f *foreign) testClientAuthentication(t *testing.T) {
	inParams := moovauth.WithAuthStyle(oauth2.AuthStyleInParams)
	for _, creds := range clients {
		n := f.mark()
		source := f.newSource(t, creds, inParams)
		require.NoError(t, get(source.Client(), f.URL+"/ping")())
		require.NoError(t, source.Revoke(t.Context()))
		for _, r := range f.since(n, "/oauth2/token") {
			assert.False(t, r.basic)
			assert.Equal(t, creds.ClientSecret, r.form.Get("client_secret"))
		}
		for _, r := range f.since(n, "/oauth2/revoke") {
			assert.False(t, r.basic)
			assert.Equal(t, creds.ClientSecret, r.form.Get("client_secret"))
		}
	}
	err := get(f.newSource(t, oddClient).Client(), f.URL+"/ping")()
	if f.decodesBasic {
		f.refused(t, err, http.StatusUnauthorized, "invalid_client")
	} else {
		require.NoError(t, err)
	}
}
