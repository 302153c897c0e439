package moovauth

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
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

// readAnswer reads an answer to a client-credentials request that was sent at
// the time sent.
func readAnswer(t testing.TB, status int, header http.Header, body string, sent time.Time, opts ...Option) (*reply, error) {
	t.Helper()
	c, err := newConfig(testCredentials, opts)
	require.NoError(t, err)
	r := &request{op: opToken, grantType: grantClientCredentials}
	return c.readReply(r, &http.Response{StatusCode: status, Header: header}, []byte(body), instant{wall: sent.UnixNano()})
}

// A server may state in several ways that a token lives for 15 minutes.
func TestExpiresIn(t *testing.T) {
	t.Parallel()
	const skew = time.Hour
	timestamp := func(now time.Time) string { return fmt.Sprint(now.Unix() + 900) }
	seconds := func(time.Time) string { return `900` }
	for name, c := range map[string]struct {
		expiresIn func(server time.Time) string
		server    time.Duration // how far the server's clock is ahead of ours
		noDate    bool
	}{
		"timestamp":                                  {timestamp, 0, false},
		"timestamp, no Date":                         {timestamp, 0, true},
		"timestamp in a string":                      {func(now time.Time) string { return fmt.Sprintf(`"%d"`, now.Unix()+900) }, 0, false},
		"timestamp as a float":                       {func(now time.Time) string { return fmt.Sprintf(`%d.5e0`, now.Unix()+900) }, 0, false},
		"timestamp, local clock an hour slow":        {timestamp, skew, false},
		"timestamp, local clock an hour fast":        {timestamp, -skew, false},
		"seconds":                                    {seconds, 0, false},
		"seconds, no Date":                           {seconds, 0, true},
		"seconds in a string":                        {func(time.Time) string { return `"900"` }, 0, false},
		"seconds, local clock an hour slow":          {seconds, skew, false},
		"seconds, local clock an hour fast":          {seconds, -skew, false},
		"seconds, no Date, local clock an hour slow": {seconds, skew, true},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				time.Sleep(30 * 365 * 24 * time.Hour) // a bubble starts in the year 2000
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

func TestTimestampWithoutDateIsReadToTheMillisecond(t *testing.T) {
	t.Parallel()
	r, err := readAnswer(t, 200, nil, `{"access_token":"x","expires_in":1800000010}`, time.Unix(1_800_000_000, 750e6))
	require.NoError(t, err)
	assert.Equal(t, 9250*time.Millisecond, r.lifetime)
}

// This is why plain x/oauth2 never refreshes Moov's tokens, as the README says.
func TestXOAuth2ReadsATimestampAs55Years(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Body: `{"access_token":"x","expires_in":1736964352}`})
	conf := clientcredentials.Config{ClientID: server.ClientID, ClientSecret: server.ClientSecret, TokenURL: server.URL + "/oauth2/token", AuthStyle: oauth2.AuthStyleInHeader}
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
		`"NaN"`: assumedLifetime, `"0x384"`: assumedLifetime, `true`: assumedLifetime, `[900]`: assumedLifetime, `{}`: assumedLifetime,
		`1736964352`: assumedLifetime, `1000000000`: assumedLifetime,
		`1`: time.Second, `1.5`: 1500 * time.Millisecond, `259200`: 72 * time.Hour, `2592000`: maxLifetime, `999999999`: maxLifetime,
		`2592001`: maxLifetime, `1e308`: maxLifetime, `"Inf"`: maxLifetime, `1795446000000`: maxLifetime,
	} {
		r, err := readAnswer(t, 200, nil, `{"access_token":"x","expires_in":`+text+`}`, sent)
		require.NoError(t, err, text)
		assert.Equal(t, want, r.lifetime, text)
		assert.Equal(t, want == assumedLifetime || want == maxLifetime && text != `2592000`, r.warning != "", text)
	}
	r, err := readAnswer(t, 200, nil, `{"access_token":"x"}`, sent)
	require.NoError(t, err)
	assert.Equal(t, assumedLifetime, r.lifetime)
	assert.NotEmpty(t, r.warning)
}

func TestExpiryIsCountedFromTheMomentTheRequestWasSent(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(9*time.Second), moovtest.WithExpiresInSeconds())
		sent := time.Now()
		assert.Equal(t, sent.Add(15*time.Minute), token(t, sourceOf(t, server)).Expiry)
	})
}

func TestTokenTypes(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`""`, `null`, `"bearer"`, `"BEARER"`, `"Bearer"`, `"opaque"`, `"Opaque"`, `"jwt"`, `"JWT"`} {
		r, err := readAnswer(t, 200, nil, `{"access_token":"x","token_type":`+text+`}`, time.Now())
		require.NoError(t, err, text)
		assert.Equal(t, "Bearer", r.token.TokenType)
	}
	for _, text := range []string{`"mac"`, `"basic"`, `7`, `"DPoP"`} {
		_, err := readAnswer(t, 200, nil, `{"access_token":"x","token_type":`+text+`}`, time.Now())
		require.ErrorContains(t, err, "token_type", text)
		assert.NotContains(t, err.Error(), text, "it is not quoted")
	}
}

func TestUnusableReplies(t *testing.T) {
	t.Parallel()
	for body, want := range map[string]string{
		``:                              "want a JSON object, got 0 bytes",
		`<html>Sign in</html>`:          "is a proxy in between?",
		`[]`:                            "want a JSON object",
		`null`:                          "no access_token",
		`{}`:                            "no access_token",
		`{"access_token":null}`:         "no access_token",
		`{"access_token":7}`:            "no access_token",
		`{"access_token":""}`:           "no access_token",
		`{"access_token":"a b"}`:        "visible ASCII",
		`{"access_token":"a\nb"}`:       "visible ASCII",
		`{"access_token":"a\u0000b"}`:   "visible ASCII",
		`{"access_token":"ä"}`:          "visible ASCII",
		`{"access_token":"` + "\xff\"}": "visible ASCII",
		`{"ACCESS_TOKEN":"a"}`:          "no access_token",
		`{"access_token":"a"} trailing`: "want a JSON object",
		`{"access_token":"a"`:           "want a JSON object",
		`{"x":` + strings.Repeat("[", 1e5) + strings.Repeat("]", 1e5) + `,"access_token":"a"}`: "want a JSON object",
	} {
		_, err := readAnswer(t, 200, http.Header{"X-Request-Id": {"0c7d4bd2"}}, body, time.Now())
		require.ErrorContains(t, err, want, body)
		require.ErrorContains(t, err, `moovauth: token request (client_credentials): unusable reply (request ID "0c7d4bd2"): answered 200: `)
		assert.Less(t, len(err.Error()), 500)
		assertFlags(t, err, true, false)
	}
}

func TestUnusableReplyIsATemporaryFailure(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Body: "<p>Sign in</p>"}, moovtest.Answer{Status: 204})
	token(t, noJitter(sourceOf(t, server)))
	assert.Len(t, server.TokenRequests(), 3)
}

func TestUnusualRepliesThatAreAccepted(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		"\xef\xbb\xbf" + `{"access_token":"a"}`,
		" \n" + `{"access_token":"a"}` + "\n",
		`{"access_token":"a","refresh_token":7,"scope":null,"more":{"x":[1]}}`,
		`{"access_token":"a","error":""}`,
		`{"access_token":"b","access_token":"a"}`,
		`{"access_token":"a"}` + strings.Repeat(" ", maxBody-len(`{"access_token":"a"}`)),
	} {
		server := onLoopback(t)
		server.Enqueue(moovtest.Answer{Status: 201, Body: body, Header: http.Header{"Content-Type": {"text/plain"}}})
		assert.Equal(t, "a", token(t, sourceOf(t, server)).AccessToken)
	}
}

func TestTokenOf64KiBIsAccepted(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	long := strings.Repeat("a", 64<<10)
	server.Enqueue(moovtest.Answer{Body: `{"access_token":"` + long + `"}`})
	assert.Equal(t, long, token(t, sourceOf(t, server)).AccessToken)
}

func TestReplyOfMoreThanAMebibyteIsUnusable(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	long := moovtest.Answer{Body: `{"access_token":"a"}` + strings.Repeat(" ", maxBody)}
	server.Enqueue(long, long, long)
	_, err := noJitter(sourceOf(t, server)).Token()
	require.ErrorContains(t, err, "larger than 1048576 bytes")
	assertFlags(t, err, true, false)
}

// Extra finds the same members as in a token of x/oauth2's own sources, except
// for the two tokens.
func TestExtraFindsWhatXOAuth2Finds(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	body := `{"access_token":"x","refresh_token":"r","token_type":"jwt","expires_in":"900","scope":"/ping.read","n":1.5,"list":["a",1],"account":{"id":"6f9c"},"yes":true,"none":null}`
	server.Enqueue(moovtest.Answer{Body: body}, moovtest.Answer{Body: body})
	ours := token(t, sourceOf(t, server))
	conf := clientcredentials.Config{ClientID: server.ClientID, ClientSecret: server.ClientSecret, TokenURL: server.URL + "/oauth2/token", AuthStyle: oauth2.AuthStyleInHeader}
	theirs, err := conf.Token(t.Context())
	require.NoError(t, err)
	for _, name := range []string{"token_type", "expires_in", "scope", "n", "list", "account", "yes", "none", "missing"} {
		assert.Equal(t, theirs.Extra(name), ours.Extra(name), name)
	}
	assert.Equal(t, []any{"a", 1.0}, ours.Extra("list"))
	assert.Nil(t, ours.Extra("access_token"))
	assert.Nil(t, ours.Extra("refresh_token"))
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	const date, noon = "Mon, 23 Nov 2026 09:00:30 GMT", "Mon, 23 Nov 2026 12:00:00 GMT"
	for _, c := range []struct {
		header http.Header
		want   time.Duration
	}{
		{http.Header{}, 0},
		{http.Header{"Retry-After": {"7"}}, 7 * time.Second},
		{http.Header{"Retry-After": {" 1.5 "}}, 1500 * time.Millisecond},
		{http.Header{"Retry-After": {"120, 120"}}, 2 * time.Minute},
		{http.Header{"Retry-After": {"30,120"}}, 2 * time.Minute},
		{http.Header{"Retry-After": {"120", "soon, 30"}}, 2 * time.Minute},
		{http.Header{"Retry-After": {"-3"}}, 0},
		{http.Header{"Retry-After": {"soon"}}, 0},
		{http.Header{"Retry-After": {"NaN"}}, 0},
		{http.Header{"Retry-After": {"99999999999999999999"}}, 1 << 62},
		{http.Header{"Retry-After": {date}}, 30 * time.Second},
		{http.Header{"Retry-After": {"10", date}}, 30 * time.Second},
		{http.Header{"Retry-After": {"Mon, 23 Nov 2026 08:00:00 GMT"}}, 0},
		{http.Header{"Retry-After": {"Mon, 23 Nov 2026 12:00:30 GMT"}, "Date": {noon}}, 30 * time.Second},
		{http.Header{"X-Retry-In": {"1500"}}, 1500 * time.Millisecond},
		{http.Header{"X-Retry-In": {"1500ms"}}, 1500 * time.Millisecond},
		{http.Header{"X-Retry-In": {"1s, 2s", "1500"}}, 2 * time.Second},
		{http.Header{"X-Retry-In": {"later"}}, 0},
		{http.Header{"X-Retry-In": {"-2s"}}, 0},
		{http.Header{"Retry-After": {"3"}, "X-Retry-In": {"9s"}}, 9 * time.Second},
	} {
		assert.Equal(t, c.want, retryAfter(c.header, now), c.header)
	}
	_, err := readAnswer(t, 403, http.Header{"Retry-After": {"7"}}, "", now)
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, 7*time.Second, refused.RetryAfter)
	assert.ErrorContains(t, err, "; retry after 7s")
}

// Whatever a server answers, the result is a usable token that lives between a
// second and 30 days, or an error of one short line.
func FuzzTokenReply(f *testing.F) {
	for _, body := range []string{
		`{"access_token":"a","refresh_token":"r","token_type":"Bearer","expires_in":1795446000,"scope":"/ping.read"}`,
		`{"access_token":"a","expires_in":"900"}`, `{"access_token":"a","expires_in":1e308}`, `{"expires_in":-1}`,
		`{"access_token":"a","access_token":"b"}`, "\xef\xbb\xbf{}", `[[[[`, `{"access_token":"\ud800"}`, `<p>`, `{"error":"x"}`,
	} {
		f.Add(body, "Mon, 23 Nov 2026 09:00:00 GMT")
		f.Add(body, "")
	}
	f.Fuzz(func(t *testing.T, body, date string) {
		r, err := readAnswer(t, 200, http.Header{"Date": {date}}, body, time.Unix(1795424400, 0))
		if err != nil {
			require.Nil(t, r)
			require.NotContains(t, err.Error(), "\n")
			require.LessOrEqual(t, len(err.Error()), 2<<10)
			return
		}
		require.True(t, headerSafe(r.token.AccessToken))
		require.Equal(t, "Bearer", r.token.TokenType)
		require.GreaterOrEqual(t, r.lifetime, time.Second)
		require.LessOrEqual(t, r.lifetime, maxLifetime)
		_, err = json.Marshal(r.token)
		require.NoError(t, err)
	})
}

func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"7", "1e300", "-1", "NaN", "Mon, 23 Nov 2026 12:00:30 GMT", "1h", "0x10", "Inf", "30, 120", "2562048h"} {
		f.Add(v, v, "Mon, 23 Nov 2026 12:00:00 GMT")
	}
	f.Fuzz(func(t *testing.T, after, in, date string) {
		header := http.Header{"Retry-After": {after, in}, "X-Retry-In": {in}, "Date": {date}}
		wait := retryAfter(header, time.Unix(1795424400, 0))
		require.GreaterOrEqual(t, wait, time.Duration(0))
		require.LessOrEqual(t, spread(wait, 1), maxAsked*5/4)
		require.GreaterOrEqual(t, wait, retryAfter(http.Header{"Retry-After": {after}, "Date": {date}}, time.Unix(1795424400, 0)), "the largest counts")
	})
}

// Whatever a server answers, the error is one short line without any known
// secret.
func FuzzErrorReply(f *testing.F) {
	secret := testCredentials.ClientSecret
	for _, body := range []string{
		`{"error":"invalid_client"}`, `{"error":{"s3cr3t-key":1},"scope":["s3cr3t-key"]}`, `{"s3cr3t-key":"\u00733cr3t-key"}`,
		"<html>s3cr3t-key\n", "s3cr3t-s3cr3t-keykey", "\xff", `{"error":"a\nb"}`, `{"error":null,"error_description":7}`,
	} {
		f.Add(uint16(422), body, "id")
		f.Add(uint16(503), body, secret)
		f.Add(uint16(200), body, secret)
	}
	f.Fuzz(func(t *testing.T, status uint16, body, id string) {
		_, err := readAnswer(t, int(status), http.Header{"X-Request-Id": {id}, "Retry-After": {id}}, body, time.Now())
		if err == nil {
			return
		}
		require.NotContains(t, err.Error(), "\n")
		require.LessOrEqual(t, len(err.Error()), 2<<10)
		require.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err), secret)
		var retrieve *oauth2.RetrieveError
		if errors.As(err, &retrieve) {
			require.NotContains(t, fmt.Sprintf("%s %s %+v %+v", retrieve, retrieve.Body, *retrieve, *retrieve.Response), secret)
		}
	})
}
