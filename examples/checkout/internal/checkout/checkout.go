// Package checkout is a web page that calls Moov's API from the browser, and the
// server that it has its tokens from.
package checkout

// This file is the server as the page sees it. Who is signed in, and which tokens
// their pages were given, is in sessions.go, the other accounts are in crowd.go,
// what stands in for Moov is in api.go, and the page in page/.

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

// Config is what [New] is given.
type Config struct {
	Credentials moovauth.Credentials
	API         string            // its base URL, for this server and for the page
	Embedded    bool              // the API is one of NewAPI's
	Source      []moovauth.Option // for what asks Moov for tokens: its origin
	Origins     []string          // the page's, such as http://localhost:8080
}

// App serves the page, and mints its tokens.
type App struct {
	config   Config
	tokens   *platform.Tokens
	sessions *sessions
	crowd    *crowd
	handler  http.Handler
	hosts    []string // that the page is known by
	policy   string   // the Content-Security-Policy
}

// New makes the app. It makes no request.
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
		return a.scopes(user), nil
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

// Close signs everybody out, and returns how many tokens were revoked.
func (a *App) Close(ctx context.Context) (int, error) {
	revoked, err := a.sessions.endAll(ctx)
	if a.config.Embedded { // what the crowd has ends with the server that gave it
		return revoked, err
	}
	return revoked, errors.Join(err, a.tokens.RevokeAll(ctx))
}

func (a *App) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// A page that made its own name point here (DNS rebinding) has another host.
	if !slices.Contains(a.hosts, r.Host) {
		http.Error(w, "this server is "+a.config.Origins[0], http.StatusMisdirectedRequest)
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

// userOf returns the user who is signed in. Its error is a StatusError: 401 if no
// one is signed in, 409 if the page is another user's.
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

// minted notes a token for its session, so that sign-out can revoke it. If the
// session has ended while the token was requested, the error has it revoked.
func (a *App) minted(r *http.Request, token *oauth2.Token) error {
	session := a.sessions.of(r)
	if session == nil || !a.sessions.keep(session, token.AccessToken, token.Expiry) {
		return platform.StatusError(http.StatusUnauthorized)
	}
	return nil
}

// scopes are what the page of a user may do.
func (a *App) scopes(u user) []string {
	if !a.config.Embedded {
		return []string{"/ping.read"} // the demo's users have no accounts at Moov
	}
	return []string{"/accounts/" + u.Account + "/cards.read", "/accounts/" + u.Account + "/cards.write"}
}

// state is what the page knows of its server. There is no secret in it.
type state struct {
	API      string `json:"api"`
	Embedded bool   `json:"embedded"`
	Users    []user `json:"users"`
	User     *user  `json:"user"` // who is signed in; null: no one
}

func (a *App) write(w http.ResponseWriter, of *session) {
	s := state{API: a.config.API, Embedded: a.config.Embedded, Users: users}
	if of != nil {
		s.User = &of.user
	}
	writeJSON(w, http.StatusOK, s)
}

func (a *App) session(w http.ResponseWriter, r *http.Request) { a.write(w, a.sessions.of(r)) }

// signIn takes one of the demo's users at their word.
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

// signOut ends the session, and revokes the tokens that its page was given. A
// page of another user ends nothing.
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
		writeJSON(w, http.StatusBadGateway, map[string]string{"error": "bad_gateway"}) // signed out; sessions tries again to revoke the token
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

// end goes on if the page has gone.
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
	_ = json.NewEncoder(w).Encode(body) // the page may have gone
}
