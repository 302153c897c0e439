package main

// This file exports what platform.Tokens tell about themselves to Prometheus.
// docs/operations.md has alerts on these metrics.

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/platform"
)

// collector exports the tokens of API keys, each under a name that becomes the
// label "key": a name, not the key itself. It asks for the current tokens at each
// scrape. After a rotation the counters start from zero, as after a restart.
type collector map[string]func() *platform.Tokens

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("moovauth_platform_"+name, help, append([]string{"key"}, labels...), nil)
}

var (
	sources     = newDesc("sources", "Sources that are kept, by the phase of the current token.", "phase")
	coolingDown = newDesc("sources_cooling_down", "Of them, those that make no request after a failure.")
	inLine      = newDesc("requests_in_line", "Token and revoke requests that wait in the queue.")
	longestWait = newDesc("longest_wait_seconds", "How long the first of them has waited.")
	rate        = newDesc("requests_per_second", "The rate at which requests may go now.")
	needed      = newDesc("needed_requests_per_second", "Refreshes that the accounts in use need.")
	served      = newDesc("requests_served_total", "Token and revoke requests that succeeded.")
	refused     = newDesc("requests_refused_total", "429s to token and revoke requests.")
	minted      = newDesc("tokens_minted_total", "Tokens that were minted for pages and apps.")
	revoked     = newDesc("tokens_revoked_total", "Tokens that were revoked.")
	timedOut    = newDesc("timeouts_total", "Pages that got a 503 because they waited in the queue for too long.")
	abandoned   = newDesc("abandoned_total", "Pages that left before they had a token.")
	failed      = newDesc("failures_total", "Tokens not minted and not revoked, and sources that RevokeAll did not finish.")
	grants      = newDesc("grants_failed_total", "Grants of sources that failed.")
	evicted     = newDesc("evicted_total", "Sources that were let go with a good token.")
)

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	for name, current := range c {
		s := current().Stats()
		gauge := func(d *prometheus.Desc, value float64, labels ...string) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, value, append([]string{name}, labels...)...)
		}
		count := func(d *prometheus.Desc, n uint64) {
			metrics <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), name)
		}
		gauge(sources, float64(s.Fresh), moovauth.PhaseFresh)
		gauge(sources, float64(s.Stale), moovauth.PhaseStale)
		gauge(sources, float64(s.Sources-s.Fresh-s.Stale), moovauth.PhaseNone)
		gauge(coolingDown, float64(s.CoolingDown))
		gauge(inLine, float64(s.InLine))
		gauge(longestWait, s.LongestWait.Seconds())
		gauge(rate, s.Rate)
		gauge(needed, s.Needed)
		count(served, s.Served)
		count(refused, s.Refused)
		count(minted, s.Minted)
		count(revoked, s.Revoked)
		count(timedOut, s.TimedOut)
		count(abandoned, s.Abandoned)
		count(failed, s.Failed)
		count(grants, s.GrantsFailed)
		count(evicted, s.Evicted)
	}
}
