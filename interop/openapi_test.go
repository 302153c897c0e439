package interop

// This file checks the package against a description of Moov's two operations. Its
// requests must be valid, and it must handle each reply that the description lists.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/getkin/kin-openapi/openapi3"
	"github.com/getkin/kin-openapi/openapi3filter"
	"github.com/getkin/kin-openapi/routers"
	"github.com/getkin/kin-openapi/routers/gorillamux"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// description is testdata/moov-auth.yaml.
type description struct {
	doc    *openapi3.T
	router routers.Router
}

func newDescription(t *testing.T) *description {
	t.Helper()
	doc, err := openapi3.NewLoader().LoadFromFile("testdata/moov-auth.yaml")
	require.NoError(t, err)
	require.NoError(t, doc.Validate(t.Context()))
	doc.Servers = nil // any host
	router, err := gorillamux.NewRouter(doc)
	require.NoError(t, err)
	return &description{doc, router}
}

// check validates a request, and returns the input for validating its reply.
func (d *description) check(r *http.Request, body []byte) (*openapi3filter.RequestValidationInput, error) {
	r = r.Clone(r.Context())
	r.Body = io.NopCloser(bytes.NewReader(body))
	route, params, err := d.router.FindRoute(r)
	if err != nil {
		return nil, err
	}
	input := &openapi3filter.RequestValidationInput{Request: r, Route: route, PathParams: params, Options: &openapi3filter.Options{
		IncludeResponseStatus: true,
		AuthenticationFunc: func(_ context.Context, a *openapi3filter.AuthenticationInput) error {
			if _, _, ok := a.RequestValidationInput.Request.BasicAuth(); !ok {
				return errors.New("no Basic credentials")
			}
			return nil
		},
	}}
	if err := openapi3filter.ValidateRequest(r.Context(), input); err != nil {
		return nil, err
	}
	form, err := url.ParseQuery(string(body))
	if err != nil {
		return nil, err
	}
	known := route.Operation.RequestBody.Value.Content.Get(r.Header.Get("Content-Type")).Schema.Value.Properties
	for name, values := range form {
		if known[name] == nil || len(values) != 1 {
			return nil, fmt.Errorf("the description has no field %s, or the field occurs more than once", name)
		}
	}
	// The description cannot say that credentials must be in only one place, and that
	// an Origin or a Referer is required.
	_, _, inHeader := r.BasicAuth()
	if inBody := form.Has("client_id") && form.Has("client_secret"); inBody == inHeader {
		return nil, errors.New("the credentials must be either in the header or in the body")
	}
	if r.Header.Get("Origin") == "" && r.Header.Get("Referer") == "" {
		return nil, errors.New("an Origin or a Referer is required")
	}
	return input, nil
}

// guard checks the requests to a server and its replies, and collects the violations.
type guard struct {
	*description
	next http.Handler

	mu         sync.Mutex
	violations []error
	fields     map[string]bool // the fields of all requests, by operation
}

func (g *guard) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, err := io.ReadAll(r.Body)
	input, invalid := g.check(r, body)
	recorder := httptest.NewRecorder()
	r.Body = io.NopCloser(bytes.NewReader(body))
	g.next.ServeHTTP(recorder, r)
	if input != nil {
		reply := &openapi3filter.ResponseValidationInput{
			RequestValidationInput: input, Status: recorder.Code, Header: recorder.Header(), Options: input.Options,
		}
		invalid = openapi3filter.ValidateResponse(r.Context(), reply.SetBodyBytes(recorder.Body.Bytes()))
	}

	g.mu.Lock()
	if err := errors.Join(err, invalid); err != nil {
		g.violations = append(g.violations, fmt.Errorf("%s %s: %w", r.Method, r.URL, err))
	}
	form, _ := url.ParseQuery(string(body))
	for name := range form {
		g.fields[r.URL.Path+" "+name] = true
	}
	g.mu.Unlock()

	maps.Copy(w.Header(), recorder.Header())
	w.WriteHeader(recorder.Code)
	_, _ = w.Write(recorder.Body.Bytes())
}

func TestRequestsAreAsTheDescriptionSays(t *testing.T) {
	t.Parallel()
	tokens := moovtest.NewInMemory(moovtest.WithOrigins("https://example.com"), moovtest.WithScopes(pingScope, "/accounts.read"),
		moovtest.WithCredentials("public-key", "odd%2Fsecret+&="))
	g := &guard{description: newDescription(t), next: tokens, fields: make(map[string]bool)}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	creds := moovauth.Credentials{ClientID: tokens.ClientID, ClientSecret: tokens.ClientSecret}

	for _, style := range []oauth2.AuthStyle{oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams} {
		for _, version := range []string{moovauth.DefaultVersion, "v2026.07.00", "dev"} {
			options := []moovauth.Option{
				moovauth.WithBaseURL(server.URL), moovauth.WithOrigin("https://example.com"),
				moovauth.WithAuthStyle(style), moovauth.WithVersion(version),
			}
			source := func(more ...moovauth.Option) *moovauth.TokenSource {
				s, err := moovauth.NewTokenSource(creds, append(slices.Clip(options), more...)...)
				require.NoError(t, err)
				return s
			}
			// A token with the client credentials, then a refresh, then both are revoked.
			s := source(moovauth.WithScopes(pingScope, "/accounts.read"))
			token, err := s.Token()
			require.NoError(t, err)
			s.Invalidate(token.AccessToken)
			refreshed, err := s.Token()
			require.NoError(t, err)
			require.NotEqual(t, token.AccessToken, refreshed.AccessToken)
			require.NoError(t, s.Revoke(t.Context()))
			// A used refresh token is refused. The client credentials follow, if there
			// are scopes.
			_, err = source(moovauth.WithScopes(pingScope), moovauth.WithToken(token)).Token()
			require.NoError(t, err)
			_, err = source(moovauth.WithToken(&oauth2.Token{RefreshToken: token.RefreshToken})).Token()
			require.Error(t, err)
			// A scope is refused.
			_, err = source(moovauth.WithScopes("/accounts.write")).Token()
			require.Error(t, err)
			// Tokens are revoked, with a hint and without.
			require.NoError(t, moovauth.Revoke(t.Context(), creds, "unknown token+&", options...))
			for _, hint := range []moovauth.TokenTypeHint{moovauth.AccessToken, moovauth.RefreshToken} {
				require.NoError(t, moovauth.Revoke(t.Context(), creds, "unknown", append(slices.Clip(options), moovauth.WithTokenTypeHint(hint))...))
			}
		}
	}

	assert.Empty(t, g.violations)
	for path, item := range g.doc.Paths.Map() {
		for name := range item.Post.RequestBody.Value.Content.Get("application/x-www-form-urlencoded").Schema.Value.Properties {
			assert.True(t, g.fields[path+" "+name], "no request to %s had %s", path, name)
		}
	}
	for _, r := range tokens.Requests() {
		assert.Len(t, r.Header.Values(moovauth.VersionHeader), 1)
	}
}

// If the check accepted everything, the test above would prove nothing.
func TestDescriptionNoticesWrongRequests(t *testing.T) {
	t.Parallel()
	d := newDescription(t)
	const form = "application/x-www-form-urlencoded"
	for _, c := range []struct {
		name, path, body string
		header           map[string]string // these replace valid headers
		want             string            // "": the request is valid
	}{
		{name: "right token request", path: "/oauth2/token", body: "grant_type=client_credentials&scope=/ping.read"},
		{name: "right revoke request", path: "/oauth2/revoke", body: "token=x"},
		{name: "no scope", path: "/oauth2/token", body: "grant_type=client_credentials", want: `"scope" is missing`},
		{name: "scope without slash", path: "/oauth2/token", body: "grant_type=client_credentials&scope=ping.read", want: "scope"},
		{name: "no refresh token", path: "/oauth2/token", body: "grant_type=refresh_token", want: `"refresh_token" is missing`},
		{name: "unknown grant", path: "/oauth2/token", body: "grant_type=password&scope=/ping.read", want: "grant_type"},
		{name: "unknown field", path: "/oauth2/token", body: "grant_type=client_credentials&scope=/ping.read&audience=x", want: "audience"},
		{name: "no token", path: "/oauth2/revoke", body: "token_type_hint=access_token", want: "token"},
		{name: "unknown hint", path: "/oauth2/revoke", body: "token=x&token_type_hint=id_token", want: "token_type_hint"},
		{name: "no credentials", path: "/oauth2/revoke", body: "token=x", header: map[string]string{"Authorization": ""}, want: "credentials"},
		{name: "credentials twice", path: "/oauth2/revoke", body: "token=x&client_id=y&client_secret=z", want: "credentials"},
		{name: "no origin", path: "/oauth2/token", body: "grant_type=client_credentials&scope=/ping.read", header: map[string]string{"Origin": ""}, want: "Origin"},
		{name: "origin with a path", path: "/oauth2/token", body: "grant_type=client_credentials&scope=/ping.read", header: map[string]string{"Origin": "https://example.com/"}, want: "Origin"},
		{name: "wrong version", path: "/oauth2/token", body: "grant_type=client_credentials&scope=/ping.read", header: map[string]string{moovauth.VersionHeader: "2024.01.00"}, want: moovauth.VersionHeader},
		{name: "wrong content type", path: "/oauth2/token", body: "grant_type=client_credentials&scope=/ping.read", header: map[string]string{"Content-Type": "text/plain"}, want: "Content-Type"},
		{name: "wrong path", path: "/oauth/token", body: "grant_type=client_credentials&scope=/ping.read", want: "no matching"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := httptest.NewRequest(http.MethodPost, c.path, nil)
			r.Header.Set("Content-Type", form)
			r.Header.Set("Origin", "https://example.com")
			r.Header.Set(moovauth.VersionHeader, moovauth.DefaultVersion)
			r.SetBasicAuth("id", "secret")
			for name, value := range c.header {
				if r.Header.Set(name, value); value == "" {
					r.Header.Del(name)
				}
			}
			_, err := d.check(r, []byte(c.body))
			if c.want == "" {
				require.NoError(t, err)
			} else {
				require.ErrorContains(t, err, c.want)
			}
		})
	}
}

// replies returns all combinations of a schema's examples and tolerated values.
func replies(schema *openapi3.Schema) []map[string]any {
	all := []map[string]any{{}}
	for _, name := range slices.Sorted(maps.Keys(schema.Properties)) {
		property := schema.Properties[name].Value
		values := []any{property.Example}
		if tolerated, ok := property.Extensions["x-tolerated"].([]any); ok {
			values = append(values, tolerated...)
		}
		var next []map[string]any
		for _, reply := range all {
			for _, value := range values {
				with := maps.Clone(reply)
				if value != nil {
					with[name] = value
				}
				next = append(next, with)
			}
		}
		all = next
	}
	return all
}

func TestEveryDescribedTokenIsUsed(t *testing.T) {
	t.Parallel()
	d := newDescription(t)
	schema := d.doc.Components.Schemas["AuthToken"].Value
	all := replies(schema)
	require.Len(t, all, 2*2*4*2)
	require.NoError(t, schema.VisitJSON(all[0]), "the first reply is the documented one")
	require.Equal(t, 1736964352.0, all[0]["expires_in"])

	tokens := moovtest.NewInMemory()
	creds := moovauth.Credentials{ClientID: tokens.ClientID, ClientSecret: tokens.ClientSecret}
	for _, reply := range all {
		for _, atTheTime := range []bool{false, true} {
			body, err := json.Marshal(reply)
			require.NoError(t, err)
			header := make(http.Header)
			// The timestamp is in January 2025. So it is in the past, unless the
			// server's clock says that it is 15 minutes ahead.
			want := 5 * time.Minute
			switch v := reply["expires_in"].(type) {
			case string:
				want = 15 * time.Minute
			case float64:
				if v == 900 {
					want = 15 * time.Minute
				} else if atTheTime {
					header.Set("Date", time.Unix(int64(v), 0).Add(-15*time.Minute).UTC().Format(http.TimeFormat))
					want = 15 * time.Minute
				}
			}
			tokens.Enqueue(moovtest.Answer{Header: header, Body: string(body)})
			source, err := moovauth.NewTokenSource(creds, moovauth.WithScopes(pingScope),
				moovauth.WithBaseURL(tokens.URL), moovauth.WithHTTPClient(tokens.Client()))
			require.NoError(t, err)
			token, err := source.Token()
			require.NoError(t, err, "%s", body)
			assert.Equal(t, "Bearer", token.TokenType, "%s", body)
			assert.Equal(t, reply["access_token"], token.AccessToken, "%s", body)
			assert.Equal(t, reply["refresh_token"], asAny(token.RefreshToken), "%s", body)
			assert.Equal(t, reply["scope"], token.Extra("scope"), "%s", body)
			assert.WithinDuration(t, time.Now().Add(want), token.Expiry, 5*time.Second, "%s", body)
		}
	}
}

// asAny returns s, or nil if s is empty.
func asAny(s string) any {
	if s == "" {
		return nil
	}
	return s
}

func TestEveryDescribedRefusalIsReported(t *testing.T) {
	t.Parallel()
	d := newDescription(t)
	for path, operation := range map[string]string{"/oauth2/token": "token", "/oauth2/revoke": "revoke"} {
		for code, response := range d.doc.Paths.Find(path).Post.Responses.Map() {
			status, err := strconv.Atoi(code)
			require.NoError(t, err)
			for name, body := range bodies(t, response.Value) {
				if status/100 == 2 {
					continue
				}
				for _, header := range headers(response.Value) {
					t.Run(fmt.Sprintf("%s %d %s", operation, status, name), func(t *testing.T) {
						t.Parallel()
						reportsRefusal(t, operation, status, header, body)
					})
				}
			}
		}
	}
}

// bodies returns the examples of a response by name, or one empty body if there are
// none.
func bodies(t *testing.T, response *openapi3.Response) map[string]string {
	t.Helper()
	media := response.Content.Get("application/json")
	if media == nil {
		return map[string]string{"": ""}
	}
	all := make(map[string]string)
	for name, example := range media.Examples {
		require.NoError(t, media.Schema.Value.VisitJSON(example.Value.Value), name)
		text, err := json.Marshal(example.Value.Value)
		require.NoError(t, err)
		all[name] = string(text)
	}
	return all
}

// headers returns the examples of a response's headers. If two headers say when to
// retry, it returns one set of headers with each of them.
func headers(response *openapi3.Response) []http.Header {
	all := make(http.Header)
	for name, h := range response.Headers {
		all.Set(name, fmt.Sprint(h.Value.Schema.Value.Example))
	}
	if all.Get("Retry-After") == "" {
		return []http.Header{all}
	}
	now, older := all.Clone(), all.Clone()
	now.Del("X-Retry-In")
	older.Del("Retry-After")
	return []http.Header{now, older}
}

func reportsRefusal(t *testing.T, operation string, status int, header http.Header, body string) {
	tokens := moovtest.NewInMemory()
	for range 3 {
		tokens.Enqueue(moovtest.Answer{Status: status, Header: header, Body: body})
	}
	creds := moovauth.Credentials{ClientID: tokens.ClientID, ClientSecret: tokens.ClientSecret}
	options := []moovauth.Option{
		moovauth.WithScopes(pingScope), moovauth.WithBaseURL(tokens.URL), moovauth.WithHTTPClient(tokens.Client()),
	}
	var err error
	if operation == "token" {
		source, wrong := moovauth.NewTokenSource(creds, options...)
		require.NoError(t, wrong)
		_, err = source.Token()
	} else {
		err = moovauth.Revoke(t.Context(), creds, "some-token", options...)
	}

	var refused *moovauth.Error
	require.ErrorAs(t, err, &refused)
	assert.Equal(t, operation, refused.Op)
	assert.Equal(t, status, refused.StatusCode)
	assert.Equal(t, header.Get("X-Request-Id"), refused.RequestID)
	members := make(map[string]string)
	if body != "" {
		require.NoError(t, json.Unmarshal([]byte(body), &members))
	}
	switch status {
	case http.StatusBadRequest:
		assert.Equal(t, members["error"], refused.Code)
	case http.StatusUnprocessableEntity:
		assert.Equal(t, members, refused.Fields)
	case http.StatusTooManyRequests:
		assert.Equal(t, time.Minute, refused.RetryAfter)
	}
	for _, member := range members {
		assert.ErrorContains(t, err, member)
	}
	wantAttempts := 1
	if status >= 500 {
		wantAttempts = 3
	}
	assert.Len(t, tokens.Requests(), wantAttempts)
	assert.Equal(t, status == http.StatusTooManyRequests || status >= 500, refused.Temporary())
}
