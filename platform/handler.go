package platform

// This file is the endpoint that gives a browser its token. It decides who may ask,
// and keeps the reason of a failure from the page.

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

// maxQueued is how long a page waits in the queue.
const maxQueued = 10 * time.Second

// A StatusError is an error with an HTTP status from 400 to 599. If the scopes
// function of [Tokens.Handler], or the function of [WithMinted], returns it, the reply
// has that status: for example StatusError(401) if there is no session.
type StatusError int

// Error returns the status and its text.
func (e StatusError) Error() string {
	return strings.TrimSpace(fmt.Sprint(int(e), " ", http.StatusText(int(e))))
}

// StatusCode returns the status.
func (e StatusError) StatusCode() int { return int(e) }

// Handler returns an endpoint that mints a token for the user who makes the request:
//
//	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
//		user, err := sessions.User(r)
//		if errors.Is(err, sessions.ErrNone) {
//			return nil, platform.StatusError(http.StatusUnauthorized)
//		}
//		if err != nil {
//			return nil, err // the page gets a 500, and the error is logged
//		}
//		return []string{"/accounts/" + user.MoovAccount + "/cards.write"}, nil
//	}))
//
// The scopes function returns the scopes that the user may have. It must
// identify the user itself, by a cookie or a header. Handler calls it for each
// POST, except those that a browser sends from another origin that is not in
// [WithOrigins]: see [http.CrossOriginProtection]. The function is also the
// place for a rate limit for each user: without one, a page that asks in a loop
// delays all other pages.
//
// The reply is a token response (RFC 6749 §5.1): JSON with access_token,
// token_type, scope, and expires_in in seconds. It never contains a refresh
// token. All other replies are JSON with a member "error" that only names the
// status:
//
//	403  the page has another origin
//	405  the method is not POST
//	500  the scopes function failed, or returned no scopes or invalid ones
//	     (see moovauth.WithScopes)
//	502  Moov refused the request, or could not be reached
//	503  the request still waited in the queue after 10 s, at first or before a
//	     retry, or its context ended there; Retry-After says when to try again
//	503  the scopes function failed because a context ended
//	504  Moov did not answer in time
//
// If the error of the scopes function has a method StatusCode() int, as a
// [StatusError] has, the reply has that status, and nothing is logged. Handler logs
// every other error of the function, and the reason of each 500, 502 and 504, to the
// ErrorLog of the [http.Server]. The log has Moov's request ID and no secret. A panic
// in the function is left to net/http. If the page disconnects, its request leaves
// the queue at once.
//
// If the [http.Server] has a WriteTimeout, it must be longer than the 10 s in
// the queue, [moovauth.WithTimeout] (30 s by default) and your functions
// together. Otherwise a page may get no reply, and its token is lost.
//
// Handler does not keep the tokens that it mints. To revoke the tokens of a user at
// sign-out, store them with [WithMinted], as the SignOut example does.
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
		w.Header().Set("Access-Control-Allow-Methods", http.MethodPost)
		w.Header().Set("Access-Control-Allow-Headers", strings.Join(r.Header.Values("Access-Control-Request-Headers"), ", "))
		w.Header().Set("Access-Control-Max-Age", "600")
		w.WriteHeader(http.StatusNoContent)
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
	token, status, err := h.tokens.mint(r.Context(), maxQueued, origin, scopes)
	if err != nil {
		if status == http.StatusServiceUnavailable {
			w.Header().Set("Retry-After", strconv.Itoa(h.tokens.queue.clear()))
		} else {
			h.log(r, err)
		}
		refuse(w, status)
		return
	}
	if err := h.tokens.minted(r, token); err != nil {
		h.revoke(r, token)
		h.refuseFor(w, r, err)
		return
	}
	grant(w, token, set(scopes))
}

// revoke revokes a token that the page does not get, even if the page has
// disconnected.
func (h *handler) revoke(r *http.Request, token *oauth2.Token) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), maxQueued)
	defer cancel()
	if err := h.tokens.Revoke(ctx, token.AccessToken); err != nil {
		h.log(r, fmt.Errorf("the token that no page got stays alive: %w", err))
	}
}

// allowOrigin lets a page of a trusted origin read the reply (CORS).
func (h *handler) allowOrigin(w http.ResponseWriter, r *http.Request) (origin string, trusted bool) {
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

// refuseFor replies to an error of one of the user's functions.
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

// log writes err to the server's log.
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

// grant writes a token response (RFC 6749 §5.1). asked is its scope if Moov named
// none.
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
	_ = json.NewEncoder(w).Encode(body) // an error means that the page has disconnected
}
