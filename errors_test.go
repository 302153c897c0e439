package moovauth

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
	"github.com/moovauth/moovauth/moovtest"
)

func TestErrorOfARefusedClient(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{
		Status: 400,
		Header: http.Header{"X-Request-Id": {"0c7d4bd2"}, "Content-Type": {"application/json"}, "Set-Cookie": {"session=x"}},
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
	assertFlags(t, err, false, false)
	assert.Equal(t, `moovauth: token request (client_credentials) answered 400 Bad Request "invalid_client" "no such key" (request ID "0c7d4bd2"): check Credentials against the API key in Moov's dashboard, and whether it is a production or a test key`, err.Error())

	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, err, &retrieve)
	assert.Equal(t, "invalid_client", retrieve.ErrorCode)
	assert.Equal(t, "no such key", retrieve.ErrorDescription)
	assert.Equal(t, "https://docs.moov.io", retrieve.ErrorURI)
	assert.Contains(t, string(retrieve.Body), "invalid_client")
	assert.Equal(t, 400, retrieve.Response.StatusCode)
	assert.Equal(t, "400 Bad Request", retrieve.Response.Status)
	assert.Empty(t, retrieve.Response.Header)
	assert.Empty(t, readAll(t, retrieve.Response), "the body can be read as usual")
	assert.ErrorContains(t, retrieve, "no such key")
}

func TestErrorOfRefusedFields(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{Status: 422, Body: `{"scope":"is-unknown","refresh_token":["a","b"],"error":"invalid","account":null}`})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "invalid", refused.Code)
	assert.Equal(t, map[string]string{"scope": "is-unknown", "refresh_token": "[a b]", "account": ""}, refused.Fields)
	assert.Contains(t, err.Error(), `"invalid" "account":"" "refresh_token":"[a b]" "scope":"is-unknown"`)
	assert.Equal(t, 1, strings.Count(err.Error(), "is-unknown"), "nothing is repeated")
}

func TestErrorIn200(t *testing.T) {
	t.Parallel()
	err := refusal(t, moovtest.Answer{Body: `{"error":"invalid_scope"}`})
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "invalid_scope", refused.Code)
	assertFlags(t, err, false, false)
}

func TestErrorOfAProxysPageIsOneShortLine(t *testing.T) {
	t.Parallel()
	page := "<html>\n<h1>Bad gateway</h1>" + strings.Repeat("é", 10_000)
	for _, answer := range []moovtest.Answer{{Status: 502, Body: page}, {Body: page}} {
		err := refusal(t, answer)
		require.ErrorContains(t, err, `"<html>\n<h1>Bad gateway</h1>éé`)
		require.ErrorContains(t, err, "after 3 attempts")
		assert.NotContains(t, err.Error(), "\n")
		assert.Less(t, len(err.Error()), 500)
	}
}

func TestTransportErrorNamesTheURLAndTheGrant(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := noJitter(sourceOf(t, server))
	server.Close()
	_, err := s.Token()
	require.ErrorContains(t, err, "moovauth: token request (client_credentials) to "+server.URL+"/oauth2/token: dial tcp")
	assertFlags(t, err, true, false)
	err = Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL))
	require.ErrorContains(t, err, "moovauth: revoke request to "+server.URL+"/oauth2/revoke: dial tcp")
	assertFlags(t, err, true, false)
}

// The error of each refusal says what to change. It names nothing that cannot
// be the cause.
func TestAdvice(t *testing.T) {
	t.Parallel()
	const (
		origin  = "set WithOrigin"
		compare = "compare WithOrigin (https://example.com) with the API key's allowed-domain list"
		base    = "WithBaseURL"
		creds   = "Credentials"
		scopes  = "the scopes were /ping.read /accounts/6f9c/transfers.write"
		given   = "WithToken "
		hint    = "WithTokenTypeHint"
	)
	token, refresh, revoke := &request{op: opToken, grantType: grantClientCredentials}, &request{op: opToken, grantType: grantRefreshToken}, &request{op: opRevoke}
	for name, c := range map[string]struct {
		r      *request
		status int
		body   string
		origin string
		want   []string
	}{
		"400":                                 {token, 400, `{"error":"nope"}`, "", []string{origin}},
		"400, bare":                           {token, 400, "", "", []string{origin}},
		"403":                                 {token, 403, "", "", []string{origin}},
		"403 to a refresh":                    {refresh, 403, "", "", []string{origin}},
		"400 to a revocation":                 {revoke, 400, "", "", []string{origin}},
		"403 to a revocation":                 {revoke, 403, "", "", []string{origin}},
		"400, with an Origin":                 {token, 400, "", "https://example.com", []string{compare}},
		"403, with an Origin":                 {token, 403, "", "https://example.com", []string{compare}},
		"400 to a revocation, with an Origin": {revoke, 400, "", "https://example.com", []string{compare}},
		"403 to a revocation, with an Origin": {revoke, 403, "", "https://example.com", []string{compare}},
		"401":                                 {token, 401, "", "", []string{creds}},
		"invalid_client":                      {token, 400, `{"error":"invalid_client"}`, "", []string{creds}},
		"401 to a revocation":                 {revoke, 401, "", "", []string{creds}},
		"404":                                 {token, 404, "", "", []string{base, "token endpoint"}},
		"405":                                 {refresh, 405, "", "https://example.com", []string{base, "token endpoint"}},
		"404 to a revocation":                 {revoke, 404, "", "", []string{base, "revoke endpoint"}},
		"302":                                 {token, 302, "", "", []string{base}},
		"422, scope":                          {token, 422, `{"scope":"unknown"}`, "", []string{scopes}},
		"422, no field":                       {token, 422, ``, "https://example.com", []string{scopes}},
		"422, other field":                    {token, 422, `{"audience":"y"}`, "", []string{scopes}},
		"invalid_scope":                       {token, 400, `{"error":"invalid_scope"}`, "", []string{scopes}},
		"200 with an error":                   {token, 200, `{"error":"invalid_scope"}`, "", []string{scopes}},
		"422 to a refresh, token":             {refresh, 422, `{"refresh_token":"is unknown"}`, "", []string{given}},
		"invalid_grant":                       {refresh, 400, `{"error":"invalid_grant"}`, "", []string{given}},
		"invalid_grant, 401":                  {refresh, 401, `{"error":"invalid_grant"}`, "", []string{given}},
		"invalid_grant, no refresh":           {token, 400, `{"error":"invalid_grant"}`, "", nil},
		"422 to a revocation":                 {revoke, 422, `{"token_type_hint":"unknown"}`, "", nil},
		"410":                                 {token, 410, "", "", nil},
		"429":                                 {token, 429, "", "", nil},
		"408":                                 {token, 408, "", "", nil},
		"421":                                 {token, 421, "", "", nil},
		"503":                                 {token, 503, `{"error":"invalid_client"}`, "", nil},
	} {
		t.Run(name, func(t *testing.T) {
			opts := []Option{WithScopes("/ping.read", "/accounts/6f9c/transfers.write")}
			if c.origin != "" {
				opts = append(opts, WithOrigin(c.origin))
			}
			config, err := newConfig(testCredentials, opts)
			require.NoError(t, err)
			_, err = config.readReply(c.r, &http.Response{StatusCode: c.status}, []byte(c.body), instant{})
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			for _, other := range []string{origin, compare, base, creds, scopes, given, hint} {
				if !slices.Contains(c.want, other) {
					assert.NotContains(t, err.Error(), other)
				}
			}
		})
	}
}

func TestServerThatWantsAnOrigin(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithOrigins("https://example.com"))
	_, err := sourceOf(t, server).Token()
	require.ErrorContains(t, err, "set WithOrigin")
	_, err = sourceOf(t, server, WithOrigin("https://example.org")).Token()
	require.ErrorContains(t, err, "compare WithOrigin (https://example.org) with the API key's allowed-domain list")
	token(t, sourceOf(t, server, WithOrigin("https://example.com")))
}

func TestAdviceIsShortHoweverManyScopesThereAre(t *testing.T) {
	t.Parallel()
	scopes := slices.Repeat([]string{"/accounts/6f9c2d1e-8f3b-4a39-9a5e-1c2d3e4f5a6b/transfers.write"}, 1000)
	_, err := readAnswer(t, 422, nil, `{"scope":"x"}`, time.Now(), WithScopes(scopes...))
	require.ErrorContains(t, err, "the scopes were /accounts/6f9c")
	assert.Less(t, len(err.Error()), 1000)
}

func TestTemporary(t *testing.T) {
	t.Parallel()
	for status, want := range map[int]bool{
		302: false, 400: false, 401: false, 404: false, 408: true, 421: true, 422: false, 425: true, 429: true, 500: true, 503: true, 504: true, 520: true,
	} {
		assertFlags(t, &Error{StatusCode: status}, want, false)
	}
}

func TestErrorMadeByHandPrints(t *testing.T) {
	t.Parallel()
	e := &Error{Op: "revoke", StatusCode: 503, RetryAfter: 7 * time.Second}
	assert.Equal(t, "moovauth: revoke request answered 503 Service Unavailable; retry after 7s", e.Error())
	assert.NoError(t, errors.Unwrap(e))
	assert.False(t, errors.As(e, new(*oauth2.RetrieveError)))

	e.Fields, e.RequestID = make(map[string]string), strings.Repeat("\x00", 1<<20)
	for i := range 10_000 {
		e.Fields[strconv.Itoa(i)] = strings.Repeat("\x00", 1000)
	}
	assert.LessOrEqual(t, len(e.Error()), 2<<10)
}

// A hostile server cannot make an error large, and little of what it sends is
// kept.
func TestErrorIsBounded(t *testing.T) {
	t.Parallel()
	fields := make(map[string]string)
	for i := range 10_000 {
		fields[fmt.Sprintf("field-%05d", i)] = strings.Repeat("long ", 19)
	}
	many, _ := json.Marshal(fields)
	long := strings.Repeat("\x01é", maxBody/16)
	longJSON, _ := json.Marshal(long)
	for name, c := range map[string]struct {
		status int
		body   string
	}{
		"many fields":      {422, string(many)},
		"one long field":   {422, fmt.Sprintf(`{%s:%s}`, longJSON, longJSON)},
		"long description": {400, `{"error":"` + strings.Repeat("e", 3000) + `","error_description":"` + strings.Repeat("é", 700) + `","error_uri":"` + strings.Repeat("u", 300) + `"}`},
		"page":             {502, long},
		"deep":             {422, strings.Repeat(`{"a":`, 9_000) + "1" + strings.Repeat("}", 9_000)},
		"page with 200":    {200, "<p>" + long},
		"odd token type":   {200, `{"access_token":"x","token_type":"` + strings.Repeat("t", 1<<19) + `"}`},
	} {
		t.Run(name, func(t *testing.T) {
			header := http.Header{"X-Request-Id": {long, long}, "Content-Type": {long}, "Www-Authenticate": {long}, "Location": {long}}
			_, err := readAnswer(t, c.status, header, c.body, time.Now())
			require.Error(t, err)
			assert.LessOrEqual(t, len(err.Error()), 2<<10)
			var e *Error
			if !errors.As(err, &e) {
				return
			}
			assert.LessOrEqual(t, len(e.Fields), 16)
			for name, value := range e.Fields {
				assert.LessOrEqual(t, max(len(name), len(value)), 256)
			}
			assert.LessOrEqual(t, max(len(e.Code), len(e.Description), len(e.RequestID), len(e.retrieve.ErrorURI)), 256)
			assert.LessOrEqual(t, len(e.retrieve.Body), 2<<10)
		})
	}
}

func TestReadingARefusalWithManyMembersTakesLittleMemory(t *testing.T) {
	// This test is not parallel, since it counts the allocations of the whole
	// program.
	var body strings.Builder
	for i := range 50_000 {
		fmt.Fprintf(&body, `"%x":0,`, i)
	}
	text := `{` + body.String() + `"error":"x"}`
	var members map[string]any
	allocations := func(f func()) uint64 {
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		f()
		runtime.ReadMemStats(&after)
		return after.Mallocs - before.Mallocs
	}
	parsing := allocations(func() { require.NoError(t, json.Unmarshal([]byte(text), &members)) })
	reading := allocations(func() {
		_, err := readAnswer(t, 422, nil, text, time.Now())
		require.ErrorContains(t, err, `"x"`)
	})
	assert.Less(t, reading, parsing*3/2, "only what is kept is masked")
}

func TestEveryFailureSaysWhetherItIsTemporaryOrATimeout(t *testing.T) {
	t.Parallel()
	expired, cancel := context.WithTimeoutCause(t.Context(), 0, fmt.Errorf("not done: %w", context.DeadlineExceeded))
	defer cancel()
	refused := &Error{Op: opToken, StatusCode: 403}
	busy := &Error{Op: opToken, StatusCode: 503}
	timeout := failure(context.DeadlineExceeded)
	for name, c := range map[string]struct {
		err                error
		temporary, timeout bool
	}{
		"no connection":                   {&net.OpError{Op: "dial", Err: errors.New("refused")}, true, false},
		"caller's deadline":               {context.DeadlineExceeded, true, true},
		"our deadline":                    {context.Cause(expired), true, true},
		"deadline of a connection":        {os.ErrDeadlineExceeded, true, true},
		"timeout of the network":          {fmt.Errorf("x: %w", &net.DNSError{IsTimeout: true}), true, true},
		"masked deadline":                 {redact.Error(fmt.Errorf("s3cr3t-key: %w", context.DeadlineExceeded), "s3cr3t-key"), true, true},
		"no answer on a dead connection":  {errNoAnswer, true, true},
		"cancelled":                       {fmt.Errorf("gave up: %w", context.Canceled), false, false},
		"cancelled by a deadline":         {fmt.Errorf("%w: %w", context.Canceled, context.DeadlineExceeded), true, true},
		"refusal":                         {refused, false, false},
		"refusal, after three attempts":   {fmt.Errorf("%w (after 3 attempts)", busy), true, false},
		"refusal, wrapped":                {fmt.Errorf("%w (so)", refused), false, false},
		"temporary refusal":               {busy, true, false},
		"busy, until the deadline":        {fmt.Errorf("%w (not retried: %w)", busy, context.DeadlineExceeded), true, true},
		"no way to a token":               {errNoScopes, false, false},
		"no way to a token, wrapped":      {fmt.Errorf("x: %w", errNoScopes), false, false},
		"cool-down after a refusal":       {&CoolDownError{Err: refused}, false, false},
		"cool-down after an outage":       {&CoolDownError{Err: failure(errors.New("no connection"))}, true, false},
		"cool-down after a timeout":       {&CoolDownError{Err: timeout}, true, false},
		"cool-down, wrapped":              {fmt.Errorf("so: %w", &CoolDownError{Err: timeout}), true, false},
		"cool-down after a cancelled one": {&CoolDownError{Err: context.Canceled}, false, false},
		"cool-down made by hand":          {&CoolDownError{}, false, false},
	} {
		t.Run(name, func(t *testing.T) {
			if name == "cool-down made by hand" {
				assertFlags(t, c.err, c.temporary, c.timeout)
				return
			}
			assertFlags(t, failure(c.err), c.temporary, c.timeout)
			err := failure(fmt.Errorf("moovauth: asking: %w", c.err))
			assertFlags(t, err, c.temporary, c.timeout)
			require.ErrorIs(t, err, c.err)
			assert.Equal(t, "moovauth: asking: "+c.err.Error(), err.Error())
			assertFlags(t, failure(err), c.temporary, c.timeout)
			assert.Equal(t, c.temporary, temporary(err))
		})
	}
	assert.NoError(t, failure(nil))
	assert.Same(t, refused, failure(refused))
	assert.LessOrEqual(t, len(failure(errors.New(strings.Repeat("x", 1<<20))).Error()), 2<<10)
}

// assertFlags checks the methods Temporary and Timeout, as errors.As and
// url.Error find them.
func assertFlags(t *testing.T, err error, temporary, timeout bool) {
	t.Helper()
	var flags interface {
		Temporary() bool
		Timeout() bool
	}
	require.ErrorAs(t, err, &flags)
	assert.Equal(t, temporary, flags.Temporary(), "Temporary of %T", err)
	assert.Equal(t, timeout, flags.Timeout(), "Timeout of %T", err)
	assert.Equal(t, timeout, (&url.Error{Op: "Get", Err: err}).Timeout(), "Timeout of a url.Error")
}

func TestCoolDownErrorSaysWhenTheNextAttemptIsDue(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		_, refused := readAnswer(t, 401, nil, "", time.Now())
		err := error(&CoolDownError{Until: time.Now().Add(1500 * time.Millisecond), Err: refused})
		require.EqualError(t, err, refused.Error()+"; backing off: the next attempt is due in 1.5s")
		assert.Same(t, refused, errors.Unwrap(err))
		require.ErrorAs(t, err, new(*oauth2.RetrieveError))
		time.Sleep(2 * time.Second)
		require.ErrorContains(t, err, "due in 0s")
		assert.Contains(t, (&CoolDownError{}).Error(), "due in 0s")
	})
}

// page collects everything that a test prints.
type page struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

// print prints v in every way there is, and the errors that v wraps, too.
func (p *page) print(v any) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%d"} {
		fmt.Fprintf(p, verb+"\n", v)
	}
	if text, err := json.Marshal(v); err == nil {
		fmt.Fprintf(p, "%s\n", text)
	}
	slog.New(slog.NewTextHandler(p, nil)).Info("m", "v", v)
	slog.New(slog.NewJSONHandler(p, nil)).Info("m", "v", v)
	switch err := v.(type) {
	case interface{ Unwrap() error }:
		if inner := err.Unwrap(); inner != nil {
			p.print(inner)
		}
	case interface{ Unwrap() []error }:
		for _, inner := range err.Unwrap() {
			p.print(inner)
		}
	}
	if retrieve, ok := v.(*oauth2.RetrieveError); ok {
		fmt.Fprintf(p, "%s %+v\n", retrieve.Body, *retrieve.Response)
	}
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.String()
}

// answerWith returns a response to r.
func answerWith(r *http.Request, status int, body io.Reader) *http.Response {
	return &http.Response{Status: fmt.Sprint(status, " ", http.StatusText(status)), StatusCode: status, Header: make(http.Header), Body: io.NopCloser(body), Request: r}
}

// brokenReader fails with an error of this text.
type brokenReader string

func (f brokenReader) Read([]byte) (int, error) { return 0, errors.New(string(f)) }

// In each case, everything that the other side sends contains all secrets. The
// errors and records that follow are printed in every way there is.
func TestNoErrorOrRecordShowsASecret(t *testing.T) {
	t.Parallel()
	marshal := func(v any) io.Reader {
		text, _ := json.Marshal(v)
		return strings.NewReader(string(text))
	}
	for name, echo := range map[string]func(r *http.Request, secrets string) (*http.Response, error){
		"no connection": func(_ *http.Request, s string) (*http.Response, error) { return nil, fmt.Errorf("proxy: %s", s) },
		"wrapped in an error": func(_ *http.Request, s string) (*http.Response, error) {
			return nil, &url.Error{Op: "Get", URL: "https://proxy.test/?" + url.QueryEscape(s), Err: errors.New(s)}
		},
		"broken body": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 200, io.MultiReader(strings.NewReader("{"), brokenReader(s))), nil
		},
		"page": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 502, strings.NewReader("<html>"+s+"</html>")), nil
		},
		"page with 200": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 200, strings.NewReader("<html> "+s)), nil
		},
		"page, percent-encoded": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 403, strings.NewReader("<p>"+url.QueryEscape(s)+" "+url.PathEscape(s)+"</p>")), nil
		},
		"JSON that is not read": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 400, io.MultiReader(marshal([]any{s, map[string]any{s: s}}), strings.NewReader(" "))), nil
		},
		"error in JSON": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 400, marshal(map[string]any{"error": s, "error_description": s, "error_uri": s})), nil
		},
		"fields in JSON": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 422, marshal(map[string]any{"scope": s, s: []string{s}, "deep": map[string]any{s: s}})), nil
		},
		"error with 200": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 200, marshal(map[string]any{"error": s})), nil
		},
		"odd token type": func(r *http.Request, s string) (*http.Response, error) {
			return answerWith(r, 200, marshal(map[string]any{"access_token": "x", "token_type": s})), nil
		},
		"header": func(r *http.Request, s string) (*http.Response, error) {
			resp := answerWith(r, 503, http.NoBody)
			resp.Status = "503 " + s
			for _, name := range []string{"X-Request-Id", "Content-Type", "Location", "Set-Cookie", "Retry-After", "Date"} {
				resp.Header.Set(name, s)
			}
			return resp, nil
		},
		"header with 200": func(r *http.Request, s string) (*http.Response, error) {
			resp := answerWith(r, 200, strings.NewReader("<p>"))
			resp.Status = "200 " + s
			resp.Header.Set("X-Request-Id", s)
			resp.Header.Set("Content-Type", s)
			return resp, nil
		},
		"redirect": func(r *http.Request, s string) (*http.Response, error) {
			resp := answerWith(r, 307, http.NoBody)
			resp.Header.Set("Location", "https://example.com/?"+url.QueryEscape(s))
			return resp, nil
		},
		"redirect to nowhere": func(r *http.Request, s string) (*http.Response, error) {
			resp := answerWith(r, 302, http.NoBody)
			resp.Header.Set("Location", "://"+s)
			return resp, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithCredentials("public-key", `s3cr3t+/="<&>ü`))
				basic := base64.StdEncoding.EncodeToString([]byte("public-key:" + server.ClientSecret))
				var known []string // the secrets so far
				failing := false
				client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					if !failing {
						return server.Transport().RoundTrip(r)
					}
					sent, _ := io.ReadAll(r.Body)
					return echo(r, strings.Join(append(known, r.Header.Get("Authorization"), string(sent)), " "))
				})}
				out := new(page)
				logger := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
				s := sourceOf(t, server, WithHTTPClient(client), WithLogger(logger))

				// There are two sets of tokens, the former and the current one.
				tok := token(t, s)
				first := tok.AccessToken
				known = append(known, first)
				time.Sleep(14 * time.Minute)
				token(t, s)
				synctest.Wait()
				tok = token(t, s)
				known = append(known, tok.AccessToken, tok.RefreshToken, server.ClientSecret)

				failing = true
				s.Invalidate(tok.AccessToken)
				token(t, s) // returns the refused token, since the grant fails
				out.print(s.Stats().LastError)
				out.print(s.Stats())
				out.print(s.Revoke(t.Context()))
				_, err := s.Client().Get(server.URL + "/ping")
				out.print(err)
				time.Sleep(maxCoolDown)
				_, err = s.Token()
				require.Error(t, err)
				out.print(err)
				_, err = s.Token() // during the cool-down
				out.print(err)
				known = []string{tok.AccessToken, server.ClientSecret} // the only secrets that the next call knows
				out.print(Revoke(t.Context(), credentialsOf(server), tok.AccessToken, WithBaseURL(server.URL), WithHTTPClient(client)))
				known = []string{tok.RefreshToken, server.ClientSecret}
				_, err = RequestToken(t.Context(), credentialsOf(server), WithToken(&oauth2.Token{RefreshToken: tok.RefreshToken}), WithBaseURL(server.URL), WithHTTPClient(client))
				require.Error(t, err)
				out.print(err)
				out.print(credentialsOf(server))
				out.print(WithToken(tok))
				time.Sleep(time.Minute)
				synctest.Wait()
				out.print(s)
				out.print(&Transport{Source: s})
				out.print(struct{ source *TokenSource }{s})

				text := out.String()
				require.Greater(t, len(text), 1000)
				for _, secret := range []string{basic, server.ClientSecret, first, tok.AccessToken, tok.RefreshToken} {
					quoted, _ := json.Marshal(secret)
					for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strings.Trim(string(quoted), `"`), strings.Trim(fmt.Sprintf("%q", secret), `"`)} {
						if i := strings.Index(text, form); i >= 0 {
							assert.Fail(t, "a secret is shown", "%q in %q", form, text[max(0, i-200):min(len(text), i+len(form)+100)])
						}
					}
				}
			})
		})
	}
}

func TestFormerTokenThatMayBeAliveIsMasked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		var former []string
		for range 10 {
			tok := token(t, s).AccessToken
			former = append(former, tok)
			s.Invalidate(tok)
			time.Sleep(maxPause)
		}
		for i, tok := range former {
			server.SetAnswer(&moovtest.Answer{Status: 400, Body: `{"error":"` + tok + `"}`})
			before := len(server.TokenRequests())
			_, _ = s.Token() // cannot replace the last token, which was refused
			require.Greater(t, len(server.TokenRequests()), before)
			require.ErrorContains(t, s.Stats().LastError, redact.Mask)
			assert.NotContains(t, s.Stats().LastError.Error(), tok, i)
			time.Sleep(maxPause)
		}
	})
}

// A reply may hold a token that the source does not know.
func TestUnknownTokenOfAReplyIsNotShown(t *testing.T) {
	t.Parallel()
	for name, a := range map[string]moovtest.Answer{
		"request ID of a good reply":  {Header: http.Header{"X-Request-Id": {"id-" + freshToken}}, Body: freshReply},
		"token type":                  {Body: `{"access_token":"` + freshToken + `","token_type":"` + freshToken + `"}`},
		"token type, refresh token":   {Body: `{"access_token":"x","refresh_token":"` + freshToken + `","token_type":"` + freshToken + `"}`},
		"token type, no token":        {Body: `{"token_type":"Bearer ` + freshToken + `"}`},
		"not visible ASCII":           {Body: `{"access_token":"` + freshToken + `\n"}`},
		"another member":              {Body: `{"token":"` + freshToken + `"}`},
		"another member, cut off":     {Body: ` {"token": "` + freshToken},
		"a word":                      {Body: freshToken},
		"a word in quotes":            {Body: `"` + freshToken + `"`},
		"a form":                      {Body: "access_token=" + freshToken + "&x=1"},
		"YAML":                        {Body: "access_token: " + freshToken + "\ntype: x"},
		"a list":                      {Body: `[{"access_token": "` + freshToken + `"}]`},
		"XML":                         {Body: `<token access_token="` + freshToken + `"/>`},
		"500 with a token":            {Status: 500, Body: `{"access_token":"` + freshToken + `","refresh_token" : "` + freshToken + `"}`},
		"500 with a token, cut off":   {Status: 500, Body: `{"access_token": "` + freshToken},
		"500 with a form":             {Status: 500, Body: `access_token=` + freshToken + `&x=1`},
		"500 with a list":             {Status: 500, Body: `[{"refresh_token": "` + freshToken + `"}]`},
		"500 with garbage at the end": {Status: 500, Body: freshReply + "garbage"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			server := onLoopback(t)
			server.SetAnswer(&a)
			seen := new(page)
			s := noJitter(sourceOf(t, server, WithLogger(slog.New(slog.NewTextHandler(seen, &slog.HandlerOptions{Level: slog.LevelDebug})))))
			_, err := s.Token()
			assert.Equal(t, name == "request ID of a good reply", err == nil)
			seen.print(err)
			assert.NotEmpty(t, seen.String())
			assert.NotContains(t, seen.String(), freshToken)
		})
	}
	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, refusal(t, moovtest.Answer{Status: 422, Body: `{"refresh_token":"is required"}`}), &retrieve)
	assert.Contains(t, string(retrieve.Body), "is required", "a message about a field is not a token")
}

// The token is in a member that this package does not read.
func TestTokenDeepInARefusalIsNotShown(t *testing.T) {
	t.Parallel()
	for _, body := range []string{`{"data":{"access_token":"unknown-t0ken"}}`, `{"accessToken":"unknown-t0ken"}`, `{"error":{"access_token":"unknown-t0ken"}}`} {
		for _, status := range []int{200, 400, 502} {
			err := refusal(t, moovtest.Answer{Status: status, Body: body})
			assert.NotContains(t, fmt.Sprintf("%+v", err), "unknown-t0ken", "%d %s", status, body)
		}
	}
}
