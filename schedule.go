package moovauth

// This file is the arithmetic of time: when a token is refreshed and expires,
// and how long the server is left alone after a failure. All of it is pure: no
// function but clock reads a clock, and none waits or draws a random number.

import "time"

const (
	assumedLifetime = 5 * time.Minute     // of a token whose reply does not say
	maxLifetime     = 30 * 24 * time.Hour // Moov's own example is three days

	maxEarly  = 5 * time.Minute // of the default early refresh
	maxLeeway = 5 * time.Second // must stay below the 10 s of oauth2.ReuseTokenSource
	maxSkew   = time.Minute     // between the clocks of machines that share a cache

	firstBackOff = 200 * time.Millisecond // doubles with each attempt

	firstCoolDown  = 250 * time.Millisecond // doubles with each failure in a row
	maxCoolDown    = 30 * time.Second
	maxScopesDown  = 5 * time.Minute // after a refusal of the scopes
	maxAsked       = time.Hour       // of a Retry-After
	firstPause     = time.Second     // between two invalidations that count; doubles each time
	maxPause       = 30 * time.Second
	minGiveUpAfter = 2 * time.Second // on a reused connection
)

// instant is a moment on both clocks, in nanoseconds. The wall clock continues
// while a machine is suspended, and the monotonic clock is never set back.
type instant struct {
	wall      int64 // since 1970
	monotonic int64 // since the program started
}

// never is a moment that no clock reaches.
var never = instant{1<<63 - 1, 1<<63 - 1}

var started = time.Now()

// clock reads both clocks.
func clock() instant {
	now := time.Now()
	return instant{now.UnixNano(), int64(now.Sub(started))}
}

// reached reports whether either clock has reached t.
func (now instant) reached(t instant) bool { return now.wall >= t.wall || now.monotonic >= t.monotonic }

// passed reports whether both clocks have reached t.
func (now instant) passed(t instant) bool { return now.wall >= t.wall && now.monotonic >= t.monotonic }

func (now instant) add(d time.Duration) instant {
	return instant{now.wall + int64(d), now.monotonic + int64(d)}
}

// until is the time from now to t, on the clock that reaches t first.
func (now instant) until(t instant) time.Duration {
	return time.Duration(max(0, min(t.wall-now.wall, t.monotonic-now.monotonic)))
}

func (now instant) time() time.Time { return time.Unix(0, now.wall) }

// phases returns how long a token is fresh and how long it is usable, counted
// from the start of its lifetime. early is WithEarlyRefresh's, or negative for
// the default. random is in [0, 1).
func phases(life, early time.Duration, random float64) (fresh, usable time.Duration) {
	usable = life - min(maxLeeway, life/10)
	if early < 0 {
		early = min(life/5, maxEarly)
	}
	early = min(early, usable*4/5)
	early -= jitter(early/10, random) // so that the replicas of a fleet do not refresh all at once
	return usable - early, usable
}

// jitter is a random part of d.
func jitter(d time.Duration, random float64) time.Duration {
	return time.Duration(random * float64(d))
}

// backOff is how long to wait after the nth attempt, with full jitter.
func backOff(n int, random float64) time.Duration { return jitter(firstBackOff<<(n-1), random) }

// coolDownAfter is how long the server is left alone after failures in a row.
func coolDownAfter(failures int, most time.Duration, random float64) time.Duration {
	wait := min(firstCoolDown<<min(failures-1, 16), most)
	return wait - jitter(wait/2, random)
}

// spread is a wait that the server asked for, of an hour at most, plus up to a
// quarter: the replicas of a fleet are told the same, and must not come back all
// at once.
func spread(asked time.Duration, random float64) time.Duration {
	asked = min(max(asked, 0), maxAsked)
	return asked + jitter(asked/4, random)
}

// nextPause is the pause after an invalidation that follows one with this pause.
func nextPause(pause time.Duration) time.Duration { return min(max(2*pause, firstPause), maxPause) }

// giveUpAfter is how long an attempt on a reused connection may stay without an
// answer.
func giveUpAfter(left time.Duration) time.Duration { return max(left/6, minGiveUpAfter) }
