package main

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

func TestRunAgainstTheEmbeddedServer(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out, func(string) string { return "" }))
	for _, want := range []string{
		"embedded test server", "Bearer, scope /ping.read, valid for 2s", "200 OK: the API accepted the token, which was sent with X-Moov-Version: v2024.01.00",
		"together they made 1 token request", "has revoked the access token and the refresh token", "401 Unauthorized",
	} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotContains(t, out.String(), "moovtest-secret-key")
	assert.Len(t, strings.Split(strings.TrimSpace(out.String()), "\n"), 7)
}

// key returns an environment with an API key and more variables, as name and value.
func key(more ...string) func(string) string {
	vars := map[string]string{"MOOV_PUBLIC_KEY": "a", "MOOV_SECRET_KEY": "b"}
	for i := 0; i < len(more); i += 2 {
		vars[more[i]] = more[i+1]
	}
	return func(name string) string { return vars[name] }
}

func TestRunSaysWhatIsWrongInOneLine(t *testing.T) {
	const closed = "127.0.0.1:0" // nothing listens there
	for name, c := range map[string]struct {
		env  func(string) string
		want []string
	}{
		"public key only":         {key("MOOV_SECRET_KEY", ""), []string{"both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY"}},
		"secret key only":         {key("MOOV_PUBLIC_KEY", ""), []string{"both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY"}},
		"host without a key":      {key("MOOV_PUBLIC_KEY", "", "MOOV_SECRET_KEY", "", "MOOV_HOST", "api.moov.io"), []string{"MOOV_HOST is set, but no API key"}},
		"origin without a scheme": {key("MOOV_ORIGIN", "example.com"), []string{"WithOrigin: want", "MOOV_ORIGIN sets WithOrigin"}},
		"host":                    {key("MOOV_HOST", closed), []string{"https://127.0.0.1:0/oauth2/token"}},
		"host with a slash":       {key("MOOV_HOST", closed+"/"), []string{"https://127.0.0.1:0/oauth2/token"}},
		"host with https":         {key("MOOV_HOST", "https://"+closed), []string{"https://127.0.0.1:0/oauth2/token"}},
		"host with HTTPS":         {key("MOOV_HOST", "HTTPS://"+closed+"/"), []string{"https://127.0.0.1:0/oauth2/token"}},
		"host with http":          {key("MOOV_HOST", "http://api.moov.io"), []string{"is not https", "MOOV_HOST sets WithBaseURL"}},
		"host with ftp":           {key("MOOV_HOST", "ftp://api.moov.io"), []string{"is not https", "MOOV_HOST sets WithBaseURL"}},
		"scheme only":             {key("MOOV_HOST", "https://"), []string{"want an absolute URL", "MOOV_HOST sets WithBaseURL"}},
		"invalid host":            {key("MOOV_HOST", "api moov io"), []string{"want an absolute URL", "MOOV_HOST sets WithBaseURL"}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			err := run(t.Context(), new(strings.Builder), c.env)
			for _, want := range c.want {
				require.ErrorContains(t, err, want)
			}
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestRunAtTheHostOfTheEnvironment(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	for _, slash := range []string{"", "/"} {
		var out strings.Builder
		require.NoError(t, run(t.Context(), &out, key("MOOV_PUBLIC_KEY", server.ClientID, "MOOV_SECRET_KEY", server.ClientSecret,
			"MOOV_HOST", server.URL+slash, "MOOV_ORIGIN", "https://example.com")))
		assert.NotContains(t, out.String(), "embedded")
		assert.Contains(t, out.String(), "server        "+server.URL+"\n")
		assert.Contains(t, out.String(), "401 Unauthorized")
	}
	for _, r := range server.TokenRequests() {
		assert.Equal(t, "https://example.com", r.Header.Get("Origin"))
	}
	assert.Len(t, server.TokenRequests(), 2)
}

func TestHelpNamesEveryVariable(t *testing.T) {
	for _, flag := range []string{"-h", "-help", "--help"} {
		var out, errs strings.Builder
		assert.Zero(t, command(t.Context(), []string{flag}, &out, &errs, key()))
		assert.Empty(t, errs.String())

		asked := make(map[string]bool)
		for _, env := range []func(string) string{key(), func(string) string { return "" }} {
			ctx, cancel := context.WithCancel(t.Context())
			cancel() // run stops after it has read its settings
			_ = run(ctx, new(strings.Builder), func(name string) string { asked[name] = true; return env(name) })
		}
		assert.Len(t, asked, 4)
		for name := range asked {
			assert.Contains(t, out.String(), "  "+name+" ")
		}
	}
}

func TestCommandLine(t *testing.T) {
	for _, c := range []struct {
		args []string
		env  func(string) string
		code int
		want string
	}{
		{[]string{"-verbose"}, key(), 2, "-verbose; -h shows"},
		{[]string{"now"}, key(), 2, `unexpected argument "now"; -h shows`},
		{nil, key("MOOV_SECRET_KEY", ""), 1, "quickstart: set both"},
	} {
		var out, errs strings.Builder
		assert.Equal(t, c.code, command(t.Context(), c.args, &out, &errs, c.env))
		assert.Empty(t, out.String())
		assert.Contains(t, errs.String(), c.want)
		assert.Equal(t, 1, strings.Count(errs.String(), "\n"))
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, run(ctx, new(strings.Builder), func(string) string { return "" }), context.Canceled)
}
