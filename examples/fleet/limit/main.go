// Limit starts three processes of a platform that need tokens for many accounts,
// and prints how many requests the server refuses:
//
//	go run -C examples/fleet/limit .
//
// keeps each process to the server's rate by itself. With REDIS_URL set, such as
// redis://localhost:6379, the processes share the rate in Redis. The server is an
// embedded one; no account is needed.
package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"
	"golang.org/x/time/rate"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/rediscache"
)

const (
	takes     = 20 // requests per second, of all processes together
	perSecond = 18 // that the limiters allow: API calls count too, and do not wait for them
)

// accounts are how many accounts each process has: the load is uneven.
var accounts = []int{70, 15, 15}

const (
	serverVariable   = "FLEET_SERVER"   // set in a process of the fleet: the base URL
	accountsVariable = "FLEET_ACCOUNTS" // and how many accounts it has
	nameVariable     = "FLEET_NAME"     // and the limit's name
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := runFleet
	if os.Getenv(serverVariable) != "" {
		run = runProcess
	}
	if err := run(ctx, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "limit:", err)
		os.Exit(1)
	}
}

// runFleet starts the processes, and prints what they and the server report.
func runFleet(ctx context.Context, out io.Writer) error {
	server := moovtest.NewServer(moovtest.WithRateLimit(takes))
	defer server.Close()
	total := 0
	for _, n := range accounts {
		total += n
	}
	fmt.Fprintf(out, "%d processes need tokens for %d accounts. The server takes %d requests per second from all of them together.\n", len(accounts), total, takes)
	if os.Getenv("REDIS_URL") == "" {
		fmt.Fprintf(out, "REDIS_URL is not set: each process keeps to %d requests per second, but does not know about the others.\n", perSecond)
	} else {
		fmt.Fprintf(out, "REDIS_URL is set: the processes share %d requests per second in Redis.\n", perSecond)
	}

	var all sync.WaitGroup
	var mu sync.Mutex
	var failed error
	refused := 0
	start := time.Now()
	for i, n := range accounts {
		all.Go(func() {
			report, err := startProcess(ctx, server.URL, n, fmt.Sprint("example-", start.UnixNano()))
			mu.Lock()
			defer mu.Unlock()
			if err != nil {
				failed = fmt.Errorf("process %d: %w", i+1, err)
				return
			}
			refused += report
			fmt.Fprintf(out, "%4.1f s  process %d has the tokens of its %d accounts; %d of its requests were refused (429)\n", time.Since(start).Seconds(), i+1, n, report)
		})
	}
	all.Wait()
	if failed != nil {
		return failed
	}
	fmt.Fprintf(out, "The server refused %d of %d requests.\n", refused, len(server.TokenRequests()))
	return nil
}

// startProcess starts this program again, and returns how many of its requests
// were refused.
func startProcess(ctx context.Context, url string, n int, name string) (refused int, err error) {
	self, err := os.Executable()
	if err != nil {
		return 0, err
	}
	command := exec.CommandContext(ctx, self)
	command.Env = append(os.Environ(), serverVariable+"="+url, accountsVariable+"="+strconv.Itoa(n), nameVariable+"="+name)
	command.Stderr = os.Stderr
	report, err := command.Output()
	if err != nil {
		return 0, err
	}
	return strconv.Atoi(strings.TrimSpace(string(report)))
}

// runProcess gets a token for each of its accounts, and prints how many requests
// were refused.
func runProcess(ctx context.Context, out io.Writer) error {
	limiter, err := newLimiter()
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(os.Getenv(accountsVariable))
	if err != nil {
		return fmt.Errorf("%s: %w", accountsVariable, err)
	}
	counter := new(countRefused)
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		source, err := moovauth.NewTokenSource(
			// What moovtest's server knows. A fleet of yours has the same API key in all processes.
			moovauth.Credentials{ClientID: "moovtest-public-key", ClientSecret: "moovtest-secret-key"},
			moovauth.WithScopes(fmt.Sprintf("/accounts/%d/cards.read", i)), moovauth.WithBaseURL(os.Getenv(serverVariable)),
			moovauth.WithHTTPClient(&http.Client{Transport: counter}), moovauth.WithLimiter(limiter))
		if err != nil {
			return err
		}
		all.Go(func() {
			for { // a source that the server refuses too often returns an error for a while
				if _, errs[i] = source.TokenContext(ctx); errs[i] == nil || ctx.Err() != nil {
					return
				}
				time.Sleep(100 * time.Millisecond)
			}
		})
	}
	all.Wait()
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	w := bufio.NewWriter(out)
	fmt.Fprintln(w, counter.refused)
	return w.Flush()
}

// newLimiter is the one line that makes the difference.
func newLimiter() (moovauth.Limiter, error) {
	url := os.Getenv("REDIS_URL")
	if url == "" {
		return rate.NewLimiter(perSecond, 1), nil
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	return rediscache.NewLimiter(redis.NewClient(opts), os.Getenv(nameVariable), perSecond)
}

// countRefused is a RoundTripper that counts the replies with status 429.
type countRefused struct {
	mu      sync.Mutex
	refused int
}

func (c *countRefused) RoundTrip(req *http.Request) (*http.Response, error) {
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err == nil && resp.StatusCode == http.StatusTooManyRequests {
		c.mu.Lock()
		c.refused++
		c.mu.Unlock()
	}
	return resp, err
}
