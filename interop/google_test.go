package interop

// This file uses a source with Google's clients: with the service of one of Google's
// APIs, and with the auth library that these services use.

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"

	"cloud.google.com/go/auth"
	"cloud.google.com/go/auth/httptransport"
	"cloud.google.com/go/auth/oauth2adapt"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	googleoauth2 "google.golang.org/api/oauth2/v2"
	"google.golang.org/api/option"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// Google's library has its own cache. In the last 225 s of a token's life, the cache
// asks the source in the background after each call.
func TestGoogleAPI(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	service, err := googleoauth2.NewService(t.Context(), option.WithTokenSource(source), option.WithEndpoint(a.URL))
	require.NoError(t, err)
	l := &life{api: a, source: source, after: caches, call: func() error {
		_, err := service.Userinfo.Get().Context(context.Background()).Do()
		return err
	}}
	l.run(t)
}

func TestTokenProviderFromSource(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	client := new(http.Client)
	require.NoError(t, httptransport.AddAuthorizationMiddleware(client, auth.NewCredentials(&auth.CredentialsOptions{
		TokenProvider: oauth2adapt.TokenProviderFromTokenSource(source),
	})))
	l := &life{api: a, source: source, after: asks, call: get(client, a.URL+"/ping")}
	l.run(t)
}

// The source is behind both adapters, so our Transport gets a source without
// TokenContext and Invalidate.
func TestSourceFromTokenProvider(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	provider := oauth2adapt.TokenProviderFromTokenSource(source)
	client := &http.Client{Transport: &moovauth.Transport{
		Source: oauth2adapt.TokenSourceFromTokenProvider(provider),
		Hosts:  []string{a.Listener.Addr().String()},
	}}
	l := &life{api: a, source: source, after: asks, call: get(client, a.URL+"/ping")}
	l.run(t)
}

func TestRefusalThroughTokenProvider(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithScopes("/other.read"))
	provider := oauth2adapt.TokenProviderFromTokenSource(a.newSource(t))

	_, err := provider.Token(t.Context())
	var theirs *auth.Error
	require.ErrorAs(t, err, &theirs)
	assert.Equal(t, http.StatusUnprocessableEntity, theirs.Response.StatusCode)
	var retrieve *oauth2.RetrieveError
	require.ErrorAs(t, err, &retrieve)
	assert.Contains(t, string(retrieve.Body), pingScope)
	noSecrets(t, err.Error(), a.tokens.ClientSecret)

	_, err = oauth2adapt.TokenSourceFromTokenProvider(provider).Token()
	require.ErrorAs(t, err, &retrieve)
	noSecrets(t, err.Error(), a.tokens.ClientSecret)
}
