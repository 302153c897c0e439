package peers

// This file is moovauth with its default settings.

import (
	"context"
	"net/http"
	"strings"

	"github.com/moovauth/moovauth"
)

func newMoovauth(c Config) (*Source, error) {
	opts := []moovauth.Option{
		moovauth.WithScopes(scope),
		moovauth.WithBaseURL(strings.TrimSuffix(c.TokenURL, "/oauth2/token")),
		moovauth.WithHTTPClient(c.Client),
	}
	if c.Expired {
		opts = append(opts, moovauth.WithToken(expiredToken()))
	}
	source, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: clientID, ClientSecret: clientSecret}, opts...)
	if err != nil {
		return nil, err
	}
	return &Source{
		Token: func(ctx context.Context) (string, error) {
			token, err := source.TokenContext(ctx)
			if err != nil {
				return "", err
			}
			return token.AccessToken, nil
		},
		Through: func(base http.RoundTripper) (Do, error) {
			transport := &moovauth.Transport{Base: base, Source: source}
			return transport.RoundTrip, nil
		},
		Held: source,
	}, nil
}
