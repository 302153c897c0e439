package moovauth

import (
	"context"
	"errors"
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
		assert.Equal(t, want, s.Stats(), "Stats starts no refresh")
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
		second := token(t, s)
		s.Invalidate(second.AccessToken)
		s.Invalidate(second.AccessToken) // has no effect, since the token is already marked
		want.Phase, want.Invalidated = PhaseNone, 1
		assert.Equal(t, want, s.Stats())

		require.NoError(t, s.Revoke(t.Context()))
		want.Expiry, want.HasRefreshToken, want.Revoked = time.Time{}, false, uint64(len(server.RevokeRequests()))
		assert.NotZero(t, want.Revoked)
		assert.Equal(t, want, s.Stats())
	})
}

func TestStatsOfFailures(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		p.on(replies(401, `{"error":"invalid_client"}`))
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
		assert.Equal(t, uint64(1), s.Stats().Waited, "a caller that is refused at once does not wait")

		p.on(nil)
		time.Sleep(time.Second)
		assert.Zero(t, s.Stats().CoolDownUntil, "the cool-down is over")
		token(t, s)
		after := s.Stats()
		assert.Equal(t, PhaseFresh, after.Phase)
		assert.Equal(t, st.LastError, after.LastError, "the last error stays known")
		assert.Equal(t, st.LastErrorAt, after.LastErrorAt)

		// A refresh is refused, and client credentials follow.
		time.Sleep(time.Hour)
		p.on(replies(403, ""), refresh)
		token(t, s)
		after = s.Stats()
		assert.Equal(t, []uint64{2, 1, 0, 1}, []uint64{after.ClientCredentials, after.ClientCredentialsFailed, after.Refreshes, after.RefreshesFailed})
		assert.Equal(t, st.LastError, after.LastError, "the grant did not fail")
	})
}

func TestStatsOfAFailedRefreshInTheBackground(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		time.Sleep(13 * time.Minute)
		p.on(replies(503, "", "Retry-After", "40"))
		failed := time.Now()
		token(t, s)
		synctest.Wait()
		st := s.Stats()
		assert.Equal(t, PhaseStale, st.Phase)
		assert.ErrorContains(t, st.LastError, "503")
		assert.WithinDuration(t, failed, st.LastErrorAt, 0)
		assert.False(t, st.CoolDownUntil.Before(failed.Add(40*time.Second)), "as the server asked")
		assert.Equal(t, uint64(1), st.RefreshesFailed)

		// The cool-down lasts no longer than the token.
		p.on(replies(503, "", "Retry-After", "3600"))
		time.Sleep(time.Minute)
		token(t, s)
		synctest.Wait()
		assert.WithinDuration(t, first.Expiry.Add(-maxLeeway), s.Stats().CoolDownUntil, 0)
		time.Sleep(time.Until(first.Expiry))
		assert.Zero(t, s.Stats().CoolDownUntil, "a token request can be made now")
		_, err := s.Token()
		require.NotErrorAs(t, err, new(*CoolDownError))
		assert.False(t, s.Stats().CoolDownUntil.Before(time.Now().Add(time.Hour)), "a caller waited for this grant")
	})
}

func TestStatsOfACoolDownThatEndedWithTheToken(t *testing.T) {
	t.Parallel()
	bubbles(t, map[string]func(t *testing.T, s *TokenSource){
		"Invalidate": func(t *testing.T, s *TokenSource) { s.Invalidate(token(t, s).AccessToken) },
		"Revoke":     func(t *testing.T, s *TokenSource) { require.NoError(t, s.Revoke(t.Context())) },
	}, func(t *testing.T, end func(t *testing.T, s *TokenSource)) {
		p := proxyOf(t)
		s := p.source(t)
		token(t, s)
		time.Sleep(13 * time.Minute)
		p.on(replies(503, "", "Retry-After", "60"))
		token(t, s)
		synctest.Wait()
		require.NotZero(t, s.Stats().CoolDownUntil)
		end(t, s)
		assert.Zero(t, s.Stats().CoolDownUntil, "a token request can be made now")
	})
}

func TestStatsOfARefusedToken(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		p := proxyOf(t)
		s := p.source(t)
		first := token(t, s)
		p.on(replies(401, ""))
		s.Invalidate(first.AccessToken)
		st := s.Stats()
		assert.Equal(t, PhaseNone, st.Phase)
		assert.Zero(t, st.CoolDownUntil, "a token request can be made now")
		assert.NoError(t, st.LastError)
		assert.Equal(t, uint64(1), st.Invalidated)

		assert.Equal(t, first.AccessToken, token(t, s).AccessToken)
		st = s.Stats()
		assert.Equal(t, PhaseStale, st.Phase, "callers get the refused token again during the cool-down")
		assert.NotZero(t, st.CoolDownUntil)
		assert.ErrorContains(t, st.LastError, "401")
		time.Sleep(time.Until(st.CoolDownUntil))
		assert.Equal(t, PhaseNone, s.Stats().Phase)
	})
}

func TestStatsOfTheCache(t *testing.T) {
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
		assert.Zero(t, st.CacheFailures)
		assert.NoError(t, st.LastCacheError)
		assert.Equal(t, PhaseFresh, st.Phase)
		assert.WithinDuration(t, adopted.Expiry, st.Expiry, 0)

		full := errors.New("no space left on device")
		s = sourceOf(t, server, WithCache(fakeCache{
			get:  func(context.Context) ([]byte, error) { return nil, nil },
			put:  func(context.Context, []byte) error { return full },
			lock: func(context.Context) (func(), error) { return func() {}, nil },
		}))
		token(t, s)
		st = s.Stats()
		assert.Equal(t, uint64(1), st.CacheFailures)
		assert.ErrorIs(t, st.LastCacheError, full)
		assert.NoError(t, st.LastError)
		assert.Equal(t, uint64(1), st.ClientCredentials)
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
		s := sourceOf(t, inMemory(t, moovtest.WithLatency(2*time.Second)))
		for range 10 {
			go func() { _, _ = s.Token() }()
		}
		time.Sleep(3 * time.Second)
		st := s.Stats()
		assert.Equal(t, uint64(10), st.Waited)
		assert.Equal(t, 20*time.Second, st.WaitTime)
		token(t, s)
		time.Sleep(12*time.Minute + 30*time.Second)
		token(t, s) // returns the stale token without a wait
		time.Sleep(time.Minute)
		assert.Equal(t, uint64(10), s.Stats().Waited)
		assert.Equal(t, uint64(1), s.Stats().Refreshes)
	})
}

func TestStatsOfAZeroTokenSource(t *testing.T) {
	t.Parallel()
	assert.Equal(t, Stats{Phase: PhaseNone}, new(TokenSource).Stats())
}

func TestStatsAllocateNothing(t *testing.T) {
	server := inMemory(t)
	s := sourceOf(t, server)
	var st Stats
	assert.Zero(t, testing.AllocsPerRun(100, func() { st = s.Stats() }), "new")
	server.Enqueue(moovtest.Answer{Status: 401})
	_, err := s.Token()
	require.Error(t, err)
	assert.Zero(t, testing.AllocsPerRun(100, func() { st = s.Stats() }), "failed")
	require.NoError(t, s.Revoke(t.Context())) // ends the cool-down
	token(t, s)
	assert.Zero(t, testing.AllocsPerRun(100, func() { st = s.Stats() }), "fresh")
	assert.Equal(t, PhaseFresh, st.Phase)
	assert.Error(t, st.LastError)
}

func TestStatsTakeNoLock(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, onLoopback(t))
	token(t, s)
	s.core.state.mu.Lock() // a call that takes this lock would never return
	defer s.core.state.mu.Unlock()
	assert.Equal(t, PhaseFresh, s.Stats().Phase)
}

func TestStatsCanBeReadAtAnyTime(t *testing.T) {
	t.Parallel()
	s := sourceOf(t, inMemory(t), WithCache(new(memoryCache)))
	use := func() {
		tok := token(t, s)
		s.Invalidate(tok.AccessToken)
		assert.NoError(t, s.Revoke(t.Context()))
	}
	use()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for range 10 {
				use()
			}
		})
	}
	done := make(chan struct{})
	go func() { all.Wait(); close(done) }()
	for before, running := s.Stats(), true; running; {
		select {
		case <-done:
			running = false
		default:
		}
		now := s.Stats()
		for i := range reflect.TypeFor[Stats]().NumField() {
			if v := reflect.ValueOf(now).Field(i); v.CanUint() {
				require.GreaterOrEqual(t, v.Uint(), reflect.ValueOf(before).Field(i).Uint(), reflect.TypeFor[Stats]().Field(i).Name)
			}
		}
		require.GreaterOrEqual(t, now.WaitTime, before.WaitTime)
		before = now
	}
	last := s.Stats()
	assert.NotZero(t, last.Waited)
	assert.NotZero(t, last.Revoked)
	assert.NotZero(t, last.Invalidated)
}
