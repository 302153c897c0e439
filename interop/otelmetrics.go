package interop

// This file exports the Stats of a source as OpenTelemetry metrics. You can copy the
// function observe.

import (
	"context"
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/metric"

	"github.com/moovauth/moovauth"
)

// observe exports the Stats of source. The attribute "source" has the given name. All
// values are read at each export.
func observe(meter metric.Meter, name string, source *moovauth.TokenSource) (metric.Registration, error) {
	var failed error
	counter := func(name, unit, about string) metric.Int64ObservableCounter {
		c, err := meter.Int64ObservableCounter("moovauth."+name, metric.WithUnit(unit), metric.WithDescription(about))
		if err != nil {
			failed = err
		}
		return c
	}
	good := counter("grants", "{grant}", "Token requests by grant type and outcome.")
	adopted := counter("tokens.adopted", "{token}", "Tokens taken from the cache.")
	invalidated := counter("tokens.invalidated", "{token}", "Tokens that Invalidate marked as refused.")
	revoked := counter("tokens.revoked", "{token}", "Tokens that Revoke revoked.")
	waits := counter("waits", "{caller}", "Callers that had to wait for a token.")
	waited, err := meter.Float64ObservableCounter("moovauth.wait.time", metric.WithUnit("s"), metric.WithDescription("Total time that callers waited for a token."))
	if err != nil {
		return nil, err
	}
	phase, err := meter.Int64ObservableGauge("moovauth.token.phase", metric.WithDescription("1 for the phase of the current token."))
	if err != nil {
		return nil, err
	}
	left, err := meter.Float64ObservableGauge("moovauth.token.time_left", metric.WithUnit("s"), metric.WithDescription("Time until the current token expires."))
	if err != nil {
		return nil, err
	}
	if failed != nil {
		return nil, failed
	}
	of := func(attrs ...attribute.KeyValue) metric.ObserveOption {
		return metric.WithAttributes(append(attrs, attribute.String("source", name))...)
	}
	return meter.RegisterCallback(func(_ context.Context, o metric.Observer) error {
		s := source.Stats()
		for _, g := range []struct {
			grantType, outcome string
			n                  uint64
		}{
			{"client_credentials", "success", s.ClientCredentials},
			{"client_credentials", "failure", s.ClientCredentialsFailed},
			{"refresh_token", "success", s.Refreshes},
			{"refresh_token", "failure", s.RefreshesFailed},
		} {
			o.ObserveInt64(good, int64(g.n), of(attribute.String("grant_type", g.grantType), attribute.String("outcome", g.outcome)))
		}
		o.ObserveInt64(adopted, int64(s.Adopted), of())
		o.ObserveInt64(invalidated, int64(s.Invalidated), of())
		o.ObserveInt64(revoked, int64(s.Revoked), of())
		o.ObserveInt64(waits, int64(s.Waited), of())
		o.ObserveFloat64(waited, s.WaitTime.Seconds(), of())
		for _, p := range []string{moovauth.PhaseNone, moovauth.PhaseFresh, moovauth.PhaseStale} {
			value := int64(0)
			if s.Phase == p {
				value = 1
			}
			o.ObserveInt64(phase, value, of(attribute.String("phase", p)))
		}
		if s.Phase != moovauth.PhaseNone {
			o.ObserveFloat64(left, time.Until(s.Expiry).Seconds(), of())
		}
		return nil
	}, good, adopted, invalidated, revoked, waits, waited, phase, left)
}
