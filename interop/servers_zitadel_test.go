package interop

// This file builds an authorization server on github.com/zitadel/oidc. It issues no
// refresh tokens for client credentials, and returns an ID token with a refresh. It
// answers a revocation with 200 and a body.

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/go-jose/go-jose/v4"
	"github.com/stretchr/testify/require"
	"github.com/zitadel/oidc/v3/pkg/oidc"
	"github.com/zitadel/oidc/v3/pkg/op"
)

func TestZitadel(t *testing.T) {
	t.Parallel()
	testServer(t, newZitadel)
}

func newZitadel(t *testing.T, life time.Duration) *foreign {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	store := &zitadelStorage{life: life, key: zitadelKey{key}, access: make(map[string]zitadelToken), refresh: make(map[string]zitadelToken)}
	server, url := newListener(t)
	provider, err := op.NewProvider(&op.Config{AuthMethodPost: true, GrantTypeRefreshToken: true}, store, op.StaticIssuer(url),
		op.WithAllowInsecure(),
		op.WithCustomTokenEndpoint(op.NewEndpoint("/oauth2/token")),
		op.WithCustomRevocationEndpoint(op.NewEndpoint("/oauth2/revoke")))
	require.NoError(t, err)

	f := &foreign{URL: url, life: life, decodesBasic: true, refusedRefresh: http.StatusBadRequest}
	f.mintRefresh = func(t *testing.T) string {
		_, refresh, _, err := store.CreateAccessAndRefreshTokens(t.Context(), &zitadelRequest{plainClient.ClientID, []string{pingScope}}, "")
		require.NoError(t, err)
		return refresh
	}
	f.serve(server, provider.ServeHTTP, provider.ServeHTTP, func(token string) bool {
		plain, err := provider.Crypto().Decrypt(token)
		id, _, _ := strings.Cut(plain, ":")
		return err == nil && store.alive(id)
	})
	return f
}

// zitadelStorage stores tokens by ID.
type zitadelStorage struct {
	op.Storage // nil: its other methods are not called
	life       time.Duration
	key        zitadelKey

	mu      sync.Mutex // guards the fields below
	access  map[string]zitadelToken
	refresh map[string]zitadelToken
}

type zitadelToken struct {
	request *zitadelRequest
	expiry  time.Time // of an access token
	access  string    // ID of the access token that came with a refresh token
}

func (s *zitadelStorage) alive(id string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, ok := s.access[id]
	return ok && time.Now().Before(token.expiry) && slices.Contains(token.request.scopes, pingScope)
}

func (s *zitadelStorage) ClientCredentials(ctx context.Context, id, secret string) (op.Client, error) {
	if err := s.AuthorizeClientIDSecret(ctx, id, secret); err != nil {
		return nil, err
	}
	return s.GetClientByClientID(ctx, id)
}

func (s *zitadelStorage) AuthorizeClientIDSecret(_ context.Context, id, secret string) error {
	for _, creds := range clients {
		if creds.ClientID == id && creds.ClientSecret == secret {
			return nil
		}
	}
	return errors.New("unknown client or wrong secret")
}

func (s *zitadelStorage) GetClientByClientID(_ context.Context, id string) (op.Client, error) {
	return &zitadelClient{id: id}, nil
}

func (s *zitadelStorage) ClientCredentialsTokenRequest(_ context.Context, id string, scopes []string) (op.TokenRequest, error) {
	if !slices.Equal(scopes, []string{pingScope}) {
		return nil, oidc.ErrInvalidScope()
	}
	return &zitadelRequest{id, scopes}, nil
}

func (s *zitadelStorage) CreateAccessToken(_ context.Context, request op.TokenRequest) (string, time.Time, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	id, expiry := rand.Text(), time.Now().Add(s.life)
	s.access[id] = zitadelToken{request: &zitadelRequest{request.GetSubject(), request.GetScopes()}, expiry: expiry}
	return id, expiry, nil
}

func (s *zitadelStorage) CreateAccessAndRefreshTokens(ctx context.Context, request op.TokenRequest, used string) (string, string, time.Time, error) {
	access, expiry, err := s.CreateAccessToken(ctx, request)
	if err != nil {
		return "", "", time.Time{}, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.access, s.refresh[used].access)
	delete(s.refresh, used)
	refresh := rand.Text()
	s.refresh[refresh] = zitadelToken{request: s.access[access].request, access: access}
	return access, refresh, expiry, nil
}

func (s *zitadelStorage) TokenRequestByRefreshToken(_ context.Context, refresh string) (op.RefreshTokenRequest, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, ok := s.refresh[refresh]
	if !ok {
		return nil, op.ErrInvalidRefreshToken
	}
	return &zitadelRefreshRequest{zitadelRequest: *token.request}, nil
}

func (s *zitadelStorage) GetRefreshTokenInfo(_ context.Context, _, refresh string) (userID, tokenID string, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	token, ok := s.refresh[refresh]
	if !ok {
		return "", "", op.ErrInvalidRefreshToken
	}
	return token.request.client, refresh, nil
}

func (s *zitadelStorage) RevokeToken(_ context.Context, id, _, client string) *oidc.Error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, tokens := range []map[string]zitadelToken{s.access, s.refresh} {
		if token, ok := tokens[id]; ok && token.request.client == client {
			delete(tokens, id)
		}
	}
	return nil
}

func (s *zitadelStorage) SigningKey(context.Context) (op.SigningKey, error) { return s.key, nil }

func (s *zitadelStorage) SetUserinfoFromScopes(context.Context, *oidc.UserInfo, string, string, []string) error {
	return nil
}

type zitadelKey struct{ key *ecdsa.PrivateKey }

func (k zitadelKey) SignatureAlgorithm() jose.SignatureAlgorithm { return jose.ES256 }
func (k zitadelKey) Key() any                                    { return k.key }
func (k zitadelKey) ID() string                                  { return "key" }

// zitadelRequest is a client-credentials grant.
type zitadelRequest struct {
	client string
	scopes []string
}

func (r *zitadelRequest) GetSubject() string    { return r.client }
func (r *zitadelRequest) GetAudience() []string { return []string{r.client} }
func (r *zitadelRequest) GetScopes() []string   { return r.scopes }

// zitadelRefreshRequest is a refresh grant.
type zitadelRefreshRequest struct{ zitadelRequest }

func (r *zitadelRefreshRequest) GetClientID() string              { return r.client }
func (r *zitadelRefreshRequest) GetAMR() []string                 { return nil }
func (r *zitadelRefreshRequest) GetAuthTime() time.Time           { return time.Time{} }
func (r *zitadelRefreshRequest) SetCurrentScopes(scopes []string) { r.scopes = scopes }

type zitadelClient struct {
	op.Client // nil: its other methods are not called
	id        string
}

func (c *zitadelClient) GetID() string                        { return c.id }
func (c *zitadelClient) AuthMethod() oidc.AuthMethod          { return oidc.AuthMethodBasic }
func (c *zitadelClient) AccessTokenType() op.AccessTokenType  { return op.AccessTokenTypeBearer }
func (c *zitadelClient) IDTokenLifetime() time.Duration       { return time.Hour }
func (c *zitadelClient) ClockSkew() time.Duration             { return 0 }
func (c *zitadelClient) IDTokenUserinfoClaimsAssertion() bool { return false }
func (c *zitadelClient) GrantTypes() []oidc.GrantType {
	return []oidc.GrantType{oidc.GrantTypeClientCredentials, oidc.GrantTypeRefreshToken}
}
func (c *zitadelClient) RestrictAdditionalIdTokenScopes() func([]string) []string {
	return func(scopes []string) []string { return scopes }
}
