package interop

// This file builds an authorization server on github.com/go-oauth2/oauth2. It
// issues refresh tokens for client credentials, and answers 401 to a refresh
// token that it does not know. The package has no revocation endpoint. The one here
// calls its manager's two methods, as RFC 7009 asks.

import (
	"net/http"
	"testing"
	"time"

	"github.com/go-oauth2/oauth2/v4"
	"github.com/go-oauth2/oauth2/v4/manage"
	"github.com/go-oauth2/oauth2/v4/models"
	"github.com/go-oauth2/oauth2/v4/server"
	"github.com/go-oauth2/oauth2/v4/store"
	"github.com/stretchr/testify/require"
)

func TestGoOAuth2(t *testing.T) {
	t.Parallel()
	testServer(t, newGoOAuth2)
}

func newGoOAuth2(t *testing.T, life time.Duration) *foreign {
	t.Helper()
	manager := manage.NewDefaultManager()
	manager.MustTokenStorage(store.NewMemoryTokenStore())
	manager.SetClientTokenCfg(&manage.Config{AccessTokenExp: life, IsGenerateRefresh: true})
	known := store.NewClientStore()
	for _, creds := range clients {
		require.NoError(t, known.Set(creds.ClientID, &models.Client{ID: creds.ClientID, Secret: creds.ClientSecret}))
	}
	manager.MapClientStorage(known)

	s := server.NewServer(&server.Config{
		TokenType:         "Bearer",
		AllowedGrantTypes: []oauth2.GrantType{oauth2.ClientCredentials, oauth2.Refreshing},
	}, manager)
	s.ClientScopeHandler = func(r *oauth2.TokenGenerateRequest) (bool, error) { return r.Scope == pingScope, nil }
	s.ClientInfoHandler = func(r *http.Request) (string, string, error) {
		if id, secret, err := server.ClientBasicHandler(r); err == nil {
			return id, secret, nil
		}
		return server.ClientFormHandler(r)
	}

	listener, url := newListener(t)
	f := &foreign{URL: url, life: life, issuesRefresh: true, refusedRefresh: http.StatusUnauthorized}
	f.mintRefresh = func(t *testing.T) string {
		info, err := manager.GenerateAccessToken(t.Context(), oauth2.ClientCredentials, &oauth2.TokenGenerateRequest{
			ClientID: plainClient.ClientID, ClientSecret: plainClient.ClientSecret, Scope: pingScope,
		})
		require.NoError(t, err)
		return info.GetRefresh()
	}
	f.serve(listener,
		func(w http.ResponseWriter, r *http.Request) { _ = s.HandleTokenRequest(w, r) },
		func(w http.ResponseWriter, r *http.Request) {
			token := r.FormValue("token")
			id, secret, _ := s.ClientInfoHandler(r)
			client, err := manager.GetClient(r.Context(), id)
			if err != nil || client.GetSecret() != secret {
				w.WriteHeader(http.StatusUnauthorized)
				writeJSON(w, `{"error":"invalid_client"}`)
				return
			}
			if manager.RemoveAccessToken(r.Context(), token) != nil || manager.RemoveRefreshToken(r.Context(), token) != nil {
				w.WriteHeader(http.StatusInternalServerError)
			}
		},
		func(token string) bool {
			info, err := manager.LoadAccessToken(t.Context(), token)
			return err == nil && info.GetScope() == pingScope
		})
	return f
}
