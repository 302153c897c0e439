package moovauth

// This file is the model test. It runs random programs on one server and one
// cache, in which everything that can fail fails at random. A world knows which
// tokens are alive at the server and which tokens each process has received. It
// checks these rules:
//
//  1. When Revoke returns nil, no token is alive that the source had received and
//     remembered, or that its cache held, when Revoke was called.
//  2. A source makes one request at a time.
//  3. A call ends with its context, and within WithTimeout in any case.
//  4. No goroutine is left. (Otherwise the bubble panics.)
//  5. No refresh token is sent twice, by one process or by two. The exception is a
//     first request that cannot have arrived or was answered 429.
//  6. Therefore the server, which detects reuse, revokes no token that is in use.
//  7. A call fails only if a token request has failed for good, and only while the
//     source has no token. An invalidation is not enough to make a call fail.
//  8. A token that is returned has not expired, and its source has not revoked it.
//     It was not invalidated and then replaced either.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"os"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// Each run has its own seed. MODEL_SEED=n repeats the run with seed n.
// MODEL_RUNS=n makes n runs, which begin with that seed.
func TestModel(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // avoids a crash of the race detector itself: see golang/go#78156
	seed, runs := uint64(1), uint64(500)
	if testing.Short() {
		runs = 100
	}
	setting := func(name string, value *uint64) (set bool) {
		text, set := os.LookupEnv(name)
		if set {
			var err error
			*value, err = strconv.ParseUint(text, 10, 64)
			require.NoError(t, err, name)
		}
		return set
	}
	if setting("MODEL_SEED", &seed) {
		runs = 1
	}
	setting("MODEL_RUNS", &runs)
	counts := make(map[string]int)
	for end := seed + runs; seed < end && !t.Failed(); seed++ {
		finished := false
		defer func() {
			if !finished { // the bubble panicked
				fmt.Fprintf(os.Stderr, "MODEL_SEED=%d go test -run TestModel repeats this run\n", seed)
			}
		}()
		synctest.Test(t, func(t *testing.T) { newWorld(t, seed, counts).run() })
		if finished = true; t.Failed() {
			t.Errorf("MODEL_SEED=%d go test -run TestModel repeats this run", seed)
		}
	}
	t.Logf("%d runs: %v", runs, counts)
}

// world holds what the processes of one run share, and what the rules need to
// know.
type world struct {
	t        *testing.T
	server   *moovtest.Server
	timeout  time.Duration // WithTimeout
	lifetime time.Duration // of the access tokens
	faults   int           // how many of 100 token requests fail
	cacheIs  traits
	callers  sync.WaitGroup

	mu        sync.Mutex // guards the fields below and the processes
	random    *rand.Rand
	calm      bool // no more faults happen
	processes []*process
	sent      map[string]*sending  // by refresh token
	killed    map[string]bool      // tokens that someone asked the server to revoke
	expiries  map[string]time.Time // of the access tokens
	moment    int                  // the number of events so far
	story     []string             // the events, as text
	counts    map[string]int
	shared    shelf
}

// sending is a token request with a refresh token.
type sending struct {
	done   bool
	unused bool // the source can know that the refresh token was not used up
}

func newWorld(t *testing.T, seed uint64, counts map[string]int) *world {
	w := &world{
		t: t, random: rand.New(rand.NewPCG(seed, 0)), counts: counts,
		sent: make(map[string]*sending), killed: make(map[string]bool), expiries: make(map[string]time.Time),
	}
	w.lifetime = pick(w.random.IntN, 10*time.Second, time.Minute, 15*time.Minute)
	w.timeout = pick(w.random.IntN, 12*time.Second, 30*time.Second)
	w.faults = pick(w.random.IntN, 0, 10, 30, 60)
	w.cacheIs = traits{
		there:      w.random.IntN(5) > 0,
		locks:      w.random.IntN(3) > 0,
		flaky:      pick(w.random.IntN, 0, 0, 5, 20),
		slow:       w.random.IntN(4) == 0,
		readOnly:   w.random.IntN(8) == 0,
		keepsAll:   w.random.IntN(5) == 0,
		losesLocks: w.random.IntN(5) == 0,
	}
	w.shared.freed = make(chan struct{})
	w.server = inMemory(t, moovtest.WithReuseDetection(), moovtest.WithLifetime(w.lifetime))
	for range pick(w.random.IntN, 1, 1, 2, 3) {
		w.start()
	}
	return w
}

func pick[T any](random func(n int) int, from ...T) T { return from[random(len(from))] }

// note adds an event to the story. It returns the event's number, which also
// orders events that happen at the same time. w.mu is held.
func (w *world) note(p *process, format string, args ...any) (moment int) {
	w.moment++
	since := time.Since(time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)) // when a bubble starts
	w.story = append(w.story, fmt.Sprintf("%9.3fs  %s  ", since.Seconds(), p.name)+fmt.Sprintf(format, args...))
	return w.moment
}

// broken reports that p has broken a rule. w.mu is held.
func (w *world) broken(rule int, p *process, format string, args ...any) {
	w.note(p, "RULE %d IS BROKEN: "+format, append([]any{rule}, args...)...)
	if !w.t.Failed() {
		w.t.Errorf("lifetime %v, timeout %v, cache %+v\n%s", w.lifetime, w.timeout, w.cacheIs, strings.Join(w.story, "\n"))
	}
}

// run lets the processes act for a while. Then it stops all faults, and checks
// that each source works and can revoke its tokens.
func (w *world) run() {
	for range 10 + w.random.IntN(40) {
		w.act()
		switch w.random.IntN(8) {
		case 0:
			synctest.Wait()
		case 1, 2:
			time.Sleep(time.Duration(w.random.Int64N(int64(20 * time.Millisecond))))
		case 3, 4:
			time.Sleep(time.Duration(w.random.Int64N(int64(2 * time.Second))))
		case 5:
			time.Sleep(time.Duration(w.random.Int64N(int64(20 * time.Second))))
		case 6:
			time.Sleep(time.Duration(w.random.Int64N(int64(w.lifetime))))
		}
		w.checkLiving()
		if w.t.Failed() {
			break
		}
	}
	w.callers.Wait()
	w.mu.Lock()
	w.calm = true
	w.mu.Unlock()
	time.Sleep(10 * time.Minute) // all cool-downs end
	w.checkLiving()
	for _, p := range w.processes {
		if !p.isDead() && !w.t.Failed() {
			p.token(time.Minute)
			p.revoke(time.Minute)
		}
	}
	time.Sleep(time.Hour)
}

// act lets one process take a random step.
func (w *world) act() {
	p := pick(w.random.IntN, w.processes...)
	limit := pick(w.random.IntN, 0, 0, time.Millisecond, time.Second, 6*time.Second, time.Minute)
	switch w.random.IntN(16) {
	default:
		for range 1 + w.random.IntN(3) {
			w.callers.Go(func() { p.token(limit) })
		}
	case 0, 1, 2:
		p.invalidate()
	case 8: // all processes call Token at once
		for _, p := range w.processes {
			w.callers.Go(func() { p.token(limit) })
		}
	case 3, 4:
		w.callers.Go(func() { p.revoke(limit) })
	case 5:
		if w.random.IntN(3) == 0 {
			p.revoke(-1)
		}
	case 6: // the process stops, and another one starts
		w.mu.Lock()
		p.steps = 1 + w.random.IntN(12)
		w.mu.Unlock()
		w.start()
	case 7: // someone revokes a token in Moov's dashboard
		if living := slices.Concat(w.server.AccessTokens(), w.server.RefreshTokens()); len(living) > 0 && w.random.IntN(4) == 0 {
			w.mu.Lock()
			w.kill(pick(w.random.IntN, living...))
			w.mu.Unlock()
		}
	}
}

// kill revokes a token at the server. w.mu is held.
func (w *world) kill(token string) {
	w.killed[token] = true
	w.server.Revoke(token)
}

// checkLiving checks rule 6: a token is alive if no one has revoked it or used
// it up.
func (w *world) checkLiving() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.processes {
		for _, r := range p.received {
			expiry, expires := w.expiries[r.token]
			if (!expires || time.Now().Before(expiry)) && w.sent[r.token] == nil && !w.killed[r.token] && !w.server.Alive(r.token) {
				w.broken(6, p, "the server revoked %s", short(r.token))
			}
		}
	}
}

// process is a program with one source.
type process struct {
	*world
	name   string
	source *TokenSource
	random *rand.Rand // guarded by world.mu, as are all fields below

	steps    int // until the process dies; 0: it does not die
	dead     bool
	asking   []context.Context // the requests in progress
	received []receipt         // tokens that came in a reply, or from the cache
	full     bool              // the source may have forgotten a token
	revoking int               // calls to Revoke in progress
	last     string            // the access token that Token returned last
	revoked  map[string]int    // the tokens that it revoked, and the event of each
	refused  map[string]int    // the tokens that it invalidated, and the event of each
	replaced map[string]int    // the refused tokens after which it got another token, and the event of each
	failed   int               // the event of the last failure that a call may return
	served   int               // the event of the last reply with a token
	servedAt time.Time         // the time of that reply
	asked    time.Time         // until when the server asked it to wait
}

type receipt struct {
	token string
	at    time.Time
}

func short(token string) string { return token[max(0, len(token)-4):] }

// start starts another process.
func (w *world) start() {
	p := &process{world: w, name: string(rune('A' + len(w.processes)%26)), random: rand.New(rand.NewPCG(w.random.Uint64(), 0)),
		revoked: make(map[string]int), refused: make(map[string]int), replaced: make(map[string]int)}
	opts := []Option{WithTimeout(w.timeout), WithHTTPClient(&http.Client{Transport: p})}
	switch {
	case w.cacheIs.there && w.cacheIs.locks:
		opts = append(opts, WithCache(lockingView{view{p}}))
	case w.cacheIs.there:
		opts = append(opts, WithCache(view{p}))
	}
	p.source = sourceOf(w.t, w.server, opts...)
	p.source.core.config.random = func() float64 {
		w.mu.Lock()
		defer w.mu.Unlock()
		return p.random.Float64()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.processes = append(w.processes, p)
}

func (p *process) isDead() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.dead
}

// receive notes tokens that p has received. w.mu is held.
func (p *process) receive(tokens ...string) {
	for _, tok := range tokens {
		if tok != "" && !slices.ContainsFunc(p.received, func(r receipt) bool { return r.token == tok }) {
			p.received = append(p.received, receipt{tok, time.Now()})
		}
	}
}

// noteFull notes whether the source remembers nearly as many former tokens as
// it can.
func (p *process) noteFull() {
	st := p.source.core.state
	st.mu.Lock()
	full := len(st.former) >= maxFormer-2
	st.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.full = p.full || full
}

// within returns a context that ends after limit. If limit is 0, the context
// does not end. If limit is negative, it has already ended.
func within(limit time.Duration) (context.Context, context.CancelFunc) {
	if limit == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), limit)
}

// most returns how long a call may take.
func most(limit, timeout time.Duration) time.Duration {
	if limit == 0 {
		return timeout
	}
	return max(0, min(limit, timeout))
}

// token calls Token and checks rules 3, 7 and 8.
func (p *process) token(limit time.Duration) {
	ctx, cancel := within(limit)
	defer cancel()
	p.mu.Lock()
	start, began := p.note(p, "Token within %v", limit), time.Now()
	p.mu.Unlock()
	tok, err := p.source.TokenContext(ctx)
	p.noteFull()
	stats := p.source.Stats()

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	if most := most(limit, p.timeout+grace); time.Since(began) > most {
		p.broken(3, p, "Token took %v instead of %v", time.Since(began), most)
	}
	if err == nil {
		p.counts["tokens"]++
		p.note(p, "got %s", short(tok.AccessToken))
		p.last = tok.AccessToken
		p.receive(tok.AccessToken, tok.RefreshToken)
		p.checkToken(tok.AccessToken, start)
		return
	}
	p.counts["errors"]++
	p.note(p, "got the error %v", err)
	cooling := new(CoolDownError)
	switch {
	case ctx.Err() != nil:
		if !errors.Is(err, ctx.Err()) {
			p.broken(7, p, "the error does not say that the context has ended")
		}
	case p.calm:
		p.broken(7, p, "refused, though nothing fails")
	case p.revoking == 0 && p.servedAt.Before(time.Now()) && stats.Expiry.Add(-min(maxLeeway, p.lifetime/10)).After(time.Now()):
		p.broken(7, p, "refused, though there is a token until %v", stats.Expiry)
	case errors.Is(err, context.DeadlineExceeded) && time.Since(began) >= p.timeout: // calls to Revoke held the turn for that long
	case p.failed < p.served && p.servedAt.Before(time.Now()):
		p.broken(7, p, "refused, though no request has failed")
	case errors.As(err, &cooling) && (!cooling.Until.After(time.Now()) || cooling.Until.After(later(p.asked, time.Now().Add(maxCoolDown)))):
		p.broken(7, p, "the cool-down until %v should be over, or is too long", cooling.Until)
	}
}

// checkToken checks rule 8. start is the event of the call. w.mu is held.
func (p *process) checkToken(access string, start int) {
	if at, ok := p.revoked[access]; ok && at < start {
		p.broken(8, p, "%s had been revoked", short(access))
	}
	if at, ok := p.replaced[access]; ok && at < start {
		p.broken(8, p, "%s had been invalidated and replaced", short(access))
	}
	if !p.killed[access] && !p.server.Alive(access) {
		p.broken(8, p, "%s is dead", short(access))
	}
	for refused, at := range p.refused {
		if refused != access && at < start && p.replaced[refused] == 0 {
			p.replaced[refused] = p.moment
		}
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// invalidate invalidates the token that p got last, as after a 401 from the
// API.
func (p *process) invalidate() {
	p.mu.Lock()
	tok := p.last
	p.mu.Unlock()
	before := p.source.Stats().Invalidated
	p.source.Invalidate(tok)
	counted := p.source.Stats().Invalidated > before
	p.mu.Lock()
	defer p.mu.Unlock()
	moment := p.note(p, "Invalidate %s, counted: %v", short(tok), counted)
	if counted {
		p.counts["invalidations"]++
		p.refused[tok] = moment
	}
}

// revoke calls Revoke and checks rules 1 and 3.
func (p *process) revoke(limit time.Duration) {
	ctx, cancel := within(limit)
	defer cancel()
	p.noteFull()
	p.mu.Lock()
	var known []string
	for _, r := range p.received {
		if r.at.Before(time.Now()) && !p.full { // a token that arrives at this instant may arrive after Revoke
			known = append(known, r.token)
		}
	}
	cached, began := p.shared.tokens(p), time.Now()
	p.revoking++
	p.note(p, "Revoke within %v, knowing %d tokens, %d in the cache", limit, len(known), len(cached))
	p.mu.Unlock()
	err := p.source.Revoke(ctx)

	p.mu.Lock()
	defer p.mu.Unlock()
	p.revoking--
	if p.dead {
		return
	}
	p.note(p, "Revoke: %v", err)
	if most := most(limit, p.timeout); time.Since(began) > most {
		p.broken(3, p, "Revoke took %v instead of %v", time.Since(began), most)
	}
	if err != nil {
		p.counts["revocations failed"]++
		if p.calm {
			p.broken(7, p, "Revoke failed, though nothing else fails")
		}
		return
	}
	p.counts["revocations"]++
	if p.shared.changed.After(began) || p.shared.changed.Equal(began) {
		cached = nil // another process may have changed the entry before Revoke had the lock
	}
	for _, tok := range slices.Concat(known, cached) {
		if p.server.Alive(tok) {
			p.broken(1, p, "%s is alive after Revoke", short(tok))
		}
		p.revoked[tok] = p.moment
	}
	if limit < 0 {
		p.broken(3, p, "Revoke did something for a context that had ended")
	}
}

// RoundTrip is the network of p. It checks rules 2 and 5.
func (p *process) RoundTrip(r *http.Request) (*http.Response, error) {
	if err := p.step(r.Context()); err != nil {
		return nil, err
	}
	text, _ := io.ReadAll(r.Body)
	r.Body.Close()
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(strings.NewReader(string(text)))
	if r.URL.Path == endpointPath+opRevoke {
		return p.revocation(r, form.Get("token"))
	}
	refresh := form.Get("refresh_token")
	background := p.source.timeLeft() > 0 // no call returns the error of a background request
	p.noteFull()

	s := new(sending)
	p.mu.Lock()
	p.counts[form.Get("grant_type")]++
	p.note(p, "sends %s %s", form.Get("grant_type"), short(refresh))
	p.begin(r)
	if refresh != "" {
		if before := p.sent[refresh]; before != nil && !(before.done && before.unused) {
			p.broken(5, p, "%s is sent again", short(refresh))
		}
		p.sent[refresh] = s
	}
	p.mu.Unlock()
	resp, unused, err := p.answer(r, refresh)

	p.mu.Lock()
	p.end(r)
	s.done, s.unused = true, unused
	if ok, asked := p.noteReply(resp); !p.dead && ok {
		p.served, p.servedAt = p.moment, time.Now()
	} else if deadline, _ := r.Context().Deadline(); !background && (refresh == "" || unused || asked || !time.Now().Before(deadline)) {
		p.failed = p.moment // otherwise client credentials follow the failed refresh
	}
	p.mu.Unlock()
	if err := p.step(r.Context()); err != nil {
		return nil, err
	}
	return resp, err
}

// begin and end check rule 2. w.mu is held.
func (p *process) begin(r *http.Request) {
	p.asking = slices.DeleteFunc(p.asking, func(ctx context.Context) bool { return ctx.Err() != nil })
	if p.asking = append(p.asking, r.Context()); len(p.asking) > 1 {
		p.broken(2, p, "%d requests at once", len(p.asking))
	}
}

func (p *process) end(r *http.Request) {
	p.asking = slices.DeleteFunc(p.asking, func(ctx context.Context) bool { return ctx == r.Context() })
}

// noteReply notes the reply to a token request. It reports whether the reply
// has a token, and whether the server asked for a wait. w.mu is held.
func (p *process) noteReply(resp *http.Response) (ok, asked bool) {
	if resp == nil {
		p.note(p, "gets no reply")
		return false, false
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Broken") != "" {
		p.note(p, "is answered %d, Retry-After %v", resp.StatusCode, resp.Header["Retry-After"])
		seconds, _ := strconv.Atoi(resp.Header.Get("Retry-After"))
		p.asked = later(p.asked, time.Now().Add(time.Duration(seconds)*time.Second*5/4+maxCacheTime+time.Second)) // the wait starts at the end of the grant
		return false, seconds > 0
	}
	body, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	var reply struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
	}
	require.NoError(p.t, json.Unmarshal(body, &reply))
	p.note(p, "receives %s and %s", short(reply.AccessToken), short(reply.RefreshToken))
	p.expiries[reply.AccessToken] = time.Now().Add(p.lifetime)
	p.receive(reply.AccessToken, reply.RefreshToken)
	return true, false
}

// step is a point at which p may die. After its death, nothing that p does has
// an effect.
func (p *process) step(ctx context.Context) error {
	p.mu.Lock()
	if p.steps == 1 && !p.dead && !p.calm {
		p.counts["deaths"]++
		p.note(p, "dies")
		p.dead = true
		p.shared.free(p)
	}
	if p.steps > 1 {
		p.steps--
	}
	dead := p.dead
	p.mu.Unlock()
	if !dead {
		return nil
	}
	<-ctx.Done()
	return ctx.Err()
}

// n returns a random number from 0 to n-1. w.mu is not held.
func (p *process) n(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.random.IntN(n)
}

func (p *process) duration(most time.Duration) time.Duration {
	return time.Duration(p.n(int(most) + 1))
}

func (p *process) isCalm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calm
}

// errorPage returns an answer of a proxy, a gateway or a firewall.
func errorPage(r *http.Request, status int) *http.Response {
	return &http.Response{StatusCode: status, Header: http.Header{"Broken": {"yes"}}, Body: io.NopCloser(strings.NewReader("<html>Sorry</html>")), Request: r}
}

// answer answers a token request, as the server does or with a random fault.
// unused reports whether the client can know that the refresh token was not
// used up.
func (p *process) answer(r *http.Request, refresh string) (resp *http.Response, unused bool, err error) {
	serve := func() (*http.Response, error) { return p.server.Transport().RoundTrip(r) }
	if !p.isCalm() {
		if err := sleep(r.Context(), p.duration(pick(p.n, 0, time.Millisecond, time.Second))); err != nil {
			return nil, false, err
		}
	}
	if p.isCalm() || p.n(100) >= p.faults {
		resp, err = serve()
		return resp, false, err
	}
	silence := func() (*http.Response, bool, error) {
		<-r.Context().Done()
		return nil, false, context.Cause(r.Context())
	}
	switch p.n(14) {
	case 0: // no connection
		return nil, true, &net.OpError{Op: "dial", Net: "tcp", Err: errors.New("no route to host")}
	case 1:
		return silence()
	case 2: // silence after the server has acted
		serve()
		return silence()
	case 3: // a load balancer has dropped the connection, before or after the server has acted
		if p.n(2) == 0 {
			serve()
		}
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil && trace.GotConn != nil {
			trace.GotConn(httptrace.GotConnInfo{Reused: true})
		}
		return silence()
	case 4, 5: // the reply is lost
		serve()
		return nil, false, io.ErrUnexpectedEOF
	case 6: // the reply is replaced by a page
		serve()
		return errorPage(r, http.StatusOK), false, nil
	case 7, 8: // a proxy answers, though the server has acted
		serve()
		return errorPage(r, pick(p.n, 408, 500, 502, 503, 504)), false, nil
	case 9: // the refresh token is dead
		p.mu.Lock()
		p.kill(refresh)
		p.mu.Unlock()
		resp, err := serve()
		if err == nil && refresh != "" && p.n(3) == 0 { // some servers refuse with a 200
			resp.StatusCode = http.StatusOK
			resp.Header.Set("Broken", "yes")
		}
		return resp, false, err
	case 10: // a firewall
		return errorPage(r, pick(p.n, 400, 401, 403, 404, 422)), false, nil
	case 11: // the server is down
		resp := errorPage(r, pick(p.n, 500, 503))
		if p.n(3) == 0 {
			resp.Header.Set("Retry-After", strconv.Itoa(pick(p.n, 1, 5, 60)))
		}
		return resp, false, nil
	default:
		resp := errorPage(r, http.StatusTooManyRequests)
		if p.n(3) > 0 {
			resp.Header.Set("Retry-After", strconv.Itoa(pick(p.n, 1, 5, 60)))
		}
		return resp, true, nil
	}
}

// revocation answers a revoke request, as the server does or with a random
// fault.
func (p *process) revocation(r *http.Request, token string) (*http.Response, error) {
	p.mu.Lock()
	p.begin(r)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.end(r)
	}()
	fault := p.n(100) < p.faults/2 && !p.isCalm()
	if fault {
		switch p.n(5) {
		case 0:
			return nil, errors.New("no route to host")
		case 1:
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		case 2:
			return errorPage(r, pick(p.n, 400, 403, 429, 500, 503)), nil
		case 3: // a sign-in page
			return errorPage(r, http.StatusOK), nil
		}
	}
	p.mu.Lock()
	p.killed[token] = true
	p.revoked[token] = p.note(p, "revokes %s", short(token))
	p.mu.Unlock()
	resp, err := p.server.Transport().RoundTrip(r)
	if err := p.step(r.Context()); err != nil {
		return nil, err
	}
	if fault {
		return nil, io.ErrUnexpectedEOF // the reply is lost
	}
	return resp, err
}

// traits describes the cache of a world.
type traits struct {
	there, locks bool // there is a cache, and it is a Locker
	flaky        int  // how many of 100 calls fail
	slow         bool // a Put may take effect after its caller has stopped waiting
	readOnly     bool // Put fails
	keepsAll     bool // Delete fails
	losesLocks   bool // a lock may become free while it is held
}

// shelf holds the cache's only entry and its lock.
type shelf struct {
	data    []byte
	changed time.Time
	holder  *process
	lease   int           // the number of locks so far
	freed   chan struct{} // closed when the lock becomes free
}

// tokens returns the tokens on the shelf, if p's source can read them. w.mu is
// held.
func (s *shelf) tokens(p *process) []string {
	if p.source.core.cache == nil || s.data == nil {
		return nil
	}
	e, err := p.source.core.cache.open(s.data)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc([]string{e.AccessToken, e.RefreshToken}, func(tok string) bool { return tok == "" })
}

// place puts data on the shelf. w.mu is not held.
func (v view) place(data []byte) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.shared.data, v.shared.changed = data, time.Now()
	if e, err := v.source.core.cache.open(data); err == nil {
		v.note(v.process, "has put %s and %s, sent: %v", short(e.AccessToken), short(e.RefreshToken), e.Sent)
	} else {
		v.note(v.process, "has deleted the entry")
	}
}

// free releases the lock if p holds it. w.mu is held.
func (s *shelf) free(p *process) {
	if s.holder == p {
		s.holder = nil
		close(s.freed)
		s.freed = make(chan struct{})
	}
}

var errCache = errors.New("the cache fails")

// view is the cache as one process uses it.
type view struct{ *process }

// fail makes some calls to the cache fail before they do anything.
func (v view) fail(ctx context.Context) error {
	if err := v.step(ctx); err != nil {
		return err
	}
	if err := sleep(ctx, v.duration(20*time.Millisecond)); err != nil {
		return err
	}
	if v.n(100) >= v.cacheIs.flaky || v.isCalm() {
		return nil
	}
	if v.n(3) == 0 {
		<-ctx.Done()
		return ctx.Err()
	}
	return errCache
}

func (v view) Get(ctx context.Context, _ string) ([]byte, error) {
	if err := v.fail(ctx); err != nil {
		return nil, err
	}
	v.mu.Lock()
	data := v.shared.data
	v.mu.Unlock()
	if v.n(100) < v.cacheIs.flaky/4 && !v.isCalm() && len(data) > 0 {
		data = data[:len(data)-1]
	}
	return data, v.step(ctx)
}

func (v view) Put(ctx context.Context, _ string, data []byte) error {
	if err := v.fail(ctx); err != nil {
		return err
	}
	if v.cacheIs.readOnly && !v.isCalm() {
		return errCache
	}
	if v.cacheIs.slow && v.n(2) == 0 && !v.isCalm() {
		done := make(chan struct{})
		time.AfterFunc(v.duration(10*time.Second), func() { v.place(data); close(done) })
		select {
		case <-done:
		case <-ctx.Done():
			return ctx.Err()
		}
	} else {
		v.place(data)
	}
	return v.step(ctx)
}

func (v view) Delete(ctx context.Context, _ string) error {
	if err := v.fail(ctx); err != nil {
		return err
	}
	if v.cacheIs.keepsAll && !v.isCalm() {
		return errCache
	}
	v.place(nil)
	return v.step(ctx)
}

// lockingView is a view that is also a Locker.
type lockingView struct{ view }

func (v lockingView) Lock(ctx context.Context, _ string) (func(), error) {
	if err := v.fail(ctx); err != nil {
		return nil, err
	}
	for {
		v.mu.Lock()
		s := &v.shared
		if s.holder == nil && !v.dead {
			s.lease++
			s.holder = v.process
			lease := s.lease
			v.note(v.process, "has the lock")
			v.mu.Unlock()
			unlock := func() {
				v.mu.Lock()
				defer v.mu.Unlock()
				if s.lease == lease {
					s.free(v.process)
				}
			}
			if v.cacheIs.losesLocks && !v.isCalm() {
				time.AfterFunc(maxCacheTime+v.duration(5*time.Second), unlock)
			}
			return unlock, v.step(ctx)
		}
		freed := s.freed
		v.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// A caller joins a refresh in the background that hangs. When the refresh
// fails, the caller has little time left for a grant of its own.
func TestRefusedTokenThatIsNotReplacedInTimeIsReturned(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		tok := token(t, s)
		time.Sleep(12*time.Minute + 30*time.Second)
		server.SetLatency(time.Hour)
		token(t, s) // starts the refresh
		time.Sleep(time.Second)
		s.Invalidate(tok.AccessToken)
		assert.Equal(t, tok.AccessToken, token(t, s).AccessToken)
	})
}
