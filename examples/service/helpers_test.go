package main

import (
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
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// fixture is a service, and a Moov whose cards endpoint can be told what to
// answer. All of it is in a bubble, so that time costs nothing.
type fixture struct {
	*service
	t      *testing.T
	server *moovtest.Server
	cards  *atomic.Pointer[http.HandlerFunc] // nil: 200
	key    *atomic.Pointer[moovauth.Credentials]
	travel time.Duration // of a call to the API, before its token is looked at
}

// RoundTrip is the network between the service and Moov.
func (f *fixture) RoundTrip(r *http.Request) (*http.Response, error) {
	if strings.HasPrefix(r.URL.Path, "/accounts/") {
		time.Sleep(f.travel)
	}
	return f.server.Transport().RoundTrip(r)
}

func test(t *testing.T, f func(t *testing.T, f *fixture)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { f(t, newFixture(t, "")) })
}

func newFixture(t *testing.T, cache string, opts ...moovtest.Option) *fixture {
	t.Helper()
	server := moovtest.NewInMemory(opts...)
	t.Cleanup(server.Close)
	f := &fixture{t: t, server: server, cards: new(atomic.Pointer[http.HandlerFunc]), key: new(atomic.Pointer[moovauth.Credentials])}
	f.key.Store(&moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret})
	server.Handle("GET /accounts/{accountID}/cards", "/accounts/{accountID}/cards.read", http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) {
			if answer := f.cards.Load(); answer != nil {
				(*answer)(w, r)
				return
			}
			_, _ = io.WriteString(w, "[]")
		}))
	require.NoError(t, f.start(cache))
	return f
}

// start makes a service, as in a process that starts.
func (f *fixture) start(cache string) (err error) {
	f.service, err = newService(f.t.Context(), config{
		api: f.server.URL, cache: cache, log: slog.New(slog.DiscardHandler),
		client: &http.Client{Transport: f, Timeout: callTimeout},
		key: func() (moovauth.Credentials, error) {
			if key := f.key.Load(); key != nil {
				return *key, nil
			}
			return moovauth.Credentials{}, errors.New("no key")
		},
	})
	return err
}

// answer makes the cards endpoint answer with a status.
func (f *fixture) answer(status int, header ...string) {
	answer := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
	})
	f.cards.Store(&answer)
}

// newKey makes another API key at Moov, which the service finds at the next SIGHUP.
func (f *fixture) newKey() {
	f.server.SetCredentials("new-public-key", "new-secret-key")
	f.key.Store(&moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
}

// send is what a browser sends, with the session's cookie.
func (f *fixture) send(method, path string, session *http.Cookie) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "https://example.com"+path, nil)
	if session != nil {
		r.AddCookie(session)
	}
	w := httptest.NewRecorder()
	f.handler.ServeHTTP(w, r)
	return w
}

// get returns the status of GET /cards for the user of an account.
func (f *fixture) get(account string) int {
	return f.send("GET", "/cards", f.sessions.begin(account)).Code
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
	hangup chan os.Signal
	client *http.Client
	stop   func() error
}

func (f *fixture) run() *running {
	listener := &pipes{conns: make(chan net.Conn), closed: make(chan struct{})}
	r := &running{
		hangup: make(chan os.Signal, 1),
		client: &http.Client{Transport: &http.Transport{DialContext: listener.dial}},
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	s := f.service
	go func() { ended <- s.serve(ctx, listener, r.hangup) }()
	r.stop = sync.OnceValue(func() error {
		defer r.client.CloseIdleConnections()
		cancel()
		return <-ended
	})
	f.t.Cleanup(func() { _ = r.stop() })
	return r
}

// get is GET /cards over a connection of the service.
func (r *running) get(session *http.Cookie) (int, error) {
	req, err := http.NewRequest(http.MethodGet, "http://example.com/cards", nil)
	if err != nil {
		return 0, err
	}
	req.AddCookie(session)
	resp, err := r.client.Do(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// pipes is a listener without sockets, which a bubble's time does not wait for.
type pipes struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (p *pipes) dial(context.Context, string, string) (net.Conn, error) {
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
