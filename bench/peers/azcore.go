package peers

// This file is github.com/Azure/azure-sdk-for-go/sdk/azcore: the bearer token
// policy around the fetcher, in a pipeline that neither retries API calls nor sends
// telemetry. The package has no call that only returns the token.

import (
	"context"
	"net/http"
	"time"

	"github.com/Azure/azure-sdk-for-go/sdk/azcore"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/policy"
	"github.com/Azure/azure-sdk-for-go/sdk/azcore/runtime"
)

type azureCredential struct {
	*fetcher
	early time.Duration
}

func (c azureCredential) GetToken(ctx context.Context, _ policy.TokenRequestOptions) (azcore.AccessToken, error) {
	token, err := c.fetch(ctx)
	if err != nil {
		return azcore.AccessToken{}, err
	}
	access := azcore.AccessToken{Token: token.AccessToken, ExpiresOn: token.Expiry}
	if c.early > 0 {
		access.RefreshOn = token.Expiry.Add(-c.early)
	}
	return access, nil
}

// azureVersion adds the version header to the pipeline's copy of the request.
type azureVersion struct{}

func (azureVersion) Do(req *policy.Request) (*http.Response, error) {
	req.Raw().Header.Set(VersionHeader, Version)
	return req.Next()
}

type azureTransport struct{ base http.RoundTripper }

func (t azureTransport) Do(req *http.Request) (*http.Response, error) { return t.base.RoundTrip(req) }

func newAzcore(c Config) (*Source, error) {
	bearer := runtime.NewBearerTokenPolicy(azureCredential{newFetcher(c), c.Early}, []string{scope}, nil)
	s := &Source{
		Through: func(base http.RoundTripper) (Do, error) {
			pipeline := runtime.NewPipeline("bench", "v1.0.0",
				runtime.PipelineOptions{PerRetry: []policy.Policy{bearer, azureVersion{}}},
				&policy.ClientOptions{
					Retry:     policy.RetryOptions{MaxRetries: -1},
					Telemetry: policy.TelemetryOptions{Disabled: true},
					Transport: azureTransport{base},
				})
			return func(req *http.Request) (*http.Response, error) {
				wrapped, err := runtime.NewRequestFromRequest(req)
				if err != nil {
					return nil, err
				}
				return pipeline.Do(wrapped)
			}, nil
		},
		Held: bearer,
	}
	if !c.Expired {
		return s, nil
	}
	do, err := s.Through(new(Nowhere))
	if err != nil {
		return nil, err
	}
	_, err = do(NewRequest(context.Background(), c.TokenURL))
	return s, err
}
