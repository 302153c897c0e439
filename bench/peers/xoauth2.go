package peers

// This file is golang.org/x/oauth2/clientcredentials, and oauth2.Transport on a
// RoundTripper that adds the version header.

import (
	"context"
	"net/http"

	"golang.org/x/oauth2"
)

func newXOAuth2(c Config) (*Source, error) {
	source := grant(c).TokenSource(context.WithValue(context.Background(), oauth2.HTTPClient, client(c)))
	if c.Expired {
		source = oauth2.ReuseTokenSource(expiredToken(), source)
	}
	if c.Early > 0 {
		source = oauth2.ReuseTokenSourceWithExpiry(nil, source, c.Early)
	}
	return &Source{
		Token: func(context.Context) (string, error) {
			token, err := source.Token()
			if err != nil {
				return "", err
			}
			return token.AccessToken, nil
		},
		Through: func(base http.RoundTripper) (Do, error) {
			transport := &oauth2.Transport{Source: source, Base: &versioned{base}}
			return transport.RoundTrip, nil
		},
		Held: source,
	}, nil
}
