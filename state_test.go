package moovauth

// Each method of state makes one atomic change and takes the time as an
// argument. Most of these tests therefore need no goroutines, clocks or
// servers.

import (
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

// at returns the moment d after both clocks started.
func at(d time.Duration) instant { return instant{}.add(d) }

// tokenFrom returns a token that was obtained at since. Its refresh point is 12
// minutes later, and its hard expiry 14 minutes later. The server accepts it
// for 15 minutes.
func tokenFrom(since instant, access, refresh string) *currentToken {
	return &currentToken{
		Token:     oauth2.Token{AccessToken: access, RefreshToken: refresh},
		refreshAt: since.add(12 * time.Minute),
		expireAt:  since.add(14 * time.Minute),
		deadAt:    since.add(15 * time.Minute),
	}
}

// stateWith makes the changes to a state with the tokens "access" and
// "refresh", and returns it.
func stateWith(changes ...func(*state)) *state {
	st := newState()
	st.obtain(tokenFrom(at(0), "access", "refresh"), "", at(0))
	for _, change := range changes {
		change(st)
	}
	return st
}

var errTest = errors.New("test")

// failing returns a change that records a failed grant at now. After it, no
// request is made for a second.
func failing(now instant, background bool) func(*state) {
	return func(st *state) {
		st.fail(&coolDown{until: now.add(time.Second), err: errTest, background: background}, now)
	}
}

func refusedAt(now instant) func(*state) {
	return func(st *state) { st.invalidate(st.load().current.AccessToken, now) }
}

// former returns the texts of the former tokens.
func former(st *state) []string {
	texts := []string{}
	for _, f := range st.former {
		texts = append(texts, f.token)
	}
	return texts
}

func TestNewStateHasNothing(t *testing.T) {
	t.Parallel()
	st := newState()
	assert.Nil(t, st.load().usable(at(0)))
	assert.False(t, st.load().refreshDue(never))
	assert.Nil(t, st.load().coolingDown(at(0)))
	assert.Empty(t, st.claimRefreshToken(false))
	assert.Empty(t, st.takeAll(nil, at(0)))
}

func TestPhasesOfTheCurrentToken(t *testing.T) {
	t.Parallel()
	due := at(13 * time.Minute)
	for name, c := range map[string]struct {
		state *state
		now   instant
		left  time.Duration // 0: no token is usable
		due   bool          // whether a refresh in the background is due
	}{
		"at first":                             {stateWith(), at(0), 14 * time.Minute, false},
		"just before the refresh point":        {stateWith(), at(12*time.Minute - 1), 2*time.Minute + 1, false},
		"refresh point":                        {stateWith(), at(12 * time.Minute), 2 * time.Minute, true},
		"refresh point by the wall clock":      {stateWith(), instant{wall: int64(12 * time.Minute)}, 2 * time.Minute, true},
		"refresh point by the monotonic clock": {stateWith(), instant{monotonic: int64(12 * time.Minute)}, 2 * time.Minute, true},
		"just before the hard expiry":          {stateWith(), at(14*time.Minute - 1), 1, true},
		"hard expiry":                          {stateWith(), at(14 * time.Minute), 0, false},
		"hard expiry by the wall clock":        {stateWith(), instant{wall: int64(14 * time.Minute)}, 0, false},
		"hard expiry by the monotonic clock":   {stateWith(), instant{monotonic: int64(14 * time.Minute)}, 0, false},
		"long after":                           {stateWith(), at(24 * time.Hour), 0, false},
		"cool-down of the background":          {stateWith(failing(due, true)), due, time.Minute, false},
		"cool-down of the background is over":  {stateWith(failing(due, true)), due.add(time.Second), 59 * time.Second, true},
		"cool-down of a caller's grant":        {stateWith(failing(due, false)), due, time.Minute, false},
		"refused":                              {stateWith(refusedAt(due)), due, 0, false},
		"refused, cool-down":                   {stateWith(refusedAt(due), failing(due, false)), due, time.Minute, false},
		"refused, cool-down is over":           {stateWith(refusedAt(due), failing(due, false)), due.add(time.Second), 0, false},
		"refused, cool-down of background":     {stateWith(refusedAt(due), failing(due, true)), due, 0, false},
	} {
		known := c.state.load()
		assert.Equal(t, c.left, known.timeLeft(c.now), name)
		assert.Equal(t, c.left > 0, known.usable(c.now) != nil, name)
		assert.Equal(t, c.due, known.refreshDue(c.now), name)
	}
}

func TestObtainKeepsWhatItReplacesForRevoke(t *testing.T) {
	t.Parallel()
	now := at(13 * time.Minute)
	for name, c := range map[string]struct {
		next   *currentToken
		spent  string
		former []string // afterwards
	}{
		"of a refresh grant":                        {tokenFrom(now, "a2", "r2"), "refresh", []string{"access"}},
		"of client credentials":                     {tokenFrom(now, "a2", "r2"), "", []string{"refresh", "access"}},
		"of a server without refresh tokens":        {tokenFrom(now, "a2", ""), "", []string{"refresh", "access"}},
		"of a refresh that keeps the refresh token": {tokenFrom(now, "a2", "refresh"), "refresh", []string{"access"}},
		"of a refresh token from the cache":         {tokenFrom(now, "a2", "r2"), "cached", []string{"refresh", "access"}},
		"the same tokens again":                     {tokenFrom(now, "access", "refresh"), "refresh", []string{}},
		"the same access token":                     {tokenFrom(now, "access", "r2"), "refresh", []string{}},
	} {
		st := stateWith(failing(now, false))
		st.keepForRevoke("cached", now)
		if c.spent != "cached" {
			st.revoked("cached")
		}
		st.obtain(c.next, c.spent, now)
		assert.Same(t, c.next, st.load().current, name)
		assert.Nil(t, st.load().coolDown, name)
		assert.Equal(t, c.former, former(st), name)
		assert.Equal(t, c.next.RefreshToken, st.claimRefreshToken(true), name)
	}
}

// A token that the server has just issued is valid, even if it was invalidated
// or revoked before.
func TestObtainTakesAnyTokenAgain(t *testing.T) {
	t.Parallel()
	now := at(time.Minute)
	for name, change := range map[string]func(*state){
		"replaced": func(st *state) { st.obtain(tokenFrom(now, "a2", "r2"), "", now) },
		"refused":  refusedAt(now),
		"revoked":  func(st *state) { st.takeAll(nil, now); st.revoked("access"); st.revoked("refresh") },
	} {
		st := stateWith(change)
		require.False(t, name != "replaced" && st.adopt(tokenFrom(now, "access", "refresh"), now), name)
		st.obtain(tokenFrom(now, "access", "refresh"), "", now)
		assert.Equal(t, "access", st.load().usable(now).AccessToken, name)
		assert.NotContains(t, former(st), "access", "%s: the current token is not a former token", name)
		assert.NotContains(t, former(st), "refresh", name)
		st.obtain(tokenFrom(at(0), "a3", "r3"), "", now)
		assert.True(t, st.adopt(tokenFrom(now, "access", "refresh"), now), "%s: it can be adopted from the cache again", name)
	}
}

func TestAdoptTakesOnlyABetterToken(t *testing.T) {
	t.Parallel()
	now := at(time.Minute)
	for name, c := range map[string]struct {
		state   *state
		next    *currentToken
		adopted bool
	}{
		"the first":                      {newState(), tokenFrom(now, "a2", "r2"), true},
		"lives longer":                   {stateWith(), tokenFrom(now, "a2", "r2"), true},
		"lives as long":                  {stateWith(), tokenFrom(at(0), "a2", "r2"), false},
		"lives less":                     {stateWith(), tokenFrom(at(-time.Minute), "a2", "r2"), false},
		"is current":                     {stateWith(), tokenFrom(now, "access", "r2"), false},
		"has expired":                    {newState(), tokenFrom(now.add(-14*time.Minute), "a2", "r2"), false},
		"replaces a refused token":       {stateWith(refusedAt(now)), tokenFrom(at(-time.Minute), "a2", "r2"), true},
		"is refused":                     {stateWith(refusedAt(now)), tokenFrom(now, "access", "refresh"), false},
		"is refused, during a cool-down": {stateWith(refusedAt(now), failing(now, false)), tokenFrom(now, "access", "refresh"), false},
		"was revoked":                    {stateWith(func(st *state) { st.takeAll(nil, now) }), tokenFrom(now, "access", "refresh"), false},
	} {
		before := c.state.load()
		assert.Equal(t, c.adopted, c.state.adopt(c.next, now), name)
		if !c.adopted {
			assert.Equal(t, *before, *c.state.load(), name)
			continue
		}
		assert.Same(t, c.next, c.state.load().current, name)
		assert.Nil(t, c.state.load().coolDown, name)
		assert.Empty(t, c.state.claimRefreshToken(true), "%s: another process may send its refresh token", name)
	}

	st := stateWith()
	require.True(t, st.adopt(tokenFrom(now, "a2", "r2"), now))
	assert.Equal(t, []string{"refresh", "access"}, former(st))
}

func TestRefreshTokenIsClaimedOnce(t *testing.T) {
	t.Parallel()
	st := stateWith()
	assert.Equal(t, "refresh", st.claimRefreshToken(true))
	assert.Empty(t, st.claimRefreshToken(true), "it counts as sent")
	st.returnRefreshToken("refresh")
	assert.Equal(t, "refresh", st.claimRefreshToken(true))
	assert.Equal(t, "refresh", st.claimRefreshToken(false), "without scopes there is no other credential")
	assert.Equal(t, "refresh", st.claimRefreshToken(false))
}

func TestCoolDownEnds(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		background bool
		now        instant
		cooling    bool
	}{
		"at first":               {false, at(0), true},
		"just before its end":    {false, at(time.Second - 1), true},
		"at its end":             {false, at(time.Second), false},
		"by the wall clock":      {false, instant{wall: int64(time.Second)}, false},
		"by the monotonic clock": {false, instant{monotonic: int64(time.Second)}, false},
		"of the background":      {true, at(0), false}, // it does not stop a caller's grant
	} {
		st := newState()
		failing(at(0), c.background)(st)
		assert.Equal(t, c.cooling, st.load().coolingDown(c.now) != nil, name)
		assert.Equal(t, errTest, st.load().lastFailure.err, name)
	}
}

func TestInvalidateMarksTheCurrentTokenOnly(t *testing.T) {
	t.Parallel()
	now := at(time.Minute)
	for name, c := range map[string]struct {
		state  *state
		access string
		now    instant
		marked bool
	}{
		"the current token":               {stateWith(), "access", now, true},
		"a stale token":                   {stateWith(), "access", at(13 * time.Minute), true},
		"in a cool-down":                  {stateWith(failing(at(13*time.Minute), true)), "access", at(13 * time.Minute), true},
		"another":                         {stateWith(), "another", now, false},
		"the refresh token":               {stateWith(), "refresh", now, false},
		"nothing":                         {stateWith(), "", now, false},
		"an expired token":                {stateWith(), "access", at(14 * time.Minute), false},
		"the current token a second time": {stateWith(refusedAt(now)), "access", at(5 * time.Minute), false},
		"a revoked token":                 {stateWith(func(st *state) { st.takeAll(nil, now) }), "access", now, false},
		"with no token":                   {newState(), "", now, false},
		"a refresh token only": {func() *state {
			st := newState()
			st.obtain(&currentToken{Token: oauth2.Token{RefreshToken: "refresh"}}, "", at(0))
			return st
		}(), "", now, false},
	} {
		before := c.state.load()
		assert.Equal(t, c.marked, c.state.invalidate(c.access, c.now), name)
		if !c.marked {
			assert.Equal(t, *before, *c.state.load(), name)
			continue
		}
		assert.Nil(t, c.state.load().usable(c.now), name)
		assert.Equal(t, before.coolDown, c.state.load().coolDown, "%s: a cool-down continues", name)
		assert.Equal(t, "refresh", c.state.claimRefreshToken(true), name)
		assert.Empty(t, former(c.state), "%s: it is still the current token", name)
	}
}

// invalidateAnother obtains another token at since and invalidates it at now.
// It reports whether the invalidation counted.
func invalidateAnother(st *state, since, now instant) bool {
	access := fmt.Sprint("obtained at ", since)
	st.obtain(tokenFrom(since, access, "refresh"), "", since)
	return st.invalidate(access, now)
}

func TestInvalidationWithinThePauseDoesNothing(t *testing.T) {
	t.Parallel()
	st, now := newState(), at(0)
	require.True(t, invalidateAnother(st, now, now))
	for _, pause := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
		early := now.add(pause*time.Second - 1)
		assert.False(t, invalidateAnother(st, now, early), pause)
		assert.NotNil(t, st.load().usable(early), "the token stays")
		now = now.add(pause * time.Second)
		assert.True(t, invalidateAnother(st, now, now), pause)
	}

	// A token that reaches its refresh point resets the pause. So does Revoke.
	lasted := now.add(12 * time.Minute)
	for name, change := range map[string]func(st *state){
		"it is replaced":    func(st *state) { st.obtain(tokenFrom(lasted, "a2", "r2"), "", lasted) },
		"it is invalidated": func(st *state) { assert.True(t, st.invalidate("lasting", lasted)) },
		"Revoke":            func(st *state) { st.takeAll(nil, now) },
	} {
		st, since := newState(), now
		for range 3 {
			require.True(t, invalidateAnother(st, since, since), name)
			since = since.add(st.load().pause)
		}
		st.obtain(tokenFrom(now, "lasting", "refresh"), "", now)
		require.Equal(t, 4*time.Second, st.load().pause, name)
		change(st)
		assert.LessOrEqual(t, st.load().pause, firstPause, name)
	}
}

func TestRefusedTokenDoesNotResetThePause(t *testing.T) {
	t.Parallel()
	st := stateWith(refusedAt(at(0)))
	st.obtain(tokenFrom(at(13*time.Minute), "a2", "r2"), "", at(13*time.Minute))
	assert.Equal(t, firstPause, st.load().pause)
}

func TestTakeAllReturnsAllThatMayBeAlive(t *testing.T) {
	t.Parallel()
	st := stateWith()
	now := at(13 * time.Minute)
	st.obtain(tokenFrom(now, "a2", "r2"), "", now)
	more := []formerToken{{"cached", RefreshToken, never}, {"a2", AccessToken, never}, {"", RefreshToken, never}}
	taken := st.takeAll(more, at(14*time.Minute))
	assert.Equal(t, []string{"refresh", "cached", "r2", "access", "a2"}, textsOf(taken), "refresh tokens first, each once")
	assert.Nil(t, st.load().current)
	for _, f := range taken {
		assert.False(t, st.adopt(tokenFrom(now, f.token, ""), now), "%s is not adopted from the cache", f.token)
	}

	st.revoked("r2")
	st.revoked("a2")
	st.revoked("unknown")
	assert.Equal(t, []string{"refresh", "cached", "access"}, textsOf(st.takeAll(nil, at(14*time.Minute))), "what is not revoked stays known")
	assert.Equal(t, []string{"refresh", "cached"}, textsOf(st.takeAll(nil, at(15*time.Minute))), "but not after it is dead")
}

func textsOf(tokens []formerToken) (texts []string) {
	for _, f := range tokens {
		texts = append(texts, f.token)
	}
	return texts
}

func TestFormerTokenIsDeadIfBothClocksSaySo(t *testing.T) {
	t.Parallel()
	for now, known := range map[instant]bool{
		at(15*time.Minute - 1):             true,
		at(15 * time.Minute):               false,
		{wall: int64(24 * time.Hour)}:      true,
		{monotonic: int64(24 * time.Hour)}: true,
	} {
		st := stateWith()
		st.obtain(tokenFrom(at(0), "a2", ""), "refresh", at(0))
		assert.Equal(t, known, slices.Contains(textsOf(st.takeAll(nil, now)), "access"), now)
	}
}

// numbered keeps the tokens with the numbers from first to end-1 for Revoke,
// and returns their texts.
func numbered(st *state, first, end int) (texts []string) {
	for i := first; i < end; i++ {
		st.keepForRevoke(fmt.Sprint("token-", i), at(0))
		texts = append(texts, fmt.Sprint("token-", i))
	}
	return texts
}

func TestSixteenFormerTokensAreRemembered(t *testing.T) {
	t.Parallel()
	st := stateWith()
	numbered(st, 0, 4)
	want := numbered(st, 4, 20)
	for range 20 { // a known token takes no second place
		st.keepForRevoke("token-4", at(0))
		st.keepForRevoke("refresh", at(0)) // the current refresh token takes no place
		st.keepForRevoke("", at(0))
	}
	assert.ElementsMatch(t, want, former(st), "the last 16 tokens are remembered")

	// A Revoke that fails forgets none of them either.
	assert.Len(t, st.takeAll(nil, at(0)), 18)
	assert.Len(t, st.takeAll(nil, at(0)), 18)
}

func TestDeadTokensMakeRoomForThoseThatMayBeAlive(t *testing.T) {
	t.Parallel()
	st := newState()
	numbered(st, 0, 16)
	for i := range 100 { // each token is dead before the next one is obtained
		now := at(time.Duration(i) * time.Hour)
		st.obtain(tokenFrom(now, fmt.Sprint("access-", i), "refresh"), "refresh", now)
	}
	assert.Contains(t, former(st), "token-1")
	assert.Contains(t, former(st), "token-15")
}

func TestLastHundredRevokedTokensAreNotAdopted(t *testing.T) {
	t.Parallel()
	st := newState()
	take := func(i int) {
		access := fmt.Sprint("token-", i)
		st.takeAll([]formerToken{{access, AccessToken, never}}, at(0))
		st.revoked(access)
	}
	for i := range 101 {
		take(i)
		take(i) // the same token takes no second place
	}
	for i := 1; i < 101; i++ {
		require.False(t, st.adopt(tokenFrom(at(0), fmt.Sprint("token-", i), ""), at(0)), i)
	}
	assert.True(t, st.adopt(tokenFrom(at(0), "token-0", ""), at(0)))
}

// writers are the methods of state that store another snapshot.
var writers = map[string]func(st *state){
	"obtain":             func(st *state) { st.obtain(tokenFrom(at(0), "a2", "r2"), "", at(0)) },
	"adopt":              func(st *state) { st.adopt(tokenFrom(at(1), "a2", "r2"), at(0)) },
	"claimRefreshToken":  func(st *state) { st.claimRefreshToken(true) },
	"returnRefreshToken": func(st *state) { st.returnRefreshToken("r2") },
	"keepForRevoke":      func(st *state) { st.keepForRevoke("another", at(0)) },
	"fail":               failing(at(0), true),
	"invalidate":         func(st *state) { st.invalidate("access", at(0)) },
	"takeAll":            func(st *state) { st.takeAll(nil, at(0)) },
}

func TestPublishedSnapshotsDoNotChange(t *testing.T) {
	t.Parallel()
	for name, write := range writers {
		st := stateWith(failing(at(0), true))
		published := st.load()
		snapshotBefore, tokenBefore, coolDownBefore := *published, *published.current, *published.coolDown
		write(st)
		assert.Equal(t, snapshotBefore, *published, name)
		assert.Equal(t, tokenBefore, *published.current, name)
		assert.Equal(t, coolDownBefore, *published.coolDown, name)
	}
}

func TestNoChangeIsLost(t *testing.T) {
	t.Parallel()
	const goroutines, each = 8, 50
	st := newState()
	var all sync.WaitGroup
	for i := range goroutines {
		all.Go(func() {
			for n := range each {
				st.change(func(next *snapshot) {
					before := next.pause
					runtime.Gosched() // without the lock, other goroutines would run here
					next.pause = before + 1
				})
				st.keepForRevoke(fmt.Sprint(i, n), at(0))
			}
		})
	}
	all.Wait()
	assert.EqualValues(t, goroutines*each, st.load().pause)
}

// Every call to Token reads the state.
func TestReadersTakeNoLock(t *testing.T) {
	t.Parallel()
	st := stateWith()
	st.mu.Lock() // a reader that takes this lock would never return
	defer st.mu.Unlock()
	for _, now := range []instant{at(0), at(13 * time.Minute), at(time.Hour)} {
		known := st.load()
		known.usable(now)
		known.refreshDue(now)
		known.coolingDown(now)
		known.timeLeft(now)
	}
}
