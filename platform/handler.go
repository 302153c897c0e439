package platform

// This file is the endpoint that gives a browser its token: who may ask, what is
// answered, and what is not told.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// queueMost is how long a page waits in the queue.
const queueMost = 10 * time.Second

// A StatusError is an error of Handler's scopes function, or of [WithMinted]'s,
// that sets the status of the reply: StatusError(401) if there is no session. It
// goes from 400 to 599.
type StatusError int

// Error is the status and its text.
func (e StatusError) Error() string {
	return strings.TrimSpace(fmt.Sprint(int(e), " ", http.StatusText(int(e))))
}

// StatusCode is the status.
func (e StatusError) StatusCode() int { return int(e) }

// Handler returns an endpoint that mints a token for the user who asks:
//
//	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
//		user, err := sessions.User(r)
//		if errors.Is(err, sessions.ErrNone) {
//			return nil, platform.StatusError(http.StatusUnauthorized)
//		}
//		if err != nil {
//			return nil, err // 500, and a line in the log
//		}
//		return []string{"/accounts/" + user.MoovAccount + "/cards.write"}, nil
//	}))
//
// scopes says what the user who made a request may have. It is called for each
// POST from a page of the same origin ([http.CrossOriginProtection]), or of one
// of [WithOrigins]. It must know the user by itself: by a cookie, or a header. It
// is also the place for a limit for each user: a page that asks in a loop takes
// the turns of all other pages.
//
// The reply is that of RFC 6749 §5.1: JSON with access_token, token_type,
// expires_in, in seconds from now, and scope. There is never a refresh token.
// The other replies are JSON with an error that says no more than this table:
//
//	403  another origin
//	405  not POST
//	500  an error of scopes, or it returned none, or bad ones: see moovauth.WithScopes
//	502  Moov refused, or could not be reached
//	503  the request waited in the queue for 10 s, or until its context ended:
//	     Retry-After says when to ask again. Or scopes was stopped by a context
//	504  Moov took too long
//
// If an error of scopes has a method StatusCode() int, such as [StatusError], the
// reply has that status. It is then not logged. All other errors of scopes, and
// what a 500, 502 or 504 was about, go to the ErrorLog of the [http.Server]: with
// Moov's request ID, and nothing secret. A panic of scopes is net/http's. If the
// page goes away, its place in the queue is free at once.
//
// Set the WriteTimeout of the [http.Server] to more than 10 s, for the queue, plus
// [moovauth.WithTimeout]. If it is shorter, a page may get no reply, and its token
// is lost.
//
// Nothing that was minted is kept here. To revoke a user's tokens at sign-out,
// note them with [WithMinted], as the example SignOut does.
func (t *Tokens) Handler(scopes func(*http.Request) ([]string, error)) http.Handler {
	if scopes == nil {
		panic("moovauth: platform: Handler: scopes is nil")
	}
	return &handler{tokens: t, scopes: scopes}
}

type handler struct {
	tokens     *Tokens
	scopes     func(*http.Request) ([]string, error)
	protection http.CrossOriginProtection
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	origin, trusted := h.allowOrigin(w, r)
	if trusted && r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		preflight(w, r)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed)
		return
	}
	if !trusted && h.protection.Check(r) != nil {
		refuse(w, http.StatusForbidden)
		return
	}
	scopes, err := h.scopes(r)
	if err != nil {
		h.refuseFor(w, r, err)
		return
	}
	if !strings.HasPrefix(origin, "https:") {
		origin = "" // no API key's list has it
	}
	token, status, err := h.tokens.mint(r.Context(), queueMost, origin, scopes)
	switch {
	case status == http.StatusServiceUnavailable:
		w.Header().Set("Retry-After", strconv.Itoa(h.tokens.queue.clear()))
		refuse(w, status)
		return
	case err != nil:
		h.log(r, err)
		refuse(w, status)
		return
	}
	if err := h.note(r, token); err != nil {
		h.refuseFor(w, r, err)
		return
	}
	grant(w, token, set(scopes))
}

// note calls WithMinted's function, and revokes the token if it is not noted.
func (h *handler) note(r *http.Request, token *oauth2.Token) error {
	if h.tokens.minted == nil {
		return nil
	}
	err := h.tokens.minted(r, token)
	if err != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), queueMost) // also if the page has left
		defer cancel()
		if alive := h.tokens.Revoke(ctx, token.AccessToken); alive != nil {
			h.log(r, fmt.Errorf("the token that no page got stays alive: %w", alive))
		}
	}
	return err
}

// allowOrigin lets a page of a trusted origin read the reply (CORS).
func (h *handler) allowOrigin(w http.ResponseWriter, r *http.Request) (origin string, trusted bool) {
	if h.tokens.config == nil || len(h.tokens.origins) == 0 {
		return "", false
	}
	w.Header().Add("Vary", "Origin")
	origin = r.Header.Get("Origin")
	if !h.tokens.origins[origin] {
		return "", false
	}
	w.Header().Set("Access-Control-Allow-Origin", origin)
	w.Header().Set("Access-Control-Allow-Credentials", "true")
	w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
	return origin, true
}

// preflight allows what a trusted page is about to send.
func preflight(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Access-Control-Allow-Methods", http.MethodPost)
	if wanted := r.Header.Values("Access-Control-Request-Headers"); len(wanted) > 0 {
		w.Header().Set("Access-Control-Allow-Headers", strings.Join(wanted, ", "))
	}
	w.Header().Set("Access-Control-Max-Age", "600")
	w.WriteHeader(http.StatusNoContent)
}

// refuseFor answers for an error of the user's functions.
func (h *handler) refuseFor(w http.ResponseWriter, r *http.Request, err error) {
	var with interface{ StatusCode() int }
	if errors.As(err, &with) && 400 <= with.StatusCode() && with.StatusCode() <= 599 {
		refuse(w, with.StatusCode())
		return
	}
	status := http.StatusInternalServerError
	if errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		status = http.StatusServiceUnavailable
	}
	h.log(r, err)
	refuse(w, status)
}

// log tells the server's log what is wrong.
func (h *handler) log(r *http.Request, err error) {
	logger := log.Default()
	if server, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok && server.ErrorLog != nil {
		logger = server.ErrorLog
	}
	logger.Printf("moovauth: platform: no token for %q: %v", r.URL.Path, err)
}

// refuse writes an error response (RFC 6749 §5.2).
func refuse(w http.ResponseWriter, status int) {
	code := strings.ReplaceAll(strings.ToLower(http.StatusText(status)), " ", "_")
	writeJSON(w, status, map[string]string{"error": cmp.Or(code, "refused")})
}

// grant writes a token response (RFC 6749 §5.1).
func grant(w http.ResponseWriter, t *oauth2.Token, asked []string) {
	scope, _ := t.Extra("scope").(string)
	writeJSON(w, http.StatusOK, struct {
		AccessToken string `json:"access_token"`
		TokenType   string `json:"token_type"`
		ExpiresIn   int64  `json:"expires_in"`
		Scope       string `json:"scope"`
	}{t.AccessToken, t.Type(), int64(max(0, math.Floor(time.Until(t.Expiry).Seconds()))), cmp.Or(scope, strings.Join(asked, " "))})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the page may have left
}
