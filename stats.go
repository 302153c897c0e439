package moovauth

// This file is what a source tells about itself: what it has, and what it did.

import (
	"sync/atomic"
	"time"
)

// The values of Stats.Phase.
const (
	PhaseNone  = "none"  // there is no good token: callers wait for one
	PhaseFresh = "fresh" // the token is good
	PhaseStale = "stale" // the token is good, and due for its refresh
)

// Stats is what a [TokenSource] has, and what it did since it was made. All
// counts only grow.
type Stats struct {
	Phase           string    // of the token in hand: PhaseNone, PhaseFresh or PhaseStale
	Expiry          time.Time // of the access token, as the server set it; zero: there is none
	HasRefreshToken bool
	CoolDownUntil   time.Time // no token request is made before; zero: one may be made now

	LastError   error     // why there was no new token the last time; nil: there always was
	LastErrorAt time.Time // when that was

	ClientCredentials       uint64 // grants of that type that brought a token, retries included
	ClientCredentialsFailed uint64 // … that did not
	Refreshes               uint64 // refresh grants that brought a token
	RefreshesFailed         uint64 // … that did not
	Adopted                 uint64 // tokens taken from the cache
	Invalidated             uint64 // tokens that Invalidate took away
	Revoked                 uint64 // tokens that Revoke revoked

	Waited   uint64        // callers that had to wait for a token
	WaitTime time.Duration // of all of them together
}

// counts are what only grows in Stats.
type counts struct {
	grants, failed         atomic.Uint64 // with client credentials
	refreshes, failedOnes  atomic.Uint64 // with a refresh token
	adopted, invalidated   atomic.Uint64
	revoked, waited, waits atomic.Uint64 // waits: nanoseconds
}

// Stats returns what s has and did. It makes no request, starts no refresh and
// takes no lock.
func (s *TokenSource) Stats() Stats {
	if s.endpoint == nil {
		return Stats{Phase: PhaseNone}
	}
	now, v, n := s.endpoint.clock(), s.memory.load(), &s.memory.counts
	st := Stats{
		Phase:                   PhaseNone,
		ClientCredentials:       n.grants.Load(),
		ClientCredentialsFailed: n.failed.Load(),
		Refreshes:               n.refreshes.Load(),
		RefreshesFailed:         n.failedOnes.Load(),
		Adopted:                 n.adopted.Load(),
		Invalidated:             n.invalidated.Load(),
		Revoked:                 n.revoked.Load(),
		Waited:                  n.waited.Load(),
		WaitTime:                time.Duration(n.waits.Load()),
	}
	if v.good(now) > 0 {
		st.Phase = PhaseFresh
		if v.stale(now) {
			st.Phase = PhaseStale
		}
	}
	if v.held != nil {
		st.Expiry, st.HasRefreshToken = v.held.token.Expiry, v.held.token.RefreshToken != ""
	}
	until := instant{}
	if c := v.cooling; c != nil {
		until = c.until
	}
	if v.good(now) == 0 && until.wall < v.waitUntil.wall { // the API refuses one token after the other
		until = v.waitUntil
	}
	if !now.reached(until) {
		st.CoolDownUntil = until.time()
	}
	if f := v.failure; f != nil {
		st.LastError, st.LastErrorAt = f.err, f.at
	}
	return st
}
