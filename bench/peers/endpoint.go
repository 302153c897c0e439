package peers

// This file is the token endpoint that all peers use, and an API that accepts its
// tokens.

import (
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// TokenSize is the length of every access token, in bytes.
const TokenSize = 900

// Endpoint is a token endpoint on loopback, over TLS. It knows which of its tokens
// are valid. Its expires_in is in seconds, because x/oauth2 does not understand the
// timestamp that Moov documents.
type Endpoint struct {
	Server *httptest.Server

	lifetime time.Duration
	latency  time.Duration

	down     atomic.Bool
	requests atomic.Int64
	under    atomic.Int64 // requests in progress
	ended    atomic.Int64 // when the last request ended, in nanoseconds since 1970
	deaths   sync.Map     // the time.Time at which each access token expires
}

// NewEndpoint starts an endpoint that answers after latency. lifetime is that of
// its tokens, in whole seconds.
func NewEndpoint(lifetime, latency time.Duration) *Endpoint {
	e := &Endpoint{lifetime: lifetime, latency: latency}
	e.Server = httptest.NewTLSServer(e)
	return e
}

// Config returns the configuration of a source that uses e.
func (e *Endpoint) Config() Config {
	return Config{TokenURL: e.Server.URL + "/oauth2/token", Client: e.Server.Client()}
}

// SetDown sets whether e answers 503 to each request.
func (e *Endpoint) SetDown(down bool) { e.down.Store(down) }

// Requests returns how many requests e has received.
func (e *Endpoint) Requests() int64 { return e.requests.Load() }

// Idle returns the time since the last request ended, or 0 while a request is in
// progress.
func (e *Endpoint) Idle() time.Duration {
	if e.under.Load() > 0 {
		return 0
	}
	return time.Since(time.Unix(0, e.ended.Load()))
}

// ServeHTTP implements [http.Handler].
func (e *Endpoint) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	e.requests.Add(1)
	e.under.Add(1)
	defer func() {
		e.ended.Store(time.Now().UnixNano())
		e.under.Add(-1)
	}()
	if id, secret, ok := r.BasicAuth(); !ok || id != clientID || secret != clientSecret || r.FormValue("scope") != scope {
		http.Error(w, "unknown client or scope", http.StatusUnauthorized)
		return
	}
	down := e.down.Load()
	if e.latency > 0 {
		select {
		case <-time.After(e.latency):
		case <-r.Context().Done():
			return
		}
	}
	w.Header().Set("Content-Type", "application/json")
	if down {
		w.WriteHeader(http.StatusServiceUnavailable)
		_, _ = io.WriteString(w, `{"error":"temporarily_unavailable"}`)
		return
	}
	token := newToken()
	e.deaths.Store(token, time.Now().Add(e.lifetime))
	_, _ = io.WriteString(w, reply(token, e.lifetime))
}

var tokens atomic.Int64

func newToken() string {
	number := fmt.Sprintf("token-%d-", tokens.Add(1))
	return number + strings.Repeat("x", TokenSize-len(number))
}

func reply(token string, lifetime time.Duration) string {
	return fmt.Sprintf(`{"access_token":%q,"token_type":"Bearer","expires_in":%d}`, token, int(lifetime.Seconds()))
}

// API returns an API in this process. It answers 200 to a valid token of e, and
// 401 to anything else.
func (e *Endpoint) API() http.RoundTripper { return api{e} }

type api struct{ *Endpoint }

func (a api) RoundTrip(req *http.Request) (*http.Response, error) {
	resp := &http.Response{StatusCode: http.StatusUnauthorized, Header: make(http.Header), Body: http.NoBody, Request: req}
	token, _ := strings.CutPrefix(req.Header.Get("Authorization"), "Bearer ")
	if death, ok := a.deaths.Load(token); ok && time.Now().Before(death.(time.Time)) {
		resp.StatusCode = http.StatusOK
	}
	return resp, nil
}

// NewRequest returns an API call like an SDK's.
func NewRequest(ctx context.Context, baseURL string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+"/ping", nil)
	if err != nil {
		panic(err) // the URL is a test server's
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "bench")
	return req
}

// Nowhere answers 200 to every request. It reuses its response, so only one
// goroutine may use it. Last is the last request.
type Nowhere struct {
	Last *http.Request
	resp http.Response
}

func (n *Nowhere) RoundTrip(req *http.Request) (*http.Response, error) {
	n.Last = req
	n.resp = http.Response{StatusCode: http.StatusOK, Body: http.NoBody}
	return &n.resp, nil
}

// InMemory answers token requests without a network. It does not keep its tokens.
type InMemory struct{}

func (InMemory) RoundTrip(req *http.Request) (*http.Response, error) {
	if req.Body != nil {
		_, _ = io.Copy(io.Discard, req.Body)
		req.Body.Close()
	}
	return &http.Response{
		StatusCode: http.StatusOK,
		Header:     http.Header{"Content-Type": {"application/json"}},
		Body:       io.NopCloser(strings.NewReader(reply(newToken(), time.Hour))),
		Request:    req,
	}, nil
}

// retrying makes up to three attempts at a token request, with moovauth's back-off:
// a random wait of up to 200 ms, then of up to 400 ms.
type retrying struct{ base http.RoundTripper }

func (r *retrying) RoundTrip(req *http.Request) (*http.Response, error) {
	backOff := 200 * time.Millisecond
	for {
		resp, err := r.base.RoundTrip(req)
		if backOff > 400*time.Millisecond || err == nil && resp.StatusCode < 500 || req.GetBody == nil {
			return resp, err
		}
		if err == nil {
			_, _ = io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
		select {
		case <-time.After(rand.N(backOff)):
		case <-req.Context().Done():
			return nil, context.Cause(req.Context())
		}
		backOff *= 2
		body, err := req.GetBody()
		if err != nil {
			return nil, err
		}
		req = req.Clone(req.Context())
		req.Body = body
	}
}
