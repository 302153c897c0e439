package main

// This file is who is signed in, and which tokens their pages were given. Put your
// own sign-in in its place, and keep minted and signOut.

import (
	"context"
	"crypto/rand"
	"errors"
	"log/slog"
	"maps"
	"net/http"
	"sync"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/platform"
)

const cookieName = "session"

type sessions struct {
	log *slog.Logger

	mu    sync.Mutex // guards what follows, and the maps of each session
	open  map[string]*session
	ended map[string]mintedToken // by access token: those of ended sessions, to be revoked
}

type session struct {
	account string // the user's, at Moov
	minted  map[string]mintedToken
}

// mintedToken is what it takes to revoke a token of a page.
type mintedToken struct {
	expiry time.Time
	by     *platform.Tokens // only the API key that obtained a token can revoke it (RFC 7009 §2.1)
}

func newSessions(log *slog.Logger) *sessions {
	return &sessions{log: log, open: make(map[string]*session), ended: make(map[string]mintedToken)}
}

// begin signs a user in, and returns the session's cookie.
func (s *sessions) begin(account string) *http.Cookie {
	id := rand.Text()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.open[id] = &session{account: account, minted: make(map[string]mintedToken)}
	return &http.Cookie{Name: cookieName, Value: id, Path: "/", Secure: true, HttpOnly: true, SameSite: http.SameSiteStrictMode}
}

// account returns the account of the user who is signed in.
func (s *sessions) account(r *http.Request) (string, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[sessionOf(r)]
	if o == nil {
		return "", false
	}
	return o.account, true
}

// minted notes a token before its page gets it. If the user has signed out
// meanwhile, the error has the token revoked, and the page gets a 401.
func (s *sessions) minted(r *http.Request, token *oauth2.Token, by *platform.Tokens) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	o := s.open[sessionOf(r)]
	if o == nil {
		return platform.StatusError(http.StatusUnauthorized)
	}
	maps.DeleteFunc(o.minted, func(_ string, m mintedToken) bool { return time.Now().After(m.expiry) })
	o.minted[token.AccessToken] = mintedToken{token.Expiry, by}
	return nil
}

// end signs a user out, and revokes the tokens of the user's pages.
func (s *sessions) end(ctx context.Context, id string) error {
	s.mu.Lock()
	if o := s.open[id]; o != nil {
		maps.Copy(s.ended, o.minted)
		delete(s.open, id)
	}
	s.mu.Unlock()
	_, err := s.revokeEnded(ctx)
	return err
}

// endAll signs everyone out, and returns how many tokens it revoked.
func (s *sessions) endAll(ctx context.Context) (revoked int, err error) {
	s.mu.Lock()
	for _, o := range s.open {
		maps.Copy(s.ended, o.minted)
	}
	clear(s.open)
	s.mu.Unlock()
	return s.revokeEnded(ctx)
}

// revokeEnded revokes the tokens of sessions that have ended. A token that cannot
// be revoked is kept for the next call, until it expires.
func (s *sessions) revokeEnded(ctx context.Context) (revoked int, err error) {
	s.mu.Lock()
	maps.DeleteFunc(s.ended, func(_ string, m mintedToken) bool { return time.Now().After(m.expiry) })
	tokens := maps.Clone(s.ended)
	s.mu.Unlock()
	var all sync.WaitGroup
	for token, m := range tokens {
		all.Go(func() {
			failed := m.by.Revoke(ctx, token)
			s.mu.Lock()
			defer s.mu.Unlock()
			if failed != nil {
				err = errors.Join(err, failed)
				return
			}
			revoked++
			delete(s.ended, token)
		})
	}
	all.Wait()
	return revoked, err
}

// revokeEvery tries again what a sign-out could not revoke, until ctx ends.
func (s *sessions) revokeEvery(ctx context.Context, pause time.Duration) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		if _, err := s.revokeEnded(ctx); err != nil {
			s.log.Warn("tokens of pages are alive after sign-out", "error", err)
		}
	}
}

func sessionOf(r *http.Request) string {
	cookie, err := r.Cookie(cookieName)
	if err != nil {
		return ""
	}
	return cookie.Value
}

// signIn takes the demo user without a password.
func (s *service) signIn(w http.ResponseWriter, _ *http.Request) {
	http.SetCookie(w, s.sessions.begin(s.config.account))
}

// signOut does not depend on Moov: a token that cannot be revoked now is revoked later.
func (s *service) signOut(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second) // also if the page leaves
	defer cancel()
	if err := s.sessions.end(ctx, sessionOf(r)); err != nil {
		s.log.Warn("tokens of pages are alive after sign-out", "error", err)
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName, Path: "/", MaxAge: -1})
	w.WriteHeader(http.StatusNoContent)
}
