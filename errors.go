package moovauth

// This file holds what goes wrong, as a caller sees it: Error, which is what
// an endpoint answered, the masking of secrets in every message, and the guard
// against plugged-in code that panics or does not return.

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"maps"
	"net/http"
	"net/url"
	"regexp"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

// The values of Error.Op.
const (
	opToken  = "token"
	opRevoke = "revoke"
)

// Error is what the token or revoke endpoint answered where it refused. With
// [errors.As] an [*oauth2.RetrieveError] is found in it as well. What is
// known to be secret is masked in all of its text.
type Error struct {
	Op          string            // "token" or "revoke"
	GrantType   string            // for "token": "client_credentials" or "refresh_token"
	StatusCode  int               // of the HTTP response
	Code        string            // the "error" member (RFC 6749 §5.2), where there is one
	Description string            // the "error_description" member, where there is one
	Fields      map[string]string // a 422's members, by field: "scope", "refresh_token", "token", …
	RequestID   string            // the x-request-id header: the first thing that Moov's support asks for
	RetryAfter  time.Duration     // from Retry-After or X-Retry-In; 0 where absent

	advice   string // what to change, where it can be told
	retrieve *oauth2.RetrieveError
}

// Error says in one line what was refused, why, and what to change.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "moovauth: %s request", e.Op)
	if e.GrantType != "" {
		fmt.Fprintf(&b, " (%s)", e.GrantType)
	}
	b.WriteString(strings.TrimRight(fmt.Sprintf(" answered %d %s", e.StatusCode, http.StatusText(e.StatusCode)), " "))
	if e.Code != "" {
		b.WriteString(" " + quoted(e.Code))
	}
	if e.Description != "" {
		b.WriteString(" " + quoted(e.Description))
	}
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		b.WriteString(" " + quoted(name) + ":" + quoted(e.Fields[name]))
	}
	if e.Code == "" && len(e.Fields) == 0 && e.retrieve != nil && len(e.retrieve.Body) > 0 {
		b.WriteString(" " + quoted(string(e.retrieve.Body)))
	}
	if e.RetryAfter > 0 {
		fmt.Fprintf(&b, "; retry after %v", e.RetryAfter)
	}
	if e.RequestID != "" {
		fmt.Fprintf(&b, " (request ID %s)", quoted(e.RequestID))
	}
	if e.advice != "" {
		b.WriteString(": " + e.advice)
	}
	return b.String()
}

// Temporary reports whether the request is worth retrying: after 408, 429
// and any 5xx.
func (e *Error) Temporary() bool {
	return e.StatusCode == http.StatusRequestTimeout || e.StatusCode == http.StatusTooManyRequests || e.StatusCode >= 500
}

// temporary reports whether what failed with err is worth trying again. So is
// all that is no answer: no connection, or a reply that cannot be read.
func temporary(err error) bool {
	var refused *Error
	if errors.As(err, &refused) {
		return refused.Temporary()
	}
	return true
}

// Unwrap returns the [*oauth2.RetrieveError] of the same answer, for code
// that knows x/oauth2. Its Response has a Request without credentials.
func (e *Error) Unwrap() error {
	if e.retrieve == nil {
		return nil
	}
	return e.retrieve
}

// quoted is server text that cannot break a log line, nor fill it.
func quoted(s string) string { return fmt.Sprintf("%.200q", s) }

// newError reads an answer that refuses. All that the server wrote is masked,
// also a token that it sent all the same.
func newError(op, grantType string, resp *http.Response, body []byte, hide secrets) *Error {
	shown := *resp
	shown.Status, shown.Body, shown.Request = hide.mask(resp.Status), http.NoBody, withoutCredentials(resp.Request)
	shown.Trailer = nil
	shown.Header = make(http.Header, len(resp.Header))
	for name, values := range resp.Header {
		for _, v := range values {
			shown.Header.Add(name, hide.mask(v))
		}
	}
	var members map[string]any
	_ = json.Unmarshal(body, &members) // what is no object has no members
	member := func(name string) string {
		text, _ := members[name].(string)
		delete(members, name)
		return hide.mask(text)
	}
	e := &Error{
		Op:          op,
		GrantType:   grantType,
		StatusCode:  resp.StatusCode,
		Code:        member("error"),
		Description: member("error_description"),
		RequestID:   shown.Header.Get("X-Request-Id"),
		RetryAfter:  retryAfter(resp.Header, time.Now()),
	}
	text := hide.mask(string(body))
	if resp.StatusCode != http.StatusUnprocessableEntity { // whose members are messages
		text = maskMembers(text)
	}
	e.retrieve = &oauth2.RetrieveError{
		Response:         &shown,
		Body:             []byte(text),
		ErrorCode:        e.Code,
		ErrorDescription: e.Description,
		ErrorURI:         member("error_uri"),
	}
	if resp.StatusCode == http.StatusUnprocessableEntity {
		e.Fields = make(map[string]string, len(members))
		for name, v := range members {
			text, ok := v.(string)
			if !ok {
				raw, _ := json.Marshal(v)
				text = string(raw)
			}
			e.Fields[hide.mask(name)] = hide.mask(text)
		}
	}
	return e
}

// withoutCredentials is as much of a request as may be kept in an error.
func withoutCredentials(req *http.Request) *http.Request {
	if req == nil {
		return nil
	}
	header := req.Header.Clone()
	header.Del("Authorization")
	return &http.Request{Method: req.Method, URL: req.URL, Host: req.Host, Header: header}
}

// retryAfter reads Retry-After (RFC 9110 §10.2.3: seconds, or a date, which is
// read against the answer's own Date) and Moov's older X-Retry-In
// (milliseconds, or a duration such as 1.5s). What cannot be read, or lies
// in the past, is 0.
func retryAfter(header http.Header, now time.Time) time.Duration {
	var wait time.Duration
	if v := strings.TrimSpace(header.Get("Retry-After")); v != "" {
		if at, err := http.ParseTime(v); err == nil {
			if date, err := http.ParseTime(header.Get("Date")); err == nil {
				now = date
			}
			wait = at.Sub(now)
		} else {
			wait = duration(v, time.Second)
		}
	} else if v := strings.TrimSpace(header.Get("X-Retry-In")); v != "" {
		if wait = duration(v, time.Millisecond); wait == 0 {
			wait, _ = time.ParseDuration(v)
		}
	}
	return max(wait, 0)
}

// duration reads a decimal number of units, of which there may be too many
// for a time.Duration.
func duration(s string, unit time.Duration) time.Duration {
	n, err := strconv.ParseFloat(s, 64)
	if err != nil || n != n {
		return 0
	}
	const most = float64(1<<63 - 1<<10)
	return time.Duration(min(max(n*float64(unit), 0), most))
}

// secrets are what no message may carry.
type secrets []string

// mask replaces each secret in text, also where it stands in one of the
// encodings in which a request carries it.
func (s secrets) mask(text string) string {
	var known []string
	for _, secret := range s {
		if secret == "" {
			continue
		}
		text, _ := json.Marshal(secret)
		known = append(known, secret, url.QueryEscape(secret), url.PathEscape(secret),
			html.EscapeString(secret), string(text[1:len(text)-1]), strings.Trim(strconv.Quote(secret), `"`))
	}
	// Longest first: a secret that is part of another must not break it up.
	slices.SortFunc(known, func(a, b string) int { return len(b) - len(a) })
	pairs := make([]string, 0, 2*len(known))
	for _, k := range known {
		pairs = append(pairs, k, masked)
	}
	return strings.NewReplacer(pairs...).Replace(text)
}

// tokenMember finds tokens that nobody knows yet, also in a broken reply, and
// where that is quoted.
var tokenMember = regexp.MustCompile(`(?i)((?:access|refresh)_token[\\"]*\s*[:=]\s*[\\"]*)[^\\"&\s]+`)

func maskMembers(text string) string { return tokenMember.ReplaceAllString(text, "${1}"+masked) }

// wrap puts what was being done before err, and masks its text. Where there
// was something to mask, err itself is out of reach of errors.As, and only
// errors.Is still looks into it.
func (s secrets) wrap(doing string, err error) error {
	text := doing + ": " + err.Error()
	if clean := maskMembers(s.mask(text)); clean != text {
		return &maskedError{text: clean, is: func(target error) bool { return errors.Is(err, target) }}
	}
	return fmt.Errorf("%s: %w", doing, err)
}

type maskedError struct {
	text string
	is   func(target error) bool
}

func (e *maskedError) Error() string        { return e.text }
func (e *maskedError) Is(target error) bool { return e.is(target) }

// foreign is code that was plugged in.
type foreign struct {
	name string        // what it is
	heed time.Duration // how long after its context's end it may take to return
	hide secrets       // masked in its errors
}

// network is the code that a request goes through.
func network(hide secrets) foreign {
	return foreign{"http.RoundTripper or slog.Handler", 250 * time.Millisecond, hide}
}

// guard calls f, which calls code that was plugged in. Where that code panics
// or ends its goroutine, guard returns an error; where it does not heed ctx,
// guard returns soon after ctx has ended, and f's result goes to lost, which
// may be nil, when it comes.
func guard[T any](ctx context.Context, p foreign, f func() (T, error), lost func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done, gone := make(chan result), make(chan struct{})
	defer close(gone)
	go func() {
		r := result{err: &panicError{error: fmt.Errorf("moovauth: the %s plugged in called runtime.Goexit", p.name)}}
		defer func() {
			if v := recover(); v != nil {
				cause, ok := v.(error)
				if !ok {
					cause = fmt.Errorf("%v", v)
				}
				r.err = &panicError{p.hide.wrap("moovauth: the "+p.name+" plugged in panicked", cause), p.hide.mask(string(debug.Stack()))}
			}
			select {
			case done <- r:
			case <-gone:
				defer func() { _ = recover() }() // there is nobody left to tell
				if r.err == nil && lost != nil {
					lost(r.value)
				}
			}
		}()
		r.value, r.err = f()
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.value, r.err
	case <-time.After(p.heed):
		var none T
		return none, fmt.Errorf("moovauth: the %s plugged in has not returned, though its context has ended: %w", p.name, context.Cause(ctx))
	}
}

type panicError struct {
	error
	stack string
}

func (e *panicError) Unwrap() error { return e.error }

// withStack adds to a log record's attributes where err panicked.
func withStack(err error, attrs ...any) []any {
	if panicked := new(panicError); errors.As(err, &panicked) && panicked.stack != "" {
		attrs = append(attrs, "stack", panicked.stack)
	}
	return attrs
}

// warn logs, and returns soon whatever the handler does.
func (c *config) warn(ctx context.Context, msg string, attrs ...any) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
	defer cancel()
	_, _ = guard(ctx, network(nil), func() (struct{}, error) { c.logger.WarnContext(ctx, msg, attrs...); return struct{}{}, nil }, nil)
}
