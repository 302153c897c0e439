package interop

// This file uses a source with golang.org/x/oauth2's own clients, and the source's
// Client with an SDK that takes an http.Client.

import (
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/google/go-github/v92/github"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
	"golang.org/x/sync/errgroup"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

func TestOwnClient(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, wantPayload, moovtest.WithLifetime(shortLife))
	source := a.newSource(t, moovauth.WithVersion("v2026.07.00"))
	l := &life{api: a, source: source, call: post(source.Client(), a.URL+"/transfers"), after: replays}
	l.run(t)
	for _, c := range a.seen() {
		assert.Equal(t, []string{"v2026.07.00"}, c.header.Values(moovauth.VersionHeader))
	}
}

func TestOAuth2Transport(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	client := &http.Client{Transport: &oauth2.Transport{Source: source, Base: &moovauth.Transport{}}}
	l := &life{api: a, source: source, call: get(client, a.URL+"/ping"), after: asks}
	l.run(t)
	for _, c := range a.seen() {
		assert.Equal(t, []string{moovauth.DefaultVersion}, c.header.Values(moovauth.VersionHeader))
	}
}

// cachedLife is one second longer than the 10 s before the expiry at which
// oauth2.ReuseTokenSource drops a token. So it caches such a token for a second.
const cachedLife = 11 * time.Second

func TestOAuth2NewClient(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(cachedLife))
	source := a.newSource(t)
	client := oauth2.NewClient(t.Context(), source)
	l := &life{api: a, source: source, call: get(client, a.URL+"/ping"), after: caches}
	l.run(t)
}

// Each wrapper writes to the tokens that the source returns. If they shared a token,
// the race detector would report it.
func TestTwoReuseTokenSourcesOnOneSource(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, nil, moovtest.WithLifetime(cachedLife))
	source := a.newSource(t)
	var clients []*http.Client
	for _, wrapper := range []oauth2.TokenSource{
		oauth2.ReuseTokenSource(nil, source),
		oauth2.ReuseTokenSourceWithExpiry(nil, source, 9500*time.Millisecond),
	} {
		clients = append(clients, &http.Client{Transport: &oauth2.Transport{Source: wrapper}})
	}
	l := &life{api: a, source: source, after: caches, call: func() error {
		var callers errgroup.Group
		for _, client := range clients {
			callers.Go(get(client, a.URL+"/ping"))
		}
		return callers.Wait()
	}}
	l.run(t)
}

func TestGoGitHub(t *testing.T) {
	t.Parallel()
	a := newAPI(t, (*httptest.Server).Start, func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost && r.ContentLength <= 0 {
			http.Error(w, "the body got lost", http.StatusBadRequest)
			return
		}
		writeJSON(w, `{"login":"moov","title":"found"}`)
	}, moovtest.WithLifetime(shortLife))
	source := a.newSource(t)
	client := newGitHub(t, a, source)
	l := &life{api: a, source: source, after: replays, call: func() error {
		if _, _, err := client.Users.Get(context.Background(), "moov"); err != nil {
			return err
		}
		_, _, err := client.Issues.Create(context.Background(), "moov", "moov", github.CreateIssueRequest{Title: "found"})
		return err
	}}
	l.run(t)
}

func newGitHub(t *testing.T, a *api, source *moovauth.TokenSource) *github.Client {
	t.Helper()
	base := a.URL + "/"
	client, err := github.NewClient(github.WithHTTPClient(source.Client()), github.WithURLs(&base, &base))
	require.NoError(t, err)
	return client
}
