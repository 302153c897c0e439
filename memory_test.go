package moovauth

// Each method of memory is one atomic change: these tests need neither
// goroutines nor clocks nor servers, but for the ones about its lock.

import (
	"errors"
	"fmt"
	"reflect"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

// at is the moment d after the beginning of all time.
func at(d time.Duration) instant { return instant{}.add(d) }

// holding is a token in hand that was taken at since. It is due for its refresh
// after 12 minutes, expires after 14 and is dead after 15.
func holding(access, refresh string, since instant) *held {
	return &held{
		token:     oauth2.Token{AccessToken: access, RefreshToken: refresh},
		since:     since,
		refreshAt: since.add(12 * time.Minute),
		expireAt:  since.add(14 * time.Minute),
		endAt:     since.add(15 * time.Minute),
		sendable:  refresh != "",
	}
}

// memoryWith has the token of holding("access", "refresh", instant{}) in hand.
func memoryWith() *memory {
	m := new(memory)
	m.obtain(holding("access", "refresh", instant{}), "", instant{})
	return m
}

// formerTokens are the texts of those that m remembers for Revoke.
func formerTokens(m *memory) []string {
	texts := []string{}
	for _, f := range m.past().former {
		texts = append(texts, f.token)
	}
	return texts
}

// pausing makes each cool-down last for d.
func pausing(d time.Duration) func(int, time.Duration) time.Duration {
	return func(int, time.Duration) time.Duration { return d }
}

var errTest = errors.New("test")

func TestMemoryIsBlankAtFirst(t *testing.T) {
	t.Parallel()
	m := new(memory)
	assert.Equal(t, snapshot{}, *m.load())
	assert.Zero(t, m.load().good(instant{}))
	assert.False(t, m.load().stale(never))
	assert.Nil(t, m.load().blocked(instant{}))
	assert.False(t, m.gone(""))
	assert.Empty(t, m.take(nil, instant{}))
}

func TestPhasesOfTheTokenInHand(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		name  string
		now   instant
		good  time.Duration
		stale bool
	}{
		{"at first", at(0), 14 * time.Minute, false},
		{"just fresh", at(12*time.Minute - 1), 2*time.Minute + 1, false},
		{"refresh point", at(12 * time.Minute), 2 * time.Minute, true},
		{"refresh point by the wall clock alone", instant{wall: int64(12 * time.Minute)}, 2 * time.Minute, true},
		{"refresh point by the monotonic clock alone", instant{monotonic: int64(12 * time.Minute)}, 2 * time.Minute, true},
		{"just stale", at(14*time.Minute - 1), 1, true},
		{"hard expiry", at(14 * time.Minute), 0, false},
		{"hard expiry by the wall clock alone", instant{wall: int64(14 * time.Minute)}, 0, false},
		{"hard expiry by the monotonic clock alone", instant{monotonic: int64(14 * time.Minute)}, 0, false},
		{"long after", at(24 * time.Hour), 0, false},
	} {
		s := memoryWith().load()
		assert.Equal(t, c.good, s.good(c.now), c.name)
		assert.Equal(t, c.stale, s.stale(c.now), c.name)
	}
	m := new(memory)
	m.obtain(&held{token: oauth2.Token{RefreshToken: "refresh"}, expireAt: never}, "", instant{})
	assert.Zero(t, m.load().good(instant{}), "a refresh token alone")
	assert.False(t, m.load().stale(instant{}))
}

func TestOneRefreshIsStarted(t *testing.T) {
	t.Parallel()
	due := at(13 * time.Minute)
	for name, c := range map[string]struct {
		before func(m *memory)
		now    instant
		start  bool
	}{
		"stale":                             {func(*memory) {}, due, true},
		"fresh":                             {func(*memory) {}, at(11 * time.Minute), false},
		"expired":                           {func(*memory) {}, at(14 * time.Minute), false},
		"one is under way":                  {func(m *memory) { m.startRefresh(due) }, due, false},
		"one has ended":                     {func(m *memory) { m.startRefresh(due); m.endRefresh() }, due, true},
		"cool-down of the background":       {func(m *memory) { m.fail(errTest, true, due, pausing(time.Second)) }, due, false},
		"cool-down that callers meet":       {func(m *memory) { m.fail(errTest, false, due, pausing(time.Second)) }, due, false},
		"cool-down that is over":            {func(m *memory) { m.fail(errTest, true, due, pausing(time.Second)) }, due.add(time.Second), true},
		"cool-down that is over in a while": {func(m *memory) { m.fail(errTest, true, due, pausing(time.Second)) }, due.add(time.Second - 1), false},
	} {
		m := memoryWith()
		c.before(m)
		was := m.load().refreshing
		_, start := m.startRefresh(c.now)
		assert.Equal(t, c.start, start, name)
		assert.Equal(t, c.start || was, m.load().refreshing, name)
	}
}

func TestRefreshKnowsHowManyRevokesThereWere(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	for want := range 3 {
		m.obtain(holding(fmt.Sprint("access-", want), "refresh", instant{}), "", instant{})
		revokes, start := m.startRefresh(at(13 * time.Minute))
		require.True(t, start)
		assert.Equal(t, want, revokes)
		m.endRefresh()
		m.take(nil, at(13*time.Minute))
	}
}

func TestObtain(t *testing.T) {
	t.Parallel()
	now := at(13 * time.Minute)
	for name, c := range map[string]struct {
		next   *held
		dead   string
		former []string // afterwards
	}{
		"of a refresh grant":                   {holding("a2", "r2", now), "refresh", []string{"access"}},
		"of client credentials":                {holding("a2", "r2", now), "", []string{"refresh", "access"}},
		"of a server without refresh tokens":   {holding("a2", "", now), "", []string{"refresh", "access"}},
		"of a refresh grant that rotates none": {holding("a2", "refresh", now), "refresh", []string{"access"}},
		"the same one once more":               {holding("access", "refresh", now), "refresh", []string{}},
		"the same one, another refresh token":  {holding("access", "r2", now), "refresh", []string{}},
	} {
		m := memoryWith()
		m.fail(errTest, true, now, pausing(time.Second))
		require.True(t, m.obtain(c.next, c.dead, now), name)
		assert.Same(t, c.next, m.load().held, name)
		assert.Nil(t, m.load().cooling, name)
		assert.Equal(t, c.former, formerTokens(m), name)
	}
}

func TestObtainTakesATokenFromThePastIntoHandAgain(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	m.obtain(holding("a2", "r2", instant{}), "", instant{})
	require.Equal(t, []string{"refresh", "access"}, formerTokens(m))
	require.True(t, m.obtain(holding("access", "refresh", instant{}), "", instant{}))
	assert.Equal(t, []string{"r2", "a2"}, formerTokens(m), "what is in hand is not a former token")
}

// The lock's holder keeps the refresh token of the entry before it sends it.
func TestRefreshTokenThatWasUsedUpIsForgotten(t *testing.T) {
	t.Parallel()
	for name, take := range map[string]func(m *memory, h *held, dead string, now instant) bool{"obtain": (*memory).obtain, "adopt": (*memory).adopt} {
		m := memoryWith()
		m.keep("sent", instant{})
		require.True(t, take(m, holding("a2", "r2", at(time.Minute)), "sent", at(time.Minute)), name)
		assert.Equal(t, []string{"refresh", "access"}, formerTokens(m), name)
	}
}

func TestObtainTakesNothingThatIsGone(t *testing.T) {
	t.Parallel()
	for name, retire := range map[string]func(m *memory){
		"invalidated": func(m *memory) { m.invalidate("access", at(1)) },
		"revoked":     func(m *memory) { m.take(nil, at(1)) },
	} {
		m := memoryWith()
		retire(m)
		before := m.load()
		assert.False(t, m.obtain(holding("access", "r2", at(2)), "refresh", at(2)), name)
		assert.Equal(t, *before, *m.load(), name)
	}
}

func TestAdopt(t *testing.T) {
	t.Parallel()
	now := at(time.Minute)
	later := func(d time.Duration) instant { return now.add(d) }
	for name, c := range map[string]struct {
		before func(m *memory)
		next   *held
		taken  bool
	}{
		"the first":           {func(m *memory) { m.current.Store(nil) }, holding("a2", "r2", now), true},
		"lasts longer":        {func(*memory) {}, holding("a2", "r2", now), true},
		"lasts as long":       {func(*memory) {}, holding("a2", "r2", instant{}), false},
		"lasts less":          {func(*memory) {}, holding("a2", "r2", at(-time.Minute)), false},
		"is in hand":          {func(*memory) {}, holding("access", "r2", now), false},
		"has expired":         {func(m *memory) { m.current.Store(nil) }, holding("a2", "r2", later(-14*time.Minute)), false},
		"instead of none":     {func(m *memory) { m.invalidate("access", now) }, holding("a2", "r2", at(-time.Minute)), true},
		"was invalidated":     {func(m *memory) { m.invalidate("access", now) }, holding("access", "refresh", now), false},
		"was revoked":         {func(m *memory) { m.take(nil, now) }, holding("access", "refresh", now), false},
		"was in hand before":  {func(m *memory) { m.obtain(holding("a3", "r3", instant{}), "", now) }, holding("access", "refresh", now), false},
		"came too late":       {func(m *memory) { m.late(&oauth2.Token{AccessToken: "a2"}, now) }, holding("a2", "r2", now), false},
		"only its refresh is": {func(m *memory) { m.late(&oauth2.Token{RefreshToken: "r2"}, now) }, holding("a2", "r2", now), true},
	} {
		m := memoryWith()
		c.before(m)
		m.fail(errTest, false, now, pausing(time.Second))
		before := m.load()
		assert.Equal(t, c.taken, m.adopt(c.next, "", now), name)
		if !c.taken {
			assert.Same(t, before.held, m.load().held, name)
			assert.Same(t, before.cooling, m.load().cooling, name)
			continue
		}
		assert.Same(t, c.next, m.load().held, name)
		assert.Nil(t, m.load().cooling, name)
		assert.NotContains(t, formerTokens(m), "a2", name)
		assert.NotContains(t, formerTokens(m), "r2", name)
	}

	m := memoryWith()
	require.True(t, m.adopt(holding("a2", "r2", now), "refresh", now))
	assert.Equal(t, []string{"access"}, formerTokens(m), "the refresh token that was used up for it is dead")
}

func TestExpiredTokenInHandIsReplacedByACachedOneThatIsGood(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	now := at(14 * time.Minute)
	next := holding("a2", "r2", at(13*time.Minute))
	next.expireAt.wall = now.wall + 1 // the clocks of the two differ
	require.True(t, m.adopt(next, "", now))
	assert.Equal(t, []string{"refresh", "access"}, formerTokens(m), "the old one may be alive for a minute")
}

func TestSetAside(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		refresh string
		dead    bool
		inHand  string
		former  []string
	}{
		"in hand":            {"refresh", false, "", []string{"older", "refresh"}},
		"in hand, dead":      {"refresh", true, "", []string{"older"}},
		"another":            {"another", false, "refresh", []string{"older", "another"}},
		"another, dead":      {"another", true, "refresh", []string{"older"}},
		"a former one":       {"older", false, "refresh", []string{"older"}},
		"a former one, dead": {"older", true, "refresh", []string{}},
	} {
		m := memoryWith()
		m.keep("older", instant{})
		m.setAside(c.refresh, c.dead, at(1))
		h := m.load().held
		assert.Equal(t, c.inHand, h.token.RefreshToken, name)
		assert.Equal(t, c.inHand != "", h.sendable, name)
		assert.Equal(t, "access", h.token.AccessToken, name)
		assert.Equal(t, 14*time.Minute-1, m.load().good(at(1)), name)
		assert.Equal(t, c.former, formerTokens(m), name)
	}
	m := new(memory)
	m.setAside("refresh", false, instant{})
	assert.Equal(t, []string{"refresh"}, formerTokens(m), "there is nothing in hand")
}

func TestKeep(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	m.keep("refresh", instant{})
	assert.Empty(t, formerTokens(m), "it is in hand")
	m.keep("a", instant{})
	m.keep("b", instant{})
	m.keep("a", instant{})
	m.keep("", instant{})
	assert.Equal(t, []string{"b", "a"}, formerTokens(m), "each once")
}

func TestMarkIsOfOneRefreshToken(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	before := m.load().held
	m.mark("another", false)
	assert.True(t, m.load().held.sendable)
	m.mark("refresh", false)
	assert.False(t, m.load().held.sendable)
	assert.True(t, before.sendable, "what was published does not change")
	assert.Equal(t, before.token, m.load().held.token)
	m.mark("refresh", true)
	assert.True(t, m.load().held.sendable)
	new(memory).mark("refresh", true)
}

func TestLateTokensAreRememberedForRevokeAlone(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	m.late(&oauth2.Token{AccessToken: "a2", RefreshToken: "r2"}, instant{})
	m.late(&oauth2.Token{AccessToken: "a3"}, instant{})
	assert.Equal(t, []string{"r2", "a2", "a3"}, formerTokens(m))
	assert.Equal(t, "access", m.load().held.token.AccessToken)
	assert.Equal(t, []former{
		{"refresh", RefreshToken, never}, {"r2", RefreshToken, never},
		{"a2", AccessToken, never}, {"a3", AccessToken, never},
	}, m.take(nil, at(15*time.Minute)), "nobody knows when they expire")
}

// A server that hands out the same useless tokens again and again must not push
// out those that may be alive.
func TestFormerTokenTakesOnePlace(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	m.keep("older", instant{})
	for range 20 {
		m.late(&oauth2.Token{AccessToken: "a2", RefreshToken: "r2"}, instant{})
		m.setAside("r3", false, instant{})
		m.keep("r4", instant{})
	}
	assert.Equal(t, []string{"older", "r2", "a2", "r3", "r4"}, formerTokens(m))
}

func TestFail(t *testing.T) {
	t.Parallel()
	now := at(13 * time.Minute) // the token is good for another minute
	for name, c := range map[string]struct {
		memory     *memory
		background bool
		pause      time.Duration
		good       time.Duration // as wait is told
		until      time.Duration // from now
		blocked    bool          // callers without a token
	}{
		"no token":                                 {new(memory), false, time.Hour, 0, time.Hour, true},
		"no token, no pause":                       {new(memory), false, 0, 0, 0, false},
		"a good token":                             {memoryWith(), false, time.Second, time.Minute, time.Second, true},
		"a good token, a long pause":               {memoryWith(), false, time.Hour, time.Minute, time.Minute, true},
		"a good token, background":                 {memoryWith(), true, time.Second, time.Minute, time.Second, false},
		"a good token, background, a long pause":   {memoryWith(), true, time.Hour, time.Minute, time.Minute, false},
		"a token that was invalidated, background": {func() *memory { m := memoryWith(); m.invalidate("access", now); return m }(), true, time.Hour, 0, time.Hour, false},
	} {
		for n := 1; n <= 3; n++ {
			got := c.memory.fail(errTest, c.background, now, func(failures int, good time.Duration) time.Duration {
				assert.Equal(t, n, failures, name)
				assert.Equal(t, c.good, good, name)
				return c.pause
			})
			assert.Equal(t, coolOff{now.add(c.until), n, errTest, c.background}, *got, name)
			assert.Same(t, got, c.memory.load().cooling, name)
			if c.blocked {
				assert.Same(t, got, c.memory.load().blocked(now), name)
				assert.Same(t, got, c.memory.load().blocked(got.until.add(-1)), name)
			}
			assert.Nil(t, c.memory.load().blocked(got.until), name)
			if c.background {
				assert.Nil(t, c.memory.load().blocked(now), name)
			}
		}
	}
}

func TestEitherClockEndsACoolDown(t *testing.T) {
	t.Parallel()
	m := new(memory)
	m.fail(errTest, false, instant{}, pausing(time.Second))
	assert.NotNil(t, m.load().blocked(at(time.Second-1)))
	assert.Nil(t, m.load().blocked(instant{wall: int64(time.Second)}))
	assert.Nil(t, m.load().blocked(instant{monotonic: int64(time.Second)}))
}

// An invalidation ends a cool-down, also one that is being recorded: whichever
// of the two comes first, nobody is kept from a request afterwards.
func TestInvalidationAndFailureInEitherOrder(t *testing.T) {
	t.Parallel()
	now := at(13 * time.Minute)
	invalidate := func(m *memory) { require.True(t, m.invalidate("access", now)) }
	for name, order := range map[string]func(m *memory){
		"background failure first": func(m *memory) { m.fail(errTest, true, now, pausing(time.Hour)); invalidate(m) },
		"invalidation first":       func(m *memory) { invalidate(m); m.fail(errTest, true, now, pausing(time.Hour)) },
		"in between": func(m *memory) {
			var over sync.WaitGroup
			m.fail(errTest, true, now, func(int, time.Duration) time.Duration {
				over.Go(func() { invalidate(m) })
				yieldALot()
				return time.Hour
			})
			over.Wait()
		},
		"failure of a flight with callers first": func(m *memory) { m.fail(errTest, false, now, pausing(time.Hour)); invalidate(m) },
	} {
		m := memoryWith()
		order(m)
		assert.Nil(t, m.load().blocked(now), name)
		assert.Equal(t, 1, m.load().cooling.failures, "%s: they are counted on", name)
		assert.Equal(t, errTest, m.load().cooling.err, name)
	}
}

func TestInvalidate(t *testing.T) {
	t.Parallel()
	now := at(time.Minute)
	for name, c := range map[string]struct {
		before  func(m *memory)
		access  string
		now     instant
		dropped bool
	}{
		"the one in hand":     {func(*memory) {}, "access", now, true},
		"a stale one":         {func(*memory) {}, "access", at(13 * time.Minute), true},
		"another":             {func(*memory) {}, "another", now, false},
		"the refresh token":   {func(*memory) {}, "refresh", now, false},
		"nothing":             {func(*memory) {}, "", now, false},
		"one that expired":    {func(*memory) {}, "access", at(14 * time.Minute), false},
		"it a second time":    {func(m *memory) { m.invalidate("access", now) }, "access", now, false},
		"nothing a 2nd time":  {func(m *memory) { m.invalidate("access", now) }, "", now, false},
		"what was revoked":    {func(m *memory) { m.take(nil, now) }, "access", now, false},
		"with nothing at all": {func(m *memory) { m.current.Store(nil) }, "", now, false},
	} {
		m := memoryWith()
		c.before(m)
		m.fail(errTest, false, c.now, pausing(time.Second))
		before := m.load()
		assert.Equal(t, c.dropped, m.invalidate(c.access, c.now), name)
		if !c.dropped {
			assert.Equal(t, *before, *m.load(), name)
			assert.NotNil(t, m.load().blocked(c.now), "%s: the cool-down lasts", name)
			continue
		}
		assert.Nil(t, m.load().blocked(c.now), "%s: the cool-down has ended", name)
		assert.Zero(t, m.load().good(c.now), name)
		assert.Equal(t, "refresh", m.load().held.token.RefreshToken, name)
		assert.True(t, m.load().held.sendable, name)
		assert.True(t, m.gone("access"), name)
		assert.Equal(t, []former{{"access", AccessToken, at(15 * time.Minute)}}, m.past().former, name)
	}
	m := memoryWith()
	m.mark("refresh", false)
	m.invalidate("access", now)
	assert.False(t, m.load().held.sendable, "what was sent stays sent")
}

// refuse invalidates a token that was obtained at since, and returns how long
// the next request has to wait.
func refuse(m *memory, n int, since, now instant) time.Duration {
	access := fmt.Sprint("access-", n)
	m.obtain(holding(access, "refresh", since), "", since)
	m.invalidate(access, now)
	return m.load().waitUntil.after(now)
}

func TestRequestsAfterInvalidationsComeFurtherApart(t *testing.T) {
	t.Parallel()
	m, now := new(memory), instant{}
	for n, want := range []time.Duration{0, 1, 2, 4, 8, 16, 30, 30, 30} {
		want *= time.Second
		assert.Equal(t, want, refuse(m, n, now, now), n)
		assert.Equal(t, n+1, m.load().refusals)
		now = now.add(want)
	}

	lasted := now.add(30 * time.Second) // the current interval
	assert.Equal(t, time.Duration(1), refuse(m, 100, now, lasted.add(-1)), "it counts from when the token was taken")
	now = lasted
	assert.Zero(t, refuse(m, 101, now, now.add(30*time.Second)))
	now = now.add(30 * time.Second)
	assert.Equal(t, time.Second, refuse(m, 102, now, now), "back at one second")
}

func TestWhatEndsTheWaitAfterInvalidations(t *testing.T) {
	t.Parallel()
	three := func() *memory {
		m := new(memory)
		for n := range 3 {
			refuse(m, n, instant{}, instant{})
		}
		require.Equal(t, 2*time.Second, m.load().waitUntil.after(instant{}))
		return m
	}
	m := three()
	m.obtain(holding("access", "refresh", instant{}), "", instant{})
	m.take(nil, instant{})
	assert.Zero(t, m.load().waitUntil, "Revoke")
	assert.Zero(t, m.load().refusals)

	m = three()
	m.obtain(holding("access", "refresh", instant{}), "", instant{})
	assert.Equal(t, 3, m.load().refusals, "not a new token as such")

	m = three()
	m.obtain(holding("access", "refresh", instant{}), "", instant{})
	require.True(t, func() bool { _, start := m.startRefresh(at(13 * time.Minute)); return start }())
	m.invalidate("access", at(13*time.Minute))
	assert.Equal(t, 3, m.load().refusals, "an invalidation during a refresh does not count: that is the request which follows")
}

func TestTake(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	m.obtain(holding("a2", "r2", at(13*time.Minute)), "", at(13*time.Minute))
	m.late(&oauth2.Token{AccessToken: "a3", RefreshToken: "r3"}, at(13*time.Minute))
	more := []former{{"cached-r", RefreshToken, never}, {"a2", AccessToken, never}, {"", RefreshToken, never}}
	want := []former{
		{"cached-r", RefreshToken, never}, {"r2", RefreshToken, never}, {"refresh", RefreshToken, never}, {"r3", RefreshToken, never},
		{"a2", AccessToken, never}, {"access", AccessToken, at(15 * time.Minute)}, {"a3", AccessToken, never},
	}
	assert.Equal(t, want, m.take(more, at(14*time.Minute)), "refresh tokens first, each once")
	assert.Nil(t, m.load().held)
	assert.Equal(t, 1, m.load().revokes)
	for _, f := range want {
		assert.True(t, m.gone(f.token), f.token)
	}

	m.revoked("r2")
	m.revoked("a2")
	m.revoked("unknown")
	assert.Equal(t, []string{"refresh", "r3", "cached-r", "access", "a3"}, tokensOf(m.take(nil, at(14*time.Minute))), "what is not revoked stays known")
	assert.Equal(t, []string{"refresh", "r3", "cached-r", "a3"}, tokensOf(m.take(nil, at(15*time.Minute))), "while it may be alive")
	assert.Equal(t, 3, m.load().revokes)
}

func tokensOf(formers []former) (texts []string) {
	for _, f := range formers {
		texts = append(texts, f.token)
	}
	return texts
}

func TestTakeKeepsMoreThanTheLimitUntilTheyAreRevoked(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	var more []former
	for i := range 20 {
		more = append(more, former{fmt.Sprint("token-", i), RefreshToken, never})
	}
	require.Len(t, m.take(more, instant{}), 22)
	assert.Len(t, m.take(nil, instant{}), 22)
}

func TestTakeEndsACoolDownIfItTakesAGoodToken(t *testing.T) {
	t.Parallel()
	now := at(13 * time.Minute)
	for name, c := range map[string]struct {
		memory     *memory
		background bool
		now        instant
		ended      bool
	}{
		"a good token":                {memoryWith(), false, now, true},
		"a good token, background":    {memoryWith(), true, now, true},
		"an expired one":              {memoryWith(), false, at(14 * time.Minute), false},
		"an expired one, background":  {memoryWith(), true, at(14 * time.Minute), true},
		"none":                        {new(memory), false, now, false},
		"a refresh token alone":       {func() *memory { m := memoryWith(); m.invalidate("access", now); return m }(), false, now, false},
		"a refresh token, background": {func() *memory { m := memoryWith(); m.invalidate("access", now); return m }(), true, now, true},
	} {
		c.memory.fail(errTest, c.background, c.now, pausing(30*time.Second))
		c.memory.take(nil, c.now)
		assert.Equal(t, c.ended, c.now.reached(c.memory.load().cooling.until), name)
		assert.Equal(t, 1, c.memory.load().cooling.failures, name)
	}
}

// SECURITY.md promises sixteen.
func TestSixteenFormerTokensAreRemembered(t *testing.T) {
	t.Parallel()
	m := new(memory)
	for i := range 20 {
		m.keep(fmt.Sprint("token-", i), instant{})
	}
	want := []string{}
	for i := 4; i < 20; i++ {
		want = append(want, fmt.Sprint("token-", i))
	}
	require.Len(t, want, 16)
	assert.Equal(t, want, formerTokens(m), "the last ones")
}

func TestDeadTokensMakeRoomForThoseThatMayBeAlive(t *testing.T) {
	t.Parallel()
	m := new(memory)
	for i := range 16 {
		m.keep(fmt.Sprint("refresh-", i), instant{})
	}
	for i := range 100 { // each dead before the next comes
		now := at(time.Duration(i) * time.Hour)
		m.obtain(holding(fmt.Sprint("access-", i), "in hand", now), "", now)
	}
	assert.Contains(t, formerTokens(m), "refresh-1")
	assert.Contains(t, formerTokens(m), "refresh-15")
}

func TestFormerTokenIsDeadIfBothClocksSaySo(t *testing.T) {
	t.Parallel()
	f := former{"access", AccessToken, at(time.Minute)}
	assert.True(t, f.alive(at(time.Minute-1)))
	assert.False(t, f.alive(at(time.Minute)))
	assert.True(t, f.alive(instant{wall: int64(time.Hour)}))
	assert.True(t, f.alive(instant{monotonic: int64(time.Hour)}))
	assert.True(t, former{endAt: never}.alive(at(100*365*24*time.Hour)))
}

// SECURITY.md promises a thousand.
func TestThousandTokensAreNeverTakenAgain(t *testing.T) {
	t.Parallel()
	m := new(memory)
	for i := range 1001 {
		m.take([]former{{fmt.Sprint("token-", i), AccessToken, never}}, instant{})
		m.revoked(fmt.Sprint("token-", i))
		m.take([]former{{fmt.Sprint("token-", i), AccessToken, never}}, instant{}) // takes no second place
		m.revoked(fmt.Sprint("token-", i))
	}
	for i := 1; i < 1001; i++ {
		require.True(t, m.gone(fmt.Sprint("token-", i)), i)
	}
	assert.False(t, m.gone("token-0"))
	assert.Len(t, m.past().retired, 1000)
	assert.LessOrEqual(t, cap(m.past().retired), 2048, "they take no more memory with time")
}

func TestSameWarningIsNewOnce(t *testing.T) {
	t.Parallel()
	m := new(memory)
	for i, c := range []struct {
		matter int
		what   string
		first  bool
	}{
		{aboutScopes, "", false},
		{aboutScopes, "a", true},
		{aboutScopes, "a", false},
		{aboutLifetime, "a", true}, // another matter
		{aboutScopes, "b", true},
		{aboutScopes, "a", true},
		{aboutScopes, "", false}, // all is well again
		{aboutScopes, "a", true},
		{aboutLifetime, "a", false},
	} {
		assert.Equal(t, c.first, m.first(c.matter, c.what), i)
	}
}

// yieldALot gives other goroutines the chance to do what they can do now.
func yieldALot() {
	for range 1_000 {
		runtime.Gosched()
	}
}

// writers are the methods of memory that change it.
var writers = map[string]func(m *memory){
	"startRefresh": func(m *memory) { m.startRefresh(at(13 * time.Minute)) },
	"endRefresh":   func(m *memory) { m.endRefresh() },
	"obtain":       func(m *memory) { m.obtain(holding("a2", "r2", instant{}), "", instant{}) },
	"adopt":        func(m *memory) { m.adopt(holding("a2", "r2", instant{}), "", instant{}) },
	"setAside":     func(m *memory) { m.setAside("refresh", false, instant{}) },
	"keep":         func(m *memory) { m.keep("another", instant{}) },
	"mark":         func(m *memory) { m.mark("refresh", false) },
	"late":         func(m *memory) { m.late(&oauth2.Token{AccessToken: "a2"}, instant{}) },
	"fail":         func(m *memory) { m.fail(errTest, true, instant{}, pausing(0)) },
	"invalidate":   func(m *memory) { m.invalidate("access", instant{}) },
	"take":         func(m *memory) { m.take(nil, instant{}) },
	"revoked":      func(m *memory) { m.revoked("another") },
	"first":        func(m *memory) { m.first(aboutScopes, "a") },
	"gone":         func(m *memory) { m.gone("access") }, // it reads what is not in the snapshot
}

func TestMemoryIsOnlyWrittenUnderItsLock(t *testing.T) {
	t.Parallel()
	for name, write := range writers {
		m := memoryWith()
		done := make(chan struct{})
		m.mu.Lock()
		before := m.load()
		go func() { write(m); close(done) }()
		yieldALot()
		select {
		case <-done:
			assert.Fail(t, "it did not wait for the lock", name)
		default:
		}
		assert.Same(t, before, m.load(), name)
		m.mu.Unlock()
		<-done
	}
}

func TestNoUpdateIsLost(t *testing.T) {
	t.Parallel()
	const goroutines, each = 8, 50
	m := memoryWith()
	var all sync.WaitGroup
	var started int // guarded by m's lock, or by nothing
	for i := range goroutines {
		all.Go(func() {
			for range each {
				m.fail(errTest, true, instant{}, func(int, time.Duration) time.Duration {
					n := started
					runtime.Gosched() // others would come in here
					started = n + 1
					return 0
				})
				m.take([]former{{fmt.Sprint("token-", i), AccessToken, never}}, instant{})
			}
		})
	}
	all.Wait()
	assert.Equal(t, goroutines*each, m.load().cooling.failures)
	assert.Equal(t, goroutines*each, started)
	assert.Equal(t, goroutines*each, m.load().revokes)
}

func TestOneOfManyStartsTheRefresh(t *testing.T) {
	t.Parallel()
	for range 100 {
		m := memoryWith()
		var all sync.WaitGroup
		starts := make(chan struct{}, 8)
		for range cap(starts) {
			all.Go(func() {
				if _, start := m.startRefresh(at(13 * time.Minute)); start {
					starts <- struct{}{}
				}
			})
		}
		all.Wait()
		require.Len(t, starts, 1)
	}
}

// Every call of Token with a stale token comes by: it must not wait for others.
func TestReadersNeedNoLock(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	m.startRefresh(at(13 * time.Minute))
	done := make(chan struct{})
	m.mu.Lock()
	defer m.mu.Unlock()
	go func() {
		defer close(done)
		s := m.load()
		s.good(instant{})
		s.stale(instant{})
		s.blocked(instant{})
		_, start := m.startRefresh(at(13 * time.Minute)) // one is under way
		assert.False(t, start)
		_, start = m.startRefresh(instant{}) // it is fresh
		assert.False(t, start)
		assert.False(t, m.invalidate("another", instant{}))
	}()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		assert.Fail(t, "a reader waits for the lock")
	}
}

func TestPublishedSnapshotsDoNotChange(t *testing.T) {
	t.Parallel()
	for name, write := range writers {
		m := memoryWith()
		m.fail(errTest, true, instant{}, pausing(time.Hour))
		published := m.load()
		snapshotBefore, heldBefore, coolingBefore := *published, *published.held, *published.cooling
		write(m)
		assert.Equal(t, snapshotBefore, *published, name)
		assert.Equal(t, heldBefore, *published.held, name)
		assert.Equal(t, coolingBefore, *published.cooling, name)
	}
	assert.Equal(t, snapshot{}, blank)
}

// A source has no Format method: what it holds stands behind pointers, which
// package fmt does not follow.
func TestNoVerbPrintsASecretOfASource(t *testing.T) {
	t.Parallel()
	const clientID, clientSecret = "public-key-of-test", "secret-key-of-test"
	s, err := NewTokenSource(Credentials{clientID, clientSecret}, WithScopes(pingScope), WithCache(new(memoryCache)),
		WithToken(&oauth2.Token{AccessToken: "first-access", RefreshToken: "first-refresh", Expiry: time.Now().Add(time.Hour)}))
	require.NoError(t, err)
	now := s.endpoint.clock()
	s.memory.obtain(s.endpoint.newHeld(oauth2.Token{AccessToken: "second-access", RefreshToken: "second-refresh"}, now, time.Hour), "", now)
	s.memory.late(&oauth2.Token{AccessToken: "third-access", RefreshToken: "third-refresh"}, now)
	s.memory.fail(errTest, true, now, pausing(time.Second))
	s.running.Store(&grant{endpoint: s.endpoint, memory: s.memory, cache: s.store.visit()})
	require.Len(t, formerTokens(s.memory), 4)
	secrets := []string{clientSecret, "first-access", "first-refresh", "second-access", "second-refresh", "third-access", "third-refresh"}

	type box struct {
		Source  *TokenSource
		value   any
		Nested  struct{ Deep []*TokenSource }
		private *TokenSource
	}
	boxed := box{Source: s, value: s, private: s}
	boxed.Nested.Deep = []*TokenSource{s}
	pointer := &s
	bare := reflect.ValueOf(s).Elem() // the struct itself, which vet lets nobody copy
	shapes := map[string]any{
		"pointer":             s,
		"value":               bare,
		"pointer to pointer":  pointer,
		"in a struct":         boxed,
		"in a pointed struct": &boxed,
		"in a slice":          []*TokenSource{s},
		"in a pointed slice":  &[]any{s},
		"in an array":         [1]oauth2.TokenSource{s},
		"as a map's value":    map[string]*TokenSource{"key": s},
		"as a map's key":      map[*TokenSource]bool{s: true},
		"value in an array":   structOf(bare),
		"transport":           &Transport{Source: s},
		"client":              s.Client(),
		"the client's pieces": *s.Client(),
		"reuse":               oauth2.ReuseTokenSource(nil, s),
	}
	var spellings []string
	for _, secret := range secrets {
		for _, spelling := range []string{secret, fmt.Sprintf("%x", secret), fmt.Sprintf("%X", secret), fmt.Sprintf("% x", secret), fmt.Sprint([]byte(secret))} {
			spellings = append(spellings, strings.Trim(spelling, "[]"))
		}
	}
	for name, v := range shapes {
		for _, verb := range "vTtbcdoOqxXUeEfFgGsp" {
			for _, flags := range []string{"", "+", "#", "-", " ", "0", "+#", "# ", "200", ".200"} {
				format := "%" + flags + string(verb)
				text := fmt.Sprintf(format, v)
				for _, spelling := range spellings {
					if strings.Contains(text, spelling) {
						require.Fail(t, "a secret is printed", "%s, %s: %s", name, format, text)
					}
				}
			}
		}
	}
}

// structOf is a struct that has bare in a field.
func structOf(bare reflect.Value) any {
	outer := reflect.New(reflect.StructOf([]reflect.StructField{{Name: "Source", Type: bare.Type()}})).Elem()
	outer.Field(0).Set(bare)
	return outer.Interface()
}

func TestOldestFormerTokensAreForgottenFirstAlsoAfterTake(t *testing.T) {
	t.Parallel()
	m := memoryWith()
	for i := range maxFormer - 2 {
		m.keep(fmt.Sprint("former-", i), instant{})
	}
	m.take(nil, instant{}) // none is revoked
	m.late(&oauth2.Token{AccessToken: "a2", RefreshToken: "r2"}, instant{})
	assert.NotContains(t, formerTokens(m), "former-0")
	assert.NotContains(t, formerTokens(m), "former-1")
	assert.Contains(t, formerTokens(m), "refresh", "it was in hand")
}
