package main

import (
	"bufio"
	"context"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
	"github.com/moovauth/moovauth/moovtest"
)

func TestStart(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		right := f.apiKey.Load()
		f.apiKey.Store(&moovauth.Credentials{ClientID: "mistyped", ClientSecret: "mistyped"})
		require.ErrorContains(t, f.start(nil), "invalid_client", "a wrong key is found at once")
		f.apiKey.Store(right)
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		require.NoError(t, f.start(nil), "the service also starts during an outage")
		f.server.SetAnswer(nil)
		assert.Equal(t, 200, f.get("a1"))
	})
}

func TestKeyFile(t *testing.T) {
	name := filepath.Join(t.TempDir(), "key")
	t.Setenv("MOOV_KEY_FILE", name)
	require.NoError(t, os.WriteFile(name, []byte(`{"ClientID": "public", "ClientSecret": "secret"}`), 0o600))
	creds, err := readKey()
	require.NoError(t, err)
	assert.Equal(t, moovauth.Credentials{ClientID: "public", ClientSecret: "secret"}, creds)
	require.NoError(t, os.WriteFile(name, []byte("secret"), 0o600))
	_, err = readKey()
	require.Error(t, err)
	assert.NotContains(t, err.Error(), "secret")
}

func TestUsageNamesEveryVariable(t *testing.T) {
	main, err := os.ReadFile("main.go")
	require.NoError(t, err)
	service, err := os.ReadFile("service.go")
	require.NoError(t, err)
	usage, _, _ := strings.Cut(string(main), "\npackage ")
	for _, part := range strings.Split(string(main)+string(service), `os.Getenv("`)[1:] {
		name, _, _ := strings.Cut(part, `"`)
		assert.Contains(t, usage, "//\t"+name)
	}
}

// Fifty accounts are called all the time: before, during and after a rotation, and
// after the former key is deleted.
func TestNoCallFailsDuringARotation(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.travel = 3 * time.Second
		r := f.run()
		var slowest, calls atomic.Int64
		stop := make(chan struct{})
		var accounts sync.WaitGroup
		for i := range 50 {
			session := f.signedIn(fmt.Sprint("a", i))
			require.Equal(t, 200, f.send("GET", "/cards", session).Code)
			accounts.Go(func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(250 * time.Millisecond):
					}
					begin := time.Now()
					if !assert.Equal(t, 200, f.send("GET", "/cards", session).Code) {
						return
					}
					calls.Add(1)
					slowest.Store(max(slowest.Load(), int64(time.Since(begin))))
				}
			})
		}
		time.Sleep(5 * time.Second)
		former := f.server.AccessTokens()
		f.newKey()
		r.hangup()
		time.Sleep(40 * time.Second)
		for _, token := range former {
			assert.False(t, f.server.Alive(token))
		}
		assert.Len(t, f.server.AccessTokens(), 51, "no call under way has obtained another token with the former key")
		f.server.DropOldCredentials()
		time.Sleep(10 * time.Second)
		close(stop)
		accounts.Wait()
		assert.Greater(t, calls.Load(), int64(50*15))
		assert.EqualValues(t, f.travel, slowest.Load(), "no call waits for a token")
	}, moovtest.WithLatency(200*time.Millisecond))
}

func TestRotationThatFailsChangesNothing(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		first, alive := f.current.Load(), f.server.AccessTokens()
		for name, key := range map[string]*moovauth.Credentials{
			"unreadable":  nil,
			"mistyped":    {ClientID: "new-public-key", ClientSecret: "mistyped"},
			"not changed": {ClientID: f.server.ClientID, ClientSecret: f.server.ClientSecret},
		} {
			f.apiKey.Store(key)
			r.hangup()
			time.Sleep(time.Minute)
			assert.Same(t, first, f.current.Load(), name)
			assert.Equal(t, alive, f.server.AccessTokens(), name)
		}
		f.newKey()
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		r.hangup()
		time.Sleep(time.Minute)
		assert.Same(t, first, f.current.Load(), "only at the start may Moov be down")
		assert.Equal(t, 200, f.get("a1"))
		f.server.SetAnswer(nil)
		r.hangup()
		time.Sleep(time.Minute)
		assert.NotSame(t, first, f.current.Load(), "the next SIGHUP tries the key again")
	})
}

// The first rotation cannot revoke the tokens of the first key, and Moov's rate limit
// does not hold up the second one.
func TestTwoRotationsDuringAnOutage(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		log := captureLog(t)
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		f.newKey()
		r.hangup()
		time.Sleep(time.Second)
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"3600"}}})
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		assert.Contains(t, log.String(), "tokens of the former API key not revoked")
		f.server.SetAnswer(nil)
		second := f.current.Load()
		f.server.SetCredentials("third", "secret-key")
		f.apiKey.Store(&moovauth.Credentials{ClientID: "third", ClientSecret: "secret-key"})
		r.hangup()
		time.Sleep(2 * time.Minute)
		assert.NotSame(t, second, f.current.Load())
		time.Sleep(time.Hour)
		require.NoError(t, r.stop())
		assert.Empty(t, f.server.RefreshTokens(), "of three keys")
	})
}

// The former key has leaked, and is deleted already.
func TestRotationFromADeletedKey(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		f.newKey()
		f.server.DropOldCredentials()
		r.hangup()
		time.Sleep(time.Minute)
		assert.Equal(t, 200, f.get("a1"))
		requests := f.server.TokenRequests()
		assert.Equal(t, "new-public-key", requests[len(requests)-1].ClientID)
	})
}

// A cache has entries of both keys for a while.
func TestRotationWithACache(t *testing.T) {
	cache, err := dircache.New(t.TempDir())
	require.NoError(t, err)
	test(t, func(t *testing.T, f *fixture) {
		require.NoError(t, f.start(cache))
		r := f.run()
		before := f.server.AccessTokens()
		require.Equal(t, 200, f.get("a1"))
		former := f.server.AccessTokens()[len(before):]
		f.newKey()
		r.hangup()
		time.Sleep(time.Minute)
		for _, token := range former {
			assert.False(t, f.server.Alive(token))
		}
		require.NoError(t, r.stop())
		requests := len(f.server.TokenRequests())
		require.NoError(t, f.start(cache))
		assert.Equal(t, 200, f.get("a1"))
		assert.Len(t, f.server.TokenRequests(), requests, "the next process has the tokens of the new key")
	})
}

func TestShutdownRevokesAndReports(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		log := captureLog(t)
		r := f.run()
		session := f.signedIn("a1")
		f.mint(session)
		f.answer.Store(new(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { time.Sleep(5 * time.Second) })))
		conn := r.call(t, session)
		time.Sleep(time.Second)
		ended := make(chan error)
		go func() { ended <- r.stop() }()
		resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
		require.NoError(t, err)
		assert.Equal(t, 200, resp.StatusCode, "a call that has begun is completed")
		require.NoError(t, <-ended)
		assert.Empty(t, f.server.AccessTokens())
		// An access token and a refresh token of /ping.read and of the cards, and the page's token.
		assert.Contains(t, log.String(), `msg="shut down" tokens_revoked=5 cache=false error=<nil>`)
	})
}

// Calls of the former key may still be under way.
func TestShutdownRevokesTheTokensOfAFormerKey(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		minted := f.mint(f.signedIn("a1"))
		f.newKey()
		r.hangup()
		time.Sleep(time.Second)
		require.Equal(t, 200, f.get("a1"))
		require.True(t, f.server.Alive(minted))
		require.NoError(t, r.stop())
		assert.Empty(t, f.server.AccessTokens())
	})
}

// A call that continues would obtain another token.
func TestShutdownBreaksOffACallThatDoesNotEnd(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		f.answer.Store(new(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 1<<20)) })))
		r := f.run()
		r.call(t, f.signedIn("a1")) // which does not read the reply
		time.Sleep(time.Second)
		begin := time.Now()
		require.ErrorIs(t, r.stop(), context.DeadlineExceeded)
		assert.LessOrEqual(t, time.Since(begin), 25*time.Second)
		assert.Empty(t, f.server.AccessTokens())
	})
}

func TestShutdownDuringAnOutageEnds(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		for _, account := range []string{"a1", "a2", "a3"} {
			require.Equal(t, 200, f.get(account))
		}
		f.mint(f.signedIn("a1"))
		f.server.SetAnswer(&moovtest.Answer{Status: http.StatusServiceUnavailable})
		begin := time.Now()
		require.ErrorContains(t, r.stop(), "0 sources finished, 4 left")
		assert.LessOrEqual(t, time.Since(begin), 25*time.Second)
	})
}

func TestShutdownWithACacheLeavesTheAccountsTokens(t *testing.T) {
	cache, err := dircache.New(t.TempDir())
	require.NoError(t, err)
	test(t, func(t *testing.T, f *fixture) {
		require.NoError(t, f.start(cache))
		r := f.run()
		require.Equal(t, 200, f.get("a1"))
		minted := f.mint(f.signedIn("a1"))
		require.NoError(t, r.stop())
		assert.False(t, f.server.Alive(minted))
		before := len(f.server.TokenRequests())
		require.NoError(t, f.start(cache))
		assert.Equal(t, 200, f.get("a1"))
		assert.Len(t, f.server.TokenRequests(), before, "the next process has the token")
	})
}
