package main

// This file runs a lane: one peer with its own endpoint, API and callers.

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moovauth/moovauth/bench/peers"
)

// lane has a clock, which starts with the first token. Azcore makes no early
// attempt within 30 s of the last one. So its callers rest after each token request,
// and the lane's clock stops meanwhile.
type lane struct {
	timetable
	peer   peers.Peer
	outage bool

	start    time.Time
	rested   atomic.Int64 // nanoseconds
	resting  atomic.Bool
	calls    []call // by start
	requests int64  // token requests
}

// call is one call of the API.
type call struct {
	at     time.Duration // when it began
	took   time.Duration
	failed bool // it returned an error or a 401
}

// clock returns the lane's time.
func (l *lane) clock() time.Duration {
	return time.Since(l.start) - time.Duration(l.rested.Load())
}

func (l *lane) run(ctx context.Context) error {
	lifetime, early, rest := l.lifetime, l.early, time.Duration(0)
	switch l.peer.Name {
	case peers.Azcore:
		lifetime, rest = azcoreLife(l.timetable), l.rest
		if rest > 0 {
			early = 32 * time.Second
		}
	case peers.Floor:
		lifetime = time.Hour
	}
	endpoint := peers.NewEndpoint(lifetime, l.latency)
	defer endpoint.Server.Close()
	config := endpoint.Config()
	config.Early, config.Retry = early, l.peer.Name != peers.Moovauth
	source, err := l.peer.New(config)
	if err != nil {
		return err
	}
	do, err := through(l.peer, source, endpoint.API())
	if err != nil {
		return err
	}
	if failed(do, peers.NewRequest(ctx, endpoint.Server.URL)) {
		return fmt.Errorf("%s: the first call failed", l.peer.Name)
	}

	l.start = time.Now()
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	calls := make([][]call, callers)
	var all sync.WaitGroup
	for i := range calls {
		all.Go(func() {
			pause(ctx, l.every*time.Duration(i)/callers) // so that the callers do not all call at the same time
			calls[i] = l.caller(ctx, do, peers.NewRequest(context.Background(), endpoint.Server.URL))
		})
	}
	l.conduct(stop, endpoint, rest)
	all.Wait()
	l.calls = slices.Concat(calls...)
	slices.SortFunc(l.calls, func(a, b call) int { return int(a.at - b.at) })
	l.requests = endpoint.Requests()
	return nil
}

// through returns a function that sends requests to base with the token. If the
// peer has no transport for that, it uses code that a user would write.
func through(peer peers.Peer, source *peers.Source, base http.RoundTripper) (peers.Do, error) {
	if source.Through != nil && peer.Name != peers.Floor {
		return source.Through(base)
	}
	return func(req *http.Request) (*http.Response, error) {
		token, err := source.Token(req.Context())
		if err != nil {
			return nil, err
		}
		own := req.Clone(req.Context())
		own.Header.Set("Authorization", "Bearer "+token)
		own.Header.Set(peers.VersionHeader, peers.Version)
		return base.RoundTrip(own)
	}, nil
}

func failed(do peers.Do, req *http.Request) bool {
	resp, err := do(req)
	if err != nil {
		return true
	}
	resp.Body.Close()
	return resp.StatusCode != http.StatusOK
}

// caller makes calls until ctx ends.
func (l *lane) caller(ctx context.Context, do peers.Do, req *http.Request) []call {
	calls := make([]call, 0, l.length/l.every)
	next := time.NewTicker(l.every)
	defer next.Stop()
	for {
		select {
		case <-ctx.Done():
			return calls
		case <-next.C:
		}
		if l.resting.Load() {
			continue
		}
		c := call{at: l.clock()}
		begun := time.Now()
		c.failed = failed(do, req)
		c.took = time.Since(begun)
		calls = append(calls, c)
	}
}

// conduct lets the callers rest, begins and ends the outage of the endpoint, and
// stops everything at the end.
func (l *lane) conduct(stop func(), endpoint *peers.Endpoint, rest time.Duration) {
	defer stop()
	const settled = time.Second // after a token request, until all its effects are over
	next := time.NewTicker(time.Millisecond)
	defer next.Stop()
	seen := int64(0)
	for l.clock() < l.length {
		<-next.C
		endpoint.SetDown(l.outage && l.clock() >= l.downFrom && l.clock() < l.downTo)
		if requests := endpoint.Requests(); rest > 0 && requests != seen && endpoint.Idle() > settled {
			seen = requests
			l.resting.Store(true)
			pause(context.Background(), rest)
			l.rested.Add(int64(rest))
			l.resting.Store(false)
		}
	}
}

func pause(ctx context.Context, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-ctx.Done():
	}
}
