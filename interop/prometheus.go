package interop

// This file exports the Stats of sources to Prometheus. You can copy the collector.
// docs/operations.md has alerts for its metrics.

import (
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/moovauth/moovauth"
)

// collector exports sources by name. The label "source" has the name. A time that is
// not set has no sample.
type collector map[string]*moovauth.TokenSource

func newDesc(name, help string, labels ...string) *prometheus.Desc {
	return prometheus.NewDesc("moovauth_"+name, help, append([]string{"source"}, labels...), nil)
}

var (
	tokenPhase  = newDesc("token_phase", "1 for the phase of the current token.", "phase")
	tokenExpiry = newDesc("token_expiry_timestamp_seconds", "When the current token expires.")
	coolDown    = newDesc("cool_down_until_timestamp_seconds", "When the next token request may be made.")
	lastError   = newDesc("last_error_timestamp_seconds", "When a token request last failed.")
	grants      = newDesc("grants_total", "Token requests by grant type and outcome.", "grant_type", "outcome")
	adopted     = newDesc("tokens_adopted_total", "Tokens taken from the cache.")
	invalidated = newDesc("tokens_invalidated_total", "Tokens that Invalidate marked as refused.")
	revoked     = newDesc("tokens_revoked_total", "Tokens that Revoke revoked.")
	waits       = newDesc("waits_total", "Callers that had to wait for a token.")
	waitTime    = newDesc("wait_seconds_total", "Total time that callers waited for a token.")
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
