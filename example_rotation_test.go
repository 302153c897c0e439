package moovauth_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"sync/atomic"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// rotating is a token source whose API key can be replaced while it is used. A
// Transport finds its TokenContext and its Invalidate.
type rotating struct {
	opts    []moovauth.Option
	current atomic.Pointer[moovauth.TokenSource]
}

func (r *rotating) Token() (*oauth2.Token, error) { return r.current.Load().Token() }

func (r *rotating) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	return r.current.Load().TokenContext(ctx)
}

func (r *rotating) Invalidate(accessToken string) { r.current.Load().Invalidate(accessToken) }

// rotate goes on with another API key, once that has brought a token: so no call
// waits, and a wrong key changes nothing. It returns the source of the former
// key. Call its Revoke before that key is deleted.
func (r *rotating) rotate(ctx context.Context, creds moovauth.Credentials) (former *moovauth.TokenSource, err error) {
	next, err := moovauth.NewTokenSource(creds, r.opts...)
	if err != nil {
		return nil, err
	}
	if _, err := next.TokenContext(ctx); err != nil {
		return nil, err
	}
	return r.current.Swap(next), nil
}

// client is one for r. It needs the host of WithBaseURL and the version of
// WithVersion, which its Transport would ask a TokenSource for.
func (r *rotating) client(host, version string) *http.Client {
	return &http.Client{Transport: &moovauth.Transport{Source: r, Hosts: []string{host}, Version: version}}
}

// Another API key without a restart.
func ExampleTransport_rotation() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	source := &rotating{opts: []moovauth.Option{moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL)}}
	first, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret}, source.opts...)
	if err != nil {
		log.Fatal(err)
	}
	source.current.Store(first)
	base, err := url.Parse(server.URL)
	if err != nil {
		log.Fatal(err)
	}
	client := source.client(base.Host, moovauth.DefaultVersion)
	call := func() {
		resp, err := client.Get(server.URL + "/ping")
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		requests := server.TokenRequests()
		fmt.Printf("%s: token request %d, by %s\n", resp.Status, len(requests), requests[len(requests)-1].ClientID)
	}
	call()

	server.SetCredentials("new-public-key", "new-secret-key") // in Moov's dashboard
	former, err := source.rotate(context.Background(), moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
	if err != nil {
		log.Fatal(err)
	}
	call()
	fmt.Println("revoked:", former.Revoke(context.Background()))
	server.DropOldCredentials()
	call()
	// Output:
	// 200 OK: token request 1, by moovtest-public-key
	// 200 OK: token request 2, by new-public-key
	// revoked: <nil>
	// 200 OK: token request 2, by new-public-key
}
