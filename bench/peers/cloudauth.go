package peers

// This file is cloud.google.com/go/auth: the cached token provider around the
// fetcher, which refreshes in the background, and httptransport without telemetry.

import (
	"context"
	"net/http"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
)

type cloudProvider struct{ *fetcher }

func (p cloudProvider) Token(ctx context.Context) (*auth.Token, error) {
	token, err := p.fetch(ctx)
	if err != nil {
		return nil, err
	}
	return &auth.Token{Value: token.AccessToken, Type: token.TokenType, Expiry: token.Expiry}, nil
}

func newCloudAuth(c Config) (*Source, error) {
	provider := auth.NewCachedTokenProvider(cloudProvider{newFetcher(c)}, &auth.CachedTokenProviderOptions{ExpireEarly: c.Early})
	return prime(c, &Source{
		Token: func(ctx context.Context) (string, error) {
			token, err := provider.Token(ctx)
			if err != nil {
				return "", err
			}
			return token.Value, nil
		},
		Through: func(base http.RoundTripper) (Do, error) {
			client, err := httptransport.NewClient(&httptransport.Options{
				Credentials:      auth.NewCredentials(&auth.CredentialsOptions{TokenProvider: provider}),
				BaseRoundTripper: base,
				Headers:          http.Header{VersionHeader: {Version}},
				DisableTelemetry: true,
			})
			if err != nil {
				return nil, err
			}
			return client.Transport.RoundTrip, nil
		},
		Held: provider,
	})
}
