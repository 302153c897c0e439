// Package moovtest provides an in-process Moov authorization server for tests.
//
// A [Server] answers POST /oauth2/token, POST /oauth2/revoke and GET /ping as
// Moov documents them. It issues, rotates, expires and revokes tokens, records
// every request, and on demand answers late, wrongly or not at all. A test adds
// endpoints of its own with [Server.Handle]:
//
//	server := moovtest.NewServer(moovtest.WithLifetime(time.Minute))
//	defer server.Close()
//	server.Enqueue(moovtest.Answer{Status: 503}) // the first request fails
//
//	// Point the code under test at server.URL, with server.ClientID and
//	// server.ClientSecret, then look at what it did:
//	requests := server.TokenRequests()
//
// [Server.SetAnswer] begins and ends an outage of the token endpoint.
//
// [NewServer] listens on a loopback port. [NewInMemory] opens no socket, so
// that it also works inside a [testing/synctest] bubble, where a token's life
// passes in no time; [Server.Close] says how such a test ends. The code under test
// must then use the server's client, which a token source of package moovauth takes
// as moovauth.WithHTTPClient(server.Client()). With any other client, requests fail
// with "lookup moov.test on 127.0.0.53:53: no such host" or the like.
package moovtest

// This file is the Server as a test sees it: how it is made, what can be
// changed while it runs, and what it saw. The endpoints are in oauth2.go.

import (
	"cmp"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"sync"
	"time"
)

// Server is a Moov authorization server. [NewServer] and [NewInMemory] make
// one. Its methods are safe for concurrent use; its fields are not to be changed.
//
// A refresh token serves once, and the new set of tokens has another (RFC 6749
// §6); see [WithReuseDetection] for what else a second use may do. A refresh keeps the scopes, whatever a scope field says, and leaves the
// access token that it replaces alive to its own expiry. Revoking a token kills
// that one alone, and revoking an unknown one succeeds (RFC 7009 §2.2).
//
// The server is as strict as the strictest that a client may meet. Refused with
// 400 invalid_request are parameters that are given twice (RFC 6749 §3.2), a client
// ID or secret in the body that differs from the one in the Authorization header,
// and two Authorization headers. Credentials that agree may be in both places, as
// Moov's own examples send them. An X-Moov-Version header must be
// "dev", "latest" or digits like "v2024.01.00"; any other is answered 404, on
// every endpoint.
type Server struct {
	// URL is the base URL, with no trailing slash: "http://127.0.0.1:" and a
	// port from NewServer, "https://moov.test" from NewInMemory.
	URL string

	// The credentials that the server was made with. SetCredentials leaves them as they are.
	ClientID     string // Moov's dashboard: public key. "moovtest-public-key" unless WithCredentials says otherwise.
	ClientSecret string // Moov's dashboard: secret key. "moovtest-secret-key" unless WithCredentials says otherwise.

	expiresInSeconds bool
	noRefreshTokens  bool
	origins          []string // empty: no Origin is needed
	scopes           []string // empty: any may be asked for
	perSecond        int      // 0: there is no rate limit
	fixedWindow      bool     // the rate limit counts in whole seconds
	reuseDetection   bool
	cors             bool     // pages of other origins may read the API's replies:
	pages            []string // these origins, or any if there are none
	now              func() time.Time
	client           *http.Client
	loopback         *httptest.Server // nil: in memory
	mux              *http.ServeMux   // what Handle added

	mu       sync.Mutex    // guards what follows
	creds    []credentials // those that are good; SetCredentials puts its own last
	lifetime time.Duration
	latency  time.Duration
	answers  []Answer // the queue of Enqueue
	standing *Answer  // what SetAnswer set; nil: none
	requests []Request
	tokens   map[string]token     // those neither used nor revoked, by value
	used     map[string]token     // with reuse detection: the refresh tokens that were used, by value
	issued   int                  // how many sets of tokens, ever
	served   []time.Time          // with a rate limit: when the requests of its window came
	serving  map[*func()]struct{} // how to hang up on each request that has entered
	closed   bool
}

// NewServer starts a server of real HTTP on a loopback port. Close it when done.
//
// Inside a [testing/synctest] bubble, time stands still and [synctest.Wait] does not
// return as long as the server is open, since it waits for the network: use
// [NewInMemory] there. A test that sleeps, or a source that tries again, would hang.
func NewServer(opts ...Option) *Server {
	s := newServer(opts)
	s.loopback = httptest.NewServer(s)
	s.URL = s.loopback.URL
	s.client = s.loopback.Client()
	return s
}

// NewInMemory returns a server without sockets, which is reached through
// [Server.Client] or [Server.Transport] alone. Inside a [testing/synctest]
// bubble its tokens expire, and its latency passes, in the bubble's time.
//
// With any other client, a request goes to the network and fails with "lookup
// moov.test on 127.0.0.53:53: no such host" or the like. So give the code under test
// the server's client: a token source of package moovauth takes it as
// moovauth.WithHTTPClient(server.Client()).
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

// inBubble reports whether now is the time of a synctest bubble, which begins in
// 2000. Package synctest itself does not tell.
func inBubble(now time.Time) bool { return now.Unix() < 1.7e9 } // 2023: before any release of Go that runs this

// ahead is the distance from 2000, when a bubble begins, to 2030.
const ahead = 10958 * 24 * time.Hour

// clock is time.Now, and 30 years later in a synctest bubble: there Unix timestamps
// have nine digits at first, which no client takes for timestamps today. A client
// that reads expires_in against Date does not notice. It looks each time, since a
// server may be made outside a bubble and used inside.
func clock() time.Time {
	now := time.Now()
	if inBubble(now) {
		now = now.Add(ahead)
	}
	return now
}

// settling is how long Close waits in a bubble: longer than a client that was hung
// up on goes on trying.
const settling = time.Minute

// Close shuts the server down. It hangs up on the requests that are waiting for
// an answer or still being sent, and on all that come later, and returns at once;
// with [NewServer], as soon as every [Answer.Handler] and [Server.Handle] handler
// that is running has heeded its request's context. Nothing is issued, used or
// revoked any more. What the server saw can still be read.
//
// Inside a [testing/synctest] bubble, Close of a server from [NewInMemory] then
// lets a minute of the bubble's time pass, which takes no time. A client that was
// hung up on in the background, such as a token source that was refreshing its
// token, gives up meanwhile. Without that, its goroutine would be left when the
// test ends, and the bubble would panic. So make the server inside the bubble, and
// let its Close be what the test ends with: with defer or [testing.T.Cleanup].
func (s *Server) Close() {
	s.mu.Lock()
	s.closed = true
	for hangUp := range s.serving {
		(*hangUp)()
	}
	s.mu.Unlock()
	switch {
	case s.loopback != nil:
		s.loopback.CloseClientConnections() // also those of which net/http still awaits for the rest of a body
		s.loopback.Close()
	case inBubble(time.Now()):
		time.Sleep(settling)
	}
}

// Client returns a client that reaches the server: over its port from
// NewServer, over [Server.Transport] from NewInMemory.
func (s *Server) Client() *http.Client { return s.client }

// Transport returns a RoundTripper that hands requests for any host to the
// server, without sockets, also if the server has a port as well.
//
// The response is whole when RoundTrip returns: an [Answer.Handler] can neither
// hijack the connection nor stream over it. If the handler panics, also with
// [http.ErrAbortHandler], RoundTrip returns an error.
func (s *Server) Transport() http.RoundTripper { return &memory{handler: s, enter: s.enter} }

// Option is a setting of a new [Server].
type Option func(*Server)

// WithCredentials sets the only client that the server knows, until
// [Server.SetCredentials] adds another.
func WithCredentials(clientID, clientSecret string) Option {
	return func(s *Server) { s.ClientID, s.ClientSecret = clientID, clientSecret }
}

// WithLifetime sets how long access tokens live: 15 minutes by default. Replies
// state it in whole seconds, rounded down. Refresh tokens do not expire.
func WithLifetime(d time.Duration) Option {
	return func(s *Server) { s.lifetime = d }
}

// WithExpiresInSeconds makes expires_in the lifetime in seconds, as in RFC 6749
// §5.1. By default it is the Unix timestamp of the expiry, as Moov documents.
func WithExpiresInSeconds() Option {
	return func(s *Server) { s.expiresInSeconds = true }
}

// WithOrigins sets the API key's allowed-domain list, such as
// "https://example.com". A token request must then carry one of them as its
// Origin header or, without an Origin, as the scheme and host of its Referer;
// any other is answered 400. By default neither header is needed.
func WithOrigins(origins ...string) Option {
	return func(s *Server) { s.origins = origins }
}

// WithScopes sets what the API key may ask for. A request for more is answered
// 422. By default, and with no scopes given, it may ask for anything.
func WithScopes(scopes ...string) Option {
	return func(s *Server) { s.scopes = scopes }
}

// WithLatency makes the server wait that long before it acts on a token or
// revoke request: none by default. A client that gives up meanwhile has changed
// nothing. The wait is in real time (a bubble's, inside one), not [WithClock]'s.
func WithLatency(d time.Duration) Option {
	return func(s *Server) { s.latency = d }
}

// WithClock sets the clock that expiry, the Date header and [Request.Time] go
// by, which must be safe for concurrent use. Default: [time.Now]. A
// request from inside a synctest bubble, which begins in 2000, finds it 10,958 days
// later, in 2030, so that Unix timestamps have ten digits as they do today.
func WithClock(now func() time.Time) Option {
	return func(s *Server) { s.now = now }
}

// WithoutRefreshTokens leaves refresh_token out of the replies, as RFC 6749
// §4.4.3 advises for the client-credentials grant. By default every reply
// carries one, as Moov documents.
func WithoutRefreshTokens() Option {
	return func(s *Server) { s.noRefreshTokens = true }
}

// WithRateLimit makes the server answer 429 beyond so many requests in a
// second, to all endpoints together, with the Retry-After header that Moov
// documents. It goes by the server's clock. The window slides: it is the second
// before each request, unless [WithFixedWindow] says otherwise. A refused request
// is recorded, waits for no latency, takes no prepared [Answer], changes nothing,
// and does not count itself. By default, and with 0, there is no limit.
//
// Moov allows 40 requests a second, and 10 to a test account.
func WithRateLimit(perSecond int) Option {
	return func(s *Server) { s.perSecond = perSecond }
}

// WithFixedWindow makes [WithRateLimit] count from zero at each whole second of
// the server's clock.
func WithFixedWindow() Option {
	return func(s *Server) { s.fixedWindow = true }
}

// WithCORS lets pages in a browser call GET /ping and what [Server.Handle] added,
// and read the replies: pages of these origins, such as "https://example.com", or
// of any if none is given. The server answers their preflight requests, which
// count for no rate limit. The two endpoints that take the client's secret stay
// closed to pages. Without this option the whole server is closed to them.
func WithCORS(origins ...string) Option {
	return func(s *Server) { s.cors, s.pages = true, origins }
}

// WithReuseDetection makes a refresh token that is used twice revoke its whole
// family: every access token and refresh token that descends from the same
// client-credentials grant (RFC 9700 §4.14.2). By default the second use is
// refused, and nothing else happens. A refresh token that was revoked before it
// was used does not count as used.
func WithReuseDetection() Option {
	return func(s *Server) { s.reuseDetection = true }
}

// SetLifetime is [WithLifetime] for the access tokens issued from now on.
func (s *Server) SetLifetime(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.lifetime = d
}

// SetLatency is [WithLatency] for the requests that arrive from now on.
func (s *Server) SetLatency(d time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.latency = d
}

// SetCredentials makes other credentials good while the server runs, as when an
// API key is rotated. Those before stay good until [Server.DropOldCredentials].
//
// The tokens that were issued live on. With another client ID they are another
// client's: only the client that a refresh token was issued to can use it (RFC
// 6749 §6), and only the client that a token was issued to can revoke it (RFC
// 7009 §2.1). Both are refused with invalid_grant.
func (s *Server) SetCredentials(clientID, clientSecret string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds = append(s.creds, credentials{clientID, clientSecret})
}

// DropOldCredentials ends what [Server.SetCredentials] began: of all credentials
// only those that were set last are good. The tokens that were issued live on.
func (s *Server) DropOldCredentials() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.creds = s.creds[len(s.creds)-1:]
}

// Answer is a reply to a token or revoke request in place of the server's own: to
// one request with [Server.Enqueue], to all with [Server.SetAnswer]. Its zero value
// is an empty 200.
type Answer struct {
	// Status is the status code. 0 means 200.
	Status int

	// Header is set on the reply, over x-request-id, Date and, if there is a
	// Body, a Content-Type of application/json. A nil value removes a header.
	Header http.Header

	// Body is sent as it is.
	Body string

	// Latency comes on top of the server's own, before anything is done or sent.
	Latency time.Duration

	// Lost makes the server do what it would do without this Answer, and then
	// hang up instead of replying: the server has changed, and the client does
	// not know. Status, Header, Body and Handler are not used.
	Lost bool

	// Handler, if set, answers in place of Status, Header and Body. It finds
	// x-request-id and Date set, and may hijack, trickle or panic with
	// [http.ErrAbortHandler]; see [Server.Transport] for the limits in memory. It
	// must return when the request's context ends, and be safe for concurrent use.
	Handler http.HandlerFunc
}

// Enqueue adds to the queue of prepared answers. Each token or revoke request
// takes the one at its front, if any, in order of arrival; one that is beyond the
// rate limit, or whose body ends too early, takes none. A request that takes one is
// recorded, and does nothing else unless the answer is [Answer.Lost]: no token is
// issued, used or revoked.
func (s *Server) Enqueue(answers ...Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range answers {
		s.answers = append(s.answers, a.copy())
	}
}

// SetAnswer makes answer the reply to every token and revoke request that arrives
// from now on, until it is set to another or, with nil, to none. For an outage, give
// it a Status of 503, a Handler that hangs up by panicking with [http.ErrAbortHandler],
// or a Handler that is silent until the request's context ends.
//
// GET /ping and what [Server.Handle] added go on working, so that a token in hand is
// still good. The queue of [Server.Enqueue] goes first. As there, a request beyond the
// rate limit does not get the answer, and one that does is recorded and does nothing
// else. A request that has arrived already keeps the answer that it got then.
func (s *Server) SetAnswer(answer *Answer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.standing = nil
	if answer != nil {
		a := answer.copy()
		s.standing = &a
	}
}

// copy returns an Answer that shares no header with a, its names spelled canonically.
func (a Answer) copy() Answer {
	header := make(http.Header)
	for name, values := range a.Header {
		header[http.CanonicalHeaderKey(name)] = slices.Clone(values)
	}
	a.Header = header
	return a
}

// Revoke kills an access token or a refresh token at the server, as Moov's
// dashboard might. Other tokens issued along with it stay alive.
func (s *Server) Revoke(token string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tokens, token)
}

// RevokeAll kills every access token and every refresh token.
func (s *Server) RevokeAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// Request is what the server saw of one request.
type Request struct {
	Time      time.Time // when it had arrived, by the server's clock
	Method    string
	Path      string
	Header    http.Header
	Body      string     // its first mebibyte
	GrantType string     // of a token request
	Form      url.Values // the fields of a form, or the members of a JSON object as strings; nil for other bodies
	ClientID  string     // from the Basic credentials, or else from the body; "" if there are none
	RequestID string     // the x-request-id that it was given
}

// Requests returns every request so far, to any path, in order of arrival.
func (s *Server) Requests() []Request {
	return s.seen(func(Request) bool { return true })
}

// TokenRequests returns those of [Server.Requests] to /oauth2/token.
func (s *Server) TokenRequests() []Request {
	return s.seen(func(r Request) bool { return r.Path == tokenPath })
}

// RevokeRequests returns those of [Server.Requests] to /oauth2/revoke.
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

// AccessTokens returns the access tokens that are alive now, in the order issued.
func (s *Server) AccessTokens() []string { return s.living(accessToken) }

// RefreshTokens returns the refresh tokens that are alive now, in the order issued.
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

// Alive reports whether token is an access token or a refresh token that is
// alive now: issued here, and neither expired, used up nor revoked.
func (s *Server) Alive(token string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	t, ok := s.tokens[token]
	return ok && t.alive(s.now())
}
