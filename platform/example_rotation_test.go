package platform_test

import (
	"context"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"sync/atomic"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// rotating are tokens whose API key can be replaced while they are used.
type rotating struct {
	opts    []platform.Option
	scopes  func(*http.Request) ([]string, error)
	current atomic.Pointer[platform.Tokens]
}

// client is for one use: kept, it would go on with the former key.
func (r *rotating) client(scopes ...string) (*http.Client, error) {
	return r.current.Load().Client(scopes...)
}

// ServeHTTP mints tokens for pages.
func (r *rotating) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	r.current.Load().Handler(r.scopes).ServeHTTP(w, req)
}

// rotate goes on with another API key, once that has brought a token: so a wrong
// key changes nothing. It returns the tokens of the former key. Call its
// RevokeAll before that key is deleted.
func (r *rotating) rotate(ctx context.Context, creds moovauth.Credentials) (former *platform.Tokens, err error) {
	next, err := platform.New(creds, r.opts...)
	if err != nil {
		return nil, err
	}
	source, err := next.Source("/ping.read") // any scopes that the key may have
	if err != nil {
		return nil, err
	}
	if _, err := source.TokenContext(ctx); err != nil {
		return nil, err
	}
	return r.current.Swap(next), nil
}

// Another API key without a restart.
func ExampleTokens_rotation() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	r := &rotating{
		opts:   []platform.Option{platform.WithSource(moovauth.WithBaseURL(server.URL))},
		scopes: func(*http.Request) ([]string, error) { return []string{"/accounts/a1/cards.write"}, nil },
	}
	first, err := platform.New(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret}, r.opts...)
	if err != nil {
		log.Fatal(err)
	}
	r.current.Store(first)
	by := func() string {
		requests := server.TokenRequests()
		return requests[len(requests)-1].ClientID
	}
	use := func() {
		client, err := r.client("/ping.read")
		if err != nil {
			log.Fatal(err)
		}
		resp, err := client.Get(server.URL + "/ping")
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println("called:", resp.Status, "with a token of", by())
		page := httptest.NewRecorder()
		r.ServeHTTP(page, httptest.NewRequest(http.MethodPost, "/moov-token", nil))
		fmt.Println("minted:", page.Code, "by", by())
	}
	use()

	ctx := context.Background()
	minted, err := first.Mint(ctx, "/accounts/a1/cards.write")
	if err != nil {
		log.Fatal(err)
	}
	server.SetCredentials("new-public-key", "new-secret-key") // in Moov's dashboard
	former, err := r.rotate(ctx, moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
	if err != nil {
		log.Fatal(err)
	}
	use()
	fmt.Println("revoked with the new key:", r.current.Load().Revoke(ctx, minted.AccessToken) == nil)
	fmt.Println("revoked with the former:", former.Revoke(ctx, minted.AccessToken) == nil)
	fmt.Println("revoked the rest of the former's:", former.RevokeAll(ctx) == nil)
	server.DropOldCredentials()
	use()
	// Output:
	// called: 200 OK with a token of moovtest-public-key
	// minted: 200 by moovtest-public-key
	// called: 200 OK with a token of new-public-key
	// minted: 200 by new-public-key
	// revoked with the new key: false
	// revoked with the former: true
	// revoked the rest of the former's: true
	// called: 200 OK with a token of new-public-key
	// minted: 200 by new-public-key
}
