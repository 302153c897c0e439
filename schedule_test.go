package moovauth

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestInstants(t *testing.T) {
	t.Parallel()
	moment := instant{wall: 100, monotonic: 10}
	assert.Equal(t, instant{105, 15}, moment.add(5))
	assert.Equal(t, instant{95, 5}, moment.add(-5))
	assert.Equal(t, time.Unix(0, 100), moment.time())
	for _, c := range []struct {
		now     instant
		reached bool
		passed  bool
		left    time.Duration // from now to moment
	}{
		{instant{100, 10}, true, true, 0},
		{instant{99, 9}, false, false, 1},
		{instant{100, 0}, true, false, 0}, // the machine was suspended
		{instant{0, 10}, true, false, 0},  // the wall clock was set back
		{instant{90, 3}, false, false, 7}, // the monotonic clock reaches moment first
		{instant{98, 3}, false, false, 2}, // the wall clock reaches moment first
		{instant{200, 20}, true, true, 0}, // the time left is never negative
		{instant{200, 3}, true, false, 0},
		{instant{90, 20}, true, false, 0},
	} {
		assert.Equal(t, c.reached, c.now.reached(moment), c.now)
		assert.Equal(t, c.passed, c.now.passed(moment), c.now)
		assert.Equal(t, c.left, c.now.until(moment), c.now)
	}
}

func TestClockReadsBothClocks(t *testing.T) {
	t.Parallel()
	before, since := time.Now(), time.Since(started)
	now := clock()
	assert.GreaterOrEqual(t, now.wall, before.UnixNano())
	assert.LessOrEqual(t, now.wall, time.Now().UnixNano())
	assert.GreaterOrEqual(t, now.monotonic, int64(since))
	assert.LessOrEqual(t, now.monotonic, int64(time.Since(started)))
	assert.False(t, now.add(100*365*24*time.Hour).reached(never))
}

func TestPhases(t *testing.T) {
	t.Parallel()
	const auto = -1
	for _, c := range []struct {
		life, early   time.Duration
		random        float64
		fresh, usable time.Duration
	}{
		// The early refresh is a fifth of the lifetime, minus up to a tenth of
		// that.
		{15 * time.Minute, auto, 0, 15*time.Minute - 5*time.Second - 3*time.Minute, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, auto, 1, 15*time.Minute - 5*time.Second - 162*time.Second, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, auto, .5, 15*time.Minute - 5*time.Second - 171*time.Second, 15*time.Minute - 5*time.Second},
		// It is 5 minutes at most.
		{25 * time.Minute, auto, 0, 20*time.Minute - 5*time.Second, 25*time.Minute - 5*time.Second},
		{24 * time.Hour, auto, 0, 24*time.Hour - 5*time.Minute - 5*time.Second, 24*time.Hour - 5*time.Second},
		// A short-lived token expires a tenth of its lifetime early.
		{50 * time.Second, auto, 0, 35 * time.Second, 45 * time.Second},
		{40 * time.Second, auto, 0, 28 * time.Second, 36 * time.Second},
		{10 * time.Second, auto, 0, 7 * time.Second, 9 * time.Second},
		{0, auto, 0, 0, 0},
		// WithEarlyRefresh replaces the default.
		{15 * time.Minute, time.Minute, 0, 14*time.Minute - 5*time.Second, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, time.Minute, 1, 14*time.Minute + time.Second, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, 0, 1, 15*time.Minute - 5*time.Second, 15*time.Minute - 5*time.Second},
		{time.Hour, 30 * time.Minute, 0, 30*time.Minute - 5*time.Second, time.Hour - 5*time.Second},
		// It is four fifths of the usable time at most.
		{10 * time.Second, time.Hour, 0, 1800 * time.Millisecond, 9 * time.Second},
	} {
		fresh, usable := phases(c.life, c.early, c.random)
		assert.Equal(t, c.fresh, fresh, c)
		assert.Equal(t, c.usable, usable, c)
	}
}

// The ReuseTokenSource of x/oauth2 calls Token in the last 10 s before the
// expiry. If the hard expiry were earlier, that call would have to wait.
func TestTokenEndsWithinTheMarginOfReuseTokenSource(t *testing.T) {
	t.Parallel()
	for life := time.Second; life < maxLifetime; life = life * 3 / 2 {
		_, usable := phases(life, -1, 0)
		assert.Less(t, life-usable, 10*time.Second, life)
	}
}

func TestBackOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		n      int
		random float64
		want   time.Duration
	}{
		{1, 0, 0},
		{1, 1, 200 * time.Millisecond},
		{2, 0, 0},
		{2, .5, 200 * time.Millisecond},
		{2, 1, 400 * time.Millisecond},
	} {
		assert.Equal(t, c.want, backOff(c.n, c.random), c)
	}
}

func TestCoolDownDoublesUpToItsMaximum(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{
		1: 250 * time.Millisecond, 2: 500 * time.Millisecond, 3: time.Second, 7: 16 * time.Second,
		8: 30 * time.Second, 9: 30 * time.Second, 40: 30 * time.Second, math.MaxInt: 30 * time.Second,
	} {
		assert.Equal(t, want, coolDownAfter(failures, maxCoolDown, 0), failures)
		assert.Equal(t, want/2, coolDownAfter(failures, maxCoolDown, 1), "%d: half of it is jitter", failures)
		assert.Equal(t, want*3/4, coolDownAfter(failures, maxCoolDown, .5), failures)
	}
	for failures, want := range map[int]time.Duration{8: 32 * time.Second, 11: 256 * time.Second, 12: 5 * time.Minute, math.MaxInt: 5 * time.Minute} {
		assert.Equal(t, want, coolDownAfter(failures, maxScopesDown, 0), failures)
	}
}

func TestRetryAfterIsSpread(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		asked  time.Duration
		random float64
		want   time.Duration
	}{
		{0, 1, 0},
		{-time.Second, 1, 0},
		{30 * time.Second, 0, 30 * time.Second},
		{30 * time.Second, .5, 33750 * time.Millisecond},
		{30 * time.Second, 1, 37500 * time.Millisecond},
		{time.Hour, 1, 75 * time.Minute},
		{24 * time.Hour, 0, time.Hour},
		{1<<63 - 1, 1, 75 * time.Minute},
	} {
		assert.Equal(t, c.want, spread(c.asked, c.random), c)
	}
}

func TestPauseBetweenInvalidationsDoublesToThirtySeconds(t *testing.T) {
	t.Parallel()
	var pause time.Duration
	for _, want := range []time.Duration{1, 2, 4, 8, 16, 30, 30, 30} {
		pause = nextPause(pause)
		assert.Equal(t, want*time.Second, pause)
	}
}

func TestReusedConnectionHasASixthOfTheTime(t *testing.T) {
	t.Parallel()
	for left, want := range map[time.Duration]time.Duration{
		time.Minute: 10 * time.Second, 30 * time.Second: 5 * time.Second, 12 * time.Second: 2 * time.Second,
		5 * time.Second: 2 * time.Second, -time.Second: 2 * time.Second,
	} {
		assert.Equal(t, want, giveUpAfter(left), left)
	}
}

// The documentation states these limits.
func TestLimitsThatAreDocumented(t *testing.T) {
	t.Parallel()
	assert.Equal(t, 5*time.Minute, assumedLifetime)
	assert.Equal(t, 30*24*time.Hour, maxLifetime)
	assert.Equal(t, time.Minute, maxSkew)
	assert.Equal(t, 16, maxFormer)
	assert.Equal(t, 3, maxAttempts)
	assert.Equal(t, 1<<20, maxBody)
}
