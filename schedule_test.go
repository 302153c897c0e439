package moovauth

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

func TestInstants(t *testing.T) {
	t.Parallel()
	a := instant{wall: 100, monotonic: 10}
	assert.Equal(t, instant{105, 15}, a.add(5))
	assert.Equal(t, instant{95, 5}, a.add(-5))
	assert.Equal(t, time.Unix(0, 100), a.time())
	for _, c := range []struct {
		now     instant
		reached bool
		left    time.Duration // from now to a
	}{
		{instant{100, 10}, true, 0},
		{instant{99, 9}, false, 1},
		{instant{100, 0}, true, 0},  // the machine was suspended
		{instant{0, 10}, true, 0},   // the wall clock was set back
		{instant{90, 3}, false, 7},  // the monotonic clock gets there first
		{instant{98, 3}, false, 2},  // the wall clock does
		{instant{200, 20}, true, 0}, // never negative
		{instant{200, 3}, true, 0},
		{instant{90, 20}, true, 0},
	} {
		assert.Equal(t, c.reached, c.now.reached(a), c.now)
		assert.Equal(t, c.left, a.after(c.now), c.now)
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
	assert.Positive(t, never.after(now.add(100*365*24*time.Hour)), "no clock reaches never")
}

func TestPhases(t *testing.T) {
	t.Parallel()
	const auto = -1
	for _, c := range []struct {
		life, early   time.Duration
		random        float64
		fresh, usable time.Duration
	}{
		// A fifth of the lifetime, less up to a tenth of that.
		{15 * time.Minute, auto, 0, 15*time.Minute - 5*time.Second - 3*time.Minute, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, auto, 1, 15*time.Minute - 5*time.Second - 162*time.Second, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, auto, .5, 15*time.Minute - 5*time.Second - 171*time.Second, 15*time.Minute - 5*time.Second},
		// 5 minutes at most.
		{25 * time.Minute, auto, 0, 20*time.Minute - 5*time.Second, 25*time.Minute - 5*time.Second},
		{24 * time.Hour, auto, 0, 24*time.Hour - 5*time.Minute - 5*time.Second, 24*time.Hour - 5*time.Second},
		// The leeway is a tenth of a short life.
		{50 * time.Second, auto, 0, 35 * time.Second, 45 * time.Second},
		{40 * time.Second, auto, 0, 28 * time.Second, 36 * time.Second},
		{10 * time.Second, auto, 0, 7 * time.Second, 9 * time.Second},
		{0, auto, 0, 0, 0},
		// WithEarlyRefresh.
		{15 * time.Minute, time.Minute, 0, 14*time.Minute - 5*time.Second, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, time.Minute, 1, 14*time.Minute + time.Second, 15*time.Minute - 5*time.Second},
		{15 * time.Minute, 0, 1, 15*time.Minute - 5*time.Second, 15*time.Minute - 5*time.Second},
		{time.Hour, 30 * time.Minute, 0, 30*time.Minute - 5*time.Second, time.Hour - 5*time.Second},
		// A fifth of its life at least, a token is fresh.
		{10 * time.Second, time.Hour, 0, 1800 * time.Millisecond, 9 * time.Second},
	} {
		fresh, usable := phases(c.life, c.early, c.random)
		assert.Equal(t, c.fresh, fresh, c)
		assert.Equal(t, c.usable, usable, c)
	}
}

func TestJitter(t *testing.T) {
	t.Parallel()
	assert.Zero(t, jitter(time.Minute, 0))
	assert.Equal(t, 15*time.Second, jitter(time.Minute, .25))
	assert.Less(t, jitter(time.Minute, .999), time.Minute)
}

func TestBackOff(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		n      int
		good   time.Duration
		random float64
		want   time.Duration
	}{
		{1, 0, 0, 0},
		{1, 0, 1, 200 * time.Millisecond},
		{2, 0, 0, 0},
		{2, 0, .5, 200 * time.Millisecond},
		{2, 0, 1, 400 * time.Millisecond},
		// At most half of what the token in hand has left, but 50 ms at least.
		{2, time.Hour, 1, 400 * time.Millisecond},
		{2, 600 * time.Millisecond, 1, 300 * time.Millisecond},
		{2, 80 * time.Millisecond, 1, 50 * time.Millisecond},
		{2, 1, 1, 50 * time.Millisecond},
		{1, time.Second, 0, 0},
	} {
		assert.Equal(t, c.want, backOff(c.n, c.good, c.random), c)
	}
}

func TestCoolDownGrows(t *testing.T) {
	t.Parallel()
	for failures, want := range map[int]time.Duration{
		1: 250 * time.Millisecond, 2: 500 * time.Millisecond, 3: time.Second, 7: 16 * time.Second,
		8: 30 * time.Second, 9: 30 * time.Second, 40: 30 * time.Second, math.MaxInt: 30 * time.Second,
	} {
		assert.Equal(t, want, coolDown(failures, 0, 0), failures)
		assert.Equal(t, want/2, coolDown(failures, 0, 1), "%d: half of it is jitter", failures)
		assert.Equal(t, want*3/4, coolDown(failures, 0, .5), failures)
	}
	for good, want := range map[time.Duration]time.Duration{
		time.Hour: 30 * time.Second, time.Minute: 30 * time.Second, 40 * time.Second: 20 * time.Second,
		200 * time.Millisecond: 100 * time.Millisecond, 60 * time.Millisecond: 50 * time.Millisecond, 1: 50 * time.Millisecond,
	} {
		assert.Equal(t, want, coolDown(20, good, 0), good)
	}
	assert.Equal(t, 250*time.Millisecond, coolDown(1, time.Hour, 0), "a token in hand does not make it longer")
}

func TestSpread(t *testing.T) {
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

func TestInterval(t *testing.T) {
	t.Parallel()
	for refusals, want := range map[int]time.Duration{0: 1, 1: 1, 2: 2, 3: 4, 4: 8, 5: 16, 6: 30, 7: 30, 100: 30, math.MaxInt: 30, -1: 1} {
		assert.Equal(t, want*time.Second, interval(refusals), refusals)
	}
}

func TestShare(t *testing.T) {
	t.Parallel()
	for _, c := range []struct{ timeout, left, want time.Duration }{
		{30 * time.Second, 30 * time.Second, 10 * time.Second},
		{30 * time.Second, 7 * time.Second, 7 * time.Second},
		{60 * time.Second, 60 * time.Second, 20 * time.Second},
		{12 * time.Second, 12 * time.Second, 5 * time.Second},
		{15 * time.Second, 15 * time.Second, 5 * time.Second},
		{5 * time.Second, 5 * time.Second, 5 * time.Second},
		{time.Second, time.Second, time.Second},
		{30 * time.Second, -time.Second, -time.Second},
	} {
		assert.Equal(t, c.want, share(c.timeout, c.left), c)
	}
}

// The constants that docs and doc comments name.
func TestLimitsThatAreDocumented(t *testing.T) {
	t.Parallel()
	assert.Equal(t, 5*time.Minute, assumedLifetime)
	assert.Equal(t, 720*time.Hour, maxLifetime)
	assert.Equal(t, time.Minute, maxSkew)
	assert.Equal(t, 16, maxFormer)
	assert.Equal(t, 1_000, maxRetired)
	assert.Equal(t, 3, maxAttempts)
	assert.Equal(t, time.Hour, maxLine)
	assert.Equal(t, 1<<20, maxBody)
}
