package moovtest_test

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const (
	formType = "application/x-www-form-urlencoded"
	jsonType = "application/json"

	uuidV4 = `^[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$`
)

// start creates a server that is closed at the end of the test.
type start func(...moovtest.Option) *moovtest.Server

// onEachKind runs a test with a loopback server and with an in-memory server.
func onEachKind(t *testing.T, test func(*testing.T, start)) {
	for name, kind := range map[string]start{"loopback": moovtest.NewServer, "in memory": moovtest.NewInMemory} {
		t.Run(name, func(t *testing.T) {
			test(t, func(opts ...moovtest.Option) *moovtest.Server {
				s := kind(opts...)
				t.Cleanup(s.Close)
				return s
			})
		})
	}
}

func inMemory(t *testing.T, opts ...moovtest.Option) *moovtest.Server {
	s := moovtest.NewInMemory(opts...)
	t.Cleanup(s.Close)
	return s
}

// reply is a response whose body has been read.
type reply struct {
	*http.Response
	body string
}

func (r reply) json(t *testing.T) map[string]any {
	t.Helper()
	assert.Equal(t, jsonType, r.Header.Get("Content-Type"))
	var members map[string]any
	require.NoError(t, json.Unmarshal([]byte(r.body), &members), r.body)
	return members
}

func (r reply) member(t *testing.T, name string) string {
	t.Helper()
	value, _ := r.json(t)[name].(string)
	return value
}

func do(t *testing.T, s *moovtest.Server, req *http.Request) reply {
	t.Helper()
	resp, err := s.Client().Do(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return reply{resp, string(body)}
}

func request(t *testing.T, s *moovtest.Server, method, path, contentType, body string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, s.URL+path, strings.NewReader(body))
	require.NoError(t, err)
	if contentType != "" {
		req.Header.Set("Content-Type", contentType)
	}
	return req
}

// post sends a form with Basic credentials. The fields are name and value in turn.
func post(t *testing.T, s *moovtest.Server, path string, fields ...string) reply {
	t.Helper()
	return do(t, s, posting(t, s, path, fields...))
}

func posting(t *testing.T, s *moovtest.Server, path string, fields ...string) *http.Request {
	t.Helper()
	form := make(url.Values)
	for i := 0; i < len(fields); i += 2 {
		form.Set(fields[i], fields[i+1])
	}
	req := request(t, s, http.MethodPost, path, formType, form.Encode())
	req.SetBasicAuth(s.ClientID, s.ClientSecret)
	return req
}

func grant(t *testing.T, s *moovtest.Server, scopes ...string) reply {
	t.Helper()
	if len(scopes) == 0 {
		scopes = []string{"/ping.read"}
	}
	return post(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", strings.Join(scopes, " "))
}

func refresh(t *testing.T, s *moovtest.Server, refreshToken string) reply {
	t.Helper()
	return post(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken)
}

func ping(t *testing.T, s *moovtest.Server, authorization string) reply {
	t.Helper()
	req := request(t, s, http.MethodGet, "/ping", "", "")
	if authorization != "" {
		req.Header.Set("Authorization", authorization)
	}
	return do(t, s, req)
}

// untilTokenRequests waits until n token requests have arrived.
func untilTokenRequests(s *moovtest.Server, n int) {
	for len(s.TokenRequests()) < n {
		runtime.Gosched()
	}
}

func TestClientCredentialsGrant(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		r := grant(t, s, "/ping.read", "/accounts.read")

		assert.Equal(t, "200 OK", r.Status)
		assert.Equal(t, "no-store", r.Header.Get("Cache-Control"))
		reply := r.json(t)
		assert.Equal(t, "Bearer", reply["token_type"])
		assert.Equal(t, "/ping.read /accounts.read", reply["scope"])
		assert.InDelta(t, time.Now().Add(15*time.Minute).Unix(), reply["expires_in"], 2)
		assert.Equal(t, []string{reply["access_token"].(string)}, s.AccessTokens())
		assert.Equal(t, []string{reply["refresh_token"].(string)}, s.RefreshTokens())
		assert.Regexp(t, `^eyJ[\w-]+\.eyJ[\w-]+\.[\w-]+$`, reply["access_token"])
		assert.NotEqual(t, reply["access_token"], grant(t, s).member(t, "access_token"))
	})
}

func TestCredentialsInEitherPlaceAndEncoding(t *testing.T) {
	const id, secret = "public key/ä", "a+b%20c=:&"
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"/ping.read"}}
	withClient := url.Values{"grant_type": {"client_credentials"}, "scope": {"/ping.read"}, "client_id": {id}, "client_secret": {secret}}
	for name, c := range map[string]struct {
		contentType, body string
		basic             bool
	}{
		"form, Basic": {formType, form.Encode(), true},
		"form, body":  {formType + "; charset=utf-8", withClient.Encode(), false},
		"JSON, Basic": {jsonType, `{"grant_type":"client_credentials","scope":"/ping.read"}`, true},
		"JSON, body":  {jsonType, `{"grant_type":"client_credentials","scope":"/ping.read","client_id":"public key/ä","client_secret":"a+b%20c=:&"}`, false},
	} {
		t.Run(name, func(t *testing.T) {
			s := inMemory(t, moovtest.WithCredentials(id, secret))
			req := request(t, s, http.MethodPost, "/oauth2/token", c.contentType, c.body)
			if c.basic {
				req.SetBasicAuth(id, secret)
			}
			assert.Equal(t, 200, do(t, s, req).StatusCode)
			seen := s.TokenRequests()[0]
			assert.Equal(t, id, seen.ClientID)
			assert.Equal(t, "client_credentials", seen.GrantType)
			assert.Equal(t, "/ping.read", seen.Form.Get("scope"))
			assert.Equal(t, c.body, seen.Body)
		})
	}
}

func TestUnknownClientIsRefused(t *testing.T) {
	s := inMemory(t)
	for _, path := range []string{"/oauth2/token", "/oauth2/revoke"} {
		req := request(t, s, http.MethodPost, path, formType, "grant_type=client_credentials&scope=/ping.read&token=x")
		r := do(t, s, req)
		assert.Equal(t, 401, r.StatusCode)
		assert.Equal(t, "invalid_client", r.member(t, "error"))
		assert.Empty(t, r.Header.Get("WWW-Authenticate"))

		req = request(t, s, http.MethodPost, path, formType, "grant_type=client_credentials&scope=/ping.read&token=x")
		req.SetBasicAuth(s.ClientID, url.QueryEscape(s.ClientSecret+"="))
		r = do(t, s, req)
		assert.Equal(t, 401, r.StatusCode)
		assert.Equal(t, "Basic", r.Header.Get("WWW-Authenticate"))
	}
	assert.Empty(t, s.AccessTokens())
}

func TestRefusedRequests(t *testing.T) {
	s := inMemory(t, moovtest.WithScopes("/ping.read", "/fed.read"))
	access := grant(t, s).member(t, "access_token")
	const token, revoke = "/oauth2/token", "/oauth2/revoke"
	for name, c := range map[string]struct {
		path, contentType, body string
		status                  int
		member, contains        string
	}{
		"no scope":              {token, formType, "grant_type=client_credentials", 422, "scope", "required"},
		"blank scope":           {token, formType, "grant_type=client_credentials&scope=+", 422, "scope", "required"},
		"null scope":            {token, jsonType, `{"grant_type":"client_credentials","scope":null}`, 422, "scope", "required"},
		"scope beyond the key":  {token, formType, "grant_type=client_credentials&scope=/fed.read+/x", 422, "scope", "/x"},
		"no refresh token":      {token, formType, "grant_type=refresh_token", 422, "refresh_token", "required"},
		"unknown refresh token": {token, formType, "grant_type=refresh_token&refresh_token=x", 400, "error", "invalid_grant"},
		"access token instead":  {token, formType, "grant_type=refresh_token&refresh_token=" + access, 400, "error", "invalid_grant"},
		"no grant type":         {token, formType, "scope=/ping.read", 400, "error", "invalid_request"},
		"unknown grant type":    {token, formType, "grant_type=password", 400, "error", "unsupported_grant_type"},
		"no content type":       {token, "", "grant_type=client_credentials", 400, "error_description", "Content-Type"},
		"other content type":    {revoke, "text/plain", "token=x", 400, "error_description", "Content-Type"},
		"malformed form":        {token, formType, "grant_type=%zz", 400, "error", "invalid_request"},
		"malformed JSON":        {revoke, jsonType, "token", 400, "error_description", "JSON object"},
		"JSON is not an object": {revoke, jsonType, "[1]", 400, "error_description", "JSON object"},
		"no token to revoke":    {revoke, formType, "token_type_hint=access_token", 422, "token", "required"},
		"unknown hint":          {revoke, formType, "token=x&token_type_hint=id_token", 422, "token_type_hint", "refresh_token"},
		"hint is not a string":  {revoke, jsonType, `{"token":"x","token_type_hint":7}`, 422, "token_type_hint", "refresh_token"},
	} {
		t.Run(name, func(t *testing.T) {
			req := request(t, s, http.MethodPost, c.path, c.contentType, c.body)
			req.SetBasicAuth(s.ClientID, s.ClientSecret)
			r := do(t, s, req)
			assert.Equal(t, c.status, r.StatusCode)
			assert.Contains(t, r.member(t, c.member), c.contains)
		})
	}
	assert.Equal(t, []string{access}, s.AccessTokens())
}

func TestRefreshTokenRotates(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		first := grant(t, s, "/ping.read", "/fed.read")
		second := refresh(t, s, first.member(t, "refresh_token"))

		assert.Equal(t, 200, second.StatusCode)
		assert.Equal(t, "/ping.read /fed.read", second.member(t, "scope"))
		assert.False(t, s.Alive(first.member(t, "refresh_token")))
		assert.Equal(t, []string{second.member(t, "refresh_token")}, s.RefreshTokens())
		assert.Equal(t, []string{first.member(t, "access_token"), second.member(t, "access_token")}, s.AccessTokens())

		again := refresh(t, s, first.member(t, "refresh_token"))
		assert.Equal(t, 400, again.StatusCode)
		assert.Equal(t, "invalid_grant", again.member(t, "error"))
	})
}

func TestConcurrentUsesOfARefreshTokenSucceedOnce(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		refreshToken := grant(t, s).member(t, "refresh_token")
		statuses := make(chan int, 50)
		var all sync.WaitGroup
		for range cap(statuses) {
			req := posting(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken)
			all.Go(func() {
				resp, err := s.Client().Do(req)
				if assert.NoError(t, err) {
					resp.Body.Close()
					statuses <- resp.StatusCode
				}
			})
		}
		all.Wait()
		close(statuses)

		count := make(map[int]int)
		for status := range statuses {
			count[status]++
		}
		assert.Equal(t, map[int]int{200: 1, 400: 49}, count)
		assert.Len(t, s.RefreshTokens(), 1)
		assert.Len(t, s.TokenRequests(), 51)
	})
}

func TestWithoutRefreshTokens(t *testing.T) {
	s := inMemory(t, moovtest.WithoutRefreshTokens())
	assert.NotContains(t, grant(t, s).json(t), "refresh_token")
	assert.Empty(t, s.RefreshTokens())
}

func TestRevokeRevokesOnlyOneToken(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		r := grant(t, s)
		access, refreshToken := r.member(t, "access_token"), r.member(t, "refresh_token")

		revoked := post(t, s, "/oauth2/revoke", "token", refreshToken, "token_type_hint", "refresh_token")
		assert.Equal(t, "204 No Content", revoked.Status)
		assert.Empty(t, revoked.body)
		assert.Equal(t, int64(0), revoked.ContentLength)
		assert.False(t, s.Alive(refreshToken))
		assert.True(t, s.Alive(access))
		assert.Equal(t, 400, refresh(t, s, refreshToken).StatusCode)

		assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", access, "token_type_hint", "refresh_token").StatusCode, "a wrong hint")
		assert.False(t, s.Alive(access))
		assert.Equal(t, 401, ping(t, s, "Bearer "+access).StatusCode)

		assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", access).StatusCode, "a token that is already revoked")
		assert.Len(t, s.RevokeRequests(), 3)
	})
}

func TestTokensRevokedAtTheServer(t *testing.T) {
	s := inMemory(t)
	first, second := grant(t, s), grant(t, s)

	s.Revoke(first.member(t, "access_token"))
	assert.Equal(t, []string{second.member(t, "access_token")}, s.AccessTokens())
	assert.Len(t, s.RefreshTokens(), 2)

	s.RevokeAll()
	assert.Empty(t, s.AccessTokens())
	assert.Empty(t, s.RefreshTokens())
	assert.Equal(t, 200, grant(t, s).StatusCode)
}

func TestPing(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		allowed, other := grant(t, s), grant(t, s, "/fed.read")
		for name, c := range map[string]struct {
			authorization string
			status        int
			challenge     string
		}{
			"live token":         {"Bearer " + allowed.member(t, "access_token"), 200, ""},
			"scheme in any case": {"bearer " + allowed.member(t, "access_token"), 200, ""},
			"no token":           {"", 401, "Bearer"},
			"Basic":              {"Basic " + allowed.member(t, "access_token"), 401, "Bearer"},
			"unknown token":      {"Bearer x", 401, `Bearer error="invalid_token"`},
			"refresh token":      {"Bearer " + allowed.member(t, "refresh_token"), 401, `Bearer error="invalid_token"`},
			"other scope":        {"Bearer " + other.member(t, "access_token"), 403, `Bearer error="insufficient_scope", scope="/ping.read"`},
		} {
			t.Run(name, func(t *testing.T) {
				r := ping(t, s, c.authorization)
				assert.Equal(t, c.status, r.StatusCode)
				assert.Equal(t, c.challenge, r.Header.Get("WWW-Authenticate"))
				assert.NotEmpty(t, r.json(t))
			})
		}
	})
}

func TestWrongPathOrMethod(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		r := do(t, s, request(t, s, http.MethodGet, "/accounts", "", ""))
		assert.Equal(t, 404, r.StatusCode)
		assert.Contains(t, r.member(t, "error_description"), "/accounts")

		for path, c := range map[string]struct{ method, allow string }{
			"/oauth2/token":  {http.MethodGet, "POST"},
			"/oauth2/revoke": {http.MethodDelete, "POST"},
			"/ping":          {http.MethodPost, "GET"},
		} {
			r := do(t, s, request(t, s, c.method, path, "", ""))
			assert.Equal(t, 405, r.StatusCode, path)
			assert.Equal(t, c.allow, r.Header.Get("Allow"), path)
			assert.NotEmpty(t, r.json(t))
		}
		r = do(t, s, request(t, s, http.MethodHead, "/ping", "", ""))
		assert.Equal(t, 405, r.StatusCode)
		assert.Empty(t, r.body)
		assert.Positive(t, r.ContentLength)
	})
}

func TestEveryAnswerHasARequestIDAndTheServersDate(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		clock := time.Date(2033, 5, 18, 3, 33, 20, 500, time.UTC)
		s := start(moovtest.WithClock(func() time.Time { return clock }))
		s.Enqueue(moovtest.Answer{Status: 503})
		replies := []reply{grant(t, s), grant(t, s), ping(t, s, ""), post(t, s, "/oauth2/revoke", "token", "x"), post(t, s, "/nowhere")}

		seen := s.Requests()
		require.Len(t, seen, len(replies))
		ids := make(map[string]bool)
		for i, r := range replies {
			id := r.Header.Get("X-Request-Id")
			assert.Regexp(t, uuidV4, id)
			assert.Equal(t, id, seen[i].RequestID)
			ids[id] = true
			assert.Equal(t, "Wed, 18 May 2033 03:33:20 GMT", r.Header.Get("Date"))
			assert.Equal(t, clock, seen[i].Time)
		}
		assert.Len(t, ids, len(replies))
		assert.EqualValues(t, clock.Add(15*time.Minute).Unix(), replies[1].json(t)["expires_in"])
	})
}

func TestAccessTokenExpiresAndRefreshTokenDoesNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t)
		r := grant(t, s)
		access := r.member(t, "access_token")
		date, err := http.ParseTime(r.Header.Get("Date"))
		require.NoError(t, err)
		assert.EqualValues(t, date.Add(15*time.Minute).Unix(), r.json(t)["expires_in"])

		time.Sleep(15*time.Minute - time.Nanosecond)
		assert.Equal(t, 200, ping(t, s, "Bearer "+access).StatusCode)
		time.Sleep(time.Nanosecond)
		assert.Equal(t, 401, ping(t, s, "Bearer "+access).StatusCode)
		assert.False(t, s.Alive(access))
		assert.Empty(t, s.AccessTokens())

		time.Sleep(365 * 24 * time.Hour)
		assert.Equal(t, 200, refresh(t, s, r.member(t, "refresh_token")).StatusCode)
	})
}

// Clients take a shorter number for seconds.
func TestTimestampsInABubbleHaveTenDigits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		require.Less(t, time.Now().Unix(), int64(1e9))
		s := inMemory(t)
		assert.Greater(t, grant(t, s).json(t)["expires_in"], 1e9)
		assert.Greater(t, s.Requests()[0].Time.Unix(), int64(1e9))
	})
}

func TestLifetimes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t, moovtest.WithLifetime(2500*time.Millisecond), moovtest.WithExpiresInSeconds())
		assert.EqualValues(t, 2, grant(t, s).json(t)["expires_in"])
		s.SetLifetime(time.Hour)
		assert.EqualValues(t, 3600, grant(t, s).json(t)["expires_in"])
		assert.Len(t, s.AccessTokens(), 2)
		time.Sleep(2500 * time.Millisecond)
		assert.Len(t, s.AccessTokens(), 1)
	})
}

func TestOrigins(t *testing.T) {
	s := inMemory(t, moovtest.WithOrigins("https://example.com", "http://localhost:3000"))
	for name, c := range map[string]struct {
		origin, referer string
		status          int
	}{
		"no header":                     {"", "", 400},
		"allowed origin":                {"https://example.com", "", 200},
		"another allowed origin":        {"http://localhost:3000", "", 200},
		"other origin":                  {"https://example.org", "", 400},
		"other scheme":                  {"http://example.com", "", 400},
		"other port":                    {"http://localhost:3001", "", 400},
		"origin with a path":            {"https://example.com/", "", 400},
		"allowed referer":               {"", "https://example.com/checkout?step=2", 200},
		"other referer":                 {"", "https://example.org/", 400},
		"malformed referer":             {"", "%zz", 400},
		"allowed origin, other referer": {"https://example.com", "https://example.org/", 200},
		"other origin, allowed referer": {"https://example.org", "https://example.com/", 400},
	} {
		t.Run(name, func(t *testing.T) {
			req := posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
			for header, value := range map[string]string{"Origin": c.origin, "Referer": c.referer} {
				if value != "" {
					req.Header.Set(header, value)
				}
			}
			r := do(t, s, req)
			assert.Equal(t, c.status, r.StatusCode)
			if c.status == 400 {
				assert.Contains(t, r.member(t, "error_description"), "Origin")
			}
		})
	}
	assert.Equal(t, 204, post(t, s, "/oauth2/revoke", "token", "x").StatusCode, "a revoke request needs no Origin")
}

func TestLatency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t, moovtest.WithLatency(2*time.Second))
		took := func(act func()) time.Duration {
			began := time.Now()
			act()
			return time.Since(began)
		}
		assert.Equal(t, 2*time.Second, took(func() { grant(t, s) }))
		assert.Equal(t, 2*time.Second, took(func() { post(t, s, "/oauth2/revoke", "token", "x") }))
		assert.Zero(t, took(func() { ping(t, s, "") }))

		s.Enqueue(moovtest.Answer{Status: 503, Latency: time.Minute})
		assert.Equal(t, 62*time.Second, took(func() { grant(t, s) }))

		s.SetLatency(0)
		assert.Zero(t, took(func() { grant(t, s) }))
		requests := s.TokenRequests()
		assert.Equal(t, 62*time.Second, requests[2].Time.Sub(requests[1].Time), "requests are recorded on arrival")
	})
}

func TestServerMadeOutsideABubbleServesInside(t *testing.T) {
	s := inMemory(t, moovtest.WithLatency(time.Hour))
	synctest.Test(t, func(t *testing.T) {
		assert.Equal(t, 200, grant(t, s).StatusCode)
	})
}

func TestServerMadeOutsideABubbleUsesTheTimeInside(t *testing.T) {
	s := inMemory(t)
	for range 2 { // each bubble starts in 2000 again
		synctest.Test(t, func(t *testing.T) {
			before := len(s.TokenRequests())
			source, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: s.ClientID, ClientSecret: s.ClientSecret},
				moovauth.WithScopes("/ping.read"), moovauth.WithHTTPClient(s.Client()))
			require.NoError(t, err)
			first, err := source.Token()
			require.NoError(t, err)
			assert.WithinRange(t, first.Expiry, time.Now().Add(14*time.Minute), time.Now().Add(15*time.Minute))
			time.Sleep(15 * time.Minute)
			assert.False(t, s.Alive(first.AccessToken))
			second, err := source.Token()
			require.NoError(t, err)
			assert.True(t, s.Alive(second.AccessToken))
			requests := s.TokenRequests()[before:]
			require.Len(t, requests, 2)
			assert.Equal(t, "refresh_token", requests[1].GrantType)
		})
	}
	assertUsesTheRealTime(t, s)
}

func TestServerMadeInsideABubbleUsesTheTimeOutside(t *testing.T) {
	var s *moovtest.Server
	synctest.Test(t, func(t *testing.T) {
		s = moovtest.NewInMemory()
		grant(t, s)
	})
	defer s.Close()
	assertUsesTheRealTime(t, s)
}

func assertUsesTheRealTime(t *testing.T, s *moovtest.Server) {
	t.Helper()
	before := time.Now()
	r := grant(t, s)
	expiry := time.Unix(int64(r.json(t)["expires_in"].(float64)), 0)
	assert.WithinRange(t, expiry, before.Add(15*time.Minute-time.Second), time.Now().Add(15*time.Minute))
	assert.Equal(t, 200, ping(t, s, "Bearer "+r.member(t, "access_token")).StatusCode)
}

func TestClientThatGivesUpChangesNothing(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		refreshToken := grant(t, s).member(t, "refresh_token")
		s.SetLatency(time.Hour)

		ctx, cancel := context.WithCancel(t.Context())
		req := posting(t, s, "/oauth2/token", "grant_type", "refresh_token", "refresh_token", refreshToken).WithContext(ctx)
		failed := make(chan error, 1)
		go func() {
			_, err := s.Client().Do(req)
			failed <- err
		}()
		untilTokenRequests(s, 2)
		cancel()
		assert.ErrorIs(t, <-failed, context.Canceled)

		s.SetLatency(0)
		assert.Equal(t, 200, refresh(t, s, refreshToken).StatusCode)
	})
}

func TestCloseHangsUp(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start(moovtest.WithLatency(time.Hour))
		req := posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
		failed := make(chan error, 1)
		go func() {
			_, err := s.Client().Do(req)
			failed <- err
		}()
		untilTokenRequests(s, 1)
		s.Close()
		assert.Error(t, <-failed)

		_, err := s.Client().Do(posting(t, s, "/oauth2/token"))
		assert.Error(t, err)
		_, err = s.Transport().RoundTrip(posting(t, s, "/oauth2/token"))
		assert.ErrorContains(t, err, "closed")
		assert.Len(t, s.Requests(), 1, "recorded requests can still be read")
	})
}

func TestEnqueuedAnswersComeFirstInFirstOut(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Enqueue(
			moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"7"}}, Body: `{"error":"slow down"}`},
			moovtest.Answer{Header: http.Header{"content-type": {"text/html"}, "x-request-id": {"mine"}}, Body: "<p>"},
			moovtest.Answer{Header: http.Header{"Date": nil, "X-Request-Id": nil, "Content-Type": nil}, Body: "?"},
		)
		s.Enqueue(moovtest.Answer{Status: 204, Body: "not sent"}, moovtest.Answer{})

		assert.Equal(t, 401, ping(t, s, "").StatusCode, "GET /ping takes no answer")
		r := grant(t, s)
		assert.Equal(t, 429, r.StatusCode)
		assert.Equal(t, "7", r.Header.Get("Retry-After"))
		assert.Equal(t, "slow down", r.member(t, "error"))

		r = post(t, s, "/oauth2/revoke", "token", "x")
		assert.Equal(t, 200, r.StatusCode)
		assert.Equal(t, "text/html", r.Header.Get("Content-Type"))
		assert.Equal(t, "mine", r.Header.Get("X-Request-Id"))
		assert.Equal(t, "mine", s.RevokeRequests()[0].RequestID)
		assert.Equal(t, "<p>", r.body)

		r = grant(t, s)
		assert.Equal(t, "?", r.body)
		for _, name := range []string{"Date", "X-Request-Id", "Content-Type"} {
			assert.NotContains(t, r.Header, name)
		}
		assert.Empty(t, s.TokenRequests()[1].RequestID)

		r = grant(t, s)
		assert.Equal(t, 204, r.StatusCode)
		assert.Empty(t, r.body)

		r = grant(t, s)
		assert.Equal(t, 200, r.StatusCode)
		assert.Empty(t, r.body)
		assert.Zero(t, r.ContentLength)

		assert.Empty(t, s.AccessTokens())
		assert.Equal(t, 200, grant(t, s).StatusCode)
		assert.Len(t, s.AccessTokens(), 1, "the queue is empty")
	})
}

func TestEnqueuedHandlerAnswers(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		unused := http.Header{"X-Request-Id": {"mine"}} // a Handler writes its own header
		s.Enqueue(moovtest.Answer{Header: unused, Handler: func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusTeapot)
			io.Copy(w, r.Body)
		}})
		r := post(t, s, "/oauth2/token", "grant_type", "x")
		assert.Equal(t, 418, r.StatusCode)
		assert.Equal(t, "grant_type=x", r.body)
		assert.Equal(t, s.TokenRequests()[0].RequestID, r.Header.Get("X-Request-Id"))
	})
}

func TestHandlerThatHangsUpIsAnError(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Enqueue(moovtest.Answer{Handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }})
		_, err := s.Client().Do(posting(t, s, "/oauth2/token"))
		assert.Error(t, err)
	})
}

func TestHandlerThatHijacksTheConnection(t *testing.T) {
	s := moovtest.NewServer()
	t.Cleanup(s.Close)
	s.Enqueue(moovtest.Answer{Handler: func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if assert.NoError(t, err) {
			io.WriteString(conn, "nonsense\r\n\r\n")
			conn.Close()
		}
	}})
	_, err := s.Client().Do(posting(t, s, "/oauth2/token"))
	assert.ErrorContains(t, err, "nonsense")
}

func TestReplyThatIsCutShort(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Enqueue(moovtest.Answer{Header: http.Header{"Content-Length": {"100"}}, Body: `{"access_`})
		resp, err := s.Client().Do(posting(t, s, "/oauth2/token"))
		require.NoError(t, err)
		defer resp.Body.Close()
		assert.Equal(t, int64(100), resp.ContentLength)
		body, err := io.ReadAll(resp.Body)
		assert.Equal(t, `{"access_`, string(body))
		assert.ErrorIs(t, err, io.ErrUnexpectedEOF)
	})
}

func TestEnqueueAndRequestsCopy(t *testing.T) {
	s := inMemory(t)
	answer := moovtest.Answer{Header: http.Header{"X-Retry-In": {"7ms"}}}
	s.Enqueue(answer)
	answer.Header["X-Retry-In"][0] = "changed"
	assert.Equal(t, "7ms", grant(t, s).Header.Get("X-Retry-In"))

	seen := s.Requests()[0]
	seen.Header.Set("Content-Type", "changed")
	seen.Form.Set("grant_type", "changed")
	assert.Equal(t, formType, s.Requests()[0].Header.Get("Content-Type"))
	assert.Equal(t, "client_credentials", s.Requests()[0].Form.Get("grant_type"))
}

func TestRecordedRequest(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		req := request(t, s, http.MethodPost, "/oauth2/revoke", jsonType, `{"token":"x","extra":{"n":1},"none":null,"yes":true}`)
		req.Header.Set("X-Moov-Version", "whatever")
		req.Header.Set("Host", "not a header")
		req.SetBasicAuth("someone", "else")
		do(t, s, req)
		ping(t, s, "")

		require.Len(t, s.Requests(), 2)
		seen := s.RevokeRequests()[0]
		assert.Equal(t, http.MethodPost, seen.Method)
		assert.Equal(t, "/oauth2/revoke", seen.Path)
		assert.Equal(t, "whatever", seen.Header.Get("X-Moov-Version"))
		assert.NotContains(t, seen.Header, "Host")
		assert.Equal(t, "someone", seen.ClientID)
		assert.Empty(t, seen.GrantType)
		assert.Equal(t, url.Values{"token": {"x"}, "extra": {`{"n":1}`}, "yes": {"true"}}, seen.Form)
		assert.Nil(t, s.Requests()[1].Form)
		assert.WithinDuration(t, time.Now(), seen.Time, time.Minute)
	})
}

func TestBodyIsReadUpToOneMebibyte(t *testing.T) {
	s := inMemory(t)
	do(t, s, request(t, s, http.MethodPost, "/oauth2/token", formType, strings.Repeat("x", 1<<20+1)))
	assert.Len(t, s.Requests()[0].Body, 1<<20)
}

func TestHandlerMountedUnderAPrefixWithTLS(t *testing.T) {
	s := inMemory(t)
	outer := httptest.NewTLSServer(http.StripPrefix("/moov", s))
	defer outer.Close()
	resp, err := outer.Client().Get(outer.URL + "/moov/ping")
	require.NoError(t, err)
	resp.Body.Close()
	assert.Equal(t, 401, resp.StatusCode)
	assert.Equal(t, "/ping", s.Requests()[0].Path)
}

func TestServerOnAPortIsReachedInMemoryToo(t *testing.T) {
	s := moovtest.NewServer()
	t.Cleanup(s.Close)
	resp, err := s.Transport().RoundTrip(posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read"))
	require.NoError(t, err)
	resp.Body.Close()
	assert.Len(t, s.AccessTokens(), 1)
}

// body counts the calls to Close.
type body struct {
	io.Reader
	closed int
}

func (b *body) Close() error {
	b.closed++
	return nil
}

func TestInMemoryRequestIsClosedAndNotModified(t *testing.T) {
	s := inMemory(t)
	canceled, cancel := context.WithCancelCause(t.Context())
	gone := errors.New("gone")
	cancel(gone)
	broken := errors.New("broken")
	for name, c := range map[string]struct {
		ctx   context.Context
		url   *url.URL
		body  io.Reader
		fails string
	}{
		"answered":       {t.Context(), &url.URL{Host: "x", Path: "/ping"}, strings.NewReader("x"), ""},
		"context ended":  {canceled, &url.URL{Host: "x", Path: "/ping"}, strings.NewReader("x"), "gone"},
		"no URL":         {t.Context(), nil, strings.NewReader("x"), "no URL with a host"},
		"no host":        {t.Context(), &url.URL{Path: "/ping"}, strings.NewReader("x"), "no URL with a host"},
		"impossible URL": {t.Context(), &url.URL{Host: "x", Scheme: "x", Opaque: "%zz"}, strings.NewReader("x"), "parse"},
		"broken body":    {t.Context(), &url.URL{Host: "x", Path: "/ping"}, iotest.ErrReader(broken), "broken"},
	} {
		t.Run(name, func(t *testing.T) {
			b := &body{Reader: c.body}
			req := (&http.Request{URL: c.url, Body: b}).WithContext(c.ctx)
			resp, err := s.Transport().RoundTrip(req)
			if c.fails != "" {
				assert.ErrorContains(t, err, c.fails)
			} else if assert.NoError(t, err) {
				assert.Same(t, req, resp.Request)
				assert.Equal(t, "HTTP/1.1", resp.Proto)
				assert.Equal(t, "401 Unauthorized", resp.Status)
				whole, err := io.ReadAll(resp.Body)
				assert.NoError(t, err)
				assert.EqualValues(t, len(whole), resp.ContentLength)
			}
			assert.Equal(t, 1, b.closed)
			assert.Equal(t, (&http.Request{URL: c.url, Body: b}).WithContext(c.ctx), req)
		})
	}
}

func TestInMemoryHandlerGetsAServerRequest(t *testing.T) {
	s := inMemory(t)
	send := func(check func(*http.Request), change func(*http.Request)) {
		s.Enqueue(moovtest.Answer{Handler: func(_ http.ResponseWriter, r *http.Request) { check(r) }})
		req := posting(t, s, "/oauth2/token?x=%2F", "token", "x")
		change(req)
		resp, err := s.Transport().RoundTrip(req)
		require.NoError(t, err)
		assert.NoError(t, resp.Body.Close())
	}
	send(func(r *http.Request) {
		assert.Equal(t, "/oauth2/token?x=%2F", r.RequestURI)
		assert.Equal(t, &url.URL{Path: "/oauth2/token", RawQuery: "x=%2F"}, r.URL)
		assert.Equal(t, "moov.test", r.Host)
		assert.NotEmpty(t, r.RemoteAddr)
		assert.Equal(t, "HTTP/1.1", r.Proto)
		assert.EqualValues(t, len("token=x"), r.ContentLength)
	}, func(*http.Request) {})
	send(func(r *http.Request) {
		assert.Equal(t, "other.test", r.Host)
		assert.EqualValues(t, -1, r.ContentLength)
	}, func(r *http.Request) { r.Host, r.ContentLength = "other.test", 0 })
	send(func(r *http.Request) {
		assert.Zero(t, r.ContentLength)
		assert.NotNil(t, r.Body)
		assert.NotNil(t, r.Header)
	}, func(r *http.Request) { r.Body, r.Header, r.ContentLength = nil, nil, 0 })
}

func TestInMemoryStalledBodyEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t)
		stalled, _ := io.Pipe()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/oauth2/token", stalled)
		require.NoError(t, err)
		_, err = s.Client().Do(req)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		synctest.Wait() // until the handler has returned; otherwise the bubble would panic
	})
}

func TestInMemoryClientTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t, moovtest.WithLatency(time.Hour))
		client := *s.Client()
		client.Timeout = 3 * time.Second
		began := time.Now()
		_, err := client.Do(posting(t, s, "/oauth2/token"))
		var timeout interface{ Timeout() bool }
		require.ErrorAs(t, err, &timeout)
		assert.True(t, timeout.Timeout())
		assert.Equal(t, 3*time.Second, time.Since(began))
	})
}

func TestInMemoryHandlersContextEndsWithTheClients(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t)
		told := make(chan error, 1)
		s.Enqueue(moovtest.Answer{Handler: func(_ http.ResponseWriter, r *http.Request) {
			<-r.Context().Done()
			told <- r.Context().Err()
		}})
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		_, err := s.Client().Do(posting(t, s, "/oauth2/token").WithContext(ctx))
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Error(t, <-told)
	})
}

func TestInMemoryHandlerThatPanicsOrExitsIsAnError(t *testing.T) {
	s := inMemory(t)
	s.Enqueue(
		moovtest.Answer{Handler: func(http.ResponseWriter, *http.Request) { panic("oh no") }},
		moovtest.Answer{Handler: func(http.ResponseWriter, *http.Request) { runtime.Goexit() }},
	)
	_, err := s.Client().Do(posting(t, s, "/oauth2/token"))
	assert.ErrorContains(t, err, "oh no")
	_, err = s.Client().Do(posting(t, s, "/oauth2/token"))
	assert.ErrorContains(t, err, "without an answer")
}

func TestInMemoryResponseCanBeWrittenAndRead(t *testing.T) {
	s := inMemory(t)
	resp, err := s.Transport().RoundTrip(posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read"))
	require.NoError(t, err)
	var wire bytes.Buffer
	require.NoError(t, resp.Write(&wire))
	again, err := http.ReadResponse(bufio.NewReader(&wire), resp.Request)
	require.NoError(t, err)
	defer again.Body.Close()
	assert.Equal(t, resp.Status, again.Status)
	assert.Equal(t, resp.ContentLength, again.ContentLength)
}
