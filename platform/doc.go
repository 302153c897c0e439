// Package platform manages the access tokens of many connected accounts with one
// Moov API key, within Moov's rate limit.
//
// A server that calls Moov for its accounts gets a client for each account and
// purpose. The client's token is good for nothing else:
//
//	tokens, err := platform.New(
//		moovauth.Credentials{ClientID: publicKey, ClientSecret: secretKey},
//		platform.WithRate(20), // Moov takes 40 requests a second; API calls use the rest
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
// A server whose pages use Moov.js and the Drops gives each page a token for the
// user who is logged in:
//
//	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
//		user, err := sessions.User(r)
//		if err != nil {
//			return nil, err // the page gets a 500, and the error is logged
//		}
//		if user == nil {
//			return nil, platform.StatusError(http.StatusUnauthorized)
//		}
//		return []string{"/accounts/" + user.MoovAccount + "/cards.write"}, nil
//	}))
//
//	mux.Handle("GET /moov-token.js", platform.PageModule())
//
// In the page, a JavaScript module keeps the token fresh:
//
//	import { moovToken } from "/moov-token.js";
//	const session = moovToken({ url: "/moov-token", onToken(token) { drop.token = token.access_token; } });
//
// [Tokens] keeps one [moovauth.TokenSource] for each set of scopes. Each source
// behaves as package moovauth documents it. Tokens adds three things:
//
//   - All token and revoke requests wait in one queue. If a thousand accounts start
//     at once, the queue sends their requests one after the other, so that Moov does
//     not refuse them. Interactive requests, for which a person waits, go first.
//   - It limits the number of sources that it keeps: see [WithCapacity].
//   - It can mint a token for a page or an app, without a refresh token: see
//     [Tokens.Handler] and [Tokens.Mint].
//
// If [WithSource] contains [moovauth.WithCache], the cache has one entry for each
// set of scopes.
//
// Moov limits the rate of all requests of an account from one IP address.
// Processes that share both should share one limiter: see [WithLimiter].
package platform
