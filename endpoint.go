package moovauth

// This file is the wire: it builds a token or a revocation request, waits in
// line for it, sends it, and tries again if that may help. It keeps nothing
// between two requests. How a reply is read is in reply.go.

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/guard"
)

const (
	tokenPath  = "/oauth2/token"
	revokePath = "/oauth2/revoke"

	// userAgent names the package and its version, which CHANGELOG.md has too.
	userAgent = "moovauth/0.1.0"

	maxBody     = 1 << 20 // bytes of a reply that are read
	maxAttempts = 3       // of one request
	maxLine     = time.Hour

	heed = 250 * time.Millisecond // for a RoundTripper to return after its context has ended
)

// The grant types (RFC 6749 §4.4.2 and §6).
const (
	grantClientCredentials = "client_credentials"
	grantRefreshToken      = "refresh_token"
)

// endpoint makes requests to Moov's token and revoke endpoints.
type endpoint struct{ *config }

// budget is what is left of WithTimeout.
type budget struct {
	timeout time.Duration
	start   time.Time
	whole   *budget // of which this is a part; nil: of none
}

func newBudget(timeout time.Duration) *budget { return &budget{timeout, time.Now(), nil} }

func (b *budget) left() time.Duration { return b.timeout - time.Since(b.start) }

// part is one of n equal parts of what is left.
func (b *budget) part(n int) *budget { return &budget{b.left() / time.Duration(n), time.Now(), b} }

// stop calls f, whose time does not count.
func (b *budget) stop(f func() error) error {
	began := time.Now()
	err := f()
	for ; b != nil; b = b.whole {
		b.start = b.start.Add(time.Since(began))
	}
	return err
}

// request is a token or a revocation request, and how often it may be made.
type request struct {
	op        string // opToken or opRevoke
	grantType string // of a token request
	form      url.Values
	budget    *budget
	line      func(context.Context) error // waits in line, before each attempt but the first
	good      func() time.Duration        // how long the token in hand is good
	repeat    func(error) bool            // may it be made again after this failure?
	late      func(*reply)                // gets a reply that came after its attempt had been given up
}

// do makes r up to three times, as long as its failure is temporary, and the
// next attempt is due before the time is up and before the token in hand
// expires. A 429 is returned at once if there is a limiter: the caller has
// to get in line again.
func (e *endpoint) do(ctx context.Context, r *request) (*reply, error) {
	for n := 1; ; n++ {
		rep, err := e.attempt(ctx, r)
		switch {
		case err == nil || ctx.Err() != nil || !temporary(err) || !r.repeat(err) || e.limiter != nil && throttled(err):
			return rep, err
		case n == maxAttempts:
			return nil, fmt.Errorf("%w (after %d attempts)", err, n)
		case r.budget.left() <= 0:
			return nil, err
		}
		good := r.good()
		delay := max(backOff(n, good, e.random()), spread(asked(err), e.random()))
		if delay >= r.budget.left() || good > 0 && delay >= good {
			return nil, fmt.Errorf("%w (not tried again within this grant: the next attempt would be due in %v)", err, delay.Round(time.Millisecond))
		}
		e.log(slog.LevelDebug, "moovauth: attempt failed", "grant_type", r.grantType, "attempt", n, "delay", delay, "error", err)
		if sleep(ctx, delay) != nil {
			return nil, fmt.Errorf("%w (not tried again: %w)", err, context.Cause(ctx))
		}
		if late := r.line(ctx); late != nil {
			return nil, fmt.Errorf("%w (not tried again: %w)", err, late)
		}
	}
}

// sleep waits for d, or returns why ctx ended first.
func sleep(ctx context.Context, d time.Duration) error {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// attempt makes r once, in its share of the time that is left.
func (e *endpoint) attempt(ctx context.Context, r *request) (*reply, error) {
	left := r.budget.left()
	most := share(r.budget.timeout, left)
	cause := fmt.Errorf("no answer within %v: %w", most, context.DeadlineExceeded)
	if most == left {
		cause = notWithin(r.budget.timeout)
	}
	ctx, cancel := context.WithTimeoutCause(ctx, most, cause)
	defer cancel()
	network := guard.Code{Name: "http.RoundTripper", Heed: heed, Redact: &e.redact}
	rep, err := guard.Call(ctx, network, func() (*reply, error) { return e.once(ctx, r) }, r.late)
	if err != nil {
		return nil, failure("", err)
	}
	return rep, nil
}

func notWithin(timeout time.Duration) error {
	return fmt.Errorf("not done within %v (see WithTimeout): %w", timeout, context.DeadlineExceeded)
}

func (e *endpoint) once(ctx context.Context, r *request) (*reply, error) {
	sent := e.clock()
	resp, body, err := e.post(ctx, r)
	if err != nil {
		return nil, e.failed(r, err)
	}
	if resp.StatusCode/100 != 2 {
		refused := newError(r.op, r.grantType, resp, body, &e.redact)
		refused.advise(e.scopes, e.origin != "")
		if throttled(refused) {
			e.tell(ctx, refused.RetryAfter)
		}
		return nil, refused
	}
	if r.op == opRevoke {
		return nil, nil
	}
	rep, err := readToken(resp.Header, body, sent.time())
	if err != nil {
		return nil, e.unusable(r, resp, body, err)
	}
	e.redact.Add(rep.token.AccessToken, rep.token.RefreshToken)
	rep.sent = sent
	rep.requestID = e.redact.Text(resp.Header.Get("X-Request-Id"))
	return rep, nil
}

// failed is the error of a request that brought no reply.
func (e *endpoint) failed(r *request, err error) error {
	doing := "moovauth: revoke request to " + e.url(revokePath)
	if r.op == opToken {
		doing = fmt.Sprintf("moovauth: token request (%s) to %s", r.grantType, e.url(tokenPath))
	}
	failure := e.redact.Error(doing, err)
	if errors.As(err, new(*unsent)) {
		return &unsent{failure}
	}
	return failure
}

// unusable is the error of a reply with a status of 2xx that has no token.
func (e *endpoint) unusable(r *request, resp *http.Response, body []byte, err error) error {
	if errors.Is(err, errNoToken) {
		// Some servers refuse with 200 and an error member.
		if refused := newError(r.op, r.grantType, resp, body, &e.redact); refused.Code != "" {
			refused.advise(e.scopes, e.origin != "")
			return refused
		}
	}
	return unusableReply(r.grantType, resp, body, err, &e.redact)
}

// unsent is the error of a request that never left, since no connection could
// be made.
type unsent struct{ error }

func (e *unsent) Unwrap() error { return e.error }

// reusable reports whether a refresh token can be sent again after err: the
// request never left, or the server says that it did nothing with it.
func reusable(err error) bool {
	if refused := new(Error); errors.As(err, &refused) {
		switch refused.StatusCode {
		case http.StatusTooManyRequests, http.StatusInternalServerError, http.StatusServiceUnavailable:
			return true
		}
		return false
	}
	return errors.As(err, new(*unsent))
}

// throttled reports whether err is a 429.
func throttled(err error) bool {
	refused := new(Error)
	return errors.As(err, &refused) && refused.StatusCode == http.StatusTooManyRequests
}

// asked is how long the server wants to be left alone after err.
func asked(err error) time.Duration {
	if refused := new(Error); errors.As(err, &refused) {
		return refused.RetryAfter
	}
	return 0
}

func (e *endpoint) url(path string) string { return e.baseURL + path }

// post sends r with the client's credentials, and reads the whole reply.
func (e *endpoint) post(ctx context.Context, r *request) (*http.Response, []byte, error) {
	path := tokenPath
	if r.op == opRevoke {
		path = revokePath
	}
	if e.authStyle == oauth2.AuthStyleInParams {
		r.form.Set("client_id", e.creds.ClientID)
		r.form.Set("client_secret", e.creds.ClientSecret)
	}
	var wanted, got atomic.Bool // a connection
	req, err := http.NewRequestWithContext(httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn: func(string) { wanted.Store(true) },
		GotConn: func(httptrace.GotConnInfo) { got.Store(true) },
	}), http.MethodPost, e.url(path), strings.NewReader(r.form.Encode()))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set(VersionHeader, e.version)
	if e.origin != "" {
		req.Header.Set("Origin", e.origin)
	}
	if e.authStyle != oauth2.AuthStyleInParams {
		// As they are: Moov, unlike RFC 6749 §2.3.1, does not form-encode them first.
		req.SetBasicAuth(e.creds.ClientID, e.creds.ClientSecret)
	}
	strict := *e.client
	strict.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	resp, err := strict.Do(req)
	if err != nil {
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err // the caller names the URL
		}
		if err = ended(ctx, err); wanted.Load() && !got.Load() {
			err = &unsent{err}
		}
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, nil, nil // its body is the connection, which does not heed ctx
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("it is larger than %d bytes", maxBody)
	}
	switch {
	case err == nil:
		return resp, body, nil
	case resp.StatusCode/100 != 2:
		return resp, nil, nil // the status says enough
	}
	return nil, nil, fmt.Errorf("reading the reply: %w", ended(ctx, err))
}

// ended is err, or why ctx ended if that is what err says.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return context.Cause(ctx)
	}
	return err
}
