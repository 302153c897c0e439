package moovauth_test

import (
	"context"
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// What the recipes of docs/operations.md do on a bad day.

func source(t *testing.T, server *moovtest.Server) *moovauth.TokenSource {
	t.Helper()
	s, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL))
	require.NoError(t, err)
	return s
}

func TestShutdownWithACallerThatDoesNotStopLeavesNoToken(t *testing.T) {
	if testing.Short() {
		t.Skip("takes three seconds")
	}
	t.Parallel()
	server := moovtest.NewServer()
	defer server.Close()
	s := source(t, server)
	called, ended := make(chan struct{}, 1), make(chan struct{})
	service := &http.Server{Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		defer close(ended)
		for { // as a handler that reads page after page
			req, err := http.NewRequestWithContext(r.Context(), http.MethodGet, server.URL+"/ping", nil)
			if err != nil {
				return
			}
			resp, err := s.Client().Do(req)
			if err != nil {
				return
			}
			_ = resp.Body.Close()
			select {
			case called <- struct{}{}:
			default:
			}
		}
	})}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = service.Serve(listener) }()
	go func() {
		if resp, err := http.Get("http://" + listener.Addr().String()); err == nil {
			_ = resp.Body.Close()
		}
	}()
	<-called
	assert.ErrorIs(t, shutdown(service, s), context.DeadlineExceeded)
	for range 10 {
		select { // its calls would bring another token
		case <-called:
		case <-ended:
		}
	}
	assert.Empty(t, server.AccessTokens())
	assert.Empty(t, server.RefreshTokens())
}

func TestRotationToAWrongKeyChangesNothing(t *testing.T) {
	t.Parallel()
	server := moovtest.NewServer()
	defer server.Close()
	r := &rotating{opts: []moovauth.Option{moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL)}}
	first := source(t, server)
	r.current.Store(first)
	_, err := r.rotate(t.Context(), moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "mistyped"})
	assert.ErrorContains(t, err, "invalid_client")
	assert.Same(t, first, r.current.Load())
}

func TestRotationFromAKeyThatIsGone(t *testing.T) {
	t.Parallel()
	server := moovtest.NewServer()
	defer server.Close()
	r := &rotating{opts: []moovauth.Option{moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL)}}
	r.current.Store(source(t, server))
	server.SetCredentials("new-public-key", "new-secret-key")
	server.DropOldCredentials()
	_, err := r.rotate(t.Context(), moovauth.Credentials{ClientID: "new-public-key", ClientSecret: "new-secret-key"})
	require.NoError(t, err)
	tok, err := r.Token()
	require.NoError(t, err)
	assert.True(t, server.Alive(tok.AccessToken))
}
