package moovauth_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// shutdown ends a service within five seconds: first its callers, so that nobody
// asks for another token, then the tokens. Not for processes that share a cache:
// Revoke ends the tokens of all of them.
func shutdown(service *http.Server, source *moovauth.TokenSource) error {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	calls, stop := context.WithTimeout(ctx, 3*time.Second) // leaves two for Revoke
	defer stop()
	err := service.Shutdown(calls)
	if err != nil { // a caller that goes on would obtain another token
		err = errors.Join(err, service.Close())
	}
	return errors.Join(err, source.Revoke(ctx))
}

// The end of a service: on SIGTERM it stops its callers, then revokes.
func ExampleTokenSource_Revoke_shutdown() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes("/ping.read"),
		moovauth.WithBaseURL(server.URL),
	)
	if err != nil {
		log.Fatal(err)
	}
	client := source.Client()
	service := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, server.URL+"/ping", nil)
		if err != nil {
			log.Print(err)
			return
		}
		resp, err := client.Do(req)
		if err != nil {
			http.Error(w, "try again later", http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		fmt.Fprint(w, "Moov says ", resp.Status)
	})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		log.Fatal(err)
	}
	go func() { _ = service.Serve(listener) }()
	resp, err := http.Get("http://" + listener.Addr().String())
	if err != nil {
		log.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	fmt.Println(string(text))

	// After signal.NotifyContext has said that it is time:
	fmt.Println(shutdown(service, source), len(server.AccessTokens()), len(server.RefreshTokens()))
	// Output:
	// Moov says 200 OK
	// <nil> 0 0
}
