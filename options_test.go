package moovauth

import (
	"bytes"
	"context"
	"encoding/gob"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

func TestNewTokenSourceNamesWhatIsWrong(t *testing.T) {
	t.Parallel()
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
		{"byte order mark", Credentials{"id", "\ufeffs3cr3t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "byte order mark"}},
		{"zero-width space", Credentials{"id", "s3cr\u200b3t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+200B"}},
		{"zero-width space at the end", Credentials{"id\u200b", "s3cr3t"}, []Option{scopes}, []string{"Credentials.ClientID", "U+200B"}},
		{"byte order mark inside", Credentials{"i\ufeffd", "s3cr3t"}, []Option{scopes}, []string{"Credentials.ClientID", "U+FEFF"}},
		{"soft hyphen", Credentials{"id", "s3cr\u00ad3t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+00AD"}},
		{"no-break space", Credentials{"id", "s3cr\u00a03t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+00A0"}},
		{"no-break space at the end", Credentials{"id", "s3cr3t\u00a0"}, []Option{scopes}, []string{"Credentials.ClientSecret", "trim"}},
		{"ideographic space", Credentials{"id", "s3cr\u30003t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+3000"}},
		{"line separator", Credentials{"id", "s3cr\u20283t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+2028"}},
		{"right-to-left mark", Credentials{"id", "s3cr\u200f3t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+200F"}},
		{"Hangul filler", Credentials{"id", "s3cr\u31643t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+3164"}},
		{"variation selector", Credentials{"id", "s3cr3t\ufe0f"}, []Option{scopes}, []string{"Credentials.ClientSecret", "U+FE0F"}},
		{"not UTF-8", Credentials{"id", "s3cr\xff3t"}, []Option{scopes}, []string{"Credentials.ClientSecret", "UTF-8"}},
		{"quotation marks", Credentials{"id", `"s3cr3t"`}, []Option{scopes}, []string{"Credentials.ClientSecret", "quotation marks"}},
		{"apostrophes", Credentials{"'id'", "s3cr3t"}, []Option{scopes}, []string{"Credentials.ClientID", "quotation marks"}},
		{"curly quotation marks", Credentials{"id", "“s3cr3t”"}, []Option{scopes}, []string{"Credentials.ClientSecret", "quotation marks"}},
		{"Basic header", Credentials{"id", "Basic aWQ6cw=="}, []Option{scopes}, []string{"Credentials.ClientSecret", "Authorization", "secret key"}},
		{"bearer header", Credentials{"id", "bearer abc"}, []Option{scopes}, []string{"Credentials.ClientSecret", "Authorization"}},
		{"the mask", Credentials{"id", "***"}, []Option{scopes}, []string{"Credentials.ClientSecret", "mask", "secret key"}},
		{"secret for a scope", testCredentials, []Option{WithScopes(testCredentials.ClientSecret)}, []string{"WithScopes", "leading slash"}},
		{"secret for a version", testCredentials, []Option{scopes, WithVersion(testCredentials.ClientSecret)}, []string{"WithVersion"}},
		{"nothing between slashes", testCredentials, []Option{WithScopes("/accounts//transfers.write")}, []string{"WithScopes", `"/accounts//transfers.write"`, "account's ID"}},
		{"slash at the end", testCredentials, []Option{WithScopes("/accounts/")}, []string{"WithScopes", "slash"}},
		{"slash alone", testCredentials, []Option{WithScopes("/")}, []string{"WithScopes", "slash"}},
		{"two slashes first", testCredentials, []Option{WithScopes("//ping.read")}, []string{"WithScopes", "slash"}},
		{"commas", testCredentials, []Option{WithScopes("/a.read,/b.read")}, []string{"WithScopes", `"/a.read,/b.read"`, "argument of its own"}},
		{"comma at the end", testCredentials, []Option{WithScopes("/a.read,", "/b.read")}, []string{"WithScopes", "argument of its own"}},
		{"scopes of a form", testCredentials, []Option{WithScopes("/a.read+/b.read")}, []string{"WithScopes", "argument of its own"}},
		{"long scope", testCredentials, []Option{WithScopes(strings.Repeat("x", 1<<20))}, []string{"WithScopes", "leading slash"}},
		{"token endpoint", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io/oauth2/token")}, []string{"WithBaseURL", "/oauth2/token", "leave that out"}},
		{"token endpoint, slash at the end", testCredentials, []Option{scopes, WithBaseURL("https://gw.example.com/moov/OAuth2/Token//")}, []string{"WithBaseURL", "/oauth2/token"}},
		{"revoke endpoint", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io/oauth2/revoke")}, []string{"WithBaseURL", "/oauth2/revoke"}},
		{"escaped token endpoint", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io/oauth2%2ftoken")}, []string{"WithBaseURL", "/oauth2/token"}},
		{"scheme twice", testCredentials, []Option{scopes, WithBaseURL("https://https://api.moov.io")}, []string{"WithBaseURL", "scheme twice"}},
		{"two schemes", testCredentials, []Option{scopes, WithBaseURL("https://http://api.moov.io")}, []string{"WithBaseURL", "scheme twice"}},
		{"scheme twice, without a colon", testCredentials, []Option{scopes, WithBaseURL("https://HTTPS//api.moov.io")}, []string{"WithBaseURL", "scheme twice"}},
		{"colon without a port", testCredentials, []Option{scopes, WithBaseURL("https://api.moov.io:")}, []string{"WithBaseURL", "port"}},
		{"zero-width space in the host", testCredentials, []Option{scopes, WithBaseURL("https://api.moov\u200b.io")}, []string{"WithBaseURL", "cannot be seen"}},
		{"origin with a scheme twice", testCredentials, []Option{scopes, WithOrigin("https://https://example.com")}, []string{"WithOrigin", "scheme"}},
		{"origin that is a scheme", testCredentials, []Option{scopes, WithOrigin("https://https:")}, []string{"WithOrigin", "scheme"}},
		{"origin with a password", testCredentials, []Option{scopes, WithOrigin("https://me:hidden@example.com")}, []string{"WithOrigin", `"https://example.com"`}},
		{"nil limiter", testCredentials, []Option{scopes, WithLimiter(nil)}, []string{"WithLimiter", "nil"}},
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
		{"MAC token", testCredentials, []Option{scopes, WithToken(&oauth2.Token{AccessToken: "a", TokenType: "mac"})}, []string{"WithToken", `"mac" is not Bearer`}},
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
			assert.Less(t, len(err.Error()), 2<<10+1)
			if len(c.creds.ClientSecret) > 3 {
				assert.NotContains(t, err.Error(), c.creds.ClientSecret)
			}
		})
	}
}

func TestNewTokenSourceTakesWhatIsRight(t *testing.T) {
	t.Parallel()
	for name, opts := range map[string][]Option{
		"scopes alone":            {WithScopes(pingScope, "/accounts/6f9c2d1e-8f3b-4a39-9a5e-1c2d3e4f5a6b/transfers.write")},
		"a refresh token alone":   {WithToken(&oauth2.Token{RefreshToken: "r"})},
		"gateway at /oauth2":      {WithScopes(pingScope), WithBaseURL("https://gateway.example.com/oauth2")},
		"host named https.test":   {WithScopes(pingScope), WithBaseURL("https://https.test:8443")},
		"limiter":                 {WithScopes(pingScope), WithLimiter(noLimit{})},
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

type noLimit struct{}

func (noLimit) Wait(context.Context) error { return nil }

func TestOddButValidCredentialsAreTaken(t *testing.T) {
	t.Parallel()
	for _, c := range []Credentials{
		{"id", "with space"}, {"id", "pässwörd"}, {"id", `half"quoted`}, {"id", `"half-quoted`}, {"id", "a***"}, {"Basic", "Bearer"}, {"id", "Basically 7"}, {"id", "x:y"}, {"id", "日本"},
	} {
		assert.NoError(t, c.check(), "%q", c.ClientSecret)
	}
}

func TestCredentialsPrintMasked(t *testing.T) {
	t.Parallel()
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
	text, err := json.Marshal(holder{testCredentials})
	require.NoError(t, err)
	assert.JSONEq(t, `{"Credentials":{"ClientID":"public-key","ClientSecret":"***"}}`, string(text))
	text, err = xml.Marshal(testCredentials)
	require.NoError(t, err)
	assert.Equal(t, `<Credentials><ClientID>public-key</ClientID><ClientSecret>***</ClientSecret></Credentials>`, string(text))
	text, err = testCredentials.MarshalText()
	require.NoError(t, err)
	assert.Equal(t, testCredentials.String(), string(text))
	yaml, err := testCredentials.MarshalYAML()
	require.NoError(t, err)
	assert.Equal(t, map[string]string{"clientid": "public-key", "clientsecret": "***"}, yaml)
	assert.Equal(t, "{ClientID:public-key ClientSecret:***}", testCredentials.String())
	assert.Equal(t, "{ClientID: ClientSecret:}", Credentials{}.String(), "what is not set is seen to be not set")
}

func assertMasked(t *testing.T, text string) {
	t.Helper()
	assert.NotContains(t, text, testCredentials.ClientSecret)
	assert.NotContains(t, text, fmt.Sprintf("%x", testCredentials.ClientSecret))
	assert.NotContains(t, text, fmt.Sprintf("%X", testCredentials.ClientSecret))
}

// What was marshalled can be read back, and its mask is refused with the reason.
func TestMarshalledCredentialsCanBeReadBackButNotUsed(t *testing.T) {
	t.Parallel()
	want := Credentials{"public-key", "***"}
	for name, again := range map[string]func(in, out any) error{
		"JSON": func(in, out any) error {
			text, err := json.Marshal(in)
			require.NoError(t, err)
			assertMasked(t, string(text))
			return json.Unmarshal(text, out)
		},
		"XML": func(in, out any) error {
			text, err := xml.Marshal(in)
			require.NoError(t, err)
			assertMasked(t, string(text))
			return xml.Unmarshal(text, out)
		},
		"gob": func(in, out any) error {
			var b bytes.Buffer
			require.NoError(t, gob.NewEncoder(&b).Encode(in))
			assertMasked(t, b.String())
			return gob.NewDecoder(&b).Decode(out)
		},
	} {
		t.Run(name, func(t *testing.T) {
			type holder struct{ Own, Other Credentials }
			var c Credentials
			require.NoError(t, again(testCredentials, &c))
			assert.Equal(t, want, c)
			var h holder
			require.NoError(t, again(holder{testCredentials, Credentials{ClientID: "id"}}, &h))
			assert.Equal(t, holder{want, Credentials{ClientID: "id"}}, h)
			_, err := NewTokenSource(c, WithScopes(pingScope))
			assert.ErrorContains(t, err, "mask")
		})
	}
}

func TestCredentialsCanBeReadFromJSON(t *testing.T) {
	t.Parallel()
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
		c := setup{config: new(config)}
		if WithOrigin(u)(&c) == nil {
			require.Regexp(t, `^https?://[^/?#@\s]+$`, c.origin)
		}
		if WithBaseURL(u)(&c) == nil {
			base, err := url.Parse(c.baseURL)
			require.NoError(t, err)
			require.True(t, secure(base))
			e := endpoint{c.config}
			_, err = http.NewRequest(http.MethodPost, e.url(tokenPath), nil)
			require.NoError(t, err)
		}
	})
}

func TestScopesAreCopied(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	scopes := []string{pingScope}
	s := sourceOf(t, server, WithScopes(scopes...))
	scopes[0] = "/else"
	token(t, s)
	assert.Equal(t, pingScope, server.TokenRequests()[0].Form.Get("scope"))
}

func TestOddURLsAreRefused(t *testing.T) {
	t.Parallel()
	for _, opt := range []Option{
		WithOrigin("https://"), WithOrigin("https://:443"), WithBaseURL("https://h?"), WithBaseURL("https://h#f"),
		WithBaseURL("ftp://127.0.0.1"), WithBaseURL("ws://localhost"),
	} {
		_, err := NewTokenSource(testCredentials, WithScopes(pingScope), opt)
		assert.Error(t, err)
	}
}

func TestBaseURLs(t *testing.T) {
	t.Parallel()
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
