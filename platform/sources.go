package platform

// This file is the many sources: which are kept, which are found again, and how
// all of them are revoked.

import (
	"context"
	"fmt"
	"runtime"
	"slices"
	"strings"
	"sync"
	"weak"

	"github.com/hashicorp/golang-lru/v2/simplelru"

	"github.com/moovauth/moovauth"
)

// sources has one source for each set of scopes. Those used last are kept. The
// others are found again as long as somebody has them, so that no account ever
// has two sources at the same time.
type sources struct {
	newSource func(scopes []string) (*moovauth.TokenSource, error)

	mu   sync.Mutex // guards what follows
	kept *simplelru.LRU[string, *moovauth.TokenSource]
	gone map[string]gone // no longer kept, but somebody may have them
}

type gone struct {
	source  weak.Pointer[moovauth.TokenSource]
	cleanup runtime.Cleanup // forgets the entry when nobody has the source
}

func newSources(capacity int, newSource func([]string) (*moovauth.TokenSource, error)) (*sources, error) {
	s := &sources{newSource: newSource, gone: make(map[string]gone)}
	var err error
	s.kept, err = simplelru.NewLRU(capacity, s.evicted)
	return s, err
}

// set is scopes in order, each once.
func set(scopes []string) []string { return slices.Compact(slices.Sorted(slices.Values(scopes))) }

func (s *sources) get(scopes []string) (*moovauth.TokenSource, error) {
	scopes = set(scopes)
	if slices.ContainsFunc(scopes, func(scope string) bool { return strings.Contains(scope, " ") }) {
		return s.newSource(scopes) // it is refused; its key would be that of two scopes
	}
	key := strings.Join(scopes, " ")

	s.mu.Lock()
	defer s.mu.Unlock()
	if source, ok := s.kept.Get(key); ok {
		return source, nil
	}
	source := s.bringBack(key)
	if source == nil {
		var err error
		if source, err = s.newSource(scopes); err != nil {
			return nil, err
		}
	}
	s.kept.Add(key, source)
	return source, nil
}

// evicted is called with s.mu held.
func (s *sources) evicted(key string, source *moovauth.TokenSource) {
	pointer := weak.Make(source)
	s.gone[key] = gone{pointer, runtime.AddCleanup(source, s.forget, key)}
}

// bringBack returns a source that is no longer kept, or nil. s.mu is held.
func (s *sources) bringBack(key string) *moovauth.TokenSource {
	g, ok := s.gone[key]
	if !ok {
		return nil
	}
	delete(s.gone, key)
	source := g.source.Value()
	if source != nil {
		g.cleanup.Stop()
	}
	return source
}

// forget is called when nobody has a source any more.
func (s *sources) forget(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if g, ok := s.gone[key]; ok && g.source.Value() == nil {
		delete(s.gone, key)
	}
}

// report fills in what the sources know of Stats.
func (s *sources) report(st *Stats) {
	s.mu.Lock()
	kept := s.kept.Values()
	s.mu.Unlock()
	st.Sources = len(kept)
	for _, source := range kept {
		is := source.Stats()
		switch is.Phase {
		case moovauth.PhaseFresh:
			st.Fresh++
		case moovauth.PhaseStale:
			st.Stale++
		}
		if !is.CoolDownUntil.IsZero() {
			st.CoolingDown++
		}
	}
}

// all returns those that are kept, those used last first, and those that
// somebody has.
func (s *sources) all() []*moovauth.TokenSource {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := s.kept.Values()
	slices.Reverse(all)
	for _, g := range s.gone {
		if source := g.source.Value(); source != nil {
			all = append(all, source)
		}
	}
	return all
}

// revokeAtOnce is how many sources RevokeAll revokes at the same time. As long as
// they wait in line each has a few goroutines, and its cache's lock if it has one.
const revokeAtOnce = 1000

// RevokeAll revokes all that the sources hold: those that are kept, and those
// that were let go and that somebody still has. It cannot reach sources that are
// gone, nor minted tokens: see [Tokens.Revoke]. It waits in line, and gives up
// with ctx.
//
// A thousand sources are revoked at the same time, and of each the refresh tokens
// first, so that what is alive if the time does not suffice are access tokens,
// which expire. The error says how many sources were finished, and how many are
// left. The next RevokeAll goes on with those.
func (t *Tokens) RevokeAll(ctx context.Context) error {
	all := t.sources.all()
	var mu sync.Mutex // guards what follows
	var finished int
	var failure error // the first that is not ctx's
	revoke := func(source *moovauth.TokenSource) {
		err := source.Revoke(ctx)
		mu.Lock()
		defer mu.Unlock()
		switch {
		case err == nil:
			finished++
		case failure == nil && ctx.Err() == nil:
			failure = err
		}
	}
	next := make(chan *moovauth.TokenSource)
	var workers sync.WaitGroup
	for range min(len(all), revokeAtOnce) {
		workers.Go(func() {
			for source := range next {
				revoke(source)
			}
		})
	}
	for _, source := range all {
		if ctx.Err() != nil {
			break
		}
		next <- source
	}
	close(next)
	workers.Wait()

	left := len(all) - finished
	if left == 0 {
		return nil
	}
	t.failed.Add(uint64(left))
	err := failure
	switch {
	case ctx.Err() != nil && failure != nil:
		err = fmt.Errorf("%w; %w", ctx.Err(), failure)
	case ctx.Err() != nil:
		err = ctx.Err()
	}
	return fmt.Errorf("moovauth: platform: RevokeAll: %d sources finished, %d left: %w", finished, left, err)
}
