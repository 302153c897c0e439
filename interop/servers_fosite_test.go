package interop

// This file builds an authorization server on github.com/ory/fosite. It issues no
// refresh tokens for client credentials. A refresh revokes the old access token at
// once.

import (
	"net/http"
	"testing"
	"time"

	"github.com/ory/fosite"
	"github.com/ory/fosite/compose"
	"github.com/ory/fosite/storage"
	"github.com/stretchr/testify/require"
)

func TestFosite(t *testing.T) {
	t.Parallel()
	testServer(t, newFosite)
}

func newFosite(t *testing.T, life time.Duration) *foreign {
	t.Helper()
	config := &fosite.Config{
		AccessTokenLifespan:           life,
		RefreshTokenScopes:            []string{}, // a refresh requires no scope
		DisableRefreshTokenValidation: true,       // the API does not check refresh tokens
		ScopeStrategy:                 fosite.ExactScopeStrategy,
		GlobalSecret:                  []byte("thirty-two bytes that are secret"),
		HashCost:                      4,
	}
	store := storage.NewMemoryStore()
	for _, creds := range clients {
		secret, err := config.GetSecretsHasher(t.Context()).Hash(t.Context(), []byte(creds.ClientSecret))
		require.NoError(t, err)
		store.Clients[creds.ClientID] = &fosite.DefaultClient{
			ID: creds.ClientID, Secret: secret, Scopes: []string{pingScope},
			GrantTypes: []string{"client_credentials", "refresh_token"},
		}
	}
	strategy := compose.NewOAuth2HMACStrategy(config)
	provider := compose.Compose(config, store, &compose.CommonStrategy{CoreStrategy: strategy},
		compose.OAuth2ClientCredentialsGrantFactory,
		compose.OAuth2RefreshTokenGrantFactory,
		compose.OAuth2TokenRevocationFactory,
		compose.OAuth2TokenIntrospectionFactory,
	)

	server, url := newListener(t)
	f := &foreign{URL: url, life: life, decodesBasic: true, refusedRefresh: http.StatusBadRequest}
	f.mintRefresh = func(t *testing.T) string {
		request := fosite.NewRequest()
		request.Client = store.Clients[plainClient.ClientID]
		request.Session = new(fosite.DefaultSession)
		request.GrantScope(pingScope)
		token, signature, err := strategy.GenerateRefreshToken(t.Context(), request)
		require.NoError(t, err)
		require.NoError(t, store.CreateRefreshTokenSession(t.Context(), signature, "", request))
		return token
	}
	f.serve(server,
		func(w http.ResponseWriter, r *http.Request) {
			request, err := provider.NewAccessRequest(r.Context(), r, new(fosite.DefaultSession))
			if err != nil {
				provider.WriteAccessError(r.Context(), w, request, err)
				return
			}
			for _, scope := range request.GetRequestedScopes() {
				request.GrantScope(scope)
			}
			response, err := provider.NewAccessResponse(r.Context(), request)
			if err != nil {
				provider.WriteAccessError(r.Context(), w, request, err)
				return
			}
			provider.WriteAccessResponse(r.Context(), w, request, response)
		},
		func(w http.ResponseWriter, r *http.Request) {
			provider.WriteRevocationResponse(r.Context(), w, provider.NewRevocationRequest(r.Context(), r))
		},
		func(token string) bool {
			_, _, err := provider.IntrospectToken(t.Context(), token, fosite.AccessToken, new(fosite.DefaultSession), pingScope)
			return err == nil
		})
	return f
}
