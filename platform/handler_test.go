package platform

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const app = "https://app.example.com" // another origin, which is in WithOrigins

// user is a scopes function. The header X-User names the user, or the kind of error.
func user(r *http.Request) ([]string, error) {
	switch name := r.Header.Get("X-User"); name {
	case "":
		return nil, errors.New("the database is down")
	case "slow":
		return nil, fmt.Errorf("the database: %w", context.DeadlineExceeded)
	case "expired":
		return nil, fmt.Errorf("wrapped: %w", StatusError(http.StatusUnauthorized))
	case "own":
		return nil, status(http.StatusTeapot)
	case "odd":
		return nil, status(http.StatusOK)
	case "odder":
		return nil, StatusError(1000)
	case "nothing":
		return nil, nil
	case "bad":
		return []string{"/accounts/{accountID}/cards.write"}, nil
	case "panic":
		panic("secret-panic")
	case "abort":
		panic(http.ErrAbortHandler)
	default:
		return []string{"/accounts/" + name + "/cards.write", "/accounts/" + name + "/cards.read"}, nil
	}
}

type status int

func (s status) Error() string   { return "status of mine" }
func (s status) StatusCode() int { return int(s) }

// post returns a request of a page of the handler's own origin.
func post(user string, header ...string) *http.Request {
	r := httptest.NewRequest(http.MethodPost, "https://example.com/moov-token", nil)
	r.Header.Set("Origin", "https://example.com")
	r.Header.Set("Sec-Fetch-Site", "same-origin")
	r.Header.Set("X-User", user)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	return r
}

func with(r *http.Request, method string) *http.Request {
	r.Method = method
	return r
}

// browser is a handler with its log.
type browser struct {
	http.Handler
	tokens *Tokens
	log    bytes.Buffer
}

func newBrowser(t *testing.T, server *moovtest.Server, opts ...Option) *browser {
	tokens := newTokens(t, server, append(opts, WithOrigins(app))...)
	b := &browser{tokens: tokens}
	h := tokens.Handler(user)
	logs := &http.Server{ErrorLog: log.New(&b.log, "", 0)}
	b.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h.ServeHTTP(w, r.WithContext(context.WithValue(r.Context(), http.ServerContextKey, logs)))
	})
	return b
}

func (b *browser) answer(r *http.Request) *http.Response {
	w := httptest.NewRecorder()
	b.ServeHTTP(w, r)
	return w.Result()
}

func read(t *testing.T, resp *http.Response) string {
	t.Helper()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return string(body)
}

func TestHandlerAnswers(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	b := newBrowser(t, server, WithRate(1e6))
	allowed := map[string]string{"Access-Control-Allow-Origin": app, "Access-Control-Allow-Credentials": "true", "Access-Control-Expose-Headers": "Retry-After"}
	for _, test := range []struct {
		name   string
		r      *http.Request
		status int
		error  string // "": a token
		header map[string]string
		logged string
	}{
		{name: "same origin", r: post("42"), status: 200},
		{name: "no browser", r: post("42", "Origin", "", "Sec-Fetch-Site", ""), status: 200},
		{name: "an old browser", r: post("42", "Sec-Fetch-Site", ""), status: 200},
		{name: "a trusted origin", r: post("42", "Origin", app, "Sec-Fetch-Site", "cross-site"), status: 200, header: allowed},
		{name: "a trusted origin, without a user", r: post("", "Origin", app, "Sec-Fetch-Site", "cross-site"), status: 500, error: "internal_server_error", header: allowed, logged: "the database is down"},
		{name: "another origin", r: post("42", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"), status: 403, error: "forbidden"},
		{name: "another origin, an old browser", r: post("42", "Origin", "https://evil.example", "Sec-Fetch-Site", ""), status: 403, error: "forbidden"},
		{name: "the same site", r: post("42", "Origin", "https://a.example.com", "Sec-Fetch-Site", "same-site"), status: 403, error: "forbidden"},
		{name: "an opaque origin", r: post("42", "Origin", "null", "Sec-Fetch-Site", "cross-site"), status: 403, error: "forbidden"},
		{name: "it starts with a trusted origin", r: post("42", "Origin", app+".evil.example", "Sec-Fetch-Site", "cross-site"), status: 403, error: "forbidden"},
		{name: "GET", r: with(post("42"), "GET"), status: 405, error: "method_not_allowed", header: map[string]string{"Allow": "POST"}},
		{name: "GET from another origin", r: with(post("42", "Origin", "https://evil.example", "Sec-Fetch-Site", "cross-site"), "GET"), status: 405, error: "method_not_allowed"},
		{name: "HEAD", r: with(post("42"), "HEAD"), status: 405, error: "method_not_allowed"},
		{name: "PUT", r: with(post("42"), "PUT"), status: 405, error: "method_not_allowed"},
		{name: "OPTIONS, no preflight", r: with(post("42", "Origin", app), "OPTIONS"), status: 405, error: "method_not_allowed", header: allowed},
		{name: "an error", r: post(""), status: 500, error: "internal_server_error", logged: "the database is down"},
		{name: "an error of a context", r: post("slow"), status: 503, error: "service_unavailable", logged: "the database: context deadline exceeded"},
		{name: "an error with a status", r: post("expired"), status: 401, error: "unauthorized"},
		{name: "an error of another type with a status", r: post("own"), status: 418, error: "i'm_a_teapot"},
		{name: "an error with the status 200", r: post("odd"), status: 500, error: "internal_server_error", logged: "status of mine"},
		{name: "an error with the status 1000", r: post("odder"), status: 500, error: "internal_server_error", logged: "1000"},
		{name: "no scopes", r: post("nothing"), status: 500, error: "internal_server_error", logged: "give either WithScopes"},
		{name: "bad scopes", r: post("bad"), status: 500, error: "internal_server_error", logged: "{accountID}"},
	} {
		t.Run(test.name, func(t *testing.T) {
			b.log.Reset()
			requests := len(server.Requests())
			resp := b.answer(test.r)
			body := read(t, resp)
			assert.Equal(t, test.status, resp.StatusCode)
			assert.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
			assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
			assert.Equal(t, "application/json", resp.Header.Get("Content-Type"))
			assert.Equal(t, "Origin", resp.Header.Get("Vary"))
			if test.header == nil {
				test.header = map[string]string{"Access-Control-Allow-Origin": "", "Access-Control-Allow-Credentials": ""}
			}
			for name, want := range test.header {
				assert.Equal(t, want, resp.Header.Get(name), name)
			}
			assert.Contains(t, b.log.String(), test.logged)
			assert.Equal(t, test.logged == "", b.log.Len() == 0, b.log.String())
			if test.error != "" {
				assert.JSONEq(t, `{"error":"`+test.error+`"}`, body)
				assert.Len(t, server.Requests(), requests, "no request to Moov")
				return
			}
			var token map[string]any
			require.NoError(t, json.Unmarshal([]byte(body), &token))
			assert.Len(t, token, 4)
			assert.True(t, server.Alive(token["access_token"].(string)))
			assert.Equal(t, "Bearer", token["token_type"])
			assert.InDelta(t, 898, token["expires_in"], 2)
			assert.Equal(t, "/accounts/42/cards.read /accounts/42/cards.write", token["scope"])
			for _, refresh := range server.RefreshTokens() {
				assert.NotContains(t, body, refresh)
			}
		})
	}
}

// A page must not use its token after it has expired.
func TestExpiresInIsRoundedDown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithExpiresInSeconds(), moovtest.WithLatency(300*time.Millisecond))
		defer server.Close()
		b := newBrowser(t, server)
		assert.Contains(t, read(t, b.answer(post("42"))), `"expires_in":899,`)
	})
}

func TestPreflight(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	b := newBrowser(t, server)
	ask := func(origin string) *http.Response {
		r := httptest.NewRequest(http.MethodOptions, "https://example.com/moov-token", nil)
		r.Header.Set("Origin", origin)
		r.Header.Set("Access-Control-Request-Method", "POST")
		r.Header.Set("Access-Control-Request-Headers", "content-type,x-user")
		return b.answer(r)
	}
	resp := ask(app)
	assert.Equal(t, http.StatusNoContent, resp.StatusCode)
	assert.Equal(t, app, resp.Header.Get("Access-Control-Allow-Origin"))
	assert.Equal(t, "POST", resp.Header.Get("Access-Control-Allow-Methods"))
	assert.Equal(t, "content-type,x-user", resp.Header.Get("Access-Control-Allow-Headers"))
	assert.Equal(t, "true", resp.Header.Get("Access-Control-Allow-Credentials"))
	assert.Equal(t, "600", resp.Header.Get("Access-Control-Max-Age"))
	assert.Contains(t, resp.Header.Values("Vary"), "Origin")
	assert.Empty(t, read(t, resp))

	resp = ask("https://evil.example")
	assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	for name := range resp.Header {
		assert.False(t, strings.HasPrefix(name, "Access-Control"), name)
	}
	assert.Empty(t, server.Requests())
}

// The page learns only the status of Moov's answer. The request ID is logged.
func TestMoovRefusesTheHandler(t *testing.T) {
	for _, test := range []struct {
		name   string
		answer moovtest.Answer
		status int
	}{
		{"401", moovtest.Answer{Status: 401, Body: `{"error":"invalid_client","error_description":"moovtest-secret-key is wrong"}`}, 502},
		{"403", moovtest.Answer{Status: 403}, 502},
		{"422", moovtest.Answer{Status: 422, Body: `{"scope":"/accounts/42/cards.write is too much"}`}, 502},
		{"500", moovtest.Answer{Status: 500}, 502},
		{"no JSON", moovtest.Answer{Body: "moovtest-secret-key"}, 502},
		{"hangs up", moovtest.Answer{Handler: func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }}, 502},
		{"is slow", moovtest.Answer{Latency: time.Hour}, 504},
		{"504", moovtest.Answer{Status: 504}, 502},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := moovtest.NewInMemory()
				defer server.Close()
				var records bytes.Buffer
				b := newBrowser(t, server, WithSource(moovauth.WithLogger(slog.New(slog.NewTextHandler(&records, nil)))))
				server.Enqueue(test.answer, test.answer, test.answer)
				resp := b.answer(post("42"))
				body := read(t, resp)
				assert.Equal(t, test.status, resp.StatusCode)
				assert.Equal(t, "no-store", resp.Header.Get("Cache-Control"))
				assert.JSONEq(t, map[int]string{502: `{"error":"bad_gateway"}`, 504: `{"error":"gateway_timeout"}`}[test.status], body)
				requests := server.TokenRequests()
				if test.answer.Handler == nil && test.answer.Latency == 0 {
					assert.Contains(t, b.log.String(), requests[len(requests)-1].RequestID)
				}
				assert.Equal(t, 1, strings.Count(b.log.String(), "\n"), b.log.String())
				for _, text := range []string{body, b.log.String(), records.String(), fmt.Sprint(resp.Header)} {
					assert.NotContains(t, text, server.ClientSecret)
				}
				assert.EqualValues(t, 1, b.tokens.Stats().Failed)
			})
		})
	}
}

// A page that waits in the queue for 10 s gets a 503 with Retry-After, and its request
// leaves the queue.
func TestTenSecondsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		b := newBrowser(t, server, WithRate(1.05/margin))
		type answer struct {
			status     int
			took       time.Duration
			retryAfter string
		}
		answers := make(chan answer, 30)
		start := time.Now()
		for range 30 {
			go func() {
				resp := b.answer(post("42"))
				answers <- answer{resp.StatusCode, time.Since(start), resp.Header.Get("Retry-After")}
			}()
		}
		served := 0
		for range 30 {
			a := <-answers
			if a.status == http.StatusOK {
				served++
				continue
			}
			assert.Equal(t, http.StatusServiceUnavailable, a.status)
			assert.Equal(t, 10*time.Second, a.took.Round(10*time.Millisecond))
			assert.NotEmpty(t, a.retryAfter)
			assert.NotEqual(t, "0", a.retryAfter)
		}
		assert.Equal(t, 11, served)
		synctest.Wait()
		assert.Zero(t, b.tokens.Stats().InLine)
		assert.Len(t, server.AccessTokens(), served, "no token was minted for the others")
		assert.Empty(t, b.log.String())
	})
}

// The pause that a 429 asks for counts as time in the queue.
func TestA429ToTheHandler(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		b := newBrowser(t, server)
		server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"2"}}})
		start := time.Now()
		resp := b.answer(post("42"))
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Less(t, time.Since(start), 3*time.Second)

		server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"60"}}})
		start = time.Now()
		resp = b.answer(post("42"))
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		assert.Equal(t, 10*time.Second, time.Since(start).Round(time.Second))
		assert.Contains(t, []string{"50", "51"}, resp.Header.Get("Retry-After"))
		time.Sleep(time.Hour)
		synctest.Wait()
		assert.Len(t, server.AccessTokens(), 0)
		assert.Len(t, server.TokenRequests(), 3, "no request after the 503")
	})
}

// The time that Moov takes to answer does not count as time in the queue.
func TestASlowAnswerIsNotTimeInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLatency(9 * time.Second))
		defer server.Close()
		b := newBrowser(t, server)
		server.Enqueue(moovtest.Answer{Status: 503, Latency: time.Millisecond})
		assert.Equal(t, http.StatusOK, b.answer(post("42")).StatusCode)
	})
}

func TestAPageDisconnects(t *testing.T) {
	t.Run("in the queue", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			server := moovtest.NewInMemory()
			defer server.Close()
			b := newBrowser(t, server, WithRate(1/margin))
			require.Equal(t, http.StatusOK, b.answer(post("42")).StatusCode)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second/2, cancel)
			start := time.Now()
			resp := b.answer(post("42").WithContext(ctx))
			assert.Equal(t, time.Second/2, time.Since(start))
			assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			time.Sleep(time.Minute)
			assert.Len(t, server.TokenRequests(), 1)
			assert.Empty(t, b.log.String())
		})
	})
	t.Run("during the token request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			server := moovtest.NewInMemory(moovtest.WithLatency(5 * time.Second))
			defer server.Close()
			b := newBrowser(t, server)
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Second, cancel)
			start := time.Now()
			resp := b.answer(post("42").WithContext(ctx))
			assert.Equal(t, time.Second, time.Since(start))
			assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			assert.Empty(t, b.log.String())
			time.Sleep(time.Minute)
		})
	})
}

// Over real connections, a panic of the scopes function is left to net/http, and the
// request of a page that disconnects leaves the queue.
func TestHandlerInAServer(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1/margin))
	var logs safeBuffer
	front := httptest.NewUnstartedServer(tokens.Handler(user))
	front.Config.ErrorLog = log.New(&logs, "", 0)
	front.Start()
	defer front.Close()
	do := func(name string) (*http.Response, error) {
		req, err := http.NewRequest(http.MethodPost, front.URL, nil)
		require.NoError(t, err)
		req.Header.Set("X-User", name)
		return front.Client().Do(req)
	}
	for _, name := range []string{"panic", "abort"} {
		_, err := do(name)
		assert.Error(t, err, name)
	}
	assert.Contains(t, logs.String(), "http: panic serving")
	assert.Equal(t, 1, strings.Count(logs.String(), "panic serving"))

	resp, err := do("42")
	require.NoError(t, err)
	resp.Body.Close()
	require.Equal(t, http.StatusOK, resp.StatusCode)

	conn, err := net.Dial("tcp", front.Listener.Addr().String())
	require.NoError(t, err)
	fmt.Fprintf(conn, "POST / HTTP/1.1\r\nHost: example.com\r\nX-User: 42\r\nContent-Length: 0\r\n\r\n")
	require.Eventually(t, func() bool { return tokens.Stats().InLine == 1 }, 5*time.Second, time.Millisecond)
	conn.Close()
	require.Eventually(t, func() bool { return tokens.Stats().InLine == 0 }, 900*time.Millisecond, time.Millisecond)
	assert.Len(t, server.TokenRequests(), 1)
}

type safeBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *safeBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *safeBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func TestAThousandPostsAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLatency(80 * time.Millisecond))
		defer server.Close()
		tokens := newTokens(t, server, WithRate(200))
		h := tokens.Handler(user)
		var mu sync.Mutex
		seen := make(map[string]int)
		var callers sync.WaitGroup
		for i := range 1000 {
			callers.Go(func() {
				w := httptest.NewRecorder()
				h.ServeHTTP(w, post(fmt.Sprint(i%200)))
				var token struct {
					AccessToken string `json:"access_token"`
					Scope       string `json:"scope"`
				}
				assert.NoError(t, json.NewDecoder(w.Body).Decode(&token))
				assert.Equal(t, fmt.Sprintf("/accounts/%[1]d/cards.read /accounts/%[1]d/cards.write", i%200), token.Scope)
				mu.Lock()
				defer mu.Unlock()
				seen[token.AccessToken]++
			})
		}
		callers.Wait()
		assert.Len(t, seen, 1000)
		assert.Len(t, server.AccessTokens(), 1000)
		assert.EqualValues(t, 1000, tokens.Stats().Minted)
		assert.Zero(t, tokens.Stats().Sources)
	})
}

func TestHandlerNeedsAFunction(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	tokens := newTokens(t, server)
	assert.PanicsWithValue(t, "moovauth: platform: Handler: scopes is nil", func() { tokens.Handler(nil) })
}

// A line break in the path does not break the log's lines.
func TestAnErrorIsOneLineInTheLog(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	b := newBrowser(t, server)
	r := post("bad")
	r.URL.Path = "/a\nforged: line"
	b.answer(r)
	lines := bufio.NewScanner(&b.log)
	require.True(t, lines.Scan())
	assert.False(t, lines.Scan())
}

// A middleware may end the context of a request before its turn comes.
func TestAContextThatEndsInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		b := newBrowser(t, server)
		server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"20"}}})
		_, err := b.tokens.Mint(t.Context(), "/ping.read") // holds the queue for 20 s
		require.NoError(t, err)
		for _, before := range []bool{false, true} { // or the context ends before the request comes to the queue
			(&place{queue: b.tokens.queue}).Refused(20 * time.Second)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			if before {
				time.Sleep(5 * time.Second)
			}
			resp := b.answer(post("42").WithContext(ctx))
			assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
			assert.NotEmpty(t, resp.Header.Get("Retry-After"))
			assert.Empty(t, b.log.String())
		}
		s := b.tokens.Stats()
		assert.EqualValues(t, 2, s.TimedOut)
		assert.Zero(t, s.Failed)
		assert.Len(t, server.TokenRequests(), 2, "only the requests of Mint")
	})
	t.Run("during the token request", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			server := moovtest.NewInMemory(moovtest.WithLatency(20 * time.Second))
			defer server.Close()
			b := newBrowser(t, server)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			resp := b.answer(post("42").WithContext(ctx))
			assert.Equal(t, http.StatusGatewayTimeout, resp.StatusCode)
			assert.Contains(t, b.log.String(), "deadline exceeded")
			assert.EqualValues(t, 1, b.tokens.Stats().Failed)
		})
	})
}

// The 10 s are the sum of all waits, even if the request is refused again and again.
func TestTenSecondsOf429s(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		b := newBrowser(t, server)
		server.SetAnswer(&moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"1"}}})
		start := time.Now()
		resp := b.answer(post("42"))
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		assert.InDelta(t, 10, time.Since(start).Seconds(), 0.5)
		assert.LessOrEqual(t, len(server.TokenRequests()), 10, "no faster than Retry-After allows")
		assert.EqualValues(t, 1, b.tokens.Stats().TimedOut)
	})
}

// A retry after a 503 waits in the queue again.
func TestTenSecondsAlsoBoundTheWaitForARetry(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		b := newBrowser(t, server)
		server.Enqueue(moovtest.Answer{Status: http.StatusServiceUnavailable, Latency: time.Second},
			moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"90"}}})
		go b.tokens.Mint(t.Context(), "/ping.read") // gets the 429
		start := time.Now()
		resp := b.answer(post("42"))
		assert.Equal(t, http.StatusServiceUnavailable, resp.StatusCode)
		assert.InDelta(t, 10, time.Since(start).Seconds(), 0.5)
		assert.EqualValues(t, 1, b.tokens.Stats().TimedOut)
		assert.Zero(t, b.tokens.Stats().Failed)
		time.Sleep(2 * time.Minute)
	})
}

func TestOriginsAreNormalised(t *testing.T) {
	for given, want := range map[string]string{
		"https://app.example.com":      "https://app.example.com",
		"https://app.example.com:443":  "https://app.example.com",
		"http://app.example.com:80":    "http://app.example.com",
		"https://app.example.com:80":   "https://app.example.com:80",
		"https://app.example.com:8443": "https://app.example.com:8443",
		"https://App.Example.COM":      "https://app.example.com",
		"HTTPS://app.example.com":      "https://app.example.com",
		"https://bücher.example":       "https://xn--bcher-kva.example",
		"https://BÜCHER.example:443":   "https://xn--bcher-kva.example",
		"https://bücher:8443":          "https://xn--bcher-kva:8443",
		"https://例え.テスト:8443":          "https://xn--r8jz45g.xn--zckzah:8443",
		"https://a.рф:443":             "https://a.xn--p1ai",
		"https://my_app.example.com":   "https://my_app.example.com",
		"http://localhost:3000":        "http://localhost:3000",
		"http://[::1]:3000":            "http://[::1]:3000",
		"https://[2001:DB8::1]":        "https://[2001:db8::1]",
		"http://127.0.0.1:8080":        "http://127.0.0.1:8080",
		"capacitor://localhost":        "capacitor://localhost",
		"ionic://localhost":            "ionic://localhost",
	} {
		got, err := normalise(given)
		require.NoError(t, err, given)
		assert.Equal(t, want, got)
	}
	for given, why := range map[string]string{
		"*":                            "wildcards",
		"https://*.example.com":        "wildcards",
		"null":                         "want only a scheme",
		"":                             "want only a scheme",
		"app.example.com":              "want only a scheme",
		"//app.example.com":            "want only a scheme",
		"https://":                     "want only a scheme",
		"https://app.example.com/":     "no path or slash",
		"https://app.example.com/a":    "no path or slash",
		"https://app.example.com:":     "want only a scheme",
		"https://app.example.com?a":    "want only a scheme",
		"https://app.example.com#a":    "want only a scheme",
		"https://user@app.example.com": "want only a scheme",
		"https://a b.example":          "want only a scheme",
		"https://xn--a.example":        "want only a scheme",
		"file:///index.html":           "want only a scheme",
	} {
		_, err := New(moovauth.Credentials{ClientID: "id", ClientSecret: "secret"}, WithOrigins(given))
		require.ErrorContains(t, err, why, given)
		assert.ErrorContains(t, err, "WithOrigins")
	}
}

// The token request carries the page's origin if that is https and in WithOrigins.
func TestTheTokenRequestCarriesThePagesOrigin(t *testing.T) {
	server := moovtest.NewServer(moovtest.WithOrigins("https://example.com", app, "https://xn--bcher-kva.example"))
	defer server.Close()
	tokens := newTokens(t, server, WithRate(1e6), WithSource(moovauth.WithOrigin("https://example.com")),
		WithOrigins(app+":443", "https://Bücher.example", "http://localhost:3000", "capacitor://localhost"))
	h := tokens.Handler(user)
	for page, want := range map[string]string{
		app:                             app,
		"https://xn--bcher-kva.example": "https://xn--bcher-kva.example",
		"http://localhost:3000":         "https://example.com",
		"capacitor://localhost":         "https://example.com",
		"https://example.com":           "https://example.com", // the handler's own
		"":                              "https://example.com",
	} {
		w := httptest.NewRecorder()
		h.ServeHTTP(w, post("42", "Origin", page))
		require.Equal(t, http.StatusOK, w.Code, page)
		requests := server.TokenRequests()
		assert.Equal(t, want, requests[len(requests)-1].Header.Get("Origin"), page)
		if page != "" && page != "https://example.com" {
			assert.Equal(t, page, w.Header().Get("Access-Control-Allow-Origin"))
		}
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, post("42", "Origin", "ionic://localhost", "Sec-Fetch-Site", "cross-site"))
	assert.Equal(t, http.StatusForbidden, w.Code)
}

func TestWithMintedIsCalledWithEachToken(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	noted := make(map[string]string) // token to user
	b := newBrowser(t, server, WithRate(1e6), WithMinted(func(r *http.Request, token *oauth2.Token) error {
		assert.Empty(t, token.RefreshToken)
		assert.WithinDuration(t, time.Now().Add(15*time.Minute), token.Expiry, 2*time.Second)
		noted[token.AccessToken] = r.Header.Get("X-User")
		return nil
	}))
	for _, name := range []string{"ada", "grace"} {
		var reply struct {
			AccessToken string `json:"access_token"`
		}
		require.NoError(t, json.Unmarshal([]byte(read(t, b.answer(post(name)))), &reply))
		assert.Equal(t, name, noted[reply.AccessToken])
	}
	assert.Len(t, noted, 2)
	_, err := b.tokens.Mint(t.Context(), "/ping.read")
	require.NoError(t, err)
	assert.Len(t, noted, 2, "Mint does not call the function")
	assert.Equal(t, http.StatusUnauthorized, b.answer(post("expired")).StatusCode)
	assert.Len(t, noted, 2, "without a token the function is not called")
}

// If the function of WithMinted fails, the token is revoked before the reply.
func TestAnErrorOfWithMintedRevokesTheToken(t *testing.T) {
	for _, test := range []struct {
		name   string
		err    error
		status int
		logged bool
	}{
		{"signed out meanwhile", StatusError(http.StatusUnauthorized), 401, false},
		{"the database is down", errors.New("the database is down"), 500, true},
		{"the database is slow", context.DeadlineExceeded, 503, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			server := moovtest.NewServer()
			defer server.Close()
			b := newBrowser(t, server, WithMinted(func(*http.Request, *oauth2.Token) error { return test.err }))
			resp := b.answer(post("42"))
			assert.Equal(t, test.status, resp.StatusCode)
			assert.NotContains(t, read(t, resp), "access_token")
			assert.Empty(t, server.AccessTokens())
			assert.Equal(t, test.logged, b.log.Len() > 0, b.log.String())

			server.Enqueue(moovtest.Answer{Body: `{"access_token":"alive","expires_in":900}`}, moovtest.Answer{Status: 400})
			assert.Equal(t, test.status, b.answer(post("42")).StatusCode)
			assert.Contains(t, b.log.String(), "stays alive")
		})
	}
}

// The function is called, and the token is revoked, even if the page has disconnected.
func TestAPageDisconnectsWhenItsTokenComes(t *testing.T) {
	for _, err := range []error{nil, errors.New("no")} {
		synctest.Test(t, func(t *testing.T) {
			server := moovtest.NewInMemory(moovtest.WithLatency(time.Second))
			defer server.Close()
			ctx, cancel := context.WithCancel(t.Context())
			noted := 0
			b := newBrowser(t, server, WithMinted(func(r *http.Request, _ *oauth2.Token) error {
				cancel()
				assert.Error(t, r.Context().Err())
				noted++
				return err
			}))
			b.answer(post("42").WithContext(ctx))
			assert.Equal(t, 1, noted)
			assert.Equal(t, err == nil, len(server.AccessTokens()) == 1)
		})
	}
}
