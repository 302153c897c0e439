package main

// This file replaces the API key while calls run.

import (
	"context"
	"errors"
	"net/http"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/platform"
)

// rotating holds the tokens of an API key that can be replaced while they are used.
type rotating struct {
	connect func(moovauth.Credentials) (*platform.Tokens, error)
	current atomic.Pointer[platform.Tokens]
	used    sync.Map // when each scope was last used: map[string]time.Time

	// Only the goroutine that rotates uses these, and shutdown after it.
	Creds  moovauth.Credentials // of current
	former []*platform.Tokens   // to be revoked
}

// client returns a client for one call. A client that is kept would continue to
// use the former key.
func (r *rotating) client(scope string) (*http.Client, error) {
	r.used.Store(scope, time.Now())
	return r.current.Load().Client(scope)
}

// rotate switches to another API key after that key has obtained a token, so
// that a wrong key changes nothing.
func (r *rotating) rotate(ctx context.Context, creds moovauth.Credentials) error {
	if creds == r.Creds { // the former tokens in a cache would be the new ones
		return errors.New("the API key has not changed")
	}
	next, err := r.connect(creds)
	if err != nil {
		return err
	}
	if err := try(ctx, next); err != nil {
		return err
	}
	r.warm(ctx, next)
	r.former = append(r.former, r.current.Swap(next))
	r.Creds = creds
	return nil
}

// try obtains a token for any scope that the API key has.
func try(ctx context.Context, tokens *platform.Tokens) error {
	source, err := tokens.Source("/ping.read")
	if err != nil {
		return err
	}
	_, err = source.TokenContext(ctx)
	return err
}

// warm obtains tokens for the accounts in use, so that their next calls do not
// all wait in the queue. An account that fails is tried again by its next call.
func (r *rotating) warm(ctx context.Context, next *platform.Tokens) {
	var accounts sync.WaitGroup
	for scope, at := range r.used.Range {
		if time.Since(at.(time.Time)) > 15*time.Minute {
			r.used.Delete(scope)
			continue
		}
		accounts.Go(func() {
			if source, err := next.Source(scope.(string)); err == nil {
				_, _ = source.TokenContext(ctx)
			}
		})
	}
	accounts.Wait()
}

// revokeFormer revokes the accounts' tokens of former keys. A key whose tokens
// cannot be revoked is tried again at the next rotation, and at the shutdown.
func (r *rotating) revokeFormer(ctx context.Context) (err error) {
	r.former = slices.DeleteFunc(r.former, func(tokens *platform.Tokens) bool {
		failed := tokens.RevokeAll(ctx)
		err = errors.Join(err, failed)
		return failed == nil
	})
	return err
}

// rotateOn reads the API key again at each signal, until ctx ends.
func (s *service) rotateOn(ctx context.Context, hangup <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-hangup:
		}
		creds, err := s.key()
		if err == nil {
			err = s.keys.rotate(ctx, creds)
		}
		if err != nil {
			s.log.Error("API key not replaced", "error", err)
			continue
		}
		s.log.Info("API key replaced")
		select { // until all calls with the former key's tokens have ended
		case <-ctx.Done():
			return // shutdown revokes them
		case <-time.After(2 * callTimeout):
		}
		err = s.keys.revokeFormer(ctx)
		s.log.Info("tokens of the former API key revoked", "error", err)
	}
}
