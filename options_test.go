package moovauth

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

var testCredentials = Credentials{ClientID: "public-key", ClientSecret: "s3cr3t-key"}

func TestNewTokenSourceNamesWhatIsWrong(t *testing.T) {
	scopes := WithScopes(pingScope)
	for _, c := range []struct {
		name  string
		creds Credentials
		opts  []Option
		want  []string // each is in the error
	}{
		{"no client ID", Credentials{ClientSecret: "s"}, []Option{scopes}, []string{"Credentials.ClientID", "public key"}},
		{"no secret", Credentials{ClientID: "id"}, []Option{scopes}, []string{"Credentials.ClientSecret", "secret key"}},
		{"colon in the ID", Credentials{"id:x", "s"}, []Option{scopes}, []string{"Credentials.ClientID", "colon"}},
		{"newline after the secret", Credentials{"id", "s\n"}, []Option{scopes}, []string{"Credentials.ClientSecret", "trim"}},
		{"control character in the ID", Credentials{"i\x00d", "s"}, []Option{scopes}, []string{"Credentials.ClientID", "control"}},
		{"no scopes", testCredentials, nil, []string{"WithScopes"}},
		{"no scopes at all", testCredentials, []Option{WithScopes()}, []string{"WithScopes"}},
		{"no scopes, an access token alone", testCredentials, []Option{WithToken(&oauth2.Token{AccessToken: "x"})}, []string{"WithScopes"}},
		{"empty scope", testCredentials, []Option{WithScopes(pingScope, "")}, []string{"WithScopes", "empty"}},
		{"two scopes in one", testCredentials, []Option{WithScopes("/ping.read /fed.read")}, []string{"WithScopes", "white space"}},
		{"no slash", testCredentials, []Option{WithScopes("ping.read")}, []string{"WithScopes", `"ping.read"`, "leading slash"}},
		{"placeholder", testCredentials, []Option{WithScopes("/accounts/{accountID}/cards.read")}, []string{"WithScopes", "placeholder", "account's ID"}},
		{"quote in a scope", testCredentials, []Option{WithScopes(`/a"b`)}, []string{"WithScopes", "RFC 6749"}},
		{"umlaut in a scope", testCredentials, []Option{WithScopes(`/ä`)}, []string{"WithScopes", "RFC 6749"}},
		{"origin with a path", testCredentials, []Option{scopes, WithOrigin("https://example.com/")}, []string{"WithOrigin", "https://example.com"}},
		{"origin without a scheme", testCredentials, []Option{scopes, WithOrigin("example.com")}, []string{"WithOrigin", "scheme"}},
		{"origin with a query", testCredentials, []Option{scopes, WithOrigin("https://example.com?x")}, []string{"WithOrigin"}},
		{"origin with a user", testCredentials, []Option{scopes, WithOrigin("https://me@example.com")}, []string{"WithOrigin"}},
		{"origin of another scheme", testCredentials, []Option{scopes, WithOrigin("ftp://example.com")}, []string{"WithOrigin"}},
		{"empty origin", testCredentials, []Option{scopes, WithOrigin("")}, []string{"WithOrigin"}},
		{"unreadable origin", testCredentials, []Option{scopes, WithOrigin("https://%zz")}, []string{"WithOrigin"}},
		{"version without the v", testCredentials, []Option{scopes, WithVersion("2024.01.00")}, []string{"WithVersion", "vYYYY.QQ.BB", "2024.01.00"}},
		{"version with a newline", testCredentials, []Option{scopes, WithVersion("v2024.01.00\n")}, []string{"WithVersion"}},
		{"empty version", testCredentials, []Option{scopes, WithVersion("")}, []string{"WithVersion"}},
		{"plain http", testCredentials, []Option{scopes, WithBaseURL("http://api.moov.io")}, []string{"WithBaseURL", "https"}},
		{"host that only starts like loopback", testCredentials, []Option{scopes, WithBaseURL("http://localhost.example.com")}, []string{"WithBaseURL", "https"}},
		{"no scheme", testCredentials, []Option{scopes, WithBaseURL("api.moov.io")}, []string{"WithBaseURL", "absolute"}},
		{"port alone", testCredentials, []Option{scopes, WithBaseURL("https://:443")}, []string{"WithBaseURL"}},
		{"base URL with a query", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io?x=1")}, []string{"WithBaseURL", "query"}},
		{"base URL with a password", testCredentials, []Option{scopes, WithBaseURL("https://me:hidden@api.moov.io")}, []string{"WithBaseURL", "credentials"}},
		{"nil client", testCredentials, []Option{scopes, WithHTTPClient(nil)}, []string{"WithHTTPClient", "nil"}},
		{"unknown auth style", testCredentials, []Option{scopes, WithAuthStyle(7)}, []string{"WithAuthStyle", "7"}},
		{"nil token", testCredentials, []Option{scopes, WithToken(nil)}, []string{"WithToken"}},
		{"empty token", testCredentials, []Option{scopes, WithToken(&oauth2.Token{})}, []string{"WithToken"}},
		{"token with a newline", testCredentials, []Option{scopes, WithToken(&oauth2.Token{AccessToken: "a\nb"})}, []string{"WithToken", "ASCII"}},
		{"MAC token", testCredentials, []Option{scopes, WithToken(&oauth2.Token{AccessToken: "a", TokenType: "mac"})}, []string{"WithToken", "its token_type, of 3 characters"}},
		{"negative early refresh", testCredentials, []Option{scopes, WithEarlyRefresh(-1)}, []string{"WithEarlyRefresh", "-1ns"}},
		{"negative timeout", testCredentials, []Option{scopes, WithTimeout(-time.Second)}, []string{"WithTimeout", "-1s"}},
		{"no time at all", testCredentials, []Option{scopes, WithTimeout(0)}, []string{"WithTimeout", "above 0"}},
		{"nil logger", testCredentials, []Option{scopes, WithLogger(nil)}, []string{"WithLogger", "nil"}},
		{"unknown hint", testCredentials, []Option{scopes, WithTokenTypeHint("id_token")}, []string{"WithTokenTypeHint", "id_token"}},
		{"nil option", testCredentials, []Option{scopes, nil}, []string{"option 2 is nil"}},
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
		})
	}
}

func TestNewTokenSourceTakesWhatIsRight(t *testing.T) {
	for name, opts := range map[string][]Option{
		"scopes alone":            {WithScopes(pingScope, "/accounts/6f9c2d1e-8f3b-4a39-9a5e-1c2d3e4f5a6b/transfers.write")},
		"a refresh token alone":   {WithToken(&oauth2.Token{RefreshToken: "r"})},
		"older version":           {WithScopes(pingScope), WithVersion("v2024.00.00")},
		"far version":             {WithScopes(pingScope), WithVersion("v9000.00.00")},
		"dev":                     {WithScopes(pingScope), WithVersion("dev")},
		"latest":                  {WithScopes(pingScope), WithVersion("latest")},
		"localhost":               {WithScopes(pingScope), WithBaseURL("http://localhost:8080")},
		"IPv6 loopback":           {WithScopes(pingScope), WithBaseURL("http://[::1]:8080/")},
		"another loopback":        {WithScopes(pingScope), WithBaseURL("http://127.1.2.3")},
		"gateway with a path":     {WithScopes(pingScope), WithBaseURL("https://gateway.example.com/moov/")},
		"origin with a port":      {WithScopes(pingScope), WithOrigin("http://localhost:3000")},
		"auth style to be found":  {WithScopes(pingScope), WithAuthStyle(oauth2.AuthStyleAutoDetect)},
		"no early refresh":        {WithScopes(pingScope), WithEarlyRefresh(0)},
		"hint, which has no use":  {WithScopes(pingScope), WithTokenTypeHint(RefreshToken)},
		"opaque token":            {WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "a", TokenType: "opaque"})},
		"logger":                  {WithScopes(pingScope), WithLogger(slog.Default())},
		"client":                  {WithScopes(pingScope), WithHTTPClient(&http.Client{})},
		"the last of two options": {WithScopes("/fed.read"), WithScopes(pingScope)},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := NewTokenSource(testCredentials, opts...)
			assert.NoError(t, err)
		})
	}
}

func TestCredentialsPrintMasked(t *testing.T) {
	type holder struct{ Credentials Credentials }
	for _, v := range []any{testCredentials, &testCredentials, holder{testCredentials}, []Credentials{testCredentials}} {
		for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
			assertMasked(t, fmt.Sprintf(verb, v))
		}
		for _, marshal := range []func(any) ([]byte, error){json.Marshal, xml.Marshal} {
			text, err := marshal(v)
			require.NoError(t, err)
			assertMasked(t, string(text))
		}
		var log strings.Builder
		slog.New(slog.NewTextHandler(&log, nil)).Info("m", "c", v)
		slog.New(slog.NewJSONHandler(&log, nil)).Info("m", "c", v)
		assertMasked(t, log.String())
	}
	assert.Equal(t, "{ClientID:public-key ClientSecret:***}", testCredentials.String())
	assert.Equal(t, "{ClientID: ClientSecret:}", Credentials{}.String(), "what is not set is seen to be not set")
}

func assertMasked(t *testing.T, text string) {
	t.Helper()
	assert.NotContains(t, text, testCredentials.ClientSecret)
	assert.NotContains(t, text, fmt.Sprintf("%x", testCredentials.ClientSecret))
	assert.NotContains(t, text, fmt.Sprintf("%X", testCredentials.ClientSecret))
}

func TestCredentialsCanBeReadFromJSON(t *testing.T) {
	var c Credentials
	require.NoError(t, json.Unmarshal([]byte(`{"ClientID":"public-key","ClientSecret":"s3cr3t-key"}`), &c))
	assert.Equal(t, testCredentials, c)
}

func TestDefaults(t *testing.T) {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope))
	require.NoError(t, err)
	assert.Equal(t, "https://api.moov.io/oauth2/token", s.endpoint.url(tokenPath))
	assert.Equal(t, "v2024.01.00", s.endpoint.version)
	assert.Equal(t, 30*time.Second, s.endpoint.timeout)
	assert.Same(t, http.DefaultClient, s.endpoint.client)
}

func FuzzVersion(f *testing.F) {
	for _, v := range []string{"v2024.01.00", "dev", "latest", "v2024.1.0", "v2024.01.00\n", "", "v２024.01.00"} {
		f.Add(v)
	}
	f.Fuzz(func(t *testing.T, v string) {
		if checkVersion(v) == nil && v != "dev" && v != "latest" {
			var year, quarter, build int
			n, err := fmt.Sscanf(v, "v%4d.%2d.%2d", &year, &quarter, &build)
			require.NoError(t, err)
			require.Equal(t, 3, n)
			require.Equal(t, v, fmt.Sprintf("v%04d.%02d.%02d", year, quarter, build))
		}
	})
}

func FuzzScope(f *testing.F) {
	for _, s := range []string{pingScope, "", "a", "/a b", "/{x}", "/a\"", "/\x7f"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if checkScope(s) == nil {
			require.Regexp(t, `^/[!#-\[\]-z|~]*$`, s)
		}
	})
}

// Whatever is taken for an origin or a base URL is one, and secure.
func FuzzURLs(f *testing.F) {
	for _, u := range []string{"https://example.com", "http://localhost:1", "http://127.0.0.1", "https://a@b", "https://h/p?q#f", "http://[::1%25lo]", "HTTPS://x", "https://h:port"} {
		f.Add(u)
	}
	f.Fuzz(func(t *testing.T, u string) {
		var c config
		if WithOrigin(u)(&c) == nil {
			require.Regexp(t, `^https?://[^/?#@\s]+$`, c.origin)
		}
		if WithBaseURL(u)(&c) == nil {
			require.True(t, secure(c.baseURL))
			e := endpoint{config: &c}
			_, err := http.NewRequest(http.MethodPost, e.url(tokenPath), nil)
			require.NoError(t, err)
		}
	})
}

func TestScopesAreCopied(t *testing.T) {
	server := onLoopback(t)
	scopes := []string{pingScope}
	s := sourceOf(t, server, WithScopes(scopes...))
	scopes[0] = "/else"
	token(t, s)
	assert.Equal(t, pingScope, server.TokenRequests()[0].Form.Get("scope"))
}

func TestOddURLsAreRefused(t *testing.T) {
	for _, opt := range []Option{
		WithOrigin("https://"), WithOrigin("https://:443"), WithBaseURL("https://h?"), WithBaseURL("https://h#f"),
		WithBaseURL("ftp://127.0.0.1"), WithBaseURL("ws://localhost"),
	} {
		_, err := NewTokenSource(testCredentials, WithScopes(pingScope), opt)
		assert.Error(t, err)
	}
}

func TestBaseURLs(t *testing.T) {
	for in, want := range map[string]string{
		"https://h/v1//":         "https://h/v1/oauth2/token",
		"https://h/a%2Fb/":       "https://h/a%2Fb/oauth2/token",
		"http://LOCALHOST:8080/": "http://LOCALHOST:8080/oauth2/token",
	} {
		s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL(in))
		require.NoError(t, err)
		assert.Equal(t, want, s.endpoint.url(tokenPath))
	}
}
