package moovauth

// This file puts a token on requests: the version header, the Authorization
// header where it may go, and one more try after a 401.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"golang.org/x/oauth2"
)

// maxDrain is how much of a 401's body is read to keep its connection.
const maxDrain = 64 << 10

// Transport is an [http.RoundTripper] that adds X-Moov-Version to each
// request, and the token of Source where there is one. Its zero value only adds
// the version. Do not change its fields after its first use.
//
// The token goes only to Hosts, and only over https (or http to a loopback
// address). A request elsewhere is an error, and nothing is sent; a redirect
// elsewhere is followed without the token. An Authorization header that the
// request has already is replaced, but for requests to Moov's token and revoke
// endpoints, which go out as they are. A version header that it has stays.
//
// After a 401 the token is invalidated, where Source has an Invalidate method,
// and the request is made once more if there is a new token and the body can be
// sent again (none, or GetBody is set). Otherwise the 401 is returned.
//
// Where Source has a TokenContext method, it is called with the request's
// context in the place of Token.
type Transport struct {
	Base    http.RoundTripper  // nil: http.DefaultTransport. It must not follow redirects itself.
	Source  oauth2.TokenSource // nil: no Authorization header
	Version string             // "": the source's version if Source is a *TokenSource, else DefaultVersion
	Hosts   []string           // host or host:port, where the token may go; empty: the base URL's host if Source is a *TokenSource, else DefaultBaseURL's

	once sync.Once
	to   destination
	err  error // what is wrong with the fields
}

// destination is what a Transport works out once from its fields.
type destination struct {
	version string
	hosts   []address
	usual   string // of hosts, one as it stands in an https URL: no closer look is needed
	token   string // the token endpoint's path
	revoke  string // the revoke endpoint's
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	t.once.Do(t.init)
	if t.err != nil {
		return nil, fail(req, t.err)
	}
	if t.Source != nil && !t.to.trusts(req.URL) {
		if req.Response == nil { // not a redirect
			return nil, fail(req, t.to.refuse(req.URL))
		}
		own := t.prepare(req, "")
		delete(own.Header, "Authorization") // nor the caller's, which net/http keeps on the way to a subdomain, or to http
		return t.base().RoundTrip(own)
	}
	if t.Source == nil || t.to.isEndpoint(req.URL) {
		return t.base().RoundTrip(t.prepare(req, ""))
	}

	sent, err := t.token(req.Context())
	if err != nil {
		return nil, fail(req, err)
	}
	resp, err := t.base().RoundTrip(t.prepare(req, sent.authorization))
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	if source, ok := t.Source.(interface{ Invalidate(accessToken string) }); ok {
		source.Invalidate(sent.token.AccessToken)
	}
	again, ok := t.again(req, sent)
	if !ok {
		return resp, nil
	}
	if resp.Body != nil {
		_, _ = io.CopyN(io.Discard, resp.Body, maxDrain)
		resp.Body.Close()
	}
	return t.base().RoundTrip(again)
}

// again is req with another token than the one that was sent, if there is one.
func (t *Transport) again(req *http.Request, sent *held) (*http.Request, bool) {
	if req.Body != nil && req.Body != http.NoBody && req.GetBody == nil {
		return nil, false
	}
	fresh, err := t.token(req.Context())
	if err != nil || fresh.authorization == sent.authorization {
		return nil, false
	}
	again := t.prepare(req, fresh.authorization)
	if req.GetBody != nil {
		if again.Body, err = req.GetBody(); err != nil {
			return nil, false
		}
	}
	return again, true
}

// token asks Source.
func (t *Transport) token(ctx context.Context) (*held, error) {
	var token *oauth2.Token
	var err error
	switch source := t.Source.(type) {
	case *TokenSource:
		return source.grantedToken(ctx)
	case interface {
		TokenContext(context.Context) (*oauth2.Token, error)
	}:
		token, err = source.TokenContext(ctx)
	default:
		token, err = source.Token()
	}
	if err != nil {
		return nil, err
	}
	if token == nil || token.AccessToken == "" {
		return nil, errors.New("moovauth: Transport.Source returned no access token, and no error")
	}
	return &held{token: *token, authorization: token.Type() + " " + token.AccessToken}, nil
}

// prepare returns a copy of req with our headers.
func (t *Transport) prepare(req *http.Request, authorization string) *http.Request {
	own := req.WithContext(req.Context())
	own.Header = make(http.Header, len(req.Header)+2)
	values := make([]string, 0, len(req.Header)+2) // of all headers, in one allocation
	set := func(name string, value ...string) {
		n := len(values)
		values = append(values, value...)
		own.Header[name] = values[n:len(values):len(values)]
	}
	for name, value := range req.Header {
		set(name, value...)
	}
	if _, ok := req.Header[VersionHeader]; !ok {
		set(VersionHeader, t.to.version)
	}
	if authorization != "" {
		set("Authorization", authorization)
	}
	return own
}

// init checks and reads the fields.
func (t *Transport) init() {
	base, _ := url.Parse(DefaultBaseURL)
	t.to.version = DefaultVersion
	if s, ok := t.Source.(*TokenSource); ok {
		if s == nil || s.endpoint == nil {
			t.err = errors.New("moovauth: Transport.Source is a nil or zero TokenSource: make one with NewTokenSource")
			return
		}
		base, t.to.version = s.endpoint.baseURL, s.endpoint.version
	}
	t.to.token, t.to.revoke = base.Path+tokenPath, base.Path+revokePath
	if t.Version != "" {
		if err := checkVersion(t.Version); err != nil {
			t.err = fmt.Errorf("moovauth: Transport.Version: %w", err)
			return
		}
		t.to.version = t.Version
	}
	if len(t.Hosts) == 0 {
		t.to.hosts = []address{addressOf(base)}
		if base.Scheme == "https" {
			t.to.usual = base.Host
		}
	}
	for _, host := range t.Hosts {
		u, err := url.Parse("https://" + host)
		if err != nil || u.Hostname() == "" || u.Host != host {
			t.err = fmt.Errorf("moovauth: Transport.Hosts: want a host or host:port, such as %q; got %q", "api.moov.io", host)
			return
		}
		t.to.hosts, t.to.usual = append(t.to.hosts, addressOf(u)), host
		if u.Scheme = "http"; u.Port() == "" && secure(u) {
			t.to.hosts = append(t.to.hosts, addressOf(u))
		}
	}
}

// trusts reports whether the token may go to u.
func (d *destination) trusts(u *url.URL) bool {
	if u.Scheme == "https" && u.Host == d.usual {
		return true
	}
	return secure(u) && slices.Contains(d.hosts, addressOf(u))
}

// refuse says why the token may not go to u.
func (d *destination) refuse(u *url.URL) error {
	if !secure(u) {
		return fmt.Errorf("moovauth: the token is not sent over %s to %s: use https", u.Scheme, u.Host)
	}
	return fmt.Errorf("moovauth: the token is not sent to %v, only to %v: add the host to Transport.Hosts, or use another client", addressOf(u), d.hosts)
}

// isEndpoint reports whether u is one of the endpoints with client credentials.
func (d *destination) isEndpoint(u *url.URL) bool {
	return u.Path == d.token || u.Path == d.revoke
}

// address is where a request goes to.
type address struct {
	host string // in lower case
	port string
}

func addressOf(u *url.URL) address {
	a := address{strings.Map(lowerASCII, u.Hostname()), u.Port()}
	if a.port == "" && u.Scheme == "https" {
		a.port = "443"
	} else if a.port == "" {
		a.port = "80"
	}
	return a
}

// lowerASCII leaves other letters alone: İ would become an i, but names another
// host.
func lowerASCII(r rune) rune {
	if 'A' <= r && r <= 'Z' {
		r += 'a' - 'A'
	}
	return r
}

func (a address) String() string { return net.JoinHostPort(a.host, a.port) }

// CloseIdleConnections closes those of Base, where it has the method, for
// [http.Client.CloseIdleConnections].
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok {
		base.CloseIdleConnections()
	}
}

func (t *Transport) base() http.RoundTripper {
	if t.Base != nil {
		return t.Base
	}
	return http.DefaultTransport
}

// fail closes req's body, as a RoundTripper must, and returns err.
func fail(req *http.Request, err error) error {
	if req.Body != nil {
		req.Body.Close()
	}
	return err
}
