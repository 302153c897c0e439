package platform

import (
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
)

var noon = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

func at(seconds float64) time.Time { return noon.Add(time.Duration(seconds * float64(time.Second))) }

// served notes n answers in the second before at(seconds).
func (p *pace) served(n int, seconds float64) {
	for i := range n {
		p.answer(at(seconds - 0.9 + 0.8*float64(i)/float64(n)))
	}
}

func TestCutToWhatTheServerTook(t *testing.T) {
	for _, test := range []struct {
		name   string
		served int
		want   float64
	}{
		{"nothing: to half", 0, 4.85},
		{"less than half: to half", 3, 4.85},
		{"more than half: to 0.97 of it", 7, 6.79},
		{"as much as the rate: to 0.95 of the rate", 10, 9.215},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newPace(10)
			p.served(test.served, 100)
			p.refuse(at(100), time.Second)
			assert.InDelta(t, test.want, p.rate(at(100)), 1e-9)
		})
	}
}

func TestAnswersAreForgottenAfterASecond(t *testing.T) {
	p := newPace(10)
	p.served(9, 98)
	p.refuse(at(100), 0)
	assert.InDelta(t, 4.85, p.rate(at(100)), 1e-9)
	assert.Empty(t, p.answered)
}

func TestTheRateIsCutOnceInHalfASecond(t *testing.T) {
	p := newPace(10)
	p.refuse(at(0), 0)
	p.refuse(at(0.1), 0)
	p.refuse(at(0.499), 0)
	assert.InDelta(t, 4.85, p.rate(at(0.499)), 1e-9)
	p.refuse(at(0.5), 0)
	assert.InDelta(t, 4.85/2, p.rate(at(0.5)), 1e-9)
}

func TestTheRateIsNeverCutToNothing(t *testing.T) {
	p := newPace(10)
	for i := range 1000 {
		p.refuse(at(float64(i)), 0)
	}
	assert.InDelta(t, 0.02*9.7, p.rate(at(1000)), 1e-9)
}

func TestRecoveryStarts30SecondsAfterTheHold(t *testing.T) {
	p := newPace(10)
	p.refuse(at(0), 10*time.Second)
	assert.InDelta(t, 4.85, p.rate(at(39.9)), 1e-9)
	assert.InDelta(t, 4.85*1.05, p.rate(at(40)), 1e-9)
	assert.InDelta(t, 4.85*1.05*1.05, p.rate(at(41)), 1e-9)
	assert.InDelta(t, 9.7, p.rate(at(60)), 1e-9)
	assert.InDelta(t, 9.7, p.rate(at(1e6)), 1e-9, "and no further")
}

func TestARaiseThatIsRefusedDoublesTheQuietTime(t *testing.T) {
	p := newPace(10)
	now := 0.0
	p.refuse(at(now), time.Second)
	for _, quiet := range []time.Duration{60, 120, 240, 300, 300} {
		now += 1 + p.quiet.Seconds() + 2 // the raise has begun
		p.served(5, now)
		p.refuse(at(now), time.Second)
		assert.Equal(t, quiet*time.Second, p.quiet)
	}
}

// After a deep cut, the rise takes longer than the quiet time.
func TestARaiseThatIsRefusedLateDoublesTheQuietTime(t *testing.T) {
	p := newPace(20)
	for i := range 8 {
		p.refuse(at(float64(i)), time.Second)
	}
	assert.InDelta(t, 0.02*19.4, p.rate(at(8)), 1e-9)
	p.refuse(at(8+30+64), time.Second)
	assert.Equal(t, time.Minute, p.quiet)
}

func TestA429LongAfterRecoveryResetsTheQuietTime(t *testing.T) {
	p := newPace(10)
	p.refuse(at(0), time.Second)
	p.refuse(at(33), time.Second) // the raise
	assert.Equal(t, time.Minute, p.quiet)
	p.refuse(at(33+1+60+29+61), time.Second) // back at 9.7 for a minute
	assert.Equal(t, 30*time.Second, p.quiet)
}

func TestA429BeforeTheRaiseKeepsTheQuietTime(t *testing.T) {
	p := newPace(10)
	p.refuse(at(0), time.Second)
	p.refuse(at(10), time.Second)
	assert.Equal(t, 30*time.Second, p.quiet)
	assert.InDelta(t, 4.85/2, p.rate(at(40.9)), 1e-9, "the quiet time starts at the last 429")
}
