package moovtest_test

import (
	"bufio"
	"net"
	"os"
	"os/exec"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// What needs no fake time works on a port in a bubble, too.
func TestServerOnAPortServesInABubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := moovtest.NewServer()
		defer s.Close()
		source, err := moovauth.NewTokenSource(
			moovauth.Credentials{ClientID: s.ClientID, ClientSecret: s.ClientSecret},
			moovauth.WithBaseURL(s.URL), moovauth.WithScopes("/ping.read"), moovauth.WithHTTPClient(s.Client()),
		)
		require.NoError(t, err)
		resp, err := source.Client().Get(s.URL + "/ping")
		require.NoError(t, err)
		resp.Body.Close()
		assert.Equal(t, 200, resp.StatusCode)
		require.NoError(t, source.Revoke(t.Context()))
		assert.Empty(t, s.AccessTokens())
	})
}

const hangs = "MOOVTEST_HANGS"

// hang ends its process if it does not hang.
func hang(t *testing.T, how string) {
	synctest.Test(t, func(t *testing.T) {
		s := moovtest.NewServer()
		assert.Equal(t, 200, statusOf(t, s))
		if how == "not closed" {
			return
		}
		defer s.Close()
		switch how {
		case "sleep":
			time.Sleep(time.Second)
		case "Wait":
			synctest.Wait()
		case "latency":
			s.SetLatency(time.Second)
			statusOf(t, s)
		}
	})
	os.Exit(0)
}

func TestServerOnAPortSaysWhyABubbleHangs(t *testing.T) {
	if how := os.Getenv(hangs); how != "" {
		hang(t, how) // in a process that is started below
	}
	if testing.Short() {
		t.Skip("it takes 5 s of real time")
	}
	t.Parallel()
	for _, how := range []string{"sleep", "Wait", "latency", "not closed"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			hung := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestServerOnAPortSaysWhyABubbleHangs$", "-test.timeout=1m")
			hung.Env = append(os.Environ(), hangs+"="+how)
			stderr, err := hung.StderrPipe()
			require.NoError(t, err)
			require.NoError(t, hung.Start())
			line, _ := bufio.NewReader(stderr).ReadString('\n')
			hung.Process.Kill()
			hung.Wait()
			assert.Contains(t, line, "inside a synctest bubble")
			assert.Contains(t, line, "use NewInMemory")
			assert.Equal(t, 1, strings.Count(line, "\n"))
		})
	}
}

func TestServerOnAPortServesOnAfterItSaidWhy(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes 6 s of real time")
	}
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := moovtest.NewServer()
		defer s.Close()
		l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
		require.NoError(t, err)
		defer l.Close()
		require.NoError(t, l.SetDeadline(time.Now().Add(6*time.Second))) // in real time
		_, err = l.Accept()
		require.ErrorIs(t, err, os.ErrDeadlineExceeded)
		for range 2 {
			assert.Equal(t, 200, statusOf(t, s))
			s.Client().CloseIdleConnections()
		}
	})
}
