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
	opts    []moovauth.Option // all but WithToken
	current atomic.Pointer[moovauth.TokenSource]
}

func (r *rotating) Token() (*oauth2.Token, error) { return r.current.Load().Token() }

func (r *rotating) TokenContext(ctx context.Context) (*oauth2.Token, error) {
	return r.current.Load().TokenContext(ctx)
}

func (r *rotating) Invalidate(accessToken string) { r.current.Load().Invalidate(accessToken) }

// rotate goes on with another API key, from the token in hand, so that no call
// waits. It returns the source of the former key. Call its Revoke before that
// key is deleted: the refresh token is the former key's.
func (r *rotating) rotate(ctx context.Context, creds moovauth.Credentials) (*moovauth.TokenSource, error) {
	former := r.current.Load()
	t, err := former.TokenContext(ctx)
	if err != nil {
		return nil, err
	}
	t.RefreshToken = ""
	next, err := moovauth.NewTokenSource(creds, append(r.opts[:len(r.opts):len(r.opts)], moovauth.WithToken(t))...)
	if err != nil {
		return nil, err
	}
	r.current.Store(next)
	return former, nil
}

// Another API key without a restart.
func ExampleWithToken_rotation() {
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
	client := &http.Client{Transport: &moovauth.Transport{
		Source:  source,
		Hosts:   []string{base.Host}, // needed unless the base URL is DefaultBaseURL,
		Version: "v2026.07.00",       // and WithVersion's value: Source is no *TokenSource, which would tell
	}}
	call := func() {
		resp, err := client.Get(server.URL + "/ping")
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		requests := server.TokenRequests()
		fmt.Println(resp.Status, len(requests), "token request by", requests[len(requests)-1].ClientID)
	}
	call()

	server.SetCredentials("new-public-key", "new-secret-key") // in Moov's dashboard
	former, err := source.rotate(context.Background(), moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
	if err != nil {
		log.Fatal(err)
	}
	call() // with the token in hand

	fmt.Println("revoked:", former.Revoke(context.Background()))
	server.DropOldCredentials()
	call() // refused with 401, and made once more with the new key's token
	// Output:
	// 200 OK 1 token request by moovtest-public-key
	// 200 OK 1 token request by moovtest-public-key
	// revoked: <nil>
	// 200 OK 2 token request by new-public-key
}
