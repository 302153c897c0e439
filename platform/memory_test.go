//go:build !race

package platform

// How much memory an account takes. With the race detector it takes more.

import (
	"fmt"
	"io"
	"net/http"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
)

// mint is a RoundTripper that answers each token request and keeps nothing, so that
// the test measures only the client's memory.
type mint struct{ n atomic.Int64 }

func (m *mint) RoundTrip(req *http.Request) (*http.Response, error) {
	body := fmt.Sprintf(`{"access_token":"%0*d","token_type":"Bearer","refresh_token":"%0*d","expires_in":900}`, accessLength, m.n.Add(1), refreshLength, m.n.Load())
	return &http.Response{Status: "200 OK", StatusCode: 200, Header: http.Header{"Content-Type": {"application/json"}},
		Body: io.NopCloser(strings.NewReader(body)), Request: req}, nil
}

const accessLength, refreshLength = 900, 100

func TestMemoryForEachAccount(t *testing.T) {
	if testing.Short() {
		t.Skip("it takes a second")
	}
	const accounts = 10_000
	synctest.Test(t, func(t *testing.T) {
		tokens, err := New(moovauth.Credentials{ClientID: "id", ClientSecret: "secret"},
			WithRate(1e9), WithSource(moovauth.WithHTTPClient(&http.Client{Transport: new(mint)})))
		require.NoError(t, err)
		before := used()
		for i := range accounts {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			_, err = source.Token()
			require.NoError(t, err)
		}
		rest := float64(used()-before)/accounts - accessLength - refreshLength
		t.Logf("at rest: %.0f bytes for each account, beyond its token", rest)
		assert.Less(t, rest, 1300.0)
		runtime.KeepAlive(tokens)
	})
	synctest.Test(t, func(t *testing.T) {
		tokens, err := New(moovauth.Credentials{ClientID: "id", ClientSecret: "secret"},
			WithRate(1e9), WithSource(moovauth.WithHTTPClient(&http.Client{Transport: new(mint)})))
		require.NoError(t, err)
		(&place{queue: tokens.queue}).Refused(time.Minute)
		before := used()
		var callers sync.WaitGroup
		for i := range accounts {
			source, err := tokens.Source(account(i)...)
			require.NoError(t, err)
			callers.Go(func() {
				_, err := source.Token()
				assert.NoError(t, err)
			})
		}
		synctest.Wait()
		require.Equal(t, accounts, tokens.Stats().InLine)
		queued := float64(used()-before) / accounts
		t.Logf("in the queue: %.0f bytes for each account, its caller's goroutine included", queued)
		assert.Less(t, queued, 12_000.0)
		callers.Wait()
	})
}
