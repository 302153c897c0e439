package platform

// One limit for a whole fleet: how the queue uses a shared limiter.

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
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

// turns is a limiter whose Wait grants a turn for each value sent on next, and
// returns an error for each value sent on fail.
type turns struct {
	next chan struct{}
	fail chan error

	mu      sync.Mutex
	asking  int
	most    int // calls at the same time
	unused  int
	refused []time.Duration
}

func newTurns() *turns { return &turns{next: make(chan struct{}), fail: make(chan error)} }

func (l *turns) Wait(ctx context.Context) error {
	l.mu.Lock()
	l.asking++
	l.most = max(l.most, l.asking)
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.asking--
		l.mu.Unlock()
	}()
	if _, ok := ctx.Deadline(); ok {
		return errors.New("there is a deadline")
	}
	select {
	case <-l.next:
		return nil
	case err := <-l.fail:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (l *turns) Refused(retryAfter time.Duration) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.refused = append(l.refused, retryAfter)
}

func (l *turns) Unused() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.unused++
}

// give grants n turns, and waits for the effect of each.
func (l *turns) give(n int) {
	for range n {
		l.next <- struct{}{}
		synctest.Wait()
	}
}

// A turn goes to the request that is first when Wait returns, even if another request
// was first when Wait was called.
func TestATurnGoesToTheFirstInTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		l := newTurns()
		tokens := newTokens(t, server, WithLimiter(l))
		var callers sync.WaitGroup
		for i := range 20 {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			callers.Go(func() {
				_, err := source.Token()
				assert.NoError(t, err)
			})
			synctest.Wait()
		}
		assert.Equal(t, 8, l.most, "calls to Wait at the same time")
		callers.Go(func() {
			_, err := tokens.Mint(t.Context(), "/ping.read")
			assert.NoError(t, err)
		})
		synctest.Wait()
		time.Sleep(time.Hour) // much more than WithTimeout, which does not count this time
		l.give(3)
		want := []string{"/ping.read", strings.Join(set(account(0)), " "), strings.Join(set(account(1)), " ")}
		assert.Equal(t, want, order(server))
		l.give(18)
		callers.Wait()
		assert.Len(t, server.AccessTokens(), 21)
		assert.Equal(t, 8, l.most)
		assert.Zero(t, l.unused)
		assert.Zero(t, l.asking, "no request waits, and Wait is not called")
	})
}

func TestATurnThatNoRequestNeeds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		l := newTurns()
		tokens := newTokens(t, server, WithLimiter(l))
		ctx, cancel := context.WithCancel(t.Context())
		var pages sync.WaitGroup
		for range 5 {
			pages.Go(func() {
				_, err := tokens.Mint(ctx, "/ping.read")
				assert.ErrorIs(t, err, context.Canceled)
			})
		}
		synctest.Wait()
		cancel()
		pages.Wait()
		l.give(5)
		assert.Equal(t, 5, l.unused)
		assert.Empty(t, server.TokenRequests())
	})
}

// If the token is in the cache when its turn comes, the next request gets the turn.
func TestATurnForATokenThatIsInTheCache(t *testing.T) {
	for _, more := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			server := moovtest.NewInMemory()
			defer server.Close()
			l, cache := newTurns(), &memory{entries: make(map[string][]byte)}
			withCache := WithSource(moovauth.WithCache(cache))
			here, there := newTokens(t, server, WithLimiter(l), withCache), newTokens(t, server, withCache)
			var callers sync.WaitGroup
			want := func(tokens *Tokens, i int) {
				source, err := tokens.Source(account(i)...)
				require.NoError(t, err)
				callers.Go(func() {
					_, err := source.Token()
					assert.NoError(t, err)
				})
				synctest.Wait()
			}
			want(here, 0)
			if more {
				want(here, 1)
			}
			want(there, 0)
			l.give(1)
			if more {
				assert.Zero(t, l.unused, "another request used the turn")
				l.give(1) // the turn that the first request asked for
			}
			assert.Equal(t, 1, l.unused)
			callers.Wait()
			assert.Len(t, server.TokenRequests(), map[bool]int{false: 1, true: 2}[more])
		})
	}
}

// memory is a cache in memory.
type memory struct {
	mu      sync.Mutex
	entries map[string][]byte
}

func (m *memory) Get(_ context.Context, key string) ([]byte, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.entries[key], nil
}

func (m *memory) Put(_ context.Context, key string, data []byte) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[key] = bytes.Clone(data)
	return nil
}

func (m *memory) Delete(_ context.Context, key string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.entries, key)
	return nil
}

// While the shared limiter fails, the process keeps to its own rate.
func TestTheSharedLimiterFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory()
		defer server.Close()
		l := newTurns()
		var records safeBuffer
		tokens := newTokens(t, server, WithLimiter(l), WithLogger(slog.New(slog.NewTextHandler(&records, nil))))
		down := make(chan struct{})
		go func() {
			for {
				select {
				case l.fail <- errors.New("no connection"):
				case <-down:
					return
				}
			}
		}()
		failed, took, _ := atOnce(t, server, 100, tokens.Source)
		assert.Zero(t, failed)
		assert.InDelta(t, 100/9.7, took.Seconds(), 0.2)
		assert.Equal(t, 1, strings.Count(records.String(), "no connection"), records.String())
		close(down) // the limiter works again

		time.Sleep(time.Minute)
		var caller sync.WaitGroup
		caller.Go(func() {
			_, err := tokens.Mint(t.Context(), "/ping.read")
			assert.NoError(t, err)
		})
		synctest.Wait()
		assert.Equal(t, 1, l.asking)
		l.give(1)
		caller.Wait()
	})
}

// The shared limiter is told of 429s to token requests, but not of 429s to API calls.
func TestTheSharedLimiterIsToldOf429s(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := apiOf(func(string) (string, bool) { return "60", false })
		defer server.Close()
		l := newTurns()
		tokens := newTokens(t, server, WithLimiter(l))
		server.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"2"}}})
		go l.give(2)
		assert.Equal(t, http.StatusTooManyRequests, call(t, server, tokens, "a1"))
		assert.Equal(t, []time.Duration{2 * time.Second}, l.refused)
		assert.EqualValues(t, 1, tokens.Stats().Refused)
	})
}

// Three processes share one limiter. Together they keep to its rate, and the busiest
// process gets what the others do not use.
func TestAFleetOnOneLimiter(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithRateLimit(40), moovtest.WithLatency(80*time.Millisecond))
		defer server.Close()
		shared := rate.NewLimiter(0.97*40, 1)
		start := time.Now()
		var processes sync.WaitGroup
		for p, accounts := range []int{1400, 300, 300} {
			tokens := newTokens(t, server, WithLimiter(shared))
			processes.Go(func() {
				failed, _, _ := atOnce(t, server, accounts, func(scopes ...string) (*moovauth.TokenSource, error) {
					return tokens.Source(append(scopes, strings.Repeat("/p", p+1))...)
				})
				assert.Zero(t, failed)
			})
		}
		processes.Wait()
		took := time.Since(start)
		t.Logf("%.3f of the floor, %d refused", took.Seconds()/50, len(server.TokenRequests())-2000)
		assert.Less(t, took.Seconds(), 1.05*50)
		assert.Len(t, server.TokenRequests(), 2000)
	})
}
