// Package peers puts moovauth and its peers behind one interface, so that all are
// measured with the same token endpoint, tokens and goroutines. Each has its own
// file, which shows its configuration.
package peers

import (
	"context"
	"net/http"
	"time"

	"golang.org/x/oauth2"
	"golang.org/x/oauth2/clientcredentials"
)

const (
	VersionHeader = "X-Moov-Version"
	Version       = "v2024.01.00"

	clientID     = "public"
	clientSecret = "secret"
	scope        = "/ping.read"
)

// Config is the configuration of a source.
type Config struct {
	TokenURL string        // ends in /oauth2/token
	Client   *http.Client  // for token requests
	Retry    bool          // make as many attempts at a token request as moovauth, for peers that make only one
	Early    time.Duration // how long before its expiry a token is replaced, if the peer has such an option; 0: its default
	Expired  bool          // the source begins with a token that has expired
}

// Source provides one token, in the way of one peer.
type Source struct {
	// Token returns the access token. It is nil if the peer has no such call.
	Token func(context.Context) (string, error)

	// Through returns a function that sends a request to base, with the token
	// and the version header. It is nil if the peer has no transport.
	Through func(base http.RoundTripper) (Do, error)

	// Held is the object that stays in memory while the source is in use.
	Held any
}

// Do sends a request. It does not change the request.
type Do func(*http.Request) (*http.Response, error)

// Peer is a package that caches a token.
type Peer struct {
	Name string
	New  func(Config) (*Source, error)
}

// The names of the peers and of the floor.
const (
	Moovauth  = "moovauth"
	XOAuth2   = "x-oauth2"
	CloudAuth = "cloud-auth"
	Azcore    = "azcore"
	AWS       = "aws"
	Floor     = "floor"
)

// All returns moovauth, its peers, and the floor, in the order of the tables.
func All() []Peer {
	return []Peer{
		{Moovauth, newMoovauth},
		{XOAuth2, newXOAuth2},
		{CloudAuth, newCloudAuth},
		{Azcore, newAzcore},
		{AWS, newAWS},
		{Floor, newFloor},
	}
}

// fetcher makes one token request per call. Some peers only cache a token, and
// leave the token request to the caller. They use a fetcher.
type fetcher struct {
	config  *clientcredentials.Config
	client  *http.Client
	expired bool // the next call returns an expired token
}

func newFetcher(c Config) *fetcher {
	return &fetcher{config: grant(c), client: client(c), expired: c.Expired}
}

func (f *fetcher) fetch(ctx context.Context) (*oauth2.Token, error) {
	if f.expired {
		f.expired = false
		return expiredToken(), nil
	}
	return f.config.Token(context.WithValue(ctx, oauth2.HTTPClient, f.client))
}

func grant(c Config) *clientcredentials.Config {
	return &clientcredentials.Config{
		ClientID:     clientID,
		ClientSecret: clientSecret,
		TokenURL:     c.TokenURL,
		Scopes:       []string{scope},
		AuthStyle:    oauth2.AuthStyleInHeader,
	}
}

func client(c Config) *http.Client {
	if !c.Retry {
		return c.Client
	}
	own := *c.Client
	own.Transport = &retrying{c.Client.Transport}
	return &own
}

func expiredToken() *oauth2.Token {
	return &oauth2.Token{AccessToken: "expired", TokenType: "Bearer", Expiry: time.Now().Add(-time.Hour)}
}

// prime calls s.Token if c.Expired is set, so that s has the expired token.
func prime(c Config, s *Source) (*Source, error) {
	if !c.Expired {
		return s, nil
	}
	_, err := s.Token(context.Background())
	return s, err
}

// versioned adds the version header, as a user of a transport without it would. It
// copies the request, because a RoundTripper must not change it.
type versioned struct{ base http.RoundTripper }

func (v *versioned) RoundTrip(req *http.Request) (*http.Response, error) {
	own := req.Clone(req.Context())
	own.Header.Set(VersionHeader, Version)
	return v.base.RoundTrip(own)
}
