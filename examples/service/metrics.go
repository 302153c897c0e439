package main

// This file exports platform.Stats to Prometheus. docs/operations.md has alerts on
// these metrics.

import (
	"github.com/prometheus/client_golang/prometheus"

	"github.com/moovauth/moovauth/platform"
)

// collector returns the current tokens. After a rotation the counters start from
// zero, as after a restart.
type collector func() *platform.Tokens

// Describe implements prometheus.Collector.
func (c collector) Describe(descs chan<- *prometheus.Desc) { prometheus.DescribeByCollect(c, descs) }

// Collect implements prometheus.Collector.
func (c collector) Collect(metrics chan<- prometheus.Metric) {
	const gauge, counter = prometheus.GaugeValue, prometheus.CounterValue
	s := c().Stats()
	for _, m := range []struct {
		name, help string
		kind       prometheus.ValueType
		value      float64
	}{
		{"sources", "Accounts' sources that are kept.", gauge, float64(s.Sources)},
		{"sources_fresh", "Sources with a fresh token.", gauge, float64(s.Fresh)},
		{"sources_stale", "Sources with a valid token that is being refreshed, or that the next call refreshes.", gauge, float64(s.Stale)},
		{"sources_cooling_down", "Sources that back off after a failure.", gauge, float64(s.CoolingDown)},
		{"requests_in_line", "Token and revoke requests in the queue.", gauge, float64(s.InLine)},
		{"longest_wait_seconds", "How long the first of them has waited.", gauge, s.LongestWait.Seconds()},
		{"requests_per_second", "The rate of the queue.", gauge, s.Rate},
		{"needed_requests_per_second", "Refreshes that the accounts in use need.", gauge, s.Needed},
		{"requests_served_total", "Token and revoke requests that succeeded.", counter, float64(s.Served)},
		{"requests_refused_total", "429s to token and revoke requests.", counter, float64(s.Refused)},
		{"tokens_minted_total", "Tokens that were minted for pages and apps.", counter, float64(s.Minted)},
		{"tokens_revoked_total", "Tokens that were revoked.", counter, float64(s.Revoked)},
		{"timeouts_total", "Pages that got a 503 because they waited in the queue for too long.", counter, float64(s.TimedOut)},
		{"abandoned_total", "Pages that disconnected before they had a token.", counter, float64(s.Abandoned)},
		{"failures_total", "Tokens not minted and not revoked, and sources that RevokeAll did not finish.", counter, float64(s.Failed)},
		{"grants_failed_total", "Token requests of sources that failed.", counter, float64(s.GrantsFailed)},
		{"evicted_total", "Sources that were removed while their token was valid.", counter, float64(s.Evicted)},
	} {
		desc := prometheus.NewDesc("moovauth_platform_"+m.name, m.help, nil, nil)
		metrics <- prometheus.MustNewConstMetric(desc, m.kind, m.value)
	}
}
