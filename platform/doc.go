// Package platform is for platforms with connected accounts: many access tokens
// from one API key of Moov's, within its rate limit.
//
// A server that calls Moov for its accounts, with a token that is good for one
// account and purpose only:
//
//	tokens, err := platform.New(
//		moovauth.Credentials{ClientID: publicKey, ClientSecret: secretKey},
//		platform.WithRate(20), // of the 40 requests a second that Moov takes: API calls need the rest
//		platform.WithSource(moovauth.WithOrigin("https://example.com")),
//	)
//	if err != nil {
//		return err
//	}
//	defer tokens.RevokeAll(context.Background())
//	client, err := tokens.Client("/accounts/" + accountID + "/cards.read")
//	if err != nil {
//		return err
//	}
//	resp, err := client.Get("https://api.moov.io/accounts/" + accountID + "/cards")
//
// A server whose pages use Moov.js and the Drops, and need a token of their own
// for the user who is logged in:
//
//	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
//		user, err := sessions.User(r)
//		if err != nil {
//			return nil, err // 500, and a line in the log
//		}
//		if user == nil {
//			return nil, platform.StatusError(http.StatusUnauthorized)
//		}
//		return []string{"/accounts/" + user.MoovAccount + "/cards.write"}, nil
//	}))
//
//	mux.Handle("GET /moov-token.js", platform.PageModule())
//
// In the page a module keeps the token fresh:
//
//	import { moovToken } from "/moov-token.js";
//	const session = moovToken({ url: "/moov-token", onToken(token) { drop.token = token.access_token; } });
//
// [Tokens] keeps a [moovauth.TokenSource] for each set of scopes, so all that its
// documentation says is true here, too. Three things are added. All token and
// revoke requests wait in one queue, in which people go first: so a thousand
// accounts that start at once are served one after the other instead of being
// refused, and no page waits for them. Only so many sources are kept. And tokens
// can be minted for a page, without a refresh token.
//
// A cache given with [moovauth.WithCache] in [WithSource] has an entry for each
// set of scopes.
//
// Moov counts the requests of an account and IP address. Processes that share
// both need one limit together: see [WithLimiter].
package platform
