package interop

// This file tests the Prometheus metrics of sources, and the alerts that use them.

import (
	"net/http"
	"net/http/httptest"
	"os"
	"regexp"
	"strings"
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
)

// eventful returns a source that has counted most kinds of events, and has a stale
// token. It began to request its first token at began, and its last one hour later.
func eventful(t *testing.T) (source *moovauth.TokenSource, began time.Time) {
	server := moovtest.NewInMemory(moovtest.WithLatency(500 * time.Millisecond))
	t.Cleanup(server.Close)
	began = time.Now()
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes(pingScope), moovauth.WithBaseURL(server.URL), moovauth.WithHTTPClient(server.Client()))
	require.NoError(t, err)
	token := func() string {
		t.Helper()
		tok, err := source.Token()
		require.NoError(t, err)
		return tok.AccessToken
	}
	token() // client credentials, waited for half a second
	source.Invalidate(token())
	token() // refresh token, waited for half a second
	require.NoError(t, source.Revoke(t.Context()))
	server.Enqueue(moovtest.Answer{Status: http.StatusUnauthorized})
	_, err = source.Token() // fails, waited for half a second
	require.Error(t, err)
	time.Sleep(time.Until(began.Add(time.Hour)))
	token() // client credentials, waited for half a second
	time.Sleep(13 * time.Minute)
	require.Equal(t, moovauth.PhaseStale, source.Stats().Phase)
	return source, began
}

// exported returns what Prometheus reads from collectors.
func exported(t *testing.T, collectors ...prometheus.Collector) string {
	t.Helper()
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collectors...)
	page := httptest.NewRecorder()
	promhttp.HandlerFor(registry, promhttp.HandlerOpts{}).ServeHTTP(page, httptest.NewRequest(http.MethodGet, "/metrics", nil))
	require.Equal(t, http.StatusOK, page.Code)
	return page.Body.String()
}

func TestPrometheus(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, _ := eventful(t)
		page := exported(t, collector{"ping": source})
		for _, sample := range []string{
			`moovauth_token_phase{phase="fresh",source="ping"} 0`,
			`moovauth_token_phase{phase="none",source="ping"} 0`,
			`moovauth_token_phase{phase="stale",source="ping"} 1`,
			// A bubble begins on 1 January 2000, at 946684800.
			`moovauth_token_expiry_timestamp_seconds{source="ping"} 9.466893e+08`,
			`moovauth_last_error_timestamp_seconds{source="ping"} 9.46684803e+08`,
			`moovauth_grants_total{grant_type="client_credentials",outcome="success",source="ping"} 2`,
			`moovauth_grants_total{grant_type="client_credentials",outcome="failure",source="ping"} 1`,
			`moovauth_grants_total{grant_type="refresh_token",outcome="success",source="ping"} 1`,
			`moovauth_grants_total{grant_type="refresh_token",outcome="failure",source="ping"} 0`,
			`moovauth_tokens_adopted_total{source="ping"} 0`,
			`moovauth_tokens_invalidated_total{source="ping"} 1`,
			`moovauth_tokens_revoked_total{source="ping"} 3`,
			`moovauth_waits_total{source="ping"} 4`,
			`moovauth_wait_seconds_total{source="ping"} 2`,
		} {
			assert.Contains(t, page, sample+"\n")
		}
		assert.NotContains(t, page, "cool_down", "the source is not cooling down")
		problems, err := testutil.CollectAndLint(collector{"ping": source})
		require.NoError(t, err)
		assert.Empty(t, problems)
	})
}

func TestPrometheusOfANewSource(t *testing.T) {
	source, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: "id", ClientSecret: "secret"}, moovauth.WithScopes(pingScope))
	require.NoError(t, err)
	registry := prometheus.NewPedanticRegistry()
	registry.MustRegister(collector{"a": source, "b": source})
	n, err := testutil.GatherAndCount(registry, "moovauth_token_phase", "moovauth_token_expiry_timestamp_seconds", "moovauth_grants_total")
	require.NoError(t, err)
	assert.Equal(t, 2*3+0+2*4, n)
}

// The alerts use only metrics, labels and values that exist. examples/service tests
// the alerts of platform.
func TestAlertsUseTheMetricsOfTheCollector(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	queries := strings.Split(string(text), "```promql\n")[1:]
	var metrics string
	synctest.Test(t, func(t *testing.T) {
		source, _ := eventful(t)
		metrics = exported(t, collector{"ping": source})
	})
	tested := 0
	for _, query := range queries {
		query, _, _ = strings.Cut(query, "```")
		if strings.Contains(query, "moovauth_platform_") {
			continue
		}
		tested++
		names := regexp.MustCompile(`moovauth_\w+`).FindAllString(query, -1)
		assert.NotEmpty(t, names, query)
		for _, name := range names {
			assert.Contains(t, metrics, "\n"+name+"{", query)
		}
		for _, label := range regexp.MustCompile(`\w+="\w+"`).FindAllString(query, -1) {
			assert.Contains(t, metrics, label, query)
		}
	}
	assert.NotZero(t, tested)
}
