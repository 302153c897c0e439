package platform

// This file is one minted token: how long its request waits in the queue, and how
// that ends.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

var errLate = fmt.Errorf("too many requests are in the queue: %w", context.DeadlineExceeded)

// minting is the place in the queue of one call of Mint.
type minting struct {
	place
	giveUp func()      // ends the request, since its time in the queue is over
	waits  atomic.Bool // it is in the queue, or will be: at first, and after a 429
	late   atomic.Bool // it may not wait any more
}

// Wait implements [moovauth.Limiter].
func (m *minting) Wait(ctx context.Context) error {
	err := m.place.Wait(ctx)
	if err == nil {
		m.waits.Store(false)
	}
	return err
}

// Refused counts the time that passes until the request is in the queue again as
// time in the queue.
func (m *minting) Refused(retryAfter time.Duration) {
	m.place.Refused(retryAfter)
	m.waits.Store(true)
	if m.late.Load() {
		m.giveUp()
	}
}

// mint requests a token for a person. After most it may not wait in the queue any
// more, if most is not 0. origin is sent if it is not empty. status is
// what a page that gets no token is to be told.
func (t *Tokens) mint(caller context.Context, most time.Duration, origin string, scopes []string) (_ *oauth2.Token, status int, err error) {
	if t.queue == nil {
		return nil, http.StatusInternalServerError, errZero
	}
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	m := &minting{place: place{queue: t.queue}, giveUp: func() { cancel(errLate) }}
	m.waits.Store(true)
	if most > 0 {
		defer time.AfterFunc(most, func() {
			m.late.Store(true)
			if m.waits.Load() {
				m.giveUp()
			}
		}).Stop()
	}
	opts := t.options(moovauth.WithLimiter(m), moovauth.WithScopes(set(scopes)...))
	if origin != "" {
		opts = append(opts, moovauth.WithOrigin(origin))
	}
	token, err := moovauth.RequestToken(ctx, t.creds(), opts...)
	if err == nil {
		t.counts.minted.Add(1)
		own := &oauth2.Token{AccessToken: token.AccessToken, TokenType: token.TokenType, Expiry: token.Expiry, ExpiresIn: token.ExpiresIn}
		return own.WithExtra(map[string]any{"scope": token.Extra("scope")}), http.StatusOK, nil
	}
	var timeout interface{ Timeout() bool }
	count := &t.counts.failed
	switch {
	case ctx.Err() == nil && m.since == 0: // it has not come to the queue
		status = http.StatusInternalServerError
	case errors.Is(caller.Err(), context.Canceled):
		count, status = &t.counts.abandoned, http.StatusServiceUnavailable
	case m.waits.Load():
		count, status = &t.counts.timedOut, http.StatusServiceUnavailable
	case errors.As(err, &timeout) && timeout.Timeout():
		status = http.StatusGatewayTimeout
	default:
		status = http.StatusBadGateway
	}
	count.Add(1)
	return nil, status, err
}
