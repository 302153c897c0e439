package interop

// This file traces API calls and token requests with OpenTelemetry.

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"
	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func TestOpenTelemetry(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(shortLife))
	spans := tracetest.NewInMemoryExporter()
	provider := trace.NewTracerProvider(trace.WithSyncer(spans))
	traced := &http.Client{Transport: otelhttp.NewTransport(http.DefaultTransport,
		otelhttp.WithTracerProvider(provider), otelhttp.WithPropagators(propagation.TraceContext{}))}
	source := a.newSource(t, moovauth.WithHTTPClient(traced))
	client := source.Client()

	ctx, caller := provider.Tracer("caller").Start(t.Context(), "caller")
	l := &life{api: a, source: source, after: replays, call: func() error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, a.URL+"/ping", nil)
		if err != nil {
			return err
		}
		resp, err := client.Do(req)
		return ok(resp, err)
	}}
	l.run(t)
	require.NoError(t, source.Revoke(ctx))
	a.tokens.Enqueue(moovtest.Answer{Status: http.StatusUnauthorized, Body: `{"error":"invalid_client"}`})
	require.Error(t, l.call())
	caller.End()

	// Each request has its own span with its status. The span of an API call is in the
	// caller's trace.
	count := make(map[string]int)
	var statuses []int64
	for _, s := range spans.GetSpans() {
		url := attributeOf(s, "url.full").AsString()
		if s.Name == "caller" {
			continue
		}
		path := strings.TrimPrefix(url, a.URL)
		count[path]++
		switch path {
		case "/oauth2/token": // callers share it, so it starts its own trace
			assert.NotEqual(t, caller.SpanContext().TraceID(), s.SpanContext.TraceID())
			assert.False(t, s.Parent.IsValid())
		case "/ping":
			assert.Equal(t, caller.SpanContext().TraceID(), s.SpanContext.TraceID(), path)
			assert.Equal(t, caller.SpanContext().SpanID(), s.Parent.SpanID(), path)
		}
		if path == "/oauth2/token" {
			statuses = append(statuses, attributeOf(s, "http.response.status_code").AsInt64())
		}
	}
	assert.Equal(t, map[string]int{
		"/ping": len(a.seen()), "/oauth2/token": len(a.tokens.TokenRequests()), "/oauth2/revoke": len(a.tokens.RevokeRequests()),
	}, count)
	assert.Contains(t, statuses, int64(http.StatusOK))
	assert.Contains(t, statuses, int64(http.StatusUnauthorized))
	for _, r := range a.tokens.TokenRequests() {
		assert.NotEmpty(t, r.Header.Get("Traceparent"))
		assert.NotContains(t, r.Header.Get("Traceparent"), caller.SpanContext().TraceID().String())
	}

	noSecrets(t, dump(t, spans), a.secrets()...)
}

func TestOpenTelemetrySpanOfAFailedTokenRequest(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil)
	spans := tracetest.NewInMemoryExporter()
	failing := roundTripper(func(r *http.Request) (*http.Response, error) {
		_ = r.Body.Close()
		return nil, errors.New("no route to host")
	})
	traced := &http.Client{Transport: otelhttp.NewTransport(failing,
		otelhttp.WithTracerProvider(trace.NewTracerProvider(trace.WithSyncer(spans))))}
	source := a.newSource(t, moovauth.WithHTTPClient(traced))
	require.ErrorContains(t, get(source.Client(), a.URL+"/ping")(), "no route to host")
	require.Len(t, spans.GetSpans(), 3, "one span for each attempt")
	for _, s := range spans.GetSpans() {
		assert.Equal(t, a.URL+"/oauth2/token", attributeOf(s, "url.full").AsString())
		assert.Equal(t, codes.Error, s.Status.Code)
	}
	noSecrets(t, dump(t, spans), a.secrets()...)
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

func attributeOf(s tracetest.SpanStub, key attribute.Key) attribute.Value {
	for _, kv := range s.Attributes {
		if kv.Key == key {
			return kv.Value
		}
	}
	return attribute.Value{}
}

// dump returns everything that the spans contain.
func dump(t *testing.T, spans *tracetest.InMemoryExporter) string {
	t.Helper()
	all := spans.GetSpans()
	require.NotEmpty(t, all)
	text, err := json.Marshal(all)
	require.NoError(t, err)
	return fmt.Sprintf("%s\n%+v", text, all)
}

// secrets returns the client secret and all tokens that clients have sent to a.
func (a *api) secrets() []string {
	id, secret := a.tokens.ClientID, a.tokens.ClientSecret
	known := []string{secret, base64.StdEncoding.EncodeToString([]byte(id + ":" + secret))}
	for _, c := range a.seen() {
		known = append(known, c.token())
	}
	for _, r := range a.tokens.TokenRequests() {
		if r.GrantType == "refresh_token" {
			known = append(known, r.Form.Get("refresh_token"))
		}
	}
	for _, r := range a.tokens.RevokeRequests() {
		known = append(known, r.Form.Get("token"))
	}
	return known
}
