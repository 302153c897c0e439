package rediscache

// This file is the model behind docs/fleet.md: how many token requests a fleet
// makes. Tests compare the page's tables with the model, and the model with fleets in
// fake time. Those use a simulated Redis, which takes time for each command.
// fleet_test.go compares the model with real processes.

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// model assumes that each process calls the API all the time.
type model struct {
	lifetime time.Duration // of a token
	latency  time.Duration // of a token request
	command  time.Duration // the round trip of a Redis command
}

// moov has the numbers that docs/fleet.md assumes.
var moov = model{lifetime: 15 * time.Minute, latency: 200 * time.Millisecond, command: time.Millisecond}

// refresh returns when a process refreshes a token, counted from the token request.
// Each process picks a random time between earliest and latest.
func (m model) refresh() (earliest, latest time.Duration) {
	usable := m.lifetime - min(5*time.Second, m.lifetime/10)
	early := min(m.lifetime/5, 5*time.Minute)
	return usable - early, usable - early + early/10
}

// uncached returns the token requests per second of n processes without a cache. Each
// refreshes its own token, on average halfway between earliest and latest.
func (m model) uncached(n int) float64 {
	earliest, latest := m.refresh()
	return float64(n) / ((earliest + latest) / 2).Seconds()
}

// period returns the average time between two refreshes of a shared token. The process
// with the earliest refresh time makes the refresh.
func (m model) period(n int) time.Duration {
	earliest, latest := m.refresh()
	return earliest + (latest-earliest)/time.Duration(n+1)
}

// shared returns the token requests per second of n processes that share a cache with
// a lock.
func (m model) shared(n int) float64 { return 1 / m.period(n).Seconds() }

// unlocked returns the token requests per second of n processes that share a cache
// without a lock. Besides the first process, those request a token whose refresh time
// comes before the new token is in the cache.
func (m model) unlocked(n int) float64 {
	earliest, latest := m.refresh()
	window := m.latency + 2*m.command
	others := float64(n-1) * min(1, window.Seconds()/(latest-earliest).Seconds())
	return (1 + others) / m.period(n).Seconds()
}

// commands returns the Redis commands per second of n processes that share a cache
// with a lock. Each process reads the cache once for each token.
func (m model) commands(n int) float64 { return float64(n) / m.period(n).Seconds() }

// requests returns how many token requests n processes make from their start to the
// end of the last rollover.
func (m model) requests(n, rollovers int, cache bool) int {
	if cache {
		n = 1
	}
	return n * (1 + rollovers)
}

// simRedis is a Redis in memory that runs one command at a time. It has only the
// commands that the cache uses.
type simRedis struct {
	redis.UniversalClient
	trip    time.Duration // the time of a round trip
	service time.Duration // the time that one command takes

	mu       sync.Mutex // guards what follows
	idle     time.Time  // when all commands so far are done
	values   map[string]string
	expiry   map[string]time.Time
	commands int
}

func newSimRedis() *simRedis {
	return &simRedis{
		trip: moov.command, service: 10 * time.Microsecond,
		values: make(map[string]string), expiry: make(map[string]time.Time),
	}
}

// do queues a command, and returns when the client has the reply.
func (r *simRedis) do(command func()) {
	time.Sleep(r.trip / 2)
	r.mu.Lock()
	if now := time.Now(); r.idle.Before(now) {
		r.idle = now
	}
	r.idle = r.idle.Add(r.service)
	wait := time.Until(r.idle)
	r.mu.Unlock()
	time.Sleep(wait)
	r.mu.Lock()
	r.commands++
	command()
	r.mu.Unlock()
	time.Sleep(r.trip / 2)
}

func (r *simRedis) value(key string) string {
	if time.Now().Before(r.expiry[key]) {
		return r.values[key]
	}
	return ""
}

func (r *simRedis) set(key, value string, ttl time.Duration) {
	r.values[key], r.expiry[key] = value, time.Now().Add(ttl)
}

func (r *simRedis) GetRange(_ context.Context, key string, _, _ int64) (cmd *redis.StringCmd) {
	r.do(func() { cmd = redis.NewStringResult(r.value(key), nil) })
	return cmd
}

func (r *simRedis) Set(_ context.Context, key string, value any, ttl time.Duration) *redis.StatusCmd {
	r.do(func() { r.set(key, string(value.([]byte)), ttl) })
	return redis.NewStatusResult("OK", nil)
}

// EvalSha does what redislock's scripts do. The script that obtains a lock has three
// arguments, of which the last is the TTL. The script that releases it has one.
func (r *simRedis) EvalSha(_ context.Context, _ string, keys []string, args ...any) (cmd *redis.Cmd) {
	key, holder := keys[0], args[0].(string)
	r.do(func() {
		switch held := r.value(key); {
		case len(args) == 1 && held == holder:
			r.set(key, "", 0)
			cmd = redis.NewCmdResult(int64(1), nil)
		case len(args) == 3 && held == "":
			ms, _ := strconv.Atoi(args[2].(string))
			r.set(key, holder, time.Duration(ms)*time.Millisecond)
			cmd = redis.NewCmdResult("OK", nil)
		default:
			cmd = redis.NewCmdResult(nil, redis.Nil)
		}
	})
	return cmd
}

// unlockedCache hides the lock of a cache.
type unlockedCache struct{ moovauth.Cache }

// run has the results of a simulated fleet.
type run struct {
	requests []moovtest.Request
	commands int
	all      time.Duration // the time until all had their first token
}

// simulate runs n sources for the duration while. kind is their cache: "none",
// "unlocked" or "locked". The sources start one after the other over spread.
func simulate(t *testing.T, n int, kind string, spread, while time.Duration) (r run) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithLatency(moov.latency), moovtest.WithLifetime(moov.lifetime))
		sim := newSimRedis()
		cache, err := New(sim)
		require.NoError(t, err)
		var opts []moovauth.Option
		switch kind {
		case "unlocked":
			opts = append(opts, moovauth.WithCache(unlockedCache{cache}))
		case "locked":
			opts = append(opts, moovauth.WithCache(cache))
		}
		begin := time.Now()
		earliest, _ := moov.refresh()
		pause := time.Second
		if kind == "unlocked" { // the calls within 0.2 s count
			pause /= 10
		}
		var mu sync.Mutex
		var fleet sync.WaitGroup
		for i, source := range sourcesOf(t, server, n, opts...) {
			fleet.Go(func() {
				time.Sleep(spread * time.Duration(i) / time.Duration(n))
				for first := true; first || time.Since(begin) < while; first = false {
					token, err := source.Token()
					if !assert.NoError(t, err) {
						return
					}
					if first {
						mu.Lock()
						r.all = max(r.all, time.Since(begin))
						mu.Unlock()
					}
					if while > 0 {
						// Calls before the refresh change nothing, so they are left out.
						age := moov.lifetime - time.Until(token.Expiry)
						time.Sleep(max(earliest-time.Second-age, 0) + rand.N(pause))
					}
				}
			})
		}
		fleet.Wait()
		time.Sleep(time.Minute) // until all background requests have ended
		sim.mu.Lock()
		defer sim.mu.Unlock()
		r.requests, r.commands = server.TokenRequests(), sim.commands
	})
	return r
}

// later returns the token requests per second in the last hours of a run.
func (r *run) later(hours float64) float64 {
	end := r.requests[len(r.requests)-1].Time
	n := 0
	for _, request := range r.requests {
		if end.Sub(request.Time).Hours() < hours {
			n++
		}
	}
	return float64(n) / hours / 3600
}

func TestModelAgreesWithFleetsInFakeTime(t *testing.T) {
	t.Parallel()
	for n, hours := range map[int]float64{10: 40, 1000: 4} {
		for kind, c := range map[string]struct {
			want  float64
			error float64 // the allowed error, as a part of want
		}{
			"none":     {moov.uncached(n), 0.1},
			"unlocked": {moov.unlocked(n), 0.4}, // varies with how many refresh within 0.2 s
			"locked":   {moov.shared(n), 0.1},
		} {
			t.Run(fmt.Sprint(n, " ", kind), func(t *testing.T) {
				r := simulate(t, n, kind, 10*time.Minute, time.Duration(hours)*time.Hour)
				assert.InEpsilon(t, c.want, r.later(hours-1), c.error)
				t.Logf("%.4g token requests per second, the model says %.4g", r.later(hours-1), c.want)
				if kind == "locked" {
					commands := float64(r.commands) / hours / 3600
					assert.Greater(t, commands, moov.commands(n)*0.9)
					assert.Less(t, commands, moov.commands(n)*2)
					t.Logf("%.4g commands per second, the model says %.4g", commands, moov.commands(n))
				}
			})
		}
	}
}

// table returns the cells of the first table in docs/fleet.md below a heading.
func table(t *testing.T, heading string) (rows [][]string) {
	t.Helper()
	text, err := os.ReadFile("../docs/fleet.md")
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), "\n## "+heading+"\n")
	require.True(t, found, heading)
	for line := range strings.Lines(after) {
		switch {
		case strings.HasPrefix(line, "| ") && !strings.HasPrefix(line, "| processes"):
			var row []string
			for cell := range strings.SplitSeq(strings.Trim(strings.TrimSpace(line), "|"), "|") {
				row = append(row, strings.TrimSpace(cell))
			}
			rows = append(rows, row)
		case !strings.HasPrefix(line, "|") && len(rows) > 0:
			return rows
		}
	}
	return rows
}

// number returns the number in a cell such as "1,000" or "0.3 s".
func number(t *testing.T, cell string) float64 {
	t.Helper()
	first, _, _ := strings.Cut(cell, " ")
	n, err := strconv.ParseFloat(strings.ReplaceAll(first, ",", ""), 64)
	require.NoError(t, err)
	return n
}

func TestPageHasTheNumbersOfTheModel(t *testing.T) {
	rows := table(t, "Token requests per second")
	require.Len(t, rows, 3)
	for _, row := range rows {
		n := int(number(t, row[0]))
		for i, want := range []float64{moov.uncached(n), moov.unlocked(n), moov.shared(n), moov.commands(n)} {
			assert.Equal(t, fmt.Sprintf("%.3g", want), strings.ReplaceAll(row[1+i], ",", ""), "%d processes, column %d", n, 1+i)
		}
	}
}

func TestPageHasTheNumbersOfAStartAtOnce(t *testing.T) {
	t.Parallel()
	rows := table(t, "All processes start at once")
	require.Len(t, rows, 4)
	for _, row := range rows {
		n := int(number(t, row[0]))
		for i, kind := range []string{"none", "unlocked", "locked"} {
			if n > 1000 && kind != "locked" {
				assert.EqualValues(t, n, number(t, row[1+i]), "each process requests a token, as in smaller fleets")
				continue
			}
			r := simulate(t, n, kind, 0, 0)
			assert.EqualValues(t, number(t, row[1+i]), len(r.requests), "%d processes, %s", n, kind)
			if kind == "locked" {
				assert.InEpsilon(t, number(t, row[4]), r.all.Seconds(), 0.4, "%d processes", n)
				assert.InEpsilon(t, number(t, row[5]), r.commands, 0.25, "%d processes", n)
				t.Logf("%d processes: %d token requests, all have the token after %v, %d commands", n, len(r.requests), r.all.Round(time.Millisecond), r.commands)
			}
		}
	}
}
