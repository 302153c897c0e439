package moovauth

// This file is the arithmetic of time: when a token is refreshed and expires,
// and how long the server is left alone after a failure. All of it is pure: no
// function here reads a clock, waits, or draws a random number.

import "time"

const (
	assumedLifetime = 5 * time.Minute     // of a token that does not say
	maxLifetime     = 30 * 24 * time.Hour // Moov's own example is three days

	maxEarly  = 5 * time.Minute // of the default early refresh
	maxLeeway = 5 * time.Second // must stay under the 10 s of oauth2.ReuseTokenSource
	maxSkew   = time.Minute     // between the clocks of machines that share a cache

	firstBackOff  = 200 * time.Millisecond // doubled with each attempt
	leastDelay    = 50 * time.Millisecond  // between attempts while a token is in hand
	firstCoolDown = 250 * time.Millisecond // doubled with each failure in a row
	maxCoolDown   = 30 * time.Second
	maxAsked      = time.Hour // of a Retry-After

	firstInterval = time.Second // between two requests that follow an invalidation; doubled each time
	maxInterval   = 30 * time.Second

	leastAttempt = 5 * time.Second // that one attempt may take, if WithTimeout allows it
)

// instant is a moment on both clocks, in nanoseconds. The wall clock goes on
// while a machine is suspended, the monotonic one is never set back.
type instant struct {
	wall      int64 // since 1970
	monotonic int64 // since the program started
}

var started = time.Now()

// clock reads both clocks.
func clock() instant {
	now := time.Now()
	return instant{now.UnixNano(), int64(now.Sub(started))}
}

// reached reports whether either clock has come to t.
func (now instant) reached(t instant) bool { return now.wall >= t.wall || now.monotonic >= t.monotonic }

func (now instant) add(d time.Duration) instant {
	return instant{now.wall + int64(d), now.monotonic + int64(d)}
}

// after is how long it is from now to t, on the clock that gets there first.
func (t instant) after(now instant) time.Duration {
	return time.Duration(max(0, min(t.wall-now.wall, t.monotonic-now.monotonic)))
}

func (now instant) time() time.Time { return time.Unix(0, now.wall) }

// phases returns how long a token is fresh, and how long it is usable, of its
// lifetime. early is WithEarlyRefresh's, or negative for the default; random is
// in [0, 1).
func phases(life, early time.Duration, random float64) (fresh, usable time.Duration) {
	usable = life - min(maxLeeway, life/10)
	if early < 0 {
		early = min(life/5, maxEarly)
	}
	early = min(early, usable*4/5)
	early -= jitter(early/10, random) // so that a fleet does not refresh in step
	return usable - early, usable
}

// jitter is a random part of d.
func jitter(d time.Duration, random float64) time.Duration {
	return time.Duration(random * float64(d))
}

// backOff is how long to wait after the nth attempt: full jitter. good is how
// long the token in hand is good, 0 if there is none. Attempts come closer
// together as its expiry nears.
func backOff(n int, good time.Duration, random float64) time.Duration {
	return closer(jitter(firstBackOff<<(n-1), random), good)
}

// coolDown is how long the server is left alone after failures in a row.
func coolDown(failures int, good time.Duration, random float64) time.Duration {
	wait := min(firstCoolDown<<min(failures-1, 16), maxCoolDown)
	return closer(wait-jitter(wait/2, random), good)
}

// closer shortens wait to half of the time that the token in hand has left.
func closer(wait, good time.Duration) time.Duration {
	if good <= 0 {
		return wait
	}
	return min(wait, max(good/2, leastDelay))
}

// spread is a wait that the server asked for, cut to an hour, with up to a
// quarter on top: a fleet that is told the same does not come back in step.
func spread(asked time.Duration, random float64) time.Duration {
	asked = min(max(asked, 0), maxAsked)
	return asked + jitter(asked/4, random)
}

// interval is the least time between two token requests that follow
// invalidations, after refusals in a row.
func interval(refusals int) time.Duration {
	return min(firstInterval<<min(max(refusals-1, 0), 16), maxInterval)
}

// share is how much of the time left one attempt may take, so that one silent
// connection does not use up all of it.
func share(timeout, left time.Duration) time.Duration {
	return min(left, max(timeout/3, leastAttempt))
}
