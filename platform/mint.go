package platform

// This file mints one token: how long its request may wait in the queue, and
// which status a page gets if there is no token.

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
)

// minting is the place in the queue of one call to Mint or Handler.
type minting struct {
	place
	waits bool        // the request waits in the queue, at first and before each retry
	end   time.Time   // when it may no longer wait there
	timer *time.Timer // ends the request at end, and runs only while the request waits
}

// Wait implements [moovauth.Limiter].
func (m *minting) Wait(ctx context.Context) error {
	m.waits = true
	m.timer.Reset(time.Until(m.end))
	err := m.place.Wait(ctx)
	if err == nil && m.timer.Stop() {
		m.waits = false
	}
	return err
}

// Refused counts the pause that the 429 asks for as time in the queue.
func (m *minting) Refused(retryAfter time.Duration) {
	m.place.Refused(retryAfter)
	m.waits = true
	m.timer.Reset(time.Until(m.end))
}

// mint requests a token, which may spend up to most in the queue. The request
// carries origin if that is https: no API key's list has other origins. status is
// what a page is answered.
func (t *Tokens) mint(caller context.Context, most time.Duration, origin string, scopes []string) (_ *oauth2.Token, status int, err error) {
	if t.queue == nil {
		return nil, http.StatusInternalServerError, errZero
	}
	ctx, cancel := context.WithCancelCause(caller)
	defer cancel(nil)
	m := &minting{place: place{queue: t.queue}, end: time.Now().Add(most)}
	m.timer = time.AfterFunc(most, func() { cancel(context.DeadlineExceeded) })
	defer m.timer.Stop()
	opts := t.options(moovauth.WithLimiter(m), moovauth.WithScopes(set(scopes)...))
	if strings.HasPrefix(origin, "https:") {
		opts = append(opts, moovauth.WithOrigin(origin))
	}
	token, err := moovauth.RequestToken(ctx, t.creds(), opts...)
	if err == nil {
		t.counts.minted.Add(1)
		token.RefreshToken = ""
		return token.WithExtra(map[string]any{"scope": token.Extra("scope")}), http.StatusOK, nil
	}
	var timeout interface{ Timeout() bool }
	count, status := &t.counts.failed, http.StatusBadGateway
	switch {
	case ctx.Err() == nil && m.since == 0: // the request did not come to the queue
		status = http.StatusInternalServerError
	case errors.Is(caller.Err(), context.Canceled):
		count, status = &t.counts.abandoned, http.StatusServiceUnavailable
	case m.waits:
		count, status = &t.counts.timedOut, http.StatusServiceUnavailable
		err = fmt.Errorf("moovauth: platform: the request is still in the queue: %w", err)
	case errors.As(err, &timeout) && timeout.Timeout():
		status = http.StatusGatewayTimeout
	}
	count.Add(1)
	return nil, status, err
}
