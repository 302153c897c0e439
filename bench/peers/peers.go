// Package peers puts moovauth and its peers behind one interface, so that each
// is measured with the same token endpoint, token and goroutines. Each has a
// file of its own, which says what it was given.
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

// Config is what a source is made with.
type Config struct {
	TokenURL string        // ends in /oauth2/token
	Client   *http.Client  // for token requests
	Retry    bool          // give peers that make one attempt at a token request as many as moovauth makes
	Early    time.Duration // how long before expiry a token is replaced, if the peer lets one say; 0: its default
	Expired  bool          // start with a token that has expired
}

// Source is one peer's source of one token.
type Source struct {
	// Token returns the access token. It is nil if the peer only has a call
	// that makes a request.
	Token func(context.Context) (string, error)

	// Through returns what sends a request on base with the token and the
	// version header. It is nil if the peer has nothing that does.
	Through func(base http.RoundTripper) (Do, error)

	// Held is what stays in memory for as long as the source is in use.
	Held any
}

// Do sends a request, which it does not change.
type Do func(*http.Request) (*http.Response, error)

// Peer is a package that keeps a token.
type Peer struct {
	Name string
	New  func(Config) (*Source, error)
}

// Names of the peers, and of the floor.
const (
	Moovauth  = "moovauth"
	XOAuth2   = "x-oauth2"
	CloudAuth = "cloud-auth"
	Azcore    = "azcore"
	AWS       = "aws"
	Floor     = "floor"
)

// All has moovauth first, and ends with the floor.
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

// fetcher makes one token request a call. Peers that cache what the caller
// fetches are given it.
type fetcher struct {
	config  *clientcredentials.Config
	client  *http.Client
	expired bool // the next token is an expired one
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

// prime makes a source that starts with an expired token take it.
func prime(c Config, s *Source) (*Source, error) {
	if !c.Expired {
		return s, nil
	}
	_, err := s.Token(context.Background())
	return s, err
}

// versioned is the RoundTripper that a user of a transport without the version
// header writes. It copies the request, as the contract of RoundTripper asks.
type versioned struct{ base http.RoundTripper }

func (v *versioned) RoundTrip(req *http.Request) (*http.Response, error) {
	own := req.Clone(req.Context())
	own.Header.Set(VersionHeader, Version)
	return v.base.RoundTrip(own)
}
