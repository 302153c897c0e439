package interop

// This file redirects clients to another host. They follow redirects of API requests,
// but without the token. They do not follow redirects of token and revoke requests.

import (
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/hashicorp/go-retryablehttp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func TestRedirectElsewhereIsFollowedWithoutTheToken(t *testing.T) {
	t.Parallel()
	var authorized, arrived atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		arrived.Add(1)
		if len(r.Header.Values("Authorization")) > 0 {
			authorized.Add(1)
		}
		writeJSON(w, "{}")
	}))
	t.Cleanup(elsewhere.Close)
	a := newAPI(t, (*httptest.Server).Start, func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, elsewhere.URL, http.StatusFound)
	})

	for _, c := range []struct {
		name string
		call func(t *testing.T) func() error
	}{
		{"Client", func(t *testing.T) func() error {
			return get(a.newSource(t).Client(), a.URL+"/moved")
		}},
		{"go-github", func(t *testing.T) func() error {
			client := newGitHub(t, a, a.newSource(t))
			return func() error {
				_, _, err := client.Users.Get(t.Context(), "moov")
				return err
			}
		}},
		{"retryablehttp around", func(t *testing.T) func() error {
			return get(newRetrying(a.newSource(t).Client()).StandardClient(), a.URL+"/moved")
		}},
		{"retryablehttp inside", func(t *testing.T) func() error {
			base := &retryablehttp.RoundTripper{Client: newRetrying(&http.Client{CheckRedirect: followNone})}
			return get(a.newSource(t, moovauth.WithHTTPClient(&http.Client{Transport: base})).Client(), a.URL+"/moved")
		}},
		{"otelhttp", func(t *testing.T) func() error {
			base := otelhttp.NewTransport(http.DefaultTransport)
			return get(a.newSource(t, moovauth.WithHTTPClient(&http.Client{Transport: base})).Client(), a.URL+"/moved")
		}},
	} {
		t.Run(c.name, func(t *testing.T) {
			before, calls := arrived.Load(), len(a.seen())
			require.NoError(t, c.call(t)())
			assert.Equal(t, before+1, arrived.Load())
			assert.Zero(t, authorized.Load(), "the token was sent to the other host")
			assert.Len(t, a.seen(), calls+1)
			assert.Zero(t, a.refused())
		})
	}
}

func TestRedirectOfATokenRequestIsNotFollowed(t *testing.T) {
	t.Parallel()
	var arrived atomic.Int64
	elsewhere := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { arrived.Add(1) }))
	t.Cleanup(elsewhere.Close)
	for name, client := range map[string]*http.Client{
		"http.Client":   {},
		"otelhttp":      {Transport: otelhttp.NewTransport(http.DefaultTransport)},
		"retryablehttp": {Transport: &retryablehttp.RoundTripper{Client: newRetrying(&http.Client{CheckRedirect: followNone})}},
	} {
		t.Run(name, func(t *testing.T) {
			for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
				a := newAPI(t, (*httptest.Server).Start, nil)
				away := moovtest.Answer{Status: http.StatusTemporaryRedirect, Header: http.Header{"Location": {elsewhere.URL}}}
				a.tokens.Enqueue(away, away)
				options := []moovauth.Option{moovauth.WithHTTPClient(client), moovauth.WithAuthStyle(style)}
				_, err := a.newSource(t, options...).Token()
				require.ErrorContains(t, err, "redirects are not followed")
				err = moovauth.Revoke(t.Context(), a.credentials(), "some-token", append(options, moovauth.WithBaseURL(a.URL))...)
				require.ErrorContains(t, err, "redirects are not followed")
			}
			assert.Zero(t, arrived.Load())
		})
	}
}
