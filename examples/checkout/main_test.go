package main

import (
	"context"
	"crypto/tls"
	"flag"
	"io"
	"net"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// output collects what a run prints. A test can read it during the run.
type output struct {
	mu   sync.Mutex
	text strings.Builder
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(b)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// start runs the example. It returns the page's address, the output, and a function that
// stops the run.
func start(t *testing.T, env map[string]string) (page string, out *output, stop func() error) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	out = new(output)
	done := make(chan error, 1)
	go func() {
		done <- run(ctx, out, []string{"-addr", "localhost:0"}, func(name string) string { return env[name] })
	}()
	require.Eventually(t, func() bool {
		found := regexp.MustCompile(`(?m)^open +(\S+)$`).FindStringSubmatch(out.String())
		if found != nil {
			page = found[1]
		}
		return found != nil
	}, 10*time.Second, time.Millisecond)
	return page, out, func() error {
		cancel()
		return <-done
	}
}

// token signs Ada in and requests a token for her page.
func token(t *testing.T, page string) {
	t.Helper()
	jar, err := cookiejar.New(nil)
	require.NoError(t, err)
	browser := &http.Client{Jar: jar, Transport: new(http.Transport)}
	defer browser.CloseIdleConnections()
	resp, err := browser.PostForm(page+"/sign-in", url.Values{"user": {"ada"}})
	require.NoError(t, err)
	resp.Body.Close()
	resp, err = browser.PostForm(page+"/moov-token", nil)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode, string(body))
}

func TestRunWithTheEmbeddedServer(t *testing.T) {
	page, out, stop := start(t, nil)
	assert.Contains(t, out.String(), "an embedded test server: nothing leaves this computer")
	assert.Regexp(t, `^http://localhost:\d+$`, page)
	resp, err := http.Get(page)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	resp.Body.Close()
	require.NoError(t, err)
	assert.Contains(t, string(body), "<h1>Access tokens for the browser</h1>")
	token(t, page)
	token(t, page)
	require.NoError(t, stop())
	assert.Contains(t, out.String(), "page tokens: 2\n")
	assert.NotContains(t, out.String(), "moovtest-secret-key")
}

// moov starts a server and returns the environment in which a run uses it as Moov.
func moov(t *testing.T, opts ...moovtest.Option) (*moovtest.Server, map[string]string) {
	api := moovtest.NewInMemory(opts...)
	server := httptest.NewTLSServer(api)
	t.Cleanup(func() { api.Close(); server.Close() })
	transport := http.DefaultTransport.(*http.Transport)
	before := transport.TLSClientConfig
	transport.TLSClientConfig = &tls.Config{RootCAs: server.Client().Transport.(*http.Transport).TLSClientConfig.RootCAs}
	t.Cleanup(func() { transport.TLSClientConfig = before; transport.CloseIdleConnections() })
	return api, map[string]string{
		"MOOV_PUBLIC_KEY": api.ClientID, "MOOV_SECRET_KEY": api.ClientSecret,
		"MOOV_HOST": strings.TrimPrefix(server.URL, "https://"),
	}
}

func TestRunWithMoov(t *testing.T) {
	api, env := moov(t, moovtest.WithOrigins("https://example.com"))
	env["MOOV_ORIGIN"] = "https://example.com"
	page, out, stop := start(t, env)
	assert.Contains(t, out.String(), "https://"+env["MOOV_HOST"]+", with the origin https://example.com\n")
	token(t, page)
	assert.Equal(t, "/ping.read", api.TokenRequests()[0].Form.Get("scope"))
	require.Len(t, api.AccessTokens(), 1)
	require.NoError(t, stop())
	assert.Empty(t, api.AccessTokens())
}

func TestRunSendsThePagesOriginByDefault(t *testing.T) {
	api, env := moov(t)
	page, _, stop := start(t, env)
	token(t, page)
	assert.Equal(t, page, api.TokenRequests()[0].Header.Get("Origin"))
	require.NoError(t, stop())
}

func TestRunEndsInTimeIfMoovHangs(t *testing.T) {
	if testing.Short() {
		t.Skip("takes five seconds")
	}
	api, env := moov(t)
	page, _, stop := start(t, env)
	token(t, page)
	api.SetLatency(time.Hour)
	begin := time.Now()
	assert.ErrorIs(t, stop(), context.DeadlineExceeded)
	assert.Less(t, time.Since(begin), closing+2*time.Second)
}

func TestRunSaysWhatIsWrong(t *testing.T) {
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		want string
	}{
		"half a key":      {env: map[string]string{"MOOV_PUBLIC_KEY": "a"}, want: "both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY"},
		"wrong origin":    {env: map[string]string{"MOOV_PUBLIC_KEY": "a", "MOOV_SECRET_KEY": "b", "MOOV_ORIGIN": "example.com"}, want: "WithOrigin"},
		"all addresses":   {args: []string{"-addr", ":0"}, want: "localhost:8080"},
		"another address": {args: []string{"-addr", "192.0.2.1:0"}, want: "no passwords"},
		"no port":         {args: []string{"-addr", "localhost"}, want: "-addr: want a host and a port"},
		"a port in use":   {args: []string{"-addr", taken.Addr().String()}, want: "localhost:0 takes any free port"},
		"CHECKOUT_ADDR":   {env: map[string]string{"CHECKOUT_ADDR": "192.0.2.1:0"}, want: "no passwords"},
		"short lifetime":  {args: []string{"-lifetime", "1s"}, want: "-lifetime: want 3s or more"},
		"extra argument":  {args: []string{"more"}, want: `unexpected argument "more"`},
		"unknown flag":    {args: []string{"-port", "1"}, want: "-port"},
	} {
		t.Run(name, func(t *testing.T) {
			args := c.args
			if args == nil && c.env["CHECKOUT_ADDR"] == "" {
				args = []string{"-addr", "localhost:0"}
			}
			err := run(t.Context(), new(output), args, func(name string) string { return c.env[name] })
			require.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestHelp(t *testing.T) {
	out := new(output)
	assert.ErrorIs(t, run(t.Context(), out, []string{"-h"}, func(string) string { return "" }), flag.ErrHelp)
	for _, want := range []string{"-addr", "-lifetime", "CHECKOUT_ADDR", "MOOV_PUBLIC_KEY", "MOOV_SECRET_KEY", "MOOV_HOST", "MOOV_ORIGIN"} {
		assert.Contains(t, out.String(), want)
	}
}
