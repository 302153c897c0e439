package moovauth

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/guard"
	"github.com/moovauth/moovauth/internal/redact"
	"github.com/moovauth/moovauth/moovtest"
)

func setWith(secrets ...string) *redact.Set {
	set := new(redact.Set)
	set.Pin(secrets...)
	return set
}

func TestErrorOfARefusedClient(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{
		Status: 400,
		Header: http.Header{"X-Request-Id": {"0c7d4bd2"}, "Content-Type": {"application/json"}},
		Body:   `{"error":"invalid_client","error_description":"no such key","error_uri":"https://docs.moov.io"}`,
	}, WithOrigin("https://example.com"))

	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "token", refused.Op)
	assert.Equal(t, "client_credentials", refused.GrantType)
	assert.Equal(t, 400, refused.StatusCode)
	assert.Equal(t, "invalid_client", refused.Code)
	assert.Equal(t, "no such key", refused.Description)
	assert.Equal(t, "0c7d4bd2", refused.RequestID)
	assert.Empty(t, refused.Fields)
	assert.False(t, refused.Temporary())
	assert.Equal(t, `moovauth: token request (client_credentials) answered 400 Bad Request "invalid_client" "no such key" (request ID "0c7d4bd2"): check Credentials against the API key in Moov's dashboard, and check the credentials' environment: production or test`, err.Error())

	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, err, &retrieve)
	assert.Equal(t, "invalid_client", retrieve.ErrorCode)
	assert.Equal(t, "no such key", retrieve.ErrorDescription)
	assert.Equal(t, "https://docs.moov.io", retrieve.ErrorURI)
	assert.Equal(t, 400, retrieve.Response.StatusCode)
	assert.Equal(t, "application/json", retrieve.Response.Header.Get("Content-Type"))
	assert.Equal(t, "/oauth2/token", retrieve.Response.Request.URL.Path)
	assert.Empty(t, retrieve.Response.Request.Header.Get("Authorization"))
	assert.Contains(t, string(retrieve.Body), "invalid_client")
	assert.Empty(t, readAll(t, retrieve.Response), "it can be read like any other")
}

func TestErrorOfRefusedFields(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{Status: 422, Body: `{"scope":"unknown scope","refresh_token":["a","b"],"error":"invalid"}`})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, map[string]string{"scope": "unknown scope", "refresh_token": `["a","b"]`}, refused.Fields)
	assert.Contains(t, err.Error(), `"invalid" "refresh_token":"[\"a\",\"b\"]" "scope":"unknown scope"`)
}

// Each refusal says what to change, and names nothing that cannot have caused it.
func TestAdvice(t *testing.T) {
	t.Parallel()
	const (
		origin = "WithOrigin"
		base   = "WithBaseURL"
		creds  = "Credentials"
		scopes = "WithScopes"
		given  = "WithToken "
	)
	asked := []string{"/ping.read", "/accounts/6f9c/transfers.write"}
	for name, c := range map[string]struct {
		op, grantType string
		status        int
		body          string
		scopes        []string
		origin        bool
		want          []string
	}{
		"400":                        {opToken, grantClientCredentials, 400, `{"error":"nope"}`, asked, false, []string{origin}},
		"403":                        {opToken, grantClientCredentials, 403, "", asked, false, []string{origin}},
		"403 to a refresh":           {opToken, grantRefreshToken, 403, "", nil, false, []string{origin}},
		"403, with an Origin":        {opToken, grantClientCredentials, 403, "", asked, true, nil},
		"400, with an Origin":        {opToken, grantClientCredentials, 400, "", asked, true, nil},
		"401":                        {opToken, grantClientCredentials, 401, "", asked, false, []string{creds}},
		"invalid_client":             {opToken, grantClientCredentials, 400, `{"error":"invalid_client"}`, asked, false, []string{creds}},
		"401 to a revocation":        {opRevoke, "", 401, "", nil, false, []string{creds}},
		"400 to a revocation":        {opRevoke, "", 400, "", nil, false, nil},
		"404":                        {opToken, grantClientCredentials, 404, "", asked, false, []string{base, "/oauth2/token"}},
		"405":                        {opToken, grantRefreshToken, 405, "", nil, true, []string{base, "/oauth2/token"}},
		"404 to a revocation":        {opRevoke, "", 404, "", nil, false, []string{base, "/oauth2/revoke"}},
		"302":                        {opToken, grantClientCredentials, 302, "", asked, false, []string{base}},
		"422, scope":                 {opToken, grantClientCredentials, 422, `{"scope":"unknown"}`, asked, false, []string{scopes, "(refused: scope)", asked[0], asked[1]}},
		"422, no field":              {opToken, grantClientCredentials, 422, ``, asked, true, []string{scopes, asked[0]}},
		"422, other field":           {opToken, grantClientCredentials, 422, `{"grant_type":"x","audience":"y"}`, asked, true, []string{scopes, "audience, grant_type"}},
		"invalid_scope":              {opToken, grantClientCredentials, 400, `{"error":"invalid_scope"}`, asked, false, []string{scopes, asked[1]}},
		"422 to a refresh, scope":    {opToken, grantRefreshToken, 422, `{"scope":"unknown"}`, nil, false, []string{given, "(refused: scope)"}},
		"422 to a refresh, token":    {opToken, grantRefreshToken, 422, `{"refresh_token":"is unknown"}`, nil, false, []string{given, scopes}},
		"invalid_grant, alone":       {opToken, grantRefreshToken, 400, `{"error":"invalid_grant"}`, nil, false, []string{given, scopes}},
		"invalid_grant, 401":         {opToken, grantRefreshToken, 401, `{"error":"invalid_grant"}`, nil, false, []string{given, scopes}},
		"invalid_grant, with scopes": {opToken, grantRefreshToken, 400, `{"error":"invalid_grant"}`, asked, false, nil},
		"invalid_grant, no refresh":  {opToken, grantClientCredentials, 400, `{"error":"invalid_grant"}`, asked, false, nil},
		"422 to a revocation, hint":  {opRevoke, "", 422, `{"token_type_hint":"unknown"}`, nil, false, []string{"WithTokenTypeHint", "(refused: token_type_hint)"}},
		"429":                        {opToken, grantClientCredentials, 429, "", asked, false, nil},
		"408":                        {opToken, grantClientCredentials, 408, "", asked, false, nil},
		"503":                        {opToken, grantClientCredentials, 503, `{"error":"invalid_client"}`, asked, false, nil},
		"200 with an error":          {opToken, grantClientCredentials, 200, `{"error":"invalid_scope"}`, asked, false, []string{scopes}},
	} {
		t.Run(name, func(t *testing.T) {
			e := newError(c.op, c.grantType, &http.Response{StatusCode: c.status}, []byte(c.body), nil)
			plain := e.Error()
			e.advise(c.scopes, c.origin)
			for _, want := range c.want {
				assert.Contains(t, e.advice, want)
			}
			if c.want == nil {
				assert.Empty(t, e.advice)
				assert.Equal(t, plain, e.Error())
			} else {
				assert.Equal(t, plain+": "+e.advice, e.Error())
			}
			for _, other := range []string{origin, base, creds, scopes, given} {
				if !slices.Contains(c.want, other) {
					assert.NotContains(t, e.advice, other)
				}
			}
		})
	}
}

func TestAdviceIsShortHoweverManyScopesThereAre(t *testing.T) {
	t.Parallel()
	e := newError(opToken, grantClientCredentials, &http.Response{StatusCode: 422}, []byte(`{"scope":"x"}`), nil)
	e.advise(slices.Repeat([]string{"/accounts/6f9c2d1e-8f3b-4a39-9a5e-1c2d3e4f5a6b/transfers.write"}, 1000), true)
	assert.Less(t, len(e.Error()), 1000)
	assert.Contains(t, e.Error(), "WithScopes")
}

func TestErrorReachesTheCallerWithItsAdvice(t *testing.T) {
	t.Parallel()
	assert.ErrorContains(t, refusal(t, moovtest.Answer{Status: 403}), "WithOrigin")
	assert.NotContains(t, refusal(t, moovtest.Answer{Status: 403}, WithOrigin("https://example.com")).Error(), "WithOrigin")
	assert.ErrorContains(t, refusal(t, moovtest.Answer{Status: 422, Body: `{"scope":"x"}`}), "asked for were "+pingScope)
	assert.ErrorContains(t, refusal(t, moovtest.Answer{Status: 404}), "WithBaseURL")
}

func TestServerThatWantsAnOrigin(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithOrigins("https://example.com"))
	_, err := sourceOf(t, server).Token()
	assert.ErrorContains(t, err, "WithOrigin")
	token(t, sourceOf(t, server, WithOrigin("https://example.com")))
}

func TestErrorIn200(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{Body: `{"error":"invalid_scope"}`})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "invalid_scope", refused.Code)
}

func TestErrorOfAProxysPageIsOneShortLine(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{Status: 502, Body: "<html>\n<h1>Bad gateway</h1>" + strings.Repeat("x", 10_000)})
	assert.Contains(t, err.Error(), "Bad gateway")
	assert.NotContains(t, err.Error(), "\n")
	assert.Less(t, len(err.Error()), 400)
}

func TestTemporary(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{400: false, 401: false, 404: false, 408: true, 422: false, 429: true, 500: true, 503: true, 504: true, 302: false} {
		assert.Equal(t, want, (&Error{StatusCode: status}).Temporary(), status)
	}
}

func TestErrorMadeByHandPrints(t *testing.T) {
	t.Parallel()
	e := &Error{Op: "revoke", StatusCode: 599, RetryAfter: 7 * time.Second}
	assert.Equal(t, "moovauth: revoke request answered 599; retry after 7s", e.Error())
	assert.Nil(t, errors.Unwrap(e))
}

func TestRetryAfter(t *testing.T) {
	t.Parallel()
	now := time.Date(2026, 11, 23, 9, 0, 0, 0, time.UTC)
	for _, c := range []struct {
		header http.Header
		want   time.Duration
	}{
		{http.Header{}, 0},
		{http.Header{"Retry-After": {"7"}}, 7 * time.Second},
		{http.Header{"Retry-After": {" 1.5 "}}, 1500 * time.Millisecond},
		{http.Header{"Retry-After": {"-3"}}, 0},
		{http.Header{"Retry-After": {"soon"}}, 0},
		{http.Header{"Retry-After": {"NaN"}}, 0},
		{http.Header{"Retry-After": {"99999999999999999999"}}, math.MaxInt64 - 1023},
		{http.Header{"Retry-After": {"Mon, 23 Nov 2026 09:00:30 GMT"}}, 30 * time.Second},
		{http.Header{"Retry-After": {"Mon, 23 Nov 2026 08:00:00 GMT"}}, 0},
		{http.Header{"Retry-After": {"Mon, 23 Nov 2026 12:00:30 GMT"}, "Date": {"Mon, 23 Nov 2026 12:00:00 GMT"}}, 30 * time.Second},
		{http.Header{"X-Retry-In": {"1500"}}, 1500 * time.Millisecond},
		{http.Header{"X-Retry-In": {"1500ms"}}, 1500 * time.Millisecond},
		{http.Header{"X-Retry-In": {"2s"}}, 2 * time.Second},
		{http.Header{"X-Retry-In": {"later"}}, 0},
		{http.Header{"X-Retry-In": {"-2s"}}, 0},
		{http.Header{"Retry-After": {"3"}, "X-Retry-In": {"9s"}}, 3 * time.Second},
	} {
		assert.Equal(t, c.want, retryAfter(c.header, now), c.header)
	}
	var refused *Error
	require.ErrorAs(t, refusal(t, moovtest.Answer{Status: 403, Header: http.Header{"Retry-After": {"7"}}}), &refused)
	assert.Equal(t, 7*time.Second, refused.RetryAfter)
}

func FuzzRetryAfter(f *testing.F) {
	for _, v := range []string{"7", "1e300", "-1", "NaN", "Mon, 23 Nov 2026 12:00:30 GMT", "1h", "0x10", "Inf"} {
		f.Add(v, v, "Mon, 23 Nov 2026 12:00:00 GMT")
	}
	f.Fuzz(func(t *testing.T, after, in, date string) {
		now := time.Unix(1795424400, 0)
		require.GreaterOrEqual(t, retryAfter(http.Header{"Retry-After": {after}, "Date": {date}}, now), time.Duration(0))
		require.GreaterOrEqual(t, retryAfter(http.Header{"X-Retry-In": {in}}, now), time.Duration(0))
	})
}

// Whatever a server answers: the error is one short line, and what is known to
// be secret is not in it.
func FuzzErrorReply(f *testing.F) {
	const secret = "s3cr3t-key"
	for _, body := range []string{
		`{"error":"invalid_client"}`, `{"error":{"s3cr3t-key":1},"scope":["s3cr3t-key"]}`, `{"s3cr3t-key":"\u00733cr3t-key"}`,
		"<html>s3cr3t-key\n", "s3cr3t-s3cr3t-keykey", "\xff", `{"error":"a\nb"}`,
	} {
		f.Add(422, body, "id")
		f.Add(503, body, "s3cr3t-key")
	}
	f.Fuzz(func(t *testing.T, status int, body, id string) {
		resp := &http.Response{StatusCode: status, Header: http.Header{"X-Request-Id": {id}, "Retry-After": {id}}}
		err := newError(opToken, grantClientCredentials, resp, []byte(body), setWith(secret))
		for _, text := range []string{err.Error(), fmt.Sprintf("%+v %v", *err, err.retrieve), string(err.retrieve.Body)} {
			require.NotContains(t, text, secret)
		}
		require.NotContains(t, err.Error(), "\n")
	})
}

func TestSecretsAreMaskedInWhatAServerEchoes(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	echo := server.ClientSecret + " " + base64.StdEncoding.EncodeToString([]byte(server.ClientID+":"+server.ClientSecret))
	server.Enqueue(moovtest.Answer{
		Status: 422,
		Header: http.Header{"X-Request-Id": {echo}, "Set-Cookie": {echo}},
		Body:   fmt.Sprintf(`{"error":%q,"error_description":%q,"scope":%[1]q}`, echo, echo),
	})
	_, err := sourceOf(t, server).Token()
	var refused *Error
	require.ErrorAs(t, err, &refused)
	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, err, &retrieve)
	for _, text := range []string{err.Error(), fmt.Sprintf("%+v %#v", refused, *refused), retrieve.Error(), string(retrieve.Body), fmt.Sprint(retrieve.Response.Header)} {
		for secret := range strings.FieldsSeq(echo) {
			assert.NotContains(t, text, secret)
		}
	}
}

func TestTokenThatComesWithARefusalIsMasked(t *testing.T) {
	t.Parallel()
	for _, body := range []string{
		`{"access_token":"n3w-t0ken","refresh_token" : "n3w-t0ken"}`, `{"access_token": "n3w-t0ken`, `access_token=n3w-t0ken&x=1`,
	} {
		err := refusal(t, moovtest.Answer{Status: 500, Body: body})
		assert.NotContains(t, err.Error(), "n3w-t0ken")
		assert.ErrorContains(t, err, masked)
		var retrieve *oauth2.RetrieveError
		require.ErrorAs(t, err, &retrieve)
		assert.NotContains(t, string(retrieve.Body), "n3w-t0ken")
	}
	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, refusal(t, moovtest.Answer{Status: 422, Body: `{"refresh_token":"is required"}`}), &retrieve)
	assert.Contains(t, string(retrieve.Body), "is required", "a field is no token")
}

func TestTransportErrorNamesTheURLAndTheGrant(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := hurried(sourceOf(t, server))
	server.Close()
	_, err := s.Token()
	assert.ErrorContains(t, err, "moovauth: token request (client_credentials) to "+server.URL+"/oauth2/token: dial tcp")
	assert.ErrorContains(t, s.endpoint.revoke(t.Context(), "x", "", newBudget(time.Minute)), "moovauth: revoke request to "+server.URL+"/oauth2/revoke: dial tcp")
}

func TestFieldsAreNotSaidTwice(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{Status: 422, Body: `{"scope":"is-unknown"}`})
	assert.Equal(t, 1, strings.Count(err.Error(), "is-unknown"))
}

func TestErrorMadeByHandWrapsNothing(t *testing.T) {
	t.Parallel()
	assert.NoError(t, errors.Unwrap(&Error{}))
	var re *oauth2.RetrieveError
	assert.False(t, errors.As(&Error{}, &re))
}

func TestNoAdviceAfterATemporaryRefusal(t *testing.T) {
	t.Parallel()
	for _, status := range []int{408, 429, 500} {
		assert.NotContains(t, refusal(t, moovtest.Answer{Status: status, Header: retryAfterHeader("3600")}).Error(), "Origin")
	}
}

// What a hostile server sends costs little, and little of it is kept.
func TestErrorIsBounded(t *testing.T) {
	fields := make(map[string]string)
	for i := range 10_000 {
		fields[fmt.Sprintf("field-%05d", i)] = strings.Repeat("long ", 20)
	}
	many, _ := json.Marshal(fields)
	long := strings.Repeat("\x00é", 1<<19)
	header := http.Header{"X-Request-Id": {long, long}, "Content-Type": {long}, "Www-Authenticate": {long}, "Location": {long}}
	for i := range 10_000 {
		header[fmt.Sprintf("X-Header-%d", i)] = []string{strings.Repeat("v", 900)}
	}
	for name, c := range map[string]struct {
		status int
		body   string
	}{
		"many fields":      {422, string(many)},
		"one long field":   {422, `{"` + long + `":"` + long + `"}`},
		"long description": {400, `{"error":"` + strings.Repeat("e", 3000) + `","error_description":"` + strings.Repeat("é", 700) + `","error_uri":"` + strings.Repeat("u", 300) + `"}`},
		"page":             {502, long},
		"deep":             {422, strings.Repeat(`{"a":`, 1<<18)},
		"spelled out":      {403, strings.Repeat(`&#x3d;\u0041%2541QUJDREVGR0hJSktMTU5PUA==`, 1<<15)},
	} {
		t.Run(name, func(t *testing.T) {
			hide := setWith("s3cr3t-key")
			resp := &http.Response{StatusCode: c.status, Status: long, Header: header, Request: &http.Request{Method: "POST", URL: &url.URL{Path: long}, Header: header}}
			body := []byte(c.body)
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			e := newError(opToken, grantClientCredentials, resp, body, hide)
			runtime.ReadMemStats(&after)
			assert.Less(t, after.TotalAlloc-before.TotalAlloc, uint64(2<<20))
			e.advise([]string{pingScope}, false)
			assert.LessOrEqual(t, len(e.Error()), 2<<10)
			assert.LessOrEqual(t, len(e.Fields), 16)
			for name, value := range e.Fields {
				assert.LessOrEqual(t, max(len(name), len(value)), 256)
			}
			assert.LessOrEqual(t, max(len(e.Code), len(e.Description), len(e.RequestID), len(e.retrieve.ErrorURI)), 256)
			assert.LessOrEqual(t, len(e.retrieve.Body), 2<<10)
			assert.LessOrEqual(t, len(e.retrieve.Response.Header), 12)
			assert.LessOrEqual(t, len(fmt.Sprint(e.retrieve.Response.Header, e.retrieve.Response.Status)), 12*300)
			assert.LessOrEqual(t, len(e.retrieve.Response.Request.URL.Path), 256)
			assert.Zero(t, testing.AllocsPerRun(10, func() { _ = e.Error() }), "its text is made once")
		})
	}
}

func TestErrorMadeByHandIsBounded(t *testing.T) {
	t.Parallel()
	e := &Error{Op: opToken, StatusCode: 422, Fields: map[string]string{}, RequestID: strings.Repeat("\x00", 1<<20)}
	for i := range 10_000 {
		e.Fields[strconv.Itoa(i)] = strings.Repeat("\x00", 1000)
	}
	assert.LessOrEqual(t, len(e.Error()), 2<<10)
}

func TestErrorKeepsOnlyWhatIsUsefulOfTheReply(t *testing.T) {
	t.Parallel()
	resp := &http.Response{
		Status: "400 Bad Request", StatusCode: 400, Proto: "HTTP/1.1",
		Header:  http.Header{"X-Request-Id": {"0c7d4bd2"}, "Set-Cookie": {"a=b"}, "Date": {"today"}},
		Trailer: http.Header{"X-Trailer": {"x"}},
		TLS:     &tls.ConnectionState{},
		Request: httptest.NewRequest(http.MethodPost, "https://me:pw@api.moov.io/oauth2/token?x=y#z", strings.NewReader("body")),
	}
	for _, name := range []string{"Authorization", "authorization", "Cookie", "Proxy-Authorization", "X-Other"} {
		resp.Request.Header[name] = []string{"s3cr3t"}
	}
	resp.Request.Header.Set("Origin", "https://example.com")
	shown := newError(opToken, grantClientCredentials, resp, nil, nil).retrieve.Response
	assert.Equal(t, http.Header{"X-Request-Id": {"0c7d4bd2"}, "Date": {"today"}}, shown.Header)
	assert.Equal(t, http.Header{"Origin": {"https://example.com"}}, shown.Request.Header)
	assert.Equal(t, "https://api.moov.io/oauth2/token", shown.Request.URL.String())
	assert.Nil(t, shown.Trailer)
	assert.Nil(t, shown.TLS)
	assert.Nil(t, shown.Request.Body)
	assert.Equal(t, http.NoBody, shown.Body)
	assert.Equal(t, "HTTP/1.1", shown.Proto)
	assert.NotPanics(t, func() { _ = newError(opToken, "", &http.Response{Request: &http.Request{}}, nil, nil).Error() })
}

func TestMembersOfAReplyThatIsCutOff(t *testing.T) {
	t.Parallel()
	e := newError(opToken, "", &http.Response{StatusCode: 422}, []byte("\xef\xbb\xbf"+`{"error":"e","scope":"unknown","error_description":"d","fee`), nil)
	assert.Equal(t, "e", e.Code)
	assert.Equal(t, "d", e.Description)
	assert.Equal(t, map[string]string{"scope": "unknown"}, e.Fields)
}

// unusable is the error of a 200 that brought no token.
func unusable(body string, header http.Header, why string, hide *redact.Set) error {
	resp := &http.Response{Status: "200 OK", StatusCode: 200, Header: header}
	return unusableReply(grantClientCredentials, resp, []byte(body), errors.New(why), hide)
}

func TestPageWith200IsQuoted(t *testing.T) {
	t.Parallel()
	page := "<!doctype html>\n<title>Sign in to the hotel's network</title>" + strings.Repeat("é", 1000)
	err := unusable(page, http.Header{"Content-Type": {"text/html"}, "X-Request-Id": {"0c7d"}}, "want a JSON object", nil)
	assert.Equal(t, `moovauth: reply to the token request (client_credentials, 200 OK, request ID "0c7d") is unusable: want a JSON object; it starts with `+
		strconv.Quote(string([]rune(page)[:200])), err.Error())
	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, err, &retrieve)
	assert.Contains(t, string(retrieve.Body), "hotel")
	assert.LessOrEqual(t, len(retrieve.Body), 2<<10)
	assert.Equal(t, 200, retrieve.Response.StatusCode)
	assertFlags(t, err, true, false)
	assert.NotContains(t, unusable("<p>"+"s3cr3t&#45;key", nil, "x", setWith("s3cr3t-key")).Error(), "key")
}

func TestCompressedReplyNamesContentEncoding(t *testing.T) {
	t.Parallel()
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, _ = w.Write([]byte(`{"access_token":"x"}`))
	w.Close()
	for name, c := range map[string]struct {
		body   string
		header http.Header
		want   string
	}{
		"gzip":               {b.String(), http.Header{"Content-Encoding": {"gzip"}}, "Content-Encoding: gzip"},
		"gzip, not declared": {b.String(), nil, "Content-Encoding: gzip"},
		"brotli":             {"\x8b\x0a\x80", http.Header{"Content-Encoding": {"br"}}, "Content-Encoding: br"},
		"zstd":               {"\x28\xb5\x2f\xfd\x04", nil, "Content-Encoding: zstd"},
	} {
		err := unusable(c.body, c.header, "invalid character", nil)
		require.ErrorContains(t, err, c.want, name)
		require.ErrorContains(t, err, "WithHTTPClient", name)
		assert.NotContains(t, err.Error(), "invalid character", name)
		require.ErrorAs(t, err, new(*oauth2.RetrieveError), name)
		refused := newError(opToken, "", &http.Response{StatusCode: 403, Header: c.header}, []byte(c.body), nil)
		require.ErrorContains(t, refused, c.want, name)
	}
	assert.NotContains(t, unusable("<p>text</p>", http.Header{"Content-Encoding": {"identity"}}, "x", nil).Error(), "Content-Encoding")
	assert.NotContains(t, unusable(`{"a":1}`, http.Header{"Content-Encoding": {"gzip"}}, "x", nil).Error(), "Content-Encoding")
}

// A reply without a usable token may hold one in another place.
func TestTokenInAnUnusableReplyIsNotQuoted(t *testing.T) {
	t.Parallel()
	const fresh = "a-fresh-token-4711"
	for _, body := range []string{
		`{"access_token":"` + fresh + `","token_type":"Bearer ` + fresh + `"}`, `{"token_type":"Bearer ` + fresh + `"}`,
		`{"token":"` + fresh + `"}`, ` {"token":"` + fresh, fresh, `"` + fresh + `"`, "access_token=" + fresh + "&x=1", "access_token: " + fresh + "\ntype: x",
		`[{"access_token": "` + fresh + `"}]`, `<token access_token="` + fresh + `"/>`,
	} {
		resp := &http.Response{Status: "200 OK", StatusCode: 200, Header: http.Header{"X-Request-Id": {"id"}}}
		err := unusableReply(grantClientCredentials, resp, []byte(body), errors.New("why"), nil)
		out := new(page)
		out.print(err)
		assert.NotContains(t, out.text.String(), fresh[:8], body)
		assert.ErrorContains(t, err, "why")
	}
	hide := new(redact.Set)
	resp := &http.Response{Status: "200 OK", StatusCode: 200, Header: http.Header{"X-Request-Id": {fresh}}}
	assert.NotContains(t, unusableReply("", resp, []byte(`{"access_token":"`+fresh+`"}`), errors.New(fresh), hide).Error(), fresh)
	for tokenType, want := range map[string]string{"MAC": `"mac"`, "DPoP": `"dpop"`, "Bearer " + fresh: "(25 bytes)", fresh: "(18 bytes)"} {
		assert.Equal(t, want, shownType(tokenType))
	}
}

// assertFlags checks what errors.As finds, and what url.Error looks for.
func assertFlags(t *testing.T, err error, temporary, timeout bool) {
	t.Helper()
	var flags interface {
		Temporary() bool
		Timeout() bool
	}
	require.ErrorAs(t, err, &flags)
	assert.Equal(t, temporary, flags.Temporary(), "Temporary of %v", err)
	assert.Equal(t, timeout, flags.Timeout(), "Timeout of %v", err)
	assert.Equal(t, timeout, (&url.Error{Op: "Get", Err: err}).Timeout(), "Timeout of an url.Error")
}

func TestEveryFailureSaysWhetherItIsTemporaryOrATimeout(t *testing.T) {
	t.Parallel()
	expired, cancel := context.WithTimeoutCause(t.Context(), 0, fmt.Errorf("not done: %w", context.DeadlineExceeded))
	defer cancel()
	refused := &Error{Op: opToken, StatusCode: 403}
	busy := &Error{Op: opToken, StatusCode: 503}
	panicked := func() error {
		_, err := guard.Call(t.Context(), guard.Code{Name: "Cache"}, func() (int, error) { panic("x") }, nil)
		return err
	}
	hide := setWith("s3cr3t-key")
	for name, c := range map[string]struct {
		err                error
		temporary, timeout bool
	}{
		"no connection":                   {&net.OpError{Op: "dial", Err: errors.New("refused")}, true, false},
		"caller's deadline":               {context.DeadlineExceeded, true, true},
		"our deadline":                    {context.Cause(expired), true, true},
		"deadline of a connection":        {os.ErrDeadlineExceeded, true, true},
		"timeout of the network":          {fmt.Errorf("x: %w", &net.DNSError{IsTimeout: true}), true, true},
		"masked timeout of the network":   {hide.Error("x", &net.DNSError{Name: "s3cr3t-key", IsTimeout: true}), true, true},
		"masked deadline":                 {hide.Error("x", fmt.Errorf("s3cr3t-key: %w", context.DeadlineExceeded)), true, true},
		"cancelled":                       {fmt.Errorf("gave up: %w", context.Canceled), false, false},
		"cancelled by a deadline":         {fmt.Errorf("%w: %w", context.Canceled, context.DeadlineExceeded), true, true},
		"panic":                           {panicked(), false, false},
		"refusal":                         {refused, false, false},
		"refusal, after three attempts":   {fmt.Errorf("%w (after 3 attempts)", busy), true, false},
		"refusal, wrapped":                {fmt.Errorf("%w (so)", refused), false, false},
		"temporary refusal":               {busy, true, false},
		"busy, until the deadline":        {fmt.Errorf("%w (not tried again: %w)", busy, context.DeadlineExceeded), true, true},
		"no way to a token":               {permanent("moovauth: no scopes"), false, false},
		"no way to a token, wrapped":      {fmt.Errorf("x: %w", permanent("moovauth: no scopes")), false, false},
		"cool-down after a refusal":       {&CoolDownError{Err: refused}, false, false},
		"cool-down after an outage":       {&CoolDownError{Err: failure("", errors.New("no connection"))}, true, false},
		"cool-down after a timeout":       {&CoolDownError{Err: failure("", context.DeadlineExceeded)}, true, false},
		"cool-down after a timeout, so":   {fmt.Errorf("so: %w", &CoolDownError{Err: failure("", context.DeadlineExceeded)}), true, false},
		"cool-down after a cancelled one": {&CoolDownError{Err: context.Canceled}, false, false},
		"cool-down made by hand":          {&CoolDownError{}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			assertFlags(t, failure("", c.err), c.temporary, c.timeout)
			err := failure("moovauth: asking", c.err)
			assertFlags(t, err, c.temporary, c.timeout)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, "moovauth: asking: "+c.err.Error(), err.Error())
			assertFlags(t, failure("", err), c.temporary, c.timeout)
			assert.Equal(t, c.temporary, temporary(err))
		})
	}
	assert.Same(t, refused, failure("", refused))
	assert.LessOrEqual(t, len(failure("x", errors.New(strings.Repeat("x", 1<<20))).Error()), 2<<10)
}

func TestCoolDownErrorSaysWhenTheNextAttemptIsDue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		refused := newError(opToken, grantClientCredentials, &http.Response{StatusCode: 403}, []byte(strings.Repeat("x ", 1<<19)), nil)
		err := error(&CoolDownError{Until: time.Now().Add(1500 * time.Millisecond), Err: refused})
		require.EqualError(t, err, refused.Error()+"; no request is made before the next attempt, which is due in 1.5s")
		assert.Same(t, refused, errors.Unwrap(err))
		require.ErrorAs(t, err, new(*oauth2.RetrieveError))
		time.Sleep(2 * time.Second)
		assert.ErrorContains(t, err, "due in 0s")
		assert.Less(t, testing.AllocsPerRun(10, func() { _ = err.Error() }), 10.0)
		long := &CoolDownError{Err: errors.New(strings.Repeat("é", 1<<20))}
		assert.LessOrEqual(t, len(long.Error()), 2<<10)
		assert.Contains(t, (&CoolDownError{}).Error(), "due in 0s")
	})
}

func BenchmarkRefusal(b *testing.B) {
	hide := setWith("s3cr3t-key")
	for i := range 64 {
		hide.Add(fmt.Sprintf("%04d", i) + strings.Repeat(fmt.Sprintf("eyJ%03dhbGciOiJI", i*37), 60))
	}
	hostile := strings.Repeat(`&#x3d;\u0041%2541QUJDREVGR0hJSktMTU5PUA==`, 1<<15)
	for name, body := range map[string]string{
		"usual":   `{"error":"invalid_client","error_description":"no such key"}`,
		"hostile": `{"scope":"` + hostile + `"}`,
		"fields":  `{"` + strings.Repeat(`x":"`+hostile[:100]+`","`, 50) + `"}`,
	} {
		b.Run(name, func(b *testing.B) {
			resp := &http.Response{StatusCode: 422, Header: http.Header{"X-Request-Id": {"0c7d4bd2-5d9f-4c1e-8f3b-4a399a5e1c2d"}, "Date": {"today"}, "Content-Type": {"application/json"}}}
			text := []byte(body)
			for b.Loop() {
				newError(opToken, grantClientCredentials, resp, text, hide)
			}
		})
	}
}
