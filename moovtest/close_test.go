package moovtest_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/iotest"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// soon is the time allowed on a busy machine for something that happens at once.
const soon = 3 * time.Second

func closesSoon(t *testing.T, s *moovtest.Server) {
	t.Helper()
	began := time.Now()
	closed := make(chan struct{})
	go func() { defer close(closed); s.Close() }()
	select {
	case <-closed:
		assert.Less(t, time.Since(began), soon)
	case <-time.After(4 * soon):
		require.Fail(t, "Close does not return")
	}
}

// pipe returns a body that stays open until its writer is closed. http.NewRequest
// does not know its length.
func pipe() (io.ReadCloser, *io.PipeWriter) { return io.Pipe() }

func TestCloseReturnsAtOnceWithAHalfSentBody(t *testing.T) {
	for _, path := range []string{"/oauth2/token", "/oauth2/revoke", "/ping", "/mine", "/unread", "/nowhere"} {
		t.Run(path, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, start start) {
				s := start()
				s.Handle("/mine", "", echo)
				entered := make(chan bool, 1)
				s.Handle("/unread", "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { entered <- true }))
				access := grant(t, s).member(t, "access_token")

				body, writer := pipe()
				req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, s.URL+path, body)
				require.NoError(t, err)
				req.Header.Set("Content-Type", formType)
				req.Header.Set("Authorization", "Bearer "+access)
				failed := make(chan error, 1)
				go func() {
					resp, err := s.Client().Do(req)
					if err == nil {
						resp.Body.Close()
					}
					failed <- err
				}()
				_, err = io.WriteString(writer, "grant_type=client_")
				require.NoError(t, err)
				closesSoon(t, s)
				writer.Close() // net/http's client waits for the end of the body
				assert.Error(t, <-failed)
			})
		})
	}
}

// After a handler has returned, net/http itself reads the rest of the body.
func TestCloseReturnsAtOnceWhileNetHTTPReadsTheRestOfABody(t *testing.T) {
	s := moovtest.NewServer()
	returned := make(chan bool, 1)
	s.Handle("/unread", "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { returned <- true }))
	access := grant(t, s).member(t, "access_token")
	conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
	require.NoError(t, err)
	defer conn.Close()
	fmt.Fprintf(conn, "POST /unread HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nTransfer-Encoding: chunked\r\n\r\n", access)
	fmt.Fprintf(conn, "%x\r\n%s\r\n", 1<<20, strings.Repeat("x", 1<<20))
	<-returned
	closesSoon(t, s)
}

func TestCloseReturnsAtOnceWithHalfSentHeaders(t *testing.T) {
	s := moovtest.NewServer()
	for _, sent := range []string{"", "POST /oauth2/token HTTP/1.1\r\nHos", "GET /ping HTTP/1.1\r\nHost: x\r\n\r\nGET /pi"} {
		conn, err := net.Dial("tcp", strings.TrimPrefix(s.URL, "http://"))
		require.NoError(t, err)
		defer conn.Close()
		_, err = io.WriteString(conn, sent)
		require.NoError(t, err)
	}
	closesSoon(t, s)
	closesSoon(t, s) // a second Close has no effect
}

func TestCloseOfAMountedServerHangsUpOnAHalfSentBody(t *testing.T) {
	for name, unwrap := range map[string]func(*httptest.Server){
		"HTTP/1": (*httptest.Server).Start,
		"HTTP/2": func(s *httptest.Server) { s.EnableHTTP2 = true; s.StartTLS() },
	} {
		t.Run(name, func(t *testing.T) {
			s := moovtest.NewInMemory()
			outer := httptest.NewUnstartedServer(s)
			unwrap(outer)
			defer outer.Close()
			body, writer := pipe()
			failed := make(chan error, 1)
			go func() {
				_, err := outer.Client().Post(outer.URL+"/oauth2/token", formType, body)
				failed <- err
			}()
			_, err := io.WriteString(writer, "grant_type=client_")
			require.NoError(t, err)
			closesSoon(t, s)
			writer.Close() // net/http's client waits for the end of the body
			assert.Error(t, <-failed)
		})
	}
}

func TestCloseInterruptsHandlersThatReadOrWrite(t *testing.T) {
	for name, handler := range map[string]http.HandlerFunc{
		"waits": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"writes": func(w http.ResponseWriter, r *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1<<20)); err != nil || r.Context().Err() != nil {
					return
				}
				http.NewResponseController(w).Flush()
			}
		},
		"hijacks": func(w http.ResponseWriter, r *http.Request) {
			conn, _, err := http.NewResponseController(w).Hijack()
			if err != nil {
				<-r.Context().Done()
				return
			}
			defer conn.Close()
			io.Copy(io.Discard, conn)
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, start start) {
				if name == "writes" && strings.Contains(t.Name(), "memory") {
					t.Skip("in memory, the reply is complete before the client reads it")
				}
				s := start()
				entered := make(chan bool, 1)
				s.Enqueue(moovtest.Answer{Handler: func(w http.ResponseWriter, r *http.Request) {
					entered <- true
					handler(w, r)
				}})
				req := posting(t, s, "/oauth2/token")
				go func() {
					if resp, err := s.Client().Do(req); err == nil {
						defer resp.Body.Close()
						<-t.Context().Done() // the client does not read the reply
					}
				}()
				<-entered
				closesSoon(t, s)
			})
		})
	}
}

func TestCloseInMemoryDoesNotWaitForAStubbornHandler(t *testing.T) {
	s := moovtest.NewInMemory()
	release := make(chan bool)
	defer close(release)
	entered := make(chan bool)
	s.Handle("/stubborn", "", http.HandlerFunc(func(http.ResponseWriter, *http.Request) { close(entered); <-release }))
	req := request(t, s, http.MethodGet, "/stubborn", "", "")
	req.Header.Set("Authorization", "Bearer "+grant(t, s).member(t, "access_token"))
	failed := make(chan error, 1)
	go func() {
		_, err := s.Client().Do(req)
		failed <- err
	}()
	<-entered
	closesSoon(t, s)
	assert.ErrorContains(t, <-failed, "closed")
}

func TestNothingChangesOnceTheServerIsClosed(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		for range 20 {
			s := start(moovtest.WithLatency(time.Millisecond))
			var all sync.WaitGroup
			for range 8 {
				req := posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read")
				all.Go(func() {
					if resp, err := s.Client().Do(req); err == nil {
						resp.Body.Close()
					}
				})
			}
			untilTokenRequests(s, 1)
			s.Close()
			tokens, requests := s.AccessTokens(), s.Requests()
			all.Wait()
			assert.Equal(t, tokens, s.AccessTokens())
			assert.Equal(t, requests, s.Requests())
		}
	})
}

// goroutines waits until there are at most as many goroutines as before.
func goroutines(t *testing.T, s *moovtest.Server, before int) {
	t.Helper()
	for deadline := time.Now().Add(4 * soon); runtime.NumGoroutine() > before; time.Sleep(time.Millisecond) {
		s.Client().CloseIdleConnections() // a connection may have been opened after its request ended
		if time.Now().After(deadline) {
			stacks := make([]byte, 1<<20)
			require.Fail(t, "goroutines are left behind", "%s", stacks[:runtime.Stack(stacks, true)])
		}
	}
}

func TestClientThatGivesUpLeavesNoGoroutine(t *testing.T) {
	large := strings.Repeat("x", 3<<20)
	for name, send := range map[string]func(*http.Request){
		"while it waits": func(*http.Request) {},
		"while it waits, with a large body": func(r *http.Request) {
			r.Body, r.ContentLength = io.NopCloser(strings.NewReader(large)), int64(len(large))
		},
		"half-way through its body": func(r *http.Request) {
			body, writer := pipe()
			r.Body, r.ContentLength = body, 100
			go io.WriteString(writer, "grant_type=client_")
			context.AfterFunc(r.Context(), func() { writer.CloseWithError(context.Canceled) }) // net/http's client waits for the end of the body
		},
	} {
		t.Run(name, func(t *testing.T) {
			onEachKind(t, func(t *testing.T, start start) {
				s := start(moovtest.WithLatency(time.Hour))
				defer s.Close()
				s.Client().CloseIdleConnections()
				before := runtime.NumGoroutine()
				for n := range 5 {
					ctx, cancel := context.WithCancel(t.Context())
					req := posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read").WithContext(ctx)
					send(req)
					if req.ContentLength == 100 {
						time.AfterFunc(20*time.Millisecond, cancel)
					} else {
						go func() { untilTokenRequests(s, n+1); cancel() }()
					}
					_, err := s.Client().Do(req)
					assert.ErrorIs(t, err, context.Canceled)
				}
				goroutines(t, s, before)
				assert.Empty(t, s.AccessTokens())
			})
		})
	}
}

// If a test calls ServeHTTP directly, the server must not panic.
func TestClientThatGivesUpCausesNoPanic(t *testing.T) {
	s := inMemory(t, moovtest.WithLatency(time.Hour))
	gone, cancel := context.WithCancel(t.Context())
	cancel()
	for _, body := range []io.Reader{strings.NewReader("grant_type=x"), iotest.ErrReader(errors.New("broken"))} {
		w := httptest.NewRecorder()
		req := httptest.NewRequestWithContext(gone, http.MethodPost, "/oauth2/token", body)
		assert.NotPanics(t, func() { s.ServeHTTP(w, req) })
		assert.NotEqual(t, http.StatusOK, w.Code)
	}
	assert.Empty(t, s.AccessTokens())
}

func TestBrokenBodyTakesNoAnswerAndChangesNothing(t *testing.T) {
	onEachKind(t, func(t *testing.T, start start) {
		s := start()
		s.Enqueue(moovtest.Answer{Status: 503})
		whole := "grant_type=client_credentials&scope=/ping.read"
		for _, path := range []string{"/oauth2/token", "/oauth2/revoke"} {
			req := posting(t, s, path)
			req.Body, req.ContentLength = io.NopCloser(io.MultiReader(strings.NewReader(whole), iotest.ErrReader(errors.New("broken")))), 1000
			_, err := s.Client().Do(req)
			assert.ErrorContains(t, err, "broken")
		}
		assert.Eventually(t, func() bool { return len(s.Requests()) == 2 }, 4*soon, time.Millisecond, "the requests are recorded")
		assert.Equal(t, whole, s.Requests()[0].Body)
		assert.Empty(t, s.AccessTokens())
		assert.Equal(t, 503, grant(t, s).StatusCode)
	})
}

func TestClientThatGivesUpInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := moovtest.NewInMemory(moovtest.WithLatency(time.Hour))
		client := *s.Client()
		client.Timeout = time.Second
		for range 3 {
			_, err := client.Do(posting(t, s, "/oauth2/token", "grant_type", "client_credentials", "scope", "/ping.read"))
			assert.Error(t, err)
			stalled, _ := pipe()
			_, err = client.Post(s.URL+"/oauth2/token", formType, stalled)
			assert.Error(t, err)
		}
		// The test ends without Close. The bubble panics if a goroutine still runs.
	})
}

// After RoundTrip has closed the body, a client may use it for something else.
func TestInMemoryBodyIsNotReadAfterItIsClosed(t *testing.T) {
	s := inMemory(t)
	reading := make(chan bool)
	read := make(chan error, 1)
	s.Handle("/late", "", http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(reading)
		<-r.Context().Done()
		time.Sleep(10 * time.Millisecond) // until RoundTrip has returned
		_, err := io.ReadAll(r.Body)
		read <- err
	}))
	ctx, cancel := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, s.URL+"/late", struct{ io.Reader }{strings.NewReader(strings.Repeat("x", 2<<20))})
	require.NoError(t, err)
	req.Header.Set("Authorization", "Bearer "+grant(t, s).member(t, "access_token"))
	go func() { <-reading; cancel() }()
	_, err = s.Client().Do(req)
	assert.ErrorIs(t, err, context.Canceled)
	assert.ErrorIs(t, <-read, http.ErrBodyReadAfterClose)
}

func TestClockInABubbleStartsIn2030(t *testing.T) {
	for _, after := range []time.Duration{0, 40 * 24 * time.Hour, 5000*24*time.Hour + time.Second} {
		synctest.Test(t, func(t *testing.T) {
			time.Sleep(after)
			s := inMemory(t)
			want := time.Date(2030, 1, 1, 0, 0, 0, 0, time.UTC).Add(after)
			assert.Equal(t, want.Format(http.TimeFormat), ping(t, s, "").Header.Get("Date"))
			assert.True(t, want.Equal(s.Requests()[0].Time))
		})
	}
}

func TestClockInABubbleRunsEvenly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := inMemory(t)
		ping(t, s, "")
		for range 70 {
			time.Sleep(24 * time.Hour)
			ping(t, s, "")
		}
		seen := s.Requests()
		for i := range seen[1:] {
			assert.Equal(t, 24*time.Hour, seen[i+1].Time.Sub(seen[i].Time))
		}
	})
}

// The bubble panics if a goroutine of the source still runs when the test ends.
func TestBubbleEndsWhileATokenSourceIsRefreshing(t *testing.T) {
	for name, c := range map[string]struct {
		prepare  func(*moovtest.Server)
		requests int
	}{
		"request under way":    {func(s *moovtest.Server) { s.SetLatency(time.Hour) }, 2},
		"between two attempts": {func(s *moovtest.Server) { s.Enqueue(moovtest.Answer{Status: 503}, moovtest.Answer{Status: 503}) }, 3},
		"replies lost":         {func(s *moovtest.Server) { s.Enqueue(moovtest.Answer{Lost: true}, moovtest.Answer{Lost: true}) }, 3},
		"asked to come back later": {func(s *moovtest.Server) {
			s.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"20"}}})
		}, 2},
		"handler that waits": {func(s *moovtest.Server) {
			s.Enqueue(moovtest.Answer{Handler: func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }})
		}, 2},
		"nothing": {func(*moovtest.Server) {}, 2},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t) // closes the server at the end of the test
				source, err := moovauth.NewTokenSource(
					moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
					moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client()), moovauth.WithScopes("/ping.read"))
				require.NoError(t, err)
				first, err := source.Token()
				require.NoError(t, err)
				time.Sleep(14 * time.Minute) // until the source refreshes the token early
				c.prepare(server)
				again, err := source.Token()
				require.NoError(t, err)
				assert.Equal(t, first.AccessToken, again.AccessToken)
				synctest.Wait()
				assert.Len(t, server.TokenRequests(), c.requests)
			})
		})
	}
}

func TestCloseInABubbleSleepsForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		began := time.Now()
		s := moovtest.NewInMemory(moovtest.WithLatency(time.Hour))
		req := posting(t, s, "/oauth2/token")
		failed := make(chan time.Duration, 1)
		go func() {
			_, err := s.Client().Do(req)
			assert.ErrorContains(t, err, "closed")
			failed <- time.Since(began)
		}()
		synctest.Wait()
		s.Close()
		assert.Zero(t, <-failed, "Close hangs up on running requests at once")
		assert.Equal(t, time.Minute, time.Since(began))
	})
}

func TestCloseOutsideABubbleDoesNotSleep(t *testing.T) {
	closesSoon(t, moovtest.NewInMemory())
}
