package platform

// What Stats counts, and which warnings are logged only once.

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// One page in eight disconnects, and many wait in the queue for too long. These are
// not failures.
func TestPagesThatLeaveAreNotFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLatency(80 * time.Millisecond))
		defer server.Close()
		b := newBrowser(t, server)
		var visits sync.WaitGroup
		for i := range 800 { // 20 a second
			visits.Go(func() {
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				if i%8 == 0 {
					time.AfterFunc(50*time.Millisecond, cancel)
				}
				b.ServeHTTP(httptest.NewRecorder(), post("42").WithContext(ctx))
			})
			time.Sleep(50 * time.Millisecond)
		}
		visits.Wait()
		s := b.tokens.Stats()
		t.Logf("%d minted, %d timed out, %d abandoned, %d failed", s.Minted, s.TimedOut, s.Abandoned, s.Failed)
		assert.Zero(t, s.Failed)
		assert.EqualValues(t, 100, s.Abandoned)
		assert.Greater(t, s.TimedOut, uint64(100))
		assert.EqualValues(t, 800, s.Minted+s.TimedOut+s.Abandoned)
		assert.Empty(t, b.log.String())
		assert.LessOrEqual(t, len(server.TokenRequests()), int(s.Minted+s.Abandoned))
	})
}

func TestGrantsThatFailAreCounted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithScopes("/a.read"))
		defer server.Close()
		tokens := newTokens(t, server, WithCapacity(2))
		for range 3 { // sources are removed and made again
			for _, scope := range []string{"/a.read", "/b.read", "/c.read", "/d.read"} {
				source, err := tokens.Source(scope)
				require.NoError(t, err)
				_, err = source.Token()
				assert.Equal(t, scope == "/a.read", err == nil)
				tokens.Stats() // as a dashboard does
			}
			time.Sleep(time.Minute)
		}
		s := tokens.Stats()
		assert.EqualValues(t, len(server.TokenRequests())-len(server.AccessTokens()), s.GrantsFailed)
		assert.Zero(t, s.Failed)
		again := tokens.Stats()
		assert.Equal(t, s.GrantsFailed, again.GrantsFailed)
	})
}

// lines returns the records of a logger.
func lines(b *bytes.Buffer) []string {
	return strings.FieldsFunc(b.String(), func(r rune) bool { return r == '\n' })
}

// If the rate is too low for the accounts, one warning is logged, even if no one calls
// Stats.
func TestNeededIsMoreThanTheRate(t *testing.T) {
	for accounts, want := range map[int]int{600: 0, 900: 1} { // 0.83 and 1.25 of 1
		t.Run(fmt.Sprint(accounts), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				server := moovtest.NewInMemory()
				defer server.Close()
				var records safeBuffer
				tokens := newTokens(t, server, WithRate(1), WithLogger(slog.New(slog.NewTextHandler(&records, &slog.HandlerOptions{Level: slog.LevelWarn}))))
				ctx, cancel := context.WithCancel(t.Context())
				v := use(ctx, t, tokens, accounts, time.Minute)
				time.Sleep(25 * time.Minute)
				n := strings.Count(records.String(), "need more than 0.9 of WithRate")
				needed := tokens.Stats().Needed
				t.Logf("needed: %.1f a second", needed)
				assert.Equal(t, want, n)
				assert.InDelta(t, float64(accounts)/720, needed, 0.15*float64(accounts)/720)
				cancel()
				v.wg.Wait()
				time.Sleep(20 * time.Minute)
			})
		})
	}
}

// Accounts that are not in use need nothing.
func TestNeededIsForAccountsInUse(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLifetime(72 * time.Hour))
		defer server.Close()
		tokens := newTokens(t, server, WithRate(1e6))
		_, _, _ = atOnce(t, server, 100, tokens.Source)
		assert.InDelta(t, 100/(72*time.Hour-5*time.Minute).Seconds(), tokens.Stats().Needed, 1e-6)
		time.Sleep(73 * time.Hour)
		assert.Zero(t, tokens.Stats().Needed)
	})
}

// 1,200 accounts are in use, and WithCapacity is 1,000.
func TestEvictedSources(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		var records bytes.Buffer
		tokens := newTokens(t, server, WithRate(1e6), WithCapacity(1000), WithLogger(slog.New(slog.NewTextHandler(&records, nil))))
		for i := range 1200 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			_, err = source.Token()
			require.NoError(t, err)
		}
		assert.EqualValues(t, 200, tokens.Stats().Evicted)
		require.Len(t, lines(&records), 1)
		assert.Contains(t, records.String(), "WithCapacity")
		assert.Contains(t, records.String(), "capacity=1000")
	})
}

// If Moov grants fewer scopes, one warning is logged for each set of scopes.
func TestAHundredMintsLogOneWarning(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		for range 200 {
			server.Enqueue(moovtest.Answer{Body: `{"access_token":"a-token-of-less","token_type":"Bearer","expires_in":900,"scope":"/accounts/1/cards.read"}`})
		}
		var records bytes.Buffer
		tokens := newTokens(t, server, WithRate(1e6),
			WithLogger(slog.New(slog.NewTextHandler(&records, &slog.HandlerOptions{Level: slog.LevelDebug}))))
		for range 100 {
			for _, account := range []string{"1", "2"} {
				_, err := tokens.Mint(t.Context(), "/accounts/"+account+"/cards.read", "/accounts/"+account+"/cards.write")
				require.NoError(t, err)
			}
		}
		assert.Equal(t, 2, strings.Count(records.String(), "level=WARN"))
		for _, account := range []string{"1", "2"} { // for an audit trail
			assert.Contains(t, records.String(), "/accounts/"+account+"/cards.write")
		}
		assert.Equal(t, 200, strings.Count(records.String(), `level=DEBUG msg="moovauth: token obtained"`))
		for _, r := range server.TokenRequests() {
			assert.Contains(t, records.String(), r.RequestID)
		}
		assert.NotContains(t, records.String(), "a-token-of-less")
	})
}

func TestAZeroTokensSaysWhatToDo(t *testing.T) {
	tokens := new(Tokens)
	_, err := tokens.Source("/ping.read")
	assert.ErrorContains(t, err, "make one with New")
	_, err = tokens.Client("/ping.read")
	assert.ErrorContains(t, err, "make one with New")
	_, err = tokens.Mint(t.Context(), "/ping.read")
	assert.ErrorContains(t, err, "make one with New")
	assert.ErrorContains(t, tokens.Revoke(t.Context(), "token"), "make one with New")
	assert.ErrorContains(t, tokens.RevokeAll(t.Context()), "make one with New")
	assert.Zero(t, tokens.Stats())
	w := httptest.NewRecorder()
	tokens.Handler(user).ServeHTTP(w, post("42"))
	assert.Equal(t, http.StatusInternalServerError, w.Code)
}

// manyTokens returns a Tokens with n sources, which have no tokens.
func manyTokens(t testing.TB, n int) *Tokens {
	tokens, err := New(moovauth.Credentials{ClientID: "id", ClientSecret: "secret"}, WithCapacity(n))
	require.NoError(t, err)
	for i := range n {
		_, err := tokens.Source(account(i)...)
		require.NoError(t, err)
	}
	return tokens
}

// Stats looks at the sources one after the other. Callers of Source do not wait for that.
func TestSourceDoesNotWaitForStats(t *testing.T) {
	tokens := manyTokens(t, 100)
	tokens.sources.reporting.Lock() // as Stats does
	for _, scope := range []string{account(7)[0], "/ping.read"} {
		_, err := tokens.Source(scope)
		require.NoError(t, err)
	}
	tokens.sources.reporting.Unlock()
	assert.Equal(t, 100, tokens.Stats().Sources)
}

func BenchmarkStats(b *testing.B) {
	tokens := manyTokens(b, 100_000)
	for b.Loop() {
		tokens.Stats()
	}
}
