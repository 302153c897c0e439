package main

import (
	"context"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func TestRunAgainstTheEmbeddedServer(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), &out, func(string) string { return "" }))
	for _, want := range []string{
		"embedded test server", "Bearer, scope /ping.read, lives", "200 OK, with X-Moov-Version: v2024.01.00",
		"which took 1 token request", "revoked", "401 Unauthorized",
	} {
		assert.Contains(t, out.String(), want)
	}
	assert.NotContains(t, out.String(), "moovtest-secret-key")
	assert.Len(t, strings.Split(strings.TrimSpace(out.String()), "\n"), 6)
}

func TestRunSaysWhatIsWrongInOneLine(t *testing.T) {
	for name, c := range map[string]struct {
		env  map[string]string
		want string
	}{
		"half a key":   {map[string]string{"MOOV_PUBLIC_KEY": "a"}, "both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY"},
		"wrong origin": {map[string]string{"MOOV_PUBLIC_KEY": "a", "MOOV_SECRET_KEY": "b", "MOOV_ORIGIN": "example.com"}, "WithOrigin"},
		"wrong host":   {map[string]string{"MOOV_PUBLIC_KEY": "a", "MOOV_SECRET_KEY": "b", "MOOV_HOST": "127.0.0.1:0"}, "https://127.0.0.1:0/oauth2/token"},
	} {
		t.Run(name, func(t *testing.T) {
			err := run(t.Context(), new(strings.Builder), func(name string) string { return c.env[name] })
			require.ErrorContains(t, err, c.want)
			assert.NotContains(t, err.Error(), "\n")
		})
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, run(ctx, new(strings.Builder), func(string) string { return "" }), context.Canceled)
}
