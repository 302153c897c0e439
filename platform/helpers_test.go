package platform

// This file holds what several test files use: a server's rate limit, and callers.

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// limit is a model of a server's rate limit. It counts the requests that it serves
// in a second. The second slides, or starts at each whole second.
type limit struct {
	perSecond  int
	fixed      bool
	retryAfter time.Duration // 0: its 429s have no Retry-After

	mu      sync.Mutex
	served  []time.Time // in the last second
	total   int
	refused int
}

// admits reports whether a request at this moment is served.
func (s *limit) admits() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	recent := s.served[:0]
	for _, at := range s.served {
		if s.fixed && at.Unix() == now.Unix() || !s.fixed && now.Sub(at) < time.Second {
			recent = append(recent, at)
		}
	}
	s.served = recent
	if len(s.served) >= s.perSecond {
		s.refused++
		return false
	}
	s.served = append(s.served, now)
	s.total++
	return true
}

// result is the outcome of a run.
type result struct {
	took    time.Duration
	refused int
	failed  int
}

func newTestQueue(perSecond float64) *queue {
	return newQueue(&config{perSecond: perSecond, logger: slog.New(slog.DiscardHandler)})
}

// Wait waits for one interactive request.
func (q *queue) Wait(ctx context.Context) error { return (&place{queue: q}).Wait(ctx) }

// crowd starts n callers at once. Each waits in q for its request to s, which takes
// latency, and waits in q again if it is refused.
func crowd(q *queue, s *limit, n int, latency time.Duration) result {
	start := time.Now()
	var wg sync.WaitGroup
	var mu sync.Mutex
	var r result
	for range n {
		wg.Go(func() {
			l := &place{queue: q}
			for {
				if l.Wait(context.Background()) != nil {
					mu.Lock()
					r.failed++
					mu.Unlock()
					return
				}
				time.Sleep(latency / 2)
				ok := s.admits()
				time.Sleep(latency / 2)
				if ok {
					q.mu.Lock()
					q.pace.answer(time.Now())
					q.mu.Unlock()
					return
				}
				l.Refused(s.retryAfter)
			}
		})
	}
	wg.Wait()
	r.took, r.refused = time.Since(start), s.refused
	return r
}

// newTokens returns the Tokens of an API key at server.
func newTokens(t *testing.T, server *moovtest.Server, opts ...Option) *Tokens {
	t.Helper()
	opts = append([]Option{WithSource(moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client()))}, opts...)
	tokens, err := New(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret}, opts...)
	require.NoError(t, err)
	return tokens
}

// account returns the scopes of the nth account.
func account(n int) []string {
	return []string{fmt.Sprintf("/accounts/%06d/cards.write", n), fmt.Sprintf("/accounts/%06d/cards.read", n)}
}

// changing returns a client like client, with change applied to each reply.
func changing(client *http.Client, change func(*http.Response)) *http.Client {
	return &http.Client{Transport: roundTripper(func(req *http.Request) (*http.Response, error) {
		resp, err := client.Transport.RoundTrip(req)
		if err == nil {
			change(resp)
		}
		return resp, err
	})}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(req *http.Request) (*http.Response, error) { return f(req) }

func withoutRetryAfter(resp *http.Response) { resp.Header.Del("Retry-After") }
