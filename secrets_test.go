package moovauth

import (
	"context"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

// page collects all that was printed.
type page struct {
	mu   sync.Mutex
	text strings.Builder
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.text.Write(b)
}

// print prints v in every way there is, and an error with all that it wraps.
func (p *page) print(v any) {
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d"} {
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
	if refused := new(Error); errors.As(asError(v), &refused) && refused.retrieve != nil {
		fmt.Fprintf(p, "%s %s %+v %+v\n", refused.retrieve.Body, refused.retrieve.Error(), refused.retrieve.Response.Header, refused.retrieve.Response.Request)
	}
}

func asError(v any) error {
	err, _ := v.(error)
	return err
}

// Every failure there is, each with all secrets in all that the other side
// says, printed in every way there is.
func TestNoSecretInSight(t *testing.T) {
	t.Parallel()
	// echo makes a failure whose every text has all the secrets in it.
	for name, echo := range map[string]func(r *http.Request, secrets string) (*http.Response, error){
		"no connection": func(_ *http.Request, s string) (*http.Response, error) { return nil, fmt.Errorf("proxy: %s", s) },
		"wrapped in an error": func(_ *http.Request, s string) (*http.Response, error) {
			return nil, &url.Error{Op: "Get", URL: s, Err: errors.New(s)}
		},
		"panic":             func(_ *http.Request, s string) (*http.Response, error) { panic(s) },
		"panic of an error": func(_ *http.Request, s string) (*http.Response, error) { panic(errors.New(s)) },
		"broken body": func(r *http.Request, s string) (*http.Response, error) {
			return answer(r, 200, io.MultiReader(strings.NewReader("{"), failingReader(s))), nil
		},
		"page of a proxy": func(r *http.Request, s string) (*http.Response, error) {
			return answer(r, 502, strings.NewReader("<html>"+html.EscapeString(s)+"</html>")), nil
		},
		"page of a proxy with 200": func(r *http.Request, s string) (*http.Response, error) {
			return answer(r, 200, strings.NewReader("<html>"+s)), nil
		},
		"page that spells the padding as Gson does": func(r *http.Request, s string) (*http.Response, error) {
			return answer(r, 403, strings.NewReader("<p>"+strings.ReplaceAll(s, "=", `\u003d`)+"</p>")), nil
		},
		"page that spells the padding as Mustache does": func(r *http.Request, s string) (*http.Response, error) {
			return answer(r, 403, strings.NewReader("<p>"+strings.NewReplacer("=", "&#x3D;", "/", "&#x2F;").Replace(html.EscapeString(s))+"</p>")), nil
		},
		"all in base64": func(r *http.Request, s string) (*http.Response, error) {
			text := base64.RawURLEncoding.EncodeToString([]byte("debug: " + url.QueryEscape(s)))
			return answer(r, 422, strings.NewReader(`{"scope":"`+text+`","error":"`+text+`"}`)), nil
		},
		"page with 200, escaped twice": func(r *http.Request, s string) (*http.Response, error) {
			return answer(r, 200, strings.NewReader("<html> "+url.QueryEscape(url.PathEscape(s)))), nil
		},
		"panic of a struct":    func(_ *http.Request, s string) (*http.Response, error) { panic(struct{ a, b any }{s, []string{s}}) },
		"panic of a Stringer":  func(_ *http.Request, s string) (*http.Response, error) { panic(&url.URL{Path: s}) },
		"nil pointer":          func(_ *http.Request, s string) (*http.Response, error) { panic((*url.Error)(nil)) },
		"nil pointer returned": func(_ *http.Request, s string) (*http.Response, error) { return nil, (*url.Error)(nil) },
		"error in JSON": func(r *http.Request, s string) (*http.Response, error) {
			text, _ := json.Marshal(map[string]any{"error": s, "error_description": s, "error_uri": s})
			return answer(r, 400, strings.NewReader(string(text))), nil
		},
		"fields in JSON": func(r *http.Request, s string) (*http.Response, error) {
			text, _ := json.Marshal(map[string]any{"scope": s, s: []string{s}})
			return answer(r, 422, strings.NewReader(string(text))), nil
		},
		"error with 200": func(r *http.Request, s string) (*http.Response, error) {
			text, _ := json.Marshal(map[string]any{"error": s})
			return answer(r, 200, strings.NewReader(string(text))), nil
		},
		"odd token type": func(r *http.Request, s string) (*http.Response, error) {
			text, _ := json.Marshal(map[string]any{"access_token": "x", "token_type": s})
			return answer(r, 200, strings.NewReader(string(text))), nil
		},
		"header": func(r *http.Request, s string) (*http.Response, error) {
			resp := answer(r, 503, http.NoBody)
			resp.Status = "503 " + s
			for _, name := range []string{"X-Request-Id", "Content-Type", "Location", "Set-Cookie", "Retry-After", "Date"} {
				resp.Header.Set(name, s)
			}
			return resp, nil
		},
		"header with 200": func(r *http.Request, s string) (*http.Response, error) {
			resp := answer(r, 200, strings.NewReader("{}"))
			resp.Status = "200 " + s
			resp.Header.Set("X-Request-Id", s)
			resp.Header.Set("Content-Type", s)
			return resp, nil
		},
		"redirect": func(r *http.Request, s string) (*http.Response, error) {
			resp := answer(r, 307, http.NoBody)
			resp.Header.Set("Location", "https://example.com/?"+url.QueryEscape(s))
			return resp, nil
		},
		"redirect to nowhere": func(r *http.Request, s string) (*http.Response, error) {
			resp := answer(r, 302, http.NoBody)
			resp.Header.Set("Location", "://"+s)
			return resp, nil
		},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t, moovtest.WithCredentials("public-key", `s3cr3t+/="<&>ü`))
				basic := base64.StdEncoding.EncodeToString([]byte("public-key:" + server.ClientSecret))
				var known []string // secrets, as they were obtained
				failing := false
				client := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					if !failing {
						return server.Transport().RoundTrip(r)
					}
					sent, _ := io.ReadAll(r.Body)
					all := strings.Join(append(known, r.Header.Get("Authorization"), string(sent)), " ")
					return echo(r, all)
				})}
				out := new(page)
				logger := slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))
				s := sourceOf(t, server, WithHTTPClient(client), WithLogger(logger))

				// Two sets of tokens: the one just replaced, and the current one.
				tok := token(t, s)
				known = append(known, tok.AccessToken, tok.RefreshToken)
				time.Sleep(14 * time.Minute)
				token(t, s)
				synctest.Wait()
				tok = token(t, s)
				known = append(known, tok.AccessToken, tok.RefreshToken, server.ClientSecret)

				failing = true
				s.Invalidate(tok.AccessToken)
				_, err := s.Token()
				require.Error(t, err)
				out.print(err)
				_, err = s.Token() // again, while it cools down
				out.print(err)
				_, err = s.Client().Get(server.URL + "/ping")
				out.print(err)
				out.print(s.Revoke(t.Context()))
				secrets := append(known, basic)
				known = []string{tok.AccessToken, server.ClientSecret} // all that the next call can know
				err = Revoke(t.Context(), credentialsOf(server), tok.AccessToken, WithBaseURL(server.URL), WithHTTPClient(client))
				out.print(err)
				out.print(credentialsOf(server))
				out.print(s)
				out.print(&Transport{Source: s})
				out.print(WithToken(tok))
				time.Sleep(time.Minute)
				synctest.Wait()
				out.print(struct{ source *TokenSource }{s})

				text := out.text.String()
				require.Greater(t, len(text), 1000)
				for _, secret := range secrets {
					quoted, _ := json.Marshal(secret)
					for _, form := range []string{
						secret, url.QueryEscape(secret), html.EscapeString(secret), strings.Trim(string(quoted), `"`), strings.Trim(fmt.Sprintf("%q", secret), `"`),
						hex.EncodeToString([]byte(secret)), strings.ToUpper(hex.EncodeToString([]byte(secret))),
						base64.StdEncoding.EncodeToString([]byte(secret))[:8], base64.StdEncoding.EncodeToString([]byte(" " + secret))[2:12], base64.StdEncoding.EncodeToString([]byte("  " + secret))[3:12],
						secret[:8], secret[len(secret)-8:],
					} {
						if i := strings.Index(text, form); i >= 0 {
							assert.Fail(t, "a secret is in sight", "%q in %q", form, text[max(0, i-200):min(len(text), i+len(form)+100)])
						}
					}
				}
			})
		})
	}
}

// answer is a response to r.
func answer(r *http.Request, status int, body io.Reader) *http.Response {
	return &http.Response{Status: fmt.Sprint(status, " ", http.StatusText(status)), StatusCode: status, Header: make(http.Header), Body: io.NopCloser(body), Request: r}
}

// failingReader fails with its own text.
type failingReader string

func (f failingReader) Read([]byte) (int, error) { return 0, errors.New(string(f)) }

func TestPanicTextOfTheSourceIsMaskedToo(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		out := new(page)
		s := sourceOf(t, inMemory(t), WithLogger(slog.New(slog.NewTextHandler(out, nil))), WithHTTPClient(&http.Client{
			Transport: roundTripper(func(*http.Request) (*http.Response, error) { panic("moovtest-secret-key") }),
		}))
		_, err := s.TokenContext(context.Background())
		out.print(err)
		assert.NotContains(t, out.text.String(), "moovtest-secret-key")
		assert.Contains(t, out.text.String(), masked)
	})
}

func TestSecretsInOddPlacesOfAReply(t *testing.T) {
	t.Parallel()
	const fresh = "a-fresh-token"
	long := strings.Repeat("x", 190)
	for name, answer := range map[string]func(secret string) moovtest.Answer{
		"request ID of a good reply": func(secret string) moovtest.Answer {
			return moovtest.Answer{Header: http.Header{"X-Request-Id": {secret + fresh}}, Body: `{"access_token":"` + fresh + `"}`}
		},
		"request ID that is cut off": func(secret string) moovtest.Answer {
			return moovtest.Answer{Header: http.Header{"X-Request-Id": {long + secret}}, Body: `{"access_token":"x","token_type":"mac"}`}
		},
		"token type": func(string) moovtest.Answer {
			return moovtest.Answer{Body: `{"access_token":"` + fresh + `","token_type":"` + fresh + `"}`}
		},
		"token type, refresh token": func(string) moovtest.Answer {
			return moovtest.Answer{Body: `{"access_token":"x","refresh_token":"` + fresh + `","token_type":"` + fresh + `"}`}
		},
		"trailer": func(secret string) moovtest.Answer {
			return moovtest.Answer{Handler: func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Trailer", "X-Echo")
				w.WriteHeader(http.StatusBadRequest)
				_, _ = io.WriteString(w, `{"error":"x"}`)
				w.(http.Flusher).Flush()
				w.Header().Set("X-Echo", secret)
			}}
		},
	} {
		t.Run(name, func(t *testing.T) {
			server := onLoopback(t, moovtest.WithCredentials("public-key", "s3cr3t-of-an-API-key"))
			a := answer(server.ClientSecret)
			server.Enqueue(a, a, a)
			seen := new(page)
			s := hurried(sourceOf(t, server, WithLogger(slog.New(slog.NewTextHandler(seen, &slog.HandlerOptions{Level: slog.LevelDebug})))))
			_, err := s.Token()
			seen.print(err)
			var refused *oauth2.RetrieveError
			if errors.As(err, &refused) {
				seen.print(*refused.Response)
			}
			assert.NotEmpty(t, seen.text.String())
			assert.NotContains(t, seen.text.String(), server.ClientSecret[:9])
			assert.NotContains(t, seen.text.String(), fresh)
		})
	}
}

func TestFormerTokenThatMayBeAliveIsMasked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := hurried(sourceOf(t, server))
		var former []string
		for range 10 {
			tok := token(t, s).AccessToken
			former = append(former, tok)
			s.Invalidate(tok)
			time.Sleep(maxInterval)
		}
		for i, tok := range former {
			a := moovtest.Answer{Status: 400, Body: `{"error":"` + tok + `"}`}
			server.Enqueue(a, a)
			_, err := s.Token()
			require.Error(t, err)
			assert.NotContains(t, err.Error(), tok[len(tok)-20:], i)
			time.Sleep(maxInterval)
		}
	})
}

func TestUsedUpTokenIsMaskedAfterRevoke(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := hurried(sourceOf(t, server, WithToken(&oauth2.Token{RefreshToken: "unknown-refresh"})))
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	a := moovtest.Answer{Status: 500, Body: `{"error":"unknown-refresh"}`}
	server.Enqueue(a, a, a)
	_, err := s.Token()
	assert.NotContains(t, err.Error(), "unknown-refresh")
}
