// Package fleet measures the replicas of a platform that share one IP address, and
// so one rate limit of the server. It compares three ways to keep to that limit: one
// limit in Redis, the full rate for each replica, and a share of the rate for each
// replica. It runs in fake time:
//
//	go test ./fleet -args -o ../results/fleet.txt -svg ../fleet.svg
package fleet

// This file does the measuring. It runs in a synctest bubble.

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
	"github.com/moovauth/moovauth/rediscache"
)

// plan says what to measure.
type plan struct {
	accounts  int
	perSecond int           // requests per second that the server accepts
	replicas  []int         // the sizes of the fleet
	drawn     int           // the size of the fleet in the picture
	give      time.Duration // callers give up after this time
}

var (
	full  = plan{accounts: 2000, perSecond: 40, replicas: []int{1, 2, 4, 8, 16, 100}, drawn: 8, give: time.Hour}
	short = plan{accounts: 200, perSecond: 40, replicas: []int{1, 4}, drawn: 4, give: 5 * time.Minute}
)

// floor returns the shortest possible time for all accounts, in seconds.
func (p plan) floor() float64 { return float64(p.accounts) / float64(p.perSecond) }

// load says how the accounts are spread over the replicas.
type load struct {
	title string
	at    func(account, replicas int) int
}

var loads = []load{
	{"70 % of the accounts at one replica", func(account, replicas int) int {
		if account%10 < 7 || replicas == 1 {
			return 0
		}
		return 1 + (account/10*3+account%10-7)%(replicas-1)
	}},
	{"the same number of accounts at each replica", func(account, replicas int) int { return account % replicas }},
}

// key is an API key, and the URL and client of a server that accepts it.
type key struct {
	moovauth.Credentials
	url    string
	client *http.Client
}

// replica is a process of the fleet. It returns the source of an account.
type replica func(scopes ...string) (*moovauth.TokenSource, error)

// subject is a way for a fleet to keep to the server's limit.
type subject struct {
	title string
	open  func(k key, p plan, replicas int) ([]replica, error)
}

var subjects = []subject{
	{"one limit", func(k key, p plan, n int) ([]replica, error) {
		client := &memoryRedis{values: make(map[string]string)}
		return fleetOf(k, n, func() (platform.Option, error) {
			limiter, err := rediscache.NewLimiter(client, "moov", float64(p.perSecond))
			return platform.WithLimiter(limiter), err
		})
	}},
	{"the full rate each", func(k key, p plan, n int) ([]replica, error) {
		return fleetOf(k, n, func() (platform.Option, error) { return platform.WithRate(float64(p.perSecond)), nil })
	}},
	{"a share each", func(k key, p plan, n int) ([]replica, error) {
		return fleetOf(k, n, func() (platform.Option, error) { return platform.WithRate(float64(p.perSecond) / float64(n)), nil })
	}},
}

// fleetOf returns n replicas. limit is called for each of them.
func fleetOf(k key, n int, limit func() (platform.Option, error)) ([]replica, error) {
	all := make([]replica, n)
	for i := range all {
		option, err := limit()
		if err != nil {
			return nil, err
		}
		tokens, err := platform.New(k.Credentials, option, platform.WithSource(moovauth.WithBaseURL(k.url), moovauth.WithHTTPClient(k.client)))
		if err != nil {
			return nil, err
		}
		all[i] = tokens.Source
	}
	return all, nil
}

// crowd has the results for accounts that all want a token at once.
type crowd struct {
	served  []time.Duration // when each account got its token, sorted
	refused int             // requests that were answered with 429
}

// network is the network to the server. A round trip takes 60 to 100 ms, with the same
// random numbers in each run.
type network struct {
	base http.RoundTripper

	mu      sync.Mutex
	random  *rand.Rand
	refused int
}

func (n *network) RoundTrip(req *http.Request) (*http.Response, error) {
	n.mu.Lock()
	half := time.Duration(30e6 + n.random.Int64N(20e6))
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

// run makes all accounts request one token each at the same time. A caller that gets
// an error retries after a second.
func (p plan) run(s subject, l load, replicas int) (*crowd, error) {
	server := moovtest.NewInMemory(moovtest.WithRateLimit(p.perSecond))
	defer server.Close()
	n := &network{base: server.Transport(), random: rand.New(rand.NewPCG(1, 2))}
	fleet, err := s.open(key{
		Credentials: moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		url:         server.URL, client: &http.Client{Transport: n},
	}, p, replicas)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	var mu sync.Mutex
	var failed error
	c := new(crowd)
	var callers sync.WaitGroup
	for account := range p.accounts {
		callers.Go(func() {
			source, err := fleet[l.at(account, replicas)](fmt.Sprintf("/accounts/%06d/cards.write", account))
			for err == nil && time.Since(start) < p.give {
				if _, got := source.Token(); got == nil {
					break
				}
				time.Sleep(time.Second)
			}
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = err
			} else if took := time.Since(start); took < p.give {
				c.served = append(c.served, took)
			}
		})
	}
	callers.Wait()
	slices.Sort(c.served)
	c.refused = n.refused
	return c, failed
}
