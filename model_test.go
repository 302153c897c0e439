package moovauth

// This file is the model test: random programs on one server and one cache,
// where all that can go wrong does. The world below knows what is alive at the
// server and what each process received; it holds the sources to these rules:
//
//  1. After a Revoke that returned nil, no token is alive that the source had
//     received, or that its cache held, when Revoke was called.
//  2. A source makes one request at a time.
//  3. Callers come back with their context, and without one within WithTimeout.
//  4. No goroutine is left. (A bubble panics if one is.)
//  5. Nobody sends a refresh token that may have been used up by then.
//  6. So the server, which detects reuse, revokes no token that lives.
//  7. A caller gets an error only if the server refused the last request, asked
//     to be left alone, or is left alone after a failure or invalidations.
//  8. A token that is handed out has not expired, and its source has neither
//     invalidated nor revoked it.

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
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

	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// Each run has a seed of its own. MODEL_SEED=n repeats that one; MODEL_RUNS=n
// makes n runs, from that seed on.
func TestModel(t *testing.T) {
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1)) // else the race detector itself crashes now and then: see golang/go#78156
	seed, runs := uint64(1), uint64(1_000)
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
			if !finished {
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

// world is all that the processes of one run share, and what the rules need to know.
type world struct {
	t        *testing.T
	server   *moovtest.Server
	timeout  time.Duration // WithTimeout
	faults   int           // of 100 token requests
	cacheIs  traits
	lifetime time.Duration
	over     chan struct{} // closed when the dead may go

	callers sync.WaitGroup

	mu        sync.Mutex // guards what follows, and the processes
	random    *rand.Rand
	calm      bool // nothing goes wrong any more
	processes []*process
	sent      map[string]*sending  // by refresh token
	killed    map[string]bool      // tokens that somebody asked the server to revoke
	expiries  map[string]time.Time // of the access tokens, by the server's clock
	clock     int                  // counts what happens
	story     []string             // what happened
	counts    map[string]int
	shared    shelf
}

// sending is a refresh token on its way.
type sending struct{ back, unused bool }

func newWorld(t *testing.T, seed uint64, counts map[string]int) *world {
	w := &world{
		t: t, over: make(chan struct{}), random: rand.New(rand.NewPCG(seed, 0)), counts: counts,
		sent: make(map[string]*sending), killed: make(map[string]bool), expiries: make(map[string]time.Time),
	}
	w.lifetime = pick(w.random.IntN, 10*time.Second, time.Minute, 15*time.Minute)
	w.timeout = pick(w.random.IntN, 12*time.Second, 30*time.Second)
	w.faults = pick(w.random.IntN, 0, 10, 30, 60)
	w.cacheIs = traits{
		there:      w.random.IntN(5) > 0,
		locks:      w.random.IntN(3) > 0,
		flaky:      pick(w.random.IntN, 0, 0, 5, 20),
		late:       w.random.IntN(4) == 0,
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

// note tells the story, and is the only clock that tells apart what happens in
// one instant. w.mu is held.
func (w *world) note(p *process, format string, args ...any) (moment int) {
	w.clock++
	w.story = append(w.story, fmt.Sprintf("%9.3fs  %s  ", time.Since(bubbleBegan).Seconds(), p)+fmt.Sprintf(format, args...))
	return w.clock
}

var bubbleBegan = time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)

// broken reports that a rule is. w.mu is held.
func (w *world) broken(rule int, p *process, format string, args ...any) {
	w.note(p, "RULE %d IS BROKEN: "+format, append([]any{rule}, args...)...)
	if !w.t.Failed() {
		w.t.Errorf("lifetime %v, timeout %v, cache %+v\n%s", w.lifetime, w.timeout, w.cacheIs, strings.Join(w.story, "\n"))
	}
}

// run lets the processes live for a while, and then ends in calm.
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
	time.Sleep(10 * time.Minute) // cool-downs and late replies end
	w.checkLiving()
	for _, p := range w.processes {
		w.mu.Lock()
		dead := p.dead
		w.mu.Unlock()
		if dead || w.t.Failed() {
			continue
		}
		p.token(time.Minute)
		p.revoke(time.Minute)
	}
	close(w.over)
	time.Sleep(time.Hour)
}

// act is one step of one process.
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
	case 8: // all at once
		for _, p := range w.processes {
			w.callers.Go(func() { p.token(limit) })
		}
	case 3, 4:
		w.callers.Go(func() { p.revoke(limit) })
	case 5:
		if w.random.IntN(3) == 0 {
			p.revoke(-1)
		}
	case 6: // the program is stopped, and another one begins
		w.mu.Lock()
		p.steps, p.manner = 1+w.random.IntN(12), w.random.IntN(4)
		w.mu.Unlock()
		w.start()
	case 7: // the program's operator revokes a token in the dashboard
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

// checkLiving is rule 6: what nobody revoked and nobody used lives.
func (w *world) checkLiving() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, p := range w.processes {
		for _, r := range p.received {
			expiry, expires := w.expiries[r.token]
			if (!expires || serverTime(time.Now()).Before(expiry)) && w.sent[r.token] == nil && !w.killed[r.token] && !w.server.Alive(r.token) {
				w.broken(6, p, "the server revoked %s", short(r.token))
			}
		}
	}
}

// process is a program with one source, between the world and which it stands.
type process struct {
	*world
	name   string
	source *TokenSource
	random *rand.Rand // guarded, as all that follows, by world.mu

	steps    int // until it dies; 0: it does not
	manner   int // of dying
	dead     bool
	asking   []context.Context // the requests in progress
	received []receipt         // tokens that came in a reply, or from the cache
	full     bool              // the source may have forgotten a token
	last     string            // the access token handed out last
	gone     map[string]int    // tokens that it revoked or invalidated, and the moment
	served   int               // the moment of the last token request that brought a token
	servedAt time.Time         // its time
	failed   int               // the moment of the last one that can be why a caller is refused
	asked    time.Time         // until when the server wants to be left alone
	refusals int               // invalidations of a good token
}

type receipt struct {
	token string
	at    time.Time
}

func (p *process) String() string { return p.name }

func short(token string) string { return token[max(0, len(token)-4):] }

// start starts another process.
func (w *world) start() {
	p := &process{world: w, name: string(rune('A' + len(w.processes)%26)), gone: make(map[string]int),
		random: rand.New(rand.NewPCG(w.random.Uint64(), 0))}
	opts := []Option{WithTimeout(w.timeout), WithHTTPClient(&http.Client{Transport: p})}
	switch {
	case w.cacheIs.there && w.cacheIs.locks:
		opts = append(opts, WithCache(lockingView{view{p}}))
	case w.cacheIs.there:
		opts = append(opts, WithCache(view{p}))
	}
	p.source = sourceOf(w.t, w.server, opts...)
	p.source.endpoint.random = func() float64 {
		w.mu.Lock()
		defer w.mu.Unlock()
		return p.random.Float64()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.processes = append(w.processes, p)
}

// receive notes tokens that p has from now on. w.mu is held.
func (p *process) receive(tokens ...string) {
	for _, tok := range tokens {
		if tok != "" && !slices.ContainsFunc(p.received, func(r receipt) bool { return r.token == tok }) {
			p.received = append(p.received, receipt{tok, time.Now()})
		}
	}
}

// forgetful notes whether the source has as many former tokens as it remembers.
// w.mu is not held.
func (p *process) forgetful() {
	p.source.memory.mu.Lock()
	full := len(p.source.memory.past().former) >= 14
	p.source.memory.mu.Unlock()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.full = p.full || full
}

// within is a context for limit: 0 has no end, and less has ended.
func within(limit time.Duration) (context.Context, context.CancelFunc) {
	if limit == 0 {
		return context.WithCancel(context.Background())
	}
	return context.WithTimeout(context.Background(), limit)
}

// token asks for a token: rules 3, 7 and 8.
func (p *process) token(limit time.Duration) {
	ctx, cancel := within(limit)
	defer cancel()
	p.mu.Lock()
	start, began := p.note(p, "Token within %v", limit), time.Now()
	p.mu.Unlock()
	tok, err := p.source.TokenContext(ctx)
	p.forgetful()

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	if most := cmp.Or(limit, p.timeout+grace); time.Since(began) > most {
		p.broken(3, p, "Token took %v instead of %v", time.Since(began), most)
	}
	if err == nil {
		p.counts["tokens"]++
		p.note(p, "got %s", short(tok.AccessToken))
		p.last = tok.AccessToken
		p.receive(tok.AccessToken, tok.RefreshToken)
		if gone, ok := p.gone[tok.AccessToken]; ok && gone < start {
			p.broken(8, p, "%s had been invalidated or revoked", short(tok.AccessToken))
		}
		if !p.killed[tok.AccessToken] && !p.server.Alive(tok.AccessToken) {
			p.broken(8, p, "%s is dead", short(tok.AccessToken))
		}
		return
	}
	p.counts["errors"]++
	p.note(p, "got the error %v", err)
	cooling := new(CoolDownError)
	switch {
	case ctx.Err() != nil:
		if !errors.Is(err, ctx.Err()) {
			p.broken(7, p, "the error does not say that the context had ended")
		}
	case p.calm:
		p.broken(7, p, "refused, though all is well")
	case errors.Is(err, context.DeadlineExceeded) && time.Since(began) >= p.timeout: // Revokes had the turn for so long
	case errors.Is(err, errRefused):
		if since := p.received[len(p.received)-1].at; p.refusals < 2 || time.Since(since) > maxInterval {
			p.broken(7, p, "%d invalidations, and %v since the last token, make no flood", p.refusals, time.Since(since))
		}
	case p.failed < p.served && p.servedAt.Before(time.Now()):
		p.broken(7, p, "refused, though no request had failed")
	case errors.As(err, &cooling) && (!cooling.Until.After(time.Now()) || cooling.Until.After(later(p.asked, time.Now().Add(maxCoolDown)))):
		p.broken(7, p, "the cool-down until %v should be over, or is too long", cooling.Until)
	}
}

func later(a, b time.Time) time.Time {
	if a.After(b) {
		return a
	}
	return b
}

// invalidate says that the API refused the token that p got last.
func (p *process) invalidate() {
	p.mu.Lock()
	tok := p.last
	p.mu.Unlock()
	held := p.source.memory.load().held
	current := tok != "" && held != nil && held.token.AccessToken == tok && p.source.goodFor() > 0
	p.source.Invalidate(tok)
	p.forgetful()
	p.mu.Lock()
	defer p.mu.Unlock()
	if current {
		p.counts["invalidations"]++
		p.gone[tok] = p.note(p, "Invalidate %s", short(tok))
		p.refusals++
	}
}

// revoke revokes all: rules 1 and 3.
func (p *process) revoke(limit time.Duration) {
	ctx, cancel := within(limit)
	defer cancel()
	p.forgetful()
	p.mu.Lock()
	var known []string
	for _, r := range p.received {
		if r.at.Before(time.Now()) && !p.full { // what comes in this very instant may come too late
			known = append(known, r.token)
		}
	}
	p.note(p, "Revoke within %v, knowing %d tokens, of %d in the cache", limit, len(known), len(p.shared.tokens(p)))
	cached, began := p.shared.tokens(p), time.Now()
	p.mu.Unlock()
	err := p.source.Revoke(ctx)

	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return
	}
	p.note(p, "Revoke: %v", err)
	most := p.timeout
	if limit != 0 {
		most = max(0, min(limit, most))
	}
	if time.Since(began) > most+heed {
		p.broken(3, p, "Revoke took %v instead of %v", time.Since(began), most)
	}
	if err != nil {
		p.counts["revocations failed"]++
		if p.calm {
			p.broken(7, p, "Revoke failed, though all is well")
		}
		return
	}
	p.counts["revocations"]++
	if p.shared.changed.Equal(began) {
		cached = nil // it may have changed before Revoke could look
	}
	for _, tok := range slices.Concat(known, cached) {
		if p.server.Alive(tok) {
			p.broken(1, p, "%s lives on after Revoke", short(tok))
		}
		p.gone[tok] = p.clock
	}
	if limit < 0 {
		p.broken(3, p, "Revoke did something for a context that had ended")
	}
}

// RoundTrip is the network: rules 2 and 5.
func (p *process) RoundTrip(r *http.Request) (*http.Response, error) {
	p.step()
	text, _ := io.ReadAll(r.Body)
	r.Body.Close()
	form, err := url.ParseQuery(string(text))
	if err != nil {
		return nil, err
	}
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(strings.NewReader(string(text)))
	if r.URL.Path == revokePath {
		return p.revocation(r, form.Get("token"))
	}
	refresh := form.Get("refresh_token")
	patient := true // the source has time for another request if this one hangs
	if deadline, ok := r.Context().Deadline(); ok {
		patient = time.Until(deadline) >= leastAttempt
	}
	background := p.source.goodFor() > 0 // its failure is nobody's
	p.forgetful()

	p.mu.Lock()
	p.counts[form.Get("grant_type")]++
	p.note(p, "sends %s %s", form.Get("grant_type"), short(refresh))
	p.begin(r)
	if !background && (refresh == "" || !patient) { // after a refresh grant that fails, client credentials follow
		p.failed = p.clock // until it succeeds
	}
	s := new(sending)
	if refresh != "" {
		if before := p.sent[refresh]; before != nil && !(before.back && before.unused) {
			p.broken(5, p, "%s is sent again", short(refresh))
		}
		p.sent[refresh] = s
	}
	p.mu.Unlock()

	var resp *http.Response
	var unused bool
	defer func() { // also if it panics
		p.mu.Lock()
		defer p.mu.Unlock()
		p.end(r)
		s.back, s.unused = true, unused
		if p.dead {
			return
		}
		if p.hear(resp) && r.Context().Err() == nil {
			p.served, p.servedAt = p.clock, time.Now()
		} else if !background && (p.asked.After(time.Now()) || resp == nil && err == nil) { // or if it panics
			p.failed = p.clock
		}
	}()
	resp, unused, err = p.answer(r, refresh)
	p.step()
	return resp, err
}

// begin and end are rule 2. w.mu is held.
func (p *process) begin(r *http.Request) {
	p.asking = slices.DeleteFunc(p.asking, func(ctx context.Context) bool { return ctx.Err() != nil })
	if p.asking = append(p.asking, r.Context()); len(p.asking) > 1 {
		p.broken(2, p, "%d requests at once", len(p.asking))
	}
}

func (p *process) end(r *http.Request) {
	p.asking = slices.DeleteFunc(p.asking, func(ctx context.Context) bool { return ctx == r.Context() })
}

// hear notes what a token request brought, and reports whether that was tokens.
// w.mu is held.
func (p *process) hear(resp *http.Response) bool {
	if resp == nil {
		p.note(p, "gets no reply")
		return false
	}
	if resp.StatusCode != http.StatusOK || resp.Header.Get("Broken") != "" {
		p.note(p, "is answered %s %v", resp.Status, resp.Header["Retry-After"])
		if asks, _ := strconv.Atoi(resp.Header.Get("Retry-After")); asks > 0 {
			p.asked = later(p.asked, time.Now().Add(time.Duration(asks)*time.Second*5/4+time.Second))
		}
		return false
	}
	p.take(resp)
	return true
}

// take notes the tokens of a reply. w.mu is held.
func (p *process) take(resp *http.Response) {
	body, _ := io.ReadAll(resp.Body)
	resp.Body = io.NopCloser(strings.NewReader(string(body)))
	var reply struct {
		AccessToken  string `json:"access_token"`
		RefreshToken string `json:"refresh_token"`
		ExpiresIn    int64  `json:"expires_in"`
	}
	require.NoError(p.t, json.Unmarshal(body, &reply))
	p.note(p, "receives %s and %s", short(reply.AccessToken), short(reply.RefreshToken))
	p.expiries[reply.AccessToken] = time.Unix(reply.ExpiresIn, 0)
	p.receive(reply.AccessToken, reply.RefreshToken)
}
