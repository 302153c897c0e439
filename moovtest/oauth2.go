package moovtest

// This file is the HTTP side: what arrives, and how each endpoint answers it.

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

	maxBody = 1 << 20 // bytes of a request that are read
)

// kind is a token type hint (RFC 7009 §2.1).
type kind string

const (
	accessToken  kind = "access_token"
	refreshToken kind = "refresh_token"
)

type token struct {
	kind   kind
	scopes []string
	expiry time.Time // zero: never
	serial int       // in order of issue
	family int       // the serial of the client-credentials grant that it descends from
}

func (t token) alive(now time.Time) bool { return t.expiry.IsZero() || now.Before(t.expiry) }

// methods has the one method of each endpoint.
var methods = map[string]string{tokenPath: http.MethodPost, revokePath: http.MethodPost, pingPath: http.MethodGet}

// ServeHTTP is the server's handler, to mount in a mux or a TLS server of your
// own. Under a prefix, use [http.StripPrefix].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithCancel(r.Context())
	defer cancel()
	body, broken := io.ReadAll(io.LimitReader(r.Body, maxBody))
	r = r.WithContext(ctx)
	r.Body = io.NopCloser(bytes.NewReader(body))
	form, malformed := fields(r.Header.Get("Content-Type"), body)

	id, answer, latency, ok := s.arrive(r, cancel, body, form)
	defer s.leave(ctx)
	if broken != nil || !wait(ctx, latency) {
		panic(http.ErrAbortHandler)
	}

	header := w.Header()
	header.Set("X-Request-Id", id)
	header.Set("Date", s.now().UTC().Format(http.TimeFormat))
	if !ok {
		header.Set("Retry-After", "1") // either window is a second long
		refuse(w, http.StatusTooManyRequests, "too_many_requests", "the rate limit is "+strconv.Itoa(s.perSecond)+" requests per second")
		return
	}
	switch {
	case answer == nil:
		s.serve(w, r, form, malformed)
	case answer.Lost:
		s.serve(httptest.NewRecorder(), r, form, malformed)
		panic(http.ErrAbortHandler)
	default:
		answer.write(w, r)
	}
}

// serve is the server's own answer to a request whose body has form.
func (s *Server) serve(w http.ResponseWriter, r *http.Request, form url.Values, malformed error) {
	header := w.Header()
	method, known := methods[r.URL.Path]
	switch {
	case !known:
		refuse(w, http.StatusNotFound, "not_found", r.URL.Path+" is not an endpoint of this server")
	case r.Method != method:
		header.Set("Allow", method)
		refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "use "+method)
	case r.URL.Path == pingPath:
		s.ping(w, r)
	case r.URL.Path == tokenPath && !s.allows(r.Header):
		refuse(w, http.StatusBadRequest, "invalid_request", "the Origin or Referer header must name an allowed domain")
	case malformed != nil:
		refuse(w, http.StatusBadRequest, "invalid_request", malformed.Error())
	case !s.knows(r, form):
		if r.Header.Get("Authorization") != "" {
			header.Set("WWW-Authenticate", "Basic") // RFC 6749 §5.2
		}
		refuse(w, http.StatusUnauthorized, "invalid_client", "unknown client ID or wrong client secret")
	case r.URL.Path == tokenPath:
		s.token(w, form)
	default:
		s.revoke(w, form)
	}
}

// arrive records r, and returns the request ID that it is given, the prepared
// answer that it takes if there is one, how long it has to wait, and whether it
// is within the rate limit.
func (s *Server) arrive(r *http.Request, hangUp context.CancelFunc, body []byte, form url.Values) (id string, answer *Answer, latency time.Duration, ok bool) {
	seen := Request{
		Method: r.Method, Path: r.URL.Path, Header: r.Header.Clone(), Body: string(body), Form: form,
		RequestID: newRequestID(),
	}
	seen.ClientID, _ = client(r, form)
	if seen.Path == tokenPath {
		seen.GrantType = form.Get("grant_type")
	}

	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		panic(http.ErrAbortHandler)
	}
	s.serving[r.Context()] = hangUp
	seen.Time = s.now()
	ok = s.admit(seen.Time)
	if ok && (seen.Path == tokenPath || seen.Path == revokePath) {
		latency = s.latency
		if len(s.answers) > 0 {
			answer, s.answers = &s.answers[0], s.answers[1:]
			latency += answer.Latency
			if _, ok := answer.Header["X-Request-Id"]; ok && !answer.Lost {
				seen.RequestID = answer.Header.Get("X-Request-Id")
			}
		}
	}
	s.requests = append(s.requests, seen)
	return seen.RequestID, answer, latency, ok
}

// admit counts a request that comes now, if it is within the rate limit. The
// caller holds s.mu.
func (s *Server) admit(now time.Time) bool {
	if s.perSecond <= 0 {
		return true
	}
	s.served = slices.DeleteFunc(s.served, func(t time.Time) bool {
		if s.fixedWindow {
			return t.Unix() != now.Unix()
		}
		return now.Sub(t) >= time.Second || t.After(now) // after: the clock was set back
	})
	if len(s.served) >= s.perSecond {
		return false
	}
	s.served = append(s.served, now)
	return true
}

func (s *Server) leave(ctx context.Context) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.serving, ctx)
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

// fields reads a body in either of the encodings that Moov takes.
func fields(contentType string, body []byte) (url.Values, error) {
	mediaType, _, _ := mime.ParseMediaType(contentType)
	switch mediaType {
	case "application/x-www-form-urlencoded":
		return url.ParseQuery(string(body))
	case "application/json":
		var members map[string]json.RawMessage
		if err := json.Unmarshal(body, &members); err != nil {
			return nil, fmt.Errorf("the body is not a JSON object: %w", err)
		}
		form := make(url.Values, len(members))
		for name, raw := range members {
			var text *string // nil for a null, which is as good as absent
			if json.Unmarshal(raw, &text) != nil {
				form.Set(name, string(raw))
			} else if text != nil {
				form.Set(name, *text)
			}
		}
		return form, nil
	}
	return nil, errors.New("Content-Type must be application/x-www-form-urlencoded or application/json")
}

// client returns the credentials of r: Basic ones as they are (Moov, unlike RFC
// 6749 §2.3.1, has them unescaped), or else those in the body.
func client(r *http.Request, form url.Values) (id, secret string) {
	if id, secret, ok := r.BasicAuth(); ok {
		return id, secret
	}
	return form.Get("client_id"), form.Get("client_secret")
}

func (s *Server) knows(r *http.Request, form url.Values) bool {
	id, secret := client(r, form)
	return id == s.ClientID && secret == s.ClientSecret
}

// allows reports whether a token request with these headers comes from an
// allowed domain.
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

func (s *Server) token(w http.ResponseWriter, form url.Values) {
	switch form.Get("grant_type") {
	case "client_credentials":
		scopes := strings.Fields(form.Get("scope"))
		if len(scopes) == 0 {
			refuseField(w, "scope", "is required for the client_credentials grant")
			return
		}
		for _, scope := range scopes {
			if len(s.scopes) > 0 && !slices.Contains(s.scopes, scope) {
				refuseField(w, "scope", scope+" is beyond what this API key may ask for")
				return
			}
		}
		s.mu.Lock()
		set := s.issue(scopes, s.issued)
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, set)
	case "refresh_token":
		if form.Get("refresh_token") == "" {
			refuseField(w, "refresh_token", "is required for the refresh_token grant")
			return
		}
		set, ok := s.refresh(form.Get("refresh_token"))
		if !ok {
			refuse(w, http.StatusBadRequest, "invalid_grant", "the refresh token is unknown, used or revoked")
			return
		}
		writeJSON(w, http.StatusOK, set)
	case "":
		refuse(w, http.StatusBadRequest, "invalid_request", "grant_type is required")
	default:
		refuse(w, http.StatusBadRequest, "unsupported_grant_type", "use client_credentials or refresh_token")
	}
}

// refresh exchanges a refresh token for a new set of tokens. Of any number of
// concurrent uses of one, exactly one succeeds.
func (s *Server) refresh(value string) (set authToken, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if family, ok := s.used[value]; ok {
		maps.DeleteFunc(s.tokens, func(_ string, t token) bool { return t.family == family })
		return authToken{}, false
	}
	t := s.tokens[value]
	if t.kind != refreshToken {
		return authToken{}, false
	}
	delete(s.tokens, value)
	if s.reuseDetection {
		s.used[value] = t.family
	}
	return s.issue(t.scopes, t.family), true
}

// issue makes a new set of tokens. The caller holds s.mu.
func (s *Server) issue(scopes []string, family int) authToken {
	expiry := s.now().Add(s.lifetime)
	set := authToken{
		TokenType:   "Bearer",
		AccessToken: newAccessToken(expiry),
		ExpiresIn:   expiry.Unix(),
		Scope:       strings.Join(scopes, " "),
	}
	if s.expiresInSeconds {
		set.ExpiresIn = int64(s.lifetime / time.Second)
	}
	s.tokens[set.AccessToken] = token{kind: accessToken, scopes: scopes, expiry: expiry, serial: s.issued, family: family}
	if !s.noRefreshTokens {
		set.RefreshToken = rand.Text()
		s.tokens[set.RefreshToken] = token{kind: refreshToken, scopes: scopes, serial: s.issued, family: family}
	}
	s.issued++
	return set
}

func (s *Server) revoke(w http.ResponseWriter, form url.Values) {
	hint := kind(form.Get("token_type_hint"))
	switch {
	case form.Get("token") == "":
		refuseField(w, "token", "is required")
	case hint != "" && hint != accessToken && hint != refreshToken:
		refuseField(w, "token_type_hint", "must be access_token or refresh_token")
	default:
		s.Revoke(form.Get("token")) // found whatever the hint says (RFC 7009 §2.1)
		w.WriteHeader(http.StatusNoContent)
	}
}

// ping answers as any resource of Moov's API does (RFC 6750 §3).
func (s *Server) ping(w http.ResponseWriter, r *http.Request) {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	bearer := strings.EqualFold(scheme, "Bearer")
	s.mu.Lock()
	t := s.tokens[value]
	s.mu.Unlock()
	switch {
	case !bearer:
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, http.StatusUnauthorized, "unauthorized", "a bearer token is required")
	case t.kind != accessToken || !t.alive(s.now()):
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		refuse(w, http.StatusUnauthorized, "invalid_token", "the access token is unknown, expired or revoked")
	case !slices.Contains(t.scopes, pingScope):
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="`+pingScope+`"`)
		refuse(w, http.StatusForbidden, "insufficient_scope", "the access token lacks the scope "+pingScope)
	default:
		writeJSON(w, http.StatusOK, map[string]bool{"pong": true})
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
	maps.Copy(w.Header(), a.Header)
	w.WriteHeader(cmp.Or(a.Status, http.StatusOK))
	io.WriteString(w, a.Body)
}

// refuse answers with an error response (RFC 6749 §5.2).
func refuse(w http.ResponseWriter, status int, code, description string) {
	writeJSON(w, status, map[string]string{"error": code, "error_description": description})
}

// refuseField answers as Moov does when one field is wrong.
func refuseField(w http.ResponseWriter, field, why string) {
	writeJSON(w, http.StatusUnprocessableEntity, map[string]string{field: why})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store") // RFC 6749 §5.1
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(body)
}

// newAccessToken looks like a JWT, as Moov's do; its signature is random.
func newAccessToken(expiry time.Time) string {
	part := func(s string) string { return base64.RawURLEncoding.EncodeToString([]byte(s)) }
	claims := fmt.Sprintf(`{"exp":%d,"jti":%q}`, expiry.Unix(), rand.Text())
	return part(`{"alg":"HS256","typ":"JWT"}`) + "." + part(claims) + "." + part(rand.Text()+rand.Text())
}

// newRequestID is a random UUID (RFC 9562 §5.4).
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	b[6] = b[6]&0x0f | 0x40
	b[8] = b[8]&0x3f | 0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}
