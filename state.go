package moovauth

// This file is everything that a source knows: the current token, the last
// failure, and the tokens of the past. Each method is one atomic change. It
// takes the time as an argument, and neither waits nor does I/O.

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
	maxFormer = 16  // former tokens that are remembered for Revoke
	maxBarred = 100 // tokens that are not adopted from the cache
)

// state is what a source knows. Readers load one immutable snapshot. A change
// publishes another, with mu held.
type state struct {
	snapshot atomic.Pointer[snapshot]
	counts   counts
	narrow   atomic.Bool // the last client-credentials reply lacked a scope, too
	warned   atomic.Bool // a warning about the last reply was logged

	mu     sync.Mutex    // guards storing snapshot, and the fields below
	former []formerToken // oldest first
	barred []uint64      // hashes of tokens that were invalidated or revoked, oldest first
}

// snapshot is what a source knows at one moment. It is immutable.
type snapshot struct {
	current       *currentToken // nil: none
	coolDown      *coolDown     // nil: the last grant succeeded, or there was none
	lastFailure   *lastFailure  // also after a later success; nil: none
	unsent        string        // the refresh token that this source obtained and has not sent
	invalidatedAt instant       // when an invalidation last counted
	pause         time.Duration // before the next one counts
}

// currentToken is the token that callers get. It is immutable.
type currentToken struct {
	oauth2.Token            // AccessToken is empty if there is only a refresh token
	authorization [1]string // the Authorization header
	refreshAt     instant   // the refresh point
	expireAt      instant   // the hard expiry
	deadAt        instant   // from then on the server does not accept the token, whatever its clock says
	refused       bool      // the API refused it: see Invalidate
}

// coolDown is the time after a failed grant in which no request is made.
type coolDown struct {
	until      instant
	failures   int // in a row
	err        error
	background bool // no caller waited for the grant, so it keeps no caller from a grant
	asked      bool // the server asked for the time
}

// lastFailure is the error of the last grant that failed.
type lastFailure struct {
	err error
	at  time.Time
}

// formerToken is a token that callers no longer get, but that may be alive.
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

// usable returns the token that callers get now, or nil. A refused token is
// still returned while a failed attempt to replace it cools down: it may be good
// for all other calls.
func (s *snapshot) usable(now instant) *currentToken {
	t := s.current
	if t == nil || t.AccessToken == "" || now.reached(t.expireAt) || t.refused && s.coolingDown(now) == nil {
		return nil
	}
	return t
}

// refreshDue reports whether the current token is to be refreshed in the background.
func (s *snapshot) refreshDue(now instant) bool {
	t := s.usable(now)
	return t != nil && !t.refused && now.reached(t.refreshAt) && (s.coolDown == nil || now.reached(s.coolDown.until))
}

// coolingDown returns the cool-down that keeps a caller without a token from a
// grant, or nil.
func (s *snapshot) coolingDown(now instant) *coolDown {
	if c := s.coolDown; c != nil && !c.background && !now.reached(c.until) {
		return c
	}
	return nil
}

// timeLeft is how long callers get the current token.
func (s *snapshot) timeLeft(now instant) time.Duration {
	if t := s.usable(now); t != nil {
		return now.until(t.expireAt)
	}
	return 0
}

func (st *state) load() *snapshot { return st.snapshot.Load() }

// change publishes a changed copy of the snapshot. f runs with mu held.
func (st *state) change(f func(next *snapshot)) {
	st.mu.Lock()
	defer st.mu.Unlock()
	next := *st.load()
	f(&next)
	st.snapshot.Store(&next)
}

// obtain makes t, which the server has just handed out, the current token.
// spent is the refresh token that was used up for it.
func (st *state) obtain(t *currentToken, spent string, now instant) {
	st.change(func(next *snapshot) {
		st.unbar(t.AccessToken)
		st.replace(next, t, spent, now)
		next.unsent = t.RefreshToken
	})
}

// adopt makes t, which the cache has, the current token, if that is better than
// what callers get now, and if it was not invalidated or revoked.
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
			next.pause = 0 // the token has lasted
		}
	}
	st.forget(spent)
	st.forget(t.AccessToken)
	st.forget(t.RefreshToken)
	next.current, next.coolDown, next.unsent = t, nil, ""
}

// claimRefreshToken returns the refresh token that this source may send, or "".
// From then on it counts as sent, so that no one sends it again if the grant ends
// early. A source without scopes has nothing else, and may send it again.
func (st *state) claimRefreshToken(hasScopes bool) (refresh string) {
	st.change(func(next *snapshot) {
		refresh, next.unsent = next.unsent, ""
		if !hasScopes && next.current != nil {
			refresh = next.current.RefreshToken
		}
	})
	return refresh
}

// returnRefreshToken takes a claim back: the server has not used up the token.
func (st *state) returnRefreshToken(refresh string) {
	st.change(func(next *snapshot) { next.unsent = refresh })
}

// keepForRevoke remembers a refresh token that is not sent any more, unless it is
// the current one.
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
// invalidation that follows another one too soon does nothing: an API that
// answers 401 to everything must not cause a flood of token requests.
func (st *state) invalidate(access string, now instant) (refused bool) {
	st.change(func(next *snapshot) {
		t := next.current
		if t == nil || t.AccessToken != access || t.refused || now.reached(t.expireAt) {
			return
		}
		if now.reached(t.refreshAt) {
			next.pause = 0 // the token has lasted
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

// takeAll takes the current token away for Revoke, and returns it with all others
// that may be alive: the former ones, and more. Refresh tokens come first, since
// they can be used to obtain others. All stay known until they are forgotten.
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

// tokens are those that may be alive, to be masked in errors.
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

// remember adds f to the former tokens, once, and forgets the dead ones and the
// oldest. mu is held.
func (st *state) remember(f formerToken, now instant) {
	if f.token == "" {
		return
	}
	st.forget(f.token)
	st.former = slices.DeleteFunc(append(st.former, f), func(f formerToken) bool { return now.passed(f.deadAt) })
	st.former = slices.Delete(st.former, 0, max(0, len(st.former)-maxFormer))
}

// forget removes a token from the former ones. mu is held.
func (st *state) forget(token string) {
	st.former = slices.DeleteFunc(st.former, formerToken{token: token}.sameToken)
}

func (f formerToken) sameToken(other formerToken) bool { return f.token == other.token }

var hashSeed = maphash.MakeSeed()

// bar makes sure that a token is not adopted from the cache. mu is held.
func (st *state) bar(token string) {
	st.unbar(token)
	st.barred = append(st.barred, maphash.String(hashSeed, token))
	st.barred = slices.Delete(st.barred, 0, max(0, len(st.barred)-maxBarred))
}

// unbar takes bar back. mu is held.
func (st *state) unbar(token string) {
	st.barred = slices.DeleteFunc(st.barred, func(h uint64) bool { return h == maphash.String(hashSeed, token) })
}

// isBarred reports whether a token was invalidated or revoked. mu is held.
func (st *state) isBarred(token string) bool {
	return slices.Contains(st.barred, maphash.String(hashSeed, token))
}
