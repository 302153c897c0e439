package platform

// This file is the measurement. All of it runs in a synctest bubble.

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/moovauth/moovauth/moovtest"
)

const lifetime = 15 * time.Minute // of a token

// plan is the size of a run.
type plan struct {
	accounts  int
	perSecond int           // requests per second that the key's owner assumes
	every     time.Duration // between two calls of an account in run
	length    time.Duration // of run
	weighed   int           // accounts whose memory is measured
	waiting   int           // accounts that ask for a token before the pages do
}

var (
	full  = plan{accounts: 1000, perSecond: 40, every: 30 * time.Second, length: time.Hour, weighed: 10_000, waiting: 5000}
	short = plan{accounts: 200, perSecond: 20, every: time.Minute, length: 20 * time.Minute, weighed: 500, waiting: 400}
)

// crowd is the result of atOnce.
type crowd struct {
	served  []time.Duration // when each account had its token, in order
	failed  int             // callers that got an error
	refused int             // requests answered 429
}

// day is the result of run.
type day struct {
	calls, failed     int
	slow              int // calls that waited for more than a second
	longest           time.Duration
	requests, refused int
}

// people is the result of meet. The slices have an element for each page.
type people struct {
	waited   []time.Duration // until the page had its token or an error
	failed   []bool
	accounts atomic.Int64 // accounts that failed
}

// network is the network to a server. The round trip takes 60 to 100 ms, at random
// but the same in each run.
type network struct {
	base http.RoundTripper

	mu                sync.Mutex
	random            *rand.Rand
	requests, refused int
}

func (n *network) RoundTrip(req *http.Request) (*http.Response, error) {
	n.mu.Lock()
	half := time.Duration(30+n.random.IntN(20)) * time.Millisecond
	n.requests++
	n.mu.Unlock()
	time.Sleep(half)
	resp, err := n.base.RoundTrip(req)
	time.Sleep(half)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		n.mu.Lock()
		n.refused++
		n.mu.Unlock()
	}
	return resp, err
}

// open starts a server that accepts takes requests per second, and opens s for it.
func (p plan) open(s subject, takes int) (*moovtest.Server, *network, func(string) error, any, error) {
	server := moovtest.NewInMemory(moovtest.WithRateLimit(takes), moovtest.WithLifetime(lifetime),
		moovtest.WithExpiresInSeconds()) // clientcredentials does not understand a timestamp
	n := &network{base: server.Transport(), random: rand.New(rand.NewPCG(1, 2))}
	token, all, err := s.open(key{id: server.ClientID, secret: server.ClientSecret, url: server.URL,
		client: &http.Client{Transport: n}, perSecond: p.perSecond})
	return server, n, token, all, err
}

// atOnce lets all accounts request one token at the same time.
func (p plan) atOnce(s subject, takes int) (*crowd, error) {
	server, n, token, _, err := p.open(s, takes)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	start := time.Now()
	var mu sync.Mutex
	c := new(crowd)
	var callers sync.WaitGroup
	for i := range p.accounts {
		callers.Go(func() {
			err := token(scopeOf(i))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				c.failed++
			} else {
				c.served = append(c.served, time.Since(start))
			}
		})
	}
	callers.Wait()
	slices.Sort(c.served)
	c.refused = n.refused
	return c, nil
}

// run lets all accounts start at once, and then ask for a token again and again.
func (p plan) run(s subject, takes int) (*day, error) {
	server, n, token, _, err := p.open(s, takes)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	start := time.Now()
	var mu sync.Mutex
	d := new(day)
	var callers sync.WaitGroup
	for i := range p.accounts {
		callers.Go(func() {
			for time.Since(start) < p.length {
				called := time.Now()
				err := token(scopeOf(i))
				waited := time.Since(called)
				mu.Lock()
				d.calls++
				if err != nil {
					d.failed++
				}
				if waited > time.Second {
					d.slow++
				}
				d.longest = max(d.longest, waited)
				mu.Unlock()
				time.Sleep(p.every)
			}
		})
	}
	callers.Wait()
	time.Sleep(time.Minute) // for refreshes in the background
	d.requests, d.refused = n.requests, n.refused
	return d, nil
}

// meet lets p.waiting accounts request a token at once, and then one page per second
// request one, until all accounts have been served and a little longer.
func (p plan) meet(s subject) (*people, error) {
	server, _, token, all, err := p.open(s, p.perSecond)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	mint := token
	if s.mint != nil {
		mint = func(scope string) error { return s.mint(all, scope) }
	}
	pages := p.pages()
	met := &people{waited: make([]time.Duration, pages), failed: make([]bool, pages)}
	var callers sync.WaitGroup
	for i := range p.waiting {
		callers.Go(func() {
			if token(scopeOf(i)) != nil {
				met.accounts.Add(1)
			}
		})
	}
	time.Sleep(time.Millisecond) // so that the accounts ask first
	for i := range pages {
		callers.Go(func() {
			asked := time.Now()
			met.failed[i] = mint(scopeOf(p.waiting+i)) != nil
			met.waited[i] = time.Since(asked)
		})
		time.Sleep(time.Second)
	}
	callers.Wait()
	return met, nil
}

// pages returns the number of pages in meet.
func (p plan) pages() int { return p.waiting*12/10/p.perSecond + 1 }

// weight is the memory of an account in bytes, including its token.
type weight struct{ first, later float64 }

// tokenSize is the length of an access token, the same as in moovtest.
const tokenSize = 250

// weigh measures the memory of p.weighed accounts, first when each has one token,
// and again after an hour in which each was asked for its token every minute.
func (p plan) weigh(s subject) (*weight, error) {
	token, all, err := s.open(key{id: "public-key", secret: "secret-key", url: "https://moov.test",
		client: &http.Client{Transport: new(press)}, perSecond: 1e6})
	if err != nil {
		return nil, err
	}
	warm(4 * p.weighed)
	before := used()
	w := new(weight)
	for minute := range 60 {
		for i := range p.weighed {
			if err := token(scopeOf(i)); err != nil {
				return nil, err
			}
		}
		if minute == 0 {
			time.Sleep(time.Second)
			w.first = (used() - before) / float64(p.weighed)
		}
		time.Sleep(time.Minute)
	}
	w.later = (used() - before) / float64(p.weighed)
	runtime.KeepAlive(all)
	return w, nil
}

// press is a server that issues tokens and does not keep them.
type press struct{ n atomic.Int64 }

func (p *press) RoundTrip(req *http.Request) (*http.Response, error) {
	n := p.n.Add(1)
	body := fmt.Sprintf(`{"access_token":"%0*d","token_type":"Bearer","refresh_token":"%026d","expires_in":900,"scope":%q}`, tokenSize, n, n, "/ping.read")
	return &http.Response{Status: "200 OK", StatusCode: http.StatusOK, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

// warm starts n goroutines at a time. The runtime keeps some memory of ended
// goroutines, so this memory is allocated before the measurement.
func warm(n int) {
	end := make(chan struct{})
	var goroutines sync.WaitGroup
	for range n {
		goroutines.Go(func() { <-end })
	}
	close(end)
	goroutines.Wait()
}

// used returns the memory in use after a garbage collection.
func used() float64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc + m.StackInuse)
}
