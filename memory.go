package moovauth

// This file is all that a source knows and changes: the token in hand, the
// cool-down, the tokens of the past. Each method is one atomic change, takes
// the time as an argument, and neither waits nor does I/O.

import (
	"cmp"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

// never is a moment that no clock reaches.
var never = instant{1<<63 - 1, 1<<63 - 1}

// memory is what a source remembers. Readers load one snapshot; every change
// publishes another, with mu held.
type memory struct {
	current atomic.Pointer[snapshot] // nil: nothing has happened yet
	mu      sync.Mutex               // guards writing current, and what follows
	behind  *past                    // nil: nothing to remember
	narrow  atomic.Bool              // the last client-credentials grant lacked a scope, too
	counts  counts
}

// snapshot is what a source has at one moment. It is not changed once published.
type snapshot struct {
	held       *held    // nil: no token
	cooling    *coolOff // nil: the last flight succeeded, or there was none
	failure    *failed  // the last one, also after it has been overcome; nil: none
	refreshing bool     // a background refresh is under way
	revokes    int      // how often Revoke took the tokens
	refusals   int      // invalidations in a row, each of a token that was new
	waitUntil  instant  // when the next token request may follow an invalidation
}

// held is the token in hand. It is not changed once published.
type held struct {
	token         oauth2.Token // AccessToken is "" if there is only a refresh token
	authorization string       // the Authorization header
	since         instant      // when it was taken in hand
	refreshAt     instant
	expireAt      instant // the hard expiry
	endAt         instant // when it is dead for certain, also by the server's clock
	sendable      bool    // the refresh token has not been sent, nor may another process send it
}

// coolOff is the time after a failed flight in which no request is made.
type coolOff struct {
	until      instant
	failures   int   // in a row
	err        error // the last one's
	background bool  // nobody waited for the flight
}

// failed is how a flight failed.
type failed struct {
	err error
	at  time.Time
}

// good is how long the token in hand is good; 0: there is none.
func (s *snapshot) good(now instant) time.Duration {
	if s.held == nil || s.held.token.AccessToken == "" {
		return 0
	}
	return s.held.expireAt.after(now)
}

// stale reports whether the token in hand is good, but due for its refresh.
func (s *snapshot) stale(now instant) bool { return s.good(now) > 0 && now.reached(s.held.refreshAt) }

// blocked is the cool-down that keeps a caller without a token from a request.
// That of a background refresh does not: its failure is nobody's.
func (s *snapshot) blocked(now instant) *coolOff {
	if c := s.cooling; c != nil && !c.background && !now.reached(c.until) {
		return c
	}
	return nil
}

var blank snapshot

// load returns what m knows at this moment.
func (m *memory) load() *snapshot {
	if s := m.current.Load(); s != nil {
		return s
	}
	return &blank
}

// change publishes a changed copy of the snapshot. f runs with mu held.
func (m *memory) change(f func(s *snapshot)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	next := *m.load()
	f(&next)
	m.current.Store(&next)
}

// startRefresh reports whether the caller is to refresh the token in hand in
// the background: it is stale, nobody does so yet, and no cool-down forbids it.
// If so, it returns how many times Revoke had been called by then.
func (m *memory) startRefresh(now instant) (revokes int, start bool) {
	due := func(s *snapshot) bool {
		return !s.refreshing && s.stale(now) && (s.cooling == nil || now.reached(s.cooling.until))
	}
	if !due(m.load()) {
		return 0, false // without the lock: every call with a stale token comes here
	}
	m.change(func(s *snapshot) {
		if start = due(s); start {
			s.refreshing, revokes = true, s.revokes
		}
	})
	return revokes, start
}

func (m *memory) endRefresh() { m.change(func(s *snapshot) { s.refreshing = false }) }

// obtain takes in hand what a grant brought, and ends the cool-down. dead is
// the refresh token that was used up for it. A token that was invalidated or
// revoked before is not taken.
func (m *memory) obtain(h *held, dead string, now instant) (taken bool) {
	m.change(func(s *snapshot) {
		if taken = !m.isRetired(h.token.AccessToken); taken {
			m.hold(s, h, dead, now)
		}
	})
	return taken
}

// adopt takes in hand what the cache had, and ends the cool-down, unless m has
// had the token already, or has one that lasts as long. dead is the refresh
// token that was used up for it.
func (m *memory) adopt(h *held, dead string, now instant) (taken bool) {
	m.change(func(s *snapshot) {
		access := h.token.AccessToken
		taken = !now.reached(h.expireAt) && !m.isRetired(access) &&
			!slices.ContainsFunc(m.past().former, func(f former) bool { return f.token == access }) &&
			(s.good(now) == 0 || s.held.token.AccessToken != access && s.held.expireAt.wall < h.expireAt.wall)
		if taken {
			m.hold(s, h, dead, now)
		}
	})
	return taken
}

// hold makes h the token in hand. mu is held.
func (m *memory) hold(s *snapshot, h *held, dead string, now instant) {
	if old := s.held; old != nil {
		if old.token.RefreshToken != h.token.RefreshToken && old.token.RefreshToken != dead {
			m.remember(former{old.token.RefreshToken, RefreshToken, never}, now)
		}
		if old.token.AccessToken != h.token.AccessToken {
			m.remember(former{old.token.AccessToken, AccessToken, old.endAt}, now)
		}
	}
	m.forget(dead)
	m.forget(h.token.AccessToken)
	m.forget(h.token.RefreshToken)
	s.held, s.cooling = h, nil
}

// setAside takes the refresh token out of hand. It stays known for Revoke,
// unless it is dead.
func (m *memory) setAside(refresh string, dead bool, now instant) {
	m.change(func(s *snapshot) {
		if s.held != nil && s.held.token.RefreshToken == refresh {
			without := *s.held
			without.token.RefreshToken, without.sendable = "", false
			s.held = &without
		}
		if m.forget(refresh); !dead {
			m.remember(former{refresh, RefreshToken, never}, now)
		}
	})
}

// keep remembers a refresh token for Revoke, unless it is in hand.
func (m *memory) keep(refresh string, now instant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.load().held; h == nil || h.token.RefreshToken != refresh {
		m.remember(former{refresh, RefreshToken, never}, now)
	}
}

// mark says whether the refresh token in hand may be sent. It may not while it
// is under way, so that it is not sent again if its grant ends in the middle.
func (m *memory) mark(refresh string, sendable bool) {
	m.change(func(s *snapshot) {
		if s.held != nil && s.held.token.RefreshToken == refresh {
			marked := *s.held
			marked.sendable = sendable
			s.held = &marked
		}
	})
}

// late remembers tokens that came after their grant had been given up.
func (m *memory) late(t *oauth2.Token, now instant) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.remember(former{t.RefreshToken, RefreshToken, never}, now)
	m.remember(former{t.AccessToken, AccessToken, never}, now)
}

// fail begins a cool-down after a failed flight, and returns it. wait says how
// long it is, from the failures in a row and how long the token in hand is good.
func (m *memory) fail(err error, background bool, now instant, wait func(failures int, good time.Duration) time.Duration) (c *coolOff) {
	m.change(func(s *snapshot) {
		c = &coolOff{failures: 1, err: err, background: background}
		if s.cooling != nil {
			c.failures += s.cooling.failures
		}
		good := s.good(now)
		pause := wait(c.failures, good)
		if good > 0 {
			pause = min(pause, good) // it ends with the token in any case
		}
		c.until = now.add(pause)
		s.cooling, s.failure = c, &failed{err, now.time()}
	})
	return c
}

// invalidate drops the access token if it is the one in hand and good, keeps the
// refresh token, and ends the cool-down. If tokens are refused one after the
// other, the next request has to wait.
func (m *memory) invalidate(access string, now instant) (dropped bool) {
	if h := m.load().held; h == nil || h.token.AccessToken != access {
		return false
	}
	m.change(func(s *snapshot) {
		old := s.held
		if dropped = s.good(now) > 0 && old.token.AccessToken == access; !dropped {
			return
		}
		s.endCoolDown(now)
		if !s.refreshing { // else that refresh is the request that follows
			if s.refusals == 0 || now.reached(old.since.add(interval(s.refusals))) {
				s.refusals, s.waitUntil = 1, now
			} else {
				s.waitUntil = old.since.add(interval(s.refusals))
				s.refusals++
				s.failure = &failed{errRefused, now.time()}
			}
		}
		m.retire(access)
		m.remember(former{access, AccessToken, old.endAt}, now)
		without := &held{sendable: old.sendable}
		without.token.RefreshToken = old.token.RefreshToken
		s.held = without
	})
	return dropped
}

// take takes all away for Revoke: what is in hand, what is remembered, and more.
// It returns what may be alive, refresh tokens first, since they can mint more.
// They stay known until they are forgotten.
func (m *memory) take(more []former, now instant) (taken []former) {
	m.change(func(s *snapshot) {
		s.revokes++
		s.refusals, s.waitUntil = 0, instant{}
		if h := s.held; h != nil {
			more = append(more, former{h.token.RefreshToken, RefreshToken, never}, former{h.token.AccessToken, AccessToken, h.endAt})
			if s.good(now) > 0 || s.cooling != nil && s.cooling.background {
				s.endCoolDown(now)
			}
			s.held = nil
		}
		old := 0
		for i, f := range slices.Concat(m.past().former, more) {
			if f.token != "" && f.alive(now) && !slices.ContainsFunc(taken, func(t former) bool { return t.token == f.token }) {
				m.retire(f.token)
				taken = append(taken, f)
				if i < len(m.past().former) {
					old++
				}
			}
		}
		m.past().former = taken                         // oldest first: those are forgotten first
		taken = slices.Concat(taken[old:], taken[:old]) // and revoked last
		slices.SortStableFunc(taken, func(a, b former) int { return -cmp.Compare(a.hint, b.hint) })
	})
	return taken
}

// endCoolDown lets the next request be made, and keeps count of the failures.
func (s *snapshot) endCoolDown(now instant) {
	if s.cooling != nil {
		ended := *s.cooling
		ended.until = now
		s.cooling = &ended
	}
}
