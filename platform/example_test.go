package platform_test

// This file has the examples that pkg.go.dev shows.

import (
	"context"
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"time"

	"golang.org/x/time/rate"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// Each account and purpose has its own client. The first call obtains the token.
func ExampleTokens_Client() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	server.Handle("GET /accounts/{id}/cards", "/accounts/{id}/cards.read", http.HandlerFunc(
		func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "the cards of %s", r.PathValue("id")) }))

	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithRate(20),
		platform.WithSource(moovauth.WithBaseURL(server.URL)))
	if err != nil {
		log.Fatal(err)
	}
	for _, account := range []string{"a1", "a2"} {
		client, err := tokens.Client("/accounts/" + account + "/cards.read")
		if err != nil {
			log.Fatal(err)
		}
		resp, err := client.Get(server.URL + "/accounts/" + account + "/cards")
		if err != nil {
			log.Fatal(err)
		}
		body := new(strings.Builder)
		resp.Write(body)
		resp.Body.Close()
		fmt.Println(resp.StatusCode, body.String()[strings.LastIndex(body.String(), "\n")+1:])
	}
	fmt.Println("token requests:", len(server.TokenRequests()))
	// Output:
	// 200 the cards of a1
	// 200 the cards of a2
	// token requests: 2
}

// A page sends a POST with its session cookie, and gets a token for its user.
func ExampleTokens_Handler() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithSource(moovauth.WithBaseURL(server.URL)),
		platform.WithOrigins("https://app.example.com")) // pages of the handler's own origin need no option
	if err != nil {
		log.Fatal(err)
	}
	accounts := map[string]string{"session-of-ada": "a1"}
	mux := http.NewServeMux()
	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
		cookie, err := r.Cookie("session")
		if err != nil {
			return nil, platform.StatusError(http.StatusUnauthorized)
		}
		account, ok := accounts[cookie.Value]
		if !ok {
			return nil, platform.StatusError(http.StatusUnauthorized)
		}
		return []string{"/accounts/" + account + "/cards.write"}, nil
	}))

	// What the page does, with fetch("/moov-token", { method: "POST" }):
	for _, session := range []string{"session-of-ada", "session-of-mallory"} {
		request := httptest.NewRequest(http.MethodPost, "https://example.com/moov-token", nil)
		request.Header.Set("Origin", "https://example.com")
		request.AddCookie(&http.Cookie{Name: "session", Value: session})
		reply := httptest.NewRecorder()
		mux.ServeHTTP(reply, request)
		var token struct {
			AccessToken string `json:"access_token"`
			Scope       string
		}
		if err := json.Unmarshal(reply.Body.Bytes(), &token); err != nil {
			log.Fatal(err)
		}
		fmt.Println(reply.Code, token.Scope, server.Alive(token.AccessToken))
	}
	// Output:
	// 200 /accounts/a1/cards.write true
	// 401  false
}

// An endpoint of your own gives a token to a mobile app, and revokes it at sign-out.
func ExampleTokens_Mint() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithSource(moovauth.WithBaseURL(server.URL)))
	if err != nil {
		log.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	token, err := tokens.Mint(ctx, "/accounts/a1/bank-accounts.write")
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(server.Alive(token.AccessToken), token.RefreshToken == "")

	if err := tokens.Revoke(ctx, token.AccessToken); err != nil { // the user has logged out
		log.Fatal(err)
	}
	fmt.Println(server.Alive(token.AccessToken))
	// Output:
	// true true
	// false
}

// Revoke all tokens when the process ends. The error says how many sources are left.
func ExampleTokens_RevokeAll() {
	tokens, err := platform.New(moovauth.Credentials{ClientID: "public-key", ClientSecret: "secret-key"})
	if err != nil {
		log.Fatal(err)
	}
	defer func() {
		ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
		defer cancel()
		if err := tokens.RevokeAll(ctx); err != nil {
			log.Print(err) // … 12 sources finished, 188 left: context deadline exceeded
		}
	}()
}

// A dashboard shows the state of the queue.
func ExampleTokens_Stats() {
	tokens, err := platform.New(moovauth.Credentials{ClientID: "public-key", ClientSecret: "secret-key"}, platform.WithRate(20))
	if err != nil {
		log.Fatal(err)
	}
	s := tokens.Stats()
	fmt.Printf("%d in the queue, the first for %v; %.1f requests a second, %d refused so far\n", s.InLine, s.LongestWait, s.Rate, s.Refused)
	// Output:
	// 0 in the queue, the first for 0s; 19.4 requests a second, 0 refused so far
}

// The application limits the rate of each user, because only it knows the users.
// Without such a limit, a page that asks in a loop delays all other pages.
func ExampleTokens_Handler_limitForEachUser() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithSource(moovauth.WithBaseURL(server.URL)))
	if err != nil {
		log.Fatal(err)
	}
	type session struct {
		account string
		tokens  *rate.Limiter // how often its pages may ask
	}
	sessions := map[string]*session{"session-of-ada": {"a1", rate.NewLimiter(rate.Every(10*time.Second), 3)}}
	endpoint := tokens.Handler(func(r *http.Request) ([]string, error) {
		cookie, err := r.Cookie("session")
		if err != nil || sessions[cookie.Value] == nil {
			return nil, platform.StatusError(http.StatusUnauthorized)
		}
		s := sessions[cookie.Value]
		if !s.tokens.Allow() {
			return nil, platform.StatusError(http.StatusTooManyRequests)
		}
		return []string{"/accounts/" + s.account + "/cards.write"}, nil
	})
	for range 5 {
		request := httptest.NewRequest(http.MethodPost, "https://example.com/moov-token", nil)
		request.AddCookie(&http.Cookie{Name: "session", Value: "session-of-ada"})
		reply := httptest.NewRecorder()
		endpoint.ServeHTTP(reply, request)
		fmt.Println(reply.Code)
	}
	// Output:
	// 200
	// 200
	// 200
	// 429
	// 429
}
