package moovauth

// This file ends a token's life at the server (RFC 7009): Revoke for a token
// that the caller has, TokenSource.Revoke for all that a source has obtained.

import (
	"context"
	"errors"
	"fmt"

	"github.com/moovauth/moovauth/internal/guard"
	"github.com/moovauth/moovauth/internal/redact"
)

// TokenTypeHint is the kind of a token (RFC 7009 §2.1).
type TokenTypeHint string

// The kinds of tokens that Moov hands out.
const (
	AccessToken  TokenTypeHint = "access_token"
	RefreshToken TokenTypeHint = "refresh_token"
)

// Revoke revokes token, an access or a refresh token, at POST /oauth2/revoke.
// A token that the server does not know, or no longer, counts as revoked
// (RFC 7009 §2.2). It gives up with ctx or after [WithTimeout], and what the
// server refuses comes back as an [*Error].
//
// Of the options, those count that say where and how to ask; WithTokenTypeHint
// is only for Revoke. The others are checked and have no effect.
func Revoke(ctx context.Context, creds Credentials, token string, opts ...Option) error {
	c, err := newConfig(creds, opts)
	if err != nil {
		return err
	}
	if token == "" {
		return errors.New("moovauth: Revoke: the token is empty: give the access or refresh token to revoke")
	}
	c.redact.Add(token)
	return revokeOne(ctx, newEndpoint(c), token, c.hint, &c.redact)
}

// revokeOne revokes within WithTimeout.
func revokeOne(ctx context.Context, e *endpoint, token string, hint TokenTypeHint, hide *redact.Set) error {
	ctx, cancel := e.limit(ctx)
	defer cancel()
	_, err := guard.Call(ctx, network(hide), func() (struct{}, error) { return struct{}{}, e.revoke(ctx, token, hint, hide) }, nil)
	return err
}

// Revoke revokes and forgets what s holds: the refresh token first, since it
// could mint more, then the access token, then access tokens that were
// replaced but have not expired yet. What a cache holds for s is deleted. It waits for a grant in progress, as
// long as ctx lets it. Each token is tried even where another one failed; the
// errors are joined, and the next Revoke tries again what failed.
//
// When it returns nil, nothing that s obtained before the call is alive. s
// stays usable: the next Token starts afresh with the configured scopes.
func (s *TokenSource) Revoke(ctx context.Context) error {
	if s.endpoint == nil {
		return errZero
	}
	if err := s.revoking.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("moovauth: Revoke: waiting for another Revoke: %w", err)
	}
	defer s.revoking.Release(1)
	if err := s.granting.Acquire(ctx, 1); err != nil {
		return fmt.Errorf("moovauth: Revoke: waiting for the grant in progress: %w", err)
	}
	hide := s.secrets()
	taken := s.take()
	s.flight.Forget("") // a flight that has just ended must not hand out what was taken
	s.store.visit(hide).delete(ctx)
	s.granting.Release(1)

	var errs []error
	for _, t := range taken {
		err := revokeOne(ctx, s.endpoint, t.token, t.hint, hide)
		errs = append(errs, err)
		t.dead = err == nil
		s.mu.Lock()
		s.remember(t)
		s.mu.Unlock()
	}
	return errors.Join(errs...)
}
