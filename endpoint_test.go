package moovauth

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"

	"github.com/moovauth/moovauth/moovtest"
)

func TestTokenRequestOnTheWire(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithCredentials("public-key", "a+b/c=%20ä"))
	token(t, sourceOf(t, server, WithOrigin("https://example.com"), WithVersion("v2026.07.00"), WithScopes(pingScope, "/fed.read")))

	r := server.TokenRequests()[0]
	assert.Equal(t, http.MethodPost, r.Method)
	assert.Equal(t, "/oauth2/token", r.Path)
	assert.Equal(t, "application/x-www-form-urlencoded", r.Header.Get("Content-Type"))
	assert.Equal(t, "application/json", r.Header.Get("Accept"))
	assert.Equal(t, "v2026.07.00", r.Header.Get("X-Moov-Version"))
	assert.Equal(t, "https://example.com", r.Header.Get("Origin"))
	assert.Equal(t, userAgent, r.Header.Get("User-Agent"))
	assert.Equal(t, "Basic "+base64.StdEncoding.EncodeToString([]byte("public-key:a+b/c=%20ä")), r.Header.Get("Authorization"), "not query-escaped")
	assert.Equal(t, "grant_type=client_credentials&scope=%2Fping.read+%2Ffed.read", r.Body)
}

func TestRefreshRequestOnTheWire(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	first := token(t, s)
	s.Invalidate(first.AccessToken)
	token(t, s)
	assert.Equal(t, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {first.RefreshToken}}, server.TokenRequests()[1].Form)
}

func TestCredentialsInTheBody(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server, WithAuthStyle(oauth2.AuthStyleInParams))
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	for _, r := range server.Requests() {
		assert.Equal(t, server.ClientID, r.Form.Get("client_id"))
		assert.Equal(t, server.ClientSecret, r.Form.Get("client_secret"))
		assert.Empty(t, r.Header.Get("Authorization"))
	}
}

func TestNoOriginUnlessConfigured(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	token(t, sourceOf(t, server))
	assert.NotContains(t, server.TokenRequests()[0].Header, "Origin")
}

func TestBaseURLWithAPath(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	gateway := answering(t, http.StripPrefix("/moov", server).ServeHTTP)
	s := sourceOf(t, server, WithBaseURL(gateway.URL+"/moov/"), WithHTTPClient(gateway.Client()))
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	assert.Len(t, server.Requests(), 3)
}

func TestUserAgentNamesTheVersionOfTheChangelog(t *testing.T) {
	t.Parallel()
	changelog, err := os.ReadFile("CHANGELOG.md")
	require.NoError(t, err)
	_, rest, _ := strings.Cut(string(changelog), "\n## ")
	version, _, _ := strings.Cut(rest, " ")
	assert.Equal(t, "moovauth/"+version, userAgent)
}

// The expiry of a token that lives for 15 minutes, as it is said in all the
// ways there are.
func TestExpiresIn(t *testing.T) {
	t.Parallel()
	const skew = time.Hour
	for _, c := range []struct {
		name      string
		expiresIn func(server time.Time) string
		server    time.Duration // how far the server's clock is ahead of ours
		noDate    bool
	}{
		{"timestamp", func(now time.Time) string { return fmt.Sprint(now.Unix() + 900) }, 0, false},
		{"timestamp, no Date", func(now time.Time) string { return fmt.Sprint(now.Unix() + 900) }, 0, true},
		{"timestamp in a string", func(now time.Time) string { return fmt.Sprintf(`"%d"`, now.Unix()+900) }, 0, false},
		{"timestamp as a float", func(now time.Time) string { return fmt.Sprintf(`%d.5e0`, now.Unix()+900) }, 0, false},
		{"timestamp, local clock an hour slow", func(now time.Time) string { return fmt.Sprint(now.Unix() + 900) }, skew, false},
		{"timestamp, local clock an hour fast", func(now time.Time) string { return fmt.Sprint(now.Unix() + 900) }, -skew, false},
		{"seconds", func(time.Time) string { return `900` }, 0, false},
		{"seconds, no Date", func(time.Time) string { return `900` }, 0, true},
		{"seconds in a string", func(time.Time) string { return `"900"` }, 0, false},
		{"seconds, local clock an hour slow", func(time.Time) string { return `900` }, skew, false},
		{"seconds, local clock an hour fast", func(time.Time) string { return `900` }, -skew, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(30 * 365 * 24 * time.Hour) // a bubble begins in 2000
				now := func() time.Time { return time.Now().Add(c.server) }
				server := inMemory(t, moovtest.WithClock(now))
				answer := moovtest.Answer{Body: `{"access_token":"x","expires_in":` + c.expiresIn(now()) + `}`}
				if c.noDate {
					answer.Header = http.Header{"Date": nil}
				}
				server.Enqueue(answer)
				tok := token(t, sourceOf(t, server))
				assert.WithinDuration(t, time.Now().Add(15*time.Minute), tok.Expiry, time.Second)
				assert.InDelta(t, 900, tok.ExpiresIn, 1)
			})
		})
	}
}

// Why x/oauth2's own source is not enough, as the README shows it.
func TestXOAuth2TakesATimestampFor55Years(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Body: `{"access_token":"x","expires_in":1736964352}`})
	conf := clientcredentials.Config{ClientID: server.ClientID, ClientSecret: server.ClientSecret, TokenURL: server.URL + tokenPath, AuthStyle: oauth2.AuthStyleInHeader}
	tok, err := conf.Token(t.Context())
	require.NoError(t, err)
	assert.InDelta(t, 55.04, time.Until(tok.Expiry).Hours()/24/365.25, 0.01)
	assert.Equal(t, "2025-01-15T18:05:52Z", time.Unix(1736964352, 0).UTC().Format(time.RFC3339))
}

func TestExpiresInThatMakesNoSense(t *testing.T) {
	t.Parallel()
	sent := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	for text, want := range map[string]time.Duration{
		`null`: assumedLifetime, `0`: assumedLifetime, `-1`: assumedLifetime, `0.9`: assumedLifetime, `""`: assumedLifetime,
		`"NaN"`: assumedLifetime, `"0x384"`: assumedLifetime, `true`: assumedLifetime, `[900]`: assumedLifetime, `1e999`: assumedLifetime,
		`1736964352`: assumedLifetime, `1000000000`: assumedLifetime,
		`1`: time.Second, `1.5`: 1500 * time.Millisecond, `259200`: 72 * time.Hour, `2592000`: maxLifetime, `999999999`: maxLifetime,
		`2592001`: maxLifetime, `1e308`: maxLifetime, `1795446000000`: maxLifetime,
	} {
		r, err := readToken(nil, []byte(`{"access_token":"x","expires_in":`+text+`}`), sent)
		require.NoError(t, err, text)
		assert.Equal(t, want, r.lifetime, text)
		assert.Equal(t, want == assumedLifetime || want == maxLifetime && text != `2592000`, r.warning != "", text)
	}
	r, err := readToken(nil, []byte(`{"access_token":"x"}`), sent)
	require.NoError(t, err)
	assert.Equal(t, assumedLifetime, r.lifetime)
}

func TestTokenTypes(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`""`, `null`, `"bearer"`, `"BEARER"`, `"Bearer"`, `"opaque"`, `"Opaque"`, `"jwt"`, `"JWT"`} {
		r, err := readToken(nil, []byte(`{"access_token":"x","token_type":`+text+`}`), time.Now())
		require.NoError(t, err, text)
		assert.Equal(t, "Bearer", r.token.TokenType)
	}
	for _, text := range []string{`"mac"`, `"basic"`, `7`, `"DPoP"`} {
		_, err := readToken(nil, []byte(`{"access_token":"x","token_type":`+text+`}`), time.Now())
		assert.ErrorContains(t, err, "token", text)
	}
}

func TestUnusableReplies(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		``:                              "JSON",
		`<html>Sign in</html>`:          "proxy",
		`[]`:                            "JSON",
		`null`:                          "no access_token",
		`{}`:                            "no access_token",
		`{"access_token":null}`:         "no access_token",
		`{"access_token":7}`:            "no access_token",
		`{"access_token":""}`:           "no access_token",
		`{"access_token":"a b"}`:        "ASCII",
		`{"access_token":"a\nb"}`:       "ASCII",
		`{"access_token":"a\u0000b"}`:   "ASCII",
		`{"access_token":"ä"}`:          "ASCII",
		`{"ACCESS_TOKEN":"a"}`:          "no access_token",
		`{"access_token":"a"} trailing`: "JSON",
		`{"access_token":"a","token_type":"mac"}`:               `its token_type "mac" is not Bearer`,
		`{"access_token":"` + strings.Repeat("a", 1<<20) + `"}`: "larger than",
	} {
		server := onLoopback(t)
		answer := moovtest.Answer{Body: body}
		server.Enqueue(answer, answer, answer)
		s := hurried(sourceOf(t, server))
		_, err := s.Token()
		require.ErrorContains(t, err, want, body)
		assert.Contains(t, err.Error(), "moovauth: ")
		assert.Less(t, len(err.Error()), 500)
	}
}

func TestOddRepliesThatAreTaken(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		"\xef\xbb\xbf" + `{"access_token":"a"}`,
		" \n" + `{"access_token":"a"}` + "\n",
		`{"access_token":"a","refresh_token":7,"scope":null,"more":{"x":[1]}}`,
	} {
		server := onLoopback(t)
		server.Enqueue(moovtest.Answer{Status: 201, Body: body, Header: http.Header{"Content-Type": {"text/plain"}}})
		assert.Equal(t, "a", token(t, sourceOf(t, server)).AccessToken)
	}
}

func TestRedirectsAreNotFollowed(t *testing.T) {
	t.Parallel()
	for _, status := range []int{301, 302, 303, 307, 308} {
		t.Run(fmt.Sprint(status), func(t *testing.T) {
			elsewhere := onLoopback(t)
			server := onLoopback(t)
			server.Enqueue(moovtest.Answer{Status: status, Header: http.Header{"Location": {elsewhere.URL + "/oauth2/token"}}})
			_, err := sourceOf(t, server).Token()
			var refused *Error
			require.ErrorAs(t, err, &refused)
			assert.Equal(t, status, refused.StatusCode)
			assert.ErrorContains(t, err, "WithBaseURL")
			assert.Empty(t, elsewhere.Requests())
		})
	}
}

func TestExpiryIsCountedFromTheMomentTheRequestWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(9*time.Second), moovtest.WithExpiresInSeconds())
		sent := time.Now()
		assert.Equal(t, sent.Add(15*time.Minute), token(t, sourceOf(t, server)).Expiry)
	})
}

// Whatever a server answers: no panic, and a token is usable and lives between
// a second and a day.
func FuzzTokenReply(f *testing.F) {
	for _, body := range []string{
		`{"access_token":"a","refresh_token":"r","token_type":"Bearer","expires_in":1795446000,"scope":"/ping.read"}`,
		`{"access_token":"a","expires_in":"900"}`, `{"access_token":"a","expires_in":1e308}`, `{"expires_in":-1}`,
		`{"access_token":"a","access_token":"b"}`, "\xef\xbb\xbf{}", `[[[[`, `{"access_token":"\ud800"}`,
	} {
		f.Add([]byte(body), "Mon, 23 Nov 2026 09:00:00 GMT")
		f.Add([]byte(body), "")
	}
	f.Fuzz(func(t *testing.T, body []byte, date string) {
		r, err := readToken(http.Header{"Date": {date}}, body, time.Unix(1795424400, 0))
		if err != nil {
			require.Nil(t, r)
			return
		}
		require.True(t, usable(r.token.AccessToken))
		require.Equal(t, "Bearer", r.token.TokenType)
		require.GreaterOrEqual(t, r.lifetime, time.Second)
		require.LessOrEqual(t, r.lifetime, maxLifetime)
		_, err = json.Marshal(r.token)
		require.NoError(t, err)
	})
}

func TestTimestampWithoutDateIsReadToTheMillisecond(t *testing.T) {
	t.Parallel()
	life, _, _ := lifetime(json.RawMessage(`1800000010`), http.Header{}, time.Unix(1_800_000_000, 750e6))
	assert.Equal(t, 9250*time.Millisecond, life)
}

func TestReplyOfAMebibyteIsRead(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	reply := `{"access_token":"x"}`
	server.Enqueue(moovtest.Answer{Body: reply + strings.Repeat(" ", maxBody-len(reply))})
	assert.Equal(t, "x", token(t, sourceOf(t, server)).AccessToken)
}

func TestExtraFindsWhatStandsBehindLargeMembers(t *testing.T) {
	t.Parallel()
	for name, large := range map[string]string{
		"array":   "[" + strings.Repeat(`"x",`, maxExtra) + `"x"]`,
		"object":  `{"x":"` + strings.Repeat("x", maxExtra) + `"}`,
		"string":  `"` + strings.Repeat("x", maxExtra) + `"`,
		"nothing": "null",
	} {
		r, err := readToken(nil, []byte(`{"access_token":"x","account":`+large+`,"scope":"/ping.read","z":1}`), time.Now())
		require.NoError(t, err)
		assert.Equal(t, map[string]any{"scope": "/ping.read", "z": 1.0}, r.members, name)
	}
}
