// Package checkout is a web page that calls Moov's API from the browser, and the
// server that mints the page's tokens.
package checkout

// This file has the endpoints of the server. sessions.go has the users' sessions and
// their tokens, crowd.go has the other accounts, api.go has the embedded test server,
// and page/ has the page.

import (
	"context"
	"embed"
	"encoding/json"
	"errors"
	"io/fs"
	"log"
	"net/http"
	"net/url"
	"slices"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/platform"
)

//go:embed page
var page embed.FS

// Config is the configuration of an [App].
type Config struct {
	Credentials moovauth.Credentials
	API         string            // the API's base URL, for this server and for the page
	Embedded    bool              // whether NewAPI made the API
	Source      []moovauth.Option // more options for token requests, such as WithOrigin
	Origins     []string          // the page's origins, such as http://localhost:8080
}

// App serves the page and mints its tokens.
type App struct {
	config   Config
	tokens   *platform.Tokens
	sessions *sessions
	crowd    *crowd
	handler  http.Handler
	hosts    []string // the hosts of config.Origins
	policy   string   // the Content-Security-Policy
}

// New returns an app. It makes no request to Moov.
func New(config Config) (*App, error) {
	api, err := url.Parse(config.API)
	if err != nil {
		return nil, err
	}
	a := &App{
		config: config,
		policy: "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self' " + api.Scheme + "://" + api.Host +
			"; base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'",
	}
	for _, origin := range config.Origins {
		u, err := url.Parse(origin)
		if err != nil {
			return nil, err
		}
		a.hosts = append(a.hosts, u.Host)
	}
	tokens, err := platform.New(config.Credentials,
		platform.WithMinted(a.minted),
		platform.WithSource(moovauth.WithBaseURL(config.API)), platform.WithSource(config.Source...))
	if err != nil {
		return nil, err
	}
	a.tokens = tokens
	a.sessions = newSessions(tokens.Revoke)

	mux := http.NewServeMux()
	// README, server: from here
	mux.Handle("GET /moov-token.js", platform.PageModule())
	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
		user, err := a.userOf(r) // your own session
		if err != nil {
			return nil, err // such as platform.StatusError(401)
		}
		return a.scopes(user), nil // such as "/accounts/…/cards.write"
	}))
	// README, server: to here
	mux.HandleFunc("GET /session", a.session)
	mux.HandleFunc("POST /sign-in", a.signIn)
	mux.HandleFunc("POST /sign-out", a.signOut)
	a.crowd = &crowd{tokens: tokens}
	mux.HandleFunc("GET /stats", a.stats)
	if config.Embedded {
		mux.HandleFunc("POST /crowd", a.startCrowd)
	}
	files, err := fs.Sub(page, "page")
	if err != nil {
		return nil, err
	}
	mux.Handle("/", http.FileServerFS(files))
	a.handler = http.NewCrossOriginProtection().Handler(mux)
	return a, nil
}

// Close signs all users out and returns the number of page tokens that it revoked.
func (a *App) Close(ctx context.Context) (int, error) {
	revoked, err := a.sessions.endAll(ctx)
	if a.config.Embedded { // the crowd's tokens end with the embedded server
		return revoked, err
	}
	return revoked, errors.Join(err, a.tokens.RevokeAll(ctx))
}

func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Another site can let its own name resolve to this server (DNS rebinding).
	if !slices.Contains(a.hosts, r.Host) {
		http.Error(w, "this server's address is "+a.config.Origins[0], http.StatusMisdirectedRequest)
		return
	}
	header := w.Header()
	header.Set("Content-Security-Policy", a.policy)
	header.Set("Cross-Origin-Opener-Policy", "same-origin")
	header.Set("Cross-Origin-Resource-Policy", "same-origin")
	header.Set("Referrer-Policy", "same-origin")
	header.Set("X-Content-Type-Options", "nosniff")
	header.Set("Cache-Control", "no-cache")
	a.handler.ServeHTTP(w, r)
}

// userOf returns the user who is signed in. It returns StatusError 401 if no one is
// signed in, and 409 if the page belongs to another user.
func (a *App) userOf(r *http.Request) (user, error) {
	session := a.sessions.of(r)
	if session == nil {
		return user{}, platform.StatusError(http.StatusUnauthorized)
	}
	if !session.isOf(r) {
		return user{}, platform.StatusError(http.StatusConflict)
	}
	return session.user, nil
}

// minted records a token in its session, so that sign-out can revoke the token. If the
// session ended during the token request, minted returns an error, and the handler
// revokes the token.
func (a *App) minted(r *http.Request, token *oauth2.Token) error {
	session := a.sessions.of(r)
	if session == nil || !a.sessions.keep(session, token.AccessToken, token.Expiry) {
		return platform.StatusError(http.StatusUnauthorized)
	}
	return nil
}

// scopes returns the scopes for a user's page.
func (a *App) scopes(u user) []string {
	if !a.config.Embedded {
		return []string{"/ping.read"} // the demo's users have no accounts at Moov
	}
	return []string{"/accounts/" + u.Account + "/cards.read", "/accounts/" + u.Account + "/cards.write"}
}

// state tells the page about its server. It contains no secret.
type state struct {
	API      string `json:"api"`
	Embedded bool   `json:"embedded"`
	Users    []user `json:"users"`
	User     *user  `json:"user"` // who is signed in, or null
}

func (a *App) write(w http.ResponseWriter, of *session) {
	s := state{API: a.config.API, Embedded: a.config.Embedded, Users: users}
	if of != nil {
		s.User = &of.user
	}
	writeJSON(w, http.StatusOK, s)
}

func (a *App) session(w http.ResponseWriter, r *http.Request) { a.write(w, a.sessions.of(r)) }

// signIn signs one of the demo's users in. It asks for no password.
func (a *App) signIn(w http.ResponseWriter, r *http.Request) {
	r.Body = http.MaxBytesReader(w, r.Body, 1<<10)
	id := r.PostFormValue("user")
	i := slices.IndexFunc(users, func(u user) bool { return u.ID == id })
	if i < 0 {
		writeJSON(w, http.StatusForbidden, map[string]string{"error": "forbidden"})
		return
	}
	if before := a.sessions.of(r); before != nil {
		_ = a.end(r, before)
	}
	session := a.sessions.begin(users[i])
	if session == nil {
		writeJSON(w, http.StatusServiceUnavailable, map[string]string{"error": "service_unavailable"})
		return
	}
	a.setCookie(w, r, session.id, int(sessionLife/time.Second))
	a.write(w, session)
}

// signOut ends the session and revokes the tokens of its pages. It refuses a page that
// belongs to another user.
func (a *App) signOut(w http.ResponseWriter, r *http.Request) {
	session := a.sessions.of(r)
	if session != nil && !session.isOf(r) {
		writeJSON(w, http.StatusConflict, map[string]string{"error": "conflict"})
		return
	}
	var err error
	if session != nil {
		err = a.end(r, session)
	}
	a.setCookie(w, r, "", -1)
	if err != nil {
		writeJSON(w, http.StatusBadGateway, map[string]string{"error": "bad_gateway"}) // the user is signed out, and sessions retries the revocation
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// end ends a session. It continues if the page cancels the request.
func (a *App) end(r *http.Request, of *session) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
	defer cancel()
	_, err := a.sessions.end(ctx, of)
	if err != nil {
		log.Print(err)
	}
	return err
}

func (a *App) setCookie(w http.ResponseWriter, r *http.Request, value string, maxAge int) {
	http.SetCookie(w, &http.Cookie{
		Name: cookieName, Value: value, Path: "/", MaxAge: maxAge,
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the page may have closed the connection
}
