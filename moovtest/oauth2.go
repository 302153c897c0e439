package moovtest

// This file holds the HTTP side: how the server reads requests and answers them.

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"mime"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
)

const (
	tokenPath  = "/oauth2/token"
	revokePath = "/oauth2/revoke"
	pingPath   = "/ping"

	pingScope = "/ping.read"

	maxBody = 1 << 20 // how many bytes of a body are recorded
)

// kind is a token type hint (RFC 7009 §2.1).
type kind string

const (
	accessToken  kind = "access_token"
	refreshToken kind = "refresh_token"
)

// credentials identify a client.
type credentials struct{ id, secret string }

type token struct {
	kind   kind
	client string // ID of the client that the token was issued to
	scopes []string
	expiry time.Time // zero: never
	serial int       // order of issue
	family int       // serial of the client-credentials grant that the token descends from
}

func (t token) alive(now time.Time) bool { return t.expiry.IsZero() || now.Before(t.expiry) }

// methods maps each of the server's own endpoints to its only method.
var methods = map[string]string{tokenPath: http.MethodPost, revokePath: http.MethodPost, pingPath: http.MethodGet}

// tokenEndpoint reports whether r is for the token endpoint or the revoke endpoint,
// which take the client's secret.
func tokenEndpoint(r *http.Request) bool { return r.URL.Path == tokenPath || r.URL.Path == revokePath }

// ServeHTTP implements [http.Handler], so a test can mount the server in its own mux
// or TLS server. To mount it under a prefix, use [http.StripPrefix].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancelCause(r.Context())
	defer cancel(nil)
	hangUp := func() {
		cancel(errHungUp)
		// Reading the body or writing the reply can block forever. This also stops
		// net/http, which reads the rest of the body after a handler has returned.
		conn := http.NewResponseController(w)
		conn.SetReadDeadline(time.Unix(1, 0))
		conn.SetWriteDeadline(time.Unix(1, 0))
	}
	leave, ok := s.enter(hangUp)
	if !ok {
		hangUp()
		panic(http.ErrAbortHandler)
	}
	defer leave()
	in := s.arrive(r.WithContext(ctx))
	awaited := in.refusal == nil && wait(ctx, in.latency)

	header := w.Header()
	header.Set("X-Request-Id", in.id)
	header.Set("Date", s.now().UTC().Format(http.TimeFormat))
	s.share(w, in.request)
	switch {
	case context.Cause(ctx) == errHungUp:
		panic(http.ErrAbortHandler)
	case in.refusal != nil:
		in.refusal(w)
	case !awaited:
		w.WriteHeader(http.StatusServiceUnavailable) // no one reads it: the client gave up
	case s.isPreflight(in.request):
		s.preflight(w, in.request)
	case in.answer == nil:
		s.serve(w, in)
	case in.answer.Lost:
		s.serve(httptest.NewRecorder(), in)
		panic(http.ErrAbortHandler)
	default:
		in.answer.write(w, in.request)
	}
}

// enter registers a running request until leave is called. If Close is called
// before that, it calls hangUp while it holds s.mu. If the server is already closed,
// enter returns false.
func (s *Server) enter(hangUp func()) (leave func(), ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil, false
	}
	s.serving[&hangUp] = struct{}{}
	return func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.serving, &hangUp)
	}, true
}

// arrival is a request that has arrived.
type arrival struct {
	request   *http.Request // with a body that can be read again
	id        string        // the request ID that the server gave it
	form      url.Values    // see Request.Form
	malformed error         // what is wrong with the body; nil: nothing
	refusal   func(http.ResponseWriter)
	answer    *Answer       // the prepared answer; nil: the server's own
	latency   time.Duration // how long to wait before answering
}

// arrive reads r and records it.
func (s *Server) arrive(r *http.Request) *arrival {
	in := &arrival{request: r, id: newRequestID()}
	body, broken := io.ReadAll(io.LimitReader(r.Body, maxBody))
	var rest io.Reader = r.Body
	if tokenEndpoint(r) {
		if broken == nil {
			// net/http notices that a client gave up only after reading the whole body.
			_, broken = io.Copy(io.Discard, r.Body)
		}
		rest = http.NoBody
	}
	r.Body = io.NopCloser(io.MultiReader(bytes.NewReader(body), rest))
	in.form, in.malformed = fields(r.Header.Get("Content-Type"), body)

	seen := Request{
		Method: r.Method, Path: r.URL.Path, Header: r.Header.Clone(), Body: string(body), Form: in.form, RequestID: in.id,
	}
	seen.ClientID = client(r, in.form).id
	if seen.Path == tokenPath {
		seen.GrantType = in.form.Get("grant_type")
	}

	s.act()
	defer s.mu.Unlock()
	seen.Time = s.now()
	switch {
	case broken != nil:
		in.refusal = func(w http.ResponseWriter) {
			refuse(w, http.StatusBadRequest, "invalid_request", "the body ended too early: "+broken.Error())
		}
	case !s.isPreflight(r) && !s.admit(seen.Time):
		in.refusal = func(w http.ResponseWriter) {
			w.Header().Set("Retry-After", "1") // both kinds of window last one second
			refuse(w, http.StatusTooManyRequests, "too_many_requests", "the rate limit is "+strconv.Itoa(s.perSecond)+" requests per second")
		}
	case tokenEndpoint(r):
		in.latency = s.latency
		in.answer = s.standing
		if len(s.answers) > 0 {
			in.answer, s.answers = &s.answers[0], s.answers[1:]
		}
		if in.answer != nil {
			in.latency += in.answer.Latency
			if _, ok := in.answer.Header["X-Request-Id"]; ok && !in.answer.Lost && in.answer.Handler == nil {
				seen.RequestID = in.answer.Header.Get("X-Request-Id")
			}
		}
	}
	s.requests = append(s.requests, seen)
	return in
}

// serve writes the server's own answer.
func (s *Server) serve(w http.ResponseWriter, in *arrival) {
	r := in.request
	method, own := methods[r.URL.Path]
	c := client(r, in.form)
	switch {
	case !wellFormedVersion(r.Header):
		refuse(w, http.StatusNotFound, "not_found", "X-Moov-Version must be dev, latest or of the form v2024.01.00")
	case len(r.Header.Values("Authorization")) > 1:
		refuse(w, http.StatusBadRequest, "invalid_request", "the request has more than one Authorization header")
	case !own:
		s.resource(w, r)
	case r.Method != method:
		refuseMethod(w, method)
	case r.URL.Path == pingPath:
		s.ping(w, r)
	case r.URL.Path == tokenPath && !s.allows(r.Header):
		refuse(w, http.StatusBadRequest, "invalid_request", "the Origin or Referer header must name an allowed domain")
	case in.malformed != nil:
		refuse(w, http.StatusBadRequest, "invalid_request", in.malformed.Error())
	case ambiguous(r, in.form) != nil:
		refuse(w, http.StatusBadRequest, "invalid_request", ambiguous(r, in.form).Error())
	case !s.knows(c):
		if r.Header.Get("Authorization") != "" {
			w.Header().Set("WWW-Authenticate", "Basic") // RFC 6749 §5.2
		}
		refuse(w, http.StatusUnauthorized, "invalid_client", "unknown client ID or wrong client secret")
	case r.URL.Path == tokenPath:
		s.token(w, c.id, in.form)
	default:
		s.revoke(w, c.id, in.form)
	}
}

// admit reports whether a request that arrives now is within the rate limit, and
// counts it if it is. The caller holds s.mu.
func (s *Server) admit(now time.Time) bool {
	if s.perSecond <= 0 {
		return true
	}
	s.served = slices.DeleteFunc(s.served, func(t time.Time) bool {
		if s.fixedWindow {
			return t.Unix() != now.Unix()
		}
		return now.Sub(t) >= time.Second || t.After(now) // t is after now if the clock was set back
	})
	if len(s.served) >= s.perSecond {
		return false
	}
	s.served = append(s.served, now)
	return true
}

// wait reports whether d passed before ctx ended.
func wait(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// fields parses a body that is a form or a JSON object. Moov accepts both.
func fields(contentType string, body []byte) (url.Values, error) {
	mediaType, _, _ := mime.ParseMediaType(contentType)
	switch mediaType {
	case "application/x-www-form-urlencoded":
		form, err := url.ParseQuery(string(body))
		if err != nil {
			return form, err
		}
		for _, name := range slices.Sorted(maps.Keys(form)) {
			if len(form[name]) > 1 {
				return form, fmt.Errorf("the parameter %q is given more than once", name) // RFC 6749 §3.2
			}
		}
		return form, nil
	case "application/json":
		return members(body)
	}
	return nil, errors.New("Content-Type must be application/x-www-form-urlencoded or application/json")
}

// members parses a JSON object. It keeps a value that is not a string as JSON text,
// and leaves out a null.
func members(body []byte) (url.Values, error) {
	if !json.Valid(body) {
		return nil, fmt.Errorf("the body is not a JSON object: %w", json.Unmarshal(body, new(any)))
	}
	decoder := json.NewDecoder(bytes.NewReader(body))
	if opening, _ := decoder.Token(); opening != json.Delim('{') {
		return nil, errors.New("the body is not a JSON object")
	}
	form := make(url.Values)
	var err error
	seen := make(map[string]bool)
	for decoder.More() {
		key, _ := decoder.Token()
		name, _ := key.(string)
		if seen[name] && err == nil {
			err = fmt.Errorf("the member %q is given more than once", name) // same rule as for a form
		}
		seen[name] = true
		var raw json.RawMessage
		decoder.Decode(&raw)
		var text *string
		if json.Unmarshal(raw, &text) != nil {
			form.Add(name, string(raw))
		} else if text != nil {
			form.Add(name, *text)
		}
	}
	return form, err
}

// client returns the Basic credentials of r, or the credentials in the body if there
// are none. Moov does not escape Basic credentials, unlike RFC 6749 §2.3.1.
func client(r *http.Request, form url.Values) credentials {
	if id, secret, ok := r.BasicAuth(); ok {
		return credentials{id, secret}
	}
	return credentials{form.Get("client_id"), form.Get("client_secret")}
}

func (s *Server) knows(c credentials) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Contains(s.creds, c)
}

// ambiguous returns an error if the body and the Authorization header have different
// credentials.
func ambiguous(r *http.Request, form url.Values) error {
	id, secret, basic := r.BasicAuth()
	switch {
	case !basic:
		return nil
	case form.Get("client_id") != "" && form.Get("client_id") != id:
		return errors.New("the client_id in the body differs from the one in the Authorization header")
	case form.Get("client_secret") != "" && form.Get("client_secret") != secret:
		return errors.New("the client_secret in the body differs from the one in the Authorization header")
	}
	return nil
}

// version matches a valid X-Moov-Version. Moov treats an unknown version as an older
// version that it knows, so only the form matters.
var version = regexp.MustCompile(`^(v\d{4}\.\d{2}\.\d{2}|dev|latest)$`)

func wellFormedVersion(header http.Header) bool {
	values := header.Values("X-Moov-Version")
	return len(values) == 0 || len(values) == 1 && version.MatchString(values[0])
}

// allows reports whether the headers of a token request name an allowed domain.
func (s *Server) allows(header http.Header) bool {
	origin := header.Get("Origin")
	if origin == "" {
		if referer, err := url.Parse(header.Get("Referer")); err == nil {
			origin = referer.Scheme + "://" + referer.Host
		}
	}
	return len(s.origins) == 0 || slices.Contains(s.origins, origin)
}

// authToken is the token response (RFC 6749 §5.1).
type authToken struct {
	TokenType    string `json:"token_type"`
	AccessToken  string `json:"access_token"`
	RefreshToken string `json:"refresh_token,omitempty"`
	ExpiresIn    int64  `json:"expires_in"`
	Scope        string `json:"scope"`
}

func (s *Server) token(w http.ResponseWriter, client string, form url.Values) {
	switch form.Get("grant_type") {
	case "client_credentials":
		scopes := strings.Fields(form.Get("scope"))
		if len(scopes) == 0 {
			refuseField(w, "scope", "is required for the client_credentials grant")
			return
		}
		for _, scope := range scopes {
			if len(s.scopes) > 0 && !slices.Contains(s.scopes, scope) {
				refuseField(w, "scope", scope+" is not allowed for this API key")
				return
			}
		}
		s.act()
		set := s.issue(token{client: client, scopes: scopes, family: s.issued})
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, set)
	case "refresh_token":
		if form.Get("refresh_token") == "" {
			refuseField(w, "refresh_token", "is required for the refresh_token grant")
			return
		}
		set, ok := s.refresh(client, form.Get("refresh_token"))
		if !ok {
			refuse(w, http.StatusBadRequest, "invalid_grant", "the refresh token is unknown, was used or revoked, or belongs to another client")
			return
		}
		writeJSON(w, http.StatusOK, set)
	case "":
		refuse(w, http.StatusBadRequest, "invalid_request", "grant_type is required")
	default:
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "use client_credentials or refresh_token")
	}
}

// act locks s.mu before a request is recorded or changes something. It panics if the
// server is closed, so that neither happens after Close.
func (s *Server) act() {
	s.mu.Lock()
	if s.closed {
		s.mu.Unlock()
		panic(http.ErrAbortHandler)
	}
}

// refresh exchanges a refresh token for a new set of tokens. If requests use the same
// refresh token concurrently, exactly one succeeds.
func (s *Server) refresh(client, value string) (set authToken, ok bool) {
	s.act()
	defer s.mu.Unlock()
	if used, ok := s.used[value]; ok && used.client == client {
		maps.DeleteFunc(s.tokens, func(_ string, t token) bool { return t.family == used.family })
		return authToken{}, false
	}
	t := s.tokens[value]
	if t.kind != refreshToken || t.client != client {
		return authToken{}, false
	}
	delete(s.tokens, value)
	if s.reuseDetection {
		s.used[value] = t
	}
	return s.issue(t), true
}

// issue creates a new set of tokens with the client, scopes and family of t. The
// caller holds s.mu.
func (s *Server) issue(t token) authToken {
	expiry := s.now().Add(s.lifetime)
	set := authToken{
		TokenType:   "Bearer",
		AccessToken: newAccessToken(expiry),
		ExpiresIn:   expiry.Unix(),
		Scope:       strings.Join(t.scopes, " "),
	}
	if s.expiresInSeconds {
		set.ExpiresIn = int64(s.lifetime / time.Second)
	}
	t.serial = s.issued
	t.kind, t.expiry = accessToken, expiry
	s.tokens[set.AccessToken] = t
	if !s.noRefreshTokens {
		set.RefreshToken = rand.Text()
		t.kind, t.expiry = refreshToken, time.Time{}
		s.tokens[set.RefreshToken] = t
	}
	s.issued++
	return set
}

func (s *Server) revoke(w http.ResponseWriter, client string, form url.Values) {
	hint := kind(form.Get("token_type_hint"))
	switch {
	case form.Get("token") == "":
		refuseField(w, "token", "is required")
	case hint != "" && hint != accessToken && hint != refreshToken:
		refuseField(w, "token_type_hint", "must be access_token or refresh_token")
	default:
		s.act()
		t, alive := s.tokens[form.Get("token")] // a wrong hint does not matter (RFC 7009 §2.1)
		others := alive && t.client != client
		if !others {
			delete(s.tokens, form.Get("token"))
		}
		s.mu.Unlock()
		if others {
			refuse(w, http.StatusBadRequest, "invalid_grant", "the token belongs to another client")
			return
		}
		w.WriteHeader(http.StatusNoContent)
	}
}

func (a *Answer) write(w http.ResponseWriter, r *http.Request) {
	if a.Handler != nil {
		a.Handler(w, r)
		return
	}
	if a.Body != "" {
		w.Header().Set("Content-Type", "application/json")
	}
	maps.Copy(w.Header(), a.Header.Clone()) // other requests may be using a as well
	w.WriteHeader(cmp.Or(a.Status, http.StatusOK))
	io.WriteString(w, a.Body)
}

// refuse writes an error response (RFC 6749 §5.2).
func refuse(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

// refuseField writes Moov's error response for a wrong field.
func refuseField(w http.ResponseWriter, field, why string) {
	writeJSON(w, http.StatusUnprocessableEntity, map[string]string{field: why})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // RFC 6749 §5.1
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// newAccessToken returns a token that looks like a JWT, as Moov's tokens do. Its
// signature is random.
func newAccessToken(expiry time.Time) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims := fmt.Sprintf(`{"exp":%d,"jti":%q}`, expiry.Unix(), rand.Text())
	return part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(claims) + "." + part(rand.Text()+rand.Text())
}

// newRequestID returns a random UUID (RFC 9562 §5.4).
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
