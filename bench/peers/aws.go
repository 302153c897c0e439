package peers

// This file is github.com/aws/aws-sdk-go-v2/aws: a CredentialsCache around the
// fetcher. The package has no transport for bearer tokens.

import (
	"context"

	"github.com/aws/aws-sdk-go-v2/aws"
)

type awsProvider struct{ *fetcher }

func (p awsProvider) Retrieve(ctx context.Context) (aws.Credentials, error) {
	token, err := p.fetch(ctx)
	if err != nil {
		return aws.Credentials{}, err
	}
	// The cache accepts only credentials with both keys.
	return aws.Credentials{
		AccessKeyID: clientID, SecretAccessKey: clientID, SessionToken: token.AccessToken,
		CanExpire: true, Expires: token.Expiry,
	}, nil
}

func newAWS(c Config) (*Source, error) {
	cache := aws.NewCredentialsCache(awsProvider{newFetcher(c)}, func(o *aws.CredentialsCacheOptions) { o.ExpiryWindow = c.Early })
	return prime(c, &Source{
		Token: func(ctx context.Context) (string, error) {
			creds, err := cache.Retrieve(ctx)
			return creds.SessionToken, err
		},
		Held: cache,
	})
}
