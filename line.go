package moovauth

// This file is the line before the server: how a request waits for the Limiter,
// what the Limiter is told, and how a grant gives way to a Revoke.

import (
	"context"
	"fmt"
	"time"

	"github.com/moovauth/moovauth/internal/guard"
)

var errLine = fmt.Errorf("no place came up in time: %w", context.DeadlineExceeded)

// wait waits in line until the limiter lets a request go. ctx does not say when
// it ends.
func (e *endpoint) wait(ctx context.Context) error {
	_, err := guard.Call(ctx, guard.Code{Name: "Limiter", Heed: heed, Redact: &e.redact},
		func() (struct{}, error) { return struct{}{}, e.limiter.Wait(ctx) }, nil)
	if err == nil {
		return nil
	}
	return failure("", e.redact.Error("moovauth: waiting for the Limiter", ended(ctx, err)))
}

// inTime is a context for most at most that does not say when it ends: a
// rate.Limiter refuses at once if it sees that its turn comes later.
func inTime(ctx context.Context, most time.Duration) (context.Context, context.CancelCauseFunc) {
	ctx, cancel := context.WithCancelCause(undated{ctx})
	timer := time.AfterFunc(most, func() { cancel(errLine) })
	return ctx, func(cause error) { timer.Stop(); cancel(cause) }
}

// undated is a context without its deadline.
type undated struct{ context.Context }

func (undated) Deadline() (deadline time.Time, ok bool) { return deadline, false }

// maxTell is how long the limiter may take to hear of a 429.
const maxTell = time.Second

// tell tells the limiter of a 429.
func (e *endpoint) tell(ctx context.Context, retryAfter time.Duration) {
	if l, ok := e.limiter.(interface{ Refused(time.Duration) }); ok {
		ctx, cancel := context.WithTimeout(ctx, maxTell) // a call's own may never end
		defer cancel()
		_, _ = guard.Call(ctx, guard.Code{Name: "Limiter", Heed: heed, Redact: &e.redact},
			func() (struct{}, error) { l.Refused(retryAfter); return struct{}{}, nil }, nil)
	}
}

// line waits in line for the limiter. A grant with a good token in hand waits no
// longer than that is good. Time in line does not count towards WithTimeout.
func (g *grant) line(ctx context.Context) error {
	if g.limiter == nil {
		return nil
	}
	most := time.Until(g.end)
	if good := g.memory.load().good(g.clock()); good > 0 {
		most = min(most, good)
	}
	return g.budget.stop(func() error {
		return g.inLine(ctx, most, g.wait)
	})
}

// inLine calls wait with a context that ends if a Revoke comes, or after most.
func (g *grant) inLine(ctx context.Context, most time.Duration, wait func(context.Context) error) error {
	ctx, leave := inTime(ctx, most)
	defer leave(nil)
	g.mu.Lock()
	given := g.given
	g.leave = leave
	g.mu.Unlock()
	if given {
		return errRevoked
	}
	err := wait(ctx)
	g.mu.Lock()
	g.leave = nil
	g.mu.Unlock()
	return err
}

// giveWay ends the wait in line for a Revoke, now and from now on.
func (g *grant) giveWay() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.given = true
	if g.leave != nil {
		g.leave(errRevoked)
	}
}

func (g *grant) gaveWay() bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.given
}
