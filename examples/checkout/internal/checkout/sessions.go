package checkout

// This file is who is signed in, and which tokens their pages were given.

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
	cookieName  = "checkout_session" // all ports of localhost share their cookies
	sessionLife = time.Hour
)

// A user is one of the two who can sign in.
type user struct {
	ID      string `json:"id"`
	Name    string `json:"name"`
	Account string `json:"account"` // at Moov
}

var users = []user{
	{ID: "ada", Name: "Ada", Account: "ada-5c21"},
	{ID: "grace", Name: "Grace", Account: "grace-8e07"},
}

// sessions are those who are signed in, by the value of their cookie.
type sessions struct {
	revoke func(ctx context.Context, token string) error

	mu     sync.Mutex // guards what follows, and the tokens of each session
	open   map[string]*session
	left   map[string]time.Time // tokens that could not be revoked: when they expire
	again  *time.Timer          // tries them again; nil: there are none
	closed bool
}

func newSessions(revoke func(context.Context, string) error) *sessions {
	return &sessions{revoke: revoke, open: make(map[string]*session), left: make(map[string]time.Time)}
}

type session struct {
	id     string
	user   user
	timer  *time.Timer
	tokens map[string]time.Time // that its page was given: when they expire
	ended  bool
}

// begin signs a user in, and returns nil if it is too late for that.
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
		_, _ = s.end(ctx, b) // its tokens expire in any case
	})
	s.open[b.id] = b
	return b
}

// of returns the session that a request belongs to, or nil.
func (s *sessions) of(r *http.Request) *session {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.open[cookie.Value]
}

// isOf reports whether a request is from a page of the session's user. Another
// user may have signed in meanwhile, in another tab.
func (s *session) isOf(r *http.Request) bool {
	page := r.Header.Get("X-Page-User")
	return page == "" || page == s.user.ID
}

// keep remembers a token of a session, so that end can revoke it. It reports
// false if the session has ended meanwhile.
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

// end signs a user out, and revokes the tokens. It returns how many it revoked.
// What could not be revoked is tried again, until it has expired.
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
	maps.Copy(s.left, left)
	if s.again == nil {
		s.tryAgain(time.Second)
	}
	return revoked, err
}

// tryAgain revokes what is left after a wait, and then at longer and longer
// intervals. s.mu is held.
func (s *sessions) tryAgain(wait time.Duration) {
	s.again = nil
	if len(s.left) == 0 || s.closed { // endAll has it
		return
	}
	s.again = time.AfterFunc(wait, func() {
		s.mu.Lock()
		tokens := maps.Clone(s.left)
		s.mu.Unlock()
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		left, _, _ := s.revokeAll(ctx, tokens) // the sign-out has logged why
		s.mu.Lock()
		defer s.mu.Unlock()
		maps.DeleteFunc(s.left, func(token string, _ time.Time) bool {
			return !tokens[token].IsZero() && left[token].IsZero() // revoked, or expired
		})
		s.tryAgain(min(2*wait, 30*time.Second))
	})
}

// revokeAll revokes the tokens that have not expired. It returns those that are
// left, and how many it revoked.
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

// endAll signs everybody out. Nobody can sign in any more.
func (s *sessions) endAll(ctx context.Context) (int, error) {
	s.mu.Lock()
	s.closed = true
	tokens := maps.Clone(s.left)
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
