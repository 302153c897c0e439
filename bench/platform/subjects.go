// Package platform measures a platform with many accounts: one that starts at
// once, and one that runs for an hour, on an API key that is allowed so many
// requests a second. All is in fake time, against moovtest, so a run takes
// seconds and a faster machine changes nothing but the bytes:
//
//	go test ./platform -args -o results/platform.txt -svg platform.svg
package platform

// This file is what is measured: how one gets a token for each account.

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

// key is an API key, and the way to the server that knows it.
type key struct {
	id, secret string
	url        string
	client     *http.Client
	perSecond  int // what its owner was told that it is allowed
}

// subject is a way to get many tokens.
type subject struct {
	title string // in the tables
	short string // in the picture
	// open returns what gets the token of an account. all is what holds its state.
	open func(k key) (token func(scope string) error, all any, err error)
	// mint gets a token for a page, where that is not the same.
	mint func(all any, scope string) error
}

var subjects = []subject{
	{"moovauth/platform", "moovauth/platform", func(k key) (func(string) error, any, error) {
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
	{"moovauth sources, one rate.Limiter", "moovauth, rate.Limiter", func(k key) (func(string) error, any, error) {
		limiter := rate.NewLimiter(rate.Limit(k.perSecond), 1)
		m := &sources{new: func(scope string) (oauth2.TokenSource, error) {
			return moovauth.NewTokenSource(k.credentials(), moovauth.WithScopes(scope), moovauth.WithLimiter(limiter),
				moovauth.WithBaseURL(k.url), moovauth.WithHTTPClient(k.client))
		}}
		return m.token, m, nil
	}, nil},
	{"clientcredentials, a rate.Limiter in the RoundTripper", "x/oauth2, rate.Limiter", func(k key) (func(string) error, any, error) {
		limited := &limited{k.client.Transport, rate.NewLimiter(rate.Limit(k.perSecond), 1)}
		m := &sources{new: k.clientCredentials(&http.Client{Transport: limited})}
		return m.token, m, nil
	}, nil},
	{"clientcredentials", "x/oauth2", func(k key) (func(string) error, any, error) {
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

// sources is the map that a user would write.
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

// limited is a RoundTripper that waits for its turn, as a user would write it.
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
