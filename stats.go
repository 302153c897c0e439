package moovauth

// This file reports a source's state and its counts.

import (
	"sync/atomic"
	"time"
)

// The values of Stats.Phase.
const (
	PhaseNone  = "none"  // there is no valid token: callers wait for one
	PhaseFresh = "fresh" // the token is valid
	PhaseStale = "stale" // the token is valid, but it is time to refresh it
)

// Stats holds the state of a [TokenSource], and counts what it has done since
// it was made. The counts never decrease.
type Stats struct {
	Phase           string    // of the current token: PhaseNone, PhaseFresh or PhaseStale
	Expiry          time.Time // of the access token, 5 minutes after the request if the server did not say; zero if there is none
	HasRefreshToken bool
	CoolDownUntil   time.Time // no token request is made before this time; zero if one can be made now

	LastError   error     // of the last failed attempt to obtain a token; nil if none has failed
	LastErrorAt time.Time // the time of LastError

	ClientCredentials       uint64 // successful requests with the client credentials
	ClientCredentialsFailed uint64 // failed ones; retries do not count, nor do 429s if there is a Limiter
	Refreshes               uint64 // successful requests with a refresh token
	RefreshesFailed         uint64 // failed ones, counted in the same way
	Adopted                 uint64 // tokens taken from the cache
	Invalidated             uint64 // calls to Invalidate that marked the current token
	Revoked                 uint64 // tokens that Revoke revoked

	CacheFailures  uint64 // calls to the cache that failed
	LastCacheError error  // of the last failed call to the cache; nil if none has failed

	Waited   uint64        // callers that had to wait for a token
	WaitTime time.Duration // the total time of their waits
}

// counts are the counters of Stats.
type counts struct {
	clientCredentials, clientCredentialsFailed atomic.Uint64
	refreshes, refreshesFailed                 atomic.Uint64
	adopted, invalidated, revoked, waited      atomic.Uint64
	waitTime                                   atomic.Int64 // nanoseconds
}

// Stats returns the state and the counts of s. It makes no request, starts no
// refresh and takes no lock.
func (s *TokenSource) Stats() Stats {
	if s.core == nil {
		return Stats{Phase: PhaseNone}
	}
	now, known, n := s.core.config.clock(), s.core.state.load(), &s.core.state.counts
	st := Stats{
		Phase:                   PhaseNone,
		ClientCredentials:       n.clientCredentials.Load(),
		ClientCredentialsFailed: n.clientCredentialsFailed.Load(),
		Refreshes:               n.refreshes.Load(),
		RefreshesFailed:         n.refreshesFailed.Load(),
		Adopted:                 n.adopted.Load(),
		Invalidated:             n.invalidated.Load(),
		Revoked:                 n.revoked.Load(),
		Waited:                  n.waited.Load(),
		WaitTime:                time.Duration(n.waitTime.Load()),
	}
	if t := known.usable(now); t != nil {
		st.Phase = PhaseFresh
		if t.refused || now.reached(t.refreshAt) {
			st.Phase = PhaseStale
		}
	}
	if t := known.current; t != nil {
		st.Expiry, st.HasRefreshToken = t.Expiry, t.RefreshToken != ""
	}
	if c := known.coolDown; c != nil && !now.reached(c.until) && (!c.background || st.Phase != PhaseNone) {
		st.CoolDownUntil = c.until.time()
	}
	if f := known.lastFailure; f != nil {
		st.LastError, st.LastErrorAt = f.err, f.at
	}
	if cache := s.core.cache; cache != nil {
		st.CacheFailures = cache.failures.Load()
		if err := cache.lastError.Load(); err != nil {
			st.LastCacheError = *err
		}
	}
	return st
}
