package moovauth

// This file holds everything that a source knows: the current token, the last
// failure, and former tokens. Each method makes one atomic change. It takes the
// time as an argument, does not wait and does no I/O.

import (
	"cmp"
	"hash/maphash"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"
)

const (
	maxFormer = 16  // number of former tokens that Revoke remembers
	maxBarred = 100 // number of tokens that are never adopted from the cache
)

// state is what a source knows. Readers load an immutable snapshot. A change
// stores another snapshot while mu is held.
type state struct {
	snapshot atomic.Pointer[snapshot]
	counts   counts
	narrow   atomic.Bool // the last client-credentials reply lacked a scope
	warned   atomic.Bool // the last reply caused a warning

	mu     sync.Mutex    // guards storing snapshot, and the fields below
	former []formerToken // oldest first
	barred []uint64      // hashes of invalidated and revoked tokens, oldest first
}

// snapshot is what a source knows at one moment. It is immutable.
type snapshot struct {
	current       *currentToken // nil: none
	coolDown      *coolDown     // nil: the last grant succeeded, or there was no grant
	lastFailure   *lastFailure  // kept after a later success; nil: no grant has failed
	unsent        string        // a refresh token that this source obtained and has not sent
	invalidatedAt instant       // when an invalidation last counted
	pause         time.Duration // after invalidatedAt, before the next invalidation counts
}

// currentToken is the token that callers get. It is immutable.
type currentToken struct {
	oauth2.Token            // the AccessToken is empty if there is only a refresh token
	authorization [1]string // the Authorization header
	refreshAt     instant   // the refresh point
	expireAt      instant   // the hard expiry
	deadAt        instant   // from then on the server no longer accepts the token, even if its clock is behind
	refused       bool      // the API refused it: see Invalidate
}

// coolDown is the time after a failed grant during which no request is made.
type coolDown struct {
	until      instant
	failures   int // in a row
	err        error
	background bool // no caller waited for the failed grant; callers without a token need not wait for until
	asked      bool // the server asked for this wait
}

// lastFailure is the error of the last grant that failed.
type lastFailure struct {
	err error
	at  time.Time
}

// formerToken is a token that callers no longer get, but that the server may
// still accept.
type formerToken struct {
	token  string
	hint   TokenTypeHint
	deadAt instant
}

func newState() *state {
	st := new(state)
	st.snapshot.Store(new(snapshot))
	return st
}

// usable returns the token that callers get now, or nil. After a failed attempt
// to replace a refused token, callers get the refused token until the cool-down
// ends: other API calls may still accept it.
func (s *snapshot) usable(now instant) *currentToken {
	t := s.current
	if t == nil || t.AccessToken == "" || now.reached(t.expireAt) || t.refused && s.coolingDown(now) == nil {
		return nil
	}
	return t
}

// refreshDue reports whether the current token should be refreshed in the
// background.
func (s *snapshot) refreshDue(now instant) bool {
	t := s.usable(now)
	return t != nil && !t.refused && now.reached(t.refreshAt) && (s.coolDown == nil || now.reached(s.coolDown.until))
}

// coolingDown returns the cool-down that a caller without a token must wait
// for, or nil.
func (s *snapshot) coolingDown(now instant) *coolDown {
	if c := s.coolDown; c != nil && !c.background && !now.reached(c.until) {
		return c
	}
	return nil
}

// timeLeft returns how much longer callers get the current token.
func (s *snapshot) timeLeft(now instant) time.Duration {
	if t := s.usable(now); t != nil {
		return now.until(t.expireAt)
	}
	return 0
}

func (st *state) load() *snapshot { return st.snapshot.Load() }

// change stores a changed copy of the snapshot. It calls f with mu held.
func (st *state) change(f func(next *snapshot)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	next := *st.load()
	f(&next)
	st.snapshot.Store(&next)
}

// obtain makes t the current token. The server has just issued t. spent is the
// refresh token that was used up for it.
func (st *state) obtain(t *currentToken, spent string, now instant) {
	st.change(func(next *snapshot) {
		st.unbar(t.AccessToken)
		st.replace(next, t, spent, now)
		next.unsent = t.RefreshToken
	})
}

// adopt makes t, a token from the cache, the current token. It does so only if
// t is better than what callers get now and was not invalidated or revoked.
func (st *state) adopt(t *currentToken, now instant) (adopted bool) {
	st.change(func(next *snapshot) {
		usable := next.usable(now)
		adopted = !now.reached(t.expireAt) && !st.isBarred(t.AccessToken) && (usable == nil || usable.refused ||
			usable.AccessToken != t.AccessToken && usable.expireAt.wall < t.expireAt.wall)
		if adopted {
			st.replace(next, t, "", now)
		}
	})
	return adopted
}

// replace makes t the current token and ends the cool-down. mu is held.
func (st *state) replace(next *snapshot, t *currentToken, spent string, now instant) {
	if old := next.current; old != nil {
		if old.RefreshToken != t.RefreshToken && old.RefreshToken != spent {
			st.remember(formerToken{old.RefreshToken, RefreshToken, never}, now)
		}
		if old.AccessToken != t.AccessToken {
			st.remember(formerToken{old.AccessToken, AccessToken, old.deadAt}, now)
		}
		if !old.refused && now.reached(old.refreshAt) {
			next.pause = 0 // the token lived to its refresh point
		}
	}
	st.forget(spent)
	st.forget(t.AccessToken)
	st.forget(t.RefreshToken)
	next.current, next.coolDown, next.unsent = t, nil, ""
}

// claimRefreshToken returns the refresh token that this source may send, or "".
// It marks the refresh token as sent, so that it is not sent again if the grant
// ends early. A source without scopes has no other credential and may send it
// again.
func (st *state) claimRefreshToken(hasScopes bool) (refresh string) {
	st.change(func(next *snapshot) {
		refresh, next.unsent = next.unsent, ""
		if !hasScopes && next.current != nil {
			refresh = next.current.RefreshToken
		}
	})
	return refresh
}

// returnRefreshToken undoes claimRefreshToken: the server has not used up the
// refresh token.
func (st *state) returnRefreshToken(refresh string) {
	st.change(func(next *snapshot) { next.unsent = refresh })
}

// keepForRevoke remembers a refresh token that will not be sent again, so that
// Revoke can revoke it.
func (st *state) keepForRevoke(refresh string, now instant) {
	st.change(func(next *snapshot) {
		if t := next.current; t == nil || t.RefreshToken != refresh {
			st.remember(formerToken{refresh, RefreshToken, never}, now)
		}
	})
}

// fail begins a cool-down after a failed grant.
func (st *state) fail(c *coolDown, now instant) {
	st.change(func(next *snapshot) { next.coolDown, next.lastFailure = c, &lastFailure{c.err, now.time()} })
}

// invalidate marks the current token as refused, and reports whether it did. An
// invalidation that follows the last one too soon has no effect: see
// [TokenSource.Invalidate].
func (st *state) invalidate(access string, now instant) (refused bool) {
	st.change(func(next *snapshot) {
		t := next.current
		if t == nil || t.AccessToken != access || t.refused || now.reached(t.expireAt) {
			return
		}
		if now.reached(t.refreshAt) {
			next.pause = 0 // the token lived to its refresh point
		}
		if next.pause > 0 && !now.reached(next.invalidatedAt.add(next.pause)) {
			return
		}
		next.pause, next.invalidatedAt = nextPause(next.pause), now
		marked := *t
		marked.refused, refused = true, true
		next.current = &marked
		st.bar(access)
	})
	return refused
}

// takeAll removes the current token for Revoke. It returns that token, the
// former tokens and more, without those that are dead. Refresh tokens come
// first, since they can be used to obtain others. Revoke still knows all of
// them until they are forgotten.
func (st *state) takeAll(more []formerToken, now instant) (taken []formerToken) {
	st.change(func(next *snapshot) {
		if t := next.current; t != nil {
			more = append(more, formerToken{t.RefreshToken, RefreshToken, never}, formerToken{t.AccessToken, AccessToken, t.deadAt})
		}
		next.current, next.unsent, next.pause = nil, "", 0
		if next.coolDown != nil && !next.coolDown.asked {
			next.coolDown = nil
		}
		for _, f := range slices.Concat(st.former, more) {
			if f.token != "" && !now.passed(f.deadAt) && !slices.ContainsFunc(taken, f.sameToken) {
				st.bar(f.token)
				taken = append(taken, f)
			}
		}
		st.former = slices.Clone(taken)
		slices.SortStableFunc(taken, func(a, b formerToken) int { return -cmp.Compare(a.hint, b.hint) })
	})
	return taken
}

// revoked forgets a token that the server has revoked.
func (st *state) revoked(token string) { st.change(func(*snapshot) { st.forget(token) }) }

// tokens returns the tokens that must be masked in errors.
func (st *state) tokens() (all []string) {
	st.mu.Lock()
	defer st.mu.Unlock()
	if t := st.load().current; t != nil {
		all = append(all, t.AccessToken, t.RefreshToken)
	}
	for _, f := range st.former {
		all = append(all, f.token)
	}
	return all
}

// remember adds f to the former tokens. It drops dead tokens, and the oldest if
// there are too many. mu is held.
func (st *state) remember(f formerToken, now instant) {
	if f.token == "" {
		return
	}
	st.forget(f.token)
	st.former = slices.DeleteFunc(append(st.former, f), func(f formerToken) bool { return now.passed(f.deadAt) })
	st.former = slices.Delete(st.former, 0, max(0, len(st.former)-maxFormer))
}

// forget removes a token from the former tokens. mu is held.
func (st *state) forget(token string) {
	st.former = slices.DeleteFunc(st.former, formerToken{token: token}.sameToken)
}

func (f formerToken) sameToken(other formerToken) bool { return f.token == other.token }

var hashSeed = maphash.MakeSeed()

// bar prevents a token from being adopted from the cache. mu is held.
func (st *state) bar(token string) {
	st.unbar(token)
	st.barred = append(st.barred, maphash.String(hashSeed, token))
	st.barred = slices.Delete(st.barred, 0, max(0, len(st.barred)-maxBarred))
}

// unbar undoes bar. mu is held.
func (st *state) unbar(token string) {
	st.barred = slices.DeleteFunc(st.barred, func(h uint64) bool { return h == maphash.String(hashSeed, token) })
}

// isBarred reports whether a token was invalidated or revoked. mu is held.
func (st *state) isBarred(token string) bool {
	return slices.Contains(st.barred, maphash.String(hashSeed, token))
}
