package platform

// This file serves moov-token.js, the browser's half of Handler.

import (
	"bytes"
	"crypto/sha256"
	_ "embed"
	"fmt"
	"net/http"
	"time"
)

//go:embed moov-token.js
var pageModule []byte

var pageModuleTag = fmt.Sprintf(`"%x"`, sha256.Sum256(pageModule))

// PageModule serves moov-token.js, an ES module that keeps the token of a page
// fresh. It asks [Tokens.Handler] for a token, and for the next one at 80 % of
// its lifetime:
//
//	mux.Handle("GET /moov-token.js", platform.PageModule())
//
//	// In the page:
//	import { moovToken } from "/moov-token.js";
//	const session = moovToken({ url: "/moov-token", onToken(token) { drop.token = token.access_token; } });
//
// The options of moovToken:
//
//	url                              where Tokens.Handler is
//	headers                          sent along, for the scopes function to look at
//	onToken(token)                   a new token: access_token, token_type, expires_in, scope
//	onEnd(status)                    401, 403 or 409: the server says no, and renewals have ended
//	onTrouble({ status, retryIn })   any other status; 0: no answer. The module asks again in retryIn seconds
//
// What it returns:
//
//	session.token     the access token; null if none is good at this moment
//	session.renew()   asks for a new token now; a promise of the access token, rejected at the first failure
//	session.stop()    ends the renewals: at sign-out, or if the component goes
//
// It needs no build step, and works under a Content-Security-Policy without
// unsafe-inline and unsafe-eval. Its URL may be imported by pages of any origin,
// since there is nothing secret in it. A browser keeps it, and asks each time
// whether it has changed.
func PageModule() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		header := w.Header()
		header.Set("Access-Control-Allow-Origin", "*")
		header.Set("X-Content-Type-Options", "nosniff")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			header.Set("Allow", "GET, HEAD")
			http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
			return
		}
		header.Set("Content-Type", "text/javascript; charset=utf-8")
		header.Set("Cache-Control", "no-cache")
		header.Set("ETag", pageModuleTag)
		http.ServeContent(w, r, "moov-token.js", time.Time{}, bytes.NewReader(pageModule))
	})
}
