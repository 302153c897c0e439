package platform_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"maps"
	"net/http"
	"net/http/httptest"
	"sync"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// sessions are the tokens that the page of each session was given, and when they
// expire. The key is the value of the session's cookie.
type sessions struct {
	tokens *platform.Tokens

	mu   sync.Mutex // guards open
	open map[string]map[string]time.Time
}

// remember notes each token before the page gets it. If the user has signed out
// meanwhile, the token is revoked, and the page gets a 401.
func (s *sessions) remember(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		reply := &heldReply{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(reply, r)
		var token struct {
			AccessToken string `json:"access_token"`
			ExpiresIn   int64  `json:"expires_in"`
		}
		if json.Unmarshal(reply.body.Bytes(), &token) == nil && token.AccessToken != "" {
			expiry := time.Now().Add(time.Duration(token.ExpiresIn+1) * time.Second) // the seconds were rounded down
			if !s.note(sessionOf(r), token.AccessToken, expiry) {
				ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
				defer cancel()
				_ = s.tokens.Revoke(ctx, token.AccessToken) // it expires in any case
				http.Error(w, "signed out", http.StatusUnauthorized)
				return
			}
		}
		w.WriteHeader(reply.status)
		_, _ = reply.body.WriteTo(w) // the page may have gone
	})
}

// note reports false if the session has ended.
func (s *sessions) note(session, token string, expiry time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	given, ok := s.open[session]
	if !ok {
		return false
	}
	maps.DeleteFunc(given, func(_ string, expiry time.Time) bool { return time.Now().After(expiry) })
	given[token] = expiry
	return true
}

// signOut ends a session, and with it the tokens of its page.
func (s *sessions) signOut(ctx context.Context, session string) (err error) {
	s.mu.Lock()
	given := s.open[session]
	delete(s.open, session)
	s.mu.Unlock()
	for token, expiry := range given {
		if time.Now().Before(expiry) {
			err = errors.Join(err, s.tokens.Revoke(ctx, token))
		}
	}
	return err
}

// heldReply is a reply that is sent when its token has been noted.
type heldReply struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *heldReply) WriteHeader(status int)      { r.status = status }
func (r *heldReply) Write(b []byte) (int, error) { return r.body.Write(b) }

// status is an error that Handler answers with.
type status int

func (s status) Error() string   { return http.StatusText(int(s)) }
func (s status) StatusCode() int { return int(s) }

func sessionOf(r *http.Request) string {
	cookie, err := r.Cookie("session")
	if err != nil {
		return ""
	}
	return cookie.Value
}

// Sign-out revokes the tokens that the page was given.
func ExampleTokens_Handler_signOut() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithSource(moovauth.WithBaseURL(server.URL)))
	if err != nil {
		log.Fatal(err)
	}
	accounts := map[string]string{"session-of-ada": "a1"}
	s := &sessions{tokens: tokens, open: map[string]map[string]time.Time{"session-of-ada": {}}}
	mux := http.NewServeMux()
	mux.Handle("/moov-token", s.remember(tokens.Handler(func(r *http.Request) ([]string, error) {
		account, ok := accounts[sessionOf(r)]
		if !ok {
			return nil, status(http.StatusUnauthorized)
		}
		return []string{"/accounts/" + account + "/cards.write"}, nil
	})))

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
	if err := s.signOut(context.Background(), "session-of-ada"); err != nil {
		log.Fatal(err)
	}
	fmt.Println("signed out, tokens alive:", len(server.AccessTokens()))
	fetch("session-of-ada") // its token came too late
	// Output:
	// 200 tokens alive: 1
	// 200 tokens alive: 2
	// 401 tokens alive: 2
	// signed out, tokens alive: 0
	// 401 tokens alive: 0
}
