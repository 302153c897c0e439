package moovauth

// This file makes one token or revoke request over HTTP, with its retries and
// its waits for the Limiter. It keeps no state between requests. reply.go reads
// the answers.

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
)

const (
	endpointPath = "/oauth2/" // followed by the operation

	// userAgent names the package and its version, which CHANGELOG.md has too.
	userAgent = "moovauth/0.1.0"

	maxBody     = 1 << 20 // bytes of a reply that are read
	maxAttempts = 3       // of one request
)

// The grant types (RFC 6749 §4.4.2 and §6), and the values of Error.Op.
const (
	grantClientCredentials = "client_credentials"
	grantRefreshToken      = "refresh_token"

	opToken  = "token"
	opRevoke = "revoke"
)

// request is a token or a revoke request.
type request struct {
	op        string
	grantType string // of a token request
	form      url.Values
	secrets   []string // masked in errors, like those of the reply and the credentials
	budget    *budget
	queue     context.Context // for the waits between attempts and for the Limiter
	hasPermit bool            // the Limiter has already admitted the first attempt
	spends    bool            // the server may use up the refresh token, and the client credentials are left
}

func (r *request) String() string {
	if r.grantType == "" {
		return r.op + " request"
	}
	return r.op + " request (" + r.grantType + ")"
}

// budget is the time that a grant or a Revoke may take.
type budget struct {
	end    time.Time
	gaveUp bool // an attempt on a reused connection was given up
}

func newBudget(timeout time.Duration) *budget { return &budget{end: time.Now().Add(timeout)} }

func (b *budget) left() time.Duration { return time.Until(b.end) }

// exclude calls f without counting its time.
func (b *budget) exclude(f func() error) error {
	began := time.Now()
	err := f()
	b.end = b.end.Add(time.Since(began))
	return err
}

// spend calls f with one of n equal parts of the time that is left.
func (b *budget) spend(n int, f func(part *budget) error) error {
	end := time.Now().Add(b.left() / time.Duration(n))
	part := &budget{end: end, gaveUp: b.gaveUp}
	err := f(part)
	b.end, b.gaveUp = b.end.Add(part.end.Sub(end)), part.gaveUp
	return err
}

// do makes r up to three times. It retries temporary failures if the time
// allows another attempt. With a Limiter, it returns after a 429: see
// whileThrottled.
func (c *config) do(ctx context.Context, r *request) (*reply, error) {
	for n := 1; ; n++ {
		if !r.hasPermit {
			if err := c.waitForLimiter(r.queue, r.budget); err != nil {
				return nil, err
			}
		}
		r.hasPermit = false
		reply, err := c.attempt(ctx, r)
		switch {
		case err == nil || ctx.Err() != nil || !temporary(err) || c.limiter != nil && throttled(err) || r.spends && !notUsedUp(err):
			return reply, err
		case n == maxAttempts:
			return nil, fmt.Errorf("%w (after %d attempts)", err, n)
		}
		delay := c.retryDelay(n, err)
		if delay >= r.budget.left() {
			return nil, fmt.Errorf("%w (not retried: the next attempt would be due in %v)", err, delay.Round(time.Millisecond))
		}
		c.log(slog.LevelDebug, "moovauth: attempt failed", "grant_type", r.grantType, "attempt", n, "delay", delay, "error", err)
		if sleep(r.queue, delay) != nil {
			return nil, fmt.Errorf("%w (not retried: %w)", err, context.Cause(r.queue))
		}
	}
}

// retryDelay returns how long to wait after the nth attempt has failed with
// err. A Limiter with a Refused method delays all requests after a 429, so
// these get no jitter of their own.
func (c *config) retryDelay(n int, err error) time.Duration {
	if _, ok := c.limiter.(interface{ Refused(time.Duration) }); ok && throttled(err) {
		return max(firstBackOff, spread(askedWait(err), 0))
	}
	return max(backOff(n, c.random()), spread(askedWait(err), c.random()))
}

// sleep waits for d. If ctx ends first, it returns why.
func sleep(ctx context.Context, d time.Duration) error {
	timer, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	<-timer.Done()
	return context.Cause(ctx)
}

var errNoAnswer = fmt.Errorf("no answer on a connection that was used before, which may be dead: %w", context.DeadlineExceeded)

// attempt makes r once, in the time that is left. On a reused connection it
// gives up sooner, once in a grant: a NAT or a load balancer may have dropped
// the connection without telling either side.
func (c *config) attempt(grant context.Context, r *request) (*reply, error) {
	ctx, cancelTimeout := context.WithTimeoutCause(grant, r.budget.left(), notWithin(c.timeout))
	defer cancelTimeout()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	after, impatient := giveUpAfter(r.budget.left()), !r.budget.gaveUp && (r.spends || r.grantType != grantRefreshToken)
	giveUp := time.AfterFunc(after, func() { cancel(errNoAnswer) })
	giveUp.Stop()
	trace := &httptrace.ClientTrace{GotConn: func(conn httptrace.GotConnInfo) {
		if giveUp.Stop(); conn.Reused && impatient {
			giveUp.Reset(after)
		}
	}}
	sent := c.clock()
	resp, body, err := c.post(httptrace.WithClientTrace(ctx, trace), r, giveUp)
	if err != nil {
		if context.Cause(ctx) == errNoAnswer {
			r.budget.gaveUp = true
			_ = sleep(grant, firstBackOff)  // HTTP/2 needs a moment before the connection counts as idle
			c.client.CloseIdleConnections() // the next attempt could get another dead connection
		}
		return nil, c.unanswered(r, err)
	}
	return c.readReply(r, resp, body, sent)
}

func notWithin(timeout time.Duration) error {
	return fmt.Errorf("not done within %v (see WithTimeout): %w", timeout, context.DeadlineExceeded)
}

// post sends r with the client credentials and reads the whole reply. It stops
// giveUp when the server begins to answer.
func (c *config) post(ctx context.Context, r *request, giveUp *time.Timer) (*http.Response, []byte, error) {
	if c.authStyle == oauth2.AuthStyleInParams {
		r.form.Set("client_id", c.creds.ClientID)
		r.form.Set("client_secret", c.creds.ClientSecret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.baseURL+endpointPath+r.op, strings.NewReader(r.form.Encode()))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set(VersionHeader, c.version)
	if c.origin != "" {
		req.Header.Set("Origin", c.origin)
	}
	if c.authStyle != oauth2.AuthStyleInParams {
		// Moov, unlike RFC 6749 §2.3.1, expects both without form-encoding.
		req.SetBasicAuth(c.creds.ClientID, c.creds.ClientSecret)
	}
	client := *c.client
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := client.Do(req)
	giveUp.Stop()
	if err != nil {
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err // unanswered adds the URL
		}
		return nil, nil, causeOf(ctx, err)
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, nil, nil // its body is the connection, and reading it would not end with ctx
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("it is larger than %d bytes", maxBody)
	}
	if err != nil && resp.StatusCode/100 == 2 {
		return nil, nil, fmt.Errorf("reading the reply: %w", causeOf(ctx, err))
	}
	return resp, body, nil
}

// causeOf returns why ctx ended if that is what err reports, and err otherwise.
func causeOf(ctx context.Context, err error) error {
	cause := context.Cause(ctx)
	switch {
	case cause == nil || !errors.Is(err, ctx.Err()) && !errors.Is(err, cause): // net/http returns either
		return err
	case timedOut(cause) || errors.Is(cause, ctx.Err()):
		return cause
	}
	return fmt.Errorf("%w: %w", ctx.Err(), cause)
}

// unanswered returns the error of a request that got no reply.
func (c *config) unanswered(r *request, err error) error {
	advice := ""
	switch {
	case errors.As(err, new(*tls.CertificateVerificationError)):
		advice = "check WithBaseURL, the clock, and the root certificates of this machine or of WithHTTPClient's client"
	case errors.Is(err, http.ErrSchemeMismatch), errors.As(err, new(tls.RecordHeaderError)):
		advice = "the server does not speak TLS there: check the scheme and the port of WithBaseURL"
	}
	err = fmt.Errorf("moovauth: %s to %s: %w", r, c.baseURL+endpointPath+r.op, redact.Error(err, c.secretsOf(r)...))
	if advice == "" {
		return failure(err)
	}
	return &grantError{text: err.Error() + ": " + advice, err: err}
}

// waitForLimiter waits until the Limiter admits a request. It hides the
// deadline of ctx: a rate.Limiter fails at once if its turn would come after
// the deadline.
func (c *config) waitForLimiter(ctx context.Context, b *budget) error {
	if c.limiter == nil {
		return nil
	}
	return b.exclude(func() error {
		if err := c.limiter.Wait(withoutDeadline{ctx}); err != nil {
			return failure(fmt.Errorf("moovauth: waiting for the Limiter: %w", causeOf(ctx, err)))
		}
		return nil
	})
}

// withoutDeadline is a context that does not report its deadline.
type withoutDeadline struct{ context.Context }

func (withoutDeadline) Deadline() (deadline time.Time, ok bool) { return deadline, false }

// returnPermit tells the Limiter that its permit was not used.
func (c *config) returnPermit() {
	if l, ok := c.limiter.(interface{ Unused() }); ok {
		l.Unused()
	}
}

// whileThrottled calls f. With a Limiter, it calls f again after each 429 as
// long as wanted returns true; if wanted is nil, until ctx ends. The time
// between two calls does not count.
func (c *config) whileThrottled(ctx context.Context, b *budget, wanted func() bool, f func() error) error {
	for {
		err := f()
		if c.limiter == nil || !throttled(err) {
			return err
		}
		if l, ok := c.limiter.(interface{ Refused(time.Duration) }); ok {
			l.Refused(askedWait(err))
		}
		if wanted != nil && !wanted() {
			return err
		}
		delay := c.retryDelay(1, err)
		c.log(slog.LevelDebug, "moovauth: refused with 429; waiting for the Limiter again", "delay", delay, "error", err)
		if b.exclude(func() error { return sleep(ctx, delay) }) != nil {
			return fmt.Errorf("%w (not retried: %w)", err, context.Cause(ctx))
		}
	}
}
