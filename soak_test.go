package moovauth

// This file tests sources under failures: a month of one source and a day of a
// fleet, in fake time, and each fault of a network and of a server, over real
// connections.

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"runtime"
	"runtime/metrics"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
	"github.com/moovauth/moovauth/moovtest"
)

// recoveryTime is how long after the end of an outage a caller may still get an
// error. It is the timeout of a grant that hangs, plus the longest cool-down.
// The longest cool-down is the wait that a 429 of an outage asks for, with
// jitter.
const recoveryTime = defaultTimeout + time.Minute + 6*time.Second

// soakedWire connects a source to a good server, with outages. It also checks
// the requests of the source.
type soakedWire struct {
	t      *testing.T
	server *moovtest.Server
	source *TokenSource

	mu       sync.Mutex           // guards the fields below
	random   *rand.Rand           // for the jitter
	outage   string               // "": none
	until    time.Time            // when the last outage ends or ended
	granting int                  // token requests in progress
	requests int                  // token requests so far
	expiries map[string]time.Time // of all access tokens that were obtained
	obtained []string             // all tokens that were obtained
	wall     time.Duration        // how far the wall clock has been set forward
	stalled  time.Duration        // how long the monotonic clock has stood still
	frozen   *instant             // the time on a monotonic clock that stands still; nil: it runs
}

func (w *soakedWire) failf(format string, args ...any) {
	w.t.Helper()
	w.t.Errorf("%v: %s", time.Now().UTC().Format("Jan 2 15:04:05.000"), fmt.Sprintf(format, args...))
}

// clock returns a clock that can be set and stopped.
func (w *soakedWire) clock(real func() instant) func() instant {
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

// suspend lets d pass while the monotonic clock stands still, as on a suspended
// machine.
func (w *soakedWire) suspend(d time.Duration) {
	now := w.source.core.config.clock()
	w.mu.Lock()
	w.frozen = &now
	w.mu.Unlock()
	time.Sleep(d)
	w.mu.Lock()
	w.frozen = nil
	w.stalled += d
	w.mu.Unlock()
}

func (w *soakedWire) RoundTrip(r *http.Request) (*http.Response, error) {
	w.mu.Lock()
	if time.Now().After(w.until) {
		w.outage = ""
	}
	outage := w.outage
	w.mu.Unlock()
	isToken := r.URL.Path == endpointPath+opToken
	if isToken {
		now, known := w.source.core.config.clock(), w.source.core.state.load()
		if c := known.coolDown; c != nil && !(c.background && known.usable(now) == nil) && !now.reached(c.until) {
			w.failf("a token request during a cool-down of %v more", now.until(c.until))
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
		return errorPage(r, http.StatusOK), nil
	case "overloaded":
		resp := errorPage(r, http.StatusTooManyRequests)
		resp.Header.Set("Retry-After", "60")
		return resp, nil
	case "down":
		return errorPage(r, http.StatusServiceUnavailable), nil
	}
	resp, err := w.server.Transport().RoundTrip(r)
	if err == nil && isToken && resp.StatusCode == http.StatusOK {
		w.record(resp)
	}
	return resp, err
}

// record notes the tokens that the source is about to receive.
func (w *soakedWire) record(resp *http.Response) {
	body, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	var reply struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
	}
	if err := json.Unmarshal(body, &reply); err != nil {
		w.failf("reply of the server: %v", err)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.expiries[reply.AccessToken] = time.Now().Add(15 * time.Minute)
	w.obtained = append(w.obtained, reply.AccessToken, reply.RefreshToken)
}

// call asks for a token as a program would, and checks the result.
func (w *soakedWire) call(ctx context.Context) (accessToken string) {
	began := time.Now()
	tok, err := w.source.TokenContext(ctx)
	took := time.Since(began)
	if deadline, ok := ctx.Deadline(); ok && time.Now().After(deadline) {
		w.failf("a caller came back %v after its deadline", time.Since(deadline))
	}
	if took > defaultTimeout+grace {
		w.failf("a caller waited %v", took)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	switch {
	case err == nil:
		if expiry := w.expiries[tok.AccessToken]; !time.Now().Before(expiry) {
			w.failf("a token was returned %v past its expiry", time.Since(expiry))
		}
		return tok.AccessToken
	case ctx.Err() == nil && time.Since(w.until) > recoveryTime:
		w.failf("%v after the last outage: %v", time.Since(w.until), err)
	}
	return ""
}

// revoke calls Revoke as a program would, and checks that no token is left.
func (w *soakedWire) revoke() {
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

// TestSoak makes calls for a month, with 15-minute tokens. To repeat a month,
// run SOAK_SEED=n go test -run TestSoak.
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
		w := &soakedWire{t: t, server: inMemory(t), random: rand.New(rand.NewPCG(seed, 2)), expiries: make(map[string]time.Time)}
		w.source = sourceOf(t, w.server, WithHTTPClient(&http.Client{Transport: w}))
		w.source.core.config.random = func() float64 {
			w.mu.Lock()
			defer w.mu.Unlock()
			return w.random.Float64()
		}
		w.source.core.config.clock = w.clock(w.source.core.config.clock)

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
		bound := 0 // the most token requests that are allowed
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
			{"clock", func() { clocks[int(time.Now().Unix()/86400)%2]() }}, // one kind a day, so that a token does not meet both
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
					bound += maxAttempts // for the one flight that a call may start
				}
				time.Sleep(between(100*time.Millisecond, time.Minute))
				if t.Failed() {
					t.Fatalf("SOAK_SEED=%d", seed)
				}
			}
			time.Sleep(time.Until(began.Add(time.Duration(day+1) * 24 * time.Hour))) // no event happens in the last hour of a day
		}
		synctest.Wait()
		bound += int(time.Since(began) / (15*time.Minute - 3*time.Minute - maxLeeway)) // for early refreshes
		require.LessOrEqual(t, w.requests, bound, "token requests")
		t.Logf("SOAK_SEED=%d: %d days, %d calls, %d token requests (at most %d), %v", seed, days, calls, w.requests, bound, counts)
	})
}

// brokenCache is a lockingCache with a fault that a test can change.
type brokenCache struct {
	*lockingCache
	fault atomic.Value // a string; "": no fault
}

func (c *brokenCache) is(fault string) bool { return c.fault.Load() == fault }

func (c *brokenCache) try(ctx context.Context) error {
	switch c.fault.Load() {
	case "down":
		return errors.New("no route to cache")
	case "silent":
		<-ctx.Done()
		return ctx.Err()
	}
	return nil
}

func (c *brokenCache) Get(ctx context.Context, key string) ([]byte, error) {
	if err := c.try(ctx); err != nil {
		return nil, err
	}
	data, err := c.lockingCache.Get(ctx, key)
	if c.is("damaged") && len(data) > 0 {
		data = bytes.Clone(data)
		data[len(data)/2] ^= 1
	}
	return data, err
}

func (c *brokenCache) Put(ctx context.Context, key string, data []byte) error {
	if err := c.try(ctx); err != nil {
		return err
	}
	return c.lockingCache.Put(ctx, key, data)
}

func (c *brokenCache) Delete(ctx context.Context, key string) error {
	if err := c.try(ctx); err != nil {
		return err
	}
	return c.lockingCache.Delete(ctx, key)
}

func (c *brokenCache) Lock(ctx context.Context, key string) (func(), error) {
	if err := c.try(ctx); err != nil {
		return nil, err
	}
	return c.lockingCache.Lock(ctx, key)
}

// A fleet of six sources works for a day, while the cache, the endpoint and the
// processes fail at random. While the endpoint is up, each call gets a token,
// and within a few seconds it gets a token that the server accepts.
func TestFleetSoak(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // avoids a crash of the race detector itself: see golang/go#78156
	seeds := uint64(2)
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			server := inMemory(t, moovtest.WithLatency(200*time.Millisecond))
			cache := &brokenCache{lockingCache: newLockingCache()}
			cache.latency = time.Millisecond
			cache.fault.Store("")
			start := func() *TokenSource { return sourceOf(t, server, WithCache(cache)) }
			fleet := make([]*TokenSource, 6)
			for i := range fleet {
				fleet[i] = start()
			}
			var up, killed time.Time  // when the last outage ended, and when tokens were last revoked
			down, refused := false, 0 // refused counts the requests in outages
			for began := time.Now(); time.Since(began) < 24*time.Hour; {
				switch random.IntN(60) {
				case 0:
					if !down {
						refused -= len(server.TokenRequests())
					}
					down = true
					status := pick(random.IntN, http.StatusServiceUnavailable, http.StatusTooManyRequests, http.StatusUnauthorized)
					server.SetAnswer(&moovtest.Answer{Status: status, Header: http.Header{"Retry-After": {"5"}}})
				case 1, 2, 3:
					if down {
						up, down = time.Now(), false
						server.SetAnswer(nil)
						refused += len(server.TokenRequests())
					}
				case 4:
					cache.fault.Store(pick(random.IntN, "down", "silent", "damaged"))
				case 5, 6:
					cache.fault.Store("")
				case 7:
					fleet[random.IntN(len(fleet))] = start()
				case 8:
					if random.IntN(10) == 0 {
						server.RevokeAll()
						killed = time.Now()
					}
				case 9:
					if random.IntN(10) == 0 && !down {
						if err := fleet[random.IntN(len(fleet))].Revoke(t.Context()); err != nil && time.Since(up) > time.Minute && cache.is("") {
							t.Errorf("seed %d: Revoke: %v", seed, err)
						}
						killed = time.Now()
					}
				}
				var all sync.WaitGroup
				for i, s := range fleet {
					if random.IntN(3) == 0 {
						continue // this source makes no call this time
					}
					all.Go(func() {
						ctx, cancel := context.WithTimeout(t.Context(), defaultTimeout+time.Second)
						defer cancel()
						for tries := 0; ; tries++ {
							tok, err := s.TokenContext(ctx)
							switch {
							case down || time.Since(up) < time.Minute || err == nil && server.Alive(tok.AccessToken):
								return
							case err != nil:
								t.Errorf("seed %d, source %d: %v", seed, i, err)
								return
							case time.Since(killed) > time.Hour || tries > 5:
								t.Errorf("seed %d, source %d: a dead token, %d times", seed, i, tries)
								return
							}
							s.Invalidate(tok.AccessToken)
							time.Sleep(time.Second)
						}
					})
				}
				all.Wait()
				time.Sleep(time.Duration(random.Int64N(int64(2 * time.Minute))))
			}
			time.Sleep(time.Hour)
			assert.Empty(t, cache.held, "seed %d: the lock is free", seed)
			if down {
				refused += len(server.TokenRequests())
			}
			served := len(server.TokenRequests()) - refused
			assert.Less(t, served, 500, "seed %d", seed)
			t.Logf("seed %d: %d token requests, and %d in outages", seed, served, refused)
		})
	}
}

const (
	mebibyte = 1 << 20

	hangCap  = 60 * time.Second // a call that takes longer hangs
	mostHeap = 16 * mebibyte    // the most memory that a flood may take

	// The server issues this token during a fault. No error may contain the
	// token, whether the source has received it or not.
	faultyToken = "faulty-access-token"
	faultyReply = `{"access_token":"` + faultyToken + `","token_type":"Bearer","expires_in":900,"scope":"/ping.read"}`

	okHeader = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"

	elsewhere = "https://127.0.0.1:1/oauth2/token" // where no one listens
)

// fault is something that goes wrong on a connection, and what follows from it.
type fault struct {
	name string
	how  func(*rig)
	want outcome
}

// outcome is what follows from a fault: a token, an error, or a request that
// hangs.
type outcome struct {
	tries  int           // the number of requests
	life   time.Duration // of the token; 0: there is no token, and the fields below describe the error
	status int           // of the *Error; 0: the error is not an *Error
	hangs  bool          // the request hangs until WithTimeout ends it
	text   string        // a part of the error's text
}

func lives(life time.Duration) outcome { return outcome{tries: 1, life: life} }

func fails(tries int, text string) outcome { return outcome{tries: tries, text: text} }

func hangs(text string) outcome { return outcome{tries: 1, hangs: true, text: text} }

func refuses(tries, status int, text string) outcome {
	return outcome{tries: tries, status: status, text: text}
}

// floods returns faults whose replies are too large to be held in memory.
func floods() []fault {
	zeros := strings.Repeat("\x00", mebibyte)
	return []fault{
		{"body of 1 GiB", repeats(okHeader+"Content-Length: 1073741824\r\n\r\n", zeros, 1024), fails(3, "larger than 1048576 bytes")},
		{"body of 1 GiB in a gzip bomb", repeats(okHeader+"Content-Encoding: gzip\r\nConnection: close\r\n\r\n", zipped(zeros), 1024), fails(3, "larger than 1048576 bytes")},
	}
}

// wireFaults returns the faults of a connection, of TLS, of HTTP, and of the
// reply. The tests in reply_test.go cover the members of a reply.
func wireFaults() []fault {
	const fifteen = 15 * time.Minute
	return []fault{
		// The connection.
		{"connection refused", through(closedPort), fails(3, "connection refused")},
		{"connection never made", through(unreachable), hangs("token request")},
		{"reset before the header", raw("", reset), fails(3, "reset")},
		{"reset during the header", raw(okHeader, reset), fails(3, "connection broken")},
		{"reset after the header", raw(okHeader+"Content-Length: 900\r\n\r\n"+`{"access_`, reset), fails(3, "reading the reply")},
		{"close before the header", raw("", closeAtOnce), fails(3, "EOF")},
		{"close during the header", raw(okHeader, closeAtOnce), fails(3, "EOF")},
		{"close by an aborted handler", answers(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), fails(3, "EOF")},
		{"silence", raw("", silence), hangs("token request")},
		{"silence during the header", raw(okHeader, silence), hangs("token request")},
		{"silence after the header", raw(okHeader+"Content-Length: 900\r\n\r\n"+`{"access_`, silence), hangs("reading the reply")},
		{"silence after a good reply that has no end", raw(okHeader+fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(faultyReply), faultyReply), silence), hangs("reading the reply")},
		{"silence after switching protocols", raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", silence), refuses(1, 101, "answered 101")},
		{"header that trickles", raw("HTTP/1.1 200 OK\r\nX-Filler: ", trickle), hangs("token request")},
		{"body that trickles", trickles(20 * time.Millisecond), hangs("reading the reply")},
		{"body that trickles in time", trickles(time.Millisecond), lives(fifteen)},

		// TLS.
		{"certificate not trusted", withTLS(through(untrusting)), fails(1, "check WithBaseURL, the clock, and the root certificates")},
		{"certificate of another host", withTLS(through(misnaming)), fails(1, "not moov.test")},
		{"silence in the TLS handshake", withTLS(through(silent)), hangs("token request")},
		{"plain HTTP instead of TLS", withTLS(through(plain)), fails(1, "does not speak TLS")},
		{"good reply over HTTP/2", overHTTP2(says(200, faultyReply)), lives(fifteen)},
		{"stream reset over HTTP/2", overHTTP2(answers(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })), fails(3, "stream error")},
		{"silence over HTTP/2", overHTTP2(answers(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })), hangs("token request")},

		// HTTP.
		{"good reply over HTTP/1.0", raw("HTTP/1.0 200 OK\r\n\r\n"+faultyReply, closeAtOnce), lives(fifteen)},
		{"good reply in gzip", says(200, zipped(faultyReply), "Content-Encoding", "gzip"), lives(fifteen)},
		{"invalid gzip", says(200, faultyReply, "Content-Encoding", "gzip"), fails(3, "gzip")},
		{"not HTTP", raw("SSH-2.0-OpenSSH_9.9\r\n", closeAtOnce), fails(3, "malformed HTTP response")},
		{"not HTTP, with the secret in it", raw("secret moovtest-secret-key\r\n\r\n", closeAtOnce), fails(3, "malformed HTTP")},
		{"not HTTP, but a token", raw(faultyReply+"\r\n\r\n", closeAtOnce), fails(3, "not shown")},
		{"header line without a colon", raw("HTTP/1.1 200 OK\r\n"+faultyReply+"\r\n\r\n", closeAtOnce), fails(3, "token request")},
		{"header over 10 MB", repeats("HTTP/1.1 200 OK\r\n", "X-Filler: "+strings.Repeat("a", mebibyte)+"\r\n", 1024), fails(3, "headers exceeded 10485760 bytes")},
		{"early hints without end", repeats("", "HTTP/1.1 103 Early Hints\r\nX-Filler: "+strings.Repeat("a", mebibyte)+"\r\n\r\n", 1024), fails(3, "token request")},
		{"body longer than Content-Length", raw(okHeader+"Connection: close\r\nContent-Length: 9\r\n\r\n"+faultyReply, closeAtOnce), fails(3, "JSON")},
		{"body shorter than Content-Length", raw(okHeader+"Content-Length: 900\r\n\r\n"+faultyReply, closeAtOnce), fails(3, "unexpected EOF")},
		{"two Content-Lengths", raw(okHeader+"Content-Length: 97\r\nContent-Length: 9\r\n\r\n"+faultyReply, closeAtOnce), fails(3, "Content-Length")},
		{"broken chunk", raw(okHeader+"Transfer-Encoding: chunked\r\n\r\nzz\r\n"+faultyReply+"\r\n", closeAtOnce), fails(3, "reading the reply")},

		// The reply.
		{"307", says(307, "", "Location", elsewhere), refuses(1, 307, "WithBaseURL")},
		{"204", says(204, ""), fails(3, "JSON")},
		{"HTML", says(200, "<html>Sign in</html>", "Content-Type", "text/html"), fails(3, "is a proxy in between?")},
		{"two objects", says(200, faultyReply+faultyReply), fails(3, "JSON")},
		{"duplicate members", says(200, `{"access_token":"first","expires_in":7,`+faultyReply[1:]), lives(fifteen)},
		{"nesting 100,000 deep", says(200, `{"more":`+strings.Repeat("[", 1e5)+strings.Repeat("]", 1e5)+","+faultyReply[1:]), fails(3, "JSON")},
		{"access_token of 64 KiB", says(200, `{"access_token":"`+strings.Repeat("a", 64<<10)+`","expires_in":900}`), lives(fifteen)},
		{"400 with a body that is cut off", raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 900\r\n\r\n"+`{"error":"inv`, closeAtOnce), refuses(1, 400, "400 Bad Request")},
		{"400 with a body of more than 1 MiB", says(400, strings.Repeat("a", mebibyte+1)), refuses(1, 400, "400 Bad Request")},
		{"400 that echoes the request", echoes(400), refuses(1, 400, redact.Mask)},
		{"429, Retry-After longer than the timeout", says(429, "", "Retry-After", "60"), refuses(1, 429, "not retried")},
		{"500 with a token", says(500, faultyReply), refuses(3, 500, "after 3 attempts")},
	}
}

func TestFaultsOnTheWire(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	baseline := runtime.NumGoroutine()
	for _, f := range floods() {
		for name, run := range f.grants() {
			took := highWater(func() { t.Run(name, run) })
			assert.Less(t, took, uint64(mostHeap), name)
		}
	}
	for waits, atOnce := range map[bool]int{false: 2, true: 8} { // requests that hang need little CPU time
		t.Run(fmt.Sprintf("%d at once", atOnce), func(t *testing.T) {
			places := make(chan struct{}, atOnce)
			var all sync.WaitGroup
			defer all.Wait()
			for _, f := range wireFaults() {
				for name, run := range f.grants() {
					if f.want.hangs == waits {
						places <- struct{}{}
						all.Go(func() {
							t.Run(name, run)
							<-places
						})
					}
				}
			}
		})
	}
	assert.Eventually(t, func() bool {
		return runtime.NumGoroutine()-1 <= baseline // one goroutine evaluates this condition
	}, hangCap, 10*time.Millisecond, "a goroutine is left")
}

// grants returns two tests of the fault, by name.
func (f fault) grants() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		f.name + ", blocking":   func(t *testing.T) { f.run(t, false) },
		f.name + ", background": func(t *testing.T) { f.run(t, true) },
	}
}

// run tests one grant during the fault. A caller waits for the grant, or the
// grant runs in the background while callers get a stale token.
func (f fault) run(t *testing.T, inBackground bool) {
	r := newRig(t, f.how)
	timeout := 30 * time.Second
	if f.want.hangs {
		timeout = 500 * time.Millisecond
	}
	var log syncBuffer
	s := noJitter(sourceOf(t, r.good, WithBaseURL(r.front.URL), WithHTTPClient(&http.Client{Transport: r}), WithTimeout(timeout),
		WithLogger(slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug})))))
	clock := s.core.config.clock
	s.core.config.clock = func() instant { return clock().add(time.Duration(r.ahead.Load())) }
	ended := func() bool { return !s.core.flights.refreshing.Load() }

	before := new(oauth2.Token)
	if inBackground {
		before = token(t, s)
		r.ahead.Store(int64(13 * time.Minute)) // after the refresh point
	}
	r.faulty.Store(true)
	if !inBackground {
		close(r.begin)
	}
	tok, err := tokenInTime(t, s)
	if inBackground {
		close(r.begin) // until here, no request is made: Token cannot have waited for one
		require.NoError(t, err)
		require.Equal(t, before.AccessToken, tok.AccessToken, "the stale token is returned at once")
		require.Eventually(t, ended, hangCap, time.Millisecond, "the background grant hangs")
	}
	assert.EqualValues(t, f.want.tries, r.tries.Load(), "requests")
	if inBackground {
		tok, err = tokenInTime(t, s)
		require.NoError(t, err)
		require.Eventually(t, ended, hangCap, time.Millisecond) // if the cool-down was over, this call started another grant
		require.Equal(t, f.want.life == 0, tok.AccessToken == before.AccessToken, "the token stays if there is no new one")
		if f.want.life == 0 {
			err = s.Stats().LastError
			assert.Contains(t, log.String(), "no token obtained")
		}
	}
	f.want.check(t, tok, err)

	sight := fmt.Sprintf("%v %+v %#v %s", err, err, err, log.String())
	basic := base64.StdEncoding.EncodeToString([]byte(r.good.ClientID + ":" + r.good.ClientSecret))
	for _, secret := range append(r.good.AccessTokens(), r.good.ClientSecret, basic, faultyToken) {
		if strings.Contains(sight, secret) {
			assert.Fail(t, "a secret is shown", "%s, in:\n%s", secret, sight)
		}
	}

	r.faulty.Store(false)
	r.ahead.Add(int64(f.want.life + maxAsked + time.Minute)) // after the token's expiry and any cool-down
	again, err := tokenInTime(t, s)
	require.NoError(t, err, "the source recovers")
	assert.NotEqual(t, before.AccessToken, again.AccessToken)
	assert.True(t, r.good.Alive(again.AccessToken))

	r.closeIdleConnections()
	assert.Eventually(t, func() bool { return r.open.Load() == 0 }, hangCap, time.Millisecond, "a connection leaks")
}

func (want outcome) check(t *testing.T, tok *oauth2.Token, err error) {
	if want.life > 0 {
		require.NoError(t, err)
		assert.InDelta(t, want.life.Seconds(), tok.ExpiresIn, 60)
		assert.Equal(t, "Bearer", tok.TokenType)
		return
	}
	require.ErrorContains(t, err, want.text)
	assert.Equal(t, want.hangs, errors.Is(err, context.DeadlineExceeded), err)
	var answered *Error
	if !errors.As(err, &answered) {
		answered = new(Error)
	}
	assert.Equal(t, want.status, answered.StatusCode, err)
}

// tokenInTime calls s.Token, and fails the test if the call hangs.
func tokenInTime(t *testing.T, s *TokenSource) (tok *oauth2.Token, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		tok, err = s.Token()
	}()
	select {
	case <-done:
		return tok, err
	case <-time.After(hangCap):
		require.FailNow(t, "Token hangs")
		return nil, nil
	}
}

// syncBuffer is a buffer that can be read while it is written.
type syncBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// highWater returns the most heap that was in use during f, above what was in
// use before.
func highWater(f func()) uint64 {
	inUse := func() uint64 {
		sample := []metrics.Sample{{Name: "/memory/classes/heap/objects:bytes"}}
		metrics.Read(sample)
		return sample[0].Value.Uint64()
	}
	runtime.GC()
	idle := inUse()
	most := idle
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for tick := time.Tick(time.Millisecond); ; {
			select {
			case <-tick:
				most = max(most, inUse())
			case <-stop:
				return
			}
		}
	}()
	f()
	close(stop)
	<-stopped
	return most - idle
}

// rig connects a source with its server, and can put a fault between them.
type rig struct {
	t      *testing.T
	good   *moovtest.Server // answers while there is no fault
	front  *httptest.Server // the server that the source talks to: it passes requests to good, or has the fault
	wire   *http.Transport  // connects to front
	faulty atomic.Bool      // whether the fault happens

	tls, http2 bool                     // whether front and wire use them
	answer     http.HandlerFunc         // how front answers during the fault
	through    func() http.RoundTripper // makes detour after front has started
	detour     http.RoundTripper        // used instead of wire during the fault; nil: wire is used

	tries atomic.Int64  // requests during the fault
	open  atomic.Int64  // connections of wire and detour
	ahead atomic.Int64  // how far the source's clock is ahead
	begin chan struct{} // closed when the fault may begin
	over  chan struct{} // closed when the test is over
}

func newRig(t *testing.T, how func(*rig)) *rig {
	r := &rig{t: t, good: inMemory(t, moovtest.WithoutRefreshTokens()), begin: make(chan struct{}), over: make(chan struct{})}
	how(r)
	r.front = httptest.NewUnstartedServer(r)
	r.front.Config.ErrorLog = log.New(io.Discard, "", 0)
	r.front.EnableHTTP2 = r.http2
	r.wire = &http.Transport{DialContext: r.dial, ForceAttemptHTTP2: r.http2}
	if r.tls {
		r.front.StartTLS()
		r.wire.TLSClientConfig = &tls.Config{RootCAs: r.roots()}
	} else {
		r.front.Start()
	}
	if r.through != nil {
		r.detour = r.through()
	}
	t.Cleanup(func() {
		close(r.over)
		r.closeIdleConnections()
		r.front.CloseClientConnections()
		r.front.Close()
	})
	return r
}

// ServeHTTP is front's handler.
func (r *rig) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	if !r.faulty.Load() {
		r.good.ServeHTTP(w, req)
		return
	}
	r.tries.Add(1)
	_, _ = io.Copy(io.Discard, req.Body)
	r.answer(w, req)
}

// RoundTrip is the source's transport.
func (r *rig) RoundTrip(req *http.Request) (*http.Response, error) {
	if !r.faulty.Load() {
		return r.wire.RoundTrip(req)
	}
	select {
	case <-r.begin:
	case <-req.Context().Done():
		return nil, req.Context().Err()
	}
	if r.detour == nil {
		return r.wire.RoundTrip(req)
	}
	r.tries.Add(1)
	return r.detour.RoundTrip(req)
}

func (r *rig) closeIdleConnections() {
	for _, tr := range []http.RoundTripper{r.wire, r.detour} {
		(&http.Client{Transport: tr}).CloseIdleConnections()
	}
}

func (r *rig) roots() *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AddCert(r.front.Certificate())
	return roots
}

// dial connects and counts the open connections.
func (r *rig) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	r.open.Add(1)
	return &countedConn{conn, sync.OnceFunc(func() { r.open.Add(-1) })}, nil
}

// dialTo returns a dial function that always connects to addr.
func (r *rig) dialTo(addr net.Addr) func(context.Context, string, string) (net.Conn, error) {
	return func(ctx context.Context, network, _ string) (net.Conn, error) {
		return r.dial(ctx, network, addr.String())
	}
}

type countedConn struct {
	net.Conn
	closed func()
}

func (c *countedConn) Close() error {
	c.closed()
	return c.Conn.Close()
}

// listener returns a listener on a port of its own that accepts no connection.
func (r *rig) listener() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

// through replaces wire with another transport during the fault.
func through(transport func(*rig) *http.Transport) func(*rig) {
	return func(r *rig) { r.through = func() http.RoundTripper { return transport(r) } }
}

// closedPort connects to a port that is in use, but on which no one listens.
func closedPort(r *rig) *http.Transport {
	conn, err := net.Dial("tcp", r.listener().Addr().String())
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = conn.Close() })
	return &http.Transport{DialContext: r.dialTo(conn.LocalAddr())}
}

func unreachable(*rig) *http.Transport {
	return &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}}
}

func untrusting(r *rig) *http.Transport {
	return &http.Transport{DialContext: r.dial, TLSClientConfig: &tls.Config{RootCAs: x509.NewCertPool()}}
}

func misnaming(r *rig) *http.Transport {
	return &http.Transport{DialContext: r.dial, TLSClientConfig: &tls.Config{RootCAs: r.roots(), ServerName: "moov.test"}}
}

func silent(r *rig) *http.Transport {
	return &http.Transport{DialContext: r.dialTo(r.listener().Addr())}
}

func plain(r *rig) *http.Transport {
	return &http.Transport{DialContext: r.dialTo(answering(r.t, nil).Listener.Addr())}
}

func withTLS(how func(*rig)) func(*rig) {
	return func(r *rig) {
		r.tls = true
		how(r)
	}
}

func overHTTP2(how func(*rig)) func(*rig) {
	return func(r *rig) {
		r.tls, r.http2 = true, true
		how(r)
	}
}

func answers(h http.HandlerFunc) func(*rig) {
	return func(r *rig) { r.answer = h }
}

// says answers with status, body and header. header holds names and values in
// turn.
func says(status int, body string, header ...string) func(*rig) {
	return answers(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(status)
		_, _ = io.WriteString(w, body)
	})
}

// echoes refuses the request, with all its secrets in the refusal.
func echoes(status int) func(*rig) {
	return answers(func(w http.ResponseWriter, r *http.Request) {
		_, secret, _ := r.BasicAuth()
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":"invalid_request","error_description":"%s %s"}`, secret, r.Header.Get("Authorization"))
	})
}

// trickles sends a good reply, one byte at a time.
func trickles(every time.Duration) func(*rig) {
	return answers(func(w http.ResponseWriter, r *http.Request) {
		for _, b := range []byte(faultyReply) {
			_, _ = w.Write([]byte{b})
			_ = http.NewResponseController(w).Flush()
			select {
			case <-time.After(every):
			case <-r.Context().Done():
				return
			}
		}
	})
}

// raw writes text to the connection and then calls end.
func raw(text string, end func(*net.TCPConn)) func(*rig) {
	return answers(func(w http.ResponseWriter, _ *http.Request) {
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			panic(err)
		}
		defer conn.Close()
		_, _ = io.WriteString(conn, text)
		end(conn.(*net.TCPConn))
	})
}

// repeats writes text, and then writes more n times or until the client closes
// the connection.
func repeats(text, more string, n int) func(*rig) {
	chunk := []byte(more) // converted once, since io.WriteString would copy the string each time
	return raw(text, func(conn *net.TCPConn) {
		for range n {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	})
}

func closeAtOnce(*net.TCPConn) {}

// trickle sends a byte every 20 ms until the client closes the connection.
func trickle(conn *net.TCPConn) {
	for {
		if _, err := io.WriteString(conn, "a"); err != nil {
			return
		}
		time.Sleep(20 * time.Millisecond)
	}
}

func zipped(text string) string {
	var b bytes.Buffer
	zip := gzip.NewWriter(&b)
	_, _ = io.WriteString(zip, text)
	_ = zip.Close()
	return b.String()
}
