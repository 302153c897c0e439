package platform

// This file is the endpoint that gives a browser its token: who may ask, what is
// answered, and what is not told.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"log"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// lineMost is how long a browser waits in line.
const lineMost = 10 * time.Second

// Handler returns an endpoint that mints a token for the user who asks:
//
//	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
//		user, err := sessions.User(r)
//		if err != nil {
//			return nil, err // 403
//		}
//		return []string{"/accounts/" + user.MoovAccount + "/cards.write"}, nil
//	}))
//
// scopes says what the user who made a request may have. It is called for each
// POST from a page of the same origin ([http.CrossOriginProtection]), or of one
// of [WithOrigins]. It must know the user by itself: by a cookie, or a header.
//
// The reply is that of RFC 6749 §5.1: JSON with access_token, token_type,
// expires_in, in seconds from now, and scope. There is never a refresh token.
// The other replies are JSON with an error that says no more than this table:
//
//	403  another origin, or an error of scopes; if that has StatusCode() int, from 400 to 599, that status
//	405  not POST
//	500  scopes returned none, or bad ones: see moovauth.WithScopes
//	502  Moov refused, or could not be reached
//	503  10 s in line were not enough; Retry-After says when to ask again
//	504  Moov took too long
//
// What a 500, 502 or 504 was about goes to the ErrorLog of the [http.Server].
// It has Moov's request ID, and nothing secret. A panic of scopes is net/http's.
// If the page goes away, its place in line is free at once.
//
// Nothing that was minted is kept here: to know a user's tokens, and to revoke
// them with [Tokens.Revoke] at sign-out, note them from the reply, as the example
// SignOut does.
func (t *Tokens) Handler(scopes func(*http.Request) ([]string, error)) http.Handler {
	if scopes == nil {
		panic("moovauth: platform: Handler: scopes is nil")
	}
	h := &handler{tokens: t, scopes: scopes, trusted: make(map[string]bool)}
	for _, origin := range t.origins {
		h.trusted[origin] = true
		_ = h.protection.AddTrustedOrigin(origin) // WithOrigins has checked it
	}
	return h
}

type handler struct {
	tokens     *Tokens
	scopes     func(*http.Request) ([]string, error)
	trusted    map[string]bool
	protection http.CrossOriginProtection
}

func (h *handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	if h.allowOrigin(w, r) && r.Method == http.MethodOptions && r.Header.Get("Access-Control-Request-Method") != "" {
		preflight(w, r)
		return
	}
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", http.MethodPost)
		refuse(w, http.StatusMethodNotAllowed)
		return
	}
	if h.protection.Check(r) != nil {
		refuse(w, http.StatusForbidden)
		return
	}
	scopes, err := h.scopes(r)
	if err != nil {
		refuse(w, statusOf(err))
		return
	}
	m, err := h.tokens.newMinting(r.Context(), lineMost, scopes)
	if err != nil {
		h.fail(w, r, http.StatusInternalServerError, err)
		return
	}
	token, err := m.run()
	if err == nil {
		grant(w, token, set(scopes))
		return
	}
	var timeout interface{ Timeout() bool }
	switch {
	case errors.Is(r.Context().Err(), context.Canceled): // nobody reads this
		refuse(w, http.StatusServiceUnavailable)
	case m.late():
		w.Header().Set("Retry-After", strconv.Itoa(h.tokens.line.clear()))
		refuse(w, http.StatusServiceUnavailable)
	case errors.As(err, &timeout) && timeout.Timeout():
		h.fail(w, r, http.StatusGatewayTimeout, err)
	default:
		h.fail(w, r, http.StatusBadGateway, err)
	}
}

// allowOrigin lets a page of a trusted origin read the reply (CORS).
func (h *handler) allowOrigin(w http.ResponseWriter, r *http.Request) bool {
	if len(h.trusted) == 0 {
		return false
	}
	w.Header().Add("Vary", "Origin")
	origin := r.Header.Get("Origin")
	if !h.trusted[origin] {
		return false
	}
	w.Header().Set("Access-Control-Allow-Origin", origin)
	w.Header().Set("Access-Control-Allow-Credentials", "true")
	w.Header().Set("Access-Control-Expose-Headers", "Retry-After")
	return true
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

// statusOf is what the user's function wants its error to be.
func statusOf(err error) int {
	var with interface{ StatusCode() int }
	if errors.As(err, &with) {
		if status := with.StatusCode(); 400 <= status && status <= 599 {
			return status
		}
	}
	return http.StatusForbidden
}

// fail tells the server's log what is wrong, and the page that something is.
func (h *handler) fail(w http.ResponseWriter, r *http.Request, status int, err error) {
	logger := log.Default()
	if server, ok := r.Context().Value(http.ServerContextKey).(*http.Server); ok && server.ErrorLog != nil {
		logger = server.ErrorLog
	}
	logger.Printf("moovauth: platform: no token for %q: %v", r.URL.Path, err)
	refuse(w, status)
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
	_ = json.NewEncoder(w).Encode(body) // the page may have gone
}
