// Package platform manages the access tokens of many connected accounts with one
// Moov API key, within Moov's rate limit.
//
// A server can make one HTTP client for each account and purpose. Its token
// allows only what that purpose needs:
//
//	tokens, err := platform.New(
//		moovauth.Credentials{ClientID: publicKey, ClientSecret: secretKey},
//		platform.WithRate(20), // Moov allows 40 requests a second; API calls use the rest
//		platform.WithSource(moovauth.WithOrigin("https://example.com")),
//	)
//	if err != nil {
//		return err
//	}
//	client, err := tokens.Client("/accounts/" + accountID + "/cards.read")
//	if err != nil {
//		return err
//	}
//	resp, err := client.Get("https://api.moov.io/accounts/" + accountID + "/cards")
//
// At shutdown, call [Tokens.RevokeAll].
//
// If your pages use Moov.js or Moov's Drops, [Tokens.Handler] gives each page a
// token for its signed-in user, and [PageModule] serves the JavaScript that keeps
// the page's token fresh.
//
// [Tokens] keeps one [moovauth.TokenSource] for each set of scopes. Each source
// behaves as documented in package moovauth. Tokens adds three things:
//
//   - All token and revoke requests wait in one queue. If a thousand accounts start
//     at once, the queue spaces their requests out, so that Moov does not refuse
//     them. Interactive requests, for which a person waits, go first.
//   - It limits the number of sources that it keeps: see [WithCapacity].
//   - It can mint a token for a page or an app, without a refresh token: see
//     [Tokens.Handler] and [Tokens.Mint].
//
// If [WithSource] contains [moovauth.WithCache], the cache has one entry for each
// set of scopes.
//
// Moov limits the requests from one IP address for the account that owns the API
// key. Processes that share both should share one limiter: see [WithLimiter].
package platform
