// Quickstart shows the life of an access token. It obtains a token and calls the API
// with it. When the token has expired, a hundred callers share one token request. At
// the end it revokes the token.
//
//	go run ./examples/quickstart
//
// Without an API key, this command uses an embedded test server. -h shows how to use
// Moov itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"strings"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const usage = `usage: go run ./examples/quickstart

Quickstart shows the life of an access token and prints a line for each step. It
obtains a token and calls GET /ping with it. When the token has expired, a hundred
callers share one token request. At the end it revokes the token.

Without an API key it uses an embedded test server, whose tokens live for two
seconds. You need no account, and nothing leaves this machine.

With an API key it uses Moov itself, and leaves the hundred callers out. It reads
these environment variables:

  MOOV_PUBLIC_KEY  the API key's public key (the OAuth2 client ID)
  MOOV_SECRET_KEY  the API key's secret key (the OAuth2 client secret)
  MOOV_ORIGIN      a domain of the API key's allowed-domain list, such as
                   https://example.com; without it Moov refuses the token request
  MOOV_HOST        the API's host, with or without https:// (default api.moov.io);
                   it requires an API key
`

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(command(ctx, os.Args[1:], os.Stdout, os.Stderr, os.Getenv))
}

// command runs the example with the arguments args and returns the exit code.
func command(ctx context.Context, args []string, out, errs io.Writer, env func(string) string) int {
	flags := flag.NewFlagSet("quickstart", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, usage)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(errs, "quickstart: %v; -h shows the usage\n", err)
		return 2
	}
	if err := run(ctx, out, env); err != nil {
		fmt.Fprintln(errs, "quickstart:", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, out io.Writer, env func(string) string) error {
	say := func(what, format string, args ...any) {
		fmt.Fprintf(out, "%-13s %s\n", what, fmt.Sprintf(format, args...))
	}

	creds := moovauth.Credentials{ClientID: env("MOOV_PUBLIC_KEY"), ClientSecret: env("MOOV_SECRET_KEY")}
	host := env("MOOV_HOST")
	baseURL := moovauth.DefaultBaseURL
	var embedded *moovtest.Server
	switch {
	case creds.ClientID != "" && creds.ClientSecret != "":
		if host != "" {
			if baseURL = strings.TrimRight(host, "/"); !strings.Contains(host, "://") {
				baseURL = "https://" + baseURL
			}
		}
	case creds.ClientID != "" || creds.ClientSecret != "":
		return errors.New("set both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY, or set neither to use the embedded test server")
	case host != "":
		return errors.New("MOOV_HOST is set, but no API key: set MOOV_PUBLIC_KEY and MOOV_SECRET_KEY too, or unset MOOV_HOST to use the embedded test server")
	default:
		embedded = moovtest.NewServer(moovtest.WithLifetime(2 * time.Second))
		defer embedded.Close()
		baseURL = embedded.URL
		creds = moovauth.Credentials{ClientID: embedded.ClientID, ClientSecret: embedded.ClientSecret}
	}

	opts := []moovauth.Option{moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(baseURL)}
	if origin := env("MOOV_ORIGIN"); origin != "" {
		opts = append(opts, moovauth.WithOrigin(origin))
	}
	source, err := moovauth.NewTokenSource(creds, opts...)
	if err != nil {
		return fmt.Errorf("%w (MOOV_HOST sets WithBaseURL, and MOOV_ORIGIN sets WithOrigin)", err)
	}
	if embedded != nil {
		say("server", "%s, an embedded test server whose tokens live for 2s", baseURL)
	} else {
		say("server", "%s", baseURL)
	}

	token, err := source.TokenContext(ctx)
	if err != nil {
		return err
	}
	say("token", "obtained: %s…, type %s, scope %v, valid for %ds", token.AccessToken[:min(4, len(token.AccessToken)/4)], token.TokenType, token.Extra("scope"), token.ExpiresIn)

	client := source.Client()
	if err := ping(ctx, client, baseURL, http.StatusOK); err != nil {
		return err
	}
	say("GET /ping", "200 OK: the API accepted the token, which was sent with %s: %s", moovauth.VersionHeader, moovauth.DefaultVersion)

	if embedded != nil {
		say("wait", "waiting until the token expires")
		select {
		case <-time.After(time.Until(token.Expiry)):
		case <-ctx.Done():
			return ctx.Err()
		}
		before := len(embedded.TokenRequests())
		if err := pingAtOnce(ctx, client, baseURL, 100); err != nil {
			return err
		}
		say("100 callers", "200 OK for each: they all needed a new token at the same moment, and together they made %d token request", len(embedded.TokenRequests())-before)
	}

	if token, err = source.TokenContext(ctx); err != nil {
		return err
	}
	if err := source.Revoke(ctx); err != nil {
		return err
	}
	say("revoke", "done: the server has revoked the access token and the refresh token")
	revoked := &http.Client{Transport: &oauth2.Transport{Source: oauth2.StaticTokenSource(token), Base: new(moovauth.Transport)}}
	if err := ping(ctx, revoked, baseURL, http.StatusUnauthorized); err != nil {
		return err
	}
	say("GET /ping", "401 Unauthorized: the API refused the revoked token, as expected")
	return nil
}

// pingAtOnce makes n calls of ping at the same time.
func pingAtOnce(ctx context.Context, client *http.Client, baseURL string, n int) error {
	errs := make([]error, n)
	var calls sync.WaitGroup
	for i := range errs {
		calls.Go(func() { errs[i] = ping(ctx, client, baseURL, http.StatusOK) })
	}
	calls.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

// ping calls GET /ping. It returns an error unless the status is want.
func ping(ctx context.Context, client *http.Client, baseURL string, want int) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, baseURL+"/ping", nil)
	if err != nil {
		return err
	}
	resp, err := client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != want {
		return fmt.Errorf("GET /ping answered %s, not %d (request ID %s)", resp.Status, want, resp.Header.Get("X-Request-Id"))
	}
	return nil
}
