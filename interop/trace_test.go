package interop

// This file tests that a token request is shared, so that it does not use a caller's
// context. To trace token requests, give WithHTTPClient a client that traces.

import (
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/textproto"
	"net/url"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
)

// hooks counts the events of httptrace.
type hooks struct {
	mu    sync.Mutex
	conns int      // requests that asked for a connection
	wrote []string // the Content-Type of each form; API calls here have none
}

func (h *hooks) trace() *httptrace.ClientTrace {
	return &httptrace.ClientTrace{
		GetConn: func(string) { h.mu.Lock(); h.conns++; h.mu.Unlock() },
		WroteHeaderField: func(name string, value []string) {
			if name == "Content-Type" {
				h.mu.Lock()
				h.wrote = append(h.wrote, value...)
				h.mu.Unlock()
			}
		},
	}
}

func TestCallersTraceSeesNoTokenRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	client := a.newSource(t).Client()
	h := new(hooks)
	ctx := httptrace.WithClientTrace(t.Context(), h.trace())
	for n := range 2 {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/ping", nil)
		require.NoError(t, err)
		resp, err := client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		if n == 0 {
			assert.Equal(t, 1, h.conns, "only the API call")
			a.tokens.RevokeAll() // the next call is refused, and sent again
		}
	}
	assert.Len(t, a.seen(), 3)
	assert.Equal(t, 3, h.conns)
	assert.Empty(t, h.wrote)
}

// A user's RoundTripper can trace token requests.
func TestTokenRequestsAreTracedByTheirClient(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	h := new(hooks)
	tracing := roundTripper(func(r *http.Request) (*http.Response, error) {
		return http.DefaultTransport.RoundTrip(r.WithContext(httptrace.WithClientTrace(r.Context(), h.trace())))
	})
	source := a.newSource(t, moovauth.WithHTTPClient(&http.Client{Transport: tracing}))
	_, err := source.Token()
	require.NoError(t, err)
	require.NoError(t, source.Revoke(t.Context()))
	assert.Equal(t, len(a.tokens.Requests()), h.conns)
	assert.Len(t, h.wrote, len(a.tokens.Requests()))
}

// A reverse proxy has hooks in the API call's context, which forward 1xx replies. The
// token endpoint's 1xx replies do not reach the proxy's client.
func TestTokenEndpointsInformationalReplyStaysInside(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	inside, err := url.Parse(a.URL)
	require.NoError(t, err)
	tokens := a.Config.Handler
	a.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/oauth2/token" {
			w.Header().Set("Link", "</secret.css>; rel=preload")
			w.WriteHeader(http.StatusEarlyHints)
			w.Header().Del("Link")
		}
		tokens.ServeHTTP(w, r)
	})
	proxy := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite:   func(r *httputil.ProxyRequest) { r.SetURL(inside) },
		Transport: &moovauth.Transport{Source: a.newSource(t)},
	})
	t.Cleanup(proxy.Close)
	var hints []int
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, _ textproto.MIMEHeader) error { hints = append(hints, code); return nil },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, proxy.URL+"/ping", nil)
	require.NoError(t, err)
	require.NoError(t, ok(http.DefaultClient.Do(req)))
	assert.Empty(t, hints)
}
