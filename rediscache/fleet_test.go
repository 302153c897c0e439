package rediscache

// This file runs fleets: many sources in one process, and many processes, which are
// this test binary started again. The test server records their token requests.

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

const (
	pingScope = "/ping.read"

	// Sources refresh these tokens after 3.5 to 3.6 s and use them for up to 4.5 s. The
	// server accepts them for 5 s.
	shortLife = 5 * time.Second

	roleVariable   = "REDISCACHE_TEST_ROLE"   // the role of a process that a test starts
	memberVariable = "REDISCACHE_TEST_MEMBER" // its member, as JSON
)

// roles are what this binary can do when a test starts it again. A role ends when in
// ends.
var roles = map[string]func(in io.Reader, out io.Writer) error{
	"member": beMember,
	"holder": holdLock,
}

// member configures a process of a fleet.
type member struct {
	BaseURL, ClientID, ClientSecret string
	Redis                           string // the address of Redis; "" for no cache
	Key                             string // the key that a holder locks
	LockTTL                         time.Duration
	Tokens                          int // stop after this many
}

func (m *member) cache() (*Cache, error) {
	client := redis.NewClient(&redis.Options{Addr: m.Redis, ContextTimeoutEnabled: true})
	return New(client, WithLockTTL(m.LockTTL))
}

// beMember prints "ready". After the first line of in it prints each new token that
// it gets, until it has got m.Tokens of them.
func beMember(in io.Reader, out io.Writer) error {
	var m member
	if err := json.Unmarshal([]byte(os.Getenv(memberVariable)), &m); err != nil {
		return err
	}
	opts := []moovauth.Option{moovauth.WithScopes(pingScope), moovauth.WithBaseURL(m.BaseURL)}
	if m.Redis != "" {
		cache, err := m.cache()
		if err != nil {
			return err
		}
		opts = append(opts, moovauth.WithCache(cache))
	}
	source, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: m.ClientID, ClientSecret: m.ClientSecret}, opts...)
	if err != nil {
		return err
	}
	lines := bufio.NewScanner(in)
	fmt.Fprintln(out, "ready")
	if !lines.Scan() {
		return lines.Err()
	}
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for lines.Scan() {
		}
	}()
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	var last string
	for had := 0; had < m.Tokens; {
		select {
		case <-stop:
			return nil
		case <-ticker.C:
		}
		token, err := source.Token()
		if err != nil {
			return err
		}
		if token.AccessToken != last {
			had, last = had+1, token.AccessToken
			fmt.Fprintln(out, last)
		}
	}
	<-stop
	return nil
}

// process is a process that runs this binary.
type process struct {
	*exec.Cmd
	in  io.WriteCloser
	end func() error // closes the process's input, and waits until the process ends

	mu    sync.Mutex // guards what follows
	lines []string
	ended bool
}

func startProcess(t *testing.T, role string, m member) *process {
	t.Helper()
	text, err := json.Marshal(m)
	require.NoError(t, err)
	p := &process{Cmd: exec.Command(os.Args[0])}
	p.Env = append(os.Environ(), roleVariable+"="+role, memberVariable+"="+string(text))
	var complaints strings.Builder
	p.Stderr = &complaints
	p.in, err = p.StdinPipe()
	require.NoError(t, err)
	out, err := p.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, p.Start())
	read := make(chan struct{})
	go func() {
		defer close(read)
		for scanner := bufio.NewScanner(out); scanner.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, scanner.Text())
			p.mu.Unlock()
		}
		p.mu.Lock()
		defer p.mu.Unlock()
		p.ended = true
	}()
	p.end = sync.OnceValue(func() error {
		_ = p.in.Close()
		<-read // Wait closes the pipe that is read
		if err := p.Wait(); err != nil {
			return fmt.Errorf("%w: %s", err, complaints.String())
		}
		return nil
	})
	t.Cleanup(func() {
		_ = p.Process.Kill()
		_ = p.end()
	})
	return p
}

// printed returns the lines that p has printed after "ready".
func (p *process) printed() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.lines[min(1, len(p.lines)):])
}

// awaitAll waits until done returns true. The test fails if a process ends first.
func awaitAll(t *testing.T, all []*process, done func() bool) {
	t.Helper()
	var early *process
	require.Eventually(t, func() bool {
		for _, p := range all {
			p.mu.Lock()
			if p.ended {
				early = p
			}
			p.mu.Unlock()
		}
		return early != nil || done()
	}, 2*soon, tick)
	if early != nil {
		require.NoError(t, early.end())
		require.Fail(t, "a process ended early")
	}
}

// startTogether starts n processes. When all are ready, it makes them begin at the
// same time.
func startTogether(t *testing.T, n int, role string, m member) []*process {
	t.Helper()
	all := make([]*process, n)
	for i := range all {
		all[i] = startProcess(t, role, m)
	}
	awaitAll(t, all, func() bool {
		return !slices.ContainsFunc(all, func(p *process) bool {
			p.mu.Lock()
			defer p.mu.Unlock()
			return len(p.lines) == 0
		})
	})
	for _, p := range all {
		_, err := io.WriteString(p.in, "go\n")
		require.NoError(t, err)
	}
	return all
}

// runProcesses runs 8 processes through 3 rollovers, which is 4 tokens. With a cache it
// ends when all processes have the newest token, without one when each process has
// had 4 tokens. It returns the token requests that the server has recorded.
func runProcesses(t *testing.T, redisAddr string) []moovtest.Request {
	t.Helper()
	const tokens = 4
	server := moovtest.NewServer(moovtest.WithLifetime(shortLife))
	t.Cleanup(server.Close)
	all := startTogether(t, 8, "member", member{
		BaseURL: server.URL, ClientID: server.ClientID, ClientSecret: server.ClientSecret,
		Redis: redisAddr, LockTTL: defaultLockTTL, Tokens: tokens,
	})
	awaitAll(t, all, func() bool {
		alive := server.AccessTokens() // the newest last
		different := make(map[string]bool)
		for _, p := range all {
			had := p.printed()
			for _, token := range had {
				different[token] = true
			}
			if redisAddr == "" && len(had) < tokens ||
				redisAddr != "" && (len(had) == 0 || had[len(had)-1] != alive[len(alive)-1]) {
				return false
			}
		}
		return len(different) >= tokens
	})
	for _, p := range all {
		_ = p.in.Close() // all end at the same time
	}
	for _, p := range all {
		require.NoError(t, p.end())
	}
	return server.TokenRequests()
}

func TestProcessesShareEachToken(t *testing.T) {
	t.Parallel()
	requests := runProcesses(t, startRedis(t).addr)
	var grants []string
	for _, r := range requests {
		grants = append(grants, r.GrantType)
	}
	assert.Equal(t, []string{"client_credentials", "refresh_token", "refresh_token", "refresh_token"}, grants)
	m := model{lifetime: shortLife}
	assert.Len(t, requests, m.requests(8, 3, true))
	earliest, _ := m.refresh()
	for i := range requests[1:] {
		// A source counts the time from when it sent the request, and the server
		// records when the request arrived.
		assert.Greater(t, requests[i+1].Time.Sub(requests[i].Time), earliest-500*time.Millisecond)
	}
	t.Logf("8 processes, 3 rollovers, one cache: %d token requests", len(requests))
}

func TestProcessesWithoutACacheEachRequestATokenOfTheirOwn(t *testing.T) {
	t.Parallel()
	requests := runProcesses(t, "")
	assert.Len(t, requests, 32)
	assert.Len(t, requests, model{lifetime: shortLife}.requests(8, 3, false))
	t.Logf("8 processes, 3 rollovers, no cache: %d token requests", len(requests))
}

func TestSourcesThatStartAtOnceShareOneRequest(t *testing.T) {
	server := moovtest.NewServer(moovtest.WithLatency(200 * time.Millisecond))
	defer server.Close()
	cache := cacheOn(t, startRedis(t).addr)
	start := time.Now()
	tokens := together(t, sourcesOf(t, server, 200, moovauth.WithCache(cache)))
	for _, token := range tokens {
		assert.Equal(t, tokens[0], token)
	}
	assert.Len(t, server.TokenRequests(), 1)
	t.Logf("200 sources, started at once: %d token request, and all had the token after %v", len(server.TokenRequests()), time.Since(start).Round(time.Millisecond))
}

// A token request takes longer than the lock's TTL, so several sources hold the lock
// at the same time. If a refresh token is used twice, the server revokes all tokens
// that descend from it.
func TestLostLockCostsTokenRequestsAndNoDeadToken(t *testing.T) {
	t.Parallel()
	server := moovtest.NewServer(moovtest.WithReuseDetection(), moovtest.WithLifetime(3*time.Second), moovtest.WithLatency(500*time.Millisecond))
	defer server.Close()
	r := startRedis(t)
	const rounds, n = 4, 4
	for range rounds {
		var all []*moovauth.TokenSource
		for range n {
			all = append(all, sourcesOf(t, server, 1, moovauth.WithCache(cacheOn(t, r.addr, WithLockTTL(100*time.Millisecond))))...)
		}
		for _, token := range together(t, all) {
			assert.True(t, server.Alive(token))
		}
		time.Sleep(3 * time.Second) // until all have expired
	}
	requests, sent := 0, make(map[string]int)
	for _, r := range server.TokenRequests() {
		requests++
		if token := r.Form.Get("refresh_token"); token != "" {
			sent[token]++
			assert.Equal(t, 1, sent[token], "each refresh token is sent once")
		}
	}
	assert.Greater(t, requests, rounds, "otherwise the lock was not lost")
	assert.LessOrEqual(t, requests, rounds*n)
	assert.NotEmpty(t, sent)
	t.Logf("%d sources, %d rounds, locks that expire: %d token requests, %d of them with a refresh token", n, rounds, requests, len(sent))
}

func TestLockOfAKilledProcessBecomesFree(t *testing.T) {
	r := startRedis(t)
	cache := cacheOn(t, r.addr)
	const ttl = 2 * time.Second
	holder := startTogether(t, 1, "holder", member{Redis: r.addr, Key: "a", LockTTL: ttl})[0]
	awaitAll(t, []*process{holder}, func() bool { return len(holder.printed()) == 1 })

	brief, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, err := cache.Lock(brief, "a")
	require.ErrorIs(t, err, context.DeadlineExceeded, "the lock is held")

	require.NoError(t, holder.Process.Kill()) // SIGKILL
	require.Error(t, holder.end())
	killed := time.Now()
	require.Len(t, connect(t, r.addr).Keys(t.Context(), "a:lock").Val(), 1, "the lock is still in Redis")
	waiting, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	unlock, err := cache.Lock(waiting, "a")
	require.NoError(t, err)
	unlock()
	waited := time.Since(killed)
	assert.Less(t, waited, ttl+time.Second)
	t.Logf("the lock was free %v after its holder was killed; its TTL is %v", waited.Round(time.Millisecond), ttl)
}

// holdLock gets the lock, prints "held", and keeps the lock until in ends.
func holdLock(in io.Reader, out io.Writer) error {
	var m member
	if err := json.Unmarshal([]byte(os.Getenv(memberVariable)), &m); err != nil {
		return err
	}
	cache, err := m.cache()
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "ready")
	unlock, err := cache.Lock(context.Background(), m.Key)
	if err != nil {
		return err
	}
	fmt.Fprintln(out, "held")
	_, err = io.Copy(io.Discard, in)
	unlock()
	return err
}

// sourcesOf returns n sources with the same credentials.
func sourcesOf(t *testing.T, server *moovtest.Server, n int, opts ...moovauth.Option) []*moovauth.TokenSource {
	t.Helper()
	all := make([]*moovauth.TokenSource, n)
	for i := range all {
		var err error
		all[i], err = moovauth.NewTokenSource(
			moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
			append([]moovauth.Option{moovauth.WithScopes(pingScope), moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client())}, opts...)...)
		require.NoError(t, err)
	}
	return all
}

// together calls Token on all sources at the same time, and returns the tokens.
func together(t *testing.T, sources []*moovauth.TokenSource) []string {
	t.Helper()
	tokens := make([]string, len(sources))
	errs := make([]error, len(sources))
	var all sync.WaitGroup
	for i, s := range sources {
		all.Go(func() {
			var token *oauth2.Token
			if token, errs[i] = s.Token(); errs[i] == nil {
				tokens[i] = token.AccessToken
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		require.NoError(t, err)
	}
	return tokens
}
