package moovtest_test

import (
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// call makes a request with a bearer token. If accessToken is "", it sends none.
func call(t *testing.T, s *moovtest.Server, method, path, accessToken string) reply {
	t.Helper()
	req := request(t, s, method, path, "", "")
	if accessToken != "" {
		req.Header.Set("Authorization", "Bearer "+accessToken)
	}
	return do(t, s, req)
}

// echo replies with the account ID from the path and the request's body.
var echo = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
	io.WriteString(w, r.PathValue("accountID")+" ")
	io.Copy(w, r.Body)
})

func TestEndpointAddedWithHandle(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Handle("POST /accounts/{accountID}/cards", "/accounts/{accountID}/cards.write", echo)
		mine := grant(t, s, "/ping.read", "/accounts/1/cards.write")
		access := mine.member(t, "access_token")

		req := request(t, s, http.MethodPost, "/accounts/1/cards", jsonType, `{"n":1}`)
		req.Header.Set("Authorization", "bearer "+access)
		r := do(t, s, req)
		assert.Equal(t, 200, r.StatusCode)
		assert.Equal(t, `1 {"n":1}`, r.body)
		assert.Regexp(t, uuidV4, r.Header.Get("X-Request-Id"))
		assert.NotEmpty(t, r.Header.Get("Date"))
		seen := s.Requests()[1]
		assert.Equal(t, "/accounts/1/cards", seen.Path)
		assert.Equal(t, `{"n":1}`, seen.Body)
		assert.Equal(t, r.Header.Get("X-Request-Id"), seen.RequestID)

		for name, c := range map[string]struct {
			method, path, token string
			status              int
			challenge           string
		}{
			"no token":         {http.MethodPost, "/accounts/1/cards", "", 401, "Bearer"},
			"unknown token":    {http.MethodPost, "/accounts/1/cards", "x", 401, `Bearer error="invalid_token"`},
			"refresh token":    {http.MethodPost, "/accounts/1/cards", mine.member(t, "refresh_token"), 401, `Bearer error="invalid_token"`},
			"another account":  {http.MethodPost, "/accounts/2/cards", access, 403, `Bearer error="insufficient_scope", scope="/accounts/2/cards.write"`},
			"slash in a value": {http.MethodPost, "/accounts/1%2Fcards.write%20/cards", access, 403, `Bearer error="insufficient_scope", scope="/accounts/1%2Fcards.write%20/cards.write"`},
			"wrong method":     {http.MethodGet, "/accounts/1/cards", access, 405, ""},
			"wrong path":       {http.MethodPost, "/accounts/1/banks", access, 404, ""},
		} {
			t.Run(name, func(t *testing.T) {
				r := call(t, s, c.method, c.path, c.token)
				assert.Equal(t, c.status, r.StatusCode)
				assert.Equal(t, c.challenge, r.Header.Get("WWW-Authenticate"))
				assert.NotEmpty(t, r.member(t, "error"))
				assert.Regexp(t, uuidV4, r.Header.Get("X-Request-Id"))
				if c.status == 405 {
					assert.Equal(t, "POST", r.Header.Get("Allow"))
				}
			})
		}

		s.Revoke(access)
		assert.Equal(t, 401, call(t, s, http.MethodPost, "/accounts/1/cards", access).StatusCode)
	})
}

func TestEndpointRefusesAnExpiredToken(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		var now clock
		now.set(time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC))
		s := start(moovtest.WithClock(now.now))
		s.Handle("/x", "", echo)
		access := grant(t, s).member(t, "access_token")
		assert.Equal(t, 200, call(t, s, http.MethodGet, "/x", access).StatusCode)
		now.set(now.now().Add(15 * time.Minute))
		assert.Equal(t, 401, call(t, s, http.MethodGet, "/x", access).StatusCode)
	})
}

func TestScopesOfEndpoints(t *testing.T) {
	s := inMemory(t)
	for _, c := range []struct {
		pattern, scope, path, granted string
		status                        int
	}{
		{"/any", "", "/any", "/fed.read", 200},
		{"/blank", " ", "/blank", "/fed.read", 200},
		{"/plain", "/accounts.read", "/plain", "/accounts.read", 200},
		{"/other", "/accounts.read", "/other", "/accounts.write", 403},
		{"/longer", "/accounts.read", "/longer", "/accounts.read2", 403},
		{"/both", "/a.read /b.read", "/both", "/b.read /a.read", 200},
		{"/one", "/a.read /b.read", "/one", "/a.read", 403},
		{"/host/{a}/{b}", "/x/{b}/{a}.read", "/host/1/2", "/x/2/1.read", 200},
		{"/twice/{a}", "/x/{a}/{a}.read", "/twice/1", "/x/1/1.read", 200},
		{"/rest/{path...}", "/{path}.read", "/rest/a/b", "/a/b.read", 200},
		{"/rest2/{path...}", "/{path...}.read", "/rest2/a/b", "/a/b.read", 200},
		{"/rest3/{path...}", "/{path}.read", "/rest3/a%20/b", "/a /b.read", 403},
		{"/exact/{$}", "/a.read", "/exact/", "/a.read", 200},
		{"/literal/{id}", "/{id}.read", "/literal/1", "/{id}.read", 403},
		{"/tricky/{id}", "/{id}.read", "/tricky/a.read%20", "/a.read", 403},
		{"moov.test/host", "", "/host", "/a.read", 200},
	} {
		s.Handle(c.pattern, c.scope, echo)
		access := grant(t, s, c.granted).member(t, "access_token")
		assert.Equal(t, c.status, call(t, s, http.MethodGet, c.path, access).StatusCode, c.pattern)
	}
}

func TestPatternsWorkAsInNetHTTP(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		pattern := func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Pattern) }
		for _, p := range []string{"GET /things/{id}", "GET /things/latest", "DELETE /things/{id}", "/"} {
			s.Handle(p, "", http.HandlerFunc(pattern))
		}
		access := grant(t, s).member(t, "access_token")
		assert.Equal(t, "GET /things/latest", call(t, s, http.MethodGet, "/things/latest", access).body)
		assert.Equal(t, "GET /things/{id}", call(t, s, http.MethodGet, "/things/7", access).body)
		assert.Equal(t, "DELETE /things/{id}", call(t, s, http.MethodDelete, "/things/7", access).body)
		assert.Equal(t, "/", call(t, s, http.MethodPut, "/elsewhere", access).body)
		assert.Contains(t, call(t, s, http.MethodGet, "/ping", access).body, "pong", "the server's own endpoints have priority")
		assert.Equal(t, 405, call(t, s, http.MethodGet, "/oauth2/token", access).StatusCode)

		for _, p := range []string{"GET /ping", "/oauth2/token", "POST moov.test/oauth2/revoke", "GET /things/{other}", "", "/{a"} {
			assert.Panics(t, func() { s.Handle(p, "", echo) }, p)
		}
		assert.PanicsWithValue(t, `moovtest: Handle: the scope "/accounts/{accountID}.read" contains the wildcard {accountID}, but the pattern "/accounts/{id}" does not`,
			func() { s.Handle("/accounts/{id}", "/accounts/{accountID}.read", echo) })
		assert.Panics(t, func() { s.Handle("/nil", "", nil) })
	})
}

func TestEndpointGetsAllOfALargeBody(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Handle("/upload", "", echo)
		const size = 3<<20 + 1
		req := request(t, s, http.MethodPost, "/upload", "text/plain", strings.Repeat("x", size))
		req.Header.Set("Authorization", "Bearer "+grant(t, s).member(t, "access_token"))
		assert.Len(t, do(t, s, req).body, size+1)
		assert.Len(t, s.Requests()[1].Body, 1<<20)
	})
}

func TestAddedEndpointsCountTowardTheRateLimitAndTakeNoAnswers(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		s := start(moovtest.WithRateLimit(2), moovtest.WithClock(func() time.Time { return at }))
		s.Handle("/x", "", echo)
		access := grant(t, s).member(t, "access_token")
		s.Enqueue(moovtest.Answer{Status: 503, Latency: time.Hour})
		s.SetLatency(time.Hour)
		assert.Equal(t, 200, call(t, s, http.MethodGet, "/x", access).StatusCode)
		r := call(t, s, http.MethodGet, "/x", access)
		assert.Equal(t, 429, r.StatusCode)
		assert.Equal(t, "1", r.Header.Get("Retry-After"))
	})
}

// fromPage makes a request as a browser does for a web page. The headers are name and
// value in turn.
func fromPage(t *testing.T, s *moovtest.Server, origin, method, path string, headers ...string) reply {
	t.Helper()
	req := request(t, s, method, path, "", "")
	req.Header.Set("Origin", origin)
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	return do(t, s, req)
}

const (
	page      = "https://shop.example"
	otherPage = "https://evil.example"
)

func TestPagesFromAllowedOriginsMayCall(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithCORS(page, "http://localhost:3000"))
		s.Handle("POST /accounts/{accountID}/cards", "/accounts/{accountID}/cards.write", echo)
		access := "Bearer " + grant(t, s, "/accounts/1/cards.write").member(t, "access_token")

		r := fromPage(t, s, page, http.MethodOptions, "/accounts/1/cards",
			"Access-Control-Request-Method", "POST", "Access-Control-Request-Headers", "authorization,x-moov-version")
		assert.Equal(t, 204, r.StatusCode)
		assert.Equal(t, page, r.Header.Get("Access-Control-Allow-Origin"))
		assert.Equal(t, "POST", r.Header.Get("Access-Control-Allow-Methods"))
		assert.Equal(t, "authorization,x-moov-version", r.Header.Get("Access-Control-Allow-Headers"))
		assert.Equal(t, "Origin", r.Header.Get("Vary"))
		assert.Empty(t, r.Header.Get("Access-Control-Allow-Credentials"))

		for path, status := range map[string]int{"/accounts/1/cards": 200, "/accounts/2/cards": 403, "/nowhere": 404} {
			r = fromPage(t, s, page, http.MethodPost, path, "Authorization", access)
			assert.Equal(t, status, r.StatusCode)
			assert.Equal(t, page, r.Header.Get("Access-Control-Allow-Origin"), "a page may also read error replies")
			assert.Equal(t, "*", r.Header.Get("Access-Control-Expose-Headers"))
			assert.Equal(t, "Origin", r.Header.Get("Vary"))
		}
		r = fromPage(t, s, "http://localhost:3000", http.MethodGet, "/ping")
		assert.Equal(t, "http://localhost:3000", r.Header.Get("Access-Control-Allow-Origin"))

		for name, c := range map[string]struct {
			origin, path, method string
			status               int
		}{
			"ping":             {page, "/ping", "GET", 204},
			"ping, wrongly":    {page, "/ping", "POST", 405},
			"wrong method":     {page, "/accounts/1/cards", "GET", 405},
			"wrong path":       {page, "/nowhere", "GET", 404},
			"other page":       {otherPage, "/ping", "GET", 403},
			"null":             {"null", "/ping", "GET", 403},
			"token endpoint":   {page, "/oauth2/token", "POST", 405},
			"revoke endpoint":  {page, "/oauth2/revoke", "POST", 405},
			"not a preflight":  {page, "/ping", "", 405},
			"page in capitals": {strings.ToUpper(page), "/ping", "GET", 403},
		} {
			t.Run(name, func(t *testing.T) {
				var headers []string
				if c.method != "" {
					headers = []string{"Access-Control-Request-Method", c.method}
				}
				r := fromPage(t, s, c.origin, http.MethodOptions, c.path, headers...)
				assert.Equal(t, c.status, r.StatusCode)
				assert.Equal(t, c.status == 204, r.Header.Get("Access-Control-Allow-Methods") != "")
				if c.origin != page || strings.HasPrefix(c.path, "/oauth2/") {
					assert.Empty(t, r.Header.Get("Access-Control-Allow-Origin"))
				}
			})
		}

		r = fromPage(t, s, otherPage, http.MethodPost, "/accounts/1/cards", "Authorization", access)
		assert.Equal(t, 200, r.StatusCode, "the server replies; the browser hides the reply from the page")
		assert.Empty(t, r.Header.Get("Access-Control-Allow-Origin"))
		assert.Equal(t, "Origin", r.Header.Get("Vary"))
		req := posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
		req.Header.Set("Origin", page)
		assert.Empty(t, do(t, s, req).Header.Get("Access-Control-Allow-Origin"), "pages must not read replies of the token endpoint")
	})
}

func TestPagesOfAnyOrigin(t *testing.T) {
	s := inMemory(t, moovtest.WithCORS())
	r := fromPage(t, s, otherPage, http.MethodGet, "/ping")
	assert.Equal(t, otherPage, r.Header.Get("Access-Control-Allow-Origin"))
	r = fromPage(t, s, otherPage, http.MethodOptions, "/ping", "Access-Control-Request-Method", "GET")
	assert.Equal(t, 204, r.StatusCode)
	assert.NotContains(t, r.Header, "Access-Control-Allow-Headers")
}

func TestWithoutCORSThereAreNoCORSHeaders(t *testing.T) {
	s := inMemory(t)
	s.Handle("OPTIONS /mine", "", echo)
	r := fromPage(t, s, page, http.MethodOptions, "/ping", "Access-Control-Request-Method", "GET")
	assert.Equal(t, 405, r.StatusCode)
	for name := range r.Header {
		assert.NotContains(t, name, "Access-Control")
	}
	r = fromPage(t, s, page, http.MethodOptions, "/mine", "Access-Control-Request-Method", "GET")
	assert.Equal(t, 401, r.StatusCode)
}

func TestPreflightsAreRecordedButNotRateLimited(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		at := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC)
		s := start(moovtest.WithCORS(page), moovtest.WithRateLimit(1), moovtest.WithClock(func() time.Time { return at }))
		for range 3 {
			r := fromPage(t, s, page, http.MethodOptions, "/ping", "Access-Control-Request-Method", "GET")
			require.Equal(t, 204, r.StatusCode)
		}
		assert.Equal(t, 401, fromPage(t, s, page, http.MethodGet, "/ping").StatusCode)
		r := fromPage(t, s, page, http.MethodGet, "/ping")
		assert.Equal(t, 429, r.StatusCode)
		assert.Equal(t, page, r.Header.Get("Access-Control-Allow-Origin"), "so that the page can read the 429")
		assert.Len(t, s.Requests(), 5)
	})
}
