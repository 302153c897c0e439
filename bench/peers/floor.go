package peers

// This file is the floor: the work that no source can avoid. It loads its token
// atomically, reads the time once, and returns a copy of the token. It fetches only
// one token.

import (
	"context"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

type floor struct {
	current atomic.Pointer[oauth2.Token]
	once    sync.Once
	err     error
	*fetcher
}

func (f *floor) good(ctx context.Context) (*oauth2.Token, error) {
	if t := f.current.Load(); t != nil && time.Now().Before(t.Expiry) {
		return t, nil
	}
	f.once.Do(func() {
		var t *oauth2.Token
		if t, f.err = f.fetch(ctx); f.err == nil {
			f.current.Store(t.WithExtra(nil))
		}
		f.fetcher = nil
	})
	return f.current.Load(), f.err
}

// token is not inlined, so that its copy is on the heap, as with the peers.
//
//go:noinline
func (f *floor) token(ctx context.Context) (*oauth2.Token, error) {
	t, err := f.good(ctx)
	if err != nil {
		return nil, err
	}
	own := *t
	return &own, nil
}

func newFloor(c Config) (*Source, error) {
	c.Expired = false
	f := &floor{fetcher: newFetcher(c)}
	return &Source{
		Token: func(ctx context.Context) (string, error) {
			t, err := f.token(ctx)
			if err != nil {
				return "", err
			}
			return t.AccessToken, nil
		},
		// Through sends the request without adding a header.
		Through: func(base http.RoundTripper) (Do, error) {
			return func(req *http.Request) (*http.Response, error) {
				if _, err := f.good(req.Context()); err != nil {
					return nil, err
				}
				return base.RoundTrip(req)
			}, nil
		},
		Held: f,
	}, nil
}
