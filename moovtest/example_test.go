package moovtest_test

import (
	"encoding/json"
	"fmt"
	"log"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// fetch is the code under test. It requests a token and calls the API with it.
func fetch(client *http.Client, baseURL, clientID, clientSecret string) (status string, err error) {
	form := url.Values{"grant_type": {"client_credentials"}, "scope": {"/ping.read"}}
	req, err := http.NewRequest(http.MethodPost, baseURL+"/oauth2/token", strings.NewReader(form.Encode()))
	if err != nil {
		return "", err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.SetBasicAuth(clientID, clientSecret)
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("no token: %s", resp.Status)
	}
	var token struct {
		AccessToken string `json:"access_token"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&token); err != nil {
		return "", err
	}

	req, err = http.NewRequest(http.MethodGet, baseURL+"/ping", nil)
	if err != nil {
		return "", err
	}
	req.Header.Set("Authorization", "Bearer "+token.AccessToken)
	resp, err = client.Do(req)
	if err != nil {
		return "", err
	}
	return resp.Status, resp.Body.Close()
}

// A test starts a server, runs the code under test against it, and checks the
// requests that the code made.
func Example() {
	server := moovtest.NewServer()
	defer server.Close()

	status, err := fetch(server.Client(), server.URL, server.ClientID, server.ClientSecret)
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(status)
	for _, r := range server.TokenRequests() {
		fmt.Println(r.GrantType, r.Form.Get("scope"))
	}
	fmt.Println(len(server.AccessTokens()), "access token alive")
	// Output:
	// 200 OK
	// client_credentials /ping.read
	// 1 access token alive
}

// The server answers the first token request with an error that the test prepared.
func ExampleServer_Enqueue() {
	server := moovtest.NewServer()
	defer server.Close()
	server.Enqueue(moovtest.Answer{
		Status: http.StatusTooManyRequests,
		Header: http.Header{"Retry-After": {"1"}},
	})

	for range 2 {
		fmt.Println(fetch(server.Client(), server.URL, server.ClientID, server.ClientSecret))
	}
	// Output:
	//  no token: 429 Too Many Requests
	// 200 OK <nil>
}

// During an outage of the token endpoint, callers can use the current token until it
// expires. The test also checks what happens after that, and after the outage.
func ExampleServer_SetAnswer() {
	test := func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		source, err := moovauth.NewTokenSource(
			moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
			moovauth.WithBaseURL(server.URL),
			moovauth.WithHTTPClient(server.Client()),
			moovauth.WithScopes("/ping.read"),
		)
		if err != nil {
			log.Fatal(err)
		}
		ping := func(when string) {
			resp, err := source.Client().Get(server.URL + "/ping")
			if err != nil {
				fmt.Println(when, "no token")
				return
			}
			resp.Body.Close()
			fmt.Println(when, resp.Status)
		}

		ping("before:")
		server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		time.Sleep(14 * time.Minute) // in the bubble's time; the source tries to refresh the token
		ping("outage, token valid:")
		time.Sleep(2 * time.Minute) // the token expires
		ping("outage, token expired:")
		server.SetAnswer(nil)
		time.Sleep(time.Minute) // the source's cool-down ends
		ping("after:")
	}
	synctest.Test(&testing.T{}, test) // in a test function, pass its t
	// Output:
	// before: 200 OK
	// outage, token valid: 200 OK
	// outage, token expired: no token
	// after: 200 OK
}

// A test adds an endpoint that requires a token with the account's scope.
func ExampleServer_Handle() {
	server := moovtest.NewInMemory()
	defer server.Close()
	server.Handle("POST /accounts/{accountID}/cards", "/accounts/{accountID}/cards.write",
		http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusCreated)
			fmt.Fprintf(w, `{"linkedTo":%q}`, r.PathValue("accountID"))
		}))

	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithBaseURL(server.URL),
		moovauth.WithHTTPClient(server.Client()),
		moovauth.WithScopes("/accounts/ours/cards.write"),
	)
	if err != nil {
		log.Fatal(err)
	}
	for _, account := range []string{"ours", "theirs"} {
		resp, err := source.Client().Post(server.URL+"/accounts/"+account+"/cards", "application/json", strings.NewReader("{}"))
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		fmt.Println(account+":", resp.Status)
	}
	// Output:
	// ours: 201 Created
	// theirs: 403 Forbidden
}

// If a stolen refresh token is used after its owner has used it, the server revokes
// all tokens that descend from the same grant.
func ExampleWithReuseDetection() {
	server := moovtest.NewInMemory(moovtest.WithReuseDetection())
	defer server.Close()
	refresh := func(refreshToken string) (status string) {
		form := url.Values{
			"grant_type": {"refresh_token"}, "refresh_token": {refreshToken},
			"client_id": {server.ClientID}, "client_secret": {server.ClientSecret},
		}
		resp, err := server.Client().PostForm(server.URL+"/oauth2/token", form)
		if err != nil {
			log.Fatal(err)
		}
		resp.Body.Close()
		return resp.Status
	}

	fetch(server.Client(), server.URL, server.ClientID, server.ClientSecret)
	stolen := server.RefreshTokens()[0]
	fmt.Println(refresh(stolen), len(server.AccessTokens()), len(server.RefreshTokens()))
	fmt.Println(refresh(stolen), len(server.AccessTokens()), len(server.RefreshTokens()))
	// Output:
	// 200 OK 2 1
	// 400 Bad Request 0 0
}

// A test in a bubble can end while a token source is refreshing its token in the
// background. The server's Close waits until the source has stopped.
func ExampleServer_Close() {
	test := func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close() // or t.Cleanup(server.Close)

		source, err := moovauth.NewTokenSource(
			moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
			moovauth.WithBaseURL(server.URL),
			moovauth.WithHTTPClient(server.Client()),
			moovauth.WithScopes("/ping.read"),
		)
		if err != nil {
			log.Fatal(err)
		}
		first, err := source.Token()
		if err != nil {
			log.Fatal(err)
		}

		time.Sleep(14 * time.Minute)   // in the bubble's time; the next call refreshes the token
		server.SetLatency(time.Minute) // the refresh is slow
		second, err := source.Token()
		if err != nil {
			log.Fatal(err)
		}
		fmt.Println("still the first token:", second.AccessToken == first.AccessToken)
		synctest.Wait()
		fmt.Println("token requests:", len(server.TokenRequests()))
	}
	synctest.Test(&testing.T{}, test) // in a test function, pass its t
	// Output:
	// still the first token: true
	// token requests: 2
}

// With its own clock, a test can make tokens expire.
func ExampleWithClock() {
	now := time.Date(2030, 1, 1, 12, 0, 0, 0, time.UTC)
	server := moovtest.NewInMemory(moovtest.WithClock(func() time.Time { return now }))
	defer server.Close()

	fetch(server.Client(), server.URL, server.ClientID, server.ClientSecret)
	fmt.Println(len(server.AccessTokens()), len(server.RefreshTokens()))
	now = now.Add(15 * time.Minute)
	fmt.Println(len(server.AccessTokens()), len(server.RefreshTokens()))
	// Output:
	// 1 1
	// 0 1
}
