package interop

// This file tests what others expect of a RoundTripper: one connection for all
// requests, and errors that a retrying client can tell apart. It also tests which
// version and which context x/oauth2's own clients use.

import (
	"context"
	"crypto/tls"
	"errors"
	"net/http"
	"net/http/httptest"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// The client that makes the calls also makes the token requests. It may use only one
// connection per host.
func TestOneConnection(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		start     func(*httptest.Server)
		protocols func(*http.Protocols)
		proto     int
	}{
		{"HTTP/1.1", (*httptest.Server).Start, func(p *http.Protocols) { p.SetHTTP1(true) }, 1},
		{"HTTP/1.1 over TLS", (*httptest.Server).StartTLS, func(p *http.Protocols) { p.SetHTTP1(true) }, 1},
		{"HTTP/2", func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() }, func(p *http.Protocols) { p.SetHTTP2(true) }, 2},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, c.start, wantPayload)
			base := &http.Transport{MaxConnsPerHost: 1, Protocols: new(http.Protocols)}
			c.protocols(base.Protocols)
			if own, ok := a.Client().Transport.(*http.Transport); ok && own.TLSClientConfig != nil {
				base.TLSClientConfig = &tls.Config{RootCAs: own.TLSClientConfig.RootCAs}
			}
			t.Cleanup(base.CloseIdleConnections)
			// Without early refresh: on HTTP/1.1 the calls wait for the connection
			// while the server holds a token request.
			source := a.newSource(t, moovauth.WithHTTPClient(&http.Client{Transport: base}), moovauth.WithEarlyRefresh(0), moovauth.WithTimeout(10*time.Second))
			l := &life{api: a, source: source, call: post(source.Client(), a.URL+"/transfers"), after: replays}
			l.begin(t)
			l.revoke(t)

			refused := a.refused()
			a.tokens.RevokeAll()
			began := time.Now()
			var all sync.WaitGroup
			for range 20 {
				all.Go(func() { assert.NoError(t, l.call()) })
			}
			all.Wait()
			assert.Greater(t, a.refused(), refused)
			assert.Less(t, time.Since(began), 10*time.Second, "no one waited for WithTimeout")
			for _, c2 := range a.seen() {
				assert.Equal(t, c.proto, c2.proto)
			}
		})
	}
}

// retryPolicy does not retry what cannot succeed.
func retryPolicy(ctx context.Context, resp *http.Response, err error) (bool, error) {
	var refused *moovauth.Error
	if errors.As(err, new(*moovauth.HostError)) || errors.As(err, &refused) && !refused.Temporary() {
		return false, err
	}
	return retryablehttp.DefaultRetryPolicy(ctx, resp, err)
}

func TestRetryableHTTPWithAPolicy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name     string
		target   string // "": the API
		answer   int    // of the token endpoint; 0: a token
		attempts int
		as       any
	}{
		{"another host", "https://example.com/", 0, 1, new(*moovauth.HostError)},
		{"plain http", "http://api.moov.io/", 0, 1, new(*moovauth.HostError)},
		{"a wrong secret", "", http.StatusUnauthorized, 1, new(*moovauth.Error)},
		{"wrong scopes", "", http.StatusUnprocessableEntity, 1, new(*moovauth.Error)},
		{"an outage", "", http.StatusServiceUnavailable, 11, nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, (*httptest.Server).Start, nil)
			if c.answer != 0 {
				for range 100 {
					a.tokens.Enqueue(moovtest.Answer{Status: c.answer})
				}
			}
			var attempts int
			counting := a.newSource(t).Client()
			next := counting.Transport
			counting.Transport = roundTripper(func(r *http.Request) (*http.Response, error) { attempts++; return next.RoundTrip(r) })
			retrying := newRetrying(counting)
			retrying.CheckRetry = retryPolicy
			target := c.target
			if target == "" {
				target = a.URL + "/ping"
			}
			_, err := retrying.StandardClient().Get(target)
			require.Error(t, err)
			assert.Equal(t, c.attempts, attempts)
			if c.as != nil {
				assert.ErrorAs(t, err, c.as)
			}
			assert.Empty(t, a.seen())
		})
	}
}

// x/oauth2's own clients send the version of the moovauth.Transport below them, and
// not the source's. The client of oauth2.NewClient sends no version by default.
func TestVersionOfOAuth2Recipes(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	source := a.newSource(t, moovauth.WithVersion("v2026.07.00"))
	versioned := &http.Client{Transport: &moovauth.Transport{Version: "v2026.07.00"}}
	for _, c := range []struct {
		name   string
		client *http.Client
		want   []string
	}{
		{"oauth2.Transport", &http.Client{Transport: &oauth2.Transport{Source: source, Base: &moovauth.Transport{}}}, []string{moovauth.DefaultVersion}},
		{"with Version", &http.Client{Transport: &oauth2.Transport{Source: source, Base: versioned.Transport}}, []string{"v2026.07.00"}},
		{"oauth2.NewClient", oauth2.NewClient(t.Context(), source), nil},
		{"with a client in its context", oauth2.NewClient(context.WithValue(t.Context(), oauth2.HTTPClient, versioned), source), []string{"v2026.07.00"}},
	} {
		require.NoError(t, get(c.client, a.URL+"/ping")(), c.name)
		calls := a.seen()
		assert.Equal(t, c.want, calls[len(calls)-1].header.Values(moovauth.VersionHeader), c.name)
	}
	for _, r := range a.tokens.TokenRequests() {
		assert.Equal(t, "v2026.07.00", r.Header.Get(moovauth.VersionHeader), "token requests have the source's version")
	}
}

// With moovauth.Transport, the wait for a token ends with the request's context. With
// x/oauth2's clients no context ends it, not even NewClient's.
func TestContextOfOAuth2Recipes(t *testing.T) {
	for _, c := range []struct {
		name   string
		client func(ctx context.Context, base http.RoundTripper, source *moovauth.TokenSource) *http.Client
		waited time.Duration
	}{
		{"Transport", func(_ context.Context, base http.RoundTripper, source *moovauth.TokenSource) *http.Client {
			return &http.Client{Transport: &moovauth.Transport{Source: source, Base: base}}
		}, time.Second},
		{"oauth2.Transport", func(_ context.Context, base http.RoundTripper, source *moovauth.TokenSource) *http.Client {
			return &http.Client{Transport: &oauth2.Transport{Source: source, Base: base}}
		}, 5 * time.Second},
		{"oauth2.NewClient", func(ctx context.Context, base http.RoundTripper, source *moovauth.TokenSource) *http.Client {
			return oauth2.NewClient(context.WithValue(ctx, oauth2.HTTPClient, &http.Client{Transport: base}), source)
		}, 5 * time.Second},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := moovtest.NewInMemory(moovtest.WithLatency(5 * time.Second))
				t.Cleanup(server.Close)
				source, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
					moovauth.WithScopes(pingScope), moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client()))
				require.NoError(t, err)
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				client := c.client(ctx, server.Transport(), source)
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/ping", nil)
				require.NoError(t, err)
				began := time.Now()
				_, err = client.Do(req)
				assert.ErrorIs(t, err, context.DeadlineExceeded)
				assert.Equal(t, c.waited, time.Since(began))
				time.Sleep(time.Minute) // until the token request has ended
			})
		})
	}
}

// The Request of the caller's response has the token in its header.
func TestResponsesRequestCarriesTheToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	resp, err := a.newSource(t).Client().Get(a.URL + "/ping")
	require.NoError(t, ok(resp, err))
	assert.Equal(t, "Bearer "+a.lastToken(), resp.Request.Header.Get("Authorization"))
}
