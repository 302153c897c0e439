package interop

// This file exports what platforms tell about themselves to Prometheus. The
// collector is meant to be copied; docs/operations.md has alerts on its metrics.

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// platforms exports the tokens of API keys, each under a name that becomes the
// label "key": a name, not the key itself.
type platforms map[string]*platform.Tokens

func newPlatformDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("moovauth_platform_"+name, help, append([]string{"key"}, labels...), nil)
}

var (
	platformSources     = newPlatformDesc("sources", "Sources that are kept, by the phase of the token in hand.", "phase")
	platformCoolingDown = newPlatformDesc("sources_cooling_down", "Of them, those that make no request after a failure.")
	platformInLine      = newPlatformDesc("requests_in_line", "Token and revoke requests that wait for their turn.")
	platformLongestWait = newPlatformDesc("longest_wait_seconds", "How long the first in line has waited.")
	platformRate        = newPlatformDesc("requests_per_second", "The rate at which the line moves now.")
	platformServed      = newPlatformDesc("requests_served_total", "Token and revoke requests that succeeded.")
	platformRefused     = newPlatformDesc("requests_refused_total", "429s, also to API calls.")
	platformMinted      = newPlatformDesc("tokens_minted_total", "Tokens that were minted for pages and apps.")
	platformRevoked     = newPlatformDesc("tokens_revoked_total", "Tokens that were revoked.")
	platformFailed      = newPlatformDesc("failures_total", "Tokens not minted and not revoked, and sources that RevokeAll did not finish.")
)

func (p platforms) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(p, descs) }

func (p platforms) Collect(metrics chan<- prometheus.Metric) {
	for name, tokens := range p {
		s := tokens.Stats()
		gauge := func(d *prometheus.Desc, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{name}, labels...)...)
		}
		count := func(d *prometheus.Desc, n uint64) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), name)
		}
		gauge(platformSources, float64(s.Fresh), moovauth.PhaseFresh)
		gauge(platformSources, float64(s.Stale), moovauth.PhaseStale)
		gauge(platformSources, float64(s.Sources-s.Fresh-s.Stale), moovauth.PhaseNone)
		gauge(platformCoolingDown, float64(s.CoolingDown))
		gauge(platformInLine, float64(s.InLine))
		gauge(platformLongestWait, s.LongestWait.Seconds())
		gauge(platformRate, s.Rate)
		count(platformServed, s.Served)
		count(platformRefused, s.Refused)
		count(platformMinted, s.Minted)
		count(platformRevoked, s.Revoked)
		count(platformFailed, s.Failed)
	}
}

// eventfulPlatform returns tokens that have been through one of everything: of six
// sources three have a fresh token, one a stale one, one cools down and one was
// not used; and two requests have been in line for 12 s, behind a 429.
func eventfulPlatform(t *testing.T) *platform.Tokens {
	server := moovtest.NewInMemory()
	t.Cleanup(server.Close)
	tokens, err := platform.New(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		platform.WithRate(20),
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
		p := platforms{"live": eventfulPlatform(t)}
		page := exported(t, p)
		for _, sample := range []string{
			`moovauth_platform_sources{key="live",phase="fresh"} 3`,
			`moovauth_platform_sources{key="live",phase="none"} 2`,
			`moovauth_platform_sources{key="live",phase="stale"} 1`,
			`moovauth_platform_sources_cooling_down{key="live"} 1`,
			`moovauth_platform_requests_in_line{key="live"} 2`,
			`moovauth_platform_longest_wait_seconds{key="live"} 12`,
			`moovauth_platform_requests_per_second{key="live"} 9.7`, // half of what it was
			`moovauth_platform_requests_served_total{key="live"} 8`,
			`moovauth_platform_requests_refused_total{key="live"} 1`,
			`moovauth_platform_tokens_minted_total{key="live"} 3`,
			`moovauth_platform_tokens_revoked_total{key="live"} 1`,
			`moovauth_platform_failures_total{key="live"} 1`,
		} {
			assert.Contains(t, page, sample+"\n")
		}
		problems, err := testutil.CollectAndLint(p)
		require.NoError(t, err)
		assert.Empty(t, problems)
	})
}
