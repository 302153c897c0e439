package moovauth

import (
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

// body is a request or response body that counts how often it is closed.
type body struct {
	io.Reader
	closed atomic.Int64
}

func (b *body) Close() error { b.closed.Add(1); return nil }

// sink is a RoundTripper that keeps the last request and answers 200.
type sink struct{ last *http.Request }

func (s *sink) RoundTrip(r *http.Request) (*http.Response, error) {
	s.last = r
	if r.Body != nil {
		r.Body.Close()
	}
	return empty(r, http.StatusOK), nil
}

// empty returns an answer to r without a body.
func empty(r *http.Request, status int) *http.Response {
	return &http.Response{StatusCode: status, Header: make(http.Header), Body: http.NoBody, Request: r}
}

// static is a source of one token. It has no methods TokenContext and
// Invalidate.
var static = oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "static"})

// sourceFunc adapts a function to oauth2.TokenSource.
type sourceFunc func() (*oauth2.Token, error)

func (f sourceFunc) Token() (*oauth2.Token, error) { return f() }

// otherSource is a token source of another package, with the optional methods
// that Transport looks for. After each call to Invalidate, it returns its next
// token.
type otherSource struct {
	tokens []string
	ctx    context.Context
	calls  []string
}

func newOtherSource(tokens ...string) *otherSource { return &otherSource{tokens: tokens} }

func (s *otherSource) Token() (*oauth2.Token, error) { panic("Transport must call TokenContext") }

func (s *otherSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	s.ctx = ctx
	s.calls = append(s.calls, "token")
	return &oauth2.Token{AccessToken: s.tokens[0], TokenType: "bearer"}, nil
}

func (s *otherSource) Invalidate(accessToken string) {
	s.calls = append(s.calls, "invalidate "+accessToken)
	s.tokens = s.tokens[1:]
}

// refusing returns a Base that answers 401 with body to the token "one", and
// 200 to all others.
func refusing(body io.ReadCloser) roundTripper {
	return func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Authorization") != "Bearer one" {
			return new(sink).RoundTrip(r)
		}
		if r.Body != nil {
			r.Body.Close()
		}
		return &http.Response{Status: "401 No", StatusCode: 401, Header: http.Header{"X": {"y"}}, ContentLength: 1000, Uncompressed: true, Body: body, Request: r}, nil
	}
}

// startingWith returns a source that already has a token and sends its token
// requests to server.
func startingWith(t testing.TB, server *moovtest.Server, accessToken string, opts ...Option) *TokenSource {
	return sourceOf(t, server, append(opts, WithToken(&oauth2.Token{AccessToken: accessToken}))...)
}

// roundTrip sends a GET request for target through tr.
func roundTrip(t testing.TB, tr *Transport, target string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, target, nil)
	require.NoError(t, err)
	return tr.RoundTrip(req)
}

// get sends a GET request for target with client, and returns the status.
func get(t testing.TB, client *http.Client, target string) int {
	t.Helper()
	resp, err := client.Get(target)
	if !assert.NoError(t, err) {
		return 0
	}
	resp.Body.Close()
	return resp.StatusCode
}

// alive reports whether server accepts the token of r.
func alive(server *moovtest.Server, r *http.Request) bool {
	return server.Alive(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer "))
}

func TestZeroTransportOnlyAddsTheVersion(t *testing.T) {
	t.Parallel()
	var got http.Header
	server := answering(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	assert.Equal(t, http.StatusOK, get(t, &http.Client{Transport: new(Transport)}, server.URL))
	assert.Equal(t, DefaultVersion, got.Get(VersionHeader))
	assert.NotContains(t, got, "Authorization")
}

func TestVersionOfARequest(t *testing.T) {
	t.Parallel()
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithVersion("v2026.07.00"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	for _, c := range []struct {
		name      string
		transport *Transport
		own, want string
	}{
		{"default", &Transport{}, "", DefaultVersion},
		{"another source", &Transport{Source: static}, "", DefaultVersion},
		{"the source's", &Transport{Source: s}, "", "v2026.07.00"},
		{"the transport's", &Transport{Source: s, Version: "dev"}, "", "dev"},
		{"the caller's", &Transport{Source: s, Version: "dev"}, "v2025.01.00", "v2025.01.00"},
	} {
		base := new(sink)
		c.transport.Base = base
		req, err := http.NewRequest(http.MethodGet, DefaultBaseURL, nil)
		require.NoError(t, err)
		if c.own != "" {
			req.Header.Set(VersionHeader, c.own)
		}
		_, err = c.transport.RoundTrip(req)
		require.NoError(t, err)
		assert.Equal(t, []string{c.want}, base.last.Header[VersionHeader], c.name)
	}
}

func TestTransportNamesTheFieldThatIsWrong(t *testing.T) {
	t.Parallel()
	var none *TokenSource
	for want, tr := range map[string]*Transport{
		"Transport.Version": {Version: "2024"},
		"Transport.Hosts":   {Source: static, Hosts: []string{"https://api.moov.io"}},
		"nil or zero":       {Source: none},
		"NewTokenSource":    {Source: new(TokenSource)},
	} {
		base := new(sink)
		tr.Base = base
		for range 2 {
			_, err := roundTrip(t, tr, DefaultBaseURL)
			assert.ErrorContains(t, err, want)
		}
		assert.Nil(t, base.last)
	}
}

// This test changes http.DefaultTransport, so it does not run in parallel.
func TestDefaultTransportNeedsABase(t *testing.T) {
	before := http.DefaultTransport
	defer func() { http.DefaultTransport = before }()
	server := onLoopback(t)
	tr := new(Transport)
	http.DefaultTransport = tr
	_, err := http.Get(server.URL + "/ping")
	assert.ErrorContains(t, err, "http.DefaultTransport is this Transport, so that it would call itself: set Base")
	http.DefaultClient.CloseIdleConnections() // does not call itself either
	assert.Empty(t, server.Requests())

	http.DefaultTransport = &Transport{Base: before}
	assert.Equal(t, http.StatusUnauthorized, get(t, http.DefaultClient, server.URL+"/ping"))
	assert.Equal(t, DefaultVersion, server.Requests()[0].Header.Get(VersionHeader))
}

func TestNestedTransports(t *testing.T) {
	t.Parallel()
	base := new(sink)
	inner := &Transport{Source: static, Base: base, Version: "v2025.01.00"}
	outer := &Transport{Source: oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "outer"}), Base: inner, Version: "v2026.01.00"}
	_, err := roundTrip(t, outer, DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, []string{"Bearer static"}, base.last.Header["Authorization"], "the token of the inner transport")
	assert.Equal(t, []string{"v2026.01.00"}, base.last.Header[VersionHeader], "the version of the outer transport, which the inner one takes for the caller's")
}

func TestRequestWithoutAURL(t *testing.T) {
	t.Parallel()
	for _, tr := range []*Transport{{Base: new(sink)}, {Base: new(sink), Source: static}} {
		_, err := tr.RoundTrip(new(http.Request))
		assert.ErrorContains(t, err, "no URL")
	}
}

func TestCallersRequestIsNotModified(t *testing.T) {
	t.Parallel()
	base := new(sink)
	tr := &Transport{Base: base, Source: static}
	req, err := http.NewRequest(http.MethodGet, DefaultBaseURL, nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Basic of-the-caller")
	req.Header["X-Many"] = append(make([]string, 0, 8), "a", "b", "c", "d")
	req.Header["x-moov-versioN"] = nil // tells net/http to leave the header out
	req.Header["Authorizatiom"] = []string{"of the same length"}
	for n := range 20 {
		req.Header.Set(fmt.Sprintf("X-Header-Nr-%02d", n), strconv.Itoa(n))
	}
	before := req.Clone(req.Context())
	_, err = tr.RoundTrip(req)
	require.NoError(t, err)
	assert.Equal(t, before, req)

	want := before.Header.Clone()
	want.Set("Authorization", "Bearer static") // replaces the caller's
	assert.Equal(t, want, base.last.Header, "all other headers are sent as they are")
	for name, values := range base.last.Header {
		base.last.Header[name] = append(values, "added by Base")
	}
	_, err = tr.RoundTrip(req)
	require.NoError(t, err)
	assert.Equal(t, want, base.last.Header, "what Base adds to one request is not in the next")
	assert.Equal(t, before, req)

	req.Header = nil
	_, err = tr.RoundTrip(req)
	require.NoError(t, err)
	assert.Nil(t, req.Header)
	assert.Equal(t, http.Header{"Authorization": {"Bearer static"}, VersionHeader: {DefaultVersion}}, base.last.Header)
}

func TestHeaderNamesAreComparedWithoutCase(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name      string
		transport *Transport
		target    string
		redirect  bool
		want      string // the only Authorization that is sent
	}{
		{"with a token", &Transport{Source: static}, DefaultBaseURL, false, "Bearer static"},
		{"redirect on the same host", &Transport{Source: static}, DefaultBaseURL, true, "Bearer static"},
		{"redirect elsewhere", &Transport{Source: static}, "https://sub.api.moov.io", true, ""},
		{"redirect to http", &Transport{Source: static}, "http://api.moov.io", true, ""},
		{"to the token endpoint", &Transport{Source: static}, DefaultBaseURL + "/oauth2/token", false, "Basic of-the-caller"},
		{"without a source", &Transport{}, DefaultBaseURL, false, "Basic of-the-caller"},
	} {
		for _, spelling := range []func(string) string{strings.ToLower, strings.ToUpper, func(s string) string { return s[:3] + strings.ToUpper(s[3:]) }} {
			base := new(sink)
			c.transport.Base = base
			req, err := http.NewRequest(http.MethodGet, c.target, nil)
			require.NoError(t, err)
			req.Header[spelling("Authorization")] = []string{"Basic of-the-caller"}
			req.Header[spelling(VersionHeader)] = []string{"v2025.01.00"}
			if c.redirect {
				req.Response = new(http.Response)
			}
			_, err = c.transport.RoundTrip(req)
			require.NoError(t, err)
			var authorizations, versions []string
			for name, values := range base.last.Header {
				switch http.CanonicalHeaderKey(name) {
				case "Authorization":
					authorizations = append(authorizations, values...)
				case VersionHeader:
					versions = append(versions, values...)
				}
			}
			assert.Equal(t, c.want, strings.Join(authorizations, ", "), c.name)
			assert.Equal(t, []string{"v2025.01.00"}, versions, c.name)
		}
	}
}

func TestEndpointsKeepTheirAuthorization(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	client := sourceOf(t, server).Client()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {pingScope}, "token": {"x"}}
	for _, path := range []string{"/oauth2/token", "/oauth2/revoke"} {
		req, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(form.Encode()))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(server.ClientID, server.ClientSecret)
		resp, err := client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, 2, resp.StatusCode/100)
	}
	for _, r := range server.Requests() {
		assert.True(t, strings.HasPrefix(r.Header.Get("Authorization"), "Basic "))
		assert.Equal(t, DefaultVersion, r.Header.Get(VersionHeader))
	}
	assert.Len(t, server.Requests(), 2, "no token was requested for them")
}

func TestSourceMayUseItsOwnTransport(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	tr := new(Transport)
	s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: tr}))
	tr.Source = s
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
}

func TestRoundTripAllocatesNoMoreThanItHasTo(t *testing.T) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	ok := &http.Response{StatusCode: 200, Body: http.NoBody}
	tr := &Transport{Source: s, Base: roundTripper(func(*http.Request) (*http.Response, error) { return ok, nil })}
	req, err := http.NewRequest(http.MethodGet, DefaultBaseURL+"/ping", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "application/json")
	allocs := testing.AllocsPerRun(100, func() { _, _ = tr.RoundTrip(req) })
	assert.LessOrEqual(t, allocs, 4.0, "the request, its header's two parts, and what the header holds")
}

// A poller may make each request with the context of the last one. If each
// round trip added a value to the context, each call would cost more than the
// one before.
func TestContextDoesNotGrowWithEachCall(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	server.Revoke(token(t, s).AccessToken) // so that the first call is made twice
	client := s.Client()
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "the caller's")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/ping", nil)
	require.NoError(t, err)
	for range 20 {
		resp, err := client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		require.True(t, ctx == resp.Request.Context(), "the context has grown")
		req, err = http.NewRequestWithContext(resp.Request.Context(), http.MethodGet, server.URL+"/ping", nil)
		require.NoError(t, err)
	}
	resp, err := client.Do(req)
	require.NoError(t, err)
	resp.Body.Close()
	resp, err = client.Do(resp.Request) // this request has already passed through the Transport
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusOK, resp.StatusCode)
}

func TestRedirectElsewhereIsFollowedWithoutTheToken(t *testing.T) {
	t.Parallel()
	var got http.Header
	elsewhere := answering(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	server := onLoopback(t)
	api := answering(t, func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, elsewhere.URL+"/there", http.StatusFound)
		case "/moved":
			http.Redirect(w, r, "/ping", http.StatusFound)
		default:
			server.ServeHTTP(w, r)
		}
	})
	client := sourceOf(t, server, WithBaseURL(api.URL)).Client()
	assert.Equal(t, http.StatusOK, get(t, client, api.URL+"/moved"), "a redirect on the same host keeps the token")
	assert.Equal(t, http.StatusOK, get(t, client, api.URL+"/away"))
	assert.NotNil(t, got)
	assert.NotContains(t, got, "Authorization")

	_, err := client.Get(elsewhere.URL)
	assert.ErrorContains(t, err, "Transport.Hosts", "a direct request there is an error")
}

// When net/http follows a redirect to a subdomain, or from https to http, it
// keeps the caller's Authorization.
func TestRedirectElsewhereIsFollowedWithoutTheCallersCredentials(t *testing.T) {
	t.Parallel()
	for _, elsewhere := range []string{"http://api.moov.io/x", "https://sub.api.moov.io/x"} {
		var seen []*http.Request
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			seen = append(seen, r)
			resp := empty(r, http.StatusOK)
			if len(seen) == 1 {
				resp.StatusCode = http.StatusTemporaryRedirect
				resp.Header.Set("Location", elsewhere)
			}
			return resp, nil
		})
		client := &http.Client{Transport: &Transport{Source: static, Base: base}}
		req, err := http.NewRequest(http.MethodGet, DefaultBaseURL+"/ping", nil)
		require.NoError(t, err)
		req.SetBasicAuth("public", "secret")
		_, err = client.Do(req)
		require.NoError(t, err)
		require.Len(t, seen, 2)
		assert.Equal(t, "Bearer static", seen[0].Header.Get("Authorization"))
		assert.NotContains(t, seen[1].Header, "Authorization")
		assert.Equal(t, DefaultVersion, seen[1].Header.Get(VersionHeader))
	}
}

func TestReplayAfter401(t *testing.T) {
	t.Parallel()
	const text = "what is sent"
	for _, c := range []struct {
		name     string
		body     func() io.Reader
		replayed bool
	}{
		{"no body", func() io.Reader { return nil }, true},
		{"http.NoBody", func() io.Reader { return http.NoBody }, true},
		{"body with GetBody", func() io.Reader { return strings.NewReader(text) }, true},
		{"body without GetBody", func() io.Reader { return io.MultiReader(strings.NewReader(text)) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := onLoopback(t)
			var bodies []string
			api := answering(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/oauth2/token" {
					server.ServeHTTP(w, r)
					return
				}
				sent, err := io.ReadAll(r.Body)
				assert.NoError(t, err)
				bodies = append(bodies, string(sent))
				if !alive(server, r) {
					http.Error(w, "refused", http.StatusUnauthorized)
				}
			})
			s := sourceOf(t, server, WithBaseURL(api.URL))
			server.Revoke(token(t, s).AccessToken)
			resp, err := s.Client().Post(api.URL, "text/plain", c.body())
			require.NoError(t, err)
			if c.replayed {
				assert.Equal(t, http.StatusOK, resp.StatusCode)
				require.Len(t, bodies, 2)
				assert.Equal(t, bodies[0], bodies[1])
			} else {
				assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
				assert.Equal(t, "refused\n", readAll(t, resp))
				assert.Equal(t, []string{text}, bodies)
			}
			resp.Body.Close()
			assert.Equal(t, http.StatusOK, get(t, s.Client(), api.URL), "the next call has a new token in any case")
			assert.Len(t, server.TokenRequests(), 2)
		})
	}
}

func TestReplayHasNoBodyIfTheRequestHadNone(t *testing.T) {
	t.Parallel()
	for _, none := range []io.ReadCloser{nil, http.NoBody} {
		var bodies []io.ReadCloser
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			bodies = append(bodies, r.Body)
			return refusing(http.NoBody)(r)
		})
		req, err := http.NewRequest(http.MethodGet, DefaultBaseURL, nil)
		require.NoError(t, err)
		req.Body = none
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("of an earlier request")), nil }
		_, err = (&Transport{Source: newOtherSource("one", "two"), Base: base}).RoundTrip(req)
		require.NoError(t, err)
		assert.Equal(t, []io.ReadCloser{none, none}, bodies)
	}
}

func Test401IsReturnedIfGetBodyFails(t *testing.T) {
	t.Parallel()
	req, err := http.NewRequest(http.MethodPost, DefaultBaseURL, strings.NewReader("x"))
	require.NoError(t, err)
	req.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("the file was removed") }
	resp, err := (&Transport{Source: newOtherSource("one", "two"), Base: refusing(http.NoBody)}).RoundTrip(req)
	require.NoError(t, err)
	assert.Equal(t, 401, resp.StatusCode)
}

func TestHundredCallsWithARevokedTokenShareOneTokenRequest(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	client := s.Client()
	server.Revoke(token(t, s).AccessToken)
	var all sync.WaitGroup
	for range 100 {
		all.Go(func() { assert.Equal(t, http.StatusOK, get(t, client, server.URL+"/ping")) })
	}
	all.Wait()
	assert.Len(t, server.TokenRequests(), 2)
}

// The token is replaced during a call. If this call then gets a 401, that
// causes no token request.
func TestReplayUsesATokenThatWasObtainedMeanwhile(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	first := token(t, s).AccessToken
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Authorization") == "Bearer "+first {
			s.Invalidate(first)
			token(t, s)
			return empty(r, http.StatusUnauthorized), nil
		}
		return empty(r, http.StatusOK), nil
	})
	resp, err := roundTrip(t, &Transport{Source: s, Base: base}, server.URL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.Len(t, server.TokenRequests(), 2)
	assert.EqualValues(t, 1, s.Stats().Invalidated)
}

// closeNote adds "close" to source's calls when it is closed.
type closeNote struct {
	io.Reader
	source *otherSource
}

func (c *closeNote) Close() error { c.source.calls = append(c.source.calls, "close"); return nil }

func TestOtherSourcesWithTheSameMethods(t *testing.T) {
	t.Parallel()
	source := newOtherSource("one", "two", "three")
	refused := &closeNote{strings.NewReader("refused"), source}
	type key struct{}
	req, err := http.NewRequestWithContext(context.WithValue(t.Context(), key{}, "x"), http.MethodGet, DefaultBaseURL, nil)
	require.NoError(t, err)
	resp, err := (&Transport{Source: source, Base: refusing(refused)}).RoundTrip(req)
	require.NoError(t, err)
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, "x", source.ctx.Value(key{}))
	assert.Equal(t, []string{"token", "invalidate one", "close", "token"}, source.calls, "a token request may need the connection of the 401")
	left, err := io.ReadAll(refused)
	require.NoError(t, err)
	assert.Empty(t, left, "a connection is reused only if its last answer was read to the end")
}

func Test401ToTheReplayInvalidatesNothing(t *testing.T) {
	t.Parallel()
	source := newOtherSource("one", "two", "three")
	var sent []string
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		sent = append(sent, r.Header.Get("Authorization"))
		return empty(r, http.StatusUnauthorized), nil
	})
	resp, err := roundTrip(t, &Transport{Source: source, Base: base}, DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, []string{"Bearer one", "Bearer two"}, sent, "the request is sent again once")
	assert.Equal(t, []string{"token", "invalidate one", "token"}, source.calls)
}

// Another token would have the same scopes (RFC 6750 §3.1).
func Test401ForLackOfAScopeInvalidatesNothing(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		challenges  []string
		invalidates bool
	}{
		{[]string{`Bearer realm="moov", error="insufficient_scope", scope="/fed.read"`}, false},
		{[]string{"Basic", `Bearer error=insufficient_scope`}, false},
		{[]string{`Bearer error="invalid_token"`}, true},
		{nil, true},
	} {
		server := onLoopback(t)
		refused := &body{Reader: strings.NewReader("refused")}
		calls := 0
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			calls++
			resp := empty(r, http.StatusUnauthorized)
			resp.Header["Www-Authenticate"], resp.Body = c.challenges, refused
			return resp, nil
		})
		resp, err := roundTrip(t, &Transport{Source: startingWith(t, server, "x"), Base: base}, server.URL)
		require.NoError(t, err)
		if c.invalidates {
			assert.Equal(t, 2, calls)
			assert.Len(t, server.TokenRequests(), 1)
			continue
		}
		assert.Equal(t, 1, calls)
		assert.Empty(t, server.TokenRequests())
		assert.Same(t, refused, resp.Body)
		assert.Equal(t, "refused", readAll(t, resp))
	}
}

func TestStaticSourceIsAskedOnce(t *testing.T) {
	t.Parallel()
	n := 0
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		n++
		return empty(r, http.StatusUnauthorized), nil
	})
	_, err := roundTrip(t, &Transport{Source: static, Base: base}, DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, 1, n, "a static source has no other token")
}

// A mock may leave out the body of its answer.
func Test401WithoutABody(t *testing.T) {
	t.Parallel()
	resp, err := (&http.Client{Transport: &Transport{Source: newOtherSource("one", "two"), Base: refusing(nil)}}).Get(DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
}

// silentBody contains text. After that, Read waits until the body is closed,
// and returns err.
type silentBody struct {
	io.Reader
	closed  chan struct{}
	closing sync.Once
}

func newSilentBody(text string, err error) *silentBody {
	s := &silentBody{closed: make(chan struct{})}
	s.Reader = io.MultiReader(strings.NewReader(text), readerFunc(func([]byte) (int, error) {
		<-s.closed
		return 0, err
	}))
	return s
}

func (s *silentBody) Close() error { s.closing.Do(func() { close(s.closed) }); return nil }

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func Test401IsReturnedWithTheBytesThatWereRead(t *testing.T) {
	t.Parallel()
	full := strings.Repeat("x", maxRefusalBody)
	for _, c := range []struct {
		name string
		body func() io.Reader
		want string
		err  error
		time time.Duration
	}{
		{"all of it", func() io.Reader { return strings.NewReader("no") }, "no", nil, 0},
		{"byte by byte", func() io.Reader { return iotest.OneByteReader(strings.NewReader("no")) }, "no", nil, 0},
		{"EOF with the last bytes", func() io.Reader { return iotest.DataErrReader(strings.NewReader("no")) }, "no", nil, 0},
		{"nothing", func() io.Reader { return http.NoBody }, "", nil, 0},
		{"64 KiB", func() io.Reader { return strings.NewReader(full) }, full, nil, 0},
		{"more than 64 KiB", func() io.Reader { return strings.NewReader(full + "x") }, full, io.ErrUnexpectedEOF, 0},
		{"no end", func() io.Reader { return readerFunc(func(p []byte) (int, error) { return copy(p, full), nil }) }, full, io.ErrUnexpectedEOF, 0},
		{"an error", func() io.Reader {
			return io.MultiReader(strings.NewReader("no"), iotest.ErrReader(errors.New("reset")))
		}, "no", io.ErrUnexpectedEOF, 0},
		{"12 bytes, then silence", func() io.Reader { return newSilentBody("twelve bytes", http.ErrBodyReadAfterClose) }, "twelve bytes", io.ErrUnexpectedEOF, maxRefusalTime},
		{"a server that ends the body when the client closes it", func() io.Reader { return newSilentBody("twelve bytes", io.EOF) }, "twelve bytes", io.ErrUnexpectedEOF, maxRefusalTime},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				text := c.body()
				refused, ok := text.(io.ReadCloser)
				if !ok {
					refused = &body{Reader: text}
				}
				source := newOtherSource("one", "one") // Invalidate leads to the same token
				began := time.Now()
				resp, err := roundTrip(t, &Transport{Source: source, Base: refusing(refused)}, DefaultBaseURL)
				require.NoError(t, err)
				assert.Equal(t, c.time, time.Since(began))
				if b, ok := refused.(*body); ok {
					assert.EqualValues(t, 1, b.closed.Load())
				}
				got, err := io.ReadAll(resp.Body)
				assert.True(t, c.want == string(got), "%d bytes", len(got))
				assert.Equal(t, c.err, err)
				assert.NoError(t, resp.Body.Close())

				resp.Body, resp.Request = nil, nil
				assert.Equal(t, &http.Response{Status: "401 No", StatusCode: 401, Header: http.Header{"X": {"y"}}, ContentLength: 1000, Uncompressed: true}, resp,
					"the rest is as it was received")
			})
		})
	}
}

func Test401IsReturnedUntouched(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		refused := readerFunc(func([]byte) (int, error) { panic("the body is read") })
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			resp := empty(r, http.StatusUnauthorized)
			resp.Body = &body{Reader: refused}
			return resp, nil
		})
		s := startingWith(t, server, "x")
		s.Invalidate("x")
		tr := &Transport{Source: s, Base: base}
		for range 5 { // during the pause of 1 s after the invalidation
			resp, err := roundTrip(t, tr, server.URL)
			require.NoError(t, err)
			assert.Zero(t, resp.Body.(*body).closed.Load(), "Invalidate left the same token in place")
			time.Sleep(100 * time.Millisecond)
		}
		assert.Len(t, server.TokenRequests(), 1)

		time.Sleep(time.Minute)
		req, err := http.NewRequest(http.MethodPost, server.URL, io.MultiReader(strings.NewReader("x")))
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		assert.Zero(t, resp.Body.(*body).closed.Load(), "the request cannot be sent again")
		assert.EqualValues(t, 2, s.Stats().Invalidated)
	})
}

// API calls and token requests share one connection, which must be free when
// the token request needs it. Of a body that does not end, 64 KiB are read, for
// 250 ms at most. Then the body is closed, which makes Read return.
func TestOneConnectionIsEnoughForAPICallsAndTokenRequests(t *testing.T) {
	t.Parallel()
	long := strings.Repeat("x", 1<<20)
	compressed := new(strings.Builder)
	zip := gzip.NewWriter(compressed)
	_, _ = io.WriteString(zip, "refused")
	_ = zip.Flush()
	for _, c := range []struct {
		name     string
		sent     string
		encoding string
		silent   bool   // the body does not end after sent
		read     string // the part of sent that the caller can read
	}{
		{"a short body", "refused", "", false, "refused"},
		{"a long body", long, "", false, long[:maxRefusalBody]},
		{"a silent body", "refused", "", true, "refused"},
		{"a silent compressed body", compressed.String(), "gzip", true, "refused"},
	} {
		for _, protocol := range []int{1, 2} {
			t.Run(fmt.Sprintf("%s, HTTP/%d", c.name, protocol), func(t *testing.T) {
				t.Parallel()
				server := onLoopback(t)
				api := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/ping" || alive(server, r) {
						server.ServeHTTP(w, r)
						return
					}
					w.Header().Set("Content-Encoding", c.encoding)
					w.WriteHeader(http.StatusUnauthorized)
					_, _ = io.WriteString(w, c.sent)
					if c.silent {
						_ = http.NewResponseController(w).Flush()
						<-r.Context().Done()
					}
				}))
				api.EnableHTTP2 = protocol == 2
				api.StartTLS()
				t.Cleanup(api.Close)
				api.Client().Transport.(*http.Transport).MaxConnsPerHost = 1
				newSource := func() *TokenSource {
					return startingWith(t, server, "refused", WithBaseURL(api.URL), WithHTTPClient(api.Client()))
				}

				s := newSource()
				var all sync.WaitGroup
				for range 2 {
					all.Go(func() {
						resp, err := s.Client().Get(api.URL + "/ping")
						if assert.NoError(t, err) {
							assert.Equal(t, http.StatusOK, resp.StatusCode)
							assert.Equal(t, protocol, resp.ProtoMajor)
							readAll(t, resp)
						}
					})
				}
				all.Wait()
				assert.Len(t, server.TokenRequests(), 1)

				server.SetAnswer(&moovtest.Answer{Status: 404})
				resp, err := newSource().Client().Get(api.URL + "/ping")
				require.NoError(t, err)
				defer resp.Body.Close()
				assert.Equal(t, http.StatusUnauthorized, resp.StatusCode, "there is no other token after all")
				got, err := io.ReadAll(resp.Body)
				assert.True(t, c.read == string(got), "%d bytes", len(got))
				if c.silent || len(c.read) < len(c.sent) {
					assert.Equal(t, io.ErrUnexpectedEOF, err)
				} else {
					assert.NoError(t, err)
				}
			})
		}
	}
}

// Each body is closed once, whatever happens. A replay has another body.
func TestRequestBodiesAreClosedOnce(t *testing.T) {
	t.Parallel()
	failing := roundTripper(func(r *http.Request) (*http.Response, error) {
		r.Body.Close()
		return nil, errors.New("no route")
	})
	for name, tr := range map[string]*Transport{
		"sent":             {Base: new(sink)},
		"with a token":     {Base: new(sink), Source: static},
		"sent again":       {Base: refusing(http.NoBody), Source: newOtherSource("one", "two")},
		"the same token":   {Base: refusing(http.NoBody), Source: newOtherSource("one", "one")},
		"no token":         {Base: new(sink), Source: sourceFunc(func() (*oauth2.Token, error) { return nil, errors.New("none") })},
		"a wrong field":    {Base: new(sink), Version: "2024"},
		"another host":     {Base: new(sink), Source: static, Hosts: []string{"example.com"}},
		"an error of Base": {Base: failing, Source: static},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := &body{Reader: strings.NewReader("x")}, &body{Reader: strings.NewReader("x")}
			req, err := http.NewRequest(http.MethodPost, DefaultBaseURL, first)
			require.NoError(t, err)
			made := 0
			req.GetBody = func() (io.ReadCloser, error) { made++; return second, nil }
			_, _ = tr.RoundTrip(req)
			assert.EqualValues(t, 1, first.closed.Load())
			assert.EqualValues(t, made, second.closed.Load())
			assert.Same(t, first, req.Body)
		})
	}
}

// The expected times follow from the pauses of Invalidate. They double from 1 s
// to 30 s.
func TestAPIThatAnswers401ToEverythingCausesFewTokenRequests(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			resp := empty(r, http.StatusUnauthorized)
			resp.Body = io.NopCloser(strings.NewReader("no"))
			return resp, nil
		})
		tr := &Transport{Source: sourceOf(t, server), Base: base}
		for range 100 { // for ten seconds
			resp, err := roundTrip(t, tr, server.URL)
			require.NoError(t, err)
			assert.Equal(t, 401, resp.StatusCode)
			assert.Equal(t, "no", readAll(t, resp))
			time.Sleep(100 * time.Millisecond)
		}
		assert.Len(t, server.TokenRequests(), 5, "at 0, 0, 1, 3 and 7 s")
	})
}

// One endpoint answers 401 to every token, and is called once a second. The
// other one works, and is called five times a second.
func TestEndpointThatAnswers401DoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	silent := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	for name, outage := range map[string]*moovtest.Answer{
		"the token endpoint works":       nil,
		"the token endpoint answers 503": {Status: http.StatusServiceUnavailable},
		"the token endpoint is silent":   {Handler: silent},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			if testing.Short() && outage != nil && outage.Handler != nil {
				t.Skip("one outage is enough in short mode")
			}
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithLatency(100*time.Millisecond))
				server.Handle("GET /refusing", pingScope, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
					w.WriteHeader(http.StatusUnauthorized)
				}))
				client := sourceOf(t, server).Client()
				began := time.Now()
				at := func(d time.Duration) { time.Sleep(time.Until(began.Add(d))) }
				waits := 0 // the calls that wait after the first minute
				var all sync.WaitGroup
				all.Go(func() {
					for n := range 600 {
						at(time.Duration(n) * time.Second)
						assert.Equal(t, http.StatusUnauthorized, get(t, client, server.URL+"/refusing"))
					}
				})
				all.Go(func() {
					for n := range 3000 {
						at(time.Duration(n) * time.Second / 5)
						start := time.Now()
						assert.Equal(t, http.StatusOK, get(t, client, server.URL+"/ping"))
						if time.Since(start) > 0 && start.Sub(began) >= time.Minute {
							waits++
						}
					}
				})
				at(2 * time.Minute)
				server.SetAnswer(outage)
				at(8 * time.Minute)
				server.SetAnswer(nil)
				all.Wait()

				if outage != nil {
					return
				}
				requests := server.TokenRequests()
				after := 0
				for i := range requests[1:] {
					if sent := requests[i+1].Time; sent.Sub(requests[0].Time) >= time.Minute {
						after++
						assert.GreaterOrEqual(t, sent.Sub(requests[i].Time), 30*time.Second)
					}
				}
				assert.LessOrEqual(t, after, 18, "in nine minutes")
				assert.LessOrEqual(t, waits, after)
			})
		})
	}
}

func TestSuspendedAccountDoesNotDisturbOthers(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		server.Handle("GET /accounts/{id}", "/accounts/{id}.read", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.PathValue("id") == "a3" {
				w.WriteHeader(http.StatusUnauthorized)
			}
		}))
		var scopes []string
		for n := range 10 {
			scopes = append(scopes, fmt.Sprintf("/accounts/a%d.read", n))
		}
		client := sourceOf(t, server, WithScopes(scopes...)).Client()
		statuses := make(map[int]int)
		for range 60 {
			for n := range 10 {
				statuses[get(t, client, fmt.Sprintf("%s/accounts/a%d", server.URL, n))]++
			}
			time.Sleep(time.Second)
		}
		assert.Equal(t, map[int]int{200: 540, 401: 60}, statuses)
		assert.Len(t, server.TokenRequests(), 7, "at 0, 0, 1, 3, 7, 15 and 31 s")
	})
}

// Mocks and some servers return the same token until it expires, or always.
func TestServerThatAlwaysReturnsTheSameToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		server.SetAnswer(&moovtest.Answer{Body: `{"access_token":"constant","token_type":"bearer","expires_in":900}`})
		s := sourceOf(t, server)
		refuse := false
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			assert.Equal(t, "Bearer constant", r.Header.Get("Authorization"))
			if refuse {
				return empty(r, http.StatusUnauthorized), nil
			}
			return empty(r, http.StatusOK), nil
		})
		client := &http.Client{Transport: &Transport{Source: s, Base: base}}
		refused := 0
		for n := range 720 { // for an hour
			refuse = n == 100 // the API refuses a valid token once
			if get(t, client, server.URL) != http.StatusOK {
				refused++
			}
			if n == 360 {
				require.NoError(t, s.Revoke(t.Context()))
			}
			time.Sleep(5 * time.Second)
		}
		assert.Equal(t, 1, refused)
		assert.LessOrEqual(t, len(server.TokenRequests()), 8, "the first, one after the 401, one after Revoke, and at most one every 12 minutes")
	})
}

func TestSourceThatHasNoToken(t *testing.T) {
	t.Parallel()
	for want, source := range map[string]sourceFunc{
		"no token today":                func() (*oauth2.Token, error) { return nil, errors.New("no token today") },
		"no access token, and no error": func() (*oauth2.Token, error) { return nil, nil },
		"no access token":               func() (*oauth2.Token, error) { return new(oauth2.Token), nil },
	} {
		base := new(sink)
		_, err := roundTrip(t, &Transport{Source: source, Base: base}, DefaultBaseURL)
		assert.ErrorContains(t, err, want)
		assert.Nil(t, base.last)
	}
}

func TestErrorsOfBaseAreReturned(t *testing.T) {
	t.Parallel()
	why := errors.New("no route")
	base := roundTripper(func(*http.Request) (*http.Response, error) { return nil, why })
	_, err := roundTrip(t, &Transport{Source: static, Base: base}, DefaultBaseURL)
	assert.Equal(t, why, err)

	base = func(*http.Request) (*http.Response, error) { return nil, nil }
	_, err = (&http.Client{Transport: &Transport{Source: static, Base: base}}).Get(DefaultBaseURL)
	assert.ErrorContains(t, err, "nil *Response", "net/http reports it")
}

type idler struct {
	sink
	closed int
}

func (i *idler) CloseIdleConnections() { i.closed++ }

func TestCloseIdleConnectionsReachesBase(t *testing.T) {
	t.Parallel()
	base := new(idler)
	client := &http.Client{Transport: &Transport{Base: base}}
	client.CloseIdleConnections()
	client.CloseIdleConnections()
	assert.Equal(t, 2, base.closed)
	(&http.Client{Transport: &Transport{Base: new(sink)}}).CloseIdleConnections() // has no effect, since sink has no such method
}

// Callers look at url.Error's Timeout method to tell a timeout from other
// failures.
func TestTimeoutWhileACallWaitsForAToken(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name    string
		cause   error         // of the request's deadline
		request time.Duration // until the request's deadline
		cancel  time.Duration // until the request is cancelled
		client  time.Duration // http.Client.Timeout
		source  time.Duration // WithTimeout
		refused bool
		want    bool
	}{
		{name: "the request's deadline", request: time.Second, want: true},
		{name: "the request's deadline, with a cause", request: time.Second, cause: errors.New("enough"), want: true},
		{name: "http.Client.Timeout", client: time.Second, want: true},
		{name: "WithTimeout", source: time.Second, want: true},
		{name: "the request is cancelled", cancel: time.Second},
		{name: "the server refuses", refused: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithLatency(10*time.Second))
				opts := []Option{}
				if c.source > 0 {
					opts = append(opts, WithTimeout(c.source))
				}
				client := sourceOf(t, server, opts...).Client()
				client.Timeout = c.client
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if c.request > 0 {
					ctx, cancel = context.WithTimeoutCause(ctx, c.request, c.cause)
					defer cancel()
				}
				if c.cancel > 0 {
					time.AfterFunc(c.cancel, cancel)
				}
				if c.refused {
					server.Enqueue(moovtest.Answer{Status: 401})
				}
				req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/ping", nil)
				require.NoError(t, err)
				began := time.Now()
				_, err = client.Do(req)
				var wrapped *url.Error
				require.ErrorAs(t, err, &wrapped)
				assert.Equal(t, c.want, wrapped.Timeout(), "%v", err)
				if !c.refused {
					assert.LessOrEqual(t, time.Since(began), time.Second+grace)
				}
				time.Sleep(time.Minute) // until the grant has ended
			})
		})
	}
}

// A *url.Error asks the error that it wraps, but no error inside that one.
func TestTimeoutAndTemporaryOfASourcesError(t *testing.T) {
	t.Parallel()
	deadline := fmt.Errorf("no token: %w", context.DeadlineExceeded)
	for _, c := range []struct {
		name               string
		err                error
		timeout, temporary bool
	}{
		{"plain", errors.New("none"), false, true},
		{"a deadline", deadline, true, true},
		{"a deadline of package os", os.ErrDeadlineExceeded, true, true},
		{"a deadline in a url.Error", &url.Error{Op: "Post", URL: "x", Err: deadline}, true, true},
		{"cancelled", context.Canceled, false, false},
		{"a refusal", &Error{StatusCode: 401}, false, false},
		{"an outage", &Error{StatusCode: 503}, false, true},
		{"a cool-down after a deadline", &CoolDownError{Err: deadline}, false, true},
		{"a cool-down after a refusal, in another error", fmt.Errorf("x: %w", &CoolDownError{Err: &Error{StatusCode: 401}}), false, false},
	} {
		source := sourceFunc(func() (*oauth2.Token, error) { return nil, c.err })
		_, err := (&http.Client{Transport: &Transport{Source: source, Base: new(sink)}}).Get(DefaultBaseURL)
		var wrapped *url.Error
		require.ErrorAs(t, err, &wrapped)
		assert.Equal(t, c.timeout, wrapped.Timeout(), c.name)
		assert.Equal(t, c.temporary, wrapped.Temporary(), c.name)
		assert.ErrorIs(t, err, c.err)
		assert.Equal(t, c.err.Error(), wrapped.Err.Error())
	}
}
