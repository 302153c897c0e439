package moovauth

// What a network and a server can do wrong, over real connections: what each
// fault costs the caller, the server, the machine and the next caller.

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"runtime"
	"runtime/metrics"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

const (
	mebibyte = 1 << 20

	hangCap  = 60 * time.Second // after which a call counts as hanging
	mostHeap = 16 * mebibyte    // that a flood may take

	// What the server issues during a fault. No error may carry it, whether
	// the source has come to know it or not.
	faultyToken = "faulty-access-token"
	faultyReply = `{"access_token":"` + faultyToken + `","token_type":"Bearer","expires_in":900,"scope":"/ping.read"}`

	okHeader = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
)

// fault is a row of the matrix: what goes wrong, and what comes of it.
type fault struct {
	name string
	how  func(*rig)
	want outcome
}

// outcome is what comes of a fault: a token, an error or silence.
type outcome struct {
	tries  int           // requests that reach the server
	life   time.Duration // of the token; 0: none is obtained, and the rest is about the error
	status int           // of the *Error; 0: it is none
	code   string        // its Code
	hangs  bool          // until WithTimeout ends it
	text   string        // a part of its text
}

func lives(life time.Duration) outcome { return outcome{tries: 1, life: life} }

func fails(tries int, text string) outcome { return outcome{tries: tries, text: text} }

func hangs(text string) outcome { return outcome{tries: 1, hangs: true, text: text} }

func refuses(tries, status int, code, text string) outcome {
	return outcome{tries: tries, status: status, code: code, text: text}
}

// floods are read with a bound on memory.
func floods() []fault {
	zeros := strings.Repeat("\x00", mebibyte)
	return []fault{
		{"body of 1 GiB", repeats(okHeader+"Content-Length: 1073741824\r\n\r\n", zeros, 1024), fails(3, "larger than 1048576 bytes")},
		{"body of 1 GiB in a gzip bomb", repeats(okHeader+"Content-Encoding: gzip\r\nConnection: close\r\n\r\n", zipped(zeros), 1024), fails(3, "larger than 1048576 bytes")},
	}
}

// faults redirect to, if they do.
func faults(elsewhere string) []fault {
	const (
		fiveMinutes = 5 * time.Minute
		fifteen     = 15 * time.Minute
		month       = 30 * 24 * time.Hour
	)
	return []fault{
		// The connection.
		{"connection refused", through(refusing), fails(3, "connection refused")},
		{"connection never made", through(unreachable), hangs("token request")},
		{"reset before the header", raw("", reset), fails(3, "reset")},
		{"reset during the header", raw(okHeader, reset), fails(3, "connection broken")},
		{"reset after the header", raw(okHeader+"Content-Length: 900\r\n\r\n"+`{"access_`, reset), fails(3, "reading the reply")},
		{"close before the header", raw("", hangUp), fails(3, "EOF")},
		{"close during the header", raw(okHeader, hangUp), fails(3, "EOF")},
		{"close by an aborted handler", answers(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) }), fails(3, "EOF")},
		{"silence", raw("", silence), hangs("token request")},
		{"silence during the header", raw(okHeader, silence), hangs("token request")},
		{"silence after the header", raw(okHeader+"Content-Length: 900\r\n\r\n"+`{"access_`, silence), hangs("reading the reply")},
		{"silence after a good reply that has no end", raw(okHeader+fmt.Sprintf("Transfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", len(faultyReply), faultyReply), silence), hangs("reading the reply")},
		{"silence after switching protocols", raw("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n", silence), refuses(1, 101, "", "answered 101")},
		{"header that trickles", raw("HTTP/1.1 200 OK\r\nX-Filler: ", trickle), hangs("token request")},
		{"body that trickles", trickles(20 * time.Millisecond), hangs("reading the reply")},
		{"body that trickles in time", trickles(time.Millisecond), lives(fifteen)},

		// TLS.
		{"certificate not trusted", overTLS(through(untrusting)), fails(3, "certificate signed by unknown authority")},
		{"certificate of another host", overTLS(through(misnaming)), fails(3, "not moov.test")},
		{"silence in the TLS handshake", overTLS(through(silent)), hangs("token request")},
		{"plain HTTP instead of TLS", overTLS(through(plain)), fails(3, "HTTP response to HTTPS client")},
		{"good reply over HTTP/2", overHTTP2(says(200, faultyReply)), lives(fifteen)},
		{"stream reset over HTTP/2", overHTTP2(answers(func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) })), fails(3, "stream error")},
		{"silence over HTTP/2", overHTTP2(answers(func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })), hangs("token request")},

		// HTTP.
		{"good reply over HTTP/1.0", raw("HTTP/1.0 200 OK\r\n\r\n"+faultyReply, hangUp), lives(fifteen)},
		{"good reply of 201", says(201, faultyReply), lives(fifteen)},
		{"good reply of another content type", says(200, faultyReply, "Content-Type", "text/html"), lives(fifteen)},
		{"good reply in gzip", says(200, zipped(faultyReply), "Content-Encoding", "gzip"), lives(fifteen)},
		{"not HTTP", raw("SSH-2.0-OpenSSH_9.9\r\n", hangUp), fails(3, "malformed HTTP response")},
		{"not HTTP, with the secret in it", raw("secret moovtest-secret-key\r\n\r\n", hangUp), fails(3, "malformed HTTP")},
		{"not HTTP, but a token", raw(faultyReply+"\r\n\r\n", hangUp), fails(3, "malformed HTTP")},
		{"header line without a colon", raw("HTTP/1.1 200 OK\r\n"+faultyReply+"\r\n\r\n", hangUp), fails(3, "token request")},
		{"header over 10 MB", repeats("HTTP/1.1 200 OK\r\n", "X-Filler: "+strings.Repeat("a", mebibyte)+"\r\n", 1024), fails(3, "headers exceeded 10485760 bytes")},
		{"early hints without end", repeats("", "HTTP/1.1 103 Early Hints\r\nX-Filler: "+strings.Repeat("a", mebibyte)+"\r\n\r\n", 1024), fails(3, "token request")},
		{"body longer than Content-Length", raw(okHeader+"Connection: close\r\nContent-Length: 9\r\n\r\n"+faultyReply, hangUp), fails(3, "JSON")},
		{"body shorter than Content-Length", raw(okHeader+"Content-Length: 900\r\n\r\n"+faultyReply, hangUp), fails(3, "unexpected EOF")},
		{"two Content-Lengths", raw(okHeader+"Content-Length: 97\r\nContent-Length: 9\r\n\r\n"+faultyReply, hangUp), fails(3, "Content-Length")},
		{"broken chunk", raw(okHeader+"Transfer-Encoding: chunked\r\n\r\nzz\r\n"+faultyReply+"\r\n", hangUp), fails(3, "reading the reply")},
		{"gzip that is none", says(200, faultyReply, "Content-Encoding", "gzip"), fails(3, "gzip")},
		{"301", redirects(301, elsewhere), refuses(1, 301, "", "WithBaseURL")},
		{"302", redirects(302, elsewhere), refuses(1, 302, "", "WithBaseURL")},
		{"303", redirects(303, elsewhere), refuses(1, 303, "", "WithBaseURL")},
		{"307", redirects(307, elsewhere), refuses(1, 307, "", "WithBaseURL")},
		{"308", redirects(308, elsewhere), refuses(1, 308, "", "WithBaseURL")},
		{"307 without Location", says(307, ""), refuses(1, 307, "", "WithBaseURL")},

		// The reply's body.
		{"204", says(204, ""), fails(3, "JSON")},
		{"empty body", says(200, ""), fails(3, "JSON")},
		{"HTML", says(200, "<html>Sign in</html>", "Content-Type", "text/html"), fails(3, "is a proxy in between?")},
		{"truncated JSON", says(200, faultyReply[:40]), fails(3, "JSON")},
		{"trailing garbage", says(200, faultyReply+"garbage"), fails(3, "JSON")},
		{"two objects", says(200, faultyReply+faultyReply), fails(3, "JSON")},
		{"array", says(200, "["+faultyReply+"]"), fails(3, "JSON")},
		{"null", says(200, "null"), fails(3, "no access_token")},
		{"empty object", says(200, "{}"), fails(3, "no access_token")},
		{"byte order mark", says(200, "\xef\xbb\xbf"+faultyReply), lives(fifteen)},
		{"duplicate members", says(200, `{"access_token":"first","expires_in":7,`+faultyReply[1:]), lives(fifteen)},
		{"nesting 100,000 deep", says(200, `{"more":`+strings.Repeat("[", 1e5)+strings.Repeat("]", 1e5)+","+faultyReply[1:]), fails(3, "depth")},
		{"200 with an error", says(200, `{"error":"invalid_scope"}`), refuses(1, 200, "invalid_scope", "")},

		{"access_token missing", says(200, `{"token_type":"Bearer","expires_in":900}`), fails(3, "no access_token")},
		{"access_token empty", says(200, `{"access_token":"","expires_in":900}`), fails(3, "no access_token")},
		{"access_token null", says(200, `{"access_token":null,"expires_in":900}`), fails(3, "no access_token")},
		{"access_token a number", says(200, `{"access_token":42,"expires_in":900}`), fails(3, "no access_token")},
		{"access_token with a newline", says(200, `{"access_token":"`+faultyToken+`\nX-Evil: 1","expires_in":900}`), fails(3, "visible ASCII")},
		{"access_token with NUL", says(200, `{"access_token":"`+faultyToken+`\u0000","expires_in":900}`), fails(3, "visible ASCII")},
		{"access_token in invalid UTF-8", says(200, `{"access_token":"`+faultyToken+"\xff\xfe"+`","expires_in":900}`), fails(3, "visible ASCII")},
		{"access_token of 1 MiB", says(200, `{"access_token":"`+strings.Repeat("a", mebibyte)+`","expires_in":900}`), fails(3, "larger than 1048576 bytes")},
		{"access_token of 64 KiB", says(200, `{"access_token":"`+strings.Repeat("a", 64<<10)+`","expires_in":900}`), lives(fifteen)},
		{"token_type mac", says(200, `{"access_token":"`+faultyToken+`","token_type":"mac"}`), fails(3, `"mac" is not Bearer`)},
		{"token_type a number", says(200, `{"access_token":"`+faultyToken+`","token_type":7}`), fails(3, "token_type")},

		{"expires_in missing", says(200, `{"access_token":"`+faultyToken+`"}`), lives(fiveMinutes)},
		{"expires_in null", expires("null"), lives(fiveMinutes)},
		{"expires_in 0", expires("0"), lives(fiveMinutes)},
		{"expires_in -1", expires("-1"), lives(fiveMinutes)},
		{"expires_in 1e308", expires("1e308"), lives(month)},
		{"expires_in 1e999", expires("1e999"), lives(fiveMinutes)},
		{"expires_in NaN", expires("NaN"), fails(3, "JSON")},
		{`expires_in "NaN"`, expires(`"NaN"`), lives(fiveMinutes)},
		{`expires_in "900"`, expires(`"900"`), lives(fifteen)},
		{"expires_in a float", expires("900.5"), lives(fifteen)},
		{"expires_in an object", expires("{}"), lives(fiveMinutes)},
		{"expires_in a timestamp", expires(fmt.Sprint(time.Now().Unix() + 3600)), lives(time.Hour)},
		{"expires_in a timestamp in the past", expires("1736964352"), lives(fiveMinutes)},
		{"expires_in a timestamp in milliseconds", expires(fmt.Sprint(time.Now().UnixMilli() + 900e3)), lives(month)},

		// Refusals for good.
		{"400 invalid_request", says(400, `{"error":"invalid_request"}`), refuses(1, 400, "invalid_request", "")},
		{"400 invalid_client", says(400, `{"error":"invalid_client"}`), refuses(1, 400, "invalid_client", "")},
		{"400 invalid_grant", says(400, `{"error":"invalid_grant"}`), refuses(1, 400, "invalid_grant", "")},
		{"400 unauthorized_client", says(400, `{"error":"unauthorized_client"}`), refuses(1, 400, "unauthorized_client", "")},
		{"400 unsupported_grant_type", says(400, `{"error":"unsupported_grant_type"}`), refuses(1, 400, "unsupported_grant_type", "")},
		{"400 invalid_scope", says(400, `{"error":"invalid_scope","error_description":"no such scope"}`), refuses(1, 400, "invalid_scope", "no such scope")},
		{"400 without a body", says(400, ""), refuses(1, 400, "", "WithOrigin")},
		{"400 with a body that is cut off", raw("HTTP/1.1 400 Bad Request\r\nContent-Length: 900\r\n\r\n"+`{"error":"inv`, hangUp), refuses(1, 400, "", "400 Bad Request")},
		{"400 with a body of more than 1 MiB", says(400, strings.Repeat("a", mebibyte+1)), refuses(1, 400, "", "400 Bad Request")},
		{"400 that echoes the request", echoes(400), refuses(1, 400, "invalid_request", masked)},
		{"401", says(401, ""), refuses(1, 401, "", "check the credentials")},
		{"403", says(403, `<html>Forbidden</html>`), refuses(1, 403, "", "Forbidden")},
		{"404", says(404, "404 page not found\n"), refuses(1, 404, "", "page not found")},
		{"405", says(405, ""), refuses(1, 405, "", "")},
		{"410", says(410, ""), refuses(1, 410, "", "")},
		{"422 with fields", says(422, `{"scope":"must be known","client_id":["blank"]}`), refuses(1, 422, "", `"scope":"must be known"`)},

		// Refusals for now.
		{"408", says(408, ""), refuses(3, 408, "", "after 3 attempts")},
		{"429", says(429, ""), refuses(3, 429, "", "after 3 attempts")},
		{"429, at once again", says(429, "", "Retry-After", "0"), refuses(3, 429, "", "after 3 attempts")},
		{"429, Retry-After that does not fit", says(429, "", "Retry-After", "60"), refuses(1, 429, "", "not tried again")},
		{"429, Retry-After that is absurd", says(429, "", "Retry-After", "99999999999999999999"), refuses(1, 429, "", "due in 1h0m0s")},
		{"429, Retry-After that is no time", says(429, "", "Retry-After", "soon"), refuses(3, 429, "", "after 3 attempts")},
		{"429, X-Retry-In that does not fit", says(429, "", "X-Retry-In", "60000"), refuses(1, 429, "", "not tried again")},
		{"500", says(500, ""), refuses(3, 500, "", "after 3 attempts")},
		{"500 with a token", says(500, faultyReply), refuses(3, 500, "", "after 3 attempts")},
		{"502", says(502, "<html>Bad Gateway</html>"), refuses(3, 502, "", "after 3 attempts")},
		{"503", says(503, ""), refuses(3, 503, "", "after 3 attempts")},
		{"503, Retry-After that does not fit", says(503, "", "Retry-After", "60"), refuses(1, 503, "", "not tried again")},
		{"504", says(504, ""), refuses(3, 504, "", "after 3 attempts")},

		// What the caller plugged in.
		{"RoundTripper that panics", plugged(func(*rig) { panic("out of order") }), fails(1, "panicked: out of order")},
		{"RoundTripper that panics with the secret", plugged(func(*rig) { panic("moovtest-secret-key") }), fails(1, "panicked: "+masked)},
		{"RoundTripper that calls Goexit", plugged(func(*rig) { runtime.Goexit() }), fails(1, "runtime.Goexit")},
		{"RoundTripper that does not heed its context", plugged(func(r *rig) { <-r.over }), hangs("has not returned, though its context has ended")},
	}
}

func TestFaults(t *testing.T) {
	if testing.Short() {
		t.Skip("takes seconds")
	}
	baseline := runtime.NumGoroutine()
	rows := 0
	for _, f := range floods() {
		rows++
		for name, run := range f.grants() {
			took := highWater(func() { t.Run(name, run) })
			t.Logf("%s: at most %.1f MiB of heap above idle", name, float64(took)/mebibyte)
			assert.Less(t, took, uint64(mostHeap), name)
		}
	}

	elsewhere := moovtest.NewServer()
	defer elsewhere.Close()
	rest := faults(elsewhere.URL + tokenPath)
	rows += len(rest)
	for waits, atOnce := range map[bool]int{false: 2, true: 8} { // those that hang need little of the machine
		t.Run(fmt.Sprintf("%d at once", atOnce), func(t *testing.T) {
			places := make(chan struct{}, atOnce)
			var all sync.WaitGroup
			defer all.Wait()
			for _, f := range rest {
				for name, run := range f.grants() {
					if f.want.hangs != waits {
						continue
					}
					places <- struct{}{}
					all.Go(func() {
						t.Run(name, run)
						<-places
					})
				}
			}
		})
	}
	assert.Empty(t, elsewhere.Requests(), "a redirect was followed")
	elsewhere.Close()

	var left int
	assert.Eventually(t, func() bool {
		left = runtime.NumGoroutine() - 1 // but for the one that asks
		return left <= baseline
	}, hangCap, 10*time.Millisecond)
	t.Logf("goroutines: %d before, %d after", baseline, left)
	t.Logf("fault matrix: %d rows, each with a blocking and a background grant", rows)
}

// grants are the two that meet the fault, by name.
func (f fault) grants() map[string]func(*testing.T) {
	return map[string]func(*testing.T){
		f.name + ", blocking":   func(t *testing.T) { f.run(t, false) },
		f.name + ", background": func(t *testing.T) { f.run(t, true) },
	}
}

// run lets one grant meet the fault: one that a caller waits for, or one in the
// background while a stale token is in hand.
func (f fault) run(t *testing.T, inBackground bool) {
	r := newRig(t, f.how)
	timeout := 30 * time.Second
	if f.want.hangs {
		timeout = 500 * time.Millisecond
	}
	out := new(page)
	s := sourceOf(t, r.good, WithBaseURL(r.front.URL), WithHTTPClient(&http.Client{Transport: r}), WithTimeout(timeout),
		WithLogger(slog.New(slog.NewTextHandler(out, &slog.HandlerOptions{Level: slog.LevelDebug}))))
	clock := s.endpoint.clock
	s.endpoint.clock = func() instant { return clock().add(time.Duration(r.ahead.Load())) }
	s.endpoint.random = func() float64 { return 0 } // no attempt waits for the next
	ended := func() bool { return !s.memory.load().refreshing }

	inHand := new(oauth2.Token)
	if inBackground {
		inHand = token(t, s)
		stale := *s.memory.load().held
		stale.refreshAt = s.endpoint.clock()
		s.memory.change(func(s *snapshot) { s.held = &stale })
	}

	r.faulty.Store(true)
	if !inBackground {
		close(r.begin)
	}
	tok, err := tokenInTime(t, s)
	if inBackground {
		close(r.begin) // had Token waited for the grant, there would be no request
		require.NoError(t, err)
		require.Equal(t, inHand.AccessToken, tok.AccessToken, "the token in hand is served at once")
		require.Eventually(t, ended, hangCap, time.Millisecond, "the background grant hangs")
	}
	assert.EqualValues(t, f.want.tries, r.tries.Load(), "requests")
	if inBackground {
		cooling := s.memory.load().cooling
		tok, err = tokenInTime(t, s)
		require.NoError(t, err)
		require.Eventually(t, ended, hangCap, time.Millisecond) // if the cool-down is over already, there was another grant
		require.Equal(t, f.want.life == 0, tok.AccessToken == inHand.AccessToken, "the token in hand stays if there is no new one")
		if f.want.life == 0 {
			require.NotNil(t, cooling)
			err = cooling.err
			assert.Contains(t, out.text.String(), "no token obtained")
		}
	}
	f.want.check(t, tok, err)

	out.print(err)
	basic := base64.StdEncoding.EncodeToString([]byte(r.good.ClientID + ":" + r.good.ClientSecret))
	for _, secret := range append(r.good.AccessTokens(), r.good.ClientSecret, basic, faultyToken) {
		if text := out.text.String(); strings.Contains(text, secret) {
			assert.Fail(t, "a secret is in sight", "%s, in:\n%s", secret, text)
		}
	}

	r.faulty.Store(false)
	r.ahead.Store(int64(f.want.life + maxAsked + time.Minute)) // past the token's expiry, and past any cool-down
	again, err := tokenInTime(t, s)
	require.NoError(t, err, "the source recovers")
	assert.NotEqual(t, inHand.AccessToken, again.AccessToken)
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
	assert.Equal(t, want.code, answered.Code, err)
}

// tokenInTime is s.Token, but it does not wait forever.
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

// highWater is the most heap in use during f, above what was in use before.
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

// rig is a source's way to its server, with a place for a fault.
type rig struct {
	t      *testing.T
	good   *moovtest.Server // answers while there is no fault
	front  *httptest.Server // what the source talks to: good, or the fault
	wire   *http.Transport  // the way to front
	faulty atomic.Bool      // while it is set, there is the fault

	tls, http2 bool                     // of front and wire
	answer     http.HandlerFunc         // what front answers during the fault
	through    func() http.RoundTripper // makes detour, once front is up
	detour     http.RoundTripper        // the way during the fault; nil: wire

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

// dial counts the connections that are open.
func (r *rig) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	conn, err := new(net.Dialer).DialContext(ctx, network, addr)
	if err != nil {
		return nil, err
	}
	r.open.Add(1)
	return &countedConn{conn, sync.OnceFunc(func() { r.open.Add(-1) })}, nil
}

// dialTo is dial, but always to addr.
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

// listener listens on a port of its own, and accepts nothing.
func (r *rig) listener() net.Listener {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(r.t, err)
	r.t.Cleanup(func() { _ = l.Close() })
	return l
}

// through replaces wire by another transport.
func through(transport func(*rig) *http.Transport) func(*rig) {
	return func(r *rig) { r.through = func() http.RoundTripper { return transport(r) } }
}

// refusing connects to a port that is in use, but not listened on.
func refusing(r *rig) *http.Transport {
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

func overTLS(how func(*rig)) func(*rig) {
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

// plugged is a RoundTripper that misbehaves.
func plugged(misbehave func(*rig)) func(*rig) {
	return func(r *rig) {
		r.detour = roundTripper(func(*http.Request) (*http.Response, error) {
			misbehave(r)
			return nil, errors.New("too late")
		})
	}
}

func answers(h http.HandlerFunc) func(*rig) {
	return func(r *rig) { r.answer = h }
}

// says answers with status and body, and the header that follows: names and values by turns.
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

func expires(in string) func(*rig) {
	return says(200, `{"access_token":"`+faultyToken+`","expires_in":`+in+`}`)
}

func redirects(status int, to string) func(*rig) { return says(status, "", "Location", to) }

// echoes refuses with all the secrets of the request in the refusal.
func echoes(status int) func(*rig) {
	return answers(func(w http.ResponseWriter, r *http.Request) {
		_, secret, _ := r.BasicAuth()
		w.WriteHeader(status)
		_, _ = fmt.Fprintf(w, `{"error":"invalid_request","error_description":"%s %s"}`, secret, r.Header.Get("Authorization"))
	})
}

// trickles is a good reply, a byte at a time.
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

// raw writes text as it is; then the connection's end comes as end has it.
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

// repeats writes text, then more n times, or until the client hangs up.
func repeats(text, more string, n int) func(*rig) {
	chunk := []byte(more) // once: each Write of a string would copy it
	return raw(text, func(conn *net.TCPConn) {
		for range n {
			if _, err := conn.Write(chunk); err != nil {
				return
			}
		}
	})
}

func hangUp(*net.TCPConn) {}

func reset(conn *net.TCPConn) { _ = conn.SetLinger(0) }

// silence lasts until the client hangs up.
func silence(conn *net.TCPConn) { _, _ = io.Copy(io.Discard, conn) }

// trickle is a byte now and then, until the client hangs up.
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
