// Limit starts three processes of a platform, which need tokens for many accounts. It
// prints how many of their requests the server refuses:
//
//	go run -C examples/fleet/limit .
//
// Without REDIS_URL, each process has its own rate limit (platform.WithRate). If
// REDIS_URL is set, such as to redis://localhost:6379, the processes share one limit
// in Redis (platform.WithLimiter). The server is a test server inside the program, so
// no Moov account is needed.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
	"github.com/moovauth/moovauth/rediscache"
)

const (
	accepts   = 20 // requests per second that the server accepts from all processes together
	perSecond = 18 // requests per second that a limit allows; the rest is left for API calls
)

// accounts is the number of accounts of each process. The load is uneven.
var accounts = []int{70, 15, 15}

// These variables are set in the processes of the fleet.
const (
	serverVariable   = "FLEET_SERVER"   // the base URL of the server
	accountsVariable = "FLEET_ACCOUNTS" // the number of accounts of the process
	nameVariable     = "FLEET_NAME"     // the name of the limit
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

// runFleet starts the processes, and prints their reports and the server's.
func runFleet(ctx context.Context, out io.Writer) error {
	server := moovtest.NewServer(moovtest.WithRateLimit(accepts))
	defer server.Close()
	total := 0
	for _, n := range accounts {
		total += n
	}
	fmt.Fprintf(out, "%d processes need tokens for %d accounts. The server accepts %d requests per second from all of them together.\n", len(accounts), total, accepts)
	if os.Getenv("REDIS_URL") == "" {
		fmt.Fprintf(out, "REDIS_URL is not set: each process makes up to %d requests per second, and does not know about the others.\n", perSecond)
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
			fmt.Fprintf(out, "%4.1f s  process %d has the tokens of its %d accounts; the server refused %d of its requests (429)\n", time.Since(start).Seconds(), i+1, n, report)
		})
	}
	all.Wait()
	if failed != nil {
		return failed
	}
	fmt.Fprintf(out, "The server refused %d of %d requests.\n", refused, len(server.TokenRequests()))
	return nil
}

// startProcess starts this program again, and returns how many of its requests the
// server refused.
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
// the server refused.
func runProcess(ctx context.Context, out io.Writer) error {
	limit, err := newLimit()
	if err != nil {
		return err
	}
	n, err := strconv.Atoi(os.Getenv(accountsVariable))
	if err != nil {
		return fmt.Errorf("%s: %w", accountsVariable, err)
	}
	tokens, err := platform.New(
		// moovtest's server accepts this API key. In a fleet of your own, all processes use your key.
		moovauth.Credentials{ClientID: "moovtest-public-key", ClientSecret: "moovtest-secret-key"},
		limit, platform.WithSource(moovauth.WithBaseURL(os.Getenv(serverVariable))))
	if err != nil {
		return err
	}
	var all sync.WaitGroup
	errs := make([]error, n)
	for i := range n {
		source, err := tokens.Source(fmt.Sprintf("/accounts/%d/cards.read", i))
		if err != nil {
			return err
		}
		all.Go(func() { _, errs[i] = source.TokenContext(ctx) })
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		return err
	}
	_, err = fmt.Fprintln(out, tokens.Stats().Refused)
	return err
}

// newLimit returns the option that makes the difference.
func newLimit() (platform.Option, error) {
	url := os.Getenv("REDIS_URL")
	if url == "" {
		return platform.WithRate(perSecond), nil
	}
	opts, err := redis.ParseURL(url)
	if err != nil {
		return nil, fmt.Errorf("REDIS_URL: %w", err)
	}
	opts.ContextTimeoutEnabled = true // see rediscache.NewLimiter
	limiter, err := rediscache.NewLimiter(redis.NewClient(opts), os.Getenv(nameVariable), perSecond)
	if err != nil {
		return nil, err
	}
	return platform.WithLimiter(limiter), nil
}
