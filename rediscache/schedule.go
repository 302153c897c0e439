package rediscache

// This file decides when the turns are. It does so twice, with the same result: in a
// Lua script for all processes that share a limit, and in Go for a process that
// cannot reach Redis. limiter.go has the callers that wait for a turn, and handles
// the failures of Redis.
//
// The algorithm is the generic cell rate algorithm, whose state is the time of the
// next free turn. In addition, a 429 from the server causes a pause, and a lower rate
// that rises again later.

import (
	"math"
	"time"

	"github.com/redis/go-redis/v9"
)

const (
	ahead     = 500 * time.Millisecond // turns further in the future are reserved one at a time
	episode   = 250 * time.Millisecond // a 429 this soon after a pause belongs to the same overload
	quietMin  = 30 * time.Second       // the time without a 429 before the rate rises
	quietMost = 5 * time.Minute        // the longest such time
	leastRate = 0.02                   // the lowest rate, as a part of the full rate
	onceMore  = 0.95                   // a 429 multiplies the rate by this
	rise      = 1.05                   // each second of the rise multiplies the rate by this

	stateTTL = 2 * time.Hour // longer than the longest pause, quietMost and the rise together
)

// script does in Redis what step does, on Redis's clock. KEYS[1] holds the state: the
// time of the last call and the fields of schedule, with times in microseconds. ARGV
// has the parameters of step except the time. The reply is relative to the time of
// the script, so the clocks of the processes do not matter.
var script = redis.NewScript(`
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000000 + tonumber(time[2])
local rate, want, refusals, pause = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])

local clock, free, held, share, quiet, least = now, 0, 0, 1, 30000000, 0
local state = {}
for field in string.gmatch(redis.call('GET', KEYS[1]) or '', '%S+') do
  state[#state + 1] = tonumber(field)
end
if #state == 6 then
  clock, free, held, share, quiet, least = unpack(state)
end
if clock > now then -- a failover: the clock of the new master is behind
  free, held = free - (clock - now), held - (clock - now)
end

local function current()
  local rising = now - held - quiet
  if share == 1 or rising < 0 then
    return share
  end
  return math.min(1, share * 1.05 ^ (1 + math.floor(rising / 1000000)))
end

for _ = 1, refusals do
  local before = current()
  if now >= held + 250000 then
    least = math.max(0.02, before * (before == share and share < 1 and 0.9 or 0.5))
    if before > share then
      quiet = before < 1 and math.min(2 * quiet, 300000000) or 30000000
    end
  end
  share = math.max(least, 0.95 * before)
  held = math.max(held, now + pause)
end

local n, delay, interval = 0, 0, 1000000 / (rate * current())
if want > 0 then
  local first = math.max(now, free, held)
  n = math.max(1, math.min(want, math.floor((now + 500000 - first) / interval)))
  free = first + n * interval
  delay = first - now
end
redis.call('SET', KEYS[1], string.format('%.17g %.17g %.17g %.17g %.17g %.17g', now, free, held, share, quiet, least), 'PX', 7200000)
return {n, math.ceil(delay), math.ceil(interval)}
`)

// schedule is the state of a limit. Times are in microseconds, all on the same clock.
type schedule struct {
	free  float64 // the next turn that is not reserved; in the past if there was no demand
	held  float64 // the end of the pause after a 429: no turn is earlier
	share float64 // the part of the full rate after the last 429
	quiet float64 // the rate starts to rise this long after held
	least float64 // share does not fall below this during an overload
}

func newSchedule() schedule { return schedule{share: 1, quiet: micros(quietMin)} }

// reservation is n turns. The first is after delay, and each following one interval
// later.
type reservation struct {
	n               int
	delay, interval time.Duration
}

// step applies the given number of 429s, whose longest Retry-After is pause. Then it
// reserves up to want turns, and at least one if want is above 0.
func (s *schedule) step(now, perSecond float64, want, refusals int, pause time.Duration) reservation {
	for range refusals {
		before := s.current(now)
		if now >= s.held+micros(episode) {
			least := 0.5
			if before == s.share && s.share < 1 { // the rate is still low after the last 429, so it is close to what the server takes
				least = 0.9
			}
			s.least = max(leastRate, least*before)
			if before > s.share {
				s.quiet = min(2*s.quiet, micros(quietMost))
				if before == 1 {
					s.quiet = micros(quietMin)
				}
			}
		}
		s.share = max(s.least, onceMore*before)
		s.held = max(s.held, now+micros(pause))
	}
	interval := 1e6 / (perSecond * s.current(now))
	r := reservation{interval: duration(interval)}
	if want > 0 {
		first := max(now, s.free, s.held)
		r.n = int(max(1, min(float64(want), math.Floor((now+micros(ahead)-first)/interval))))
		s.free = first + float64(r.n)*interval
		r.delay = duration(first - now)
	}
	return r
}

// current returns the part of the full rate that applies now.
func (s *schedule) current(now float64) float64 {
	rising := now - s.held - s.quiet
	if s.share == 1 || rising < 0 {
		return s.share
	}
	return min(1, s.share*math.Pow(rise, 1+math.Floor(rising/1e6)))
}

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

func duration(micros float64) time.Duration {
	return time.Duration(math.Ceil(micros)) * time.Microsecond
}
