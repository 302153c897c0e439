package checkout

// This file has the sessions of the users who are signed in, and the tokens of their pages.

import (
	"context"
	"crypto/rand"
	"errors"
	"maps"
	"net/http"
	"sync"
	"time"
)

const (
	cookieName  = "checkout_session" // a name of its own, because all ports of localhost share cookies
	sessionLife = time.Hour
)

// A user is one of the two users who can sign in.
type user struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Account string `json:"account"` // the account at Moov
}

var users = []user{
	{ID: "ada", Name: "Ada", Account: "ada-5c21"},
	{ID: "grace", Name: "Grace", Account: "grace-8e07"},
}

// sessions holds the open sessions.
type sessions struct {
	revoke func(ctx context.Context, token string) error

	mu        sync.Mutex           // guards the fields below, and the tokens of each session
	open      map[string]*session  // by the value of the cookie
	unrevoked map[string]time.Time // tokens that could not be revoked yet, and when they expire
	retry     *time.Timer          // retries the revocations, or is nil
	closed    bool
}

func newSessions(revoke func(context.Context, string) error) *sessions {
	return &sessions{revoke: revoke, open: make(map[string]*session), unrevoked: make(map[string]time.Time)}
}

type session struct {
	id     string
	user   user
	timer  *time.Timer
	tokens map[string]time.Time // the tokens of the session's pages, and when they expire
	ended  bool
}

// begin starts a session. It returns nil after endAll.
func (s *sessions) begin(u user) *session {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return nil
	}
	b := &session{id: rand.Text(), user: u, tokens: make(map[string]time.Time)}
	b.timer = time.AfterFunc(sessionLife, func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = s.end(ctx, b) // end retries what fails
	})
	s.open[b.id] = b
	return b
}

// of returns the session of a request, or nil.
func (s *sessions) of(r *http.Request) *session {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[cookie.Value]
}

// isOf reports whether a request is from a page of the session's user. Another user may
// have signed in from another tab since the page was loaded.
func (s *session) isOf(r *http.Request) bool {
	page := r.Header.Get("X-Page-User")
	return page == "" || page == s.user.ID
}

// keep records a token of a session, so that end can revoke it. It returns false if the
// session has ended.
func (s *sessions) keep(of *session, token string, expiry time.Time) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if of.ended {
		return false
	}
	for old, expiry := range of.tokens {
		if time.Now().After(expiry) {
			delete(of.tokens, old)
		}
	}
	of.tokens[token] = expiry
	return true
}

// end ends a session and revokes its tokens. It returns the number of revoked tokens. If
// it cannot revoke a token, it retries in the background until the token expires.
func (s *sessions) end(ctx context.Context, of *session) (int, error) {
	s.mu.Lock()
	of.ended = true
	of.timer.Stop()
	delete(s.open, of.id)
	tokens := of.tokens
	of.tokens = nil
	s.mu.Unlock()

	left, revoked, err := s.revokeAll(ctx, tokens)
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.Copy(s.unrevoked, left)
	if s.retry == nil {
		s.retryLater(time.Second)
	}
	return revoked, err
}

// retryLater retries the revocations in s.unrevoked after a wait. The wait doubles with each
// retry, up to 30 s. The caller holds s.mu.
func (s *sessions) retryLater(wait time.Duration) {
	s.retry = nil
	if len(s.unrevoked) == 0 || s.closed { // endAll revokes what is left
		return
	}
	s.retry = time.AfterFunc(wait, func() {
		s.mu.Lock()
		tokens := maps.Clone(s.unrevoked)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		left, _, _ := s.revokeAll(ctx, tokens) // sign-out has logged the first error
		s.mu.Lock()
		defer s.mu.Unlock()
		maps.DeleteFunc(s.unrevoked, func(token string, _ time.Time) bool {
			return !tokens[token].IsZero() && left[token].IsZero() // revoked, or expired
		})
		s.retryLater(min(2*wait, 30*time.Second))
	})
}

// revokeAll revokes the tokens that have not expired. It returns the tokens that it could
// not revoke, and the number of revoked tokens.
func (s *sessions) revokeAll(ctx context.Context, tokens map[string]time.Time) (left map[string]time.Time, revoked int, err error) {
	left = make(map[string]time.Time)
	var mu sync.Mutex // guards the results
	var all sync.WaitGroup
	for token, expiry := range tokens {
		if time.Now().After(expiry) {
			continue
		}
		all.Go(func() {
			failed := s.revoke(ctx, token)
			mu.Lock()
			defer mu.Unlock()
			if failed == nil {
				revoked++
				return
			}
			left[token] = expiry
			err = errors.Join(err, failed)
		})
	}
	all.Wait()
	return left, revoked, err
}

// endAll ends all sessions. After that, no one can sign in.
func (s *sessions) endAll(ctx context.Context) (int, error) {
	s.mu.Lock()
	s.closed = true
	tokens := maps.Clone(s.unrevoked)
	for _, o := range s.open {
		o.ended = true
		o.timer.Stop()
		maps.Copy(tokens, o.tokens)
		o.tokens = nil
	}
	clear(s.open)
	s.mu.Unlock()
	_, revoked, err := s.revokeAll(ctx, tokens)
	return revoked, err
}
