package main

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// exported is what Prometheus reads from a collector.
func exported(t *testing.T, c prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(c)
	page := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, page.Code)
	return page.Body.String()
}

// eventfulPlatform returns tokens that have been through one of everything: of six
// sources three have a fresh token, one a stale one, one cools down and one was
// not used; one more was removed. A page has left, and another had no more time. Two
// requests have waited in the queue for 12 s, behind a 429.
func eventfulPlatform(t *testing.T) *platform.Tokens {
	server := moovtest.NewInMemory()
	t.Cleanup(server.Close)
	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithRate(20), platform.WithCapacity(6),
		platform.WithSource(moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client())))
	require.NoError(t, err)
	scope := func(account string) string { return "/accounts/" + account + "/cards.read" }
	token := func(account string) error {
		source, err := tokens.Source(scope(account))
		require.NoError(t, err)
		_, err = source.Token()
		return err
	}
	refuse := func() {
		server.Enqueue(moovtest.Answer{Status: http.StatusUnprocessableEntity})
		require.Error(t, token("refused"))
	}
	require.NoError(t, token("evicted"))
	require.NoError(t, token("stale"))
	for range 13 { // so that it cools down for long
		refuse()
		time.Sleep(time.Minute)
	}
	for _, account := range []string{"a1", "a2", "a3"} {
		require.NoError(t, token(account))
	}
	_, err = tokens.Source(scope("unused"))
	require.NoError(t, err)
	refuse()

	var minted string
	for range 3 {
		m, err := tokens.Mint(t.Context(), scope("page"))
		require.NoError(t, err)
		minted = m.AccessToken
	}
	require.NoError(t, tokens.Revoke(t.Context(), minted))
	_, err = tokens.Mint(t.Context(), "two scopes")
	require.Error(t, err)
	for _, cause := range []error{context.Canceled, context.DeadlineExceeded} {
		ctx, cancel := context.WithDeadline(t.Context(), time.Now()) // has passed
		if cause == context.Canceled {
			ctx, cancel = context.WithCancel(t.Context())
		}
		cancel()
		_, err = tokens.Mint(ctx, scope("page"))
		require.ErrorIs(t, err, cause)
	}

	server.Enqueue(moovtest.Answer{Status: http.StatusTooManyRequests, Header: http.Header{"Retry-After": {"60"}}})
	var pages sync.WaitGroup
	t.Cleanup(pages.Wait)
	for range 3 {
		pages.Go(func() {
			_, err := tokens.Mint(context.Background(), scope("page"))
			assert.NoError(t, err)
		})
		synctest.Wait()
	}
	time.Sleep(12 * time.Second)
	return tokens
}

func TestPrometheusOfAPlatform(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		tokens := eventfulPlatform(t)
		p := collector(func() *platform.Tokens { return tokens })
		page := exported(t, p)
		for _, sample := range []string{
			`moovauth_platform_sources_fresh 3`,
			`moovauth_platform_sources 6`,
			`moovauth_platform_sources_stale 1`,
			`moovauth_platform_sources_cooling_down 1`,
			`moovauth_platform_requests_in_line 2`,
			`moovauth_platform_longest_wait_seconds 12`,
			`moovauth_platform_requests_per_second 9.7`, // half of what it was
			`moovauth_platform_requests_served_total 9`,
			`moovauth_platform_requests_refused_total 1`,
			`moovauth_platform_tokens_minted_total 3`,
			`moovauth_platform_tokens_revoked_total 1`,
			`moovauth_platform_failures_total 1`,
			`moovauth_platform_timeouts_total 1`,
			`moovauth_platform_abandoned_total 1`,
			`moovauth_platform_grants_failed_total 14`,
			`moovauth_platform_evicted_total 1`,
			`moovauth_platform_needed_requests_per_second 0.004166666666666667`, // three each 720 s
		} {
			assert.Contains(t, page, sample+"\n")
		}
		problems, err := testutil.CollectAndLint(p)
		require.NoError(t, err)
		assert.Empty(t, problems)
	})
}

func TestMetricsFollowARotation(t *testing.T) {
	test(t, func(t *testing.T, f *fixture) {
		r := f.run()
		page := func() string { return f.send("GET", "/metrics", nil).Body.String() }
		require.Equal(t, 200, f.get("a1"))
		require.Equal(t, 200, f.get("a2"))
		f.mint(f.signedIn("a1"))
		assert.Contains(t, page(), `moovauth_platform_requests_served_total 4`+"\n")
		assert.Contains(t, page(), `moovauth_platform_tokens_minted_total 1`+"\n")
		f.newKey()
		r.hangup()
		time.Sleep(5 * time.Second)
		assert.Contains(t, page(), `moovauth_platform_requests_served_total 3`+"\n", "the trial, and two accounts")
		assert.Contains(t, page(), `moovauth_platform_tokens_minted_total 0`+"\n")
		require.NoError(t, r.stop())
	})
}

// The alerts use metrics and labels that there are.
func TestAlertsUseTheMetricsOfTheCollector(t *testing.T) {
	text, err := os.ReadFile("../../docs/operations.md")
	require.NoError(t, err)
	var page string
	synctest.Test(t, func(t *testing.T) {
		tokens := eventfulPlatform(t)
		page = exported(t, collector(func() *platform.Tokens { return tokens }))
	})
	names := regexp.MustCompile(`moovauth_platform_\w+`).FindAllString(string(text), -1)
	require.NotEmpty(t, names)
	for _, name := range names {
		assert.Contains(t, page, "\n"+name+" ")
	}
}
