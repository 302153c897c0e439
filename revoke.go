package moovauth

// This file ends a token's life at the server (RFC 7009): Revoke for a token
// that the caller has, TokenSource.Revoke for all that a source has obtained.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"time"
)

// TokenTypeHint is the kind of a token (RFC 7009 §2.1).
type TokenTypeHint string

// The kinds of tokens that Moov hands out.
const (
	AccessToken  TokenTypeHint = "access_token"
	RefreshToken TokenTypeHint = "refresh_token"
)

// Revoke revokes one token, an access or a refresh token, at POST
// /oauth2/revoke. It does not reach other tokens of the same grant: see
// [TokenSource.Revoke]. A token that the server does not know counts as revoked
// (RFC 7009 §2.2). It gives up with ctx or after [WithTimeout], and what the
// server refuses comes back as an [*Error].
//
// Of the options, those count that say where and how to ask. WithTokenTypeHint
// is only for Revoke. The others are checked and have no effect.
func Revoke(ctx context.Context, creds Credentials, token string, opts ...Option) error {
	c, err := newSetup(creds, opts)
	if err != nil {
		return err
	}
	if token == "" {
		return errors.New("moovauth: Revoke: the token is empty: give the access or refresh token to revoke")
	}
	c.redact.Add(token)
	return (&endpoint{c.config}).revoke(ctx, token, c.hint, newBudget(c.timeout))
}

// revoke revokes token within b. With a limiter, a 429 sends it back to the end
// of the line, which does not count.
func (e *endpoint) revoke(ctx context.Context, token string, hint TokenTypeHint, b *budget) (err error) {
	form := url.Values{"token": {token}}
	if hint != "" {
		form.Set("token_type_hint", string(hint))
	}
	began := time.Now()
	defer func() {
		if err != nil {
			e.log(slog.LevelWarn, "moovauth: token not revoked", "token_type_hint", hint, "error", err, "duration", time.Since(began))
		} else {
			e.log(slog.LevelDebug, "moovauth: token revoked", "token_type_hint", hint, "duration", time.Since(began))
		}
	}()
	end := began.Add(maxLine)
	line := func(ctx context.Context) error {
		if e.limiter == nil {
			return nil
		}
		return b.stop(func() error {
			ctx, leave := inTime(ctx, time.Until(end))
			defer leave(nil)
			return e.wait(ctx)
		})
	}
	for {
		err := line(ctx)
		if err == nil {
			_, err = e.do(ctx, &request{
				op: opRevoke, form: form, budget: b, line: line,
				good:   func() time.Duration { return 0 },
				repeat: func(error) bool { return true },
			})
		}
		delay := max(backOff(1, 0, e.random()), spread(asked(err), e.random()))
		if err == nil || e.limiter == nil || !throttled(err) || time.Until(end) < delay {
			return err
		}
		e.log(slog.LevelDebug, "moovauth: refused with 429; getting in line again", "delay", delay, "error", err)
		if late := b.stop(func() error { return sleep(ctx, delay) }); late != nil {
			return fmt.Errorf("%w (not tried again: %w)", err, late)
		}
	}
}

// Revoke revokes and forgets what s holds, and what its cache holds for s: the
// refresh tokens first, since they could mint more, then the access tokens, also
// those that were replaced but have not expired yet. The cache's entry is
// deleted last. Each token is tried, also if another one failed. The errors are
// joined, and the next Revoke tries again what failed. s stays usable: the next
// Token starts afresh with the configured scopes. To revoke one token alone, see
// the function [Revoke].
//
// Revoke waits for a grant in progress for at most half of the time that it has,
// then cancels it. It gives up with ctx, or after one [WithTimeout] in all.
//
// When it returns nil, no token is alive that s received and remembers, or that
// its cache held when Revoke was called. What was revoked or invalidated is
// never handed out or adopted again, also if the cache could not be cleared. s
// remembers the text of the last 16 former tokens that may be alive, for Revoke
// and for masking, and hashes of the last 1,000 that were revoked or invalidated.
func (s *TokenSource) Revoke(ctx context.Context) error {
	if s.endpoint == nil {
		return errZero
	}
	if ctx.Err() != nil {
		return fmt.Errorf("moovauth: Revoke: nothing was revoked, since the context had ended: %w", context.Cause(ctx))
	}
	e := s.endpoint
	b := newBudget(e.timeout)
	if deadline, ok := ctx.Deadline(); ok {
		b.timeout = min(b.timeout, time.Until(deadline))
	}
	var errs []error
	cache := s.store.visit()
	cache.within(b.part(4))          // so that a slow one leaves time for the tokens
	before, unread := cache.get(ctx) // another process may replace it while this one waits
	unknown, err := s.takeTurn(ctx, b)
	if err != nil {
		return err
	}
	defer s.turn.Release(1)
	if unknown {
		errs = append(errs, errors.New("moovauth: Revoke: the grant in progress did not end in time and was cancelled: it may have brought a token that lives on, unknown to this source"))
	}

	cache.within(b)
	unlock, locked := cache.lock(ctx)
	defer unlock()
	if cache.locker() != nil && !locked {
		errs = append(errs, errors.New("moovauth: Revoke: no lock on the cache: another process may be obtaining a token, which lives on"))
	}
	cached, err := cache.get(ctx)
	if err = cmp.Or(err, unread); err != nil {
		errs = append(errs, fmt.Errorf("moovauth: Revoke: the cache could not be read: tokens in it that this source does not know live on: %w", err))
	}
	var more []former
	for _, e := range []*entry{before, cached} {
		if e != nil {
			more = append(more, former{e.RefreshToken, RefreshToken, never}, former{e.AccessToken, AccessToken, never})
		}
	}
	taken := s.memory.take(more, e.clock())
	alive := false
	shares := len(taken)
	if cached != nil {
		shares++ // to delete the entry
	}
	for i, f := range taken {
		err := e.revoke(ctx, f.token, f.hint, b.part(shares-i))
		if err == nil {
			s.memory.revoked(f.token)
			s.memory.counts.revoked.Add(1)
			continue
		}
		errs = append(errs, err) // f stays known, here and in the cache, for the next Revoke
		alive = alive || cached != nil && (f.token == cached.AccessToken || f.token == cached.RefreshToken)
	}
	cache.within(b)
	if cached != nil && !alive {
		cache.remove(ctx, cached)
	}
	return errors.Join(errs...)
}

// takeTurn waits for the grant in progress for half of the time, then cancels
// it. unknown says that the grant may have brought a token that nobody knows.
func (s *TokenSource) takeTurn(ctx context.Context, b *budget) (unknown bool, err error) {
	if s.turn.TryAcquire(1) { // also if no time is left: nobody is in the way
		return false, nil
	}
	s.revokes.Add(1)
	defer s.revokes.Add(-1)
	if g := s.running.Load(); g != nil {
		g.giveWay()
	}
	half, cancel := context.WithTimeout(ctx, b.left()/2)
	defer cancel()
	if s.turn.Acquire(half, 1) == nil {
		return false, nil
	}
	g := s.running.Load()
	if g != nil {
		g.cancel(errRevoked)
	}
	rest, cancel := context.WithTimeout(ctx, b.left())
	defer cancel()
	if err := s.turn.Acquire(rest, 1); err != nil {
		return false, fmt.Errorf("moovauth: Revoke: nothing was revoked: another grant or Revoke did not end in time: %w", err)
	}
	if g != nil {
		g.mu.Lock()
		unknown = g.unknown
		g.mu.Unlock()
	}
	return unknown, nil
}
