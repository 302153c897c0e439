package moovtest

// This file is the API that tokens are for: GET /ping, and the endpoints that a
// test adds. It checks bearer tokens, and lets pages of other origins in.

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Handle adds an endpoint to the API, behind a bearer token. The pattern is one
// of [http.ServeMux], such as "POST /accounts/{accountID}/cards", and handler
// finds the values of its wildcards with [http.Request.PathValue].
//
// The access token must be alive, or the answer is 401, and have the scope, or
// it is 403, both as from GET /ping. A wildcard of the pattern may stand in the
// scope: "/accounts/{accountID}/cards.write" is then the scope of the account in
// the path. Several scopes, with a space between them, are all needed; with an
// empty scope any live token will do.
//
// The handler finds x-request-id and Date set. Like the server's own endpoints,
// the new one is recorded in [Server.Requests] and counts for [WithRateLimit];
// unlike the two for tokens, it knows no latency and takes no prepared [Answer].
//
// Handle panics as [http.ServeMux.Handle] does, and if the pattern has the path of
// one of the server's own endpoints or the scope has a wildcard that the pattern
// lacks. Endpoints can be added while the server runs.
func (s *Server) Handle(pattern, scope string, handler http.Handler) {
	if handler == nil {
		panic("moovtest: Handle: the handler is nil")
	}
	path := pattern[max(strings.IndexByte(pattern, '/'), 0):] // after a method and a host
	if _, own := methods[path]; own {
		panic("moovtest: Handle: " + path + " is an endpoint of the server's own")
	}
	multi := make(map[string]bool) // the pattern's wildcards, by name: whether each is for several segments
	for _, match := range wildcard.FindAllStringSubmatch(path, -1) {
		multi[match[1]] = match[2] != ""
	}
	for _, match := range wildcard.FindAllStringSubmatch(scope, -1) {
		if _, ok := multi[match[1]]; !ok {
			panic(fmt.Sprintf("moovtest: Handle: the scope %q has the wildcard %s, which the pattern %q lacks", scope, match[0], pattern))
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

// wildcard finds {name} and {name...}, but not {$}.
var wildcard = regexp.MustCompile(`\{([^{}$.]+)(\.\.\.)?\}`)

// escaped keeps a value from the path from making other scopes than one of the
// shape that the test gave. Moov's IDs stay as they are.
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

// resource serves the endpoints that were added with Handle.
func (s *Server) resource(w http.ResponseWriter, r *http.Request) {
	if s.routed(w, r) {
		s.mux.ServeHTTP(w, r)
	}
}

// routed reports whether an endpoint was added for r. If not, it refuses r.
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

// ping is Moov's cheapest endpoint behind a token.
func (s *Server) ping(w http.ResponseWriter, r *http.Request) {
	if s.authorize(w, r, []string{pingScope}) {
		writeJSON(w, http.StatusOK, map[string]bool{"pong": true})
	}
}

// authorize reports whether r has a live token with the scopes. If not, it
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
		refuse(w, http.StatusForbidden, "insufficient_scope", "the access token lacks the scope "+scopes[slices.IndexFunc(scopes, lacks)])
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

// isPreflight reports whether r asks what a page may do (Fetch standard, CORS-preflight request).
func (s *Server) isPreflight(r *http.Request) bool {
	return s.cors && !tokenEndpoint(r) && r.Method == http.MethodOptions &&
		r.Header.Get("Origin") != "" && r.Header.Get("Access-Control-Request-Method") != ""
}

// share lets the page that r comes from, if it may, read the reply.
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

// preflight answers what isPreflight finds.
func (s *Server) preflight(w http.ResponseWriter, r *http.Request) {
	asked := *r
	asked.Method = r.Header.Get("Access-Control-Request-Method")
	method, own := methods[r.URL.Path]
	switch {
	case !s.admitsPage(r):
		refuse(w, http.StatusForbidden, "forbidden", "WithCORS does not name the origin "+r.Header.Get("Origin"))
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
