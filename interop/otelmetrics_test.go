package interop

// This file tests the OpenTelemetry metrics of a source.

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/otel/attribute"
	sdkmetric "go.opentelemetry.io/otel/sdk/metric"
	"go.opentelemetry.io/otel/sdk/metric/metricdata"
)

func TestOpenTelemetryMetrics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		source, began := eventful(t)
		reader := sdkmetric.NewManualReader()
		provider := sdkmetric.NewMeterProvider(sdkmetric.WithReader(reader))
		registration, err := observe(provider.Meter("moovauth"), "ping", source)
		require.NoError(t, err)
		now := time.Since(began)
		assert.Equal(t, map[string]float64{
			"moovauth.grants{client_credentials,success,ping}": 2,
			"moovauth.grants{client_credentials,failure,ping}": 1,
			"moovauth.grants{refresh_token,success,ping}":      1,
			"moovauth.grants{refresh_token,failure,ping}":      0,
			"moovauth.tokens.adopted{ping}":                    0,
			"moovauth.tokens.invalidated{ping}":                1,
			"moovauth.tokens.revoked{ping}":                    3,
			"moovauth.waits{ping}":                             4,
			"moovauth.wait.time{ping}":                         2,
			"moovauth.token.phase{none,ping}":                  0,
			"moovauth.token.phase{fresh,ping}":                 0,
			"moovauth.token.phase{stale,ping}":                 1,
			"moovauth.token.time_left{ping}":                   (75*time.Minute - now).Seconds(),
		}, scraped(t, reader))
		require.NoError(t, registration.Unregister())
	})
}

// scraped returns the values that reader collects, by name and attributes.
func scraped(t *testing.T, reader sdkmetric.Reader) map[string]float64 {
	t.Helper()
	var data metricdata.ResourceMetrics
	require.NoError(t, reader.Collect(t.Context(), &data))
	values := make(map[string]float64)
	put := func(name string, attrs attribute.Set, value float64) {
		key := "" // in a fixed order
		for _, k := range []attribute.Key{"grant_type", "outcome", "phase", "source"} {
			if v, ok := attrs.Value(k); ok {
				key += "," + v.AsString()
			}
		}
		values[name+"{"+key[1:]+"}"] = value
	}
	for _, scope := range data.ScopeMetrics {
		for _, m := range scope.Metrics {
			switch points := m.Data.(type) {
			case metricdata.Sum[int64]:
				assert.True(t, points.IsMonotonic, m.Name)
				for _, p := range points.DataPoints {
					put(m.Name, p.Attributes, float64(p.Value))
				}
			case metricdata.Sum[float64]:
				for _, p := range points.DataPoints {
					put(m.Name, p.Attributes, p.Value)
				}
			case metricdata.Gauge[int64]:
				for _, p := range points.DataPoints {
					put(m.Name, p.Attributes, float64(p.Value))
				}
			case metricdata.Gauge[float64]:
				for _, p := range points.DataPoints {
					put(m.Name, p.Attributes, p.Value)
				}
			default:
				t.Errorf("%s is a %T", m.Name, m.Data)
			}
		}
	}
	return values
}
