package moovauth

import (
	"net/http"
	"reflect"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/moovtest"
)

func TestStatsThroughATokensLife(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		assert.Equal(t, Stats{Phase: PhaseNone}, s.Stats(), "a new source")

		obtained := time.Now()
		first := token(t, s)
		want := Stats{
			Phase: PhaseFresh, Expiry: obtained.Add(15 * time.Minute), HasRefreshToken: true,
			ClientCredentials: 1, Waited: 1,
		}
		assert.Equal(t, want, s.Stats())
		assert.Equal(t, first.Expiry, s.Stats().Expiry)

		time.Sleep(11 * time.Minute)
		assert.Equal(t, PhaseFresh, s.Stats().Phase)
		time.Sleep(2 * time.Minute)
		want.Phase = PhaseStale
		assert.Equal(t, want, s.Stats())
		time.Sleep(2*time.Minute - 6*time.Second)
		assert.Equal(t, want, s.Stats(), "it starts no refresh")
		time.Sleep(time.Second)
		want.Phase = PhaseNone
		assert.Equal(t, want, s.Stats(), "at the hard expiry")
		assert.Len(t, server.Requests(), 1)

		obtained = time.Now()
		token(t, s)
		want.Phase, want.Expiry, want.Refreshes, want.Waited = PhaseFresh, obtained.Add(15*time.Minute), 1, 2
		assert.Equal(t, want, s.Stats())

		s.Invalidate("unknown")
		assert.Equal(t, want, s.Stats())
		s.Invalidate(token(t, s).AccessToken)
		want.Phase, want.Expiry, want.Invalidated = PhaseNone, time.Time{}, 1
		assert.Equal(t, want, s.Stats())

		require.NoError(t, s.Revoke(t.Context()))
		want.HasRefreshToken, want.Revoked = false, uint64(len(server.RevokeRequests()))
		assert.NotZero(t, want.Revoked)
		assert.Equal(t, want, s.Stats())
	})
}

func TestStatsOfFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		s := sourceOf(t, server)
		server.Enqueue(moovtest.Answer{Status: 401, Body: `{"error":"invalid_client"}`})
		failed := time.Now()
		_, err := s.Token()
		require.Error(t, err)
		st := s.Stats()
		assert.Equal(t, err, st.LastError)
		assert.WithinDuration(t, failed, st.LastErrorAt, 0)
		assert.Equal(t, uint64(1), st.ClientCredentialsFailed)
		assert.WithinRange(t, st.CoolDownUntil, failed.Add(firstCoolDown/2), failed.Add(firstCoolDown))

		cooling := new(CoolDownError)
		_, err = s.Token()
		require.ErrorAs(t, err, &cooling)
		assert.WithinDuration(t, cooling.Until, st.CoolDownUntil, 0)
		assert.Equal(t, uint64(1), s.Stats().Waited, "who is refused at once does not wait")

		time.Sleep(time.Second)
		assert.Zero(t, s.Stats().CoolDownUntil, "it is over")
		token(t, s)
		after := s.Stats()
		assert.Equal(t, PhaseFresh, after.Phase)
		assert.Equal(t, st.LastError, after.LastError, "the last error stays known")
		assert.Equal(t, st.LastErrorAt, after.LastErrorAt)

		// A refresh that is refused, and client credentials after it.
		time.Sleep(time.Hour)
		server.Enqueue(moovtest.Answer{Status: 403})
		token(t, s)
		after = s.Stats()
		assert.Equal(t, []uint64{2, 1, 0, 1}, []uint64{after.ClientCredentials, after.ClientCredentialsFailed, after.Refreshes, after.RefreshesFailed})
		assert.Equal(t, st.LastError, after.LastError, "the flight did not fail")

		// A background refresh that fails.
		time.Sleep(13 * time.Minute)
		server.Enqueue(moovtest.Answer{Status: 503, Header: http.Header{"Retry-After": {"90"}}})
		failed = time.Now()
		token(t, s)
		synctest.Wait()
		after = s.Stats()
		assert.Equal(t, PhaseStale, after.Phase)
		assert.ErrorContains(t, after.LastError, "503")
		assert.WithinDuration(t, failed, after.LastErrorAt, 0)
		assert.False(t, after.CoolDownUntil.Before(failed.Add(90*time.Second)), "as the server asked")
		assert.Equal(t, uint64(2), after.RefreshesFailed)
	})
}

func TestStatsWhileTheAPIRefusesOneTokenAfterTheOther(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := sourceOf(t, inMemory(t))
		s.Invalidate(token(t, s).AccessToken)
		assert.Zero(t, s.Stats().CoolDownUntil, "the first time, the next request is due at once")
		assert.NoError(t, s.Stats().LastError)
		s.Invalidate(token(t, s).AccessToken)
		st := s.Stats()
		assert.Equal(t, PhaseNone, st.Phase)
		assert.Equal(t, time.Second, time.Until(st.CoolDownUntil))
		assert.ErrorContains(t, st.LastError, "refuses one token after the other")
		assert.Zero(t, time.Since(st.LastErrorAt))

		_, err := s.Token()
		var cooling *CoolDownError
		require.ErrorAs(t, err, &cooling)
		assert.Equal(t, cooling.Until, st.CoolDownUntil, "which is what a caller is told")
		time.Sleep(time.Second)
		assert.Zero(t, s.Stats().CoolDownUntil)
		token(t, s)
	})
}

func TestStatsCountAdoptedTokens(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		cache := newLockingCache()
		token(t, sourceOf(t, server, WithCache(cache)))
		s := sourceOf(t, server, WithCache(cache))
		adopted := token(t, s)
		st := s.Stats()
		assert.Equal(t, uint64(1), st.Adopted)
		assert.Zero(t, st.ClientCredentials)
		assert.Equal(t, PhaseFresh, st.Phase)
		assert.WithinDuration(t, adopted.Expiry, st.Expiry, 0)
	})
}

func TestStatsOfASavedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		assert.Equal(t, Stats{Phase: PhaseNone, HasRefreshToken: true}, sourceOf(t, server, WithToken(&oauth2.Token{RefreshToken: "saved"})).Stats())
		expiry := time.Now().Add(time.Hour)
		assert.Equal(t, Stats{Phase: PhaseFresh, Expiry: expiry}, sourceOf(t, server, WithToken(&oauth2.Token{AccessToken: "saved", Expiry: expiry})).Stats())
	})
}

func TestStatsCountTheCallersThatWait(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t, moovtest.WithLatency(2*time.Second))
		s := sourceOf(t, server)
		for range 10 {
			go func() { _, _ = s.Token() }()
		}
		time.Sleep(time.Second)
		assert.Zero(t, s.Stats().Waited, "they are counted when they have waited")
		time.Sleep(2 * time.Second)
		st := s.Stats()
		assert.Equal(t, uint64(10), st.Waited)
		assert.Equal(t, 20*time.Second, st.WaitTime)
		token(t, s)
		time.Sleep(12*time.Minute + 30*time.Second)
		token(t, s) // stale: nobody waits
		time.Sleep(time.Minute)
		assert.Equal(t, uint64(10), s.Stats().Waited)
		assert.Equal(t, uint64(1), s.Stats().Refreshes)
	})
}

func TestStatsOfAZeroTokenSource(t *testing.T) {
	t.Parallel()
	assert.Equal(t, Stats{Phase: PhaseNone}, new(TokenSource).Stats())
}

// The struct itself is returned by value.
func TestStatsAllocateNothing(t *testing.T) {
	server := onLoopback(t)
	s := sourceOf(t, server)
	var st Stats
	states := map[string]func(){
		"new":    func() {},
		"failed": func() { server.Enqueue(moovtest.Answer{Status: 401}); _, _ = s.Token() },
		"fresh":  func() { time.Sleep(firstCoolDown); token(t, s) },
	}
	for _, name := range []string{"new", "failed", "fresh"} {
		states[name]()
		assert.Zero(t, testing.AllocsPerRun(100, func() { st = s.Stats() }), name)
	}
	assert.Equal(t, PhaseFresh, st.Phase)
	assert.Error(t, st.LastError)
}

func TestStatsTakeNoLock(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, onLoopback(t))
	token(t, s)
	s.memory.mu.Lock()
	defer s.memory.mu.Unlock()
	assert.Equal(t, PhaseFresh, s.Stats().Phase)
}

// Stats are read while everything else goes on. All counts only grow.
func TestStatsMayBeReadAtAnyTime(t *testing.T) {
	t.Parallel()
	server := onLoopback(t, moovtest.WithLifetime(2*time.Second))
	s := sourceOf(t, server, WithCache(new(memoryCache)))
	end := time.Now().Add(200 * time.Millisecond)
	var all sync.WaitGroup
	for i := range 4 {
		all.Go(func() {
			for n := 0; time.Now().Before(end); n++ {
				if tok, err := s.Token(); err == nil && i == 0 && n%50 == 0 {
					s.Invalidate(tok.AccessToken)
				}
				if i == 1 && n%100 == 0 {
					_ = s.Revoke(t.Context())
				}
			}
		})
	}
	before := s.Stats()
	for time.Now().Before(end) {
		now := s.Stats()
		for i := range reflect.TypeFor[Stats]().NumField() {
			if v := reflect.ValueOf(now).Field(i); v.CanUint() {
				require.GreaterOrEqual(t, v.Uint(), reflect.ValueOf(before).Field(i).Uint(), reflect.TypeFor[Stats]().Field(i).Name)
			}
		}
		require.GreaterOrEqual(t, now.WaitTime, before.WaitTime)
		before = now
	}
	all.Wait()
	last := s.Stats()
	assert.NotZero(t, last.Waited)
	assert.NotZero(t, last.Revoked)
	assert.NotZero(t, last.Invalidated)
}
