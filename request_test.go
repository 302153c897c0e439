package moovauth

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/http/httputil"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

func TestTokenRequestOnTheWire(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithCredentials("public-key", "a+b/c=%20ä"))
	token(t, sourceOf(t, server, WithOrigin("https://example.com"), WithVersion("v2026.07.00"), WithScopes(pingScope, "/fed.read")))

	r := server.TokenRequests()[0]
	assert.Equal(t, http.MethodPost, r.Method)
	assert.Equal(t, "/oauth2/token", r.Path)
	assert.Equal(t, "application/x-www-form-urlencoded", r.Header.Get("Content-Type"))
	assert.Equal(t, "application/json", r.Header.Get("Accept"))
	assert.Equal(t, "v2026.07.00", r.Header.Get("X-Moov-Version"))
	assert.Equal(t, "https://example.com", r.Header.Get("Origin"))
	assert.Equal(t, userAgent, r.Header.Get("User-Agent"))
	assert.Equal(t, "Basic "+base64.StdEncoding.EncodeToString([]byte("public-key:a+b/c=%20ä")), r.Header.Get("Authorization"), "not form-encoded")
	assert.Equal(t, "grant_type=client_credentials&scope=%2Fping.read+%2Ffed.read", r.Body)
}

func TestRefreshRequestOnTheWire(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	first := token(t, s)
	s.Invalidate(first.AccessToken)
	token(t, s)
	assert.Equal(t, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {first.RefreshToken}}, server.TokenRequests()[1].Form)
}

func TestCredentialsInTheBody(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server, WithAuthStyle(oauth2.AuthStyleInParams))
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	require.Len(t, server.Requests(), 3)
	for _, r := range server.Requests() {
		assert.Equal(t, server.ClientID, r.Form.Get("client_id"))
		assert.Equal(t, server.ClientSecret, r.Form.Get("client_secret"))
		assert.Empty(t, r.Header.Get("Authorization"))
	}
}

func TestNoOriginUnlessConfigured(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	token(t, sourceOf(t, server))
	assert.NotContains(t, server.TokenRequests()[0].Header, "Origin")
}

func TestBaseURLWithAPath(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	gateway := answering(t, http.StripPrefix("/moov", server).ServeHTTP)
	s := sourceOf(t, server, WithBaseURL(gateway.URL+"/moov/"), WithHTTPClient(gateway.Client()))
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	assert.Len(t, server.Requests(), 3)
}

func TestUserAgentNamesTheVersionOfTheChangelog(t *testing.T) {
	t.Parallel()
	changelog, err := os.ReadFile("CHANGELOG.md")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(changelog), "\n## ")
	version, _, _ := strings.Cut(rest, " ")
	assert.Equal(t, "moovauth/"+version, userAgent)
}

// gaps returns the times between the token requests that server received.
func gaps(server *moovtest.Server) (all []time.Duration) {
	seen := server.TokenRequests()
	for i := range seen[1:] {
		all = append(all, seen[i+1].Time.Sub(seen[i].Time))
	}
	return all
}

func TestTemporaryFailureIsTriedThreeTimes(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 421, 425, 429, 500, 502, 503, 504} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			server.SetAnswer(&moovtest.Answer{Status: status})
			_, err := sourceOf(t, server).Token()
			require.ErrorContains(t, err, fmt.Sprintf("answered %d", status))
			require.ErrorContains(t, err, "after 3 attempts")
			assertFlags(t, err, true, false)
			waits := gaps(server)
			require.Len(t, waits, 2)
			assert.LessOrEqual(t, waits[0], 200*time.Millisecond)
			assert.LessOrEqual(t, waits[1], 400*time.Millisecond)
		})
	}
}

func TestSecondAttemptSucceeds(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 421, 425, 429, 500, 503} {
		server := onLoopback(t)
		server.Enqueue(moovtest.Answer{Status: status})
		token(t, noJitter(sourceOf(t, server)))
		assert.Len(t, server.TokenRequests(), 2, status)
	}
}

func TestPermanentFailureIsTriedOnce(t *testing.T) {
	t.Parallel()
	for _, status := range []int{302, 400, 401, 403, 404, 405, 410, 422} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			server.SetAnswer(&moovtest.Answer{Status: status})
			_, err := sourceOf(t, server).Token()
			assertFlags(t, err, false, false)
			assert.Len(t, server.TokenRequests(), 1, status)
		})
	}
}

func TestBackOffHasFullJitter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		first, second := make(map[time.Duration]bool), make(map[time.Duration]bool)
		var longest time.Duration
		for range 100 {
			server := moovtest.NewInMemory()
			server.SetAnswer(&moovtest.Answer{Status: 503})
			_, err := sourceOf(t, server).Token()
			require.Error(t, err)
			waits := gaps(server)
			first[waits[0]], second[waits[1]] = true, true
			longest = max(longest, waits[1])
		}
		assert.Greater(t, len(first), 50)
		assert.Greater(t, len(second), 50)
		assert.Greater(t, longest, 200*time.Millisecond, "the back-off doubles")
	})
}

func TestRevocationIsRetriedLikeATokenRequest(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := noJitter(sourceOf(t, server))
	token(t, s)
	server.Enqueue(moovtest.Answer{Status: 503}, moovtest.Answer{Status: 421})
	require.NoError(t, s.Revoke(t.Context()))
	assert.Len(t, server.RevokeRequests(), 4)

	server.Enqueue(moovtest.Answer{Status: 400})
	require.Error(t, Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL)))
	assert.Len(t, server.RevokeRequests(), 5)
}

func TestCancelledRevokeDoesNotWaitForItsNextAttempt(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"20"}}})
		ctx, cancel := context.WithCancel(t.Context())
		time.AfterFunc(time.Second, cancel)
		began := time.Now()
		err := Revoke(ctx, credentialsOf(server), "x", WithBaseURL(server.URL), WithHTTPClient(server.Client()))
		require.ErrorIs(t, err, context.Canceled)
		require.ErrorContains(t, err, "429")
		assert.Equal(t, time.Second, time.Since(began))
	})
}

func TestRetryAfterReplacesTheBackOff(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		header http.Header
		want   time.Duration
	}{
		"seconds":                 {http.Header{"Retry-After": {"7"}}, 7 * time.Second},
		"the same value twice":    {http.Header{"Retry-After": {"120, 120"}}, 2 * time.Minute},
		"two values in one line":  {http.Header{"Retry-After": {"30,120"}}, 2 * time.Minute},
		"two lines":               {http.Header{"Retry-After": {"120", "30"}}, 2 * time.Minute},
		"a date":                  {http.Header{"Retry-After": {"Sat, 01 Jan 2000 12:00:07 GMT"}, "Date": {"Sat, 01 Jan 2000 12:00:00 GMT"}}, 7 * time.Second},
		"X-Retry-In":              {http.Header{"X-Retry-In": {"7000"}}, 7 * time.Second},
		"X-Retry-In, a duration":  {http.Header{"X-Retry-In": {"7s"}}, 7 * time.Second},
		"Retry-After, X-Retry-In": {http.Header{"Retry-After": {"3"}, "X-Retry-In": {"7s"}}, 7 * time.Second},
	} {
		for _, status := range []int{429, 503} {
			t.Run(fmt.Sprint(name, ", ", status), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server := inMemory(t)
					server.Enqueue(moovtest.Answer{Status: status, Header: c.header})
					began := time.Now()
					token(t, sourceOf(t, server, WithTimeout(5*time.Minute)))
					assert.GreaterOrEqual(t, time.Since(began), c.want)
					assert.LessOrEqual(t, time.Since(began), c.want*5/4, "spread over a quarter")
				})
			})
		}
	}
}

func TestRetryAfterLongerThanTheTimeoutFailsAtOnce(t *testing.T) {
	t.Parallel()
	for asked, want := range map[string]time.Duration{"40": 40 * time.Second, "99999999999999999999": time.Hour} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			server.SetAnswer(&moovtest.Answer{Status: 503, Header: http.Header{"Retry-After": {asked}}})
			s := sourceOf(t, server)
			began := time.Now()
			_, err := s.Token()
			require.ErrorContains(t, err, "not retried: the next attempt would be due in")
			assert.Zero(t, time.Since(began))
			assert.Len(t, server.TokenRequests(), 1)
			until := s.Stats().CoolDownUntil
			assert.GreaterOrEqual(t, until, began.Add(want), "the source waits as long as it was asked")
			assert.LessOrEqual(t, until, began.Add(want*5/4))
		})
	}
}

// pool is a transport which reports that each request is sent on a reused
// connection, or on a new one. It counts the calls to CloseIdleConnections.
type pool struct {
	http.RoundTripper
	reused bool
	closed atomic.Int64
}

func (p *pool) RoundTrip(r *http.Request) (*http.Response, error) {
	httptrace.ContextClientTrace(r.Context()).GotConn(httptrace.GotConnInfo{Reused: p.reused})
	return p.RoundTripper.RoundTrip(r)
}

func (p *pool) CloseIdleConnections() { p.closed.Add(1) }

// pooled returns a pool in front of server, and the option to use it.
func pooled(server *moovtest.Server, reused bool) (Option, *pool) {
	p := &pool{RoundTripper: server.Transport(), reused: reused}
	return WithHTTPClient(&http.Client{Transport: p}), p
}

func TestSlowEndpointIsNotAFailure(t *testing.T) {
	t.Parallel()
	for _, latency := range []time.Duration{11 * time.Second, 15 * time.Second, 20 * time.Second} {
		for name, c := range map[string]struct {
			opts     []Option
			reused   bool
			requests []string
			early    time.Duration // how long an abandoned attempt lasts
		}{
			"new connection":               {nil, false, []string{grantClientCredentials}, 0},
			"reused connection":            {nil, true, []string{grantClientCredentials, grantClientCredentials}, 5 * time.Second},
			"new connection, no scopes":    {[]Option{WithScopes(), WithToken(&oauth2.Token{RefreshToken: "refresh"})}, false, []string{grantRefreshToken}, 0},
			"reused connection, no scopes": {[]Option{WithScopes(), WithToken(&oauth2.Token{RefreshToken: "refresh"})}, true, []string{grantRefreshToken}, 0},
		} {
			t.Run(fmt.Sprint(name, ", ", latency), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server := inMemory(t)
					answer := moovtest.Answer{Latency: latency, Body: `{"access_token":"x","expires_in":900}`}
					server.SetAnswer(&answer)
					client, connections := pooled(server, c.reused)
					s := noJitter(sourceOf(t, server, append(c.opts, client)...))
					began := time.Now()
					token(t, s)
					assert.Equal(t, c.requests, grantTypes(server))
					assert.EqualValues(t, len(c.requests)-1, connections.closed.Load(), "idle connections are closed once")
					took := latency + c.early
					if c.early > 0 {
						took += firstBackOff
					}
					assert.Equal(t, took, time.Since(began))
				})
			})
		}
	}
}

func TestAttemptOnAReusedConnectionIsAbandonedOnceInAGrant(t *testing.T) {
	t.Parallel()
	for timeout, first := range map[time.Duration]time.Duration{
		30 * time.Second: 5 * time.Second,
		time.Minute:      10 * time.Second,
		6 * time.Second:  2 * time.Second,
		time.Second:      time.Second, // no time is left for another attempt
	} {
		t.Run(timeout.String(), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				client, connections := pooled(server, true)
				server.SetAnswer(&moovtest.Answer{Latency: time.Hour})
				s := noJitter(sourceOf(t, server, client, WithTimeout(timeout)))
				for call := range int64(2) { // the next grant may abandon an attempt again
					began, before := time.Now(), len(server.TokenRequests())
					_, err := s.Token()
					require.ErrorIs(t, err, context.DeadlineExceeded)
					require.ErrorContains(t, err, "not done within "+timeout.String()+" (see WithTimeout)")
					assertFlags(t, err, true, true)
					assert.Equal(t, timeout, time.Since(began))
					seen := server.TokenRequests()[before:]
					if first < timeout {
						require.Len(t, seen, 2)
						assert.Equal(t, first+firstBackOff, seen[1].Time.Sub(seen[0].Time))
						assert.Equal(t, call+1, connections.closed.Load())
					} else {
						assert.Len(t, seen, 1)
					}
					time.Sleep(time.Hour)
				}
			})
		})
	}
}

func TestAbandonedRefreshIsFollowedByClientCredentials(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithReuseDetection())
		client, _ := pooled(server, true)
		s := sourceOf(t, server, client)
		token(t, s)
		time.Sleep(time.Hour)
		server.SetLatency(11 * time.Second)
		began := time.Now()
		assert.True(t, server.Alive(token(t, s).AccessToken))
		assert.Equal(t, 16*time.Second+firstBackOff, time.Since(began), "only the first attempt is abandoned")
		assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantClientCredentials}, grantTypes(server))
	})
}

func TestRevokeRequestOnADeadConnectionIsRepeated(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		client, connections := pooled(server, true)
		s := sourceOf(t, server, client)
		token(t, s)
		server.Enqueue(moovtest.Answer{Latency: time.Hour})
		require.NoError(t, s.Revoke(t.Context()))
		assert.Len(t, server.RevokeRequests(), 3)
		assert.EqualValues(t, 1, connections.closed.Load())
		assertAllDead(t, server)
	})
}

// slowBody is a body whose reads take 10 s each.
type slowBody struct {
	io.ReadCloser
	ctx context.Context
}

func (b slowBody) Read(p []byte) (int, error) {
	if err := sleep(b.ctx, 10*time.Second); err != nil {
		return 0, err
	}
	return b.ReadCloser.Read(p)
}

func TestReplyThatHasBegunIsNotAbandoned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		client, connections := pooled(server, true)
		connections.RoundTripper = roundTripper(func(r *http.Request) (*http.Response, error) {
			resp, err := server.Transport().RoundTrip(r)
			resp.Body = slowBody{resp.Body, r.Context()}
			return resp, err
		})
		token(t, sourceOf(t, server, client))
		assert.Len(t, server.TokenRequests(), 1)
	})
}

// protocols maps the protocols of real connections to the http2 argument of
// overTLS.
var protocols = map[string]bool{"HTTP/1.1": false, "HTTP/2": true}

// overTLS returns a TLS server with handler, and a transport that trusts it.
func overTLS(t testing.TB, http2 bool, handler http.Handler) (*httptest.Server, *http.Transport) {
	t.Helper()
	server := httptest.NewUnstartedServer(handler)
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.EnableHTTP2 = http2
	server.StartTLS()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: roots}, ForceAttemptHTTP2: http2, MaxIdleConnsPerHost: 10}
	t.Cleanup(func() {
		transport.CloseIdleConnections()
		server.CloseClientConnections()
		server.Close()
	})
	return server, transport
}

// nat forwards TCP connections. After forget, it silently drops everything that
// arrives on the connections that existed then.
type nat struct {
	net.Listener
	mu       sync.Mutex
	accepted int
	forgot   *atomic.Bool // whether to drop the data of connections that are made from now on
	open     []net.Conn
}

func natTo(t testing.TB, server *httptest.Server) *nat {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	n := &nat{Listener: l, forgot: new(atomic.Bool)}
	go func() {
		for {
			client, err := l.Accept()
			if err != nil {
				return
			}
			upstream, err := net.Dial("tcp", server.Listener.Addr().String())
			if err != nil {
				client.Close()
				continue
			}
			n.mu.Lock()
			n.accepted++
			forgot := n.forgot
			n.open = append(n.open, client, upstream)
			n.mu.Unlock()
			go forward(upstream, client, forgot)
			go forward(client, upstream, forgot)
		}
	}()
	t.Cleanup(func() {
		l.Close()
		n.mu.Lock()
		defer n.mu.Unlock()
		for _, conn := range n.open {
			conn.Close()
		}
	})
	return n
}

func forward(to, from net.Conn, forgot *atomic.Bool) {
	buffer := make([]byte, 16<<10)
	for {
		read, err := from.Read(buffer)
		switch {
		case forgot.Load() && err == nil:
		case forgot.Load():
			return
		case err != nil:
			to.Close()
			return
		default:
			_, _ = to.Write(buffer[:read])
		}
	}
}

func (n *nat) forget() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.forgot.Store(true)
	n.forgot = new(atomic.Bool)
}

func (n *nat) connections() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.accepted
}

// A NAT or a load balancer drops the connections silently. Without the rule for
// reused connections, the kernel would send the request again for a quarter of
// an hour.
func TestDeadConnectionsCostOneAttempt(t *testing.T) {
	if testing.Short() {
		t.Skip("takes 6 s")
	}
	t.Parallel()
	for name, c := range map[string]struct {
		http2 bool
		opts  []Option
		moov  []moovtest.Option
		pool  int // idle connections that die
	}{
		"HTTP/2, client credentials": {true, nil, []moovtest.Option{moovtest.WithoutRefreshTokens()}, 1},
		"HTTP/1.1, refresh token":    {false, []Option{WithTimeout(15 * time.Second)}, []moovtest.Option{moovtest.WithReuseDetection()}, 5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			moov := onLoopback(t, c.moov...)
			var arrived sync.WaitGroup
			arrived.Add(5)
			server, transport := overTLS(t, c.http2, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/together" {
					arrived.Done()
					arrived.Wait()
					return
				}
				moov.ServeHTTP(w, r)
			}))
			nat := natTo(t, server)
			client := &http.Client{Transport: transport}
			baseURL := "https://" + nat.Addr().String()
			s := sourceOf(t, moov, append(c.opts, WithBaseURL(baseURL), WithHTTPClient(client))...)
			first := token(t, s)
			var calls sync.WaitGroup
			for range 5 {
				calls.Go(func() {
					resp, err := client.Get(baseURL + "/together")
					if assert.NoError(t, err) {
						resp.Body.Close()
					}
				})
			}
			calls.Wait()
			require.Equal(t, c.pool, nat.connections())

			nat.forget()
			s.Invalidate(first.AccessToken)
			second, err := s.Token()
			require.NoError(t, err, "the first grant succeeds")
			assert.True(t, moov.Alive(second.AccessToken))
			assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(moov), "the abandoned attempt has not arrived")
			assert.Equal(t, c.pool+1, nat.connections(), "one new connection")
		})
	}
}

// A service mesh has lost the reply of its upstream and answers itself. The
// upstream received the request and has used up the refresh token.
func TestTokensStayAliveIfAProxyAnswersForALostReply(t *testing.T) {
	t.Parallel()
	for name, http2 := range protocols {
		for _, status := range []int{500, 502, 503} {
			t.Run(fmt.Sprint(name, ", ", status), func(t *testing.T) {
				t.Parallel()
				moov := onLoopback(t, moovtest.WithReuseDetection())
				upstream, err := url.Parse(moov.URL)
				require.NoError(t, err)
				mesh := httputil.NewSingleHostReverseProxy(upstream)
				mesh.ErrorHandler = func(w http.ResponseWriter, _ *http.Request, _ error) { w.WriteHeader(status) }
				front, transport := overTLS(t, http2, mesh)
				s := noJitter(sourceOf(t, moov, WithBaseURL(front.URL), WithHTTPClient(&http.Client{Transport: transport})))

				first := token(t, s)
				moov.Enqueue(moovtest.Answer{Lost: true})
				s.Invalidate(first.AccessToken)
				second := token(t, s)
				assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantClientCredentials}, grantTypes(moov), "the refresh token is sent once")
				for _, issued := range []string{first.AccessToken, second.AccessToken, second.RefreshToken} {
					assert.True(t, moov.Alive(issued), "all tokens that callers got stay alive")
				}
			})
		}
	}
}

func TestRefreshTokenIsSentAgainIfItCannotHaveBeenUsed(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithReuseDetection())
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	closed.Close()
	var down atomic.Bool
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
		if down.Swap(false) {
			addr = closed.Addr().String()
		}
		return new(net.Dialer).DialContext(ctx, network, addr)
	}}
	s := noJitter(sourceOf(t, server, WithHTTPClient(&http.Client{Transport: transport})))
	first := token(t, s)
	down.Store(true)
	server.Enqueue(moovtest.Answer{Status: 429})
	s.Invalidate(first.AccessToken)
	token(t, s)
	assert.False(t, down.Load())
	seen := server.TokenRequests()
	assert.Equal(t, []string{grantClientCredentials, grantRefreshToken, grantRefreshToken}, grantTypes(server))
	assert.Equal(t, seen[1].Form, seen[2].Form)
}

// counting counts the requests that go through it.
type counting struct {
	http.RoundTripper
	requests atomic.Int64
}

func (c *counting) RoundTrip(r *http.Request) (*http.Response, error) {
	c.requests.Add(1)
	return c.RoundTripper.RoundTrip(r)
}

func TestWrongTLSConfigurationIsAPermanentFailure(t *testing.T) {
	t.Parallel()
	const certificates, address = "check WithBaseURL, the clock, and the root certificates", "check the scheme and the port of WithBaseURL"
	for protocol, http2 := range protocols {
		for name, c := range map[string]struct {
			change func(t *testing.T, config *tls.Config, url string) (baseURL string)
			text   string
			advice string
		}{
			"unknown CA": {func(_ *testing.T, config *tls.Config, url string) string {
				config.RootCAs = x509.NewCertPool()
				return url
			}, "certificate signed by unknown authority", certificates},
			"wrong host name": {func(_ *testing.T, config *tls.Config, url string) string {
				config.ServerName = "moov.test"
				return url
			}, "not moov.test", certificates},
			"expired certificate": {func(_ *testing.T, config *tls.Config, url string) string {
				config.Time = func() time.Time { return time.Now().AddDate(200, 0, 0) }
				return url
			}, "certificate has expired", certificates},
			"TLS to a plain port": {func(t *testing.T, _ *tls.Config, _ string) string {
				return strings.Replace(answering(t, nil).URL, "http:", "https:", 1)
			}, "HTTP response to HTTPS client", address},
			"TLS to another protocol": {func(t *testing.T, _ *tls.Config, _ string) string {
				return "https://" + saying(t, "SSH-2.0-OpenSSH_9.9\r\n", hangUp)
			}, "first record does not look like a TLS handshake", address},
			"plain HTTP to a TLS port": {func(_ *testing.T, _ *tls.Config, url string) string {
				return strings.Replace(url, "https:", "http:", 1)
			}, "answered 400", "Client sent an HTTP request to an HTTPS server"},
		} {
			t.Run(name+", "+protocol, func(t *testing.T) {
				t.Parallel()
				moov := onLoopback(t)
				server, transport := overTLS(t, http2, moov)
				baseURL := c.change(t, transport.TLSClientConfig, server.URL)
				wire := &counting{RoundTripper: transport}
				opts := []Option{WithBaseURL(baseURL), WithHTTPClient(&http.Client{Transport: wire})}
				_, err := sourceOf(t, moov, opts...).Token()
				require.ErrorContains(t, err, c.text)
				require.ErrorContains(t, err, c.advice)
				assertFlags(t, err, false, false)
				assert.EqualValues(t, 1, wire.requests.Load())

				err = Revoke(t.Context(), credentialsOf(moov), "x", opts...)
				require.ErrorContains(t, err, c.advice)
				assertFlags(t, err, false, false)
				assert.EqualValues(t, 2, wire.requests.Load())
				assert.Empty(t, moov.Requests())
			})
		}
	}
}

// saying returns the address of a server that sends text on each connection,
// whatever the request is, and then calls end.
func saying(t testing.TB, text string, end func(*net.TCPConn)) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = conn.Read(make([]byte, 1<<10))
				_, _ = io.WriteString(conn, text)
				end(conn.(*net.TCPConn))
			}()
		}
	}()
	return l.Addr().String()
}

func hangUp(conn *net.TCPConn) {
	_ = conn.CloseWrite()
	_, _ = io.Copy(io.Discard, conn) // otherwise the unread rest of the request causes a reset
}

func reset(conn *net.TCPConn) { _ = conn.SetLinger(0) }

// silence sends nothing until the client closes the connection.
func silence(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) }

// endless repeats text until the client closes the connection.
func endless(text string) func(*net.TCPConn) {
	return func(conn *net.TCPConn) {
		for err := error(nil); err == nil; {
			_, err = io.WriteString(conn, text)
		}
	}
}

const (
	ok         = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
	freshToken = "a-token-that-no-one-knows"
	freshReply = `{"access_token":"` + freshToken + `","token_type":"Bearer","expires_in":900}`
)

// TestFaultsOnTheWire has more cases.
func TestBrokenRepliesAreTemporaryFailures(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		text string
		end  func(*net.TCPConn)
		want string
	}{
		"reset before the header": {"", reset, "token request (client_credentials) to http://"},
		"close during the header": {ok, hangUp, "EOF"},
		"not HTTP":                {"SSH-2.0-OpenSSH_9.9\r\n", hangUp, "malformed HTTP response"},
		"not HTTP, but a token":   {freshReply + "\r\n\r\n", hangUp, "not shown: it may hold a token"},
		"short body":              {ok + "Content-Length: 900\r\n\r\n" + freshReply, hangUp, "unexpected EOF"},
		"broken chunk":            {ok + "Transfer-Encoding: chunked\r\n\r\nzz\r\n" + freshReply + "\r\n", hangUp, "reading the reply"},
		"an endless body":         {ok + "Connection: close\r\n\r\n" + freshReply, endless(strings.Repeat(" ", 1<<16)), "larger than 1048576 bytes"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire := &counting{RoundTripper: &http.Transport{}}
			s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("http://"+saying(t, c.text, c.end)), WithHTTPClient(&http.Client{Transport: wire}))
			require.NoError(t, err)
			_, err = noJitter(s).Token()
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "after 3 attempts")
			assertFlags(t, err, true, false)
			assert.EqualValues(t, 3, wire.requests.Load())
			assert.NotContains(t, err.Error(), freshToken)
			assert.Less(t, len(err.Error()), 1000)
		})
	}
}

func TestSilenceEndsWithTheTimeout(t *testing.T) {
	t.Parallel()
	for name, text := range map[string]string{
		"at once":           "",
		"during the header": ok,
		"during the body":   ok + "Content-Length: 900\r\n\r\n" + freshReply,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			wire := &counting{RoundTripper: &http.Transport{}}
			s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("http://"+saying(t, text, silence)),
				WithHTTPClient(&http.Client{Transport: wire}), WithTimeout(300*time.Millisecond))
			require.NoError(t, err)
			_, err = s.Token()
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "not done within 300ms (see WithTimeout)")
			assertFlags(t, err, true, true)
			assert.EqualValues(t, 1, wire.requests.Load(), "an attempt on a new connection has all of the time")
		})
	}
}

func TestSwitchingProtocolsIsARefusal(t *testing.T) {
	t.Parallel()
	address := saying(t, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", silence)
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("http://"+address), WithHTTPClient(&http.Client{Transport: &http.Transport{}}))
	require.NoError(t, err)
	_, err = s.Token()
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, 101, refused.StatusCode)
	assertFlags(t, err, false, false)
}

func TestRefusalWithABrokenBodyIsARefusal(t *testing.T) {
	t.Parallel()
	for name, body := range map[string]struct {
		text string
		end  func(*net.TCPConn)
	}{
		"cut off":  {"Content-Length: 900\r\n\r\n" + `{"error":"inv`, hangUp},
		"too long": {"Connection: close\r\n\r\n" + `{"error":"`, endless(strings.Repeat("x", 1<<16))},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			address := saying(t, "HTTP/1.1 401 Unauthorized\r\n"+body.text, body.end)
			s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("http://"+address), WithHTTPClient(&http.Client{Transport: &http.Transport{}}))
			require.NoError(t, err)
			_, err = s.Token()
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, 401, refused.StatusCode)
			assert.ErrorContains(t, err, "check Credentials")
		})
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			t.Parallel()
			elsewhere := onLoopback(t)
			server := onLoopback(t)
			redirect := moovtest.Answer{Status: status, Header: http.Header{"Location": {elsewhere.URL + "/oauth2/token"}}}
			server.Enqueue(redirect, redirect)
			client := server.Client()
			client.CheckRedirect = func(*http.Request, []*http.Request) error { return nil } // which would follow redirects
			_, err := sourceOf(t, server, WithHTTPClient(client)).Token()
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, status, refused.StatusCode)
			require.ErrorContains(t, err, "WithBaseURL")
			require.ErrorContains(t, Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL), WithHTTPClient(client)), "WithBaseURL")
			assert.Empty(t, elsewhere.Requests())
		})
	}
}

func TestStreamResetOverHTTP2IsATemporaryFailure(t *testing.T) {
	t.Parallel()
	moov := onLoopback(t)
	server, transport := overTLS(t, true, moov)
	moov.Enqueue(moovtest.Answer{Lost: true})
	token(t, noJitter(sourceOf(t, moov, WithBaseURL(server.URL), WithHTTPClient(&http.Client{Transport: transport}))))
	assert.Len(t, moov.TokenRequests(), 2)
}

// countingLimiter is a Limiter whose Wait takes a given time. It records the
// calls of its methods.
type countingLimiter struct {
	mu        sync.Mutex
	wait      time.Duration
	source    *TokenSource // if set, each Wait records its phase
	waits     int
	phases    []string
	deadlines int // the number of contexts with a deadline
	refused   []time.Duration
	unused    int
}

func (l *countingLimiter) Wait(ctx context.Context) error {
	l.mu.Lock()
	wait := l.wait
	l.waits++
	if l.source != nil {
		l.phases = append(l.phases, l.source.Stats().Phase)
	}
	if _, ok := ctx.Deadline(); ok {
		l.deadlines++
	}
	l.mu.Unlock()
	return sleep(ctx, wait)
}

func (l *countingLimiter) Refused(retryAfter time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, retryAfter)
}

func (l *countingLimiter) Unused() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unused++
}

// set sets how long Wait takes from now on.
func (l *countingLimiter) set(wait time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.wait = wait
}

// plainLimiter is a Limiter without the optional methods, as a rate.Limiter is.
type plainLimiter func(ctx context.Context) error

func (f plainLimiter) Wait(ctx context.Context) error { return f(ctx) }

// busy returns n answers with status 429.
func busy(n int, retryAfter string) []moovtest.Answer {
	answers := make([]moovtest.Answer, n)
	for i := range answers {
		answers[i] = moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {retryAfter}}}
	}
	return answers
}

func TestEachTokenAndRevokeRequestWaitsForTheLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		l := new(countingLimiter)
		opts := []Option{WithBaseURL(server.URL), WithHTTPClient(server.Client()), WithLimiter(l)}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()

		s := sourceOf(t, server, opts...)
		server.Enqueue(moovtest.Answer{Status: http.StatusServiceUnavailable})
		_, err := s.TokenContext(ctx)
		require.NoError(t, err)
		assert.Equal(t, 2, l.waits, "a second attempt waits, too")
		one, err := RequestToken(ctx, credentialsOf(server), append(opts, WithScopes(pingScope))...)
		require.NoError(t, err)
		require.NoError(t, Revoke(ctx, credentialsOf(server), one.AccessToken, opts...))
		require.NoError(t, s.Revoke(ctx))
		assert.Equal(t, 6, l.waits)
		assert.Len(t, server.Requests(), l.waits)

		token(t, s)
		time.Sleep(time.Hour)
		server.Enqueue(moovtest.Answer{Status: http.StatusNotFound})
		token(t, s)
		assert.Equal(t, 9, l.waits, "a refresh that is refused is followed by client credentials, which wait too")
		assert.Zero(t, l.deadlines, "a rate.Limiter refuses at once if it sees a deadline before its turn")
		assert.Zero(t, l.unused)
		assert.Empty(t, l.refused)
	})
}

func TestAPICallsDoNotConcernTheLimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		server.Handle("/busy", "", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Retry-After", "3600")
			w.WriteHeader(http.StatusTooManyRequests)
		}))
		l := new(countingLimiter)
		s := sourceOf(t, server, WithLimiter(l))
		for range 3 {
			resp, err := s.Client().Get(server.URL + "/busy")
			require.NoError(t, err)
			resp.Body.Close()
			assert.Equal(t, http.StatusTooManyRequests, resp.StatusCode, "the caller gets the 429 unchanged")
		}
		assert.Equal(t, 1, l.waits, "for the token")
		assert.Empty(t, l.refused)
	})
}

func TestTimeInTheQueueDoesNotCountTowardsTheTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(4*time.Second))
		s := sourceOf(t, server, WithLimiter(&countingLimiter{wait: 10 * time.Minute}), WithTimeout(5*time.Second))
		began := time.Now()
		token(t, s)
		assert.Equal(t, 10*time.Minute+4*time.Second, time.Since(began))
		began = time.Now()
		server.SetLatency(time.Second)
		require.NoError(t, s.Revoke(t.Context()), "two tokens, and ten minutes in the queue for each")
		assert.Equal(t, 20*time.Minute+2*time.Second, time.Since(began))

		server.SetLatency(time.Hour)
		_, err := s.Token()
		assert.ErrorIs(t, err, context.DeadlineExceeded, "the request itself is bounded")
	})
}

func TestCallerLeavesTheQueueAndTheGrantKeepsItsPlace(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(&countingLimiter{wait: time.Minute}))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		_, err := s.TokenContext(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(began))
		token(t, s)
		assert.Equal(t, time.Minute, time.Since(began))
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestRequestIsRepeatedAfterEach429WhileACallerWaits(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		l := &countingLimiter{wait: time.Second}
		cache := newLockingCache()
		s := sourceOf(t, server, WithLimiter(l), WithCache(cache))
		server.Enqueue(append(busy(10, "20"), busy(1, "")...)...)
		began := time.Now()
		token(t, s)
		assert.Equal(t, 12*time.Second+10*20*time.Second+firstBackOff, time.Since(began), "without jitter, since the limiter is told of each 429")
		assert.Equal(t, 12, l.waits)
		require.Len(t, l.refused, 11)
		assert.Equal(t, 20*time.Second, l.refused[0])
		assert.Zero(t, l.refused[10], "the answer did not say how long")

		server.Enqueue(busy(2, "")...)
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, server)
		assert.Len(t, l.refused, 13)
		assert.Zero(t, l.unused)
	})
}

func TestWaitAfterA429HasJitterIfTheLimiterIsNotToldOfIt(t *testing.T) {
	t.Parallel()
	for retryAfter, want := range map[string]time.Duration{"": firstBackOff / 2, "20": 22500 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			s := sourceOf(t, server, WithLimiter(plainLimiter(func(context.Context) error { return nil })))
			s.core.config.random = func() float64 { return .5 }
			server.Enqueue(busy(1, retryAfter)...)
			began := time.Now()
			token(t, s)
			assert.Equal(t, want, time.Since(began))
		})
	}
}

func Test429sAreNotCountedAsFailuresIfThereIsALimiter(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server, WithLimiter(new(countingLimiter)))
		server.Enqueue(busy(3, "")...)
		token(t, s)
		assert.Equal(t, []uint64{1, 0}, []uint64{s.Stats().ClientCredentials, s.Stats().ClientCredentialsFailed})
		time.Sleep(13 * time.Minute)
		server.Enqueue(busy(1, "")...)
		token(t, s) // starts a refresh in the background, for which no one waits
		synctest.Wait()
		assert.Zero(t, s.Stats().RefreshesFailed)
		assert.ErrorContains(t, s.Stats().LastError, "429")
		s.Invalidate(token(t, s).AccessToken)
		server.Enqueue(busy(2, "")...)
		token(t, s)
		assert.Equal(t, []uint64{0, 1}, []uint64{s.Stats().RefreshesFailed, s.Stats().Refreshes})
	})
}

func TestOnlyA429IsRepeatedWithoutEnd(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]int{http.StatusUnauthorized: 1, http.StatusServiceUnavailable: maxAttempts} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			l := new(countingLimiter)
			server.SetAnswer(&moovtest.Answer{Status: status})
			_, err := sourceOf(t, server, WithLimiter(l)).Token()
			require.Error(t, err)
			assert.Len(t, server.TokenRequests(), want)
			assert.Equal(t, want, l.waits)
			assert.Empty(t, l.refused)
		})
	}
}

func TestGrantThatNoOneWaitsForEndsAtA429(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) { // the caller has left
		server := inMemory(t)
		server.SetAnswer(&busy(1, "10")[0])
		s := sourceOf(t, server, WithLimiter(new(countingLimiter)))
		ctx, cancel := context.WithTimeout(t.Context(), 55*time.Second)
		defer cancel()
		_, err := s.TokenContext(ctx)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		time.Sleep(time.Hour)
		assert.Len(t, server.TokenRequests(), 7, "one at first, one every 10 s, and the last one after the caller has left")
	})
	synctest.Test(t, func(t *testing.T) { // a refresh in the background
		server := inMemory(t)
		l := new(countingLimiter)
		s := sourceOf(t, server, WithLimiter(l))
		old := token(t, s)
		time.Sleep(13 * time.Minute)
		server.SetAnswer(&busy(1, "10")[0])
		token(t, s)
		time.Sleep(time.Minute)
		synctest.Wait()
		assert.Len(t, server.TokenRequests(), 2)
		assert.Equal(t, []time.Duration{10 * time.Second}, l.refused)
		assert.Equal(t, old.AccessToken, token(t, s).AccessToken)
	})
}

func TestRefreshLeavesTheQueueIfACallerNeedsAToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		l := new(countingLimiter)
		s := sourceOf(t, server, WithLimiter(l))
		l.source = s
		old := token(t, s)
		time.Sleep(14 * time.Minute)
		l.set(30 * time.Minute)
		token(t, s) // starts a refresh
		time.Sleep(2 * time.Minute)
		l.set(0)
		began := time.Now()
		assert.NotEqual(t, old.AccessToken, token(t, s).AccessToken)
		assert.Zero(t, time.Since(began), "a caller does not wait behind a refresh whose token has expired")
		assert.Equal(t, []string{PhaseNone, PhaseStale, PhaseNone}, l.phases, "the caller's own grant waits while there is no token")
		assert.Len(t, server.TokenRequests(), 2)
		assert.Zero(t, l.unused, "the refresh had no turn")
		assert.Nil(t, s.Stats().LastError)
	})
}

func TestTurnOfARefreshIsReturnedIfTheTokenHasExpired(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		l := new(countingLimiter)
		s := sourceOf(t, server, WithLimiter(l))
		token(t, s)
		time.Sleep(14 * time.Minute)
		l.set(30 * time.Minute)
		token(t, s) // starts a refresh, and no one needs a token later
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Len(t, server.TokenRequests(), 1)
		assert.Equal(t, 1, l.unused)
	})
}

func TestRevokeDoesNotWaitForAGrantInTheQueue(t *testing.T) {
	t.Parallel()
	for name, background := range map[string]bool{"with a caller": false, "in the background": true} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				l := new(countingLimiter)
				s := sourceOf(t, server, WithLimiter(l))
				tok := token(t, s)
				time.Sleep(14 * time.Minute)
				l.set(time.Minute)
				var caller sync.WaitGroup
				if !background {
					s.Invalidate(tok.AccessToken)
				}
				caller.Go(func() { token(t, s) }) // if its grant gives way to Revoke, the caller starts another
				synctest.Wait()
				l.set(0)
				began := time.Now()
				require.NoError(t, s.Revoke(t.Context()))
				assert.Zero(t, time.Since(began))
				assert.False(t, server.Alive(tok.RefreshToken))
				caller.Wait()
			})
		})
	}
}

func TestErrorOfTheLimiterFailsOneGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		broken := true
		s := sourceOf(t, server, WithLimiter(plainLimiter(func(context.Context) error {
			if broken {
				return errors.New("burst exceeded")
			}
			return nil
		})))
		_, err := s.Token()
		require.ErrorContains(t, err, "waiting for the Limiter: burst exceeded")
		var kind interface {
			Temporary() bool
			Timeout() bool
		}
		require.ErrorAs(t, err, &kind)
		assert.True(t, kind.Temporary())
		assert.False(t, kind.Timeout())
		broken = false
		time.Sleep(time.Second)
		token(t, s)
		assert.Len(t, server.TokenRequests(), 1)
	})
}

// pacer lets requests go one after the other, in the order in which they came.
// If a turn is returned unused, the next request gets its place.
type pacer struct {
	countingLimiter
	interval time.Duration
	due      chan time.Time // the time of the next turn
	reused   int            // unused turns that went to another request
}

func newPacer(interval time.Duration) *pacer {
	p := &pacer{interval: interval, due: make(chan time.Time, 1)}
	p.due <- time.Now()
	return p
}

func (p *pacer) Wait(ctx context.Context) error {
	due := <-p.due
	if !p.reuse() {
		time.Sleep(time.Until(due))
		due = time.Now().Add(p.interval)
	}
	p.due <- due
	return p.countingLimiter.Wait(ctx)
}

func (p *pacer) reuse() (ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if ok = p.reused < p.unused; ok {
		p.reused++
	}
	return ok
}

// keyLocks is a memoryCache with a lock for each key.
type keyLocks struct {
	memoryCache
	locks sync.Map
}

func (c *keyLocks) Lock(ctx context.Context, key string) (func(), error) {
	held, _ := c.locks.LoadOrStore(key, make(chan struct{}, 1))
	return (&lockingCache{held: held.(chan struct{})}).Lock(ctx, key)
}

// The replicas of a service start at once, each with a source for each account.
func TestReplicasWithACacheAndALimiterMakeOneRequestForEachAccount(t *testing.T) {
	t.Parallel()
	accounts := 500
	if testing.Short() {
		accounts = 50
	}
	for name, c := range map[string]struct {
		replicas int
		cache    Cache
		most     int // the most token requests that are allowed
	}{
		"8 replicas without a lock": {8, new(memoryCache), accounts + 20},
		"4 replicas with a lock":    {4, new(keyLocks), accounts},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithLatency(50*time.Millisecond))
				limiter := newPacer(25 * time.Millisecond) // 40 requests a second, as Moov allows
				var sources []*TokenSource
				for range c.replicas {
					for account := range accounts {
						sources = append(sources, sourceOf(t, server, WithCache(c.cache), WithLimiter(limiter),
							WithScopes(fmt.Sprintf("/accounts/%d/transfers.read", account))))
					}
				}
				rand.Shuffle(len(sources), func(i, j int) { sources[i], sources[j] = sources[j], sources[i] })
				for _, tok := range together(t, sources) {
					assert.NotEmpty(t, tok.AccessToken)
				}
				requests := len(server.TokenRequests())
				assert.GreaterOrEqual(t, requests, accounts)
				assert.LessOrEqual(t, requests, c.most)
				assert.Equal(t, len(sources), limiter.waits)
				assert.Equal(t, limiter.waits-requests, limiter.unused, "each unused turn is returned")
			})
		})
	}
}
