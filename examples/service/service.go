package main

// This file is the service as its users and its operators see it, and the sessions
// of the users.

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"
	"golang.org/x/time/rate"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/platform"
)

type service struct {
	api    string                               // Moov's base URL
	client *http.Client                         // for token requests, and for calls
	cache  moovauth.Cache                       // nil: none
	key    func() (moovauth.Credentials, error) // reads the API key

	current  atomic.Pointer[platform.Tokens]
	sessions sync.Map // of users, by the value of their cookie: map[string]*session

	// Only the goroutine of serve uses these two.
	Creds  moovauth.Credentials // of current; exported, or else fmt would print the secret
	former []*platform.Tokens   // of former API keys, to be revoked
}

func (s *service) handler() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /sign-in", s.signIn)
	mux.HandleFunc("POST /sign-out", s.signOut)
	mux.HandleFunc("GET /cards", s.cards)
	mux.HandleFunc("/moov-token", func(w http.ResponseWriter, r *http.Request) {
		s.current.Load().Handler(s.pageScopes).ServeHTTP(w, r)
	})
	mux.Handle("GET /moov-token.js", platform.PageModule())
	// The rest is not for users: let the proxy in front of the service hide it.
	registry := prometheus.NewRegistry()
	registry.MustRegister(collector(s.current.Load))
	mux.Handle("GET /metrics", promhttp.HandlerFor(registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /ready", s.ready)
	mux.HandleFunc("GET /live", func(http.ResponseWriter, *http.Request) {}) // does not look at Moov: a restart would not help
	protection := http.NewCrossOriginProtection()
	protection.AddInsecureBypassPattern("/moov-token") // it has its own protection, which knows platform.WithOrigins
	return protection.Handler(mux)
}

// ready answers 503 if Moov issues no tokens for the API key. It looks at a token of its
// own, so a problem of one account does not matter. That token is requested every 12
// minutes at most, or after each cool-down.
func (s *service) ready(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), time.Second)
	defer cancel()
	if err := obtain(ctx, s.current.Load(), "/ping.read"); err != nil {
		http.Error(w, "no token", http.StatusServiceUnavailable)
	}
}

// cards sends the cards of the user's account, with a token that can only read them.
func (s *service) cards(w http.ResponseWriter, r *http.Request) {
	open, err := s.session(r)
	if err != nil {
		http.Error(w, "sign in first", http.StatusUnauthorized)
		return
	}
	client, err := s.current.Load().Client(open.account + "/cards.read") // not kept: it would use the former API key after a rotation
	if err != nil {
		fail(w, r, err)
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, s.api+open.account+"/cards", nil)
	if err != nil {
		fail(w, r, err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		fail(w, r, err)
		return
	}
	defer resp.Body.Close()
	w.Header().Set("Cache-Control", "no-store")
	switch resp.StatusCode {
	case http.StatusOK:
		w.Header().Set("Content-Type", "application/json")
		if _, err := io.Copy(w, resp.Body); err != nil {
			panic(http.ErrAbortHandler) // otherwise a truncated reply would look complete
		}
	case http.StatusTooManyRequests: // the caller knows whether a retry is worth it
		w.Header().Set("Retry-After", resp.Header.Get("Retry-After"))
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	default: // 401: another token was refused, too. 403: the scopes do not suffice
		fail(w, r, fmt.Errorf("the API answered %s (request ID %s)", resp.Status, resp.Header.Get("X-Request-Id")))
	}
}

// fail logs why a call failed, and tells the user whether to try again.
func fail(w http.ResponseWriter, r *http.Request, err error) {
	if r.Context().Err() != nil {
		return // the user has left
	}
	slog.Error("call failed", "error", err)
	status := http.StatusBadGateway
	if temporary(err) {
		status = http.StatusServiceUnavailable
		w.Header().Set("Retry-After", "5")
	}
	http.Error(w, http.StatusText(status), status)
}

// temporary reports whether a retry may succeed: after a failed connection, or if an
// error of moovauth says so.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, new(*net.OpError)) || errors.As(err, &t) && t.Temporary()
}

// pageScopes returns the scopes of the token for the user's page, which can add cards
// to the user's account.
func (s *service) pageScopes(r *http.Request) ([]string, error) {
	open, err := s.session(r)
	if err != nil {
		return nil, err
	}
	if !open.mints.Allow() {
		return nil, platform.StatusError(http.StatusTooManyRequests)
	}
	return []string{open.account + "/cards.write"}, nil
}

// A session is a user who is signed in. Put your own sign-in in place of signIn and
// session, with a limit for how long a session lasts.
type session struct {
	id      string        // the value of the cookie
	account string        // the path of the user's account at Moov: /accounts/ and its ID
	mints   *rate.Limiter // of the user's pages, so that no user delays the others
	// The tokens of the user's pages, and the Tokens that minted them, since only the
	// same API key can revoke a token (RFC 7009 §2.1): map[*oauth2.Token]*platform.Tokens
	pages sync.Map
}

// begin begins a session.
func (s *service) begin(account string) *session {
	open := &session{id: rand.Text(), account: "/accounts/" + account, mints: rate.NewLimiter(rate.Every(10*time.Second), 10)}
	s.sessions.Store(open.id, open)
	return open
}

// signIn signs the demo user in, without a password.
func (s *service) signIn(w http.ResponseWriter, r *http.Request) {
	s.endOf(r) // the session of the former user
	open := s.begin(cmp.Or(os.Getenv("MOOV_ACCOUNT"), "demo"))
	http.SetCookie(w, &http.Cookie{Name: "session", Value: open.id, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode})
}

// session returns the session of the user who made a request.
func (s *service) session(r *http.Request) (*session, error) {
	if cookie, err := r.Cookie("session"); err == nil {
		if open, ok := s.sessions.Load(cookie.Value); ok {
			return open.(*session), nil
		}
	}
	return nil, platform.StatusError(http.StatusUnauthorized)
}

// minted notes a token before its page receives it. If the user has signed out
// meanwhile, the error makes the handler revoke the token.
func (s *service) minted(r *http.Request, token *oauth2.Token, by *platform.Tokens) error {
	open, err := s.session(r)
	if err != nil {
		return err
	}
	for former := range open.pages.Range {
		if time.Now().After(former.(*oauth2.Token).Expiry) {
			open.pages.Delete(former)
		}
	}
	open.pages.Store(token, by)
	_, err = s.session(r) // again: a sign-out in between did not see the token
	return err
}

// signOut also succeeds if Moov is down.
func (s *service) signOut(w http.ResponseWriter, r *http.Request) {
	s.endOf(r)
	http.SetCookie(w, &http.Cookie{Name: "session", Path: "/", MaxAge: -1})
}

// endOf ends the session of a request, if there is one. If a token cannot be revoked in
// 5 s, the log says so, and the token lives until it expires.
func (s *service) endOf(r *http.Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second) // also if the page disconnects
	defer cancel()
	if open, err := s.session(r); err == nil {
		_ = s.end(ctx, open)
	}
}

// end ends a session, and revokes the tokens of its pages.
func (s *service) end(ctx context.Context, open *session) (err error) {
	s.sessions.Delete(open.id)
	for token, by := range open.pages.Range {
		if token := token.(*oauth2.Token); time.Now().Before(token.Expiry) {
			err = errors.Join(err, by.(*platform.Tokens).Revoke(ctx, token.AccessToken))
		}
	}
	return err
}

// each calls f for all sessions at the same time, and returns the first error.
func (s *service) each(f func(*session) error) error {
	var all errgroup.Group
	for _, open := range s.sessions.Range {
		all.Go(func() error { return f(open.(*session)) })
	}
	return all.Wait()
}
