package moovauth

// This file runs fleets on one DirCache, against a server that revokes the whole
// family of a refresh token that is used twice. What they asked for, and which of
// their tokens are alive, is the server's word.

import (
	"bufio"
	"fmt"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

func init() { dirRoles["command"] = dirCommand }

func TestSourcesOnADirCacheAskOnceForEachToken(t *testing.T) {
	t.Parallel()
	needsLock(t)
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithReuseDetection(), moovtest.WithLatency(200*time.Millisecond))
		dir := DirCache(t.TempDir())
		for range 40 {
			for _, tok := range together(t, fleetOf(t, server, 4, WithCache(dir))) {
				assert.True(t, server.Alive(tok.AccessToken))
			}
			time.Sleep(20 * time.Minute) // until it has expired
		}
		assert.Equal(t, 40, len(server.TokenRequests()))
	})
}

const dirServer = "MOOVAUTH_TEST_SERVER"

// dirCommand is a command of four that start together: it needs a token, and ends.
func dirCommand(t *testing.T, dir string) {
	s, err := NewTokenSource(Credentials{os.Getenv("MOOVAUTH_TEST_ID"), os.Getenv("MOOVAUTH_TEST_SECRET")},
		WithScopes(pingScope), WithBaseURL(os.Getenv(dirServer)), WithCache(DirCache(dir)))
	require.NoError(t, err)
	fmt.Println("ready")
	if !bufio.NewScanner(os.Stdin).Scan() {
		return
	}
	tok, err := s.Token()
	require.NoError(t, err)
	fmt.Println(tok.AccessToken)
}

func TestCommandsOnADirCacheAskOnceForEachToken(t *testing.T) {
	needsLock(t)
	t.Parallel()                     // it mostly waits
	const lifetime = 5 * time.Second // refreshed after 3.5 s
	rounds := 4
	if testing.Short() {
		rounds = 1
	}
	server := onLoopback(t, moovtest.WithReuseDetection(), moovtest.WithLifetime(lifetime), moovtest.WithLatency(100*time.Millisecond))
	dir := t.TempDir()
	var tokens, dead int
	for round := range rounds {
		if round > 0 {
			time.Sleep(lifetime) // until the token has expired
		}
		type command struct {
			start func()
			token func() string
		}
		var all []command
		for range 4 {
			p := dirProcess(t, "command", dir, dirServer+"="+server.URL,
				"MOOVAUTH_TEST_ID="+server.ClientID, "MOOVAUTH_TEST_SECRET="+server.ClientSecret)
			p.Stderr = os.Stderr
			in, err := p.StdinPipe()
			require.NoError(t, err)
			out, err := p.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, p.Start())
			t.Cleanup(func() { _ = p.Process.Kill() })
			lines := bufio.NewScanner(out)
			require.True(t, lines.Scan())
			all = append(all, command{
				func() { _, _ = fmt.Fprintln(in) },
				func() string {
					require.True(t, lines.Scan())
					token := lines.Text()
					for lines.Scan() {
					}
					require.NoError(t, p.Wait())
					return token
				},
			})
		}
		before := time.Now()
		for _, c := range all {
			c.start()
		}
		var got []string
		for _, c := range all {
			got = append(got, c.token())
		}
		require.Less(t, time.Since(before), 3*time.Second, "this machine is too slow for this test")
		for _, token := range got {
			tokens++
			if !server.Alive(token) {
				dead++
			}
		}
	}
	t.Logf("%d rounds: %d token requests, %d of %d tokens dead", rounds, len(server.TokenRequests()), dead, tokens)
	assert.Zero(t, dead)
	assert.Equal(t, rounds, len(server.TokenRequests()))
}
