package checkout

// This file is who is signed in, and which tokens their pages were given.

import (
	"context"
	"crypto/rand"
	"errors"
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
	closed bool
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
func (s *sessions) end(ctx context.Context, of *session) (int, error) {
	s.mu.Lock()
	of.ended = true
	of.timer.Stop()
	delete(s.open, of.id)
	tokens := of.tokens
	of.tokens = nil
	s.mu.Unlock()

	var mu sync.Mutex // guards what follows
	var revoked int
	var errs []error
	var all sync.WaitGroup
	for token, expiry := range tokens {
		if time.Now().After(expiry) {
			continue
		}
		all.Go(func() {
			err := s.revoke(ctx, token)
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				errs = append(errs, err)
			} else {
				revoked++
			}
		})
	}
	all.Wait()
	return revoked, errors.Join(errs...)
}

// endAll signs everybody out. Nobody can sign in any more.
func (s *sessions) endAll(ctx context.Context) (int, error) {
	s.mu.Lock()
	s.closed = true
	var open []*session
	for _, o := range s.open {
		open = append(open, o)
	}
	s.mu.Unlock()

	var mu sync.Mutex // guards what follows
	var revoked int
	var errs []error
	var all sync.WaitGroup
	for _, o := range open {
		all.Go(func() {
			n, err := s.end(ctx, o)
			mu.Lock()
			defer mu.Unlock()
			revoked += n
			errs = append(errs, err)
		})
	}
	all.Wait()
	return revoked, errors.Join(errs...)
}
