package moovauth

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"runtime"
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	sent := base.last.Header.Clone()
	for name, values := range base.last.Header {
		base.last.Header[name] = append(values, "added by Base")
	}
	for name, values := range base.last.Header {
		assert.Equal(t, append(sent[name], "added by Base"), values, "no header's values lie in another's")
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
	t.Parallel()
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
	t.Parallel()
	server := onLoopback(t)
	tr := new(Transport)
	s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: tr}))
	tr.Source = s
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
}

func TestRevokedTokenCosts100CallsOneTokenRequest(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			return &http.Response{StatusCode: 401, Body: io.NopCloser(strings.NewReader("no")), Request: r}, nil
		})
		tr := &Transport{Source: sourceOf(t, server), Base: base}
		for range 100 { // for ten seconds
			resp, err := roundTrip(t, tr, server.URL)
			if cooling := new(CoolDownError); !errors.As(err, &cooling) {
				require.NoError(t, err)
				assert.Equal(t, 401, resp.StatusCode)
				assert.Equal(t, "no", readAll(t, resp), "the 401 is returned as it is")
			}
			time.Sleep(100 * time.Millisecond)
		}
		assert.Len(t, server.TokenRequests(), 5, "at 0, 0, 1, 3 and 7 s")
	})
}

func Test401StaysIfThereIsNoNewToken(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	server.Revoke(token(t, s).AccessToken)
	server.Enqueue(moovtest.Answer{Status: 404}, moovtest.Answer{Status: 404})
	resp, err := s.Client().Get(server.URL + "/ping")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
}

func Test401WithABodyThatCannotBeHadAgain(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
	base := new(idler)
	client := &http.Client{Transport: &Transport{Base: base}}
	client.CloseIdleConnections()
	assert.True(t, base.closed)
	base.closed = false
	client.CloseIdleConnections()
	assert.True(t, base.closed, "each time")
	(&http.Client{Transport: &Transport{Base: new(sink)}}).CloseIdleConnections()
}

func TestTransportUnderLoadAcrossRollovers(t *testing.T) {
	t.Parallel()
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
	t.Parallel()
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
	t.Parallel()
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

// refusedOnce returns a source with two tokens, and a Base that answers the
// first with a 401 that has body, and the second with 200.
func refusedOnce(body io.ReadCloser) (*otherSource, roundTripper) {
	source := &otherSource{tokens: []string{"one", "two", "three"}}
	return source, func(r *http.Request) (*http.Response, error) {
		if r.Header.Get("Authorization") == "Bearer one" {
			if r.Body != nil {
				r.Body.Close()
			}
			return &http.Response{Status: "401 No", StatusCode: 401, Header: http.Header{"X": {"y"}}, ContentLength: 1000, Uncompressed: true, Body: body, Request: r}, nil
		}
		return new(sink).RoundTrip(r)
	}
}

// order is a Body, and a source, that say what was called when.
type order struct {
	*otherSource
	io.Reader
	calls []string
}

func (o *order) Close() error { o.calls = append(o.calls, "close"); return nil }

func (o *order) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	o.calls = append(o.calls, "token")
	return o.otherSource.TokenContext(ctx)
}

func (o *order) Invalidate(accessToken string) {
	o.calls = append(o.calls, "invalidate")
	o.otherSource.Invalidate(accessToken)
}

func Test401IsClosedBeforeATokenIsAskedFor(t *testing.T) {
	t.Parallel()
	o := &order{Reader: strings.NewReader("refused")}
	source, base := refusedOnce(o)
	o.otherSource = source
	resp, err := roundTrip(t, &Transport{Source: o, Base: base}, DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, 200, resp.StatusCode)
	assert.Equal(t, []string{"token", "invalidate", "close", "token"}, o.calls)
}

// silentBody is a Body that has text, and then nothing until it is closed, or for ever.
type silentBody struct {
	io.Reader
	closed  chan struct{}
	deaf    bool // Close does not end Read
	hanging bool // Close does not return
}

func newSilentBody(text string) *silentBody {
	s := &silentBody{closed: make(chan struct{})}
	s.Reader = io.MultiReader(strings.NewReader(text), readerFunc(func(p []byte) (int, error) {
		<-s.closed
		if s.deaf {
			select {}
		}
		return copy(p, "late"), nil
	}))
	return s
}

func (s *silentBody) Close() error {
	close(s.closed)
	if s.hanging {
		select {}
	}
	return nil
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

func Test401ThatFallsSilentIsWaitedForAQuarterOfASecond(t *testing.T) {
	t.Parallel()
	// Not a bubble's goroutines, which would have to end: Read hangs for ever.
	for _, c := range []struct {
		name          string
		deaf, hanging bool
		most          time.Duration
	}{
		{"Close ends Read", false, false, 250 * time.Millisecond},
		{"Close does not end Read", true, false, 250 * time.Millisecond},
		{"Close hangs", true, true, 500 * time.Millisecond},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			refused := newSilentBody("what I have")
			refused.deaf, refused.hanging = c.deaf, c.hanging
			source, base := refusedOnce(refused)
			began := time.Now()
			resp, err := roundTrip(t, &Transport{Source: source, Base: base}, DefaultBaseURL)
			require.NoError(t, err)
			assert.Equal(t, 200, resp.StatusCode)
			assert.GreaterOrEqual(t, time.Since(began), c.most)
			assert.Less(t, time.Since(began), c.most+5*time.Second, "a bound that a slow machine keeps")
		})
	}
}

func Test401ThatTricklesIsBoundByTheSameTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var n atomic.Int64
		trickle := &body{Reader: readerFunc(func(p []byte) (int, error) {
			time.Sleep(100 * time.Millisecond)
			n.Add(1)
			return copy(p, "."), nil
		})}
		source, base := refusedOnce(trickle)
		source.tokens = []string{"one", "one", "one"} // so that the 401 is returned
		began := time.Now()
		resp, err := roundTrip(t, &Transport{Source: source, Base: base}, DefaultBaseURL)
		require.NoError(t, err)
		assert.Equal(t, 250*time.Millisecond, time.Since(began))
		text, err := io.ReadAll(resp.Body)
		assert.Equal(t, "..", string(text))
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
		assert.NoError(t, resp.Body.Close())
		time.Sleep(time.Second)
		assert.EqualValues(t, 3, n.Load(), "reading ends soon after Close")
		assert.EqualValues(t, 1, trickle.closed.Load())
	})
}

// panickingBody is a Body whose Read or Close panics.
type panickingBody struct {
	io.Reader
	close bool
}

func (p panickingBody) Close() error {
	if p.close {
		panic("Close")
	}
	return nil
}

func Test401IsReturnedWithWhatWasReadOfIt(t *testing.T) {
	t.Parallel()
	why := errors.New("connection reset")
	full := strings.Repeat("x", maxRefusal)
	for _, c := range []struct {
		name string
		body io.ReadCloser
		want string
		err  error
	}{
		{"all of it", &body{Reader: strings.NewReader("no")}, "no", nil},
		{"byte by byte", &body{Reader: iotest.OneByteReader(strings.NewReader("no"))}, "no", nil},
		{"the end with the last bytes", &body{Reader: iotest.DataErrReader(strings.NewReader("no"))}, "no", nil},
		{"nothing", http.NoBody, "", nil},
		{"64 KiB", &body{Reader: strings.NewReader(full)}, full, nil},
		{"64 KiB and the end with the last bytes", &body{Reader: iotest.DataErrReader(strings.NewReader(full))}, full, nil},
		{"more than 64 KiB", &body{Reader: strings.NewReader(full + "x")}, full, io.ErrUnexpectedEOF},
		{"no end", &body{Reader: readerFunc(func(p []byte) (int, error) { return copy(p, full), nil })}, full, io.ErrUnexpectedEOF},
		{"12 bytes, then silence", newSilentBody("twelve bytes"), "twelve bytes", io.ErrUnexpectedEOF},
		{"an error of its own", &body{Reader: io.MultiReader(strings.NewReader("no"), iotest.ErrReader(why))}, "no", why},
		{"a Read that panics", panickingBody{Reader: io.MultiReader(strings.NewReader("no"), readerFunc(func([]byte) (int, error) { panic("Read") }))}, "no", io.ErrUnexpectedEOF},
		{"a Read that ends its goroutine", panickingBody{Reader: readerFunc(func([]byte) (int, error) { runtime.Goexit(); return 0, nil })}, "", io.ErrUnexpectedEOF},
		{"a Close that panics", panickingBody{strings.NewReader("no"), true}, "no", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			source, base := refusedOnce(c.body)
			source.tokens = []string{"one", "one", "one"}
			resp, err := roundTrip(t, &Transport{Source: source, Base: base}, DefaultBaseURL)
			require.NoError(t, err)
			if b, ok := c.body.(*body); ok {
				assert.EqualValues(t, 1, b.closed.Load())
			}
			text, err := io.ReadAll(resp.Body)
			assert.True(t, c.want == string(text), "%d bytes", len(text))
			assert.Equal(t, c.err, err)
			assert.NoError(t, resp.Body.Close())
			assert.Equal(t, []string{"one"}, source.invalidated)

			resp.Body, resp.Request = nil, nil
			assert.Equal(t, &http.Response{Status: "401 No", StatusCode: 401, Header: http.Header{"X": {"y"}}, ContentLength: 1000, Uncompressed: true}, resp,
				"the rest is as it was received")
		})
	}
}

func TestTrailerOfA401IsKept(t *testing.T) {
	t.Parallel()
	api := answering(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Trailer", "X-Checksum")
		w.WriteHeader(http.StatusUnauthorized)
		_, _ = io.WriteString(w, "no")
		w.Header().Set("X-Checksum", "sum")
	})
	resp, err := roundTrip(t, &Transport{Source: static, Hosts: []string{strings.TrimPrefix(api.URL, "http://")}}, api.URL)
	require.NoError(t, err)
	assert.Equal(t, "no", readAll(t, resp))
	assert.Equal(t, http.Header{"X-Checksum": {"sum"}}, resp.Trailer)
}

func Test401ToARequestThatCannotBeSentAgainIsNotRead(t *testing.T) {
	t.Parallel()
	refused := &body{Reader: strings.NewReader(strings.Repeat("x", 2*maxRefusal))}
	source, base := refusedOnce(refused)
	req, err := http.NewRequest(http.MethodPost, DefaultBaseURL, io.MultiReader(strings.NewReader("x")))
	require.NoError(t, err)
	resp, err := (&Transport{Source: source, Base: base}).RoundTrip(req)
	require.NoError(t, err)
	assert.Same(t, refused, resp.Body)
	assert.Len(t, readAll(t, resp), 2*maxRefusal)
	assert.Equal(t, []string{"one"}, source.invalidated)
}

// The one connection of the client that makes both kinds of requests is free
// when the token request needs it.
func TestOneConnectionForBothKindsOfRequests(t *testing.T) {
	t.Parallel()
	for name, refuse := range map[string]http.HandlerFunc{
		"a short body": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "refused", http.StatusUnauthorized) },
		"a long one": func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("x", 1<<20), http.StatusUnauthorized)
		},
		"one that falls silent": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "1000")
			w.WriteHeader(http.StatusUnauthorized)
			_, _ = io.WriteString(w, "twelve bytes")
			_ = http.NewResponseController(w).Flush()
			<-r.Context().Done()
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := onLoopback(t)
			api := answering(t, func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/ping" && !server.Alive(strings.TrimPrefix(r.Header.Get("Authorization"), "Bearer ")) {
					refuse(w, r)
					return
				}
				server.ServeHTTP(w, r)
			})
			base := &http.Transport{MaxConnsPerHost: 1}
			t.Cleanup(base.CloseIdleConnections)
			s := sourceOf(t, server, WithBaseURL(api.URL), WithHTTPClient(&http.Client{Transport: base}), WithTimeout(5*time.Second))
			server.Revoke(token(t, s).AccessToken)
			var all sync.WaitGroup
			for range 4 {
				all.Go(func() {
					resp, err := s.Client().Get(api.URL + "/ping")
					if assert.NoError(t, err) {
						assert.Equal(t, http.StatusOK, resp.StatusCode)
						readAll(t, resp)
					}
				})
			}
			all.Wait()
			assert.Len(t, server.TokenRequests(), 2)
		})
	}
}

// A body is closed once, whatever happens, and the replay's is another one.
func TestRequestBodiesAreClosedOnce(t *testing.T) {
	t.Parallel()
	closing := func(resp *http.Response, err error) roundTripper {
		return func(r *http.Request) (*http.Response, error) {
			r.Body.Close()
			return resp, err
		}
	}
	_, refusing := refusedOnce(http.NoBody)
	for name, tr := range map[string]*Transport{
		"sent":              {Base: new(sink)},
		"with a token":      {Base: new(sink), Source: static},
		"sent again":        {Base: refusing, Source: &otherSource{tokens: []string{"one", "two", "three"}}},
		"the same token":    {Base: refusing, Source: &otherSource{tokens: []string{"one", "one", "one"}}},
		"no token":          {Base: new(sink), Source: failing{nil, errors.New("none")}},
		"a wrong field":     {Base: new(sink), Version: "2024"},
		"another host":      {Base: new(sink), Source: static, Hosts: []string{"example.com"}},
		"an error of Base":  {Base: closing(nil, errors.New("no route")), Source: static},
		"nothing from Base": {Base: closing(nil, nil), Source: static},
		"a source that panics": {Base: new(sink), Source: sourceFunc(func() (*oauth2.Token, error) {
			panic("no token")
		})},
	} {
		t.Run(name, func(t *testing.T) {
			first, second := &body{Reader: strings.NewReader("x")}, &body{Reader: strings.NewReader("x")}
			req, err := http.NewRequest(http.MethodPost, DefaultBaseURL, first)
			require.NoError(t, err)
			made := 0
			req.GetBody = func() (io.ReadCloser, error) { made++; return second, nil }
			func() {
				defer func() { _ = recover() }()
				_, _ = tr.RoundTrip(req)
			}()
			assert.EqualValues(t, 1, first.closed.Load())
			assert.EqualValues(t, made, second.closed.Load())
			assert.Same(t, first, req.Body)
		})
	}
}

type sourceFunc func() (*oauth2.Token, error)

func (f sourceFunc) Token() (*oauth2.Token, error) { return f() }

func TestReplayHasNoBodyIfTheRequestHadNone(t *testing.T) {
	t.Parallel()
	for _, none := range []io.ReadCloser{nil, http.NoBody} {
		var bodies []io.ReadCloser
		source, answer := refusedOnce(http.NoBody)
		base := roundTripper(func(r *http.Request) (*http.Response, error) {
			bodies = append(bodies, r.Body)
			return answer(r)
		})
		req, err := http.NewRequest(http.MethodGet, DefaultBaseURL, nil)
		require.NoError(t, err)
		req.Body = none
		req.GetBody = func() (io.ReadCloser, error) { return io.NopCloser(strings.NewReader("left over")), nil }
		_, err = (&Transport{Source: source, Base: base}).RoundTrip(req)
		require.NoError(t, err)
		assert.Equal(t, []io.ReadCloser{none, none}, bodies)
	}
}

func TestHeaderNamesAreComparedWithoutCase(t *testing.T) {
	t.Parallel()
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	for _, c := range []struct {
		name      string
		transport *Transport
		target    string
		redirect  bool
		want      string // the only Authorization
	}{
		{"with a token", &Transport{Source: s}, DefaultBaseURL, false, "Bearer x"},
		{"redirect on the same host", &Transport{Source: s}, DefaultBaseURL, true, "Bearer x"},
		{"redirect elsewhere", &Transport{Source: s}, "https://sub.api.moov.io", true, ""},
		{"redirect to http", &Transport{Source: s}, "http://api.moov.io", true, ""},
		{"to the token endpoint", &Transport{Source: s}, DefaultBaseURL + tokenPath, false, "Basic of-the-caller"},
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
			before := req.Clone(t.Context())
			_, err = c.transport.RoundTrip(req)
			require.NoError(t, err)
			assert.Equal(t, before.Header, req.Header)
			var authorizations, versions []string
			for name, values := range base.last.Header {
				if http.CanonicalHeaderKey(name) == "Authorization" {
					authorizations = append(authorizations, values...)
				}
				if http.CanonicalHeaderKey(name) == VersionHeader {
					versions = append(versions, values...)
				}
			}
			assert.Equal(t, c.want, strings.Join(authorizations, ", "), c.name)
			assert.Equal(t, []string{"v2025.01.00"}, versions, c.name)
		}
	}
}

// A header that shares its length with one of ours is not one of ours.
func TestOtherHeadersAreSentAsTheyAre(t *testing.T) {
	t.Parallel()
	base := new(sink)
	req, err := http.NewRequest(http.MethodGet, DefaultBaseURL, nil)
	require.NoError(t, err)
	for n := range 20 { // more than there is room for
		req.Header.Set(fmt.Sprintf("X-Header-Nr-%02d", n), strconv.Itoa(n))
	}
	req.Header["Authorizatiom"] = []string{"a", "b"}
	req.Header["x-moov-versioN"] = nil // net/http's way to leave a header out
	_, err = (&Transport{Source: static, Base: base}).RoundTrip(req)
	require.NoError(t, err)
	want := req.Header.Clone()
	want.Set("Authorization", "Bearer static")
	want["x-moov-versioN"] = []string{}
	assert.Equal(t, want, base.last.Header)
}

func TestBaseThatReturnsNothing(t *testing.T) {
	t.Parallel()
	base := roundTripper(func(*http.Request) (*http.Response, error) { return nil, nil })
	_, err := roundTrip(t, &Transport{Source: static, Base: base}, DefaultBaseURL)
	assert.EqualError(t, err, "moovauth: Transport.Base, a moovauth.roundTripper, returned neither a response nor an error")
	_, err = roundTrip(t, &Transport{Base: base}, DefaultBaseURL)
	assert.ErrorContains(t, err, "Transport.Base")

	source, answer := refusedOnce(http.NoBody)
	_, err = roundTrip(t, &Transport{Source: source, Base: roundTripper(func(r *http.Request) (*http.Response, error) {
		if resp, _ := answer(r); resp.StatusCode == 401 {
			return resp, nil
		}
		return nil, nil
	})}, DefaultBaseURL)
	assert.ErrorContains(t, err, "Transport.Base", "the replay's too")
}

func TestRequestWithoutAURL(t *testing.T) {
	t.Parallel()
	sent := &body{Reader: strings.NewReader("x")}
	for _, tr := range []*Transport{{Base: new(sink)}, {Base: new(sink), Source: static}} {
		_, err := tr.RoundTrip(&http.Request{Body: sent})
		assert.ErrorContains(t, err, "no URL")
	}
	assert.EqualValues(t, 2, sent.closed.Load())
}

// forwarding is a wrapper around a RoundTripper that is set later.
type forwarding struct {
	to    http.RoundTripper
	count int
}

func (f *forwarding) RoundTrip(r *http.Request) (*http.Response, error) {
	f.count++
	return f.to.RoundTrip(r.Clone(context.WithValue(r.Context(), f, f.count)))
}

func (f *forwarding) CloseIdleConnections() {
	if to, ok := f.to.(interface{ CloseIdleConnections() }); ok {
		to.CloseIdleConnections()
	}
}

func TestBaseThatLeadsBackToTheTransport(t *testing.T) {
	wrapper := new(forwarding)
	for name, loop := range map[string]func() *Transport{
		"itself": func() *Transport {
			tr := &Transport{Source: static}
			tr.Base = tr
			return tr
		},
		"http.DefaultTransport": func() *Transport {
			tr := new(Transport)
			before := http.DefaultTransport
			t.Cleanup(func() { http.DefaultTransport = before })
			http.DefaultTransport = tr
			return tr
		},
		"two": func() *Transport {
			one, two := &Transport{Source: static}, new(Transport)
			one.Base, two.Base = two, one
			return one
		},
		"a wrapper in between": func() *Transport {
			tr := &Transport{Source: static, Base: wrapper}
			wrapper.to = tr
			return tr
		},
		"oauth2.Transport in between": func() *Transport {
			tr := new(Transport)
			tr.Base = &oauth2.Transport{Source: static, Base: tr}
			return tr
		},
		"a wrapper that changes the URL each time": func() *Transport {
			tr := new(Transport)
			tr.Base = roundTripper(func(r *http.Request) (*http.Response, error) {
				r = r.Clone(r.Context())
				r.URL.Path += "x"
				return tr.RoundTrip(r)
			})
			return tr
		},
	} {
		t.Run(name, func(t *testing.T) {
			tr := loop()
			client := &http.Client{Transport: tr}
			sent := &body{Reader: strings.NewReader("x")}
			for range 2 {
				_, err := client.Post(DefaultBaseURL, "text/plain", sent)
				require.ErrorContains(t, err, "Transport.Base (http.DefaultTransport if it is nil) leads back")
			}
			assert.EqualValues(t, 2, sent.closed.Load())
			client.CloseIdleConnections()
		})
	}
	assert.Equal(t, 2, wrapper.count, "once in each request: a wrapper may try again what fails")
}

func TestTransportsMayBeWithinEachOther(t *testing.T) {
	t.Parallel()
	base := new(sink)
	inner := &Transport{Source: static, Base: base, Version: "v2025.01.00"}
	outer := &Transport{Source: failing{&oauth2.Token{AccessToken: "outer"}, nil}, Base: &forwarding{to: inner}, Version: "v2026.01.00"}
	for range 2 {
		_, err := roundTrip(t, outer, DefaultBaseURL)
		require.NoError(t, err)
		assert.Equal(t, []string{"Bearer static"}, base.last.Header["Authorization"], "the inner one's")
		assert.Equal(t, []string{"v2026.01.00"}, base.last.Header[VersionHeader], "the outer one's, which the inner takes for the caller's")
	}
}

// A Base may fetch something first, with the request's context and by the same
// client.
func TestBaseMayMakeRequestsOfItsOwn(t *testing.T) {
	t.Parallel()
	last := new(sink)
	tr := &Transport{Source: static}
	tr.Base = roundTripper(func(r *http.Request) (*http.Response, error) {
		if r.URL.Path != "/csrf" {
			first, err := http.NewRequestWithContext(r.Context(), http.MethodGet, DefaultBaseURL+"/csrf", nil)
			if err != nil {
				return nil, err
			}
			if _, err := tr.RoundTrip(first); err != nil {
				return nil, err
			}
		}
		return last.RoundTrip(r)
	})
	_, err := roundTrip(t, tr, DefaultBaseURL+"/ping")
	require.NoError(t, err)
	assert.Equal(t, "/ping", last.last.URL.Path)
}

func TestContextOfASentRequestIsTheCallers(t *testing.T) {
	t.Parallel()
	type key struct{}
	ctx, cancel := context.WithCancelCause(context.WithValue(t.Context(), key{}, "x"))
	base := new(sink)
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, DefaultBaseURL, nil)
	require.NoError(t, err)
	_, err = (&Transport{Source: static, Base: base}).RoundTrip(req)
	require.NoError(t, err)
	sent := base.last.Context()
	assert.Equal(t, "x", sent.Value(key{}))
	assert.NotContains(t, fmt.Sprintf("%v %+v %#v", sent, sent, sent), "Bearer static")
	cancel(errors.New("why"))
	assert.EqualError(t, context.Cause(sent), "why")
	child, stop := context.WithCancel(sent)
	defer stop()
	assert.ErrorIs(t, child.Err(), context.Canceled)
}

// url.Error's Timeout is how net/http tells a deadline from other failures.
func TestTimeoutWhileATokenIsWaitedFor(t *testing.T) {
	t.Parallel()
	slow := moovtest.WithLatency(10 * time.Second)
	for _, c := range []struct {
		name string
		call func(t *testing.T) error
		want bool
	}{
		{"the request's deadline", func(t *testing.T) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			server := inMemory(t, slow)
			return getWith(ctx, sourceOf(t, server).Client(), server.URL+"/ping")
		}, true},
		{"with a cause of its own", func(t *testing.T) error {
			ctx, cancel := context.WithTimeoutCause(t.Context(), time.Second, errors.New("enough"))
			defer cancel()
			server := inMemory(t, slow)
			return getWith(ctx, sourceOf(t, server).Client(), server.URL+"/ping")
		}, true},
		{"http.Client.Timeout", func(t *testing.T) error {
			server := inMemory(t, slow)
			client := sourceOf(t, server).Client()
			client.Timeout = time.Second
			return getWith(t.Context(), client, server.URL+"/ping")
		}, true},
		{"WithTimeout", func(t *testing.T) error {
			server := inMemory(t, slow)
			return getWith(t.Context(), sourceOf(t, server, WithTimeout(time.Second)).Client(), server.URL+"/ping")
		}, true},
		{"a source that does not say so", func(t *testing.T) error {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			source := sourceFunc(func() (*oauth2.Token, error) { time.Sleep(2 * time.Second); return nil, errors.New("none") })
			return getWith(ctx, &http.Client{Transport: &Transport{Source: source}}, DefaultBaseURL)
		}, true},
		{"cancelled", func(t *testing.T) error {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			server := inMemory(t, slow)
			return getWith(ctx, sourceOf(t, server).Client(), server.URL+"/ping")
		}, false},
		{"refused", func(t *testing.T) error {
			server := inMemory(t)
			server.Enqueue(moovtest.Answer{Status: 401})
			return getWith(t.Context(), sourceOf(t, server).Client(), server.URL+"/ping")
		}, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				err := c.call(t)
				var wrapped *url.Error
				require.ErrorAs(t, err, &wrapped)
				assert.Equal(t, c.want, wrapped.Timeout(), "%v", err)
				time.Sleep(time.Minute) // let the grant end
			})
		})
	}
}

func getWith(ctx context.Context, client *http.Client, target string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, target, nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err == nil {
		resp.Body.Close()
	}
	return err
}

// hidden is an error that only errors.Is looks into.
type hidden struct {
	error
	in error
}

func (e hidden) Is(target error) bool { return target == e.in }

// timeouter is an error with net.Error's methods.
type timeouter struct {
	error
	timeout, temporary bool
}

func (e timeouter) Unwrap() error   { return e.error }
func (e timeouter) Timeout() bool   { return e.timeout }
func (e timeouter) Temporary() bool { return e.temporary }

func TestTimeoutAndTemporaryOfASourcesError(t *testing.T) {
	t.Parallel()
	plain := errors.New("none")
	for _, c := range []struct {
		name               string
		err                error
		timeout, temporary bool
	}{
		{"plain", plain, false, false},
		{"a deadline", fmt.Errorf("no token: %w", context.DeadlineExceeded), true, true},
		{"a deadline beside something else", fmt.Errorf("%w: %w", timeouter{plain, false, true}, context.DeadlineExceeded), true, true},
		{"one that had something to mask", setOf("s3cr3t-key").Error("asking", fmt.Errorf("s3cr3t-key: %w", context.DeadlineExceeded)), true, false},
		{"one that is hidden but for errors.Is", hidden{plain, context.DeadlineExceeded}, true, false},
		{"a file's", os.ErrDeadlineExceeded, true, true},
		{"within url.Error, deeper than it looks", &url.Error{Op: "Post", URL: "x", Err: fmt.Errorf("x: %w", context.DeadlineExceeded)}, true, false},
		{"a cool-down that follows one", &CoolDownError{Err: fmt.Errorf("no token: %w", context.DeadlineExceeded)}, false, true},
		{"a cool-down within another error", fmt.Errorf("x: %w", &CoolDownError{Err: &Error{StatusCode: 401}}), false, false},
		{"cancelled", context.Canceled, false, false},
	} {
		_, err := (&http.Client{Transport: &Transport{Source: failing{nil, c.err}, Base: new(sink)}}).Get(DefaultBaseURL)
		var wrapped *url.Error
		require.ErrorAs(t, err, &wrapped)
		assert.Equal(t, c.timeout, wrapped.Timeout(), c.name)
		assert.Equal(t, c.temporary, wrapped.Temporary(), c.name)
		assert.ErrorIs(t, err, c.err)
		assert.Equal(t, c.err.Error(), wrapped.Err.Error())
	}
}

func TestRoundTripAllocatesNoMoreThanItHasTo(t *testing.T) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	answer := &http.Response{StatusCode: 200, Body: http.NoBody}
	tr := &Transport{Source: s, Base: roundTripper(func(*http.Request) (*http.Response, error) { return answer, nil })}
	req, err := http.NewRequest(http.MethodGet, DefaultBaseURL+"/ping", nil)
	require.NoError(t, err)
	req.Header.Set("Accept", "application/json")
	allocs := testing.AllocsPerRun(100, func() { _, _ = tr.RoundTrip(req) })
	assert.LessOrEqual(t, allocs, 4.0, "the request, its header's two parts, and what the header holds")
}

// toldLimiter is a Limiter that wants to know of refusals.
type toldLimiter struct{ told []time.Duration }

func (*toldLimiter) Wait(context.Context) error { return nil }

func (l *toldLimiter) Refused(retryAfter time.Duration) { l.told = append(l.told, retryAfter) }

func TestLimiterIsToldOfEach429(t *testing.T) {
	t.Parallel()
	limiter := new(toldLimiter)
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithLimiter(limiter), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	header := http.Header{"Retry-After": {"7"}}
	base := roundTripper(func(r *http.Request) (*http.Response, error) {
		status := http.StatusTooManyRequests
		if r.URL.Path == "/ping" {
			status = http.StatusOK
		}
		return &http.Response{StatusCode: status, Header: header, Body: http.NoBody, Request: r}, nil
	})
	tr := &Transport{Source: s, Base: base}
	for _, path := range []string{"/transfers", "/ping", tokenPath} {
		_, err := roundTrip(t, tr, DefaultBaseURL+path)
		require.NoError(t, err)
	}
	assert.Equal(t, []time.Duration{7 * time.Second}, limiter.told, "not of a token request, of which the source tells")
	header.Del("Retry-After")
	resp, err := roundTrip(t, tr, DefaultBaseURL)
	require.NoError(t, err)
	assert.Equal(t, http.StatusTooManyRequests, resp.StatusCode, "which is returned as it is")
	assert.Equal(t, []time.Duration{7 * time.Second, 0}, limiter.told)
}

// An answer's Request has been through the Transport, and is over.
func TestRequestOfAnAnswerMayBeMadeAgain(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	client := sourceOf(t, server).Client()
	req, err := http.NewRequest(http.MethodGet, server.URL+"/ping", nil)
	require.NoError(t, err)
	for range 2 * maxPassages {
		resp, err := client.Do(req)
		require.NoError(t, err)
		resp.Body.Close()
		require.Equal(t, http.StatusOK, resp.StatusCode)
		req = resp.Request
	}
}
