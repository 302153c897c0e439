package moovauth

import (
	"context"
	"errors"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

// revoked returns the tokens that server was asked to revoke, each after its
// hint.
func revoked(server *moovtest.Server) []string {
	var tokens []string
	for _, r := range server.RevokeRequests() {
		tokens = append(tokens, r.Form.Get("token_type_hint")+"="+r.Form.Get("token"))
	}
	return tokens
}

func TestRevokeOnTheWire(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	tok := token(t, sourceOf(t, server))
	opts := []Option{
		WithBaseURL(server.URL), WithHTTPClient(server.Client()), WithOrigin("https://example.com"), WithVersion("v2026.07.00"),
		WithCache(fakeCache{}), WithToken(tok), WithScopes(pingScope), WithEarlyRefresh(0), // ignored
	}
	require.NoError(t, Revoke(t.Context(), credentialsOf(server), tok.AccessToken, opts...))
	assert.False(t, server.Alive(tok.AccessToken))
	assert.True(t, server.Alive(tok.RefreshToken))
	require.NoError(t, Revoke(t.Context(), credentialsOf(server), tok.RefreshToken, append(opts, WithTokenTypeHint(RefreshToken))...))
	assert.False(t, server.Alive(tok.RefreshToken))
	assert.Equal(t, []string{"=" + tok.AccessToken, "refresh_token=" + tok.RefreshToken}, revoked(server))

	r := server.RevokeRequests()[0]
	assert.Equal(t, http.MethodPost, r.Method)
	assert.NotContains(t, r.Form, "token_type_hint")
	assert.NotContains(t, r.Form, "scope")
	assert.Equal(t, "application/x-www-form-urlencoded", r.Header.Get("Content-Type"))
	assert.Equal(t, "v2026.07.00", r.Header.Get("X-Moov-Version"))
	assert.Equal(t, "https://example.com", r.Header.Get("Origin"))
	assert.Equal(t, userAgent, r.Header.Get("User-Agent"))
	assert.Equal(t, server.TokenRequests()[0].Header.Get("Authorization"), r.Header.Get("Authorization"))
}

func TestRevokeOfAnUnknownTokenSucceeds(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	assert.NoError(t, Revoke(t.Context(), credentialsOf(server), "unknown", WithBaseURL(server.URL)))
}

func TestRevokeChecksItsArgumentsBeforeAnyRequest(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server, WithToken(&oauth2.Token{AccessToken: "given-token"}))
	to := WithBaseURL(server.URL)
	var none context.Context
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	for want, err := range map[string]error{
		"the token is empty":                     Revoke(t.Context(), credentialsOf(server), "", to),
		"ClientID":                               Revoke(t.Context(), Credentials{}, "x", to),
		"WithTimeout":                            Revoke(t.Context(), credentialsOf(server), "x", to, WithTimeout(0)),
		"WithScopes":                             Revoke(t.Context(), credentialsOf(server), "x", to, WithScopes("ping.read")),
		"moovauth: the context is nil":           Revoke(none, credentialsOf(server), "x", to),
		"the context is nil":                     s.Revoke(none),
		"nothing was revoked, since the context": s.Revoke(ended),
	} {
		assert.ErrorContains(t, err, want)
	}
	assert.ErrorIs(t, s.Revoke(ended), context.Canceled)
	assert.Empty(t, server.Requests())
}

func TestRevokeRefused(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	err := Revoke(t.Context(), Credentials{server.ClientID, "wrong"}, "x", WithBaseURL(server.URL))
	var refused *Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, "revoke", refused.Op)
	assert.Empty(t, refused.GrantType)
	assert.ErrorContains(t, err, "check Credentials")

	server.Enqueue(moovtest.Answer{Status: 422, Body: `{"token":"malformed"}`})
	require.ErrorAs(t, Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL)), &refused)
	assert.Equal(t, map[string]string{"token": "malformed"}, refused.Fields)
}

// Moov documents 204. A gateway may answer in place of Moov.
func TestWhatCountsAsRevoked(t *testing.T) {
	t.Parallel()
	html := http.Header{"Content-Type": {"text/html"}}
	for name, c := range map[string]struct {
		answer moovtest.Answer
		want   []string // parts of the error; nil: the answer counts as revoked
	}{
		"204":                         {moovtest.Answer{Status: 204}, nil},
		"200, empty":                  {moovtest.Answer{}, nil},
		"200, white space":            {moovtest.Answer{Body: " \r\n"}, nil},
		"200, an object":              {moovtest.Answer{Body: `{}`}, nil},
		"200, an object with members": {moovtest.Answer{Body: `{"status":"revoked"}`}, nil},
		"200, true":                   {moovtest.Answer{Body: `true`}, nil},
		"202, a string":               {moovtest.Answer{Status: 202, Body: `"done"`}, nil},
		"a sign-in page":              {moovtest.Answer{Header: html, Body: `<html>Sign in to ACME</html>`}, []string{"answered 200", "text/html", "Sign in to ACME"}},
		"a maintenance page":          {moovtest.Answer{Header: html, Body: `<!doctype html><title>Down for maintenance</title>`}, []string{"answered 200", "Down for maintenance"}},
		"plain text":                  {moovtest.Answer{Body: `We will be back soon`}, []string{"answered 200", "back soon"}},
		"JSON with an error":          {moovtest.Answer{Body: `{"error":"unsupported_token_type"}`}, []string{"200", "unsupported_token_type"}},
		"an error that is an object":  {moovtest.Answer{Body: `{"error":{"message":"try later"}}`}, []string{"200", "try later"}},
		"JSON that is cut":            {moovtest.Answer{Body: `{"status":`}, []string{"answered 200", "proxy"}},
		"a redirect":                  {moovtest.Answer{Status: 302, Header: http.Header{"Location": {"https://sso.example.com"}}}, []string{"302", "WithBaseURL"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				s := sourceOf(t, server)
				token(t, s)
				server.SetAnswer(&c.answer)
				errs := []error{
					Revoke(t.Context(), credentialsOf(server), "x", WithBaseURL(server.URL), WithHTTPClient(server.Client())),
					s.Revoke(t.Context()),
				}
				if c.want == nil {
					assert.Equal(t, []error{nil, nil}, errs)
					assert.Len(t, server.RevokeRequests(), 3)
					return
				}
				for _, err := range errs {
					for _, want := range c.want {
						assert.ErrorContains(t, err, want)
					}
				}
				server.SetAnswer(nil)
				require.NoError(t, s.Revoke(t.Context()), "the next Revoke tries again")
				assertAllDead(t, server)
			})
		})
	}
}

func TestRevokeGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Hour))
		opts := []Option{WithBaseURL(server.URL), WithHTTPClient(server.Client()), WithTimeout(3 * time.Second)}
		began := time.Now()
		err := Revoke(t.Context(), credentialsOf(server), "x", opts...)
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.ErrorContains(t, err, "WithTimeout")
		assert.Equal(t, 3*time.Second, time.Since(began))
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.ErrorIs(t, Revoke(ctx, credentialsOf(server), "x", opts...), context.DeadlineExceeded)
		assert.Equal(t, 4*time.Second, time.Since(began))
	})
}

func TestSourceRevokesTheRefreshTokenFirst(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	require.NoError(t, s.Revoke(t.Context()), "there is nothing to revoke")
	tok := token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	require.NoError(t, s.Revoke(t.Context()))
	assert.Equal(t, []string{"refresh_token=" + tok.RefreshToken, "access_token=" + tok.AccessToken}, revoked(server))
	assertAllDead(t, server)

	next := token(t, s)
	assert.True(t, server.Alive(next.AccessToken), "the source stays usable")
	assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
}

func TestSourceRevokesATokenItWasGiven(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	saved := token(t, sourceOf(t, server))
	require.NoError(t, sourceOf(t, server, WithToken(saved)).Revoke(t.Context()))
	assertAllDead(t, server)
}

func TestSourceRevokeWaitsForTheGrantInProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second))
		s := sourceOf(t, server)
		token(t, s)
		time.Sleep(14 * time.Minute)
		token(t, s) // starts a grant in the background
		synctest.Wait()
		require.NoError(t, s.Revoke(t.Context()))
		assert.Len(t, server.TokenRequests(), 2)
		assertAllDead(t, server)
		assert.Len(t, server.RevokeRequests(), 3, "also the access token that the grant replaced")
	})
}

func TestSourceRevokeDuringTheFirstGrant(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second))
		s := sourceOf(t, server)
		var caller sync.WaitGroup
		var got *oauth2.Token
		caller.Go(func() { got = token(t, s) })
		synctest.Wait()
		require.NoError(t, s.Revoke(t.Context()))
		caller.Wait()
		if len(server.TokenRequests()) > 1 { // Revoke took the token before the caller saw it
			assert.Equal(t, []string{got.AccessToken}, server.AccessTokens(), "the token of a grant that began after Revoke")
			require.NoError(t, s.Revoke(t.Context()))
		}
		assertAllDead(t, server)
	})
}

func TestBackgroundGrantObtainsNothingAfterRevoke(t *testing.T) {
	t.Parallel()
	for range 50 {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			s := sourceOf(t, server)
			token(t, s)
			time.Sleep(14 * time.Minute)
			token(t, s) // starts a background grant
			require.NoError(t, s.Revoke(t.Context()))
			time.Sleep(time.Minute)
			assertAllDead(t, server)
		})
	}
}

func TestSourceRevokeCancelsAGrantThatTakesMoreThanHalfOfItsTime(t *testing.T) {
	t.Parallel()
	for name, background := range map[string]bool{"in the background": true, "with a caller": false} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				var hangs atomic.Bool
				s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
					if hangs.Load() && r.URL.Path == endpointPath+opToken {
						<-r.Context().Done()
						return nil, errors.New("no route to host")
					}
					return server.Transport().RoundTrip(r)
				})}))
				first := token(t, s)
				time.Sleep(14 * time.Minute)
				hangs.Store(true)
				var caller sync.WaitGroup
				if !background {
					s.Invalidate(first.AccessToken)
				}
				caller.Go(func() { token(t, s) })
				synctest.Wait()
				ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
				defer cancel()
				time.AfterFunc(time.Second, func() { hangs.Store(false) }) // later requests succeed
				began := time.Now()
				require.NoError(t, s.Revoke(ctx))
				assert.Equal(t, 2500*time.Millisecond, time.Since(began), "half of Revoke's time")
				assert.False(t, server.Alive(first.AccessToken))
				assert.False(t, server.Alive(first.RefreshToken))
				caller.Wait() // its grant was cancelled, and the caller started another
				assert.True(t, server.Alive(token(t, s).AccessToken), "the source stays usable")
			})
		})
	}
}

func TestSecondRevokeWaitsForTheFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		token(t, s)
		server.SetLatency(time.Second)
		go s.Revoke(t.Context())
		synctest.Wait()
		short, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		defer cancel()
		assert.ErrorIs(t, s.Revoke(short), context.DeadlineExceeded)
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, server)
	})
}

func TestEachTokenIsTriedAndTheNextRevokeTriesAgain(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	first := token(t, s)
	server.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"one"}`}, moovtest.Answer{Status: 400, Body: `{"error":"two"}`})
	err := s.Revoke(t.Context())
	assert.ErrorContains(t, err, "one")
	assert.ErrorContains(t, err, "two")
	assert.True(t, server.Alive(first.AccessToken))

	second := token(t, s)
	assert.NotEqual(t, first.AccessToken, second.AccessToken, "callers do not get the first token again")
	require.NoError(t, s.Revoke(t.Context()))
	assertAllDead(t, server)
	assert.Len(t, server.RevokeRequests(), 2+4)
	assert.EqualValues(t, 4, s.Stats().Revoked)
}

func TestReplacedTokensAreRevokedWhileTheyMayBeAlive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		replace := func(n int) {
			for range n {
				s.Invalidate(token(t, s).AccessToken)
				time.Sleep(31 * time.Second) // longer than the pause between two invalidations that count
			}
			token(t, s)
		}
		replace(3)
		assert.Len(t, server.AccessTokens(), 4)
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, server)

		replace(1)
		time.Sleep(20 * time.Minute)
		token(t, s)
		before := len(server.RevokeRequests())
		require.NoError(t, s.Revoke(t.Context()))
		assert.Len(t, server.RevokeRequests(), before+2, "expired tokens are not revoked")

		replace(20)
		alive := server.AccessTokens()
		require.NoError(t, s.Revoke(t.Context()))
		assert.Equal(t, alive[:len(alive)-17], server.AccessTokens(), "the current token and the last 16 former ones are remembered")
		assert.Empty(t, server.RefreshTokens())
	})
}

func TestReplacedTokenIsRevokedUpToItsLastSecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"old-token","expires_in":60}`})
		token(t, s)
		time.Sleep(50 * time.Second)
		token(t, s)
		synctest.Wait()
		require.NotEqual(t, "old-token", token(t, s).AccessToken)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		require.NoError(t, s.Revoke(t.Context()))
		assert.Contains(t, revoked(server), "access_token=old-token")
	})
}

// After such an answer, the refresh token is not sent again, but it may still
// be alive.
func TestRefreshTokenWhoseRequestFailedIsRevoked(t *testing.T) {
	t.Parallel()
	for name, answer := range map[string]moovtest.Answer{
		"a firewall's page": {Status: 403, Header: http.Header{"Content-Type": {"text/html"}}, Body: "<html>Blocked</html>"},
		"invalid_grant":     {Status: 400, Body: `{"error":"invalid_grant"}`},
		"a mesh's 503":      {Status: 503, Body: "upstream connect error"},
		"a sign-in page":    {Body: "<html>Sign in</html>"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				s := sourceOf(t, server)
				token(t, s)
				time.Sleep(time.Hour)
				server.Enqueue(answer)
				token(t, s)
				require.Len(t, server.RefreshTokens(), 2)
				require.NoError(t, s.Revoke(t.Context()))
				assertAllDead(t, server)
			})
		})
	}
}

// The server sends the current token again, with an expires_in of 0. That does
// not extend the token's life, and the source does not accept the reply.
func TestRefreshTokenOfAReplyThatIsNotAcceptedIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		tok := token(t, s)
		time.Sleep(14 * time.Minute)
		again := moovtest.Answer{Body: `{"access_token":"` + tok.AccessToken + `","refresh_token":"new-refresh-token","expires_in":0}`}
		server.SetAnswer(&again)
		token(t, s)
		time.Sleep(time.Minute)
		server.SetAnswer(nil)
		require.NoError(t, s.Revoke(t.Context()))
		assert.Contains(t, revoked(server), "refresh_token=new-refresh-token")
	})
}

func TestRevokeUnderLoadLeavesNothingAlive(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	stop := make(chan struct{})
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
					token(t, s)
				}
			}
		})
	}
	for range 20 {
		assert.NoError(t, s.Revoke(t.Context()))
	}
	close(stop)
	callers.Wait()
	require.NoError(t, s.Revoke(t.Context()))
	assertAllDead(t, server)
}

func TestRevokeOfASilentEndpointTakesOneTimeoutForAllTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		for range 9 {
			s.Invalidate(token(t, s).AccessToken)
			time.Sleep(time.Minute)
		}
		token(t, s)
		server.SetLatency(time.Hour)
		began := time.Now()
		err := s.Revoke(context.Background())
		assert.ErrorIs(t, err, context.DeadlineExceeded)
		assert.Equal(t, defaultTimeout, time.Since(began))
		tried := make(map[string]bool)
		for _, tok := range revoked(server) {
			tried[tok] = true
		}
		assert.Len(t, tried, 11, "each token is tried, with an equal share of the time")
	})
}

func TestRevokeOfAFreshProcessRevokesWhatTheCacheHas(t *testing.T) {
	t.Parallel()
	for name, cache := range bothCaches() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				first := token(t, sourceOf(t, server, WithCache(cache)))
				logout := sourceOf(t, server, WithCache(cache))
				require.NoError(t, logout.Revoke(t.Context()))
				assertAllDead(t, server)
				assert.Len(t, server.RevokeRequests(), 2)
				next := token(t, sourceOf(t, server, WithCache(cache)))
				assert.NotEqual(t, first.AccessToken, next.AccessToken, "the entry is deleted")
				assert.Equal(t, next.AccessToken, token(t, logout).AccessToken)
				assert.Len(t, server.TokenRequests(), 2)
			})
		})
	}
}

func TestRevokeReachesWhatAnotherProcessPutIntoTheCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		a, b := sourceOf(t, server, WithCache(cache)), sourceOf(t, server, WithCache(cache))
		token(t, a)
		token(t, b) // adopts the token
		time.Sleep(time.Hour)
		token(t, b) // refreshes the token
		require.NoError(t, a.Revoke(t.Context()))
		assertAllDead(t, server)
	})
}

func TestRevokeReadsTheEntryAfterItHasTheLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		other := sourceOf(t, server, WithCache(cache))
		first := token(t, other)
		time.Sleep(14 * time.Minute)
		server.SetLatency(time.Second)
		token(t, other) // starts a refresh in the background, which holds the lock
		synctest.Wait()
		require.NoError(t, sourceOf(t, server, WithCache(cache)).Revoke(t.Context()))
		assert.Equal(t, []string{first.AccessToken}, server.AccessTokens(), "only the other process knows it")
		assert.Empty(t, server.RefreshTokens())
		require.NoError(t, other.Revoke(t.Context()))
		assertAllDead(t, server)
	})
}

func TestEntryWhoseTokensCouldNotBeRevokedIsKept(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		token(t, sourceOf(t, server, WithCache(cache)))
		server.Enqueue(moovtest.Answer{Status: 403})
		require.Error(t, sourceOf(t, server, WithCache(cache)).Revoke(t.Context()))
		assert.Len(t, server.RefreshTokens(), 1)
		require.NoError(t, sourceOf(t, server, WithCache(cache)).Revoke(t.Context()), "another process finishes it")
		assertAllDead(t, server)
	})
}

// Without a lock, two processes that start at once get one refresh token each.
// One of them then adopts the token that the other stores. It must still revoke
// its own refresh token.
func TestRefreshTokenFromBeforeAnAdoptionIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(100*time.Millisecond))
		fleet := fleetOf(t, server, 2, WithCache(new(memoryCache)))
		tokens := together(t, fleet)
		require.NotEqual(t, tokens[0].RefreshToken, tokens[1].RefreshToken)
		time.Sleep(time.Hour)
		require.Equal(t, token(t, fleet[0]).AccessToken, token(t, fleet[1]).AccessToken)
		require.Len(t, server.RefreshTokens(), 2, "one of three was used up")
		for _, s := range fleet {
			before := len(server.RevokeRequests())
			require.NoError(t, s.Revoke(t.Context()))
			var hints []string
			for _, r := range server.RevokeRequests()[before:] {
				hints = append(hints, r.Form.Get("token_type_hint"))
			}
			assert.IsNonIncreasing(t, hints, "refresh tokens come first, since they can be used to obtain other tokens")
		}
		assertAllDead(t, server)
	})
}

// When the entry is overwritten, only the source still knows its refresh token.
func TestRefreshTokenInAnEntryThatIsOverwrittenIsRevoked(t *testing.T) {
	t.Parallel()
	for name, cache := range bothCaches() {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				token(t, sourceOf(t, server, WithCache(cache)))
				time.Sleep(time.Hour)
				s := sourceOf(t, server, WithCache(cache))
				token(t, s)
				require.NoError(t, s.Revoke(t.Context()))
				assertAllDead(t, server)
			})
		})
	}
}

// If the server did not say how long a token lives, no one knows when the token
// dies.
func TestAdoptedTokenOfUnknownLifetimeIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := new(memoryCache)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"of-unknown-lifetime"}`})
		token(t, sourceOf(t, server, WithCache(cache)))
		s := sourceOf(t, server, WithCache(cache))
		require.Equal(t, "of-unknown-lifetime", token(t, s).AccessToken)
		time.Sleep(time.Hour)
		token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		assert.Contains(t, revoked(server), "access_token=of-unknown-lifetime")
	})
}

// If a machine's clock is up to a minute ahead, tokens from other machines seem
// to expire early. They are alive for that much longer.
func TestAdoptedTokenIsRevokedEvenIfTheLocalClockIsAhead(t *testing.T) {
	t.Parallel()
	for _, ahead := range []time.Duration{0, 30 * time.Second, 59 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			cache := newLockingCache()
			first := token(t, sourceOf(t, server, WithCache(cache)))
			s := sourceOf(t, server, WithCache(cache))
			real := s.core.config.clock
			s.core.config.clock = func() instant {
				now := real()
				now.wall += int64(ahead)
				return now
			}
			require.Equal(t, first.AccessToken, token(t, s).AccessToken)
			time.Sleep(15*time.Minute - 2*time.Second)
			require.NotEqual(t, first.AccessToken, token(t, s).AccessToken)
			require.True(t, server.Alive(first.AccessToken))
			require.NoError(t, s.Revoke(t.Context()))
			assertAllDead(t, server)
		})
	}
}

func TestRevokedTokenIsNotAdoptedAgain(t *testing.T) {
	t.Parallel()
	for name, change := range map[string]func(kept *lockingCache, c *fakeCache){
		"the entry could not be deleted": func(_ *lockingCache, c *fakeCache) {
			c.remove = func(context.Context) error { return errors.New("read only") }
		},
		"an abandoned Put arrives later": func(kept *lockingCache, c *fakeCache) {
			c.put = func(ctx context.Context, data []byte) error {
				time.AfterFunc(time.Minute, func() { _ = kept.Put(context.Background(), "", data) })
				<-ctx.Done()
				return ctx.Err()
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				kept := newLockingCache()
				cache := kept.asFake()
				change(kept, &cache)
				s := sourceOf(t, server, WithCache(cache))
				token(t, s)
				require.NoError(t, s.Revoke(t.Context()), "the tokens are dead, whatever the cache does")
				assert.EqualValues(t, 1, s.Stats().CacheFailures)
				time.Sleep(2 * time.Minute)
				synctest.Wait()
				require.NotEmpty(t, kept.entries)
				assert.True(t, server.Alive(token(t, s).AccessToken))
				time.Sleep(2 * time.Minute)
			})
		})
	}
}

func TestRevokeWithACacheThatHangsStopsInTime(t *testing.T) {
	t.Parallel()
	hang := func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
	for op, change := range map[string]func(c *fakeCache){
		"Get":    func(c *fakeCache) { c.get = func(ctx context.Context) ([]byte, error) { return nil, hang(ctx) } },
		"Delete": func(c *fakeCache) { c.remove = hang },
		"Lock":   func(c *fakeCache) { c.lock = func(ctx context.Context) (func(), error) { return nil, hang(ctx) } },
		"Get and Lock": func(c *fakeCache) {
			c.get = func(ctx context.Context) ([]byte, error) { return nil, hang(ctx) }
			c.lock = func(ctx context.Context) (func(), error) { return nil, hang(ctx) }
		},
	} {
		t.Run(op, func(t *testing.T) {
			t.Parallel()
			for _, limit := range []time.Duration{100 * time.Millisecond, time.Second, time.Minute} {
				synctest.Test(t, func(t *testing.T) {
					server := inMemory(t)
					works := newLockingCache().asFake()
					cache := works
					s := sourceOf(t, server, WithTimeout(4*time.Second), WithCache(&cache))
					token(t, s)
					change(&cache)
					ctx, cancel := context.WithTimeout(t.Context(), limit)
					defer cancel()
					err := s.Revoke(ctx)
					assert.NoError(t, ctx.Err(), "the cache leaves time for the tokens")
					assert.Equal(t, op != "Delete", err != nil, "Revoke says whether it knows what the cache holds: %v", err)
					assertAllDead(t, server)

					cache = works
					token(t, s)
					change(&cache)
					server.SetLatency(time.Hour)
					var both sync.WaitGroup
					for i := range 2 { // the second call has little time left when its turn comes
						both.Go(func() {
							time.Sleep(time.Duration(i) * 200 * time.Millisecond)
							began := time.Now()
							assert.Error(t, s.Revoke(t.Context()))
							assert.LessOrEqual(t, time.Since(began), 4*time.Second)
						})
					}
					both.Wait()
				})
			}
		})
	}
}

func TestRevokeThatUsedItsTimeForTheTokensDoesNotWaitForTheCache(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache().asFake()
		cache.remove = func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }
		s := sourceOf(t, server, WithTimeout(4*time.Second), WithCache(cache))
		token(t, s)
		server.SetLatency(1900 * time.Millisecond)
		began := time.Now()
		require.NoError(t, s.Revoke(t.Context()))
		assert.Equal(t, 4*time.Second, time.Since(began))
		assertAllDead(t, server)
	})
}

// Revoke interrupts a grant whose request is then answered. The wait that this
// answer asks for still counts.
func TestRevokeKeepsTheWaitThatTheServerAskedFor(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		server.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"600"}}})
		server.SetLatency(2 * time.Second)
		failed := make(chan error)
		go func() {
			_, err := s.Token()
			failed <- err
		}()
		time.Sleep(time.Second)
		require.NoError(t, s.Revoke(t.Context()))
		require.Error(t, <-failed)
		time.Sleep(9 * time.Minute)
		_, err := s.Token()
		require.ErrorAs(t, err, new(*CoolDownError))
		assert.Len(t, server.TokenRequests(), 1)
	})
}

func TestErrorOfAnEndedContextIncludesItsCause(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		silent := WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			<-r.Context().Done()
			return nil, context.Cause(r.Context()) // as net/http does
		})})
		cause := errors.New("shutting down")
		cancelled, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		timed, stop := context.WithTimeoutCause(t.Context(), time.Second, cause)
		defer stop()
		for _, c := range []struct {
			ctx     context.Context
			timeout bool
		}{{cancelled, false}, {timed, true}} {
			_, requested := RequestToken(c.ctx, testCredentials, WithScopes(pingScope), silent)
			for _, err := range []error{requested, Revoke(c.ctx, testCredentials, "token", silent)} {
				require.ErrorIs(t, err, c.ctx.Err())
				require.ErrorIs(t, err, cause)
				assertFlags(t, err, c.timeout, c.timeout)
			}
		}
	})
}
