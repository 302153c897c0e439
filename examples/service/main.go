// Service is a program to start from: it calls Moov for connected accounts, and
// mints tokens for their users' pages.
//
//	go run -C examples/service .
//
// runs it against an embedded test server. -h says how to use Moov itself.
package main

// This file reads the configuration, and starts and stops the server. What the
// server does is in service.go, who is signed in in sessions.go, the change to
// another API key in rotation.go, and the metrics in metrics.go.

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const usage = `Service calls Moov for connected accounts, and mints tokens for their users' pages.

  -addr address     where to listen (default localhost:8080)
  -cache directory  where tokens are kept between runs (default MOOV_CACHE, or nowhere)

An embedded test server takes the place of Moov, unless an API key is given:

  MOOV_PUBLIC_KEY, MOOV_SECRET_KEY  the API key
  MOOV_KEY_FILE                     or a file with the public key and the secret key, with
                                    white space between them. SIGHUP reads it again.
  MOOV_ORIGIN                       a domain of the key's list, such as https://example.com
  MOOV_HOST                         default api.moov.io
  MOOV_ACCOUNT                      the ID of the demo user's connected account

Try it:

  curl -c jar -X POST localhost:8080/sign-in     sign-in as the demo user, without a password
  curl -b jar localhost:8080/cards               the user's cards, from Moov
  curl -b jar -X POST localhost:8080/moov-token  a token for the user's page
  curl -b jar -X POST localhost:8080/sign-out    revokes that token
  curl localhost:8080/metrics                    and localhost:8080/ready
`

const (
	callTimeout = 10 * time.Second // of a call to Moov, and of a token request
	closing     = 25 * time.Second // of a shutdown; Kubernetes allows 30 s
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	hangup := make(chan os.Signal, 1)
	signal.Notify(hangup, syscall.SIGHUP)
	switch err := run(ctx, os.Stdout, os.Args[1:], os.Getenv, hangup); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "service:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string, env func(string) string, hangup <-chan os.Signal) error {
	flags := flag.NewFlagSet("service", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // main prints the error
	addr := flags.String("addr", "localhost:8080", "")
	cache := flags.String("cache", env("MOOV_CACHE"), "")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
	}
	if err != nil {
		return err
	}
	c := config{
		api:     moovauth.DefaultBaseURL,
		account: env("MOOV_ACCOUNT"),
		cache:   *cache,
		client:  &http.Client{Timeout: callTimeout},
		log:     slog.New(slog.NewTextHandler(out, nil)),
	}
	if host := env("MOOV_HOST"); host != "" {
		c.api = "https://" + host
	}
	if origin := env("MOOV_ORIGIN"); origin != "" {
		c.source = append(c.source, moovauth.WithOrigin(origin))
	}
	switch {
	case env("MOOV_KEY_FILE") != "":
		c.key = func() (moovauth.Credentials, error) { return readKey(env("MOOV_KEY_FILE")) }
	case env("MOOV_PUBLIC_KEY") != "":
		c.key = func() (moovauth.Credentials, error) {
			return moovauth.Credentials{ClientID: env("MOOV_PUBLIC_KEY"), ClientSecret: env("MOOV_SECRET_KEY")}, nil
		}
	default:
		server := moovtest.NewServer()
		defer server.Close()
		embed(&c, server)
	}
	s, err := newService(ctx, c)
	if err != nil {
		return err
	}
	listener, err := net.Listen("tcp", *addr)
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "open http://%s, for calls to %s\n", listener.Addr(), c.api)
	return s.serve(ctx, listener, hangup)
}

// readKey reads an API key from a file, such as one of a mounted secret.
func readKey(name string) (creds moovauth.Credentials, err error) {
	text, err := os.ReadFile(name)
	if err != nil {
		return creds, err
	}
	keys := strings.Fields(string(text))
	if len(keys) != 2 {
		return creds, fmt.Errorf("%s: want the public key and the secret key, got %d words", name, len(keys))
	}
	return moovauth.Credentials{ClientID: keys[0], ClientSecret: keys[1]}, nil
}

// embed makes c use a test server. Each SIGHUP finds another API key there.
func embed(c *config, server *moovtest.Server) {
	server.Handle("GET /accounts/{accountID}/cards", "/accounts/{accountID}/cards.read",
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintln(w, `[{"lastFourCardNumber":"4242"}]`) }))
	made := 0
	c.key = func() (moovauth.Credentials, error) {
		made++
		creds := moovauth.Credentials{ClientID: fmt.Sprintf("public-key-%d", made), ClientSecret: fmt.Sprintf("secret-key-%d", made)}
		server.SetCredentials(creds.ClientID, creds.ClientSecret)
		return creds, nil
	}
	c.api = server.URL
	if c.account == "" {
		c.account = "demo"
	}
}

// serve serves until ctx ends, and then shuts down.
func (s *service) serve(ctx context.Context, listener net.Listener, hangup <-chan os.Signal) error {
	server := &http.Server{
		Handler:           s.handler,
		ErrorLog:          slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
		ReadHeaderTimeout: 5 * time.Second,
		WriteTimeout:      10*time.Second + callTimeout + 5*time.Second, // a page waits 10 s in the queue, and then for its token
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	working, stop := context.WithCancel(ctx)
	defer stop()
	var background sync.WaitGroup
	background.Go(func() { s.rotateOn(working, hangup) })
	background.Go(func() { s.sessions.revokeEvery(working, 10*time.Second) })
	var err error
	select {
	case err = <-failed:
	case <-ctx.Done():
	}
	stop()
	background.Wait()
	return errors.Join(err, s.shutdown(server))
}

// shutdown ends a service: first its callers, so that no one asks for another
// token, then the tokens. Tokens in a cache stay alive for the next process.
func (s *service) shutdown(server *http.Server) error {
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	calls, stop := context.WithTimeout(ctx, callTimeout) // leaves the rest for the tokens
	defer stop()
	err := server.Shutdown(calls)
	if err != nil { // a caller that continues would obtain another token
		err = errors.Join(err, server.Close())
	}
	pages, failed := s.sessions.endAll(ctx)
	err = errors.Join(err, failed, s.keys.revokeFormer(ctx))
	current := s.keys.current.Load()
	if s.cache == "" {
		err = errors.Join(err, current.RevokeAll(ctx))
	}
	s.log.Info("shut down", "tokens_of_pages", pages, "tokens_revoked", current.Stats().Revoked, "kept_in_cache", s.cache, "error", err)
	return err
}
