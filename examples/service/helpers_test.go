package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// fixture is a service, and a Moov whose cards endpoint a test can replace. Both
// are in a bubble, so the tests do not wait for real time.
type fixture struct {
	*service
	t      *testing.T
	server *moovtest.Server
	answer atomic.Pointer[http.HandlerFunc] // of the cards endpoint; nil: 200
	apiKey atomic.Pointer[moovauth.Credentials]
	travel time.Duration // of a call to the API, before the API checks its token
}

// RoundTrip is the network between the service and Moov.
func (f *fixture) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.Path, "/accounts/") {
		time.Sleep(f.travel)
	}
	return f.server.Transport().RoundTrip(r)
}

func test(t *testing.T, f func(t *testing.T, f *fixture), opts ...moovtest.Option) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(opts...)
		fix := &fixture{t: t, server: server}
		log := captureLog(t)
		t.Cleanup(func() {
			server.Close()
			assert.NotContains(t, log.String(), "secret-key")
			for _, token := range server.AccessTokens() {
				assert.NotContains(t, log.String(), token)
			}
		})
		fix.apiKey.Store(&moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret})
		server.Handle("GET /accounts/{accountID}/cards", "/accounts/{accountID}/cards.read", http.HandlerFunc(
			func(w http.ResponseWriter, r *http.Request) {
				if answer := fix.answer.Load(); answer != nil {
					(*answer)(w, r)
					return
				}
				_, _ = io.WriteString(w, "[]")
			}))
		require.NoError(t, fix.start(nil))
		f(t, fix)
	})
}

// captureLog returns what the service logs until the test ends.
func captureLog(t *testing.T) *bytes.Buffer {
	log, before := new(bytes.Buffer), slog.Default()
	slog.SetDefault(slog.New(slog.NewTextHandler(log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	t.Cleanup(func() { slog.SetDefault(before) })
	return log
}

// start makes a service, as a new process would.
func (f *fixture) start(cache moovauth.Cache) error {
	f.service = &service{api: f.server.URL, cache: cache, client: &http.Client{Transport: f, Timeout: callTimeout},
		key: func() (moovauth.Credentials, error) {
			if key := f.apiKey.Load(); key != nil {
				return *key, nil
			}
			return moovauth.Credentials{}, errors.New("no key")
		}}
	return f.loadKey(f.t.Context())
}

// answerWith makes the cards endpoint answer with a status.
func (f *fixture) answerWith(status int, header ...string) {
	f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
	})))
}

// newKey makes another API key at Moov, which the service finds at the next SIGHUP.
func (f *fixture) newKey() {
	f.server.SetCredentials("new-public-key", "new-secret-key")
	f.apiKey.Store(&moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
}

// signedIn returns the cookie of a user of an account.
func (f *fixture) signedIn(account string) *http.Cookie {
	return &http.Cookie{Name: "session", Value: f.begin(account).id}
}

// send sends a request as a browser does.
func (f *fixture) send(method, path string, session *http.Cookie) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://example.com"+path, nil)
	if session != nil {
		r.AddCookie(session)
	}
	return f.serveHTTP(r)
}

func (f *fixture) serveHTTP(r *http.Request) *httptest.ResponseRecorder {
	w := httptest.NewRecorder()
	f.handler().ServeHTTP(w, r)
	return w
}

// get returns the status of GET /cards for the user of an account.
func (f *fixture) get(account string) int {
	return f.send("GET", "/cards", f.signedIn(account)).Code
}

// mint returns the token that a page gets.
func (f *fixture) mint(session *http.Cookie) string {
	f.t.Helper()
	w := f.send("POST", "/moov-token", session)
	require.Equal(f.t, http.StatusOK, w.Code, w.Body)
	var token struct {
		AccessToken string `json:"access_token"`
	}
	require.NoError(f.t, json.Unmarshal(w.Body.Bytes(), &token))
	return token.AccessToken
}

// running is a service that serves, until stop shuts it down.
type running struct {
	signals chan os.Signal
	dial    func() (net.Conn, error)
	stop    func() error
}

func (r *running) hangup() { r.signals <- syscall.SIGHUP }

func (f *fixture) run() *running {
	listener := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	r := &running{signals: make(chan os.Signal, 1), dial: listener.dial}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := f.service
	go func() { ended <- s.serve(ctx, listener, r.signals) }()
	r.stop = sync.OnceValue(func() error {
		cancel()
		return <-ended
	})
	f.t.Cleanup(func() { _ = r.stop() })
	return r
}

// call starts GET /cards over a connection of the service.
func (r *running) call(t *testing.T, session *http.Cookie) net.Conn {
	t.Helper()
	conn, err := r.dial()
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "GET /cards HTTP/1.1\r\nHost: example.com\r\nConnection: close\r\nCookie: "+session.String()+"\r\n\r\n")
	require.NoError(t, err)
	return conn
}

// pipes is a listener without sockets, since a bubble's time waits for sockets.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) dial() (net.Conn, error) {
	client, server := net.Pipe()
	select {
	case p.conns <- server:
		return client, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Accept() (net.Conn, error) {
	select {
	case c := <-p.conns:
		return c, nil
	case <-p.closed:
		return nil, net.ErrClosed
	}
}

func (p *pipes) Close() error   { p.once.Do(func() { close(p.closed) }); return nil }
func (p *pipes) Addr() net.Addr { return &net.UnixAddr{Name: "pipe"} }
