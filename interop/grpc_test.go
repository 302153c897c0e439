package interop

// This file uses a source with gRPC, which sends its token with each call.

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/oauth"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func TestGRPC(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).StartTLS, nil, moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	client := newHealth(t, a, source)
	l := &life{api: a, source: source, after: asks, call: func() error {
		_, err := client.Check(context.Background(), &grpc_health_v1.HealthCheckRequest{})
		return err
	}}
	l.run(t)
	for _, c := range a.seen() {
		assert.Equal(t, 2, c.proto)
	}
}

func TestGRPCCallSaysWhyThereIsNoToken(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).StartTLS, nil, moovtest.WithScopes("/other.read"))
	client := newHealth(t, a, a.newSource(t))
	_, err := client.Check(t.Context(), &grpc_health_v1.HealthCheckRequest{})
	require.Equal(t, codes.Unauthenticated, status.Code(err))
	assert.ErrorContains(t, err, "answered 422")
	assert.ErrorContains(t, err, pingScope)
	noSecrets(t, err.Error(), a.tokens.ClientSecret)
	assert.Empty(t, a.seen())
}

// newHealth starts a gRPC server with a's certificate, and returns a client of its
// health service. The server accepts the same tokens as a.
func newHealth(t *testing.T, a *api, source *moovauth.TokenSource) grpc_health_v1.HealthClient {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	server := grpc.NewServer(
		grpc.Creds(credentials.NewTLS(&tls.Config{Certificates: a.TLS.Certificates, NextProtos: []string{"h2"}})),
		grpc.UnaryInterceptor(func(ctx context.Context, req any, _ *grpc.UnaryServerInfo, handler grpc.UnaryHandler) (any, error) {
			md, _ := metadata.FromIncomingContext(ctx)
			if !a.admit(http.Header{"Authorization": md.Get("authorization")}, 2) {
				return nil, status.Error(codes.Unauthenticated, "invalid_token")
			}
			return handler(ctx, req)
		}),
	)
	grpc_health_v1.RegisterHealthServer(server, health.NewServer())
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)

	roots := x509.NewCertPool()
	roots.AddCert(a.Certificate())
	conn, err := grpc.NewClient(listener.Addr().String(),
		grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{RootCAs: roots})),
		grpc.WithPerRPCCredentials(oauth.TokenSource{TokenSource: source}))
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, conn.Close()) })
	return grpc_health_v1.NewHealthClient(conn)
}
