package moovauth

// This file puts a token on requests: the version header, the Authorization
// header, and one more try after a 401. Where a token may go is hosts.go's.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// Transport is an [http.RoundTripper] that adds X-Moov-Version to each
// request, and the token of Source if there is one. Its zero value only adds
// the version. Do not change its fields after its first use.
//
// The token goes only to Hosts, and only over https (or http to a loopback
// address). A request elsewhere gets a [*HostError], and nothing is sent; a
// redirect elsewhere is followed without the token. An Authorization header
// that the request has already is replaced, except on requests to Moov's token
// and revoke endpoints, which keep it and get no token. A version header that
// the request has stays. Both are found in whatever case they are written.
//
// Each 401 to a token of Source invalidates that token, if Source has an
// Invalidate method. If the request's body can be sent again (there is none,
// or GetBody is set), the 401's body is read and closed, so that its connection
// is free for the token request: at most 64 KiB are read, for at most a quarter
// of a second. The request is then made once more if Source has another token.
// If it has none, the caller gets the 401 with the part of the body that was
// read. If that is not all, it ends in [io.ErrUnexpectedEOF].
//
// A 429 is returned as it is. The [Limiter] of a *TokenSource is told of it.
//
// A Source of a type of yours that wraps a *TokenSource needs Hosts and Version:
// a host that is missing is an error, but a version that is missing is the
// default one, and no error.
//
// If Source has a TokenContext method, it is called with the request's context
// instead of Token. A request whose deadline passes meanwhile ends in an error
// whose Timeout method reports true.
type Transport struct {
	Base    http.RoundTripper  // nil: http.DefaultTransport. It must not follow redirects itself, nor lead back to this Transport.
	Source  oauth2.TokenSource // nil: no Authorization header
	Version string             // "": the source's version if Source is a *TokenSource, else DefaultVersion
	Hosts   []string           // host or host:port, where the token may go; empty: the base URL's host if Source is a *TokenSource, else DefaultBaseURL's

	once    sync.Once
	version string
	to      destination
	err     error // what is wrong with the fields

	closingIdle atomic.Bool // CloseIdleConnections is under way
}

// Client returns a client that authorises its requests to the base URL's host
// with s, through a [Transport] on the transport of the client given with
// [WithHTTPClient], whose CheckRedirect, Jar and Timeout it keeps.
func (s *TokenSource) Client() *http.Client {
	var c http.Client
	if s.endpoint != nil { // else its requests fail, and say why
		c = *s.endpoint.client
	}
	c.Transport = &Transport{Base: c.Transport, Source: s}
	return &c
}

// RoundTrip implements [http.RoundTripper].
func (t *Transport) RoundTrip(req *http.Request) (*http.Response, error) {
	reqBodyClosed := false
	if req.Body != nil {
		defer func() {
			if !reqBodyClosed {
				req.Body.Close()
			}
		}()
	}
	t.once.Do(t.init)
	before, err := t.check(req)
	if err != nil {
		return nil, err
	}

	var sent *held // nil: the request goes without a token
	keep := true   // the request's own Authorization header
	switch {
	case t.Source == nil:
	case !t.to.trusts(req.URL):
		if req.Response == nil { // not a redirect
			return nil, t.to.refuse(req.URL)
		}
		keep = false // net/http keeps it on the way to a subdomain, or to http
	case !t.to.isEndpoint(req.URL):
		if sent, err = t.token(req.Context()); err != nil {
			return nil, newTokenError(req.Context(), err)
		}
	}

	// Base closes req.Body.
	reqBodyClosed = true
	if sent == nil {
		return t.send(t.prepare(req, before, keep, ""))
	}
	resp, err := t.sendWith(sent, t.prepare(req, before, false, sent.authorization))
	if err != nil || resp.StatusCode != http.StatusUnauthorized {
		return resp, err
	}
	hasBody := req.Body != nil && req.Body != http.NoBody
	if hasBody && req.GetBody == nil {
		return resp, nil
	}
	// A token request may need the connection that the 401's body holds.
	resp = release(resp)
	fresh, err := t.token(req.Context())
	if err != nil || fresh.authorization == sent.authorization {
		return resp, nil
	}
	again := t.prepare(req, before, false, fresh.authorization)
	if hasBody {
		if again.Body, err = req.GetBody(); err != nil {
			return resp, nil
		}
	}
	return t.sendWith(fresh, again)
}

// check says what is wrong with t, or with req. It returns the passage through
// t that has led to req, if there is one.
func (t *Transport) check(req *http.Request) (*passage, error) {
	if t.err != nil {
		return nil, t.err
	}
	if req.URL == nil {
		return nil, errors.New("moovauth: the request has no URL")
	}
	before, _ := req.Context().Value(t).(*passage)
	if before != nil && before.over.Load() { // the request is made with the context of an answer's Request
		return nil, nil
	}
	if before != nil && (before.nth >= maxPassages || before.url.String() == req.URL.String()) {
		return nil, errors.New("moovauth: Transport.Base (http.DefaultTransport if it is nil) leads back to the Transport itself: set Base to a RoundTripper that does not")
	}
	return before, nil
}

// passage is the context of a request that has been through a Transport. By it
// a Base that leads back to the Transport is found out. A Base may still make a
// request of its own through the same Transport, to another URL.
type passage struct {
	context.Context
	through *Transport
	url     *url.URL
	nth     int         // of those that are within each other
	over    atomic.Bool // Base has returned
}

const maxPassages = 8 // within each other

func (p *passage) Value(key any) any {
	if key == any(p.through) {
		return p
	}
	return p.Context.Value(key)
}

// prepare returns a copy of req with our headers. keep is whether it keeps its
// own Authorization header.
func (t *Transport) prepare(req *http.Request, before *passage, keep bool, authorization string) *http.Request {
	own := new(struct { // one allocation for both
		passage
		room [5]string // for the values of most requests' headers
	})
	own.Context, own.through, own.url, own.nth = req.Context(), t, req.URL, 1
	if before != nil {
		own.nth += before.nth
	}
	out := req.WithContext(&own.passage)
	out.Header = make(http.Header, len(req.Header)+2)
	values := own.room[:0]
	if len(req.Header)+2 > len(own.room) {
		values = make([]string, 0, len(req.Header)+2)
	}
	set := func(name string, value ...string) {
		n := len(values)
		values = append(values, value...)
		out.Header[name] = values[n:len(values):len(values)]
	}
	hasVersion := false
	for name, value := range req.Header {
		if is(name, "Authorization") && !keep {
			continue
		}
		hasVersion = hasVersion || is(name, VersionHeader)
		set(name, value...)
	}
	if !hasVersion {
		set(VersionHeader, t.version)
	}
	if authorization != "" {
		set("Authorization", authorization)
	}
	return out
}

// is reports whether name, which may have been set by index, is header.
func is(name, header string) bool {
	return len(name) == len(header) && strings.EqualFold(name, header)
}

// send hands req to Base.
func (t *Transport) send(req *http.Request) (*http.Response, error) {
	resp, err := t.base().RoundTrip(req)
	if own, ok := req.Context().(*passage); ok {
		own.over.Store(true)
	}
	if resp == nil && err == nil {
		return nil, fmt.Errorf("moovauth: Transport.Base, a %T, returned neither a response nor an error", t.base())
	}
	return resp, err
}

// sendWith sends req, which has a token of Source, and tells Source of a 401 and
// its limiter of a 429.
func (t *Transport) sendWith(token *held, req *http.Request) (*http.Response, error) {
	resp, err := t.send(req)
	if err != nil {
		return resp, err
	}
	switch resp.StatusCode {
	case http.StatusUnauthorized:
		if source, ok := t.Source.(interface{ Invalidate(accessToken string) }); ok {
			source.Invalidate(token.token.AccessToken)
		}
	case http.StatusTooManyRequests:
		if source, ok := t.Source.(*TokenSource); ok {
			source.endpoint.tell(req.Context(), retryAfter(resp.Header, time.Now()))
		}
	}
	return resp, nil
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

// tokenError is why there is no token for a request. A [*url.Error] asks the
// error in it, and no deeper one, whether it is a timeout.
type tokenError struct {
	error
	timeout bool
}

func newTokenError(ctx context.Context, err error) error {
	return &tokenError{err, timedOut(err) || errors.Is(ctx.Err(), context.DeadlineExceeded)}
}

func (e *tokenError) Unwrap() error { return e.error }

func (e *tokenError) Timeout() bool { return e.timeout }

func (e *tokenError) Temporary() bool {
	var t interface{ Temporary() bool }
	return errors.As(e.error, &t) && t.Temporary()
}

// init checks and reads the fields.
func (t *Transport) init() {
	var base *url.URL
	t.version = DefaultVersion
	if s, ok := t.Source.(*TokenSource); ok {
		if s == nil || s.endpoint == nil {
			t.err = errors.New("moovauth: Transport.Source is a nil or zero TokenSource: make one with NewTokenSource")
			return
		}
		base, _ = url.Parse(s.endpoint.baseURL)
		t.version = s.endpoint.version
	}
	if t.Version != "" {
		if err := checkVersion(t.Version); err != nil {
			t.err = fmt.Errorf("moovauth: Transport.Version: %w", err)
			return
		}
		t.version = t.Version
	}
	t.to, t.err = newDestination(t.Hosts, base)
}

// CloseIdleConnections closes those of Base, if it has the method, for
// [http.Client.CloseIdleConnections].
func (t *Transport) CloseIdleConnections() {
	if t.closingIdle.Swap(true) { // Base leads back to t, or another call closes them
		return
	}
	defer t.closingIdle.Store(false)
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
