package moovauth

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
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

// body counts how often it was closed.
type body struct {
	io.Reader
	closed atomic.Int64
}

func (b *body) Close() error { b.closed.Add(1); return nil }

// sink is a RoundTripper that keeps the last request, and answers 200.
type sink struct{ last *http.Request }

func (s *sink) RoundTrip(r *http.Request) (*http.Response, error) {
	s.last = r
	if r.Body != nil {
		r.Body.Close()
	}
	return &http.Response{StatusCode: 200, Header: make(http.Header), Body: http.NoBody, Request: r}, nil
}

// static is a source of one token, without TokenContext or Invalidate.
var static = oauth2.StaticTokenSource(&oauth2.Token{AccessToken: "static"})

// roundTrip sends a GET of target through tr.
func roundTrip(t testing.TB, tr *Transport, target string) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequest(http.MethodGet, target, nil)
	require.NoError(t, err)
	return tr.RoundTrip(req)
}

func TestZeroTransportOnlyAddsTheVersion(t *testing.T) {
	var got http.Header
	server := answering(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	client := &http.Client{Transport: new(Transport)}
	resp, err := client.Get(server.URL)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, DefaultVersion, got.Get(VersionHeader))
	assert.NotContains(t, got, "Authorization")
}

func TestVersionOfARequest(t *testing.T) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithVersion("v2026.07.00"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	for _, c := range []struct {
		name      string
		transport *Transport
		own, want string
	}{
		{"default", &Transport{}, "", DefaultVersion},
		{"of another source", &Transport{Source: static}, "", DefaultVersion},
		{"of the source", &Transport{Source: s}, "", "v2026.07.00"},
		{"of the transport", &Transport{Source: s, Version: "dev"}, "", "dev"},
		{"of the caller", &Transport{Source: s, Version: "dev"}, "v2025.01.00", "v2025.01.00"},
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
	var none *TokenSource
	for want, tr := range map[string]*Transport{
		"Transport.Version": {Version: "2024"},
		"Transport.Hosts":   {Source: static, Hosts: []string{"https://api.moov.io"}},
		"api.moov.io/x":     {Source: static, Hosts: []string{"api.moov.io/x"}},
		`got ""`:            {Source: static, Hosts: []string{""}},
		"nil or zero":       {Source: none},
		"NewTokenSource":    {Source: new(TokenSource)},
	} {
		base := new(sink)
		tr.Base = base
		sent := &body{Reader: strings.NewReader("x")}
		req, err := http.NewRequest(http.MethodPost, DefaultBaseURL, sent)
		require.NoError(t, err)
		for n := range 2 {
			_, err = tr.RoundTrip(req)
			assert.ErrorContains(t, err, want)
			assert.EqualValues(t, n+1, sent.closed.Load())
		}
		assert.Nil(t, base.last)
	}
}

func TestRedirectElsewhereIsFollowedWithoutTheToken(t *testing.T) {
	var got http.Header
	elsewhere := answering(t, func(_ http.ResponseWriter, r *http.Request) { got = r.Header })
	server := onLoopback(t)
	api := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			assert.NotEmpty(t, r.Header.Get("Authorization"))
			http.Redirect(w, r, elsewhere.URL+"/there", http.StatusFound)
			return
		}
		server.ServeHTTP(w, r)
	})
	client := sourceOf(t, server, WithBaseURL(api.URL), WithHTTPClient(api.Client())).Client()
	resp, err := client.Get(api.URL + "/away")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, 200, resp.StatusCode)
	assert.NotNil(t, got)
	assert.NotContains(t, got, "Authorization")

	_, err = client.Get(elsewhere.URL)
	assert.ErrorContains(t, err, "Transport.Hosts", "a direct request there is an error")
}

func TestRedirectOnTheSameHostKeepsTheToken(t *testing.T) {
	server := onLoopback(t)
	api := answering(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/away" {
			http.Redirect(w, r, "/ping", http.StatusFound)
			return
		}
		server.ServeHTTP(w, r)
	})
	resp, err := sourceOf(t, server, WithBaseURL(api.URL)).Client().Get(api.URL + "/away")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, 200, resp.StatusCode)
}

func TestCallersRequestIsNotModified(t *testing.T) {
	base := new(sink)
	tr := &Transport{Base: base, Source: static}
	req, err := http.NewRequest(http.MethodGet, DefaultBaseURL, nil)
	require.NoError(t, err)
	req.Header.Set("Authorization", "Basic of-the-caller")
	req.Header["X-Many"] = append(make([]string, 0, 8), "a", "b", "c", "d")
	req.Header.Set("Accept", "application/json")
	before := req.Clone(t.Context())
	_, err = tr.RoundTrip(req)
	require.NoError(t, err)
	assert.Equal(t, before.Header, req.Header)
	assert.NotSame(t, req, base.last)
	assert.Equal(t, "Bearer static", base.last.Header.Get("Authorization"), "the caller's is replaced")
	assert.Equal(t, before.Header["X-Many"], base.last.Header["X-Many"])
	assert.Equal(t, before.Header["Accept"], base.last.Header["Accept"])
	for name, values := range base.last.Header {
		base.last.Header[name] = append(values, "added by Base")
	}
	for _, values := range base.last.Header {
		assert.Equal(t, "added by Base", values[len(values)-1], "no header's values lie in another's")
		values[0] = "changed by Base"
	}
	assert.Equal(t, before.Header, req.Header)
	assert.Empty(t, req.Header["X-Many"][:5][4])

	req.Header = nil
	_, err = tr.RoundTrip(req)
	require.NoError(t, err)
	assert.Nil(t, req.Header)
}

func TestEndpointsKeepTheirAuthorization(t *testing.T) {
	server := onLoopback(t)
	s := sourceOf(t, server)
	client := s.Client()
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {pingScope}}
	for _, path := range []string{tokenPath, revokePath} {
		req, err := http.NewRequest(http.MethodPost, server.URL+path, strings.NewReader(form.Encode()))
		require.NoError(t, err)
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.SetBasicAuth(server.ClientID, server.ClientSecret)
		form.Set("token", "x")
		resp, err := client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, 2, resp.StatusCode/100)
	}
	for _, r := range server.Requests() {
		assert.True(t, strings.HasPrefix(r.Header.Get("Authorization"), "Basic "))
		assert.Equal(t, DefaultVersion, r.Header.Get(VersionHeader))
	}
	assert.Len(t, server.Requests(), 2, "no token was obtained for them")
}

func TestSourceMayUseItsOwnTransport(t *testing.T) {
	server := onLoopback(t)
	tr := new(Transport)
	s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: tr}))
	tr.Source = s
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
}

func TestRevokedTokenCosts100CallsOneTokenRequest(t *testing.T) {
	server := onLoopback(t)
	s := sourceOf(t, server)
	client := s.Client()
	server.Revoke(token(t, s).AccessToken)

	var wg sync.WaitGroup
	for range 100 {
		wg.Go(func() {
			resp, err := client.Get(server.URL + "/ping")
			if assert.NoError(t, err) {
				assert.Equal(t, http.StatusOK, resp.StatusCode)
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
	assert.Len(t, server.TokenRequests(), 2)
}

func TestReplayAfter401(t *testing.T) {
	const text = "what is sent"
	for _, c := range []struct {
		name     string
		body     func() io.Reader
		replayed bool
	}{
		{"no body", func() io.Reader { return nil }, true},
		{"http.NoBody", func() io.Reader { return http.NoBody }, true},
		{"body with GetBody", func() io.Reader { return strings.NewReader(text) }, true},
		{"body without", func() io.Reader { return io.MultiReader(strings.NewReader(text)) }, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			server := onLoopback(t)
			var bodies []string
			api := answering(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == tokenPath {
					server.ServeHTTP(w, r)
					return
				}
				sent, err := io.ReadAll(r.Body)
				assert.NoError(t, err)
				bodies = append(bodies, string(sent))
				if !server.Alive(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) {
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

			resp, err = s.Client().Get(api.URL)
			require.NoError(t, err)
			resp.Body.Close()
			assert.Equal(t, http.StatusOK, resp.StatusCode, "the next call has a new token in any case")
			assert.Len(t, server.TokenRequests(), 2)
		})
	}
}

func TestReplayDrainsAndClosesTheFirst401(t *testing.T) {
	server := onLoopback(t)
	refused := &body{Reader: strings.NewReader("refused")}
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		if !server.Alive(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) {
			return &http.Response{StatusCode: 401, Body: refused, Request: r}, nil
		}
		return new(sink).RoundTrip(r)
	})
	s := sourceOf(t, server)
	server.Revoke(token(t, s).AccessToken)
	resp, err := roundTrip(t, &Transport{Source: s, Base: base}, server.URL)
	require.NoError(t, err)
	assert.Equal(t, 200, resp.StatusCode)
	assert.EqualValues(t, 1, refused.closed.Load())
	left, _ := io.ReadAll(refused.Reader)
	assert.Empty(t, left)
}

func TestAPIThatAnswers401ToEverythingIsNoFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 401, Body: io.NopCloser(strings.NewReader("no")), Request: r}, nil
		})
		tr := &Transport{Source: sourceOf(t, server), Base: base}
		for range 100 { // for ten seconds
			resp, err := roundTrip(t, tr, server.URL)
			require.NoError(t, err)
			assert.Equal(t, 401, resp.StatusCode)
			assert.Equal(t, "no", readAll(t, resp), "the 401 is returned as it is")
			time.Sleep(100 * time.Millisecond)
		}
		assert.Len(t, server.TokenRequests(), 1+10)
	})
}

func Test401StaysWhereNoNewTokenIsToBeHad(t *testing.T) {
	server := onLoopback(t)
	s := sourceOf(t, server)
	server.Revoke(token(t, s).AccessToken)
	server.Enqueue(moovtest.Answer{Status: 404})
	resp, err := s.Client().Get(server.URL + "/ping")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
}

func Test401WithABodyThatCannotBeHadAgain(t *testing.T) {
	server := onLoopback(t)
	s := sourceOf(t, server)
	server.Revoke(token(t, s).AccessToken)
	req, err := http.NewRequest(http.MethodPost, server.URL+"/ping", strings.NewReader("x"))
	require.NoError(t, err)
	req.GetBody = func() (io.ReadCloser, error) { return nil, errors.New("gone") }
	resp, err := (&Transport{Source: s}).RoundTrip(req)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Contains(t, []int{401, 405}, resp.StatusCode)
}

// otherSource is a TokenSource of another package, with the methods that
// Transport looks for.
type otherSource struct {
	ctx         context.Context
	invalidated []string
	tokens      []string
}

func (s *otherSource) Token() (*oauth2.Token, error) { panic("TokenContext is to be used") }

func (s *otherSource) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	s.ctx = ctx
	return &oauth2.Token{AccessToken: s.tokens[0], TokenType: "bearer"}, nil
}

func (s *otherSource) Invalidate(accessToken string) {
	s.invalidated = append(s.invalidated, accessToken)
	s.tokens = s.tokens[1:]
}

func TestOtherSourcesWithTheSameMethods(t *testing.T) {
	source := &otherSource{tokens: []string{"one", "two", "three"}}
	var sent []string
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		sent = append(sent, r.Header.Get("Authorization"))
		return &http.Response{StatusCode: 401, Body: http.NoBody, Request: r}, nil
	})
	type key struct{}
	ctx := context.WithValue(t.Context(), key{}, "x")
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, DefaultBaseURL, nil)
	require.NoError(t, err)
	resp, err := (&Transport{Source: source, Base: base}).RoundTrip(req)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, []string{"Bearer one", "Bearer two"}, sent, "once more, and no more")
	assert.Equal(t, []string{"one", "two"}, source.invalidated, "each that was refused")
	assert.Equal(t, "x", source.ctx.Value(key{}))
}

func TestStaticSourceIsAskedOnce(t *testing.T) {
	n := 0
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		n++
		return &http.Response{StatusCode: 401, Body: http.NoBody, Request: r}, nil
	})
	resp, err := roundTrip(t, &Transport{Source: static, Base: base}, DefaultBaseURL)
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, 1, n, "the token did not change")
}

// failing is a source that fails, or returns what is no token.
type failing struct {
	token *oauth2.Token
	err   error
}

func (f failing) Token() (*oauth2.Token, error) { return f.token, f.err }

func TestSourceThatHasNoToken(t *testing.T) {
	why := errors.New("no token today")
	for _, c := range []struct {
		source failing
		want   string
	}{
		{failing{nil, why}, why.Error()},
		{failing{nil, nil}, "no access token"},
		{failing{&oauth2.Token{}, nil}, "no access token"},
	} {
		base := new(sink)
		sent := &body{Reader: new(bytes.Buffer)}
		req, err := http.NewRequest(http.MethodPost, DefaultBaseURL, sent)
		require.NoError(t, err)
		_, err = (&Transport{Source: c.source, Base: base}).RoundTrip(req)
		assert.ErrorContains(t, err, c.want)
		assert.EqualValues(t, 1, sent.closed.Load())
		assert.Nil(t, base.last)
	}
}

func TestRequestsContextEndsTheWaitForAToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(10*time.Second))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, server.URL+"/ping", nil)
		require.NoError(t, err)
		began := time.Now()
		_, err = sourceOf(t, server).Client().Do(req)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, time.Second, time.Since(began))
		time.Sleep(time.Minute) // let the grant end
	})
}

func TestBaseErrorsAreReturned(t *testing.T) {
	why := errors.New("no route")
	base := roundTripper(func(*http.Request) (*http.Response, error) { return nil, why })
	_, err := roundTrip(t, &Transport{Source: static, Base: base}, DefaultBaseURL)
	assert.Equal(t, why, err)
}

type idler struct {
	sink
	closed bool
}

func (i *idler) CloseIdleConnections() { i.closed = true }

func TestCloseIdleConnectionsReachesBase(t *testing.T) {
	base := new(idler)
	(&http.Client{Transport: &Transport{Base: base}}).CloseIdleConnections()
	assert.True(t, base.closed)
	(&http.Client{Transport: &Transport{Base: new(sink)}}).CloseIdleConnections()
}

func TestTransportUnderLoadAcrossRollovers(t *testing.T) {
	server := onLoopback(t, moovtest.WithLifetime(2*time.Second))
	s := sourceOf(t, server, WithEarlyRefresh(1500*time.Millisecond))
	client := s.Client()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 200 {
				resp, err := client.Get(server.URL + "/ping")
				if assert.NoError(t, err) {
					assert.Equal(t, http.StatusOK, resp.StatusCode)
					resp.Body.Close()
				}
			}
		})
	}
	wg.Wait()
}

// net/http keeps the caller's Authorization on the way to a subdomain, and from
// https to http.
func TestRedirectElsewhereIsFollowedWithoutTheCallersCredentials(t *testing.T) {
	for _, elsewhere := range []string{"http://api.moov.io/x", "https://sub.api.moov.io/x"} {
		var seen []*http.Request
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			seen = append(seen, r)
			if len(seen) == 1 {
				return &http.Response{StatusCode: http.StatusTemporaryRedirect, Header: http.Header{"Location": {elsewhere}}, Body: http.NoBody, Request: r}, nil
			}
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: http.NoBody, Request: r}, nil
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

// A mock may leave out the body of its answer.
func Test401WithoutABody(t *testing.T) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "x"}),
		WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: http.StatusOK, Header: http.Header{}, Body: io.NopCloser(strings.NewReader(`{"access_token":"y"}`)), Request: r}, nil
		})}))
	require.NoError(t, err)
	n := 0
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		n++
		return &http.Response{StatusCode: http.StatusUnauthorized, Request: r}, nil
	})
	resp, err := (&http.Client{Transport: &Transport{Source: s, Base: base}}).Get(DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
	assert.Equal(t, 2, n)
}
