package interop

// This file uses our Transport around other RoundTrippers, and inside a client that
// wraps it.

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// flaky answers every other request with a 503.
func flaky(answer http.HandlerFunc) http.HandlerFunc {
	var n atomic.Int64
	return func(w http.ResponseWriter, r *http.Request) {
		if n.Add(1)%2 == 1 {
			http.Error(w, "come again", http.StatusServiceUnavailable)
			return
		}
		answer(w, r)
	}
}

// newRetrying returns a client that uses base and retries after a millisecond.
func newRetrying(base *http.Client) *retryablehttp.Client {
	c := retryablehttp.NewClient()
	c.Logger = nil
	c.RetryWaitMin, c.RetryWaitMax, c.RetryMax = time.Millisecond, time.Millisecond, 10
	c.HTTPClient = base
	return c
}

func TestRetryableHTTPAroundTransport(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, flaky(wantPayload), moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	client := newRetrying(source.Client()).StandardClient()
	l := &life{api: a, source: source, call: post(client, a.URL+"/transfers"), after: replays}
	l.run(t)
}

// A RoundTripper must not follow redirects: the client above it does. So retryablehttp,
// used as a RoundTripper, needs a CheckRedirect.
func TestRetryableHTTPInsideTransport(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, flaky(wantPayload), moovtest.WithLifetime(shortLife))
	inner := &http.Client{CheckRedirect: followNone}
	retrying := &http.Client{Transport: &retryablehttp.RoundTripper{Client: newRetrying(inner)}}
	source := a.newSource(t, moovauth.WithHTTPClient(retrying))
	l := &life{api: a, source: source, call: post(source.Client(), a.URL+"/transfers"), after: replays}
	l.run(t)
}

func followNone(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }

// The client retries often, but the token endpoint, which asked to wait, gets only one
// request.
func TestRetryableHTTPDoesNotHammerTheTokenEndpoint(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	a.tokens.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"60"}}})
	client := newRetrying(a.newSource(t).Client()).StandardClient()
	_, err := client.Get(a.URL + "/ping")
	assert.ErrorContains(t, err, "answered 429")
	assert.ErrorContains(t, err, "giving up after 11 attempt(s)")
	assert.Len(t, a.tokens.TokenRequests(), 1)
	assert.Empty(t, a.seen())
}

func TestHTTP2(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name string
		base func(config *tls.Config) http.RoundTripper
	}{
		{"x-net-http2", func(config *tls.Config) http.RoundTripper {
			//lint:ignore SA1019 http2.Transport is still in use, so it is tested here
			return &http2.Transport{TLSClientConfig: config}
		}},
		{"net-http", func(config *tls.Config) http.RoundTripper {
			protocols := new(http.Protocols)
			protocols.SetHTTP2(true)
			return &http.Transport{TLSClientConfig: config, Protocols: protocols}
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() }, wantPayload, moovtest.WithLifetime(shortLife))
			roots := x509.NewCertPool()
			roots.AddCert(a.Certificate())
			base := c.base(&tls.Config{RootCAs: roots})
			source := a.newSource(t, moovauth.WithHTTPClient(&http.Client{Transport: base}))
			client := source.Client()
			t.Cleanup(client.CloseIdleConnections)
			l := &life{api: a, source: source, call: post(client, a.URL+"/transfers"), after: replays}
			l.run(t)
			for _, c := range a.seen() {
				assert.Equal(t, 2, c.proto)
			}
		})
	}
}

func TestProxy(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name   string
		start  func(*httptest.Server)
		method string // of the requests that reach the proxy
	}{
		{"http", (*httptest.Server).Start, http.MethodPost},
		{"https", (*httptest.Server).StartTLS, http.MethodConnect},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			a := newAPI(t, c.start, wantPayload, moovtest.WithLifetime(shortLife))
			p := newProxy(t)
			base := a.Client().Transport.(*http.Transport).Clone()
			base.Proxy = http.ProxyURL(p.url)
			source := a.newSource(t, moovauth.WithHTTPClient(&http.Client{Transport: base}))
			client := source.Client()
			t.Cleanup(client.CloseIdleConnections)
			l := &life{api: a, source: source, call: post(client, a.URL+"/transfers"), after: replays}
			l.run(t)

			for _, c := range a.seen() {
				assert.NotContains(t, c.header, "Proxy-Authorization")
			}
			seen := p.seen()
			require.NotEmpty(t, seen)
			for _, r := range seen {
				assert.Equal(t, c.method, r.Method)
				assert.Equal(t, a.Listener.Addr().String(), r.Host)
				user, _, _ := parseProxyAuthorization(r)
				assert.Equal(t, "proxy-user", user)
				if c.method == http.MethodConnect {
					assert.NotContains(t, r.Header, "Authorization", "the token is sent only in the tunnel")
				}
			}
		})
	}
}

// proxy is a forward proxy with a password.
type proxy struct {
	url *url.URL

	mu       sync.Mutex
	requests []*http.Request
}

func newProxy(t *testing.T) *proxy {
	t.Helper()
	p := new(proxy)
	forward := &httputil.ReverseProxy{Rewrite: func(*httputil.ProxyRequest) {}}
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		p.mu.Lock()
		p.requests = append(p.requests, r.Clone(r.Context()))
		p.mu.Unlock()
		if r.Method == http.MethodConnect {
			tunnel(w, r.Host)
			return
		}
		forward.ServeHTTP(w, r)
	}))
	t.Cleanup(server.Close)
	var err error
	p.url, err = url.Parse(server.URL)
	require.NoError(t, err)
	p.url.User = url.UserPassword("proxy-user", "proxy-password")
	return p
}

func (p *proxy) seen() []*http.Request {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.requests
}

// tunnel copies bytes to and from host until one end closes the connection.
func tunnel(w http.ResponseWriter, host string) {
	there, err := net.Dial("tcp", host)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadGateway)
		return
	}
	defer there.Close()
	here, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		return
	}
	defer here.Close()
	if _, err := io.WriteString(here, "HTTP/1.1 200 OK\r\n\r\n"); err != nil {
		return
	}
	done := make(chan struct{}, 2)
	for _, way := range [][2]net.Conn{{here, there}, {there, here}} {
		go func() {
			_, _ = io.Copy(way[0], way[1])
			done <- struct{}{}
		}()
	}
	<-done
}

func parseProxyAuthorization(r *http.Request) (user, password string, ok bool) {
	basic := &http.Request{Header: http.Header{"Authorization": r.Header.Values("Proxy-Authorization")}}
	return basic.BasicAuth()
}
