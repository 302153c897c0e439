package interop

// This file runs the recipe of docs/integrations.md for Moov's own SDK. The SDK,
// github.com/moovfinancial/moov-go, is not on the module proxy. moovGo makes
// requests in the same way as the SDK.

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// moovGo is a client like that of moov-go. The SDK requires credentials of its own,
// sends them as HTTP Basic with every call, and always uses https.
type moovGo struct {
	publicKey, secretKey, host string
	client                     *http.Client
}

// do makes a call. version is "" for most calls of the SDK.
func (c *moovGo) do(method, path, version, body string) error {
	if c.publicKey == "" || c.secretKey == "" {
		return errors.New("api credentials not set")
	}
	req, err := http.NewRequest(method, "https://"+c.host+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	if version != "" {
		req.Header.Set(moovauth.VersionHeader, version)
	}
	req.SetBasicAuth(c.publicKey, c.secretKey)
	return ok(c.client.Do(req))
}

func TestMoovGo(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).StartTLS, nil, moovtest.WithLifetime(shortLife))
	source := a.newSource(t, moovauth.WithVersion("v2026.07.00"))
	sdk := &moovGo{"unused", "unused", strings.TrimPrefix(a.URL, "https://"), source.Client()}
	l := &life{api: a, source: source, after: replays, call: func() error {
		return sdk.do(http.MethodPost, "/accounts", "", `{"accountType":"business"}`)
	}}
	l.run(t)
	for _, c := range a.seen() {
		require.Len(t, c.authorization, 1)
		assert.True(t, strings.HasPrefix(c.authorization[0], "Bearer "), "the SDK's own credentials are not sent")
		assert.Equal(t, []string{"v2026.07.00"}, c.header.Values(moovauth.VersionHeader))
	}

	require.NoError(t, sdk.do(http.MethodGet, "/ping", "v2025.04.00", ""))
	seen := a.seen()
	assert.Equal(t, []string{"v2025.04.00"}, seen[len(seen)-1].header.Values(moovauth.VersionHeader), "the SDK's version is kept")
}

// The SDK's AccessToken sends the credentials as HTTP Basic and in the body, as the
// curl examples in Moov's documentation do.
func TestMoovGoAccessToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).StartTLS, nil)
	req, err := http.NewRequest(http.MethodPost, a.URL+"/oauth2/token", strings.NewReader(
		`{"grant_type":"client_credentials","scope":"`+pingScope+`","client_id":"`+a.tokens.ClientID+`","client_secret":"`+a.tokens.ClientSecret+`"}`))
	require.NoError(t, err)
	req.Header.Set("Content-Type", "application/json")
	req.SetBasicAuth(a.tokens.ClientID, a.tokens.ClientSecret)
	require.NoError(t, ok(a.Client().Do(req)))
	assert.Len(t, a.tokens.AccessTokens(), 1)
}
