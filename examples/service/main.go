// Service is a program to start from. It reads the cards of connected accounts from
// Moov, and mints tokens for the pages of their users. This runs it against an
// embedded test server:
//
//	go run -C examples/service .
//
// Then try:
//
//	curl -c jar -X POST localhost:8080/sign-in     sign in as the demo user, without a password
//	curl -b jar localhost:8080/cards               the user's cards, from Moov
//	curl -b jar -X POST localhost:8080/moov-token  a token for the user's page
//	curl -b jar -X POST localhost:8080/sign-out    revokes that token
//	curl localhost:8080/ready                      and localhost:8080/metrics
//	kill -HUP $pid                                 replaces the API key; the log shows the pid
//	kill $pid                                      shuts down, and revokes the tokens
//
// These environment variables configure it:
//
//	MOOV_KEY_FILE  a file with {"ClientID": "the public key", "ClientSecret": "the secret key"}.
//	               SIGHUP reads it again. Default: no file, and the embedded test server.
//	MOOV_ORIGIN    a domain of the API key's list. Default: http://localhost:8080
//	MOOV_ACCOUNT   the ID of the demo user's connected account. Default: demo
//	MOOV_CACHE     a directory that keeps tokens between runs. Default: none
//	ADDR           the address to listen on. Default: localhost:8080
package main

// This file starts and stops the program, and replaces the API key. The handlers are
// in service.go, and the metrics in metrics.go.

import (
	"cmp"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"syscall"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

const callTimeout = 10 * time.Second // of a call to Moov, and of a token request

func main() {
	slog.SetDefault(slog.New(slog.NewTextHandler(os.Stdout, nil)))
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	s := &service{api: moovauth.DefaultBaseURL, client: &http.Client{Timeout: callTimeout}, key: readKey}
	if os.Getenv("MOOV_KEY_FILE") == "" {
		server := moovtest.NewServer()
		defer server.Close()
		s.api, s.key = server.URL, embedded(server)
	}
	listener, err := net.Listen("tcp", cmp.Or(os.Getenv("ADDR"), "localhost:8080"))
	if dir := os.Getenv("MOOV_CACHE"); dir != "" && err == nil {
		s.cache, err = dircache.New(dir)
	}
	if err == nil {
		err = s.loadKey(ctx)
	}
	if err == nil {
		slog.Info("listening", "address", listener.Addr(), "moov", s.api, "pid", os.Getpid())
		err = s.serve(ctx, listener, hangup)
	}
	if err != nil {
		slog.Error("service failed", "error", err)
		os.Exit(1)
	}
}

// readKey reads the API key from a file, such as a mounted secret.
func readKey() (creds moovauth.Credentials, err error) {
	text, err := os.ReadFile(os.Getenv("MOOV_KEY_FILE"))
	if err == nil {
		err = json.Unmarshal(text, &creds)
	}
	return creds, err
}

// embedded makes a test server answer with cards. The function that it returns makes
// a new API key.
func embedded(server *moovtest.Server) func() (moovauth.Credentials, error) {
	server.Handle("GET /accounts/{accountID}/cards", "/accounts/{accountID}/cards.read",
		http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprintln(w, `[{"lastFourCardNumber":"4242"}]`) }))
	return func() (moovauth.Credentials, error) {
		creds := moovauth.Credentials{ClientID: rand.Text(), ClientSecret: rand.Text()}
		server.SetCredentials(creds.ClientID, creds.ClientSecret)
		return creds, nil
	}
}

// loadKey reads the API key, and uses it once it has obtained a token for a scope
// that each key has. So a wrong key changes nothing. The first key is used even if
// Moov is down.
func (s *service) loadKey(ctx context.Context) error {
	creds, err := s.key()
	if err != nil {
		return fmt.Errorf("reading the API key: %w", err)
	}
	if creds == s.Creds { // with a cache, rotate would revoke the tokens that are in use
		return errors.New("the API key has not changed")
	}
	source := []moovauth.Option{
		moovauth.WithBaseURL(s.api), moovauth.WithHTTPClient(s.client), moovauth.WithTimeout(callTimeout),
		moovauth.WithOrigin(cmp.Or(os.Getenv("MOOV_ORIGIN"), "http://localhost:8080")),
	}
	if s.cache != nil {
		source = append(source, moovauth.WithCache(s.cache))
	}
	var next *platform.Tokens
	next, err = platform.New(creds, platform.WithRate(10), platform.WithLogger(slog.Default()), platform.WithSource(source...),
		platform.WithMinted(func(r *http.Request, token *oauth2.Token) error { return s.minted(r, token, next) }))
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 3*callTimeout) // also if Moov asks to wait longer
	defer cancel()
	if err := obtain(ctx, next, "/ping.read"); err != nil && (s.current.Load() != nil || !temporary(err)) {
		return err
	}
	// Otherwise the next calls of all users would wait in the queue. A user whose token
	// cannot be obtained here waits at the next call.
	_ = s.each(func(open *session) error { return obtain(ctx, next, open.account+"/cards.read") })
	if former := s.current.Swap(next); former != nil {
		s.former = append(s.former, former)
	}
	s.Creds = creds
	return nil
}

// obtain makes sure that the source of a scope has a token.
func obtain(ctx context.Context, tokens *platform.Tokens, scope string) error {
	source, err := tokens.Source(scope)
	if err != nil {
		return err
	}
	_, err = source.TokenContext(ctx)
	return err
}

// serve serves until ctx ends, and then shuts down. At a hangup it replaces the API key.
func (s *service) serve(ctx context.Context, listener net.Listener, hangup <-chan os.Signal) error {
	server := &http.Server{
		Handler:           s.handler(),
		ErrorLog:          slog.NewLogLogger(slog.Default().Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second,
		ReadTimeout:       3 * callTimeout, // a shorter one would end the context of a page that waits
		WriteTimeout:      3 * callTimeout, // a page may wait 10 s in the queue, and then for its token
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	for {
		select {
		case err := <-failed:
			return errors.Join(err, s.shutdown(server))
		case <-ctx.Done():
			return s.shutdown(server)
		case <-hangup:
			s.rotate(ctx)
		}
	}
}

// rotate replaces the API key. It revokes the accounts' tokens of the former key
// after the calls with them have ended.
func (s *service) rotate(ctx context.Context) {
	if err := s.loadKey(ctx); err != nil {
		slog.Error("API key not replaced", "error", err)
		return
	}
	slog.Info("API key replaced")
	select {
	case <-ctx.Done():
	case <-time.After(2 * callTimeout):
		ctx, cancel := context.WithTimeout(ctx, 6*callTimeout)
		defer cancel()
		if err := s.revokeFormer(ctx); err != nil {
			slog.Error("tokens of the former API key not revoked", "error", err)
		}
	}
}

// revokeFormer revokes the accounts' tokens of former API keys. What fails is tried
// again after the next rotation, and at the shutdown.
func (s *service) revokeFormer(ctx context.Context) (err error) {
	s.former = slices.DeleteFunc(s.former, func(former *platform.Tokens) bool {
		failed := former.RevokeAll(ctx)
		err = errors.Join(err, failed)
		return failed == nil
	})
	return err
}

// shutdown first ends the calls, so that no one asks for another token, and then
// revokes the tokens. Tokens in a cache stay alive for the next process.
func (s *service) shutdown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), 25*time.Second) // Kubernetes allows 30 s
	defer cancel()
	calls, stop := context.WithTimeout(ctx, callTimeout) // leaves the rest for the tokens
	defer stop()
	err := errors.Join(server.Shutdown(calls), server.Close()) // Close ends what is left
	err = errors.Join(err, s.revokeFormer(ctx))
	if s.cache == nil {
		err = errors.Join(err, s.current.Load().RevokeAll(ctx))
	}
	err = errors.Join(err, s.each(func(open *session) error { return s.end(ctx, open) })) // last, since these tokens soon expire
	slog.Info("shut down", "tokens_revoked", s.current.Load().Stats().Revoked, "cache", s.cache != nil, "error", err)
	return err
}
