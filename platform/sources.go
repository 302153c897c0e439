package platform

// This file holds the sources: which are kept, how a source is found again, and
// how all of them are revoked.

import (
	"cmp"
	"container/list"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"weak"

	"golang.org/x/sync/errgroup"

	"github.com/moovauth/moovauth"
)

// sources has one source for each set of scopes. It keeps the sources that were
// used last. It finds another source again as long as a caller holds it, so no
// set of scopes has two sources at the same time. It finds a source by its place
// in the queue, which lives as long as the source does.
type sources struct {
	tokens *Tokens

	mu      sync.Mutex // guards the fields below
	known   map[string]weak.Pointer[place]
	clearAt int       // at this length, known is cleared of sources that no one holds
	kept    list.List // of *place; the front was used last

	reporting    sync.Mutex // guards the field below, and failed of each place
	grantsFailed uint64     // of all sources, since the start
}

// set returns scopes in order, each once.
func set(scopes []string) []string { return slices.Compact(slices.Sorted(slices.Values(scopes))) }

func (s *sources) get(scopes []string) (_ *moovauth.TokenSource, err error) {
	scopes = set(scopes)
	key := strings.Join(scopes, " ")
	t := s.tokens
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.known[key].Value()
	if p == nil || strings.Count(key, " ")+1 != len(scopes) { // NewTokenSource refuses a scope with a space
		if parts := strings.Split(key, " "); len(parts) == len(scopes) {
			scopes = parts // so that the text is kept once
		}
		p = &place{queue: t.queue}
		p.source, err = moovauth.NewTokenSource(t.creds(), t.options(moovauth.WithLimiter(p), moovauth.WithScopes(scopes...))...)
		if err != nil {
			return nil, err
		}
		if len(s.known) >= s.clearAt {
			maps.DeleteFunc(s.known, func(_ string, p weak.Pointer[place]) bool { return p.Value() == nil })
			s.clearAt = 2 * max(len(s.known), t.capacity)
		}
		s.known[key] = weak.Make(p)
	}
	s.keep(p)
	return p.source, nil
}

// keep moves p to the front of the sources that are kept. If there are then too
// many, it removes the last one. The caller holds s.mu.
func (s *sources) keep(p *place) {
	if p.kept == nil {
		p.kept = s.kept.PushFront(p)
	}
	s.kept.MoveToFront(p.kept)
	if s.kept.Len() > s.tokens.capacity {
		last := s.kept.Remove(s.kept.Back()).(*place)
		last.kept = nil
		if last.source.Stats().Phase != moovauth.PhaseNone {
			s.tokens.counts.evicted.Add(1)
			s.tokens.logger.Warn("moovauth: platform: a source was removed while its token was valid: more sources are in use than WithCapacity allows", "capacity", s.tokens.capacity)
		}
	}
}

// report fills in what the sources know of Stats. waiting is how many of their
// requests wait in the queue. It looks at a copy of the list, so that get does not
// wait for it.
func (s *sources) report(st *Stats, waiting int) {
	s.reporting.Lock()
	defer s.reporting.Unlock()
	s.mu.Lock()
	places := make([]*place, 0, s.kept.Len())
	for e := s.kept.Front(); e != nil; e = e.Next() {
		places = append(places, e.Value.(*place))
	}
	s.mu.Unlock()
	for _, p := range places {
		is := p.source.Stats()
		switch is.Phase {
		case moovauth.PhaseFresh:
			st.Fresh++
			st.Needed += p.needs(is.Expiry)
		case moovauth.PhaseStale:
			st.Stale++
		}
		if !is.CoolDownUntil.IsZero() {
			st.CoolingDown++
		}
		failed := is.ClientCredentialsFailed + is.RefreshesFailed
		s.grantsFailed += failed - p.failed
		p.failed = failed
	}
	st.Sources, st.GrantsFailed = len(places), s.grantsFailed
	if st.Fresh > 0 { // the waiting sources will need as much as the fresh ones
		st.Needed *= float64(st.Fresh+waiting) / float64(st.Fresh)
	}
}

// revokeAtOnce is how many sources RevokeAll revokes at the same time. While a
// source waits in the queue, it has a few goroutines, and the lock of its cache.
const revokeAtOnce = 1000

// RevokeAll revokes all tokens of all sources, including removed sources that a
// caller still holds. It does not know the tokens of other removed sources and
// minted tokens: see [WithCapacity] and [Tokens.Revoke]. It waits in the queue,
// and stops when ctx ends.
//
// RevokeAll revokes the tokens of up to a thousand sources at the same time,
// and the refresh tokens of a source first. So if ctx ends too early, most
// tokens that remain are access tokens, which expire. The error says how many
// sources are finished, and how many are left. The next RevokeAll continues
// with the rest.
func (t *Tokens) RevokeAll(ctx context.Context) error {
	if t.queue == nil {
		return errZero
	}
	var all []*moovauth.TokenSource
	t.sources.mu.Lock()
	for _, known := range t.sources.known {
		if p := known.Value(); p != nil {
			all = append(all, p.source)
		}
	}
	t.sources.mu.Unlock()
	var left atomic.Int64
	var group errgroup.Group
	group.SetLimit(revokeAtOnce)
	for _, source := range all {
		group.Go(func() error {
			err := source.Revoke(ctx) // fails at once if ctx has ended
			if err != nil {
				left.Add(1)
			}
			return err
		})
	}
	if failure := group.Wait(); failure != nil {
		t.counts.failed.Add(uint64(left.Load()))
		return fmt.Errorf("moovauth: platform: RevokeAll: %d sources finished, %d left: %w", int64(len(all))-left.Load(), left.Load(), cmp.Or(ctx.Err(), failure))
	}
	return nil
}
