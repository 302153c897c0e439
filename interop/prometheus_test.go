package interop

// This file exports what sources tell about themselves to Prometheus. The
// collector is meant to be copied; docs/operations.md has alerts on its metrics.

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

// collector exports sources, each under a name that becomes the label "source".
// Times that are not set have no sample.
type collector map[string]*moovauth.TokenSource

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("moovauth_"+name, help, append([]string{"source"}, labels...), nil)
}

var (
	tokenPhase  = newDesc("token_phase", "1 for the phase that the token in hand is in.", "phase")
	tokenExpiry = newDesc("token_expiry_timestamp_seconds", "When the token in hand expires.")
	coolDown    = newDesc("cool_down_until_timestamp_seconds", "When the next token request may be made.")
	lastError   = newDesc("last_error_timestamp_seconds", "When a grant failed last.")
	grants      = newDesc("grants_total", "Grants, by type and outcome.", "grant_type", "outcome")
	adopted     = newDesc("tokens_adopted_total", "Tokens taken from the cache.")
	invalidated = newDesc("tokens_invalidated_total", "Tokens that the API refused.")
	revoked     = newDesc("tokens_revoked_total", "Tokens that Revoke revoked.")
	waits       = newDesc("waits_total", "Callers that had to wait for a token.")
	waitTime    = newDesc("wait_seconds_total", "How long they waited, together.")
)

func (c collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

func (c collector) Collect(metrics chan<- prometheus.Metric) {
	for name, source := range c {
		s := source.Stats()
		send := func(d *prometheus.Desc, kind prometheus.ValueType, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(d, kind, value, append([]string{name}, labels...)...)
		}
		at := func(d *prometheus.Desc, t time.Time) {
			if !t.IsZero() {
				send(d, prometheus.GaugeValue, float64(t.UnixMilli())/1e3)
			}
		}
		count := func(d *prometheus.Desc, n uint64, labels ...string) {
			send(d, prometheus.CounterValue, float64(n), labels...)
		}
		for _, phase := range []string{moovauth.PhaseNone, moovauth.PhaseFresh, moovauth.PhaseStale} {
			value := 0.0
			if s.Phase == phase {
				value = 1
			}
			send(tokenPhase, prometheus.GaugeValue, value, phase)
		}
		at(tokenExpiry, s.Expiry)
		at(coolDown, s.CoolDownUntil)
		at(lastError, s.LastErrorAt)
		count(grants, s.ClientCredentials, "client_credentials", "success")
		count(grants, s.ClientCredentialsFailed, "client_credentials", "failure")
		count(grants, s.Refreshes, "refresh_token", "success")
		count(grants, s.RefreshesFailed, "refresh_token", "failure")
		count(adopted, s.Adopted)
		count(invalidated, s.Invalidated)
		count(revoked, s.Revoked)
		count(waits, s.Waited)
		send(waitTime, prometheus.CounterValue, s.WaitTime.Seconds())
	}
}

// eventful returns a source that has been through one of everything, with a stale
// token in hand. Its first token was obtained at began, the last at began + 1 h.
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
	token() // refreshed, waited for half a second
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

// exported is what Prometheus reads from collectors.
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
		assert.NotContains(t, page, "cool_down", "there is none")
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

// The alerts use metrics, labels and values that there are.
func TestAlertsUseTheMetricsOfTheCollectors(t *testing.T) {
	text, err := os.ReadFile("../docs/operations.md")
	require.NoError(t, err)
	queries := strings.Split(string(text), "```promql\n")[1:]
	require.NotEmpty(t, queries)
	var metrics string
	synctest.Test(t, func(t *testing.T) {
		source, _ := eventful(t)
		metrics = exported(t, collector{"ping": source}, platforms{"live": eventfulPlatform(t)})
	})
	for _, query := range queries {
		query, _, _ = strings.Cut(query, "```")
		names := regexp.MustCompile(`moovauth_\w+`).FindAllString(query, -1)
		assert.NotEmpty(t, names, query)
		for _, name := range names {
			assert.Contains(t, metrics, "\n"+name+"{", query)
		}
		for _, label := range regexp.MustCompile(`\w+="\w+"`).FindAllString(query, -1) {
			assert.Contains(t, metrics, label, query)
		}
	}
}
