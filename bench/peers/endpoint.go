package peers

// The token endpoint that all peers get their tokens from, and an API that
// requests with them go to.

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

// Endpoint is a token endpoint on loopback, over TLS, and knows which of its
// tokens are alive. Its expires_in is in seconds, which Moov does not document
// but x/oauth2 needs.
type Endpoint struct {
	Server *httptest.Server

	lifetime time.Duration
	latency  time.Duration

	down     atomic.Bool
	requests atomic.Int64
	under    atomic.Int64 // requests under way
	ended    atomic.Int64 // when the last one did, in nanoseconds since 1970
	deaths   sync.Map     // access token to the time.Time at which it dies
}

// NewEndpoint starts an endpoint whose tokens live for whole seconds, and which
// answers after latency.
func NewEndpoint(lifetime, latency time.Duration) *Endpoint {
	e := &Endpoint{lifetime: lifetime, latency: latency}
	e.Server = httptest.NewTLSServer(e)
	return e
}

// Config is how a source reaches e.
func (e *Endpoint) Config() Config {
	return Config{TokenURL: e.Server.URL + "/oauth2/token", Client: e.Server.Client()}
}

// SetDown makes e answer 503, or no longer.
func (e *Endpoint) SetDown(down bool) { e.down.Store(down) }

// Requests is how many have come.
func (e *Endpoint) Requests() int64 { return e.requests.Load() }

// Idle is how long ago the last request was answered; 0: one is under way.
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

// API is an API in the process: 200 to a live token of the endpoint, else 401.
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

// NewRequest is an API call such as an SDK makes.
func NewRequest(ctx context.Context, baseURL string) *http.Request {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+"/ping", nil)
	if err != nil {
		panic(err) // the URL is a test server's
	}
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "bench")
	return req
}

// Nowhere answers 200 without looking, always with the same response: it is for
// one goroutine. Last is the request that it had last.
type Nowhere struct {
	Last *http.Request
	resp http.Response
}

func (n *Nowhere) RoundTrip(req *http.Request) (*http.Response, error) {
	n.Last = req
	n.resp = http.Response{StatusCode: http.StatusOK, Body: http.NoBody}
	return &n.resp, nil
}

// InMemory answers token requests without a network, and remembers none of its
// tokens.
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

// retrying makes three attempts at a token request, with the back-off that
// moovauth has: at random up to 200 ms, then up to 400 ms.
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
