// Quickstart shows the life of a token: obtained, used, shared by a hundred
// callers across its expiry, revoked.
//
//	go run ./examples/quickstart
//
// talks to an embedded test server. It talks to Moov where MOOV_PUBLIC_KEY and
// MOOV_SECRET_KEY are set, at MOOV_HOST (default api.moov.io), with
// MOOV_ORIGIN, a domain of the API key's allowed-domain list such as
// https://example.com.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/signal"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := run(ctx, os.Stdout, os.Getenv); err != nil {
		fmt.Fprintln(os.Stderr, "quickstart:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, env func(string) string) error {
	say := func(what, format string, args ...any) {
		fmt.Fprintf(out, "%-13s %s\n", what, fmt.Sprintf(format, args...))
	}

	creds := moovauth.Credentials{ClientID: env("MOOV_PUBLIC_KEY"), ClientSecret: env("MOOV_SECRET_KEY")}
	var baseURL string
	var embedded *moovtest.Server
	switch {
	case creds.ClientID != "" && creds.ClientSecret != "":
		baseURL = moovauth.DefaultBaseURL
		if host := env("MOOV_HOST"); host != "" {
			baseURL = "https://" + host
		}
		say("API", "%s", baseURL)
	case creds.ClientID != "" || creds.ClientSecret != "":
		return errors.New("set both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY, or neither for the embedded server")
	default:
		embedded = moovtest.NewServer(moovtest.WithLifetime(2 * time.Second))
		defer embedded.Close()
		baseURL = embedded.URL
		creds = moovauth.Credentials{ClientID: embedded.ClientID, ClientSecret: embedded.ClientSecret}
		say("API", "%s, an embedded test server with short-lived tokens", baseURL)
	}

	opts := []moovauth.Option{moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(baseURL)}
	if origin := env("MOOV_ORIGIN"); origin != "" {
		opts = append(opts, moovauth.WithOrigin(origin))
	}
	source, err := moovauth.NewTokenSource(creds, opts...)
	if err != nil {
		return err
	}
	token, err := source.TokenContext(ctx)
	if err != nil {
		return err
	}
	say("token", "%s…, %s, scope %v, lives %ds", token.AccessToken[:min(4, len(token.AccessToken)/4)], token.TokenType, token.Extra("scope"), token.ExpiresIn)

	client := source.Client()
	if err := ping(ctx, client, baseURL, http.StatusOK); err != nil {
		return err
	}
	say("GET /ping", "200 OK, with %s: %s", moovauth.VersionHeader, moovauth.DefaultVersion)

	if embedded != nil {
		select {
		case <-time.After(time.Until(token.Expiry)):
		case <-ctx.Done():
			return ctx.Err()
		}
		before := len(embedded.TokenRequests())
		if err := pingAtOnce(ctx, client, baseURL, 100); err != nil {
			return err
		}
		say("100 callers", "200 OK each; they met an expired token, which took %d token request", len(embedded.TokenRequests())-before)
	}

	if token, err = source.TokenContext(ctx); err != nil {
		return err
	}
	if err := source.Revoke(ctx); err != nil {
		return err
	}
	say("revoked", "the access token and the refresh token")
	revoked := &http.Client{Transport: &oauth2.Transport{Source: oauth2.StaticTokenSource(token), Base: new(moovauth.Transport)}}
	if err := ping(ctx, revoked, baseURL, http.StatusUnauthorized); err != nil {
		return err
	}
	say("GET /ping", "401 Unauthorized with the revoked token, as it should be")
	return nil
}

// pingAtOnce calls the API n times at the same time.
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

// ping calls the API, which should answer with status want.
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
