// Package platform is for platforms with connected accounts: many access tokens
// from one API key of Moov's, within its rate limit.
//
// A server that calls Moov for its accounts, with a token that is good for one
// account and purpose alone:
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
//			return nil, err // the page gets a 403
//		}
//		return []string{"/accounts/" + user.MoovAccount + "/cards.write"}, nil
//	}))
//
//	// In the page: const { access_token } = await (await fetch("/moov-token", { method: "POST" })).json()
//
// [Tokens] keeps a [moovauth.TokenSource] for each set of scopes, so all that its
// documentation says holds here too. What is added is the line in which all
// token and revoke requests wait, so that a thousand accounts that start at once
// are served one after the other instead of being refused; a bound on how many
// sources are kept; and tokens that are minted for a page, without a refresh
// token.
//
// A cache given with [moovauth.WithCache] in [WithSource] has an entry for each
// set of scopes. Moov counts the requests of an account and IP address: processes
// that share both know of each other only by its 429s. Give each its part of the
// rate.
package platform
