// Package checkout is a web page that calls Moov's API from the browser, and the
// server that it has its tokens from.
package checkout

// This file is the server as the page sees it. Who is signed in is in
// sessions.go, what stands in for Moov in api.go, the page in page/.

import (
	"bytes"
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
	opts := append([]moovauth.Option{moovauth.WithBaseURL(config.API)}, config.Source...)
	creds := config.Credentials

	mux := http.NewServeMux()
	// README, server: from here
	tokens, err := platform.New(creds, platform.WithSource(opts...)) // WithBaseURL, WithOrigin
	if err != nil {
		return nil, err
	}
	mux.Handle("/moov-token", a.remember(tokens.Handler(func(r *http.Request) ([]string, error) {
		session := a.sessions.of(r)
		if session == nil {
			return nil, status(http.StatusUnauthorized)
		}
		return a.scopes(session.user), nil // of this user's account alone
	})))
	// README, server: to here
	a.tokens = tokens
	a.sessions = &sessions{revoke: tokens.Revoke, open: make(map[string]*session)}
	mux.HandleFunc("GET /session", a.session)
	mux.HandleFunc("POST /sign-in", a.signIn)
	mux.HandleFunc("POST /sign-out", a.signOut)
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

// status is an error, and the status of the reply that the page gets.
//
// README, status: from here
type status int

func (s status) Error() string   { return http.StatusText(int(s)) }
func (s status) StatusCode() int { return int(s) }

// README, status: to here

// scopes are what the page of a user may do.
func (a *App) scopes(u user) []string {
	if !a.config.Embedded {
		return []string{"/ping.read"} // the demo's users have no accounts at Moov
	}
	return []string{"/accounts/" + u.Account + "/cards.read", "/accounts/" + u.Account + "/cards.write"}
}

// remember takes note of the tokens that next hands out, so that sign-out can
// revoke them. A token for a session that has ended meanwhile goes to nobody.
func (a *App) remember(next http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		session := a.sessions.of(r)
		reply := &reply{ResponseWriter: w, status: http.StatusOK}
		next.ServeHTTP(reply, r)
		if reply.status == http.StatusOK {
			var token struct {
				AccessToken string `json:"access_token"`
				ExpiresIn   int64  `json:"expires_in"`
			}
			err := json.Unmarshal(reply.body.Bytes(), &token)
			// The seconds were rounded down: the token may live one longer.
			expiry := time.Now().Add(time.Duration(token.ExpiresIn+1) * time.Second)
			switch {
			case err != nil:
				http.Error(w, "no token", http.StatusInternalServerError)
				return
			case session == nil || !a.sessions.keep(session, token.AccessToken, expiry):
				ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), 5*time.Second)
				defer cancel()
				if err := a.tokens.Revoke(ctx, token.AccessToken); err != nil {
					log.Print(err)
				}
				writeJSON(w, http.StatusUnauthorized, map[string]string{"error": "unauthorized"})
				return
			}
		}
		w.WriteHeader(reply.status)
		_, _ = w.Write(reply.body.Bytes()) // the page may have gone
	})
}

// reply is a response that is not sent yet; its header is that of the real one.
type reply struct {
	http.ResponseWriter
	status int
	body   bytes.Buffer
}

func (r *reply) WriteHeader(status int)      { r.status = status }
func (r *reply) Write(b []byte) (int, error) { return r.body.Write(b) }

// state is what the page knows of its server. There is no secret in it.
type state struct {
	API      string `json:"api"`
	Embedded bool   `json:"embedded"`
	Users    []user `json:"users"`
	User     *user  `json:"user"` // who is signed in; null: nobody
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

// signOut ends the session, and revokes the tokens that its page was given.
func (a *App) signOut(w http.ResponseWriter, r *http.Request) {
	var err error
	if session := a.sessions.of(r); session != nil {
		err = a.end(r, session)
	}
	a.setCookie(w, r, "", -1)
	if err != nil {
		writeJSON(w, http.StatusBadGateway, map[string]string{"error": "bad_gateway"}) // signed out, but the token lives until it expires
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
