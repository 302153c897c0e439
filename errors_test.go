package moovauth

import (
	"encoding/base64"
	"errors"
	"fmt"
	"math"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
	"github.com/moovauth/moovauth/moovtest"
)

func setWith(secrets ...string) *redact.Set {
	set := new(redact.Set)
	set.Pin(secrets...)
	return set
}

// refusal is the error of a first token where each request is answered so.
func refusal(t *testing.T, answer moovtest.Answer, opts ...Option) error {
	t.Helper()
	server := onLoopback(t)
	server.Enqueue(answer, answer, answer)
	_, err := sourceOf(t, server, opts...).Token()
	require.Error(t, err)
	return err
}

func TestErrorOfARefusedClient(t *testing.T) {
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
	assert.Equal(t, `moovauth: token request (client_credentials) answered 400 Bad Request "invalid_client" "no such key" (request ID "0c7d4bd2")`, err.Error())

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
	err := refusal(t, moovtest.Answer{Status: 422, Body: `{"scope":"unknown scope","refresh_token":["a","b"],"error":"invalid"}`})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, map[string]string{"scope": "unknown scope", "refresh_token": `["a","b"]`}, refused.Fields)
	assert.Contains(t, err.Error(), `"invalid" "refresh_token":"[\"a\",\"b\"]" "scope":"unknown scope"`)
}

func TestErrorNamesWithOriginWhereNoneIsConfigured(t *testing.T) {
	for _, status := range []int{400, 401, 403, 404, 422} {
		assert.ErrorContains(t, refusal(t, moovtest.Answer{Status: status}), "WithOrigin")
		assert.NotContains(t, refusal(t, moovtest.Answer{Status: status}, WithOrigin("https://example.com")).Error(), "WithOrigin")
	}
	assert.ErrorContains(t, refusal(t, moovtest.Answer{Status: 401}, WithOrigin("https://example.com")), "Credentials")
	assert.NotContains(t, refusal(t, moovtest.Answer{Status: 500}).Error(), "WithOrigin")
}

func TestServerThatWantsAnOrigin(t *testing.T) {
	server := onLoopback(t, moovtest.WithOrigins("https://example.com"))
	_, err := sourceOf(t, server).Token()
	assert.ErrorContains(t, err, "WithOrigin")
	token(t, sourceOf(t, server, WithOrigin("https://example.com")))
}

func TestErrorIn200(t *testing.T) {
	err := refusal(t, moovtest.Answer{Body: `{"error":"invalid_scope"}`})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "invalid_scope", refused.Code)
}

func TestErrorOfAProxysPageIsOneShortLine(t *testing.T) {
	err := refusal(t, moovtest.Answer{Status: 502, Body: "<html>\n<h1>Bad gateway</h1>" + strings.Repeat("x", 10_000)})
	assert.Contains(t, err.Error(), "Bad gateway")
	assert.NotContains(t, err.Error(), "\n")
	assert.Less(t, len(err.Error()), 400)
}

func TestTemporary(t *testing.T) {
	for status, want := range map[int]bool{400: false, 401: false, 404: false, 408: true, 422: false, 429: true, 500: true, 503: true, 504: true, 302: false} {
		assert.Equal(t, want, (&Error{StatusCode: status}).Temporary(), status)
	}
}

func TestErrorMadeByHandPrints(t *testing.T) {
	e := &Error{Op: "revoke", StatusCode: 599, RetryAfter: 7 * time.Second}
	assert.Equal(t, "moovauth: revoke request answered 599; retry after 7s", e.Error())
	assert.Nil(t, errors.Unwrap(e))
}

func TestRetryAfter(t *testing.T) {
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
	server := onLoopback(t)
	s := sourceOf(t, server)
	server.Close()
	s.endpoint.random = func() float64 { return 0 }
	_, err := s.Token()
	assert.ErrorContains(t, err, "moovauth: token request (client_credentials) to "+server.URL+"/oauth2/token: dial tcp")
	assert.ErrorContains(t, s.endpoint.revoke(t.Context(), "x", "", nil), "moovauth: revoke request to "+server.URL+"/oauth2/revoke: dial tcp")
}

func TestFieldsAreNotSaidTwice(t *testing.T) {
	err := refusal(t, moovtest.Answer{Status: 422, Body: `{"scope":"is-unknown"}`})
	assert.Equal(t, 1, strings.Count(err.Error(), "is-unknown"))
}

func TestErrorMadeByHandWrapsNothing(t *testing.T) {
	assert.NoError(t, errors.Unwrap(&Error{}))
	var re *oauth2.RetrieveError
	assert.False(t, errors.As(&Error{}, &re))
}

func TestNoAdviceAfterATemporaryRefusal(t *testing.T) {
	for _, status := range []int{408, 429, 500} {
		assert.NotContains(t, refusal(t, moovtest.Answer{Status: status, Header: retryAfterHeader("3600")}).Error(), "Origin")
	}
}
