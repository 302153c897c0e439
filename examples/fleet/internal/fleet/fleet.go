// Package fleet is the part of the example that does not depend on the cache. It
// starts several processes that share a token, and prints how each process got each
// new token.
package fleet

import (
	"bufio"
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// Usage is the text that -h prints.
const Usage = `usage: go run ./examples/fleet

Starts four processes that share one access token through a cache, and prints
for each process how it got each new token: from the server, or from the cache,
where another process has stored it. The program ends after three tokens. The
server is a test server inside the program, whose tokens live for three seconds.
So no Moov account is needed, and the MOOV_… variables are ignored.

The cache is a temporary folder (package dircache), and the processes call the
API one after the other. One environment variable changes this:

  REDIS_URL  store the token in this Redis (package rediscache), such as
             redis://localhost:6379 or unix:///run/redis.sock. The processes
             then call the API all at once.
`

// Main parses the command line, runs the example, and returns its exit code.
func Main(ctx context.Context, args []string, in io.Reader, out, errs io.Writer, run func(context.Context, io.Reader, io.Writer) error) int {
	flags := flag.NewFlagSet("fleet", flag.ContinueOnError)
	flags.SetOutput(io.Discard)
	err := flags.Parse(args)
	switch {
	case errors.Is(err, flag.ErrHelp):
		fmt.Fprint(out, Usage)
		return 0
	case err == nil && flags.NArg() > 0:
		err = fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	if err != nil {
		fmt.Fprintf(errs, "fleet: %v; -h shows the usage\n", err)
		return 2
	}
	if err := run(ctx, in, out); err != nil {
		fmt.Fprintln(errs, "fleet:", err)
		return 1
	}
	return 0
}

const (
	processes = 4
	lifetime  = 3 * time.Second        // a token is refreshed after 2.1 s
	tokens    = 3                      // the example ends after this many tokens
	turn      = 100 * time.Millisecond // the time between two calls
)

// A Fleet has what differs between the two variants of the example.
type Fleet struct {
	Where string // where the cache is, in words

	// Cache opens the cache that all processes share.
	Cache func() (moovauth.Cache, error)

	// AtOnce makes all processes call the API at the same moment. If it is false,
	// they call it one after the other.
	AtOnce bool

	Env []string // environment variables that are added for the processes
}

const memberVariable = "FLEET_MEMBER" // set in a member: the base URL of the server

// Run runs the fleet. In a process that a fleet has started, it runs a member instead.
func (f *Fleet) Run(ctx context.Context, in io.Reader, out io.Writer) error {
	if baseURL := os.Getenv(memberVariable); baseURL != "" {
		return f.runMember(baseURL, in, out)
	}
	server := moovtest.NewServer(moovtest.WithLifetime(lifetime))
	defer server.Close()
	var members []*member
	defer func() {
		for _, m := range members {
			_ = m.in.Close() // the member ends when its input ends
		}
		for _, m := range members {
			_ = m.command.Wait()
		}
	}()
	for i := range processes {
		m, err := f.start(ctx, i+1, server.URL)
		if err != nil {
			return err
		}
		members = append(members, m)
	}
	how := "one after the other"
	if f.AtOnce {
		how = "all at once"
	}
	fmt.Fprintf(out, "%d processes share a cache in %s, and call the API %s. The test server's tokens live for %v.\n", processes, f.Where, how, lifetime)

	begin := time.Now()
	ticker := time.NewTicker(turn)
	defer ticker.Stop()
	seen := make(map[string]int) // the numbers of the tokens, by their hashes
	behind := func(m *member) bool { return m.has < tokens }
	for round := 0; slices.ContainsFunc(members, behind); round++ {
		calling := members
		if !f.AtOnce {
			calling = members[round%processes:][:1]
		}
		for _, m := range calling {
			if _, err := io.WriteString(m.in, "call\n"); err != nil {
				return m.failed(err)
			}
		}
		for _, m := range calling {
			if !m.out.Scan() {
				return m.failed(m.out.Err())
			}
			how, token, news := strings.Cut(m.out.Text(), " ")
			if !news {
				continue
			}
			if seen[token] == 0 {
				seen[token] = len(seen) + 1
			}
			m.has = seen[token]
			fmt.Fprintf(out, "%4.1fs  process %d  got token %d from the %s\n", time.Since(begin).Seconds(), m.number, m.has, how)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	fmt.Fprintf(out, "The server received %d token requests. Without a cache it would have received %d, for %d tokens in each of %d processes.\n",
		len(server.TokenRequests()), processes*tokens, tokens, processes)
	return nil
}

// member is a process of the fleet, as the process that started it sees it.
type member struct {
	number  int
	has     int // the number of its token
	command *exec.Cmd
	in      io.WriteCloser
	out     *bufio.Scanner
}

// start starts this program again, as a member.
func (f *Fleet) start(ctx context.Context, number int, baseURL string) (*member, error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	m := &member{number: number, command: exec.CommandContext(ctx, self)}
	m.command.Env = append(append(os.Environ(), f.Env...), memberVariable+"="+baseURL)
	m.command.Stderr = os.Stderr
	if m.in, err = m.command.StdinPipe(); err != nil {
		return nil, err
	}
	out, err := m.command.StdoutPipe()
	if err != nil {
		return nil, err
	}
	m.out = bufio.NewScanner(out)
	return m, m.command.Start()
}

func (m *member) failed(err error) error {
	return fmt.Errorf("process %d has ended: %w", m.number, cmp.Or(err, io.EOF))
}

// runMember gets a token for each line of in. It replies with one line. The line is
// empty if the token is the same as before. Otherwise it says how the member got the
// new token, and contains the hash of the token.
func (f *Fleet) runMember(baseURL string, in io.Reader, out io.Writer) error {
	cache, err := f.Cache()
	if err != nil {
		return err
	}
	var got news
	source, err := moovauth.NewTokenSource(
		// moovtest's server accepts this API key. In a fleet of your own, all processes use your key.
		moovauth.Credentials{ClientID: "moovtest-public-key", ClientSecret: "moovtest-secret-key"},
		moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(baseURL),
		moovauth.WithCache(cache), moovauth.WithLogger(slog.New(&got)))
	if err != nil {
		return err
	}
	last := ""
	for calls := bufio.NewScanner(in); calls.Scan(); {
		token, err := source.Token()
		if err != nil {
			return err
		}
		if token.AccessToken == last {
			fmt.Fprintln(out)
			continue
		}
		last = token.AccessToken
		fmt.Fprintf(out, "%s %x\n", got.how.Load(), sha256.Sum256([]byte(last)))
	}
	return nil
}

// news is a slog.Handler that records how the last token was obtained. It writes
// warnings, such as that the cache does not reply, to standard error.
type news struct{ how atomic.Value }

func (*news) Enabled(context.Context, slog.Level) bool { return true }
func (n *news) WithAttrs([]slog.Attr) slog.Handler     { return n }
func (n *news) WithGroup(string) slog.Handler          { return n }

func (n *news) Handle(ctx context.Context, r slog.Record) error {
	switch {
	case r.Message == "moovauth: token obtained":
		n.how.Store("server")
	case r.Message == "moovauth: token adopted from the cache":
		n.how.Store("cache")
	case r.Level >= slog.LevelWarn:
		return slog.NewTextHandler(os.Stderr, nil).Handle(ctx, r)
	}
	return nil
}
