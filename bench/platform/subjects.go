// Package platform measures a platform with many accounts on one API key, whose
// requests per second are limited. It runs in fake time against moovtest. So a run
// takes seconds, and the speed of the machine does not matter:
//
//	go test ./platform -args -o results/platform.txt -svg platform.svg
package platform

// This file has the code that is measured: ways to obtain a token for each account.

import (
	"context"
	"fmt"
	"net/http"
	"sync"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
	"golang.org/x/time/rate"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/platform"
)

// key is an API key and its server.
type key struct {
	id, secret string
	url        string
	client     *http.Client
	perSecond  int // requests per second that its owner assumes
}

// subject is a way to obtain many tokens.
type subject struct {
	name string
	// open returns a function that obtains the token of an account, and the object
	// that holds the state of all accounts.
	open func(k key) (token func(scope string) error, all any, err error)
	// mint obtains a token for a page; nil: the same function does.
	mint func(all any, scope string) error
}

var subjects = []subject{
	{"moovauth/platform", func(k key) (func(string) error, any, error) {
		tokens, err := platform.New(k.credentials(), platform.WithRate(float64(k.perSecond)),
			platform.WithSource(moovauth.WithBaseURL(k.url), moovauth.WithHTTPClient(k.client)))
		if err != nil {
			return nil, nil, err
		}
		return func(scope string) error {
			source, err := tokens.Source(scope)
			if err != nil {
				return err
			}
			_, err = source.Token()
			return err
		}, tokens, nil
	}, func(all any, scope string) error {
		_, err := all.(*platform.Tokens).Mint(context.Background(), scope)
		return err
	}},
	{"moovauth, rate.Limiter", func(k key) (func(string) error, any, error) {
		limiter := rate.NewLimiter(rate.Limit(k.perSecond), 1)
		m := &sources{new: func(scope string) (oauth2.TokenSource, error) {
			return moovauth.NewTokenSource(k.credentials(), moovauth.WithScopes(scope), moovauth.WithLimiter(limiter),
				moovauth.WithBaseURL(k.url), moovauth.WithHTTPClient(k.client))
		}}
		return m.token, m, nil
	}, nil},
	{"x/oauth2, rate.Limiter", func(k key) (func(string) error, any, error) {
		limited := &limited{k.client.Transport, rate.NewLimiter(rate.Limit(k.perSecond), 1)}
		m := &sources{new: k.clientCredentials(&http.Client{Transport: limited})}
		return m.token, m, nil
	}, nil},
	{"x/oauth2", func(k key) (func(string) error, any, error) {
		m := &sources{new: k.clientCredentials(k.client)}
		return m.token, m, nil
	}, nil},
}

func (k key) credentials() moovauth.Credentials {
	return moovauth.Credentials{ClientID: k.id, ClientSecret: k.secret}
}

func (k key) clientCredentials(client *http.Client) func(scope string) (oauth2.TokenSource, error) {
	ctx := context.WithValue(context.Background(), oauth2.HTTPClient, client)
	return func(scope string) (oauth2.TokenSource, error) {
		config := &clientcredentials.Config{ClientID: k.id, ClientSecret: k.secret, TokenURL: k.url + "/oauth2/token",
			Scopes: []string{scope}, AuthStyle: oauth2.AuthStyleInHeader}
		return config.TokenSource(ctx), nil
	}
}

// sources is a map of sources, as a user would write it.
type sources struct {
	new func(scope string) (oauth2.TokenSource, error)

	mu      sync.Mutex
	byScope map[string]oauth2.TokenSource
}

func (s *sources) token(scope string) error {
	s.mu.Lock()
	source, ok := s.byScope[scope]
	if !ok {
		var err error
		if source, err = s.new(scope); err != nil {
			s.mu.Unlock()
			return err
		}
		if s.byScope == nil {
			s.byScope = make(map[string]oauth2.TokenSource)
		}
		s.byScope[scope] = source
	}
	s.mu.Unlock()
	_, err := source.Token()
	return err
}

// limited is a RoundTripper that waits for a rate.Limiter, as a user would write it.
type limited struct {
	base    http.RoundTripper
	limiter *rate.Limiter
}

func (l *limited) RoundTrip(req *http.Request) (*http.Response, error) {
	if err := l.limiter.Wait(req.Context()); err != nil {
		return nil, err
	}
	return l.base.RoundTrip(req)
}

func scopeOf(account int) string { return fmt.Sprintf("/accounts/%06d/cards.write", account) }
