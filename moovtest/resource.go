package moovtest

// This file holds the API that clients call with a token: GET /ping, and the
// endpoints that a test adds. It checks bearer tokens and implements CORS.

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Handle adds an endpoint to the API that requires an access token. The pattern has
// the syntax of [http.ServeMux], such as "POST /accounts/{accountID}/cards". The
// handler can read the values of its wildcards with [http.Request.PathValue]. A test
// can add endpoints while the server runs.
//
// If a request has no valid access token, the server answers 401. If the token does
// not have the required scope, the server answers 403. Both replies are the same as
// those of GET /ping.
//
// The scope may contain wildcards of the pattern: "/accounts/{accountID}/cards.write"
// requires the scope for the account in the path. If scope lists several scopes,
// separated by spaces, the token must have all of them. If scope is empty, any valid
// access token is accepted.
//
// When the handler is called, the headers x-request-id and Date are already set.
// [Server.Requests] includes the requests to the endpoint, and they count toward
// [WithRateLimit]. [WithLatency] and prepared answers do not apply to them.
//
// Handle panics in the same cases as [http.ServeMux.Handle]. It also panics if the
// path is that of one of the server's own endpoints, or if the scope contains a
// wildcard that is not in the pattern.
func (s *Server) Handle(pattern, scope string, handler http.Handler) {
	if handler == nil {
		panic("moovtest: Handle: the handler is nil")
	}
	path := pattern[max(strings.IndexByte(pattern, '/'), 0):] // after a method and a host
	if _, own := methods[path]; own {
		panic("moovtest: Handle: the server already has an endpoint " + path)
	}
	multi := make(map[string]bool) // for each wildcard of the pattern: whether it matches several segments
	for _, match := range wildcard.FindAllStringSubmatch(path, -1) {
		multi[match[1]] = match[2] != ""
	}
	for _, match := range wildcard.FindAllStringSubmatch(scope, -1) {
		if _, ok := multi[match[1]]; !ok {
			panic(fmt.Sprintf("moovtest: Handle: the scope %q contains the wildcard %s, but the pattern %q does not", scope, match[0], pattern))
		}
	}
	s.mux.Handle(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		needed := wildcard.ReplaceAllStringFunc(scope, func(match string) string {
			name := wildcard.FindStringSubmatch(match)[1]
			return escaped(r.PathValue(name), multi[name])
		})
		if s.authorize(w, r, strings.Fields(needed)) {
			handler.ServeHTTP(w, r)
		}
	}))
}

// wildcard matches {name} and {name...}, but not {$}.
var wildcard = regexp.MustCompile(`\{([^{}$.]+)(\.\.\.)?\}`)

// escaped escapes a value from the path, so that it cannot change the form of the
// scope or add another scope. It does not change Moov's IDs.
func escaped(value string, multi bool) string {
	if !multi {
		return url.PathEscape(value)
	}
	segments := strings.Split(value, "/")
	for i := range segments {
		segments[i] = url.PathEscape(segments[i])
	}
	return strings.Join(segments, "/")
}

// resource serves the endpoints added with Handle.
func (s *Server) resource(w http.ResponseWriter, r *http.Request) {
	if s.routed(w, r) {
		s.mux.ServeHTTP(w, r)
	}
}

// routed reports whether Handle added an endpoint for r. If not, it refuses r.
func (s *Server) routed(w http.ResponseWriter, r *http.Request) bool {
	handler, pattern := s.mux.Handler(r)
	if pattern != "" {
		return true
	}
	mux := httptest.NewRecorder()
	handler.ServeHTTP(mux, r)
	if mux.Code == http.StatusMethodNotAllowed {
		refuseMethod(w, mux.Header().Get("Allow"))
	} else {
		refuse(w, http.StatusNotFound, "not_found", r.URL.Path+" is not an endpoint of this server")
	}
	return false
}

func refuseMethod(w http.ResponseWriter, allow string) {
	w.Header().Set("Allow", allow)
	refuse(w, http.StatusMethodNotAllowed, "method_not_allowed", "use "+allow)
}

// ping serves GET /ping, which requires the scope /ping.read.
func (s *Server) ping(w http.ResponseWriter, r *http.Request) {
	if s.authorize(w, r, []string{pingScope}) {
		writeJSON(w, http.StatusOK, map[string]bool{"pong": true})
	}
}

// authorize reports whether r has a valid access token with the scopes. If not, it
// refuses r (RFC 6750 §3).
func (s *Server) authorize(w http.ResponseWriter, r *http.Request, scopes []string) bool {
	scheme, value, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	bearer := strings.EqualFold(scheme, "Bearer")
	s.mu.Lock()
	t := s.tokens[value]
	alive := t.kind == accessToken && t.alive(s.now())
	s.mu.Unlock()
	lacks := func(scope string) bool { return !slices.Contains(t.scopes, scope) }
	switch {
	case !bearer:
		w.Header().Set("WWW-Authenticate", "Bearer")
		refuse(w, http.StatusUnauthorized, "unauthorized", "a bearer token is required")
	case !alive:
		w.Header().Set("WWW-Authenticate", `Bearer error="invalid_token"`)
		refuse(w, http.StatusUnauthorized, "invalid_token", "the access token is unknown, expired or revoked")
	case slices.ContainsFunc(scopes, lacks):
		needed := strings.Join(scopes, " ")
		w.Header().Set("WWW-Authenticate", `Bearer error="insufficient_scope", scope="`+needed+`"`)
		refuse(w, http.StatusForbidden, "insufficient_scope", "the access token does not have the scope "+scopes[slices.IndexFunc(scopes, lacks)])
	default:
		return true
	}
	return false
}

// admitsPage reports whether r comes from a page whose origin WithCORS allows.
func (s *Server) admitsPage(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	return s.cors && origin != "" && !tokenEndpoint(r) && (len(s.pages) == 0 || slices.Contains(s.pages, origin))
}

// isPreflight reports whether r is a CORS-preflight request of the Fetch standard.
func (s *Server) isPreflight(r *http.Request) bool {
	return s.cors && !tokenEndpoint(r) && r.Method == http.MethodOptions &&
		r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// share allows the page that sent r to read the reply, if WithCORS allows its origin.
func (s *Server) share(w http.ResponseWriter, r *http.Request) {
	if !s.cors || tokenEndpoint(r) {
		return
	}
	w.Header().Add("Vary", "Origin")
	if s.admitsPage(r) {
		w.Header().Set("Access-Control-Allow-Origin", r.Header.Get("Origin"))
		w.Header().Set("Access-Control-Expose-Headers", "*")
	}
}

// preflight answers a CORS-preflight request.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request) {
	asked := *r
	asked.Method = r.Header.Get("Access-Control-Request-Method")
	method, own := methods[r.URL.Path]
	switch {
	case !s.admitsPage(r):
		refuse(w, http.StatusForbidden, "forbidden", "WithCORS does not allow the origin "+r.Header.Get("Origin"))
	case own && asked.Method != method:
		refuseMethod(w, method)
	case own || s.routed(w, &asked):
		w.Header().Set("Access-Control-Allow-Methods", asked.Method)
		if headers := r.Header.Values("Access-Control-Request-Headers"); len(headers) > 0 {
			w.Header().Set("Access-Control-Allow-Headers", strings.Join(headers, ", "))
		}
		w.WriteHeader(http.StatusNoContent)
	}
}
