package moovauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

func TestNewTokenSourceNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
	scopes := WithScopes(pingScope)
	secret := testCredentials.ClientSecret
	for _, c := range []struct {
		name  string
		creds Credentials
		opts  []Option
		want  []string // parts of the error
	}{
		{"no client ID", Credentials{ClientSecret: "s"}, []Option{scopes}, []string{"Credentials.ClientID", "empty", "public key"}},
		{"no secret", Credentials{ClientID: "id"}, []Option{scopes}, []string{"Credentials.ClientSecret", "empty", "secret key"}},
		{"newline after the secret", Credentials{"id", "s3cr3t-key\n"}, []Option{scopes}, []string{"Credentials.ClientSecret", "white space", "trim"}},
		{"space in the ID", Credentials{"i d", "s"}, []Option{scopes}, []string{"Credentials.ClientID", "white space"}},
		{"no-break space", Credentials{"id", "s3cr\u00a03t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "white space"}},
		{"control character", Credentials{"i\x00d", "s"}, []Option{scopes}, []string{"Credentials.ClientID", "control character"}},
		{"byte order mark", Credentials{"\ufeffid", "s"}, []Option{scopes}, []string{"Credentials.ClientID", "trim"}},
		{"the mask", Credentials{"id", "***"}, []Option{scopes}, []string{"Credentials.ClientSecret", "mask", "secret key"}},
		{"the mask of another program", Credentials{"id", "********"}, []Option{scopes}, []string{"Credentials.ClientSecret", "mask"}},

		{"no scopes", testCredentials, nil, []string{"no scopes", "WithScopes"}},
		{"an empty list of scopes", testCredentials, []Option{WithScopes()}, []string{"WithScopes"}},
		{"no scopes, but an access token", testCredentials, []Option{WithToken(&oauth2.Token{AccessToken: "x"})}, []string{"WithScopes"}},
		{"an empty scope", testCredentials, []Option{WithScopes(pingScope, "")}, []string{"WithScopes", "leading slash"}},
		{"two scopes in one", testCredentials, []Option{WithScopes("/ping.read /fed.read")}, []string{"WithScopes", `"/ping.read /fed.read"`, "argument of its own"}},
		{"a newline after a scope", testCredentials, []Option{WithScopes("/ping.read\n")}, []string{"WithScopes", "argument of its own"}},
		{"a comma", testCredentials, []Option{WithScopes("/a.read,/b.read")}, []string{"WithScopes", "argument of its own"}},
		{"a placeholder", testCredentials, []Option{WithScopes("/accounts/{accountID}/cards.read")}, []string{"WithScopes", "placeholder", "account's ID"}},
		{"no slash", testCredentials, []Option{WithScopes("ping.read")}, []string{"WithScopes", `"ping.read"`, "leading slash"}},
		{"a long scope", testCredentials, []Option{WithScopes(strings.Repeat("x", 1<<20))}, []string{"WithScopes", "leading slash"}},
		{"the secret as a scope", testCredentials, []Option{WithScopes(secret)}, []string{"WithScopes", "***"}},

		{"an origin with a path", testCredentials, []Option{scopes, WithOrigin("https://example.com/")}, []string{"WithOrigin", `"https://example.com"`}},
		{"an origin without a scheme", testCredentials, []Option{scopes, WithOrigin("example.com")}, []string{"WithOrigin", "scheme"}},
		{"an origin with a query", testCredentials, []Option{scopes, WithOrigin("https://example.com?x")}, []string{"WithOrigin"}},
		{"an origin with a password", testCredentials, []Option{scopes, WithOrigin("https://me:hidden@example.com")}, []string{"WithOrigin"}},
		{"an origin of another scheme", testCredentials, []Option{scopes, WithOrigin("ftp://example.com")}, []string{"WithOrigin"}},
		{"an origin without a host", testCredentials, []Option{scopes, WithOrigin("https://:443")}, []string{"WithOrigin"}},
		{"an empty origin", testCredentials, []Option{scopes, WithOrigin("")}, []string{"WithOrigin"}},
		{"an unreadable origin", testCredentials, []Option{scopes, WithOrigin("https://%zz")}, []string{"WithOrigin"}},

		{"a version without the v", testCredentials, []Option{scopes, WithVersion("2024.01.00")}, []string{"WithVersion", "vYYYY.QQ.BB", `"2024.01.00"`}},
		{"a version with a newline", testCredentials, []Option{scopes, WithVersion("v2024.01.00\n")}, []string{"WithVersion"}},
		{"a version in other digits", testCredentials, []Option{scopes, WithVersion("v２024.01.00")}, []string{"WithVersion"}},
		{"an empty version", testCredentials, []Option{scopes, WithVersion("")}, []string{"WithVersion"}},
		{"the secret as a version", testCredentials, []Option{scopes, WithVersion(secret)}, []string{"WithVersion", "***"}},

		{"plain http", testCredentials, []Option{scopes, WithBaseURL("http://api.moov.io")}, []string{"WithBaseURL", "http://api.moov.io is not https"}},
		{"a host that only starts like loopback", testCredentials, []Option{scopes, WithBaseURL("http://localhost.example.com")}, []string{"WithBaseURL", "https"}},
		{"another scheme on loopback", testCredentials, []Option{scopes, WithBaseURL("ws://localhost")}, []string{"WithBaseURL", "https"}},
		{"no scheme", testCredentials, []Option{scopes, WithBaseURL("api.moov.io")}, []string{"WithBaseURL", "absolute", `"https://api.moov.io"`}},
		{"only a port", testCredentials, []Option{scopes, WithBaseURL("https://:443")}, []string{"WithBaseURL", "absolute"}},
		{"a base URL with a query", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io?x=1")}, []string{"WithBaseURL", "query"}},
		{"a base URL with an empty query", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io?")}, []string{"WithBaseURL", "query"}},
		{"a base URL with a fragment", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io#x")}, []string{"WithBaseURL", "fragment"}},
		{"a base URL with a password", testCredentials, []Option{scopes, WithBaseURL("https://me:hidden@api.moov.io")}, []string{"WithBaseURL", "credentials"}},
		{"the token endpoint", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io/oauth2/token")}, []string{"WithBaseURL", "leave /oauth2/token and /oauth2/revoke out"}},
		{"the revoke endpoint below a path", testCredentials, []Option{scopes, WithBaseURL("https://gateway.example.com/moov/oauth2/revoke/")}, []string{"WithBaseURL", "leave"}},

		{"a timeout without a unit", testCredentials, []Option{scopes, WithTimeout(5)}, []string{"WithTimeout", "5*time.Second", "5ns"}},
		{"a negative timeout", testCredentials, []Option{scopes, WithTimeout(-time.Second)}, []string{"WithTimeout", "-1s"}},
		{"a negative early refresh", testCredentials, []Option{scopes, WithEarlyRefresh(-1)}, []string{"WithEarlyRefresh", "-1ns"}},
		{"a nil client", testCredentials, []Option{scopes, WithHTTPClient(nil)}, []string{"WithHTTPClient", "nil"}},
		{"a nil logger", testCredentials, []Option{scopes, WithLogger(nil)}, []string{"WithLogger", "nil"}},
		{"a nil limiter", testCredentials, []Option{scopes, WithLimiter(nil)}, []string{"WithLimiter", "nil"}},
		{"a nil cache", testCredentials, []Option{scopes, WithCache(nil)}, []string{"WithCache", "nil"}},
		{"an unknown auth style", testCredentials, []Option{scopes, WithAuthStyle(7)}, []string{"WithAuthStyle", "7"}},
		{"an unknown hint", testCredentials, []Option{scopes, WithTokenTypeHint("id_token")}, []string{"WithTokenTypeHint", "id_token"}},
		{"a nil option", testCredentials, []Option{scopes, nil}, []string{"option 2 is nil"}},

		{"a nil token", testCredentials, []Option{scopes, WithToken(nil)}, []string{"WithToken", "neither"}},
		{"an empty token", testCredentials, []Option{scopes, WithToken(&oauth2.Token{})}, []string{"WithToken", "neither"}},
		{"a token with a newline", testCredentials, []Option{scopes, WithToken(&oauth2.Token{AccessToken: "a\nb"})}, []string{"WithToken", "ASCII"}},
		{"a MAC token", testCredentials, []Option{scopes, WithToken(&oauth2.Token{AccessToken: "a", TokenType: "mac"})}, []string{"WithToken", "is not Bearer"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s, err := NewTokenSource(c.creds, c.opts...)
			require.Error(t, err)
			assert.Nil(t, s)
			assert.True(t, strings.HasPrefix(err.Error(), "moovauth: "), err.Error())
			for _, want := range c.want {
				assert.Contains(t, err.Error(), want)
			}
			assert.NotContains(t, err.Error(), "\n")
			assert.NotContains(t, err.Error(), "hidden")
			assert.NotContains(t, err.Error(), "s3cr3t")
			assert.LessOrEqual(t, len(err.Error()), maxErrorText)
		})
	}
}

func TestNewTokenSourceAcceptsValidArguments(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{
		"only scopes":              {WithScopes(pingScope, "/accounts/6f9c2d1e-8f3b-4a39-9a5e-1c2d3e4f5a6b/transfers.write")},
		"only a refresh token":     {WithToken(&oauth2.Token{RefreshToken: "r"})},
		"a gateway at /oauth2":     {WithScopes(pingScope), WithBaseURL("https://gateway.example.com/oauth2")},
		"an older version":         {WithScopes(pingScope), WithVersion("v2024.00.00")},
		"dev":                      {WithScopes(pingScope), WithVersion("dev")},
		"latest":                   {WithScopes(pingScope), WithVersion("latest")},
		"localhost":                {WithScopes(pingScope), WithBaseURL("http://localhost:8080")},
		"the loopback of IPv6":     {WithScopes(pingScope), WithBaseURL("http://[::1]:8080/")},
		"another loopback":         {WithScopes(pingScope), WithBaseURL("http://127.1.2.3")},
		"an origin with a port":    {WithScopes(pingScope), WithOrigin("http://localhost:3000")},
		"the default auth style":   {WithScopes(pingScope), WithAuthStyle(oauth2.AuthStyleAutoDetect)},
		"no early refresh":         {WithScopes(pingScope), WithEarlyRefresh(0)},
		"a millisecond":            {WithScopes(pingScope), WithTimeout(time.Millisecond)},
		"a hint, which is ignored": {WithScopes(pingScope), WithTokenTypeHint(RefreshToken)},
		"an opaque token":          {WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "a", TokenType: "opaque"})},
	} {
		_, err := NewTokenSource(testCredentials, opts...)
		assert.NoError(t, err, name)
	}
	for _, secret := range []string{"pässwörd", "日本", `"quoted"`, "a***", "x:y"} {
		_, err := NewTokenSource(Credentials{"id", secret}, WithScopes(pingScope))
		assert.NoError(t, err, secret)
	}
}

// wire makes a token request with opts and returns the request as it was sent.
func wire(t *testing.T, opts ...Option) *http.Request {
	t.Helper()
	base := new(sink)
	s, err := NewTokenSource(testCredentials, append([]Option{WithScopes(pingScope), WithHTTPClient(&http.Client{Transport: base})}, opts...)...)
	require.NoError(t, err)
	_, err = noJitter(s).Token()
	require.Error(t, err)
	body, err := base.last.GetBody()
	require.NoError(t, err)
	base.last.Body = body
	require.NoError(t, base.last.ParseForm())
	return base.last
}

func TestDefaults(t *testing.T) {
	t.Parallel()
	r := wire(t)
	assert.Equal(t, "https://api.moov.io/oauth2/token", r.URL.String())
	assert.Equal(t, "v2024.01.00", r.Header.Get("X-Moov-Version"))
	assert.NotContains(t, r.Header, "Origin")
	user, password, ok := r.BasicAuth()
	assert.Equal(t, []any{"public-key", "s3cr3t-key", true}, []any{user, password, ok})

	s, err := NewTokenSource(testCredentials, WithScopes(pingScope))
	require.NoError(t, err)
	assert.Same(t, http.DefaultClient, s.core.config.client)
}

func TestBaseURLs(t *testing.T) {
	t.Parallel()
	for in, want := range map[string]string{
		"https://h/v1//":         "https://h/v1/oauth2/token",
		"https://h/a%2Fb/":       "https://h/a%2Fb/oauth2/token",
		"http://LOCALHOST:8080/": "http://LOCALHOST:8080/oauth2/token",
	} {
		assert.Equal(t, want, wire(t, WithBaseURL(in)).URL.String())
	}
}

func TestLastOfTwoOptionsCounts(t *testing.T) {
	t.Parallel()
	scopes := []string{"/a.read", "/b.read"}
	opt := WithScopes(scopes...)
	r := wire(t, WithScopes("/c.read"), WithOrigin("https://a.example"), opt, WithOrigin("https://b.example"))
	assert.Equal(t, "/a.read /b.read", r.PostForm.Get("scope"))
	assert.Equal(t, "https://b.example", r.Header.Get("Origin"))

	server := onLoopback(t)
	s := sourceOf(t, server, opt)
	scopes[0] = "/changed"
	token(t, s)
	assert.Equal(t, "/a.read /b.read", server.TokenRequests()[0].Form.Get("scope"), "a source has its own copy")
}

// WithOrigin accepts only origins. WithBaseURL accepts only URLs with https or
// on a loopback address.
func FuzzURLs(f *testing.F) {
	for _, u := range []string{"https://example.com", "http://localhost:1", "http://127.0.0.1", "https://a@b", "https://h/p?q#f", "http://[::1%25lo]", "HTTPS://x", "https://h:port"} {
		f.Add(u)
	}
	f.Fuzz(func(t *testing.T, u string) {
		c := new(config)
		if WithOrigin(u)(c) == nil {
			require.Regexp(t, `^https?://[^/?#@\s]+$`, c.origin)
		}
		if WithBaseURL(u)(c) == nil {
			base, err := url.Parse(c.baseURL)
			require.NoError(t, err)
			require.True(t, base.Scheme == "https" || base.Scheme == "http" && loopback(asciiLower(base.Hostname())))
			_, err = http.NewRequest(http.MethodPost, c.baseURL+"/oauth2/token", nil)
			require.NoError(t, err)
		}
	})
}

func TestCredentialsPrintMasked(t *testing.T) {
	t.Parallel()
	type holder struct{ Credentials Credentials }
	var out strings.Builder
	for _, v := range []any{testCredentials, &testCredentials, holder{testCredentials}, []Credentials{testCredentials}, map[string]any{"c": testCredentials}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			fmt.Fprintf(&out, verb+"\n", v)
		}
		require.NoError(t, json.NewEncoder(&out).Encode(v))
		slog.New(slog.NewTextHandler(&out, nil)).Info("m", "c", v)
		slog.New(slog.NewJSONHandler(&out, nil)).Info("m", "c", v)
	}
	for _, format := range []string{"%s", "%x", "%X"} {
		assert.NotContains(t, out.String(), fmt.Sprintf(format, testCredentials.ClientSecret))
	}
	text, err := testCredentials.MarshalText()
	require.NoError(t, err)
	assert.Equal(t, "{ClientID:public-key ClientSecret:***}", string(text))
	assert.Equal(t, "{ClientID:public-key ClientSecret:***}", testCredentials.String())
}

// Marshalled credentials can be read back, but NewTokenSource refuses the mask
// and says why.
func TestCredentialsInJSON(t *testing.T) {
	t.Parallel()
	type holder struct{ Own, Other Credentials }
	text, err := json.Marshal(holder{testCredentials, Credentials{ClientID: "id"}})
	require.NoError(t, err)
	assert.JSONEq(t, `{"Own":{"ClientID":"public-key","ClientSecret":"***"},"Other":{"ClientID":"id","ClientSecret":"***"}}`, string(text))
	var again holder
	require.NoError(t, json.Unmarshal(text, &again))
	_, err = NewTokenSource(again.Own, WithScopes(pingScope))
	assert.ErrorContains(t, err, "mask")

	var c Credentials
	require.NoError(t, json.Unmarshal([]byte(`{"ClientID":"public-key","ClientSecret":"s3cr3t-key"}`), &c))
	assert.Equal(t, testCredentials, c)
}

// The table in docs/operations.md lists each record that the source code can
// log, with the attributes that it has when it is logged.
func TestLogRecordsMatchTheTable(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t)
		answers := func(status int) moovtest.Answer { return moovtest.Answer{Status: status} }
		opts := []Option{log.option(), WithScopes("/a.read", "/b.read")}

		cache := WithCache(newLockingCache())
		s := sourceOf(t, server, append(opts, cache)...)
		server.Enqueue(answers(503), answers(401))
		_, err := s.Token()
		require.Error(t, err) // logs: attempt failed; no token obtained
		time.Sleep(time.Minute)
		token(t, s)                                           // logs: token obtained
		token(t, sourceOf(t, server, append(opts, cache)...)) // logs: token adopted from the cache
		server.Enqueue(answers(403))
		require.Error(t, s.Revoke(t.Context())) // logs: token not revoked; token revoked

		server.Enqueue(answers(429))
		s = sourceOf(t, server, append(opts, WithLimiter(new(countingLimiter)))...)
		token(t, s) // logs: refused with 429; waiting for the Limiter again
		time.Sleep(time.Hour)
		server.Enqueue(answers(403), moovtest.Answer{Body: `{"access_token":"x","refresh_token":"y","scope":"/a.read"}`})
		token(t, s) // logs: the refresh token failed; the token is not what was asked for

		s = sourceOf(t, server, append(opts, WithCache(fakeCache{
			get:  func(context.Context) ([]byte, error) { return nil, errors.New("down") },
			put:  func(context.Context, []byte) error { return nil },
			lock: func(context.Context) (func(), error) { return nil, errors.New("down") },
		}))...)
		token(t, s) // logs: the cache failed

		synctest.Wait()

		seen := make(map[string]bool)
		for _, r := range log.records {
			attrs := attributesOf(r)
			assert.Equal(t, server.ClientID, attrs["client_id"].String(), r.Message)
			assert.Equal(t, "/a.read /b.read", attrs["scopes"].String(), r.Message)
			delete(attrs, "client_id")
			delete(attrs, "scopes")
			seen[fmt.Sprint(r.Level, r.Message, slices.Sorted(maps.Keys(attrs)))] = true
		}
		documented := make(map[string]bool)
		for _, cells := range rows(t, "docs/operations.md", "## Log records") {
			require.Len(t, cells, 5, "%v", cells)
			attrs := quotedIn(cells[2])
			slices.Sort(attrs)
			documented[fmt.Sprint(strings.ToUpper(cells[0]), strings.Trim(cells[1], "`"), attrs)] = true
			assert.NotEmpty(t, cells[3])
			assert.NotEmpty(t, cells[4])
		}
		assert.Equal(t, slices.Sorted(maps.Keys(documented)), slices.Sorted(maps.Keys(seen)))

		names, err := filepath.Glob("*.go")
		require.NoError(t, err)
		calls := 0
		for _, name := range names {
			if text, err := os.ReadFile(name); assert.NoError(t, err) && !strings.HasSuffix(name, "_test.go") {
				calls += len(logCall.FindAll(text, -1))
			}
		}
		assert.Equal(t, len(documented), calls, "calls of log in the source code")
	})
}

var logCall = regexp.MustCompile(`\.log\(|\.logger\.(Debug|Info|Warn|Error)`)

// This test changes slog.Default, so it does not run in parallel.
func TestNothingIsLoggedByDefault(t *testing.T) {
	var log strings.Builder
	before := slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	defer slog.SetDefault(before)
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Status: 404})
	_, err := sourceOf(t, server).Token()
	require.Error(t, err)
	assert.Empty(t, log.String())
}

func TestScopesOfARecordAreShortened(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	of := func(scopes ...string) string {
		log := new(logged)
		token(t, sourceOf(t, server, log.option(), WithScopes(scopes...)))
		return log.of("token obtained")[0]["scopes"].String()
	}
	assert.Equal(t, "/a.read /b.read /c.read", of("/a.read", "/b.read", "/c.read", "/d.read"))
	assert.Len(t, of("/"+strings.Repeat("a", 1000)), maxShort)
}

func TestGrantsAndRevocationsAreLoggedWithTheirDuration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t, moovtest.WithLatency(2*time.Second))
		s := sourceOf(t, server, log.option())
		token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		revoke := func(ctx context.Context, opts ...Option) error {
			return Revoke(ctx, credentialsOf(server), "unknown", append(opts,
				WithBaseURL(server.URL), WithHTTPClient(server.Client()), log.option(), WithTokenTypeHint(AccessToken))...)
		}
		require.NoError(t, revoke(t.Context()))
		assert.Equal(t, 2*time.Second, log.of("token obtained")[0]["duration"].Duration())
		var hints []string
		for _, attrs := range log.of("token revoked") {
			assert.Equal(t, 2*time.Second, attrs["duration"].Duration())
			hints = append(hints, attrs["token_type_hint"].String())
		}
		assert.Equal(t, []string{"refresh_token", "access_token", "access_token"}, hints)

		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"60"}}})
		require.Error(t, revoke(ctx, WithLimiter(new(countingLimiter))))
		require.Len(t, log.of("token not revoked"), 1)
		assert.Equal(t, 10*time.Second, log.of("token not revoked")[0]["duration"].Duration(), "also if the revocation ends while it waits for the Limiter")
	})
}

func TestRepeatedWarningIsLoggedOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t)
		s := sourceOf(t, server, log.option(), WithScopes("/a.read", "/b.read"))
		const absent, long = "expires_in is absent, unreadable or in the past: 5 minutes are assumed", "expires_in is more than 30 days ahead: 30 days are assumed"
		for n, step := range []struct {
			members string
			want    []string // missing_scopes and lifetime of the record; nil: no record
		}{
			{`"scope":"/a.read /b.read"`, []string{"", absent}},
			{`"expires_in":0`, nil},
			{`"expires_in":900`, nil}, // a correct reply
			{`"expires_in":-5`, []string{"", absent}},
			{`"expires_in":900,"scope":""`, nil},
			{`"expires_in":4000000`, []string{"", long}},
			{`"expires_in":900,"scope":"/a.read /b.read /c.read"`, nil},
			{`"expires_in":900,"scope":"/c.read"`, []string{"/a.read /b.read", ""}},
			{`"expires_in":900,"scope":"/c.read"`, nil},
		} {
			log.records = nil
			server.Enqueue(moovtest.Answer{Body: fmt.Sprintf(`{"access_token":"token-%d",%s}`, n, step.members)})
			token(t, s)
			var got []string
			for _, attrs := range log.of("the token is not what was asked for") {
				got = append(got, attrs["missing_scopes"].String(), attrs["lifetime"].String())
			}
			assert.Equal(t, step.want, got, step.members)
			time.Sleep(31 * 24 * time.Hour)
		}
	})
}
