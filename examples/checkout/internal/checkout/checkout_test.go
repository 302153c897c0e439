package checkout

import (
	"encoding/json"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const origin = "http://localhost:8080"

// A visitor sends requests to an app as a browser does, and keeps its cookie.
type visitor struct {
	t      *testing.T
	app    *App
	cookie *http.Cookie
}

func newApp(t *testing.T, api *moovtest.Server) *App {
	t.Helper()
	app, err := New(Config{
		Credentials: moovauth.Credentials{ClientID: api.ClientID, ClientSecret: api.ClientSecret},
		API:         api.URL, Embedded: true, Origins: []string{origin},
		Source: []moovauth.Option{moovauth.WithHTTPClient(api.Client())},
	})
	require.NoError(t, err)
	return app
}

func (v *visitor) send(method, path string, form url.Values, header ...string) *http.Response {
	r := httptest.NewRequest(method, origin+path, strings.NewReader(form.Encode()))
	r.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	if v.cookie != nil {
		r.AddCookie(v.cookie)
	}
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	if host := r.Header.Get("Host"); host != "" {
		r.Host = host
	}
	w := httptest.NewRecorder()
	v.app.ServeHTTP(w, r)
	resp := w.Result()
	for _, c := range resp.Cookies() {
		v.cookie = c
		if c.MaxAge < 0 {
			v.cookie = nil
		}
	}
	return resp
}

func (v *visitor) signIn(id string) {
	v.t.Helper()
	require.Equal(v.t, http.StatusOK, v.send("POST", "/sign-in", url.Values{"user": {id}}).StatusCode)
}

func (v *visitor) token() (token, scope string) {
	v.t.Helper()
	resp := v.send("POST", "/moov-token", nil)
	require.Equal(v.t, http.StatusOK, resp.StatusCode)
	var body struct {
		AccessToken string `json:"access_token"`
		Scope       string `json:"scope"`
	}
	require.NoError(v.t, json.NewDecoder(resp.Body).Decode(&body))
	return body.AccessToken, body.Scope
}

func TestTokenIsForTheUsersAccountOnly(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	app := newApp(t, api)
	for _, user := range users {
		v := &visitor{t: t, app: app}
		v.signIn(user.ID)
		token, scope := v.token()
		assert.True(t, api.Alive(token))
		assert.Equal(t, "/accounts/"+user.Account+"/cards.read /accounts/"+user.Account+"/cards.write", scope)
	}
}

func TestTokenNeedsASession(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	assert.Equal(t, http.StatusUnauthorized, v.send("POST", "/moov-token", nil).StatusCode)
	v.cookie = &http.Cookie{Name: cookieName, Value: "guessed"}
	assert.Equal(t, http.StatusUnauthorized, v.send("POST", "/moov-token", nil).StatusCode)
	assert.Equal(t, http.StatusForbidden, v.send("POST", "/sign-in", url.Values{"user": {"mallory"}}).StatusCode)
	assert.Empty(t, api.Requests())
}

func TestSignOutRevokesTheSessionsTokens(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	app := newApp(t, api)
	ada, grace := &visitor{t: t, app: app}, &visitor{t: t, app: app}
	ada.signIn("ada")
	grace.signIn("grace")
	first, _ := ada.token()
	second, _ := ada.token()
	hers, _ := grace.token()
	session := ada.cookie
	assert.Equal(t, http.StatusNoContent, ada.send("POST", "/sign-out", nil).StatusCode)
	assert.Nil(t, ada.cookie)
	assert.False(t, api.Alive(first))
	assert.False(t, api.Alive(second))
	assert.True(t, api.Alive(hers))

	ada.cookie = session // a copy of the cookie is useless
	requests := len(api.TokenRequests())
	assert.Equal(t, http.StatusUnauthorized, ada.send("POST", "/moov-token", nil).StatusCode)
	assert.Len(t, api.TokenRequests(), requests)
	assert.Equal(t, http.StatusNoContent, ada.send("POST", "/sign-out", nil).StatusCode, "a second sign-out is no error")
}

func TestSignInEndsThePreviousSession(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	v.signIn("ada")
	token, _ := v.token()
	before := v.cookie.Value
	v.signIn("grace")
	assert.NotEqual(t, before, v.cookie.Value)
	assert.False(t, api.Alive(token))
}

// The user signs out during the token request.
func TestTokenOfAnEndedSessionIsRevoked(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory()
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		early := *v
		api.SetLatency(time.Second)
		done := make(chan *http.Response)
		go func() { done <- early.send("POST", "/moov-token", nil) }()
		synctest.Wait()
		v.send("POST", "/sign-out", nil)
		resp := <-done
		assert.Equal(t, http.StatusUnauthorized, resp.StatusCode)
		assert.Len(t, api.TokenRequests(), 1)
		assert.Empty(t, api.AccessTokens())
	})
}

func TestSessionLastsAnHour(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory(moovtest.WithLifetime(2 * time.Hour))
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		token, _ := v.token()
		time.Sleep(time.Hour - time.Second)
		assert.True(t, api.Alive(token))
		time.Sleep(2 * time.Second)
		assert.False(t, api.Alive(token))
		assert.Equal(t, http.StatusUnauthorized, v.send("POST", "/moov-token", nil).StatusCode)
	})
}

func TestExpiredTokensAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory(moovtest.WithLifetime(20 * time.Second))
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		session := v.app.sessions.open[v.cookie.Value]
		for range 50 {
			v.token()
			time.Sleep(16 * time.Second)
		}
		assert.LessOrEqual(t, len(session.tokens), 2)
		v.send("POST", "/sign-out", nil)
		assert.Empty(t, api.AccessTokens())
		assert.LessOrEqual(t, len(api.RevokeRequests()), 2)
	})
}

func TestSignOutWhoseRevocationFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory()
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		v.token()
		cookie := v.cookie
		api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_request"}`})
		assert.Equal(t, http.StatusBadGateway, v.send("POST", "/sign-out", nil).StatusCode)
		v.cookie = cookie
		assert.Equal(t, http.StatusUnauthorized, v.send("POST", "/moov-token", nil).StatusCode, "the user is signed out anyway")

		v.signIn("ada")
		v.token()
		api.SetLatency(time.Minute) // sign-out ends although the server hangs
		begin := time.Now()
		assert.Equal(t, http.StatusBadGateway, v.send("POST", "/sign-out", nil).StatusCode)
		assert.LessOrEqual(t, time.Since(begin), 5*time.Second)
	})
}

func TestCloseEndsAllSessions(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	app := newApp(t, api)
	v := &visitor{t: t, app: app}
	for range 3 {
		v = &visitor{t: t, app: app}
		v.signIn("ada")
		v.token()
	}
	revoked, err := app.Close(t.Context())
	require.NoError(t, err)
	assert.Equal(t, 3, revoked)
	assert.Empty(t, api.AccessTokens())
	assert.Equal(t, http.StatusUnauthorized, v.send("POST", "/moov-token", nil).StatusCode)
	assert.Equal(t, http.StatusServiceUnavailable, v.send("POST", "/sign-in", url.Values{"user": {"ada"}}).StatusCode)
}

func TestOtherSitesCanDoNothing(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	v.signIn("ada")
	token, _ := v.token()
	for _, path := range []string{"/moov-token", "/sign-in", "/sign-out", "/crowd"} {
		for _, header := range [][]string{
			{"Sec-Fetch-Site", "cross-site", "Origin", "https://evil.example"},
			{"Sec-Fetch-Site", "same-site", "Origin", "http://localhost:3000"}, // another port
			{"Sec-Fetch-Site", "", "Origin", "https://evil.example"},           // an old browser
		} {
			assert.Equal(t, http.StatusForbidden, v.send("POST", path, url.Values{"user": {"grace"}}, header...).StatusCode, path)
		}
		assert.NotEqual(t, http.StatusOK, v.send("GET", path, nil).StatusCode, path)
	}
	assert.True(t, api.Alive(token))
	assert.Len(t, api.TokenRequests(), 1)
}

func TestOtherNamesOfThisServerAreRefused(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	for _, host := range []string{"evil.example", "evil.example:8080", "localhost", "localhost:80801"} {
		assert.Equal(t, http.StatusMisdirectedRequest, v.send("GET", "/", nil, "Host", host).StatusCode, host)
	}
}

func TestHeadersAndCookie(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	for _, path := range []string{"/", "/app.js", "/moov-token.js", "/style.css", "/icon.svg", "/session", "/none"} {
		resp := v.send("GET", path, nil)
		policy := resp.Header.Get("Content-Security-Policy")
		assert.Contains(t, policy, "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' "+api.URL+";", path)
		assert.NotContains(t, policy, "unsafe")
		assert.NotContains(t, policy, "*")
		assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"), path)
	}
	v.signIn("ada")
	assert.True(t, v.cookie.HttpOnly)
	assert.Equal(t, http.SameSiteStrictMode, v.cookie.SameSite)
	assert.Equal(t, "/", v.cookie.Path)
	assert.Empty(t, v.cookie.Domain)
	assert.GreaterOrEqual(t, len(v.cookie.Value), 26) // 128 bits
}

// unrevoked returns how many tokens of ended sessions are not revoked yet.
func (v *visitor) unrevoked() int {
	v.app.sessions.mu.Lock()
	defer v.app.sessions.mu.Unlock()
	return len(v.app.sessions.unrevoked)
}

// Moov is down at sign-out. The server revokes the token once Moov is up again.
func TestRevocationThatFailsIsRetried(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory(moovtest.WithLifetime(15 * time.Minute))
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		token, _ := v.token()
		for range 3 {
			api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_request"}`})
		}
		assert.Equal(t, http.StatusBadGateway, v.send("POST", "/sign-out", nil).StatusCode)
		assert.True(t, api.Alive(token))
		time.Sleep(time.Minute)
		assert.False(t, api.Alive(token))
		requests := len(api.RevokeRequests())
		assert.Equal(t, 4, requests)
		time.Sleep(time.Hour)
		assert.Len(t, api.RevokeRequests(), requests, "the server does not revoke the token again")
		assert.Zero(t, v.unrevoked())
	})
}

func TestRevocationThatNeverSucceedsEndsWithTheToken(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory(moovtest.WithLifetime(5 * time.Minute))
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		v.token()
		for range 100 {
			api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_request"}`})
		}
		v.send("POST", "/sign-out", nil)
		time.Sleep(time.Hour)
		assert.Zero(t, v.unrevoked())
		assert.Less(t, len(api.RevokeRequests()), 16)
	})
}

func TestCloseRevokesWhatASignOutCouldNot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory()
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		v.token()
		api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_request"}`})
		v.send("POST", "/sign-out", nil)
		revoked, err := v.app.Close(t.Context())
		require.NoError(t, err)
		assert.Equal(t, 1, revoked)
		assert.Empty(t, api.AccessTokens())
	})
}

// Ada has the page open in one tab, and Grace signs in from another.
func TestPageOfAnotherUserIsRefused(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	v.signIn("ada")
	assert.Equal(t, http.StatusOK, v.send("POST", "/moov-token", nil, "X-Page-User", "ada").StatusCode)
	v.signIn("grace")
	requests := len(api.TokenRequests())
	assert.Equal(t, http.StatusConflict, v.send("POST", "/moov-token", nil, "X-Page-User", "ada").StatusCode)
	assert.Len(t, api.TokenRequests(), requests)
	hers, _ := v.token()
	assert.Equal(t, http.StatusConflict, v.send("POST", "/sign-out", nil, "X-Page-User", "ada").StatusCode, "Ada's page cannot sign Grace out")
	assert.True(t, api.Alive(hers))
	assert.Equal(t, http.StatusOK, v.send("POST", "/moov-token", nil, "X-Page-User", "grace").StatusCode)
	assert.Equal(t, http.StatusNoContent, v.send("POST", "/sign-out", nil, "X-Page-User", "grace").StatusCode)
	assert.Equal(t, http.StatusUnauthorized, v.send("POST", "/moov-token", nil, "X-Page-User", "ada").StatusCode)
}

func TestCrowdWaitsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory(moovtest.WithLifetime(time.Hour))
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		seen := func() (s stats) {
			require.NoError(t, json.NewDecoder(v.send("GET", "/stats", nil).Body).Decode(&s))
			return s
		}
		require.Zero(t, seen().InQueue)
		for round := range uint64(2) {
			assert.Equal(t, http.StatusAccepted, v.send("POST", "/crowd", nil).StatusCode)
			assert.Equal(t, http.StatusAccepted, v.send("POST", "/crowd", nil).StatusCode, "the crowd is already waiting")
			time.Sleep(time.Second)
			s := seen()
			assert.Greater(t, s.InQueue, crowdSize-20)
			assert.Equal(t, crowdSize, s.Crowd+int(s.Served-round*crowdSize))
			assert.InDelta(t, 1, s.LongestWait, 0.1)
			assert.InDelta(t, 9.7, s.Rate, 0.1)
			time.Sleep(time.Minute)
			s = seen()
			assert.Zero(t, s.InQueue)
			assert.Zero(t, s.Crowd)
			assert.Equal(t, (round+1)*crowdSize, s.Served)
			assert.InDelta(t, crowdSize/3300.0, s.Needed, 0.01, "tokens of an hour are refreshed after 55 minutes")
			assert.Zero(t, s.Refused+s.TimedOut)
		}
	})
}

// A person does not wait behind the crowd for a token, or to sign out.
func TestPeopleGoBeforeTheCrowd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		api := moovtest.NewInMemory(moovtest.WithLifetime(time.Hour))
		defer api.Close()
		v := &visitor{t: t, app: newApp(t, api)}
		v.signIn("ada")
		require.Equal(t, http.StatusAccepted, v.send("POST", "/crowd", nil).StatusCode)
		synctest.Wait()
		require.Greater(t, v.app.tokens.Stats().InLine, crowdSize-10)

		requests := len(api.Requests())
		token, _ := v.token()
		assert.Len(t, api.Requests(), requests+1, "the page's request is the next one")
		assert.Contains(t, api.Requests()[requests].Form.Get("scope"), "ada")
		assert.Equal(t, http.StatusNoContent, v.send("POST", "/sign-out", nil).StatusCode)
		assert.Len(t, api.Requests(), requests+2, "the revoke request is the next one")
		assert.False(t, api.Alive(token))
		assert.Greater(t, v.app.tokens.Stats().InLine, crowdSize-10)
		time.Sleep(time.Minute)
		assert.Zero(t, v.app.tokens.Stats().InLine)
	})
}

func TestCrowdNeedsTheEmbeddedServer(t *testing.T) {
	api := moovtest.NewServer()
	defer api.Close()
	app, err := New(Config{
		Credentials: moovauth.Credentials{ClientID: api.ClientID, ClientSecret: api.ClientSecret},
		API:         api.URL, Origins: []string{origin},
	})
	require.NoError(t, err)
	v := &visitor{t: t, app: app}
	assert.NotEqual(t, http.StatusAccepted, v.send("POST", "/crowd", nil).StatusCode)
	assert.Empty(t, api.Requests())
}

// The Content-Security-Policy blocks inline code and other hosts.
func TestPageHasNothingInlineAndNoOtherHost(t *testing.T) {
	inline := regexp.MustCompile(`(?i)\son\w+\s*=|<style|style\s*=|javascript:|<script(?:[^>]*)>[^<]|innerHTML|\beval\(`)
	host := regexp.MustCompile(`(?:https?:)?//[a-z0-9]`)
	err := fs.WalkDir(page, ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := fs.ReadFile(page, path)
		assert.NotRegexp(t, inline, string(text), path)
		assert.NotRegexp(t, host, strings.ReplaceAll(string(text), "http://www.w3.org/2000/svg", ""), path)
		return err
	})
	require.NoError(t, err)
}

func TestCards(t *testing.T) {
	api := NewAPI(time.Minute)
	defer api.Close()
	v := &visitor{t: t, app: newApp(t, api)}
	v.signIn("ada")
	token, _ := v.token()
	send := func(method, path, body string) (int, string) {
		r, err := http.NewRequest(method, api.URL+path, strings.NewReader(body))
		require.NoError(t, err)
		r.Header.Set("Authorization", "Bearer "+token)
		resp, err := api.Client().Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		var text strings.Builder
		require.NoError(t, resp.Write(&text))
		return resp.StatusCode, text.String()
	}
	status, _ := send("POST", "/accounts/ada-5c21/cards", `{"cardNumber":"4111 1111 1111 1111"}`)
	assert.Equal(t, http.StatusCreated, status)
	status, body := send("GET", "/accounts/ada-5c21/cards", "")
	assert.Equal(t, http.StatusOK, status)
	assert.Contains(t, body, `"lastFourCardNumber":"1111"`)
	assert.NotContains(t, body, "4111")
	for _, bad := range []string{``, `{}`, `{"cardNumber":"4111 1111 1111 1112"}`, `{"cardNumber":"4111"}`, `{"cardNumber":"abcdabcdabcdabcd"}`} {
		status, _ := send("POST", "/accounts/ada-5c21/cards", bad)
		assert.Equal(t, http.StatusUnprocessableEntity, status, bad)
	}
	status, _ = send("GET", "/accounts/grace-8e07/cards", "")
	assert.Equal(t, http.StatusForbidden, status)
}

// The README quotes this code without changes.
func TestREADMEQuotesThisCode(t *testing.T) {
	readme, err := os.ReadFile("../../../../README.md")
	require.NoError(t, err)
	if !strings.Contains(string(readme), "examples/checkout/checkout.png") {
		t.Skip("the README does not show this example")
	}
	source, err := os.ReadFile("checkout.go")
	require.NoError(t, err)
	_, code, ok := strings.Cut(string(source), "// README, server: from here\n")
	require.True(t, ok)
	code, _, ok = strings.Cut(code, "// README, server: to here")
	require.True(t, ok)
	spaces := regexp.MustCompile(`(?m)^\s+|\s+$`)
	assert.Contains(t, spaces.ReplaceAllString(string(readme), ""), spaces.ReplaceAllString(code, ""))
	assert.LessOrEqual(t, strings.Count(strings.TrimSpace(code), "\n")+1, 12)
}
