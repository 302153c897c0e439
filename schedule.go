package moovauth

// This file calculates times: when a token is refreshed and when it expires,
// and how long a source waits after a failure. Only clock reads the clock. No
// function waits or draws a random number.

import "time"

const (
	assumedLifetime = 5 * time.Minute     // of a token whose reply does not say how long it lives
	maxLifetime     = 30 * 24 * time.Hour // the example in Moov's documentation is three days

	maxEarly  = 5 * time.Minute // of the default early refresh
	maxLeeway = 5 * time.Second // less than the 10 s of oauth2.ReuseTokenSource
	maxSkew   = time.Minute     // between the clocks of machines that share a cache

	firstBackOff = 200 * time.Millisecond // doubles with each attempt

	firstCoolDown  = 250 * time.Millisecond // doubles with each failure in a row
	maxCoolDown    = 30 * time.Second
	maxScopesDown  = 5 * time.Minute // after a refusal of the scopes
	maxAsked       = time.Hour       // the longest Retry-After that counts
	firstPause     = time.Second     // between two invalidations; doubles each time
	maxPause       = 30 * time.Second
	minGiveUpAfter = 2 * time.Second // an attempt on a reused connection
)

// instant is a moment on both clocks, in nanoseconds. The wall clock continues
// while a machine is suspended. The monotonic clock is never set back.
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

// until returns the time from now to t, on the clock that reaches t first.
func (now instant) until(t instant) time.Duration {
	return time.Duration(max(0, min(t.wall-now.wall, t.monotonic-now.monotonic)))
}

func (now instant) time() time.Time { return time.Unix(0, now.wall) }

// phases returns how long a token is fresh and how long it is usable, both
// counted from the start of its lifetime. early is the value of
// WithEarlyRefresh, or negative for the default. random is in [0, 1).
func phases(life, early time.Duration, random float64) (fresh, usable time.Duration) {
	usable = life - min(maxLeeway, life/10)
	if early < 0 {
		early = min(life/5, maxEarly)
	}
	early = min(early, usable*4/5)
	early -= jitter(early/10, random) // so that the replicas of a fleet do not refresh all at once
	return usable - early, usable
}

// jitter returns a random part of d.
func jitter(d time.Duration, random float64) time.Duration {
	return time.Duration(random * float64(d))
}

// backOff returns how long to wait after the nth attempt, with full jitter.
func backOff(n int, random float64) time.Duration { return jitter(firstBackOff<<(n-1), random) }

// coolDownAfter returns how long to wait after failures in a row, most at most.
func coolDownAfter(failures int, most time.Duration, random float64) time.Duration {
	wait := min(firstCoolDown<<min(failures-1, 16), most)
	return wait - jitter(wait/2, random)
}

// spread returns the wait that the server asked for, an hour at most, plus up
// to a quarter. Without that, the replicas of a fleet, which are all told the
// same, would all return at once.
func spread(asked time.Duration, random float64) time.Duration {
	asked = min(max(asked, 0), maxAsked)
	return asked + jitter(asked/4, random)
}

// nextPause returns the pause that follows the given one.
func nextPause(pause time.Duration) time.Duration { return min(max(2*pause, firstPause), maxPause) }

// giveUpAfter returns how long an attempt on a reused connection waits for an
// answer.
func giveUpAfter(left time.Duration) time.Duration { return max(left/6, minGiveUpAfter) }
