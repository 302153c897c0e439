package rediscache

// This file compares the script with step, in random steps on a clock that the test
// sets.

import (
	"context"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// scriptSource returns the source of script.
func scriptSource(t *testing.T) string {
	t.Helper()
	var spy spyScripter
	_ = script.Eval(t.Context(), &spy, nil)
	return spy.source
}

func TestScriptDoesWhatStepDoes(t *testing.T) {
	client := connect(t, startRedis(t).addr)
	clocked := strings.Replace(scriptSource(t), "redis.call('TIME')", "{ARGV[5], ARGV[6]}", 1)
	require.NotEqual(t, scriptSource(t), clocked)
	runs, steps := 20, 300
	if testing.Short() {
		runs = 5
	}
	for seed := range runs {
		random := rand.New(rand.NewPCG(1, uint64(seed)))
		key := limitPrefix + string(rune('a'+seed))
		perSecond := []float64{0.5, 9.7, 38.8, 97, 5000}[random.IntN(5)]
		now := int64(1_767_225_600_000_000) + random.Int64N(1e15)
		model := newSchedule()
		for i := range steps {
			switch random.IntN(20) {
			case 0:
				now += random.Int64N(400e6) // idle
			case 1:
				now += random.Int64N(40e6)
			default:
				now += random.Int64N(300e3)
			}
			want, refusals, pause := random.IntN(mostTurns+1), 0, time.Duration(0)
			if random.IntN(8) == 0 {
				refusals, pause = 1+random.IntN(12), time.Duration(random.Int64N(2e6))*time.Microsecond
			}
			if random.IntN(40) == 0 { // a failover to a master whose clock is behind: the state moves with it
				back := random.Int64N(7200e6)
				now -= back
				model.free -= float64(back)
				model.held -= float64(back)
				require.NoError(t, client.Eval(t.Context(), clocked, []string{key}, perSecond, 0, 0, 0, (now+back)/1e6, (now+back)%1e6).Err())
			}
			reply, err := client.Eval(t.Context(), clocked, []string{key}, perSecond, want, refusals, pause.Microseconds(), now/1e6, now%1e6).Int64Slice()
			require.NoError(t, err)
			expected := model.step(float64(now), perSecond, want, refusals, pause)
			require.Len(t, reply, 3)
			require.EqualValues(t, expected.n, reply[0], "run %d, step %d", seed, i)
			require.InDelta(t, expected.delay.Microseconds(), reply[1], 1, "run %d, step %d", seed, i)
			require.InDelta(t, expected.interval.Microseconds(), reply[2], 1+1e-9*float64(reply[2]), "run %d, step %d", seed, i)
		}
	}
}

func TestStateIsOneKeyThatExpires(t *testing.T) {
	client := connect(t, startRedis(t).addr)
	l, err := NewLimiter(client, "moov", 100)
	require.NoError(t, err)
	require.NoError(t, l.Wait(t.Context()))
	require.Equal(t, []string{"moovauth-limit-moov"}, client.Keys(t.Context(), "*").Val())
	assert.InDelta(t, stateTTL, client.PTTL(t.Context(), "moovauth-limit-moov").Val(), float64(time.Minute))

	// A value that is not a state counts as no state.
	require.NoError(t, client.Set(t.Context(), "moovauth-limit-moov", "1 2 x", 0).Err())
	require.NoError(t, l.Wait(t.Context()))
	assert.False(t, l.redisDown)
}

func TestRateAfter429s(t *testing.T) {
	s := newSchedule()
	now := 1e15
	second := micros(time.Second)
	assert.Equal(t, 1.0, s.current(now))
	s.step(now, 40, 0, 1, time.Second)
	assert.Equal(t, 0.95, s.current(now))
	r := s.step(now, 40, 1, 0, 0)
	assert.Equal(t, time.Second, r.delay, "the pause")
	s.step(now+second, 40, 0, 30, time.Second)
	assert.Equal(t, 0.5, s.current(now+second), "one overload lowers the rate by half at most")
	now += 2 * second // the pause is over
	s.step(now+second, 40, 0, 30, time.Second)
	assert.Equal(t, 0.45, s.current(now), "the next overload lowers it by a tenth at most")
	now += 2 * second

	assert.Equal(t, 0.45, s.current(now+micros(quietMin)-1))
	assert.InDelta(t, 0.45*1.05, s.current(now+micros(quietMin)), 1e-9)
	assert.InDelta(t, 0.45*1.05*1.05, s.current(now+micros(quietMin)+second), 1e-9)
	assert.Equal(t, 1.0, s.current(now+micros(quietMin)+17*second))

	now += micros(quietMin)
	for _, quiet := range []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, quietMost, quietMost} {
		s.step(now, 40, 0, 1, 0) // while the rate rises
		assert.Equal(t, micros(quiet), s.quiet)
		now += s.quiet
	}
	now += 100 * second // the full rate is back
	require.Equal(t, 1.0, s.current(now))
	s.step(now, 40, 0, 1, 0)
	assert.Equal(t, micros(quietMin), s.quiet)

	for range 100 {
		now += second
		s.step(now, 40, 0, 1, 0)
	}
	assert.Equal(t, leastRate, s.current(now))
}

func TestOnlyTurnsThatAreNearAreReservedTogether(t *testing.T) {
	s := newSchedule()
	var got []int
	for range 6 {
		got = append(got, s.step(1e15, 40, mostTurns, 0, 0).n)
	}
	assert.Equal(t, []int{8, 8, 4, 1, 1, 1}, got, "20 turns are 500 ms")
}

// spyScripter records the source of a script.
type spyScripter struct {
	redis.Scripter
	source string
}

func (s *spyScripter) Eval(ctx context.Context, source string, _ []string, _ ...any) *redis.Cmd {
	s.source = source
	return redis.NewCmdResult(nil, nil)
}
