package platform_test

import (
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// sessions knows the tokens of each session. The key of a session is the value of its
// cookie. The value of a token is the time when it expires.
type sessions struct {
	tokens *platform.Tokens

	mu    sync.Mutex // guards the fields below
	open  map[string]map[string]time.Time
	ended map[string]time.Time // tokens of ended sessions that are not revoked yet
}

// minted stores a token before the page gets it. If the user has signed out in the
// meantime, minted returns an error: Handler revokes the token, and replies with 401.
func (s *sessions) minted(r *http.Request, token *oauth2.Token) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	given, ok := s.open[sessionOf(r)]
	if !ok {
		return platform.StatusError(http.StatusUnauthorized)
	}
	given[token.AccessToken] = token.Expiry
	return nil
}

// signOut ends a session, and revokes the tokens of its pages.
func (s *sessions) signOut(ctx context.Context, session string) error {
	s.mu.Lock()
	for token, expiry := range s.open[session] {
		s.ended[token] = expiry
	}
	delete(s.open, session)
	s.mu.Unlock()
	return s.revokeEnded(ctx)
}

// revokeEnded revokes the tokens of ended sessions. If that fails for a token, the next
// call tries again, until the token has expired. Call revokeEnded every few seconds.
func (s *sessions) revokeEnded(ctx context.Context) (err error) {
	s.mu.Lock()
	var tokens []string
	for token, expiry := range s.ended {
		if time.Now().After(expiry) {
			delete(s.ended, token)
		} else {
			tokens = append(tokens, token)
		}
	}
	s.mu.Unlock()
	for _, token := range tokens {
		if failed := s.tokens.Revoke(ctx, token); failed != nil {
			err = errors.Join(err, failed)
			continue
		}
		s.mu.Lock()
		delete(s.ended, token)
		s.mu.Unlock()
	}
	return err
}

func sessionOf(r *http.Request) string {
	cookie, err := r.Cookie("session")
	if err != nil {
		return ""
	}
	return cookie.Value
}

// Sign-out revokes the tokens that the user's pages received.
func ExampleTokens_Handler_signOut() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	s := &sessions{
		open:  map[string]map[string]time.Time{"session-of-ada": {}},
		ended: make(map[string]time.Time),
	}
	accounts := map[string]string{"session-of-ada": "a1"}
	var err error
	s.tokens, err = platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithMinted(s.minted),
		platform.WithSource(moovauth.WithBaseURL(server.URL)))
	if err != nil {
		log.Fatal(err)
	}
	mux := http.NewServeMux()
	mux.Handle("/moov-token", s.tokens.Handler(func(r *http.Request) ([]string, error) {
		account, ok := accounts[sessionOf(r)]
		if !ok {
			return nil, platform.StatusError(http.StatusUnauthorized)
		}
		return []string{"/accounts/" + account + "/cards.write"}, nil
	}))

	fetch := func(session string) { // as the page does
		request := httptest.NewRequest(http.MethodPost, "https://example.com/moov-token", nil)
		request.AddCookie(&http.Cookie{Name: "session", Value: session})
		reply := httptest.NewRecorder()
		mux.ServeHTTP(reply, request)
		fmt.Println(reply.Code, "tokens alive:", len(server.AccessTokens()))
	}
	fetch("session-of-ada")
	fetch("session-of-ada")
	fetch("session-of-mallory")

	ctx := context.Background()
	server.Enqueue(moovtest.Answer{Status: http.StatusBadRequest})
	err = s.signOut(ctx, "session-of-ada")
	fmt.Println("signed out, failed:", err != nil, "tokens alive:", len(server.AccessTokens()))
	err = s.revokeEnded(ctx) // some seconds later
	fmt.Println("tried again, failed:", err != nil, "tokens alive:", len(server.AccessTokens()))
	fetch("session-of-ada") // the session has ended
	// Output:
	// 200 tokens alive: 1
	// 200 tokens alive: 2
	// 401 tokens alive: 2
	// signed out, failed: true tokens alive: 1
	// tried again, failed: false tokens alive: 0
	// 401 tokens alive: 0
}
