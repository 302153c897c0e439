package moovauth_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// The client of a TokenSource adds a valid token to each request. Leave
// WithBaseURL out to talk to Moov itself.
func Example() {
	server := moovtest.NewServer()
	defer server.Close()

	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes("/ping.read"),
		moovauth.WithOrigin("https://example.com"),
		moovauth.WithBaseURL(server.URL),
	)
	if err != nil {
		log.Fatal(err)
	}
	resp, err := source.Client().Get(server.URL + "/ping")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
	// Output: 200 OK
}

// newSource returns a source as Example makes it, for the examples below.
func newSource(server *moovtest.Server, opts ...moovauth.Option) *moovauth.TokenSource {
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		append([]moovauth.Option{moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL)}, opts...)...,
	)
	if err != nil {
		log.Fatal(err)
	}
	return source
}

// ping calls the API and prints the status of the reply.
func ping(client *http.Client, server *moovtest.Server) {
	resp, err := client.Get(server.URL + "/ping")
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	fmt.Println(resp.Status)
}

// A TokenSource works with the transport of golang.org/x/oauth2. In this
// example, a Transport without a Source adds the version header.
func ExampleTokenSource_transport() {
	server := moovtest.NewServer()
	defer server.Close()

	client := &http.Client{Transport: &oauth2.Transport{
		Source: newSource(server),
		Base:   &moovauth.Transport{Version: "v2026.07.00"},
	}}
	ping(client, server)
	requests := server.Requests()
	fmt.Println(requests[len(requests)-1].Header.Get(moovauth.VersionHeader))
	// Output:
	// 200 OK
	// v2026.07.00
}

// Most SDKs that accept an oauth2.TokenSource wrap it as oauth2.NewClient does.
func ExampleTokenSource_newClient() {
	server := moovtest.NewServer()
	defer server.Close()

	ping(oauth2.NewClient(context.Background(), newSource(server)), server)
	// Output: 200 OK
}

// The zero value of Transport only adds the version header.
func ExampleTransport() {
	server := moovtest.NewServer()
	defer server.Close()

	ping(&http.Client{Transport: new(moovauth.Transport)}, server)
	fmt.Println(server.Requests()[0].Header.Get(moovauth.VersionHeader))
	// Output:
	// 401 Unauthorized
	// v2024.01.00
}

// RequestToken is for a caller that keeps the token itself.
func ExampleRequestToken() {
	server := moovtest.NewServer()
	defer server.Close()

	token, err := moovauth.RequestToken(context.Background(),
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes("/ping.read"),
		moovauth.WithBaseURL(server.URL),
	)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.TokenType, server.Alive(token.AccessToken))
	// Output: Bearer true
}

func ExampleRevoke() {
	server := moovtest.NewServer()
	defer server.Close()
	token, err := newSource(server).Token()
	if err != nil {
		log.Fatal(err)
	}

	err = moovauth.Revoke(context.Background(),
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		token.RefreshToken,
		moovauth.WithTokenTypeHint(moovauth.RefreshToken),
		moovauth.WithBaseURL(server.URL),
	)
	fmt.Println(err, server.Alive(token.RefreshToken))
	// Output: <nil> false
}

// At the end of a program, Revoke revokes the tokens that the source has
// obtained.
func ExampleTokenSource_Revoke() {
	server := moovtest.NewServer()
	defer server.Close()
	source := newSource(server)
	ping(source.Client(), server)

	fmt.Println(source.Revoke(context.Background()), server.AccessTokens(), server.RefreshTokens())
	// Output:
	// 200 OK
	// <nil> [] []
}

// A token that was saved, for example as JSON, makes a token request
// unnecessary.
func ExampleWithToken() {
	server := moovtest.NewServer()
	defer server.Close()
	saved, err := newSource(server).Token()
	if err != nil {
		log.Fatal(err)
	}

	ping(newSource(server, moovauth.WithToken(saved)).Client(), server)
	fmt.Println(len(server.TokenRequests()), "token request")
	// Output:
	// 200 OK
	// 1 token request
}

func ExampleError() {
	server := moovtest.NewServer(moovtest.WithScopes("/fed.read"))
	defer server.Close()
	_, err := newSource(server).Token()

	var refused *moovauth.Error
	if errors.As(err, &refused) {
		fmt.Println(refused.Op, refused.StatusCode, refused.Temporary(), refused.Fields["scope"] != "", refused.RequestID != "")
	}
	var retrieve *oauth2.RetrieveError // what code written for x/oauth2 looks for
	fmt.Println(errors.As(err, &retrieve))
	fmt.Println(strings.HasPrefix(err.Error(), "moovauth: token request (client_credentials) answered 422 Unprocessable Entity"))
	// Output:
	// token 422 false true true
	// true
	// true
}

// ready reports whether the next call is expected to return a token. It makes
// no request, so a probe may call it every second. An idle source is ready.
func ready(source *moovauth.TokenSource) bool {
	s := source.Stats()
	return s.Phase != moovauth.PhaseNone || !time.Now().Before(s.CoolDownUntil)
}

// This is a readiness probe. A liveness probe should not look at the token: a
// restart does not help if the token endpoint is down.
func ExampleTokenSource_Stats_readiness() {
	server := moovtest.NewServer() // stands for Moov in this example
	defer server.Close()
	server.Enqueue(moovtest.Answer{Status: http.StatusUnauthorized, Body: `{"error":"invalid_client"}`})
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes("/ping.read"),
		moovauth.WithBaseURL(server.URL),
	)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println("before the first call:", ready(source))

	_, _ = source.Token() // Moov refuses this request
	fmt.Println("after a failure:", ready(source))
	// Output:
	// before the first call: true
	// after a failure: false
}

// rotating is an http.RoundTripper whose API key can be replaced while it is used.
type rotating struct {
	current atomic.Pointer[moovauth.TokenSource]
}

func (r *rotating) RoundTrip(req *http.Request) (*http.Response, error) {
	return r.current.Load().Client().Transport.RoundTrip(req)
}

// The API key of a client changes without a restart. The client stays the same.
func Example_rotation() {
	server := moovtest.NewServer() // stands for Moov in this example
	defer server.Close()
	sourceOf := func(creds moovauth.Credentials) *moovauth.TokenSource {
		source, err := moovauth.NewTokenSource(creds, moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL))
		if err != nil {
			log.Fatal(err)
		}
		return source
	}
	transport := new(rotating)
	transport.current.Store(sourceOf(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret}))
	client := &http.Client{Transport: transport}
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

	server.SetCredentials("new-public-key", "new-secret-key") // you do this in Moov's dashboard
	next := sourceOf(moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
	if _, err := next.Token(); err != nil { // if the new key is wrong, the former one stays in use
		log.Fatal(err)
	}
	former := transport.current.Swap(next)
	call()
	fmt.Println("revoked:", former.Revoke(context.Background())) // call this after the requests with its token have ended
	server.DropOldCredentials()
	call()
	// Output:
	// 200 OK: token request 1, by moovtest-public-key
	// 200 OK: token request 2, by new-public-key
	// revoked: <nil>
	// 200 OK: token request 2, by new-public-key
}
