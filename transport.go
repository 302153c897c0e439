package moovauth

// This file sends API requests with the version header and the token, and
// repeats a request after a 401. hosts.go decides where a token may go.

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"
)

// Transport is an [http.RoundTripper] that adds X-Moov-Version to each request,
// and the token of Source if there is one. The zero value adds only the
// version: it sends requests to any host, and leaves their Authorization header
// as it is. Do not change the fields after the first use.
//
// The token goes only to Hosts, and only over https, or over http to a loopback
// address. A host without a port means port 443. A request to any other host
// fails with a [*HostError], and nothing is sent. A redirect to any other host
// is followed without the token. Transport replaces an Authorization header
// that the request already has, and keeps a version header. A request to Moov's
// token or revoke endpoint keeps its Authorization header and gets no token.
//
// After a 401, Transport invalidates the token if Source has an Invalidate
// method. If Source then has another token, and the body can be sent again
// because it is empty or GetBody is set, Transport sends the request once more.
// Otherwise the caller gets the 401. A 401 with an insufficient_scope challenge
// (RFC 6750 §3.1) and the 401 to the second request do not invalidate the
// token, since another token would not help.
//
// Before Transport asks Source for another token, it reads at most 64 KiB of
// the 401's body, for at most 250 ms, so that the connection can be used again.
// If Source has no other token, the caller gets the part of the body that was
// read. If that is not the whole body, reading it ends with
// [io.ErrUnexpectedEOF].
//
// If Source is not a *TokenSource but wraps one, Transport does not know its
// base URL and its version. If they are not the defaults, set Hosts and
// Version. If Source has a TokenContext method, Transport calls it with the
// request's context, instead of Token. If the request's deadline passes during
// that call, the Timeout method of the error returns true.
type Transport struct {
	Base    http.RoundTripper  // nil: http.DefaultTransport. It must not follow redirects or change header values in place.
	Source  oauth2.TokenSource // nil: no Authorization header
	Version string             // "": the version of Source if it is a *TokenSource, else DefaultVersion
	Hosts   []string           // where the token may go, as host or host:port; empty: the base URL's host if Source is a *TokenSource, else api.moov.io

	once    sync.Once
	version []string // the values of the version header
	to      destination
	err     error // what is wrong with the fields
}

// Client returns a client that sends s's token to the base URL's host. It is a
// copy of the client of [WithHTTPClient], with that client's transport as the
// Base of a [Transport].
func (s *TokenSource) Client() *http.Client {
	var c http.Client
	if s.core != nil { // the requests of a zero TokenSource fail with an error that says why
		c = *s.core.config.client
	}
	c.Transport = &Transport{Base: c.Transport, Source: s}
	return &c
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	bodyClosed := false
	if req.Body != nil {
		defer func() {
			if !bodyClosed {
				req.Body.Close()
			}
		}()
	}
	t.once.Do(t.init)
	if t.err != nil {
		return nil, t.err
	}
	if req.URL == nil {
		return nil, errors.New("moovauth: the request has no URL")
	}
	var token *currentToken
	keepOwn := true // whether the request keeps its own Authorization header
	switch {
	case t.Source == nil:
	case !t.to.trusts(req.URL):
		if req.Response == nil { // not a redirect
			return nil, t.to.refuse(req.URL)
		}
		keepOwn = false // net/http would keep it on a redirect to a subdomain, or to http
	case !t.to.isEndpoint(req.URL):
		var err error
		if token, err = t.token(req.Context()); err != nil {
			return nil, err
		}
		keepOwn = false
	}

	bodyClosed = true // Base closes it
	resp, err := t.base().RoundTrip(t.prepare(req, keepOwn, token))
	if err != nil || resp == nil || token == nil || resp.StatusCode != http.StatusUnauthorized || !t.invalidate(token, resp) {
		return resp, err
	}
	hasBody := req.Body != nil && req.Body != http.NoBody
	if hasBody && req.GetBody == nil {
		return resp, nil
	}
	release(resp) // a token request may need its connection
	another, err := t.token(req.Context())
	if err != nil || another.AccessToken == token.AccessToken {
		return resp, nil
	}
	again := t.prepare(req, false, another)
	if hasBody {
		if again.Body, err = req.GetBody(); err != nil {
			return resp, nil
		}
	}
	return t.base().RoundTrip(again)
}

// invalidate tells Source that the API refused token with the 401 resp, and
// reports whether another token may help.
func (t *Transport) invalidate(token *currentToken, resp *http.Response) bool {
	source, ok := t.Source.(interface{ Invalidate(accessToken string) })
	if !ok || strings.Contains(strings.Join(resp.Header.Values("WWW-Authenticate"), ","), "insufficient_scope") {
		return false
	}
	source.Invalidate(token.AccessToken)
	if s, ok := t.Source.(*TokenSource); ok {
		now := s.core.state.load().usable(s.core.config.clock())
		return now == nil || now.AccessToken != token.AccessToken
	}
	return true
}

// The bounds on reading the body of a 401.
const (
	maxRefusalBody = 64 << 10
	maxRefusalTime = 250 * time.Millisecond
)

// release reads the body of a 401 and closes it, so that its connection becomes
// free. What was read becomes the new body.
func release(resp *http.Response) {
	body := resp.Body
	if body == nil || body == http.NoBody {
		return
	}
	timer := time.AfterFunc(maxRefusalTime, func() { body.Close() })
	text, err := io.ReadAll(io.LimitReader(body, maxRefusalBody+1))
	// After the Close, a server may end the body as if it were complete.
	if !timer.Stop() || len(text) > maxRefusalBody {
		text, err = text[:min(len(text), maxRefusalBody)], io.ErrUnexpectedEOF
	}
	body.Close()
	resp.Body = io.NopCloser(bytes.NewReader(text))
	if err != nil {
		resp.Body = io.NopCloser(io.MultiReader(bytes.NewReader(text), failingReader{}))
	}
}

// failingReader follows a body that was not read to its end.
type failingReader struct{}

func (failingReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

// prepare returns a copy of req with the version header and the token. keepOwn
// says whether the copy keeps its own Authorization header.
func (t *Transport) prepare(req *http.Request, keepOwn bool, token *currentToken) *http.Request {
	out := new(http.Request)
	*out = *req
	if out.Header = req.Header.Clone(); out.Header == nil {
		out.Header = make(http.Header)
	}
	hasVersion := false
	for name := range out.Header {
		if strings.EqualFold(name, "Authorization") && !keepOwn {
			delete(out.Header, name)
		}
		hasVersion = hasVersion || strings.EqualFold(name, VersionHeader)
	}
	if !hasVersion {
		out.Header[VersionHeader] = t.version
	}
	if token != nil {
		out.Header["Authorization"] = token.authorization[:]
	}
	return out
}

// token returns the token of Source.
func (t *Transport) token(ctx context.Context) (*currentToken, error) {
	var token *oauth2.Token
	var err error
	switch source := t.Source.(type) {
	case *TokenSource:
		current, err := source.currentToken(ctx)
		return current, failure(err)
	case interface {
		TokenContext(context.Context) (*oauth2.Token, error)
	}:
		token, err = source.TokenContext(ctx)
	default:
		token, err = source.Token()
	}
	if err != nil {
		return nil, failure(err) // *url.Error calls the Timeout method of this error only
	}
	if token == nil || token.AccessToken == "" {
		return nil, errors.New("moovauth: Transport.Source returned no access token, and no error")
	}
	return &currentToken{Token: *token, authorization: [1]string{token.Type() + " " + token.AccessToken}}, nil
}

// init checks and reads the fields.
func (t *Transport) init() {
	var base *url.URL
	version := DefaultVersion
	if s, ok := t.Source.(*TokenSource); ok {
		if s == nil || s.core == nil {
			t.err = errors.New("moovauth: Transport.Source is a nil or zero TokenSource: make one with NewTokenSource")
			return
		}
		base, _ = url.Parse(s.core.config.baseURL)
		version = s.core.config.version
	}
	t.version = []string{cmp.Or(t.Version, version)}
	if err := checkVersion(t.version[0]); err != nil {
		t.err = fmt.Errorf("moovauth: Transport.Version: %w", err)
		return
	}
	if t.base() == http.RoundTripper(t) {
		t.err = errors.New("moovauth: http.DefaultTransport is this Transport, so that it would call itself: set Base")
		return
	}
	t.to, t.err = newDestination(t.Hosts, base)
}

// CloseIdleConnections closes the idle connections of Base, if Base has such a
// method. [http.Client.CloseIdleConnections] calls it.
func (t *Transport) CloseIdleConnections() {
	if base, ok := t.base().(interface{ CloseIdleConnections() }); ok && base != any(t) {
		base.CloseIdleConnections()
	}
}

func (t *Transport) base() http.RoundTripper {
	if t.Base != nil {
		return t.Base
	}
	return http.DefaultTransport
}
