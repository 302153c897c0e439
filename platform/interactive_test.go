package platform

// How long interactive requests wait, whatever else is in the queue.

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/time/rate"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// visit is the outcome of a page's request, or of an account's call.
type visit struct {
	at, took time.Duration // at is since the start
	status   int           // 0: an account's call that failed
}

// visits are the visits of a run, in no order.
type visits struct {
	start time.Time
	mu    sync.Mutex
	all   []visit
	wg    sync.WaitGroup
}

func (v *visits) note(began time.Time, status int) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.all = append(v.all, visit{began.Sub(v.start), time.Since(began), status})
}

// pages makes n requests of pages to h, one in each interval of length every.
func pages(h http.Handler, n int, every time.Duration) *visits {
	v := &visits{start: time.Now()}
	for i := range n {
		v.wg.Go(func() {
			began := time.Now()
			w := httptest.NewRecorder()
			h.ServeHTTP(w, post(fmt.Sprint("page", i)))
			v.note(began, w.Code)
		})
		time.Sleep(every)
	}
	v.wg.Wait()
	return v
}

// count returns how many visits had that status.
func (v *visits) count(status int) (n int) {
	for _, one := range v.all {
		if one.status == status {
			n++
		}
	}
	return n
}

// longest returns the longest wait.
func (v *visits) longest() (d time.Duration) {
	for _, one := range v.all {
		d = max(d, one.took)
	}
	return d
}

// patience is how long an account's call waits for a token.
const patience = 10 * time.Second

// use has n accounts use their tokens until ctx ends, each once in every interval of
// length every. The first calls are spread over the first interval.
func use(ctx context.Context, t *testing.T, tokens *Tokens, n int, every time.Duration) *visits {
	t.Helper()
	v := &visits{start: time.Now()}
	for i := range n {
		source, err := tokens.Source(account(i)...)
		require.NoError(t, err)
		v.wg.Go(func() {
			time.Sleep(every * time.Duration(i) / time.Duration(n))
			for ctx.Err() == nil {
				if source.Stats().Phase == moovauth.PhaseNone {
					began := time.Now()
					call, cancel := context.WithTimeout(ctx, patience)
					if _, err := source.TokenContext(call); err != nil && ctx.Err() == nil {
						v.note(began, 0)
					}
					cancel()
				} else {
					_, _ = source.Token()
				}
				time.Sleep(every)
			}
		})
	}
	return v
}

// order returns the scopes of the token requests, in the order of their arrival.
func order(server *moovtest.Server) (scopes []string) {
	for _, r := range server.TokenRequests() {
		scopes = append(scopes, r.Form.Get("scope"))
	}
	return scopes
}

func TestPagesDoNotWaitBehindFirstTokens(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server, WithRate(20))
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		var callers sync.WaitGroup
		for i := range 5000 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			callers.Go(func() { _, _ = source.TokenContext(ctx) })
		}
		synctest.Wait()
		require.Equal(t, 4999, tokens.Stats().InLine)
		start := time.Now()
		_, err := tokens.Mint(ctx, "/ping.read")
		require.NoError(t, err)
		t.Logf("Mint waited %v", time.Since(start))
		assert.LessOrEqual(t, time.Since(start), 2*52*time.Millisecond)
		assert.Less(t, slices.Index(order(server), "/ping.read"), 3)

		v := pages(tokens.Handler(user), 20, time.Second/2)
		t.Logf("%d of 20 pages served, the slowest after %v", v.count(200), v.longest())
		assert.Equal(t, 20, v.count(200))
		assert.LessOrEqual(t, v.longest(), 2*52*time.Millisecond)
		assert.Greater(t, tokens.Stats().InLine, 4700, "the accounts get turns too, and most of them still wait")
		cancel()
		callers.Wait()
		time.Sleep(5 * time.Minute) // their token requests continue without them
	})
}

func TestPagesWorkAsSoonAsMoovDoes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLatency(80 * time.Millisecond))
		defer server.Close()
		tokens := newTokens(t, server)
		ctx, cancel := context.WithCancel(t.Context())
		accounts := use(ctx, t, tokens, 5000, time.Minute)
		time.Sleep(20 * time.Minute)
		server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		time.Sleep(5 * time.Minute)
		server.SetAnswer(nil)
		v := pages(tokens.Handler(user), 1200, 2*time.Second)
		cancel()
		accounts.wg.Wait()
		failed := accounts.count(0)
		t.Logf("%d of 1200 pages served, the slowest after %v; %d calls of accounts failed", v.count(200), v.longest(), failed)
		assert.Equal(t, 1200, v.count(200))
		assert.Less(t, v.longest(), time.Second)
		time.Sleep(20 * time.Minute)
	})
}

// A caller waits for the first token of a new account. No one waits for refreshes.
func TestANewAccountDoesNotWaitBehindRefreshes(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server, WithRate(15), WithCapacity(20_000))
		ctx, cancel := context.WithCancel(t.Context())
		accounts := use(ctx, t, tokens, 10_000, 30*time.Second)
		time.Sleep(15 * time.Minute)
		var waits []time.Duration
		for i := range 100 {
			source, err := tokens.Source(fmt.Sprintf("/accounts/new-%d/cards.read", i))
			require.NoError(t, err)
			start := time.Now()
			_, err = source.Token()
			require.NoError(t, err)
			waits = append(waits, time.Since(start))
			time.Sleep(6 * time.Second)
		}
		slices.Sort(waits)
		t.Logf("a new account waited %v at most, p50 %v", waits[99], waits[50])
		assert.LessOrEqual(t, waits[99], 200*time.Millisecond)
		cancel()
		accounts.wg.Wait()
		time.Sleep(20 * time.Minute)
	})
}

// The rate is too low for the accounts in use.
func TestPagesOfAnOverloadedPlatform(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes seconds")
	}
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		ctx, cancel := context.WithCancel(t.Context())
		accounts := use(ctx, t, tokens, 7500, time.Minute)
		time.Sleep(25 * time.Minute)
		v := pages(tokens.Handler(user), 300, 2*time.Second)
		t.Logf("%d of 300 pages served, the slowest after %v; needed: %.1f of 9.7", v.count(200), v.longest(), tokens.Stats().Needed)
		assert.Equal(t, 300, v.count(200))
		assert.Less(t, v.longest(), time.Second)
		cancel()
		accounts.wg.Wait()
		time.Sleep(20 * time.Minute)
	})
}

func TestSignOutDoesNotWaitBehindAccounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		minted, err := tokens.Mint(t.Context(), "/ping.read")
		require.NoError(t, err)
		var callers sync.WaitGroup
		for i := range 200 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			callers.Go(func() {
				_, err := source.Token()
				assert.NoError(t, err)
			})
		}
		synctest.Wait()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		start := time.Now()
		require.NoError(t, tokens.Revoke(ctx, minted.AccessToken))
		t.Logf("revoked after %v", time.Since(start))
		assert.LessOrEqual(t, time.Since(start), 300*time.Millisecond)
		assert.False(t, server.Alive(minted.AccessToken))
		callers.Wait()
	})
}

// The revocation of a source goes before refreshes.
func TestRevokeOfASourceDoesNotWaitBehindRefreshes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		_, took, _ := atOnce(t, server, 500, tokens.Source)
		time.Sleep(13*time.Minute - took)
		for i := range 500 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			_, err = source.Token() // starts a refresh
			require.NoError(t, err)
		}
		synctest.Wait()
		require.Greater(t, tokens.Stats().InLine, 400)
		source, err := tokens.Source(account(499)...)
		require.NoError(t, err)
		start := time.Now()
		require.NoError(t, source.Revoke(t.Context()))
		assert.Less(t, time.Since(start), time.Second)
		time.Sleep(5 * time.Minute)
	})
}

// apiOf returns a server whose accounts have cards. Calls that allow refuses get a 429.
func apiOf(allow func(account string) (retryAfter string, ok bool), opts ...moovtest.Option) *moovtest.Server {
	server := moovtest.NewInMemory(opts...)
	server.Handle("GET /accounts/{id}/cards", "/accounts/{id}/cards.read", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if retryAfter, ok := allow(r.PathValue("id")); !ok {
			w.Header().Set("Retry-After", retryAfter)
			w.WriteHeader(http.StatusTooManyRequests)
		}
	}))
	return server
}

// call calls the API for an account, and returns the status of the reply.
func call(t *testing.T, server *moovtest.Server, tokens *Tokens, account string) int {
	client, err := tokens.Client("/accounts/" + account + "/cards.read")
	require.NoError(t, err)
	resp, err := client.Get(server.URL + "/accounts/" + account + "/cards")
	require.NoError(t, err)
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode
}

func TestRefusedAPICallsDoNotDelayPages(t *testing.T) {
	for _, shared := range []bool{false, true} {
		t.Run(fmt.Sprintf("token requests count for the same limit: %v", shared), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				api := rate.NewLimiter(40, 40)
				opts := []moovtest.Option{moovtest.WithLatency(80 * time.Millisecond)}
				if shared {
					api = rate.NewLimiter(rate.Inf, 0)
					opts = append(opts, moovtest.WithRateLimit(40))
				}
				server := apiOf(func(string) (string, bool) { return "1", api.Allow() }, opts...)
				defer server.Close()
				tokens := newTokens(t, server, WithRate(20))
				require.Equal(t, 200, call(t, server, tokens, "a1"))
				ctx, cancel := context.WithCancel(t.Context())
				var calls sync.WaitGroup
				refused := 0
				var mu sync.Mutex
				calls.Go(func() {
					for ctx.Err() == nil {
						calls.Go(func() {
							if call(t, server, tokens, "a1") == http.StatusTooManyRequests {
								mu.Lock()
								refused++
								mu.Unlock()
							}
						})
						time.Sleep(time.Second / 42)
					}
				})
				v := pages(tokens.Handler(user), 300, time.Second)
				cancel()
				calls.Wait()
				t.Logf("%d of 300 pages served, the slowest after %v; %d API calls and %d token requests refused",
					v.count(200), v.longest(), refused, tokens.Stats().Refused)
				assert.Equal(t, 300, v.count(200))
				assert.Greater(t, refused, 300)
				if !shared {
					assert.LessOrEqual(t, v.longest(), 200*time.Millisecond)
					assert.Zero(t, tokens.Stats().Refused)
				}
			})
		})
	}
}

// The API asks one account to wait for an hour.
func TestOneAccountsRetryAfterStopsNoOtherAccount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := apiOf(func(account string) (string, bool) { return "3600", account != "a1" })
		defer server.Close()
		tokens := newTokens(t, server)
		assert.Equal(t, http.StatusTooManyRequests, call(t, server, tokens, "a1"))
		start := time.Now()
		assert.Equal(t, http.StatusOK, call(t, server, tokens, "a2"))
		_, err := tokens.Mint(t.Context(), "/ping.read")
		require.NoError(t, err)
		assert.Less(t, time.Since(start), 300*time.Millisecond)
		s := tokens.Stats()
		assert.Zero(t, s.Refused)
		assert.InDelta(t, 9.7, s.Rate, 1e-9)
	})
}

// A request that is refused keeps its place in the queue.
func TestARefusedRequestKeepsItsPlace(t *testing.T) {
	for name, want := range map[string]func(*Tokens, context.Context, int) error{
		"sources": func(tokens *Tokens, ctx context.Context, i int) error {
			source, err := tokens.Source(account(i)...)
			if err == nil {
				_, err = source.TokenContext(ctx)
			}
			return err
		},
		"mints": func(tokens *Tokens, ctx context.Context, i int) error {
			_, err := tokens.Mint(ctx, account(i)...)
			return err
		},
	} {
		for _, header := range []http.Header{{"Retry-After": {"3"}}, {}} {
			t.Run(fmt.Sprint(name, " ", header), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					server := moovtest.NewInMemory()
					defer server.Close()
					tokens := newTokens(t, server)
					server.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: header})
					var callers sync.WaitGroup
					for i := range 61 {
						callers.Go(func() { assert.NoError(t, want(tokens, t.Context(), i)) })
						synctest.Wait()
					}
					callers.Wait()
					seen := order(server)
					require.Len(t, seen, 62)
					for i, scope := range seen[1:] {
						require.Equal(t, strings.Join(set(account(i)), " "), scope, "it is served as number %d", i+1)
					}
				})
			})
		}
	}
}

// If interactive requests always wait, each other class still gets one turn in ten.
func TestNoClassStarves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		_, _, _ = atOnce(t, server, 100, tokens.Source)
		time.Sleep(13 * time.Minute)
		ctx, cancel := context.WithCancel(t.Context())
		var callers sync.WaitGroup
		for range 20 { // interactive requests
			callers.Go(func() {
				for ctx.Err() == nil {
					_, _ = tokens.Mint(ctx, "/ping.read")
				}
			})
		}
		for i := range 100 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			_, err = source.Token() // starts a refresh
			require.NoError(t, err)
			first, err := tokens.Source(fmt.Sprintf("/accounts/new-%d/cards.read", i))
			require.NoError(t, err)
			callers.Go(func() { _, _ = first.TokenContext(ctx) })
		}
		synctest.Wait()
		before := len(server.TokenRequests())
		time.Sleep(60 * time.Second)
		seen := server.TokenRequests()[before:]
		require.Greater(t, len(seen), 500)
		kinds := make([]string, len(seen))
		total := make(map[string]int)
		for i, r := range seen {
			switch scope := r.Form.Get("scope"); {
			case r.GrantType == "refresh_token":
				kinds[i] = "refresh"
			case scope == "/ping.read":
				kinds[i] = "interactive"
			default:
				kinds[i] = "account"
			}
			total[kinds[i]]++
		}
		t.Logf("of %d turns: %v", len(seen), total)
		for i := range len(kinds) - 9 {
			for _, kind := range []string{"interactive", "account", "refresh"} {
				require.Contains(t, kinds[i:i+10], kind, "turns %d to %d", i, i+9)
			}
		}
		assert.Greater(t, total["interactive"], 7*len(seen)/10)
		cancel()
		callers.Wait()
		time.Sleep(5 * time.Minute)
	})
}

// If a token expires while its refresh waits in the queue, callers wait for a new
// request in a higher class.
func TestATokenExpiresBeforeItsRefresh(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		tokens := newTokens(t, server)
		_, _, _ = atOnce(t, server, 10, tokens.Source)
		time.Sleep(13 * time.Minute)
		(&place{queue: tokens.queue}).Refused(5 * time.Minute) // until all have expired
		for i := range 10 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			_, err = source.Token()
			require.NoError(t, err)
		}
		synctest.Wait()
		assert.Equal(t, 10, tokens.queue.waiting[refreshes].Len())
		time.Sleep(3 * time.Minute)
		var callers sync.WaitGroup
		for i := range 5 { // the other accounts are not in use
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			callers.Go(func() {
				_, err := source.Token()
				assert.NoError(t, err)
			})
		}
		synctest.Wait()
		assert.Equal(t, 5, tokens.queue.waiting[accounts].Len())
		callers.Wait()
		time.Sleep(time.Minute)
		assert.Zero(t, tokens.Stats().InLine)
		assert.Len(t, server.TokenRequests(), 10+5, "a token that no one waits for is not requested")
	})
}
