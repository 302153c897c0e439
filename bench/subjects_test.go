package bench

// This file checks the code that is measured: each peer obtains a token, and the
// requests that it sends have the token and the version header.

import (
	"context"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/bench/peers"
)

func onEachPeer(t *testing.T, test func(*testing.T, peers.Peer)) {
	for _, peer := range peers.All() {
		t.Run(peer.Name, func(t *testing.T) { test(t, peer) })
	}
}

func start(t *testing.T) *peers.Endpoint {
	e := peers.NewEndpoint(time.Hour, 0)
	t.Cleanup(e.Server.Close)
	return e
}

func TestTokenIsObtainedOnce(t *testing.T) {
	onEachPeer(t, func(t *testing.T, peer peers.Peer) {
		endpoint := start(t)
		source, err := peer.New(endpoint.Config())
		require.NoError(t, err)
		if source.Token == nil {
			t.Skip("this peer has no call that only returns the token")
		}
		first, err := source.Token(context.Background())
		require.NoError(t, err)
		second, err := source.Token(context.Background())
		require.NoError(t, err)
		assert.Len(t, first, peers.TokenSize)
		assert.Equal(t, first, second)
		assert.EqualValues(t, 1, endpoint.Requests())
	})
}

func TestHeadersOnTheWire(t *testing.T) {
	onEachPeer(t, func(t *testing.T, peer peers.Peer) {
		endpoint := start(t)
		source, err := peer.New(endpoint.Config())
		require.NoError(t, err)
		if source.Through == nil {
			t.Skip("this peer has no transport for bearer tokens")
		}
		base := new(peers.Nowhere)
		do, err := source.Through(base)
		require.NoError(t, err)
		req := peers.NewRequest(t.Context(), endpoint.Server.URL)
		before := req.Header.Clone()
		for range 2 {
			resp, err := do(req)
			require.NoError(t, err)
			assert.Equal(t, http.StatusOK, resp.StatusCode)
		}
		assert.Equal(t, before, req.Header, "the caller's request is not changed")
		assert.Equal(t, before["Accept"], base.Last.Header["Accept"])
		assert.EqualValues(t, 1, endpoint.Requests())
		if peer.Name == peers.Floor {
			return
		}
		assert.Equal(t, []string{peers.Version}, base.Last.Header[peers.VersionHeader])
		require.Len(t, base.Last.Header["Authorization"], 1)
		assert.Regexp(t, `^Bearer token-\d+-x+$`, base.Last.Header["Authorization"][0])
		assert.Len(t, base.Last.Header["Authorization"][0], len("Bearer ")+peers.TokenSize)
	})
}

func TestExpiredTokenIsReplacedOnceForAll(t *testing.T) {
	onEachPeer(t, func(t *testing.T, peer peers.Peer) {
		endpoint := start(t)
		config := endpoint.Config()
		config.Expired = true
		source, err := peer.New(config)
		require.NoError(t, err)
		assert.Zero(t, endpoint.Requests())
		var all sync.WaitGroup
		for range 100 {
			all.Go(func() {
				if source.Token != nil {
					got, err := source.Token(context.Background())
					assert.NoError(t, err)
					assert.Len(t, got, peers.TokenSize)
					return
				}
				base := new(peers.Nowhere)
				do, err := source.Through(base)
				assert.NoError(t, err)
				_, err = do(peers.NewRequest(t.Context(), endpoint.Server.URL))
				assert.NoError(t, err)
				assert.Len(t, base.Last.Header.Get("Authorization"), len("Bearer ")+peers.TokenSize)
			})
		}
		all.Wait()
		assert.EqualValues(t, 1, endpoint.Requests())
	})
}

func TestAPIRefusesUnknownTokens(t *testing.T) {
	endpoint := start(t)
	for authorization, status := range map[string]int{"": 401, "Bearer x": 401} {
		req := peers.NewRequest(t.Context(), endpoint.Server.URL)
		req.Header.Set("Authorization", authorization)
		resp, err := endpoint.API().RoundTrip(req)
		require.NoError(t, err)
		assert.Equal(t, status, resp.StatusCode)
	}
}
