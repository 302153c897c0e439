package platform

// This file is the many sources: which are kept, which are found again, and how
// all of them are revoked.

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

// sources has one source for each set of scopes. Those used last are kept. The
// others are found again as long as somebody has them, so that no account ever
// has two sources at the same time. A source is found through its place in the
// queue, which lives as long as the source does.
type sources struct {
	tokens *Tokens

	mu      sync.Mutex // guards what follows
	known   map[string]weak.Pointer[place]
	clearAt int       // known is cleared of sources that no one has when it is this large
	kept    list.List // of *place, those used last at its front
	list    []*place  // the same in no order, to be copied fast

	looking      sync.Mutex // guards what follows, and each place's failed
	grantsFailed uint64     // of all sources, ever
	copied       []*place   // of list
}

// set is scopes in order, each once.
func set(scopes []string) []string { return slices.Compact(slices.Sorted(slices.Values(scopes))) }

func (s *sources) get(scopes []string) (_ *moovauth.TokenSource, err error) {
	scopes = set(scopes)
	key := strings.Join(scopes, " ")
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.known[key].Value()
	if p == nil || strings.Count(key, " ")+1 != len(scopes) { // a scope with a space is refused
		if parts := strings.Split(key, " "); len(parts) == len(scopes) {
			scopes = parts // so that the text is kept once
		}
		if p, err = s.tokens.newSource(scopes); err != nil {
			return nil, err
		}
		if len(s.known) >= s.clearAt {
			maps.DeleteFunc(s.known, func(_ string, p weak.Pointer[place]) bool { return p.Value() == nil })
			s.clearAt = 2 * max(len(s.known), s.tokens.capacity)
		}
		s.known[key] = weak.Make(p)
	}
	if p.kept != nil {
		s.kept.MoveToFront(p.kept)
		return p.source, nil
	}
	p.kept, p.index = s.kept.PushFront(p), int32(len(s.list))
	if s.list = append(s.list, p); len(s.list) > s.tokens.capacity {
		s.drop(s.kept.Back().Value.(*place))
	}
	return p.source, nil
}

// drop no longer keeps p. s.mu is held.
func (s *sources) drop(p *place) {
	s.kept.Remove(p.kept)
	last := s.list[len(s.list)-1]
	s.list[p.index], last.index = last, p.index
	s.list = slices.Delete(s.list, len(s.list)-1, len(s.list))
	p.kept = nil
	if p.source.Stats().Phase != moovauth.PhaseNone {
		s.tokens.counts.evicted.Add(1)
		s.tokens.logger.Warn("moovauth: platform: a source was let go with a good token: more accounts are in use than WithCapacity", "capacity", s.tokens.capacity)
	}
}

// report fills in what the sources know of Stats. waiting is how many of them
// wait for their turn. It looks at a copy, so that other calls do not wait for it.
func (s *sources) report(st *Stats, waiting int) {
	s.looking.Lock()
	defer s.looking.Unlock()
	s.mu.Lock()
	s.copied = append(s.copied[:0], s.list...)
	s.mu.Unlock()
	for _, p := range s.copied {
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
	st.Sources, st.GrantsFailed = len(s.copied), s.grantsFailed
	clear(s.copied)   // no source is kept for this
	if st.Fresh > 0 { // those that wait will need as much as the others
		st.Needed *= float64(st.Fresh+waiting) / float64(st.Fresh)
	}
}

// all returns those that are kept, and those that somebody has.
func (s *sources) all() (all []*moovauth.TokenSource) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, known := range s.known {
		if p := known.Value(); p != nil {
			all = append(all, p.source)
		}
	}
	return all
}

// revokeAtOnce is how many sources RevokeAll revokes at the same time. As long as
// they wait in the queue each has a few goroutines, and its cache's lock if it has one.
const revokeAtOnce = 1000

// RevokeAll revokes all tokens of the sources, also of removed sources that a caller
// still holds. It does not reach minted tokens: see [Tokens.Revoke]. It waits in the
// queue, and stops when ctx ends.
//
// A thousand sources are revoked at the same time. In each source the refresh
// tokens come first, so that only access tokens, which expire, remain if time runs
// out. The error says how many sources were finished, and how many are left. The
// next RevokeAll continues with those.
func (t *Tokens) RevokeAll(ctx context.Context) error {
	if t.queue == nil {
		return errZero
	}
	all := t.sources.all()
	var finished atomic.Int64
	var group errgroup.Group
	group.SetLimit(revokeAtOnce)
	for _, source := range all {
		group.Go(func() error {
			err := source.Revoke(ctx) // fails at once if ctx has ended
			if err == nil {
				finished.Add(1)
			}
			return err
		})
	}
	failure := group.Wait()
	left := len(all) - int(finished.Load())
	if left == 0 {
		return nil
	}
	t.counts.failed.Add(uint64(left))
	return fmt.Errorf("moovauth: platform: RevokeAll: %d sources finished, %d left: %w", finished.Load(), left, cmp.Or(ctx.Err(), failure))
}
