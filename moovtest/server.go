// Package moovtest provides an in-process Moov authorization server for tests.
//
// A [Server] answers POST /oauth2/token, POST /oauth2/revoke and GET /ping as
// Moov documents them. It issues, rotates, expires and revokes tokens, and
// records every request. It can also reply slowly, reply with an error, or not
// reply at all. A test can add more endpoints with [Server.Handle]:
//
//	server := moovtest.NewServer(moovtest.WithLifetime(time.Minute))
//	defer server.Close()
//	server.Enqueue(moovtest.Answer{Status: 503}) // the first token or revoke request gets a 503
//
//	// Point the code under test at server.URL, with server.ClientID and
//	// server.ClientSecret. Then check the requests that it made:
//	requests := server.TokenRequests()
//
// [Server.SetAnswer] starts and ends an outage of these two endpoints.
//
// [NewServer] listens on a loopback port. [NewInMemory] opens no socket, so it
// also works inside a [testing/synctest] bubble, where a sleep until a token
// expires takes no real time. [Server.Close] explains how to end such a test.
//
// With NewInMemory, the code under test must use the server's client. A token
// source of package moovauth takes it as
// moovauth.WithHTTPClient(server.Client()).
package moovtest

// This file holds the Server as a test sees it: its options, the methods that
// change it while it runs, and what it recorded. The endpoints are in oauth2.go.

import (
	"cmp"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Server is a Moov authorization server for tests. Create one with [NewServer] or
// [NewInMemory]. Its methods are safe for concurrent use. Do not change its
// fields.
//
// A refresh token works once, and the reply contains a new one (RFC 6749 §6). A
// second use is refused; with [WithReuseDetection], it also revokes other tokens. A
// refresh keeps the scopes and ignores a scope field in the request. The old access
// token stays valid until it expires. Revoking a token does not revoke any
// other token, and revoking an unknown token succeeds (RFC 7009 §2.2).
//
// The server is stricter than Moov may be. It answers 400 with the error code
// invalid_request if
//   - a parameter is given twice (RFC 6749 §3.2),
//   - the client ID or secret in the body differs from the one in the
//     Authorization header, or
//   - there are two Authorization headers.
//
// The body and the Authorization header may both contain the credentials, as in
// Moov's own examples. The X-Moov-Version header is optional. If its value is not
// "dev", "latest" or of the form "v2024.01.00", every endpoint answers 404.
type Server struct {
	// URL is the base URL, without a trailing slash. It is "http://127.0.0.1:"
	// and a port from NewServer, and "https://moov.test" from NewInMemory.
	URL string

	// These are the credentials that the server was created with.
	// SetCredentials does not change the fields.
	ClientID     string // the public key in Moov's dashboard; default "moovtest-public-key"
	ClientSecret string // the secret key in Moov's dashboard; default "moovtest-secret-key"

	expiresInSeconds bool
	noRefreshTokens  bool
	origins          []string // empty: no Origin is required
	scopes           []string // empty: any scope is allowed
	perSecond        int      // 0: no rate limit
	fixedWindow      bool     // the rate limit counts in whole seconds
	reuseDetection   bool
	cors             bool     // web pages of other origins may read the API's replies
	pages            []string // the origins of those pages; empty: any origin
	now              func() time.Time
	client           *http.Client
	loopback         *httptest.Server // nil: in memory
	mux              *http.ServeMux   // the endpoints added with Handle

	mu       sync.Mutex    // guards the fields below
	creds    []credentials // accepted credentials; SetCredentials appends
	lifetime time.Duration
	latency  time.Duration
	answers  []Answer // the queue of Enqueue
	standing *Answer  // set by SetAnswer; nil: none
	requests []Request
	tokens   map[string]token     // by value, without those used or revoked
	used     map[string]token     // used refresh tokens, by value; with reuse detection only
	issued   int                  // how many sets of tokens were ever issued
	served   []time.Time          // when the requests in the rate limit's window arrived
	serving  map[*func()]struct{} // how to hang up on each running request
	closed   bool
}

// NewServer starts a server that listens for HTTP on a loopback port. Close it
// when the test is done.
//
// Inside a [testing/synctest] bubble, use [NewInMemory] instead. A server from
// NewServer waits for the network. While it is open, the bubble's time stands
// still, and [testing/synctest.Wait] does not return. A test that sleeps, or a
// token source that waits before a retry, would hang.
func NewServer(opts ...Option) *Server {
	s := newServer(opts)
	s.loopback = httptest.NewServer(s)
	s.URL = s.loopback.URL
	s.client = s.loopback.Client()
	return s
}

// NewInMemory returns a server that opens no socket. Requests reach it only
// through [Server.Client] or [Server.Transport]. Inside a [testing/synctest]
// bubble, its latency and the lifetimes of its tokens pass in the bubble's time.
//
// Give the code under test the server's client. A token source of package
// moovauth takes it as moovauth.WithHTTPClient(server.Client()). With any other
// client, a request goes to the network and fails with an error such as "lookup
// moov.test on 127.0.0.53:53: no such host".
func NewInMemory(opts ...Option) *Server {
	s := newServer(opts)
	s.URL = "https://moov.test"
	s.client = &http.Client{Transport: s.Transport()}
	return s
}

func newServer(opts []Option) *Server {
	s := &Server{
		ClientID:     "moovtest-public-key",
		ClientSecret: "moovtest-secret-key",
		now:          clock,
		lifetime:     15 * time.Minute,
		tokens:       make(map[string]token),
		used:         make(map[string]token),
		serving:      make(map[*func()]struct{}),
		mux:          http.NewServeMux(),
	}
	for _, opt := range opts {
		opt(s)
	}
	s.creds = []credentials{{s.ClientID, s.ClientSecret}}
	return s
}

// inBubble reports whether now is the time of a synctest bubble, which starts in
// 2000. Package synctest has no function for this.
func inBubble(now time.Time) bool { return now.Unix() < 1.7e9 } // 2023: before any release of Go that runs this

// ahead is the time from 2000, when a bubble starts, to 2030.
const ahead = 10958 * 24 * time.Hour

// clock is time.Now, moved ahead by 30 years in a synctest bubble. A bubble's Unix
// timestamps have nine digits at first, and clients take such a number for seconds.
// A client that compares expires_in with Date does not notice the move. The clock
// checks at each call, since a server created outside a bubble can be used inside.
func clock() time.Time {
	now := time.Now()
	if inBubble(now) {
		now = now.Add(ahead)
	}
	return now
}

// settling is how long Close waits in a bubble. It is longer than a client keeps
// trying after the server has hung up.
const settling = time.Minute

// Close shuts the server down. It hangs up on requests that are waiting for an
// answer or still being sent, and on all later requests. After that, no token is
// issued, used or revoked. The recorded requests and the tokens can still be read.
//
// With [NewInMemory], Close then returns at once. With [NewServer], it waits until
// every running [Answer.Handler] and [Server.Handle] handler has returned. A handler
// must return when its request's context ends.
//
// Inside a [testing/synctest] bubble, Close of a server from NewInMemory also sleeps
// for a minute of the bubble's time, which takes no real time. During this minute, a
// client that works in the background gives up, such as a token source that is
// refreshing its token. Otherwise the client's goroutine would still run when the
// test ends, and the bubble would panic. So create the server inside the bubble, and
// close it at the end of the test with defer or [testing.T.Cleanup].
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for hangUp := range s.serving {
		(*hangUp)()
	}
	s.mu.Unlock()
	switch {
	case s.loopback != nil:
		s.loopback.CloseClientConnections() // even if net/http is still waiting for the rest of a body
		s.loopback.Close()
	case inBubble(time.Now()):
		time.Sleep(settling)
	}
}

// Client returns a client that reaches the server: through the loopback port with
// [NewServer], and through [Server.Transport] with [NewInMemory].
func (s *Server) Client() *http.Client { return s.client }

// Transport returns a RoundTripper that passes requests for any host to the server
// without a socket. It also works for a server from [NewServer].
//
// RoundTrip returns when the response is complete, so an [Answer.Handler] cannot
// hijack the connection or stream its response. If the handler panics, even with
// [http.ErrAbortHandler], RoundTrip returns an error.
func (s *Server) Transport() http.RoundTripper { return &memory{handler: s, enter: s.enter} }

// Option configures a new [Server].
type Option func(*Server)

// WithCredentials sets the only credentials that the server accepts, until
// [Server.SetCredentials] adds others.
func WithCredentials(clientID, clientSecret string) Option {
	return func(s *Server) { s.ClientID, s.ClientSecret = clientID, clientSecret }
}

// WithLifetime sets how long access tokens are valid. The default is 15 minutes.
// Replies state the expiry in whole seconds, rounded down. Refresh tokens do not
// expire.
func WithLifetime(d time.Duration) Option {
	return func(s *Server) { s.lifetime = d }
}

// WithExpiresInSeconds makes expires_in the lifetime in seconds, as in RFC 6749
// §5.1. By default, it is the Unix timestamp of the expiry, as Moov documents.
func WithExpiresInSeconds() Option {
	return func(s *Server) { s.expiresInSeconds = true }
}

// WithOrigins sets the API key's list of allowed domains, such as
// "https://example.com". A token request must then have one of them as its Origin
// header. If it has no Origin header, the scheme and host of its Referer header
// count instead. Otherwise the server answers 400. By default, a token request
// needs neither header.
func WithOrigins(origins ...string) Option {
	return func(s *Server) { s.origins = origins }
}

// WithScopes sets the scopes that the API key may request. If a token request asks
// for any other scope, the server answers 422. By default, or if no scopes are
// given, the key may request any scope.
func WithScopes(scopes ...string) Option {
	return func(s *Server) { s.scopes = scopes }
}

// WithLatency makes the server wait for d before it acts on a token or revoke
// request. By default, it does not wait. If the client gives up during the wait,
// no token is issued, used or revoked. The wait takes real time, or a bubble's time
// inside a synctest bubble, even if [WithClock] is used.
func WithLatency(d time.Duration) Option {
	return func(s *Server) { s.latency = d }
}

// WithClock sets the clock for expiry, the rate limit, the Date header and
// [Request.Time]. The function must be safe for concurrent use.
//
// The default is [time.Now]. Inside a synctest bubble, whose time starts in
// 2000, the default clock is 10,958 days ahead of time.Now, so it starts in
// 2030. Unix timestamps then have ten digits, as they do in real life. A token
// source of package moovauth corrects for the difference: its Expiry is in the
// bubble's time.
func WithClock(now func() time.Time) Option {
	return func(s *Server) { s.now = now }
}

// WithoutRefreshTokens leaves refresh_token out of the replies, as RFC 6749 §4.4.3
// advises for the client-credentials grant. By default, every reply contains a
// refresh token, as Moov documents.
func WithoutRefreshTokens() Option {
	return func(s *Server) { s.noRefreshTokens = true }
}

// WithRateLimit limits the requests per second, for all endpoints together. Above
// the limit, the server answers 429 with the Retry-After header that Moov
// documents. By default, or if perSecond is 0, there is no limit.
//
// For each request, the server counts the requests of the second before it, by the
// server's clock. [WithFixedWindow] changes this. A refused request is recorded, but
// it does not count and changes nothing. It is refused without latency, and it takes
// no prepared [Answer].
//
// Moov allows 40 requests a second, and 10 for a test account.
func WithRateLimit(perSecond int) Option {
	return func(s *Server) { s.perSecond = perSecond }
}

// WithFixedWindow makes [WithRateLimit] count from zero again at each whole second
// of the server's clock.
func WithFixedWindow() Option {
	return func(s *Server) { s.fixedWindow = true }
}

// WithCORS allows web pages to call GET /ping and the endpoints added with
// [Server.Handle], and to read the replies. It allows pages of the given origins,
// such as "https://example.com", or of any origin if none is given. The server
// answers their preflight requests, which do not count toward the rate limit.
//
// The server does not let pages read replies of /oauth2/token and /oauth2/revoke,
// which take the client's secret. Without this option, it does not let them read
// any reply.
func WithCORS(origins ...string) Option {
	return func(s *Server) { s.cors, s.pages = true, origins }
}

// WithReuseDetection makes the server revoke a whole family of tokens if a refresh
// token is used twice (RFC 9700 §4.14.2). The family consists of all access tokens
// and refresh tokens that descend from the same client-credentials grant. By
// default, the server refuses the second use and revokes nothing. A refresh token
// that was revoked before it was used does not count as used.
func WithReuseDetection() Option {
	return func(s *Server) { s.reuseDetection = true }
}

// SetLifetime changes the lifetime of access tokens that are issued from now on.
// See [WithLifetime].
func (s *Server) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = d
}

// SetLatency changes the latency of requests that arrive from now on. See
// [WithLatency].
func (s *Server) SetLatency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
}

// SetCredentials makes the server accept another client ID and secret, as when an
// API key is rotated. The server still accepts the earlier credentials, until
// [Server.DropOldCredentials] is called.
//
// Tokens that were issued before stay valid. They belong to the client ID that they
// were issued to. No other client can use the refresh tokens (RFC 6749 §6) or revoke
// any of the tokens (RFC 7009 §2.1). The server refuses both with invalid_grant.
func (s *Server) SetCredentials(clientID, clientSecret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds = append(s.creds, credentials{clientID, clientSecret})
}

// DropOldCredentials makes the server accept only the credentials that were set
// last. It completes a rotation that [Server.SetCredentials] started. Tokens that
// were issued before stay valid.
func (s *Server) DropOldCredentials() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds = s.creds[len(s.creds)-1:]
}

// Answer is a reply to a token or revoke request that replaces the server's own
// reply. [Server.Enqueue] prepares it for one request, and [Server.SetAnswer] for
// all requests. The zero value is an empty reply with status 200.
type Answer struct {
	// Status is the status code. 0 means 200.
	Status int

	// Header is added to the reply. It replaces the server's x-request-id, Date
	// and, if Body is not empty, Content-Type of application/json. A nil value
	// removes a header.
	Header http.Header

	// Body is sent as it is.
	Body string

	// Latency is added to the server's own latency. The wait comes before the
	// server does or sends anything. For a slow reply of the usual kind, use
	// [Server.SetLatency] instead.
	Latency time.Duration

	// Lost makes the server process the request as usual, and then hang up
	// without a reply. The server's tokens have changed, but the client does not
	// know. Status, Header, Body and Handler are not used.
	Lost bool

	// Handler, if not nil, writes the reply. Status, Header and Body are then not
	// used. The headers x-request-id and Date are already set. The handler may
	// hijack the connection, write slowly, or hang up by panicking with
	// [http.ErrAbortHandler]; see [Server.Transport] for the limits in memory. It
	// must return when the request's context ends, and it must be safe for
	// concurrent use.
	Handler http.HandlerFunc
}

// Enqueue adds answers to a queue. Each token or revoke request, in order of arrival,
// takes the first answer from the queue. When the queue is empty, the server replies
// as usual, or with the answer of [Server.SetAnswer].
//
// A request that takes an answer is recorded, but no token is issued, used or
// revoked, unless [Answer.Lost] is set. A request takes no answer if it is above the
// rate limit, or if its body ends too early.
func (s *Server) Enqueue(answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range answers {
		s.answers = append(s.answers, a.copy())
	}
}

// SetAnswer makes answer the reply to every token and revoke request that arrives
// from now on. A later call replaces the answer. SetAnswer(nil) removes it, and the
// server replies as usual again. Requests that have already arrived are not
// affected.
//
// Use SetAnswer for an outage of both endpoints. The answer can have a Status
// of 503, a Handler that hangs up by panicking with [http.ErrAbortHandler], or
// a Handler that waits until the request's context ends. GET /ping and the
// endpoints added with [Server.Handle] still work, so clients can still use
// their current tokens.
//
// Answers in the queue of [Server.Enqueue] are used first. As with Enqueue, a request
// that gets the answer is only recorded, unless [Answer.Lost] is set, and a request
// above the rate limit does not get the answer.
func (s *Server) SetAnswer(answer *Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing = nil
	if answer != nil {
		a := answer.copy()
		s.standing = &a
	}
}

// copy returns a copy of a that does not share its Header. Header names are in
// canonical form.
func (a Answer) copy() Answer {
	header := make(http.Header)
	for name, values := range a.Header {
		header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	a.Header = header
	return a
}

// Revoke revokes an access token or a refresh token at the server, as someone might
// do in Moov's dashboard. Other tokens that were issued with it stay valid.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// RevokeAll revokes every access token and every refresh token.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// Request is a recorded request.
type Request struct {
	// Time is when the request arrived, by the server's clock.
	Time time.Time

	Method string

	// Path is the path of the request's URL, such as "/oauth2/token". It is
	// percent-decoded and does not include the query.
	Path string

	Header http.Header

	// Body is the first mebibyte of the body.
	Body string

	// GrantType is the grant_type of a token request. It is "" for other requests.
	GrantType string

	// Form has the fields of a form, or the members of a JSON object as strings.
	// It is nil if the body is neither.
	Form url.Values

	// ClientID is from the Basic credentials. If there are none, it is from the
	// body. It is "" if neither has a client ID.
	ClientID string

	// RequestID is the x-request-id that the server set on the reply, or the one
	// from [Answer.Header].
	RequestID string
}

// Requests returns all requests so far, in order of arrival. It includes requests to
// any path, and requests that were refused.
func (s *Server) Requests() []Request {
	return s.seen(func(Request) bool { return true })
}

// TokenRequests returns the requests to /oauth2/token, in order of arrival.
func (s *Server) TokenRequests() []Request {
	return s.seen(func(r Request) bool { return r.Path == tokenPath })
}

// RevokeRequests returns the requests to /oauth2/revoke, in order of arrival.
func (s *Server) RevokeRequests() []Request {
	return s.seen(func(r Request) bool { return r.Path == revokePath })
}

func (s *Server) seen(wanted func(Request) bool) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	var requests []Request
	for _, r := range s.requests {
		if wanted(r) {
			r.Header = r.Header.Clone()
			r.Form = url.Values(http.Header(r.Form).Clone())
			requests = append(requests, r)
		}
	}
	return requests
}

// AccessTokens returns the valid access tokens, in the order they were issued. See
// [Server.Alive].
func (s *Server) AccessTokens() []string { return s.living(accessToken) }

// RefreshTokens returns the valid refresh tokens, in the order they were issued. See
// [Server.Alive].
func (s *Server) RefreshTokens() []string { return s.living(refreshToken) }

func (s *Server) living(k kind) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var values []string
	for value, t := range s.tokens {
		if t.kind == k && t.alive(s.now()) {
			values = append(values, value)
		}
	}
	slices.SortFunc(values, func(a, b string) int { return cmp.Compare(s.tokens[a].serial, s.tokens[b].serial) })
	return values
}

// Alive reports whether token is a valid access token or refresh token. A token is
// valid if the server issued it and it has not expired, been used up or been revoked.
func (s *Server) Alive(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[token]
	return ok && t.alive(s.now())
}
