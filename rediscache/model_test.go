package rediscache

// This file is the model behind docs/fleet.md: how many token requests a fleet
// makes. The page's tables are held against it, and it is held against fleets
// that run in fake time, on a Redis that is simulated down to how many commands
// it can take, and against the real processes of fleet_test.go.

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

// model assumes processes that call the API all the time.
type model struct {
	lifetime time.Duration // of a token
	latency  time.Duration // of a token request
	command  time.Duration // to Redis and back
}

// moov is what docs/fleet.md assumes.
var moov = model{lifetime: 15 * time.Minute, latency: 200 * time.Millisecond, command: time.Millisecond}

// refresh is when a process refreshes a token: at a moment between earliest and
// latest, counted from when the token was asked for, that each draws for itself.
func (m model) refresh() (earliest, latest time.Duration) {
	usable := m.lifetime - min(5*time.Second, m.lifetime/10)
	early := min(m.lifetime/5, 5*time.Minute)
	return usable - early, usable - early + early/10
}

// alone is token requests per second of n processes without a cache: each
// refreshes for itself, in the middle between earliest and latest.
func (m model) alone(n int) float64 {
	earliest, latest := m.refresh()
	return float64(n) / ((earliest + latest) / 2).Seconds()
}

// period is how long a shared token serves: the first of n moments ends it.
func (m model) period(n int) time.Duration {
	earliest, latest := m.refresh()
	return earliest + (latest-earliest)/time.Duration(n+1)
}

// shared is alone, of processes that share a cache with a lock.
func (m model) shared(n int) float64 { return 1 / m.period(n).Seconds() }

// unlocked is shared if the cache has no lock: besides the first, those ask
// whose moment comes before its token is in the cache.
func (m model) unlocked(n int) float64 {
	earliest, latest := m.refresh()
	window := m.latency + 2*m.command
	others := float64(n-1) * min(1, window.Seconds()/(latest-earliest).Seconds())
	return (1 + others) / m.period(n).Seconds()
}

// commands is what a fleet with a lock asks of Redis per second: each process
// looks once for each token.
func (m model) commands(n int) float64 { return float64(n) / m.period(n).Seconds() }

// requests is how many token requests n processes make from their start to the
// last of so many rollovers.
func (m model) requests(n, rollovers int, cache bool) int {
	if cache {
		n = 1
	}
	return n * (1 + rollovers)
}

// simRedis is a Redis in memory that takes one command at a time. It knows the
// commands of this package alone.
type simRedis struct {
	redis.UniversalClient
	trip    time.Duration // to it and back
	service time.Duration // of one command

	mu       sync.Mutex // guards what follows
	idle     time.Time  // when it has done all that has come
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

// do queues a command, and returns when its reply is here.
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

// EvalSha runs redislock's scripts: obtain has a time to live as its third
// argument, release has one argument.
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

// unlockedCache is a cache without its lock.
type unlockedCache struct{ moovauth.Cache }

// run is what a simulated fleet has done.
type run struct {
	requests []moovtest.Request
	commands int
	all      time.Duration // until all had their first token
}

// simulate runs n sources for a while, with cache "none", "unlocked" or
// "locked". They start at once, or one after the other over spread.
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
		if kind == "unlocked" { // what comes within 0.2 s counts
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
						// It calls on; but nothing comes of it before the refresh.
						age := moov.lifetime - time.Until(token.Expiry)
						time.Sleep(max(earliest-time.Second-age, 0) + rand.N(pause))
					}
				}
			})
		}
		fleet.Wait()
		time.Sleep(time.Minute) // until what was left behind has ended
		sim.mu.Lock()
		defer sim.mu.Unlock()
		r.requests, r.commands = server.TokenRequests(), sim.commands
	})
	return r
}

// later counts the requests in the last so many hours of a run, and returns them
// per second.
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
			error float64 // that is let pass, as a part of it
		}{
			"none":     {moov.alone(n), 0.1},
			"unlocked": {moov.unlocked(n), 0.4}, // it hangs on who comes within 0.2 s
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

// table returns the cells of the table in docs/fleet.md that follows a heading.
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

// number reads a cell: 1,000 is a thousand, and units are left out.
func number(t *testing.T, cell string) float64 {
	t.Helper()
	first, _, _ := strings.Cut(cell, " ")
	n, err := strconv.ParseFloat(strings.ReplaceAll(first, ",", ""), 64)
	require.NoError(t, err)
	return n
}

func TestPageSaysWhatTheModelYields(t *testing.T) {
	rows := table(t, "Token requests per second")
	require.Len(t, rows, 3)
	for _, row := range rows {
		n := int(number(t, row[0]))
		for i, want := range []float64{moov.alone(n), moov.unlocked(n), moov.shared(n), moov.commands(n)} {
			assert.Equal(t, fmt.Sprintf("%.3g", want), strings.ReplaceAll(row[1+i], ",", ""), "%d processes, column %d", n, 1+i)
		}
	}
}

func TestPageSaysWhatAStartAtOnceTakes(t *testing.T) {
	t.Parallel()
	rows := table(t, "A start at once")
	require.Len(t, rows, 4)
	for _, row := range rows {
		n := int(number(t, row[0]))
		for i, kind := range []string{"none", "unlocked", "locked"} {
			if n > 1000 && kind != "locked" {
				assert.EqualValues(t, n, number(t, row[1+i]), "all ask, as fewer do")
				continue
			}
			r := simulate(t, n, kind, 0, 0)
			assert.EqualValues(t, number(t, row[1+i]), len(r.requests), "%d processes, %s", n, kind)
			if kind == "locked" {
				assert.InEpsilon(t, number(t, row[4]), r.all.Seconds(), 0.4, "%d processes", n)
				assert.InEpsilon(t, number(t, row[5]), r.commands, 0.25, "%d processes", n)
				t.Logf("%d processes: %d token requests, all have it after %v, %d commands", n, len(r.requests), r.all.Round(time.Millisecond), r.commands)
			}
		}
	}
}
