package moovauth

import (
	"context"
	"errors"
	"log/slog"
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

// revoked are the tokens that server was asked to revoke, with their hints.
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
	opts := []Option{WithBaseURL(server.URL), WithHTTPClient(server.Client()), WithOrigin("https://example.com"), WithVersion("v2026.07.00")}

	require.NoError(t, Revoke(t.Context(), credentialsOf(server), tok.AccessToken, opts...))
	assert.False(t, server.Alive(tok.AccessToken))
	assert.True(t, server.Alive(tok.RefreshToken))
	require.NoError(t, Revoke(t.Context(), credentialsOf(server), tok.RefreshToken, append(opts, WithTokenTypeHint(RefreshToken))...))
	assert.False(t, server.Alive(tok.RefreshToken))
	assert.Equal(t, []string{"=" + tok.AccessToken, "refresh_token=" + tok.RefreshToken}, revoked(server))

	r := server.RevokeRequests()[0]
	assert.Equal(t, http.MethodPost, r.Method)
	assert.NotContains(t, r.Form, "token_type_hint")
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

func TestRevokeTakes200(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	server.Enqueue(moovtest.Answer{Status: 200, Body: "{}"})
	assert.NoError(t, Revoke(t.Context(), credentialsOf(server), "unknown", WithBaseURL(server.URL)))
}

func TestRevokeOfNothingIsAnErrorBeforeAnyRequest(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	assert.ErrorContains(t, Revoke(t.Context(), credentialsOf(server), "", WithBaseURL(server.URL)), "empty")
	assert.ErrorContains(t, Revoke(t.Context(), Credentials{}, "x", WithBaseURL(server.URL)), "ClientID")
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

func TestRevokeGivesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Hour))
		opts := []Option{WithBaseURL(server.URL), WithHTTPClient(server.Client()), WithTimeout(3 * time.Second)}
		began := time.Now()
		assert.ErrorIs(t, Revoke(t.Context(), credentialsOf(server), "x", opts...), context.DeadlineExceeded)
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
	tok := token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	assert.Equal(t, []string{"refresh_token=" + tok.RefreshToken, "access_token=" + tok.AccessToken}, revoked(server))
	assert.Empty(t, server.AccessTokens())
	assert.Empty(t, server.RefreshTokens())

	next := token(t, s)
	assert.True(t, server.Alive(next.AccessToken), "the source stays usable")
	assert.Equal(t, []string{grantClientCredentials, grantClientCredentials}, grantTypes(server))
}

func TestSourceWithNothingRevokesNothing(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	require.NoError(t, s.Revoke(t.Context()))
	token(t, s)
	require.NoError(t, s.Revoke(t.Context()))
	require.NoError(t, s.Revoke(t.Context()))
	assert.Len(t, server.RevokeRequests(), 2)
}

func TestSourceRevokesATokenItWasGiven(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	saved := token(t, sourceOf(t, server))
	require.NoError(t, sourceOf(t, server, WithToken(saved)).Revoke(t.Context()))
	assert.Empty(t, server.AccessTokens())
	assert.Empty(t, server.RefreshTokens())
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
		assert.Empty(t, server.AccessTokens(), "also the one that the grant replaced is dead")
		assert.Empty(t, server.RefreshTokens())
		assert.Len(t, server.RevokeRequests(), 3)
	})
}

func TestSourceRevokeOfAFirstGrantInProgress(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(time.Second))
		s := sourceOf(t, server)
		var wg sync.WaitGroup
		var got *oauth2.Token
		wg.Go(func() { got = token(t, s) })
		synctest.Wait()
		require.NoError(t, s.Revoke(t.Context()))
		wg.Wait()
		if len(server.TokenRequests()) > 1 { // the caller came to its result after Revoke had taken it
			assert.Equal(t, []string{got.AccessToken}, server.AccessTokens(), "that of a grant that began after Revoke")
			require.NoError(t, s.Revoke(t.Context()))
		}
		assertAllDead(t, server)
	})
}

func TestSourceRevokeCancelsAGrantThatTakesMoreThanHalfOfItsTime(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(10*time.Second))
		s := sourceOf(t, server)
		go s.Token()
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		began := time.Now()
		assert.ErrorContains(t, s.Revoke(ctx), "was cancelled: it may have brought a token")
		assert.Equal(t, 500*time.Millisecond, time.Since(began), "half of the time that it has")
		server.SetLatency(0)
		assert.True(t, server.Alive(token(t, s).AccessToken), "the source stays usable")
	})
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
		assert.Empty(t, server.AccessTokens())
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
	assert.NotEqual(t, first.AccessToken, second.AccessToken, "it is forgotten, though")
	require.NoError(t, s.Revoke(t.Context()))
	assert.Empty(t, server.AccessTokens())
	assert.Empty(t, server.RefreshTokens())
	assert.Len(t, server.RevokeRequests(), 2+4)
}

func TestReplacedTokensAreRememberedWhileTheyLive(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		for range 3 {
			s.Invalidate(token(t, s).AccessToken)
			time.Sleep(time.Minute)
		}
		token(t, s)
		assert.Len(t, server.AccessTokens(), 4)
		require.NoError(t, s.Revoke(t.Context()))
		assert.Empty(t, server.AccessTokens())

		s.Invalidate(token(t, s).AccessToken)
		token(t, s)
		time.Sleep(20 * time.Minute)
		token(t, s)
		before := len(server.RevokeRequests())
		require.NoError(t, s.Revoke(t.Context()))
		assert.Len(t, server.RevokeRequests(), before+2, "the expired ones are not revoked")

		for range 3 * maxFormer {
			s.Invalidate(token(t, s).AccessToken)
			time.Sleep(31 * time.Second)
		}
		assert.Len(t, s.memory.past().former, maxFormer, "they don't pile up")
	})
}

func TestRevokeUnderLoadLeavesNothingAlive(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
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
	wg.Wait()
	require.NoError(t, s.Revoke(t.Context()))
	assert.Empty(t, server.AccessTokens())
	assert.Empty(t, server.RefreshTokens())
}

var _ oauth2.TokenSource = (*TokenSource)(nil)

// A RoundTripper that does not heed its context may return a token after its
// grant has been given up.
func TestTokenThatCameTooLateIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		var n atomic.Int32
		slow := roundTripper(func(r *http.Request) (*http.Response, error) {
			first := n.Add(1) == 1
			resp, err := server.Transport().RoundTrip(r)
			if first {
				time.Sleep(3 * time.Second)
			}
			return resp, err
		})
		s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: slow}), WithTimeout(2*time.Second))
		_, err := s.Token()
		require.Error(t, err)
		time.Sleep(time.Minute)
		token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		assert.Empty(t, server.AccessTokens())
		assert.Empty(t, server.RefreshTokens())
	})
}

// A server may hand out a token that was invalidated once more, and a refresh
// token that is new.
func TestRefreshTokenOfAReplyThatIsUselessIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		tok := token(t, s)
		s.Invalidate(tok.AccessToken)
		again := moovtest.Answer{Body: `{"access_token":"` + tok.AccessToken + `","refresh_token":"useless-but-alive","expires_in":900}`}
		server.Enqueue(again, again, again)
		_, err := s.Token()
		require.ErrorContains(t, err, "invalidated or revoked")
		require.NoError(t, s.Revoke(t.Context()))
		var revoked []string
		for _, r := range server.RevokeRequests() {
			revoked = append(revoked, r.Form.Get("token"))
		}
		assert.Contains(t, revoked, "useless-but-alive")
	})
}

func TestReplacedTokenIsRevokedUpToItsLastSecond(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		server.Enqueue(moovtest.Answer{Body: `{"access_token":"old","expires_in":60}`})
		token(t, s)
		time.Sleep(50 * time.Second)
		token(t, s)
		synctest.Wait()
		require.NotEqual(t, "old", token(t, s).AccessToken)
		time.Sleep(10*time.Second + 500*time.Millisecond)
		require.NoError(t, s.Revoke(t.Context()))
		var revoked []string
		for _, r := range server.RevokeRequests() {
			revoked = append(revoked, r.Form.Get("token"))
		}
		assert.Contains(t, revoked, "old")
	})
}

func TestRevokeOfAFreshProcessRevokesWhatTheCacheHolds(t *testing.T) {
	t.Parallel()
	for name, cache := range map[string]Cache{"with a lock": newLockingCache(), "without": new(memoryCache)} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				token(t, sourceOf(t, server, WithCache(cache)))
				logout := sourceOf(t, server, WithCache(cache))
				require.NoError(t, logout.Revoke(t.Context()))
				assertAllDead(t, server)
				assert.Len(t, server.RevokeRequests(), 2)
				entry, err := logout.store.visit().get(t.Context())
				require.NoError(t, err)
				assert.Nil(t, entry, "the entry is deleted last")
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
		token(t, b) // adopts it
		time.Sleep(time.Hour)
		token(t, b) // refreshes it
		require.NoError(t, a.Revoke(t.Context()))
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

func TestRefreshTokenThatAFirewallRefusedIsRevoked(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		token(t, s)
		time.Sleep(time.Hour)
		server.Enqueue(moovtest.Answer{Status: 403, Header: http.Header{"Content-Type": {"text/html"}}, Body: "<html>Blocked by the firewall</html>"})
		token(t, s)
		require.Len(t, server.RefreshTokens(), 2, "the first one still mints tokens")
		require.NoError(t, s.Revoke(t.Context()))
		assertAllDead(t, server)
	})
}

func TestBackgroundGrantThatHadNotBegunBringsNothingAfterRevoke(t *testing.T) {
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

func TestTokenRevokedByItsSourceIsNeverAdoptedAgain(t *testing.T) {
	t.Parallel()
	for name, late := range map[string]bool{"the entry could not be deleted": false, "a Put comes late": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				kept := new(memoryCache)
				cache := fakeCache{
					get:    func(ctx context.Context) ([]byte, error) { return kept.Get(ctx, "") },
					put:    func(ctx context.Context, data []byte) error { return kept.Put(ctx, "", data) },
					remove: func(context.Context) error { return errors.New("read only") },
					lock:   func(context.Context) (func(), error) { return func() {}, nil },
				}
				if late {
					cache.put = func(ctx context.Context, data []byte) error {
						time.AfterFunc(time.Minute, func() { _ = kept.Put(context.Background(), "", data) })
						<-ctx.Done()
						return ctx.Err()
					}
				}
				out := new(page)
				s := sourceOf(t, server, WithCache(cache), WithLogger(slog.New(slog.NewTextHandler(out, nil))))
				revoked := token(t, s)
				require.NoError(t, s.Revoke(t.Context()))
				time.Sleep(2 * time.Minute)

				// Masked, whatever shows it.
				answer := moovtest.Answer{Status: 400, Body: `{"error":"` + revoked.AccessToken + ` ` + revoked.RefreshToken + `"}`}
				server.Enqueue(answer)
				_, err := s.Token()
				require.Error(t, err)
				out.print(err)
				assert.NotContains(t, out.text.String(), revoked.AccessToken)
				assert.NotContains(t, out.text.String(), revoked.RefreshToken)

				time.Sleep(time.Minute)
				assert.NotEqual(t, revoked.AccessToken, token(t, s).AccessToken)
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestRevokeDuringAGrantThatHangsRevokesWhatIsInHand(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		hang := false
		s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if hang && r.URL.Path == tokenPath {
				<-r.Context().Done()
				return nil, r.Context().Err()
			}
			return server.Transport().RoundTrip(r)
		})}))
		token(t, s)
		time.Sleep(14 * time.Minute)
		hang = true
		token(t, s)
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		began := time.Now()
		err := s.Revoke(ctx)
		assert.ErrorContains(t, err, "the grant in progress did not end in time and was cancelled")
		assert.Equal(t, 2500*time.Millisecond, time.Since(began), "half of the time that it had")
		assertAllDead(t, server)
		hang = false
		require.NoError(t, s.Revoke(t.Context()))
		token(t, s)
	})
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
		for _, r := range server.RevokeRequests() {
			tried[r.Form.Get("token")] = true
		}
		assert.Len(t, tried, 11, "each is tried, with an equal share of the time")
	})
}

func TestRevokeWithAContextThatHasEndedSaysThatNothingWasRevoked(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	s := sourceOf(t, server)
	token(t, s)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := s.Revoke(ctx)
	assert.ErrorIs(t, err, context.Canceled)
	assert.ErrorContains(t, err, "nothing was revoked, since the context had ended")
	assert.NotContains(t, err.Error(), "another")
	assert.Empty(t, server.RevokeRequests())
}

// The limit that the documentation names: 16 former tokens.
func TestRevokeAfterTenMinutesOf401s(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		for began := time.Now(); time.Since(began) < 10*time.Minute; time.Sleep(time.Second) {
			if tok, err := s.Token(); err == nil {
				s.Invalidate(tok.AccessToken)
			}
		}
		issued := len(server.TokenRequests())
		require.LessOrEqual(t, issued, 26, "the back-off makes them few")
		require.NoError(t, s.Revoke(t.Context()))
		assert.LessOrEqual(t, len(server.AccessTokens()), issued-maxFormer)
		assert.Empty(t, server.RefreshTokens())
	})
}

func TestRevokeReachesAnEntryThatIsReplacedWhileItWaitsForTheLock(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		other := sourceOf(t, server, WithCache(cache))
		first := token(t, other)
		time.Sleep(14 * time.Minute)
		server.SetLatency(time.Second)
		token(t, other) // is refreshed in the background, under the lock
		synctest.Wait()
		require.NoError(t, sourceOf(t, server, WithCache(cache)).Revoke(t.Context()))
		assert.Len(t, server.TokenRequests(), 2)
		assert.False(t, server.Alive(first.AccessToken), "the cache held it when Revoke was called")
		assert.Empty(t, server.AccessTokens())
		assert.Empty(t, server.RefreshTokens())
	})
}

func TestRevokeTakesNoLongerWithACacheThatHangs(t *testing.T) {
	t.Parallel()
	for _, op := range []string{"Get", "Put", "Delete", "Lock", "unlock"} {
		t.Run(op, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := inMemory(t)
				cache := newLockingCache()
				hangs := false
				hang := func(at string) {
					if hangs && at == op {
						time.Sleep(10 * time.Second)
					}
				}
				s := sourceOf(t, server, WithTimeout(4*time.Second), WithCache(fakeCache{
					get: func(ctx context.Context) ([]byte, error) { hang("Get"); return cache.Get(ctx, "") },
					put: func(ctx context.Context, data []byte) error { hang("Put"); return cache.Put(ctx, "", data) },
					remove: func(ctx context.Context) error {
						hang("Delete")
						return cache.Delete(ctx, "")
					},
					lock: func(ctx context.Context) (func(), error) {
						hang("Lock")
						unlock, err := cache.Lock(ctx, "")
						return func() { hang("unlock"); unlock() }, err
					},
				}))
				token(t, s)
				hangs = true
				server.SetLatency(time.Hour)
				var both sync.WaitGroup
				for i := range 2 { // the second one has little time left when its turn comes
					both.Go(func() {
						time.Sleep(time.Duration(i) * 200 * time.Millisecond)
						began := time.Now()
						assert.Error(t, s.Revoke(t.Context()))
						assert.LessOrEqual(t, time.Since(began), 4*time.Second)
					})
				}
				both.Wait()
				time.Sleep(time.Minute)
			})
		})
	}
}

func TestGrantThatFailsWhileRevokeCancelsItFailsNobody(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		slow := true
		s := sourceOf(t, server, WithHTTPClient(&http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
			if slow {
				<-r.Context().Done()
				slow = false
				return nil, errors.New("no route to host")
			}
			return server.Transport().RoundTrip(r)
		})}))
		var caller sync.WaitGroup
		caller.Go(func() { token(t, s) })
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		assert.Error(t, s.Revoke(ctx))
		caller.Wait()
	})
}

func TestRevokeWithLittleTimeAndASlowCacheRevokesWhatIsInHand(t *testing.T) {
	t.Parallel()
	for _, long := range []time.Duration{100 * time.Millisecond, time.Second, 3 * time.Second} {
		synctest.Test(t, func(t *testing.T) {
			server := inMemory(t)
			cache, hangs := newLockingCache(), false
			s := sourceOf(t, server, WithCache(fakeCache{
				get: func(ctx context.Context) ([]byte, error) {
					if hangs {
						<-ctx.Done()
						return nil, ctx.Err()
					}
					return cache.Get(ctx, "")
				},
				put:    func(ctx context.Context, data []byte) error { return cache.Put(ctx, "", data) },
				remove: func(ctx context.Context) error { return cache.Delete(ctx, "") },
				lock:   func(ctx context.Context) (func(), error) { return cache.Lock(ctx, "") },
			}))
			token(t, s)
			hangs = true
			ctx, cancel := context.WithTimeout(t.Context(), long)
			defer cancel()
			assert.ErrorContains(t, s.Revoke(ctx), "the cache could not be read")
			assert.NoError(t, ctx.Err(), "in time")
			assertAllDead(t, server)
		})
	}
}

func TestRevokeWithoutTimeBlamesNobodyElse(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	err := sourceOf(t, server, WithTimeout(1), WithToken(&oauth2.Token{AccessToken: "given-token"})).Revoke(t.Context())
	assert.ErrorContains(t, err, "WithTimeout")
	assert.NotContains(t, err.Error(), "another")
}
