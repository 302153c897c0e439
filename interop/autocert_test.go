package interop

// This file keeps tokens in the caches of golang.org/x/crypto/acme/autocert.
// moovauth.Cache has the same methods as autocert.Cache.

import (
	"bytes"
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/acme/autocert"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
	"github.com/moovauth/moovauth/moovtest"
)

var _ autocert.Cache = (*dircache.Cache)(nil) // autocert can use it, too

func TestAutocertDirCacheKeepsTokens(t *testing.T) {
	server := moovtest.NewServer()
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "tokens")
	var log bytes.Buffer
	start := func() *moovauth.TokenSource {
		source, err := moovauth.NewTokenSource(
			moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
			moovauth.WithScopes(pingScope), moovauth.WithBaseURL(server.URL),
			moovauth.WithCache(autocert.DirCache(dir)), moovauth.WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
		require.NoError(t, err)
		return source
	}
	first, err := start().Token()
	require.NoError(t, err)
	restarted := start()
	again, err := restarted.Token()
	require.NoError(t, err)
	assert.Equal(t, first.AccessToken, again.AccessToken)
	assert.Len(t, server.TokenRequests(), 1)

	files, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Len(t, files, 1)
	data, err := autocert.DirCache(dir).Get(context.Background(), files[0].Name())
	require.NoError(t, err)
	for _, secret := range []string{first.AccessToken, first.RefreshToken, server.ClientSecret} {
		assert.NotContains(t, string(data), secret)
	}

	require.NoError(t, restarted.Revoke(t.Context()))
	_, err = autocert.DirCache(dir).Get(t.Context(), files[0].Name())
	require.ErrorIs(t, err, autocert.ErrCacheMiss)
	next, err := restarted.Token()
	require.NoError(t, err)
	assert.True(t, server.Alive(next.AccessToken))
	assert.Empty(t, log.String(), "a cache miss is not a failure")
}
