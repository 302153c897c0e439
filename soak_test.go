package moovauth

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// recoveryTime is how long after the end of an outage a caller may still get
// an error: the timeout of a grant that hangs, and the longest cool-down, which
// is what a 429 of an outage asks for, with its jitter.
const recoveryTime = defaultTimeout + time.Minute + 6*time.Second

// wire is what a soaked source is connected to: a good server, with outages.
type wire struct {
	t      *testing.T
	server *moovtest.Server
	source *TokenSource

	mu       sync.Mutex           // guards what follows
	random   *rand.Rand           // of the jitter
	outage   string               // "": none
	until    time.Time            // when the last outage ends, or has ended
	granting int                  // token requests in progress
	requests int                  // token requests so far
	expiries map[string]time.Time // of all access tokens obtained, by the server's clock
	obtained []string             // all tokens
	wall     time.Duration        // how far the wall clock has been set
	stalled  time.Duration        // how long the monotonic clock has stood still
	frozen   *instant             // while it stands still
}

func (w *wire) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("%v: %s", time.Now().UTC().Format("Jan 2 15:04:05.000"), fmt.Sprintf(format, args...))
}

// clock is a clock that can be set and stopped.
func (w *wire) clock(real func() instant) func() instant {
	return func() instant {
		w.mu.Lock()
		defer w.mu.Unlock()
		now := real()
		now.wall += int64(w.wall)
		now.monotonic -= int64(w.stalled)
		if w.frozen != nil {
			now.monotonic = w.frozen.monotonic
		}
		return now
	}
}

// suspend lets d pass, of which the monotonic clock knows nothing.
func (w *wire) suspend(d time.Duration) {
	now := w.source.endpoint.clock()
	w.mu.Lock()
	w.frozen = &now
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	w.frozen = nil
	w.stalled += d
	w.mu.Unlock()
}

func (w *wire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	if time.Now().After(w.until) {
		w.outage = ""
	}
	outage := w.outage
	w.mu.Unlock()
	if r.URL.Path == tokenPath {
		if c := w.source.memory.load().cooling; c != nil && !(c.background && w.source.goodFor() == 0) && !w.source.endpoint.clock().reached(c.until) {
			w.failf("a token request during a cool-down of %v more", c.until.after(w.source.endpoint.clock()))
		}
		w.mu.Lock()
		w.requests++
		if w.granting++; w.granting > 1 {
			w.failf("%d token requests at once", w.granting)
		}
		w.mu.Unlock()
		defer func() {
			w.mu.Lock()
			w.granting--
			w.mu.Unlock()
		}()
	}
	switch outage {
	case "unreachable":
		return nil, errors.New("no route to host")
	case "silent":
		<-r.Context().Done()
		return nil, r.Context().Err()
	case "garbage":
		if r.URL.Path == tokenPath { // a revocation's body counts for nothing (RFC 7009 §2.2)
			return answer(r, 200, strings.NewReader("<html>")), nil
		}
	case "overloaded":
		resp := answer(r, 429, http.NoBody)
		resp.Header.Set("Retry-After", "60")
		return resp, nil
	case "down":
		return answer(r, 503, http.NoBody), nil
	}
	resp, err := w.server.Transport().RoundTrip(r)
	if err == nil && r.URL.Path == tokenPath && resp.StatusCode == 200 {
		w.record(resp)
	}
	return resp, err
}

// record notes the tokens that the source is about to get.
func (w *wire) record(resp *http.Response) {
	body, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	var reply struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int64  `json:"expires_in"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		w.failf("reply of the server: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expiries[reply.AccessToken] = time.Unix(reply.ExpiresIn, 0)
	w.obtained = append(w.obtained, reply.AccessToken, reply.RefreshToken)
}

// call asks for a token as a program would, and checks what it gets.
func (w *wire) call(ctx context.Context) (accessToken string) {
	began := time.Now()
	tok, err := w.source.TokenContext(ctx)
	took := time.Since(began)
	if deadline, ok := ctx.Deadline(); ok && time.Now().After(deadline) {
		w.failf("a caller came back %v after its deadline", time.Since(deadline))
	}
	if took > defaultTimeout {
		w.failf("a caller waited %v", took)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		// The server's clock is never set, and it is 30 years ahead of a bubble's.
		if expiry := w.expiries[tok.AccessToken]; !serverTime(time.Now()).Before(expiry) {
			w.failf("a token handed out %v past its expiry", serverTime(time.Now()).Sub(expiry))
		}
		return tok.AccessToken
	case ctx.Err() == nil && time.Since(w.until) > recoveryTime:
		w.failf("%v after the last outage: %v", time.Since(w.until), err)
	}
	return ""
}

// serverTime is what moovtest's clock shows in a bubble.
func serverTime(now time.Time) time.Time { return now.AddDate(30, 0, 0) }

// revoke revokes all, as a program would, and checks that nothing is left.
func (w *wire) revoke() {
	w.mu.Lock()
	before := len(w.obtained)
	w.mu.Unlock()
	if w.source.Revoke(context.Background()) != nil {
		return
	}
	for _, tok := range w.obtained[:before] {
		if w.server.Alive(tok) {
			w.failf("a token is alive after Revoke")
		}
	}
}

// A month of calls, with 15-minute tokens and all that can go wrong.
// SOAK_SEED=n go test -run TestSoak repeats one.
func TestSoak(t *testing.T) {
	t.Parallel()
	seed := uint64(20261123)
	if text := os.Getenv("SOAK_SEED"); text != "" {
		var err error
		seed, err = strconv.ParseUint(text, 10, 64)
		require.NoError(t, err)
	}
	days := 30
	if testing.Short() {
		days = 3
	}
	synctest.Test(t, func(t *testing.T) {
		random := rand.New(rand.NewPCG(seed, 1))
		w := &wire{t: t, server: inMemory(t), random: rand.New(rand.NewPCG(seed, 2)), expiries: make(map[string]time.Time)}
		w.source = sourceOf(t, w.server, WithHTTPClient(&http.Client{Transport: w}))
		w.source.endpoint.random = func() float64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.random.Float64()
		}
		w.source.endpoint.clock = w.clock(w.source.endpoint.clock)

		var last string // the token of the last call
		between := func(least, most time.Duration) time.Duration {
			return least + time.Duration(random.Int64N(int64(most-least)))
		}
		outages := []string{"unreachable", "silent", "garbage", "overloaded", "down"}
		clocks := []func(){
			func() {
				w.mu.Lock()
				defer w.mu.Unlock()
				w.wall += between(-time.Hour, time.Hour)
			},
			func() { w.suspend(between(time.Minute, time.Hour)) },
		}
		counts := make(map[string]int)
		bound := 0 // of the token requests
		events := []struct {
			name string
			do   func()
		}{
			{"outage", func() {
				w.mu.Lock()
				w.outage, w.until = outages[random.IntN(len(outages))], time.Now().Add(between(time.Second, 40*time.Minute))
				w.mu.Unlock()
			}},
			{"refresh token refused", func() {
				for _, tok := range w.server.RefreshTokens() {
					w.server.Revoke(tok)
				}
			}},
			{"tokens revoked by the server", func() {
				w.server.RevokeAll()
				w.source.Invalidate(last)
			}},
			{"tokens revoked by the program", w.revoke},
			{"current token invalidated", func() { w.source.Invalidate(last) }},
			{"other token invalidated", func() { w.source.Invalidate("other") }},
			{"callers cancelled", func() {
				w.server.SetLatency(between(time.Millisecond, 5*time.Second))
				w.source.Invalidate(last)
				var callers sync.WaitGroup
				for range 5 {
					ctx, cancel := context.WithTimeout(t.Context(), between(time.Millisecond, 6*time.Second))
					callers.Go(func() {
						defer cancel()
						w.call(ctx)
					})
				}
				if random.IntN(4) == 0 {
					w.revoke()
				}
				callers.Wait()
				w.server.SetLatency(0)
			}},
			{"clock", func() { clocks[int(time.Now().Unix()/86400)%2]() }}, // not both within a token's life
		}

		calls, began := 0, time.Now()
		for day := range days {
			for time.Since(began) < time.Duration(day+1)*24*time.Hour-time.Hour {
				if random.IntN(40) == 0 {
					event := events[random.IntN(len(events))]
					event.do()
					counts[event.name]++
					bound += 2 // a refresh grant, and client credentials if it is refused
				}
				var others sync.WaitGroup
				for range random.IntN(3) {
					others.Go(func() { w.call(t.Context()) })
				}
				if tok := w.call(t.Context()); tok != "" {
					last = tok
				}
				others.Wait()
				if calls++; time.Since(w.until) < recoveryTime {
					bound += maxAttempts // of the one flight that a call may start
				}
				time.Sleep(between(100*time.Millisecond, time.Minute))
				if t.Failed() {
					t.Fatalf("SOAK_SEED=%d", seed)
				}
			}
			time.Sleep(time.Until(began.Add(time.Duration(day+1) * 24 * time.Hour))) // the clock is left alone for an hour
		}
		synctest.Wait()
		bound += int(time.Since(began) / (15*time.Minute - 3*time.Minute - maxLeeway)) // early refreshes
		require.LessOrEqual(t, w.requests, bound, "token requests")
		t.Logf("SOAK_SEED=%d: %d days, %d calls, %d token requests (at most %d), %v", seed, days, calls, w.requests, bound, counts)
	})
}
