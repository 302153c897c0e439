package main

// This file is the service as its users and its operators see it.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
	"github.com/moovauth/moovauth/platform"
)

type config struct {
	api     string // Moov's base URL
	account string // of the demo user, at Moov
	cache   string // a directory; "": no cache
	key     func() (moovauth.Credentials, error)
	source  []moovauth.Option // such as WithOrigin
	client  *http.Client      // for token requests, and for calls
	log     *slog.Logger
}

type service struct {
	config
	keys     *rotating
	sessions *sessions
	handler  http.Handler
}

func newService(ctx context.Context, c config) (*service, error) {
	opts := append([]moovauth.Option{
		moovauth.WithBaseURL(c.api), moovauth.WithHTTPClient(c.client), moovauth.WithTimeout(callTimeout),
	}, c.source...)
	if c.cache != "" {
		cache, err := dircache.New(c.cache)
		if err != nil {
			return nil, err
		}
		opts = append(opts, moovauth.WithCache(cache))
	}
	s := &service{config: c, keys: new(rotating), sessions: newSessions(c.log)}
	s.keys.connect = func(creds moovauth.Credentials) (tokens *platform.Tokens, err error) {
		minted := func(r *http.Request, token *oauth2.Token) error { return s.sessions.minted(r, token, tokens) }
		tokens, err = platform.New(creds, platform.WithRate(10), platform.WithLogger(c.log),
			platform.WithSource(opts...), platform.WithMinted(minted))
		return tokens, err
	}
	creds, err := c.key()
	if err != nil {
		return nil, err
	}
	tokens, err := s.keys.connect(creds)
	if err != nil {
		return nil, err
	}
	if err := try(ctx, tokens); err != nil && !temporary(err) { // a wrong key is found now, but an outage need not stop us
		return nil, err
	}
	s.keys.Creds = creds
	s.keys.current.Store(tokens)

	mux := http.NewServeMux()
	mux.HandleFunc("POST /sign-in", s.signIn)
	mux.HandleFunc("POST /sign-out", s.signOut)
	mux.HandleFunc("GET /cards", s.cards)
	mux.HandleFunc("/moov-token", s.mint)
	mux.Handle("GET /moov-token.js", platform.PageModule())
	// These are not for users: let the proxy in front of the service hide them.
	metrics := prometheus.NewRegistry()
	metrics.MustRegister(collector{"live": s.keys.current.Load})
	mux.Handle("GET /metrics", promhttp.HandlerFor(metrics, promhttp.HandlerOpts{}))
	mux.Handle("GET /ready", readiness(s.keys.current.Load))
	mux.HandleFunc("GET /live", func(http.ResponseWriter, *http.Request) {}) // says nothing about Moov: a restart would not help
	s.handler = http.NewCrossOriginProtection().Handler(mux)
	return s, nil
}

// readiness answers 503 while accounts get no tokens: as many of them back off
// after a failure as have a good token, or more. It makes no request. Accounts
// that are idle do not count.
func readiness(current func() *platform.Tokens) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := current().Stats()
		if good := s.Fresh + s.Stale; s.CoolingDown > 0 && s.CoolingDown >= good {
			http.Error(w, fmt.Sprintf("%d accounts get no token, %d have one", s.CoolingDown, good), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// mint gives the user's page a token that can add cards to the user's account.
func (s *service) mint(w http.ResponseWriter, r *http.Request) {
	s.keys.current.Load().Handler(func(r *http.Request) ([]string, error) {
		account, ok := s.sessions.account(r)
		if !ok {
			return nil, platform.StatusError(http.StatusUnauthorized)
		}
		return []string{"/accounts/" + account + "/cards.write"}, nil
	}).ServeHTTP(w, r)
}

// cards sends the cards of the user's account, with a token that can only read them.
func (s *service) cards(w http.ResponseWriter, r *http.Request) {
	account, ok := s.sessions.account(r)
	if !ok {
		http.Error(w, "sign in first", http.StatusUnauthorized)
		return
	}
	client, err := s.keys.client("/accounts/" + account + "/cards.read")
	if err != nil {
		s.fail(w, err)
		return
	}
	req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, s.api+"/accounts/"+account+"/cards", nil)
	if err != nil {
		s.fail(w, err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		s.fail(w, err)
		return
	}
	defer resp.Body.Close()
	switch resp.StatusCode {
	case http.StatusOK:
		w.Header().Set("Content-Type", "application/json")
		_, _ = io.Copy(w, resp.Body) // the user may have left
	case http.StatusTooManyRequests: // not retried here: the user knows whether it is worth it
		w.Header().Set("Retry-After", resp.Header.Get("Retry-After"))
		http.Error(w, "try again later", http.StatusServiceUnavailable)
	default: // 401: another token was refused, too. 403: the scopes do not suffice
		s.fail(w, fmt.Errorf("GET /cards: Moov answered %s (request ID %s)", resp.Status, resp.Header.Get("X-Request-Id")))
	}
}

// fail tells the log why a call failed, and the user whether to try again.
func (s *service) fail(w http.ResponseWriter, err error) {
	s.log.Error("call failed", "error", err)
	if !temporary(err) {
		http.Error(w, "bad gateway", http.StatusBadGateway)
		return
	}
	var backingOff *moovauth.CoolDownError
	if errors.As(err, &backingOff) {
		seconds := math.Ceil(time.Until(backingOff.Until).Seconds())
		w.Header().Set("Retry-After", strconv.Itoa(max(1, int(seconds))))
	}
	http.Error(w, "try again later", http.StatusServiceUnavailable)
}

// temporary reports whether the call that failed is worth a retry.
func temporary(err error) bool {
	var t interface{ Temporary() bool }
	return errors.As(err, &t) && t.Temporary()
}
