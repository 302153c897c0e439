package platform

// This file serves moov-token.js, the part of Handler that runs in the browser.

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

// PageModule returns a handler that serves moov-token.js, an ES module that keeps a
// page's token fresh. The module requests a token from [Tokens.Handler], and the next
// token when 80 % of the lifetime has passed:
//
//	mux.Handle("GET /moov-token.js", platform.PageModule())
//
//	// In the page:
//	import { moovToken } from "/moov-token.js";
//	const session = moovToken({ url: "/moov-token", onToken(token) { drop.token = token.access_token; } });
//
// These are the options of moovToken:
//
//	url                              the URL of Tokens.Handler
//	headers                          are sent with each request, for the scopes function
//	onToken(token)                   is called with each token: access_token, token_type, expires_in, scope
//	onEnd(status)                    is called after a 401, 403 or 409, which the scopes function can return: the module stops
//	onTrouble({ status, retryIn })   is called after any other failure; status is 0 if there was no answer.
//	                                 The module tries again after retryIn seconds
//
// moovToken returns an object with these members:
//
//	session.token     the current access token; null if there is no valid one
//	session.renew()   requests a new token now; returns a promise of the access token, which is rejected if the request fails
//	session.stop()    stops the renewals: call it at sign-out, or when the component is removed
//
// The module needs no build step, and works under a Content-Security-Policy without
// unsafe-inline and unsafe-eval. Pages of any origin may import it, because it
// contains no secret. Browsers cache it, and check each time whether it has changed.
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
