package moovauth

// This file revokes tokens (RFC 7009): Revoke one token that the caller has,
// and TokenSource.Revoke all that a source has obtained.

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// TokenTypeHint is the kind of a token (RFC 7009 §2.1).
type TokenTypeHint string

// The kinds of tokens that Moov issues.
const (
	AccessToken  TokenTypeHint = "access_token"
	RefreshToken TokenTypeHint = "refresh_token"
)

// Revoke revokes one token, an access or a refresh token, at POST
// /oauth2/revoke. Other tokens of the same token request stay alive: see
// [TokenSource.Revoke]. A token that the server does not know counts as revoked
// (RFC 7009 §2.2). Revoke retries temporary failures. It stops when ctx ends or
// after [WithTimeout]. If the server refuses the request, the error is an
// [*Error].
//
// Only the options that configure the request apply: WithBaseURL, WithOrigin,
// WithVersion, WithHTTPClient, WithAuthStyle, WithTimeout, WithLimiter,
// WithLogger and WithTokenTypeHint. The others are validated and ignored.
func Revoke(ctx context.Context, creds Credentials, token string, opts ...Option) error {
	c, err := newConfig(creds, opts)
	switch {
	case err != nil:
		return err
	case ctx == nil:
		return errNilContext
	case token == "":
		return errors.New("moovauth: Revoke: the token is empty: give the access or refresh token to revoke")
	}
	return c.revoke(ctx, token, c.hint, nil, newBudget(c.timeout))
}

// revoke revokes token within b.
func (c *config) revoke(ctx context.Context, token string, hint TokenTypeHint, secrets []string, b *budget) error {
	form := url.Values{"token": {token}}
	if hint != "" {
		form.Set("token_type_hint", string(hint))
	}
	began := time.Now()
	r := &request{op: opRevoke, form: form, secrets: append(secrets, token), budget: b, queue: ctx}
	err := failure(c.whileThrottled(ctx, b, nil, func() error {
		_, err := c.do(ctx, r)
		return err
	}))
	attrs := []any{"token_type_hint", hint, "duration", time.Since(began)}
	if err != nil {
		c.log(slog.LevelWarn, "moovauth: token not revoked", append(attrs, "error", err)...)
		return err
	}
	c.log(slog.LevelDebug, "moovauth: token revoked", attrs...)
	return nil
}

// Revoke revokes and forgets every token that s holds or that its cache holds.
// It revokes the refresh tokens first, since they can be used to obtain others.
// Then it revokes the access tokens, including former ones that have not
// expired. It deletes the cache's entry last. If a token cannot be revoked,
// Revoke continues with the next one, joins the errors, and the next call to
// Revoke tries that token again. s stays usable: if it has scopes, the next
// call to Token uses the client credentials. To revoke only one token, see the
// function [Revoke].
//
// Revoke stops when ctx ends, or after one [WithTimeout] for all tokens
// together. If a token request is in progress, Revoke cancels it after half of
// that time.
//
// If Revoke returns nil, all tokens that s remembers and all tokens that its
// cache held are revoked or expired. Besides its current tokens, s remembers
// the last 16 former tokens that may be alive. A revoked token is not adopted
// from the cache again, even if the entry could not be deleted.
func (s *TokenSource) Revoke(ctx context.Context) error {
	switch {
	case s.core == nil:
		return errZero
	case ctx == nil:
		return errNilContext
	case ctx.Err() != nil:
		return fmt.Errorf("moovauth: Revoke: nothing was revoked, since the context had ended: %w", context.Cause(ctx))
	}
	c := s.core.config
	b := newBudget(c.timeout)
	if deadline, ok := ctx.Deadline(); ok && deadline.Before(b.end) {
		b.end = deadline
	}
	if err := s.core.takeTurn(ctx, b); err != nil {
		return err
	}
	defer s.core.flights.turn.Release(1)

	var errs []error
	cache := s.core.cache.session(b.left()) // leaves time for the tokens
	unlock, locked := cache.lock(ctx)
	defer unlock()
	if cache.hasLock() && !locked {
		errs = append(errs, errors.New("moovauth: Revoke: the cache's lock could not be obtained: another process may be obtaining a token, which stays alive"))
	}
	cached, err := cache.get(ctx)
	if err != nil {
		errs = append(errs, fmt.Errorf("moovauth: Revoke: tokens that only the cache knows stay alive: %w", err))
	}
	var more []formerToken
	if cached != nil {
		more = []formerToken{{cached.RefreshToken, RefreshToken, never}, {cached.AccessToken, AccessToken, never}}
	}
	taken := s.core.state.takeAll(more, c.clock())
	secrets := s.core.state.tokens()
	alive := false // whether a token in the cache's entry is alive
	for i, f := range taken {
		err := b.spend(len(taken)-i, func(part *budget) error { return c.revoke(ctx, f.token, f.hint, secrets, part) })
		if err != nil {
			errs = append(errs, err) // f stays known, here and in the cache
			alive = alive || cached != nil && (f.token == cached.AccessToken || f.token == cached.RefreshToken)
			continue
		}
		s.core.state.revoked(f.token)
		s.core.state.counts.revoked.Add(1)
	}
	if cached != nil && !alive {
		cache.left = min(cache.left, b.left())
		_ = cache.call(ctx, "Delete", func(ctx context.Context) error { return c.cache.Delete(ctx, cache.key) })
	}
	return errors.Join(errs...)
}

// takeTurn waits for the grant in progress for half of the time, then cancels
// it.
func (c *core) takeTurn(ctx context.Context, b *budget) error {
	f := c.flights
	f.revoking.Add(1)
	defer f.revoking.Add(-1)
	if running := f.running.Load(); running != nil {
		running.leave(errRevoked)
	}
	half, cancel := context.WithTimeout(ctx, b.left()/2)
	defer cancel()
	if f.turn.TryAcquire(1) || f.turn.Acquire(half, 1) == nil { // TryAcquire, also if no time is left
		return nil
	}
	if running := f.running.Load(); running != nil {
		running.cancel(errRevoked)
	}
	rest, cancel := context.WithTimeout(ctx, b.left())
	defer cancel()
	if err := f.turn.Acquire(rest, 1); err != nil {
		return fmt.Errorf("moovauth: Revoke: nothing was revoked: another grant or Revoke did not end in time: %w", err)
	}
	return nil
}
