package moovauth

// This file holds what goes wrong, as a caller sees it: what an endpoint
// answered, a cool-down, and the failures that are no answer. How an answer
// becomes an Error is in refusal.go.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/guard"
	"github.com/moovauth/moovauth/internal/redact"
)

// The values of Error.Op.
const (
	opToken  = "token"
	opRevoke = "revoke"
)

const (
	maxErrorText = 2 << 10 // bytes of an error's text, and of the body that it keeps
	maxShort     = 256     // bytes of anything else that it keeps
	maxQuoted    = 200     // characters of a quotation
)

// Error is what the token or revoke endpoint answered when it refused. With
// [errors.As] an [*oauth2.RetrieveError] is found in it as well. What is
// known to be secret is masked in all of it. Its text has 2 KiB at most, and so
// has the body in the RetrieveError; each other string is cut to 256 bytes, and
// there are 16 Fields at most.
type Error struct {
	Op          string            // "token" or "revoke"
	GrantType   string            // for "token": "client_credentials" or "refresh_token"
	StatusCode  int               // of the HTTP response
	Code        string            // the "error" member (RFC 6749 §5.2), if there is one
	Description string            // the "error_description" member, if there is one
	Fields      map[string]string // a 422's members, by field: "scope", "refresh_token", "token", …
	RequestID   string            // the x-request-id header: the first thing that Moov's support asks for
	RetryAfter  time.Duration     // from Retry-After or X-Retry-In; 0 if absent

	advice   string // what to change, if that can be told
	text     string // "": made by hand
	retrieve *oauth2.RetrieveError
}

// Error says in one line what was refused, why, and what to change.
func (e *Error) Error() string {
	if e.text == "" {
		return e.line()
	}
	return e.text
}

func (e *Error) line() string {
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
		if b.Len() > maxErrorText/2 {
			b.WriteString(" …")
			break
		}
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
	return redact.Cut(b.String(), maxErrorText)
}

// Temporary reports whether the request is worth retrying: after 408, 429
// and any 5xx.
func (e *Error) Temporary() bool {
	return e.StatusCode == http.StatusRequestTimeout || e.StatusCode == http.StatusTooManyRequests || e.StatusCode >= 500
}

// Timeout is false: the server answered in time.
func (e *Error) Timeout() bool { return false }

// Unwrap returns the [*oauth2.RetrieveError] of the same answer, for code
// that knows x/oauth2. Its Response has a Request without credentials, and of
// the header the fields that help to find out why.
func (e *Error) Unwrap() error {
	if e.retrieve == nil {
		return nil
	}
	return e.retrieve
}

// quoted is server text that cannot break a log line, nor fill it.
func quoted(s string) string {
	q := strconv.Quote(prefix(s, maxQuoted))
	if len(q) > 2*maxQuoted {
		q = redact.Cut(q, 2*maxQuoted) + `…"`
	}
	return q
}

// prefix is the first n characters of s.
func prefix(s string, n int) string {
	for i := range s {
		if n--; n < 0 {
			return s[:i]
		}
	}
	return s
}

// CoolDownError is what a caller gets while the source leaves the server alone
// after a failure. It unwraps to that failure.
type CoolDownError struct {
	Until time.Time // when the next attempt is due
	Err   error     // the failure
}

// Error is the failure, and when the next attempt is due.
func (e *CoolDownError) Error() string {
	text := "moovauth: the last attempt failed"
	if e.Err != nil {
		text = redact.Cut(e.Err.Error(), maxErrorText-maxShort)
	}
	return fmt.Sprintf("%s; no request is made before the next attempt, which is due in %v", text, max(0, time.Until(e.Until)).Round(time.Millisecond))
}

// Unwrap returns the failure.
func (e *CoolDownError) Unwrap() error { return e.Err }

// Temporary reports whether the failure is worth retrying, after Until.
func (e *CoolDownError) Temporary() bool { return e.Err != nil && temporary(e.Err) }

// Timeout is false, also if the failure was a timeout: this call did not wait.
func (e *CoolDownError) Timeout() bool { return false }

// grantError is a failure that is no answer of the server.
type grantError struct {
	text               string
	causes             []error
	temporary, timeout bool
}

func (e *grantError) Error() string   { return e.text }
func (e *grantError) Unwrap() []error { return e.causes }
func (e *grantError) Temporary() bool { return e.temporary }
func (e *grantError) Timeout() bool   { return e.timeout }

// failure is err, with what was being done before its text, as an error that
// has Temporary and Timeout. Nothing is masked here. If doing is "", what has
// these methods already stays as it is.
func failure(doing string, err error) error {
	switch err.(type) {
	case *Error, *CoolDownError, *grantError:
		if doing == "" {
			return err
		}
	}
	text := err.Error()
	if doing != "" {
		text = doing + ": " + text
	}
	return &grantError{redact.Cut(text, maxErrorText), []error{err}, temporary(err), timedOut(err)}
}

// permanent is a failure that no retry helps against.
func permanent(text string) error { return &grantError{text: text} }

// temporary reports whether what failed with err is worth retrying. Errors that
// are no answer of the server, such as a failed connection, are temporary,
// unless the caller went away or code that was plugged in panicked.
func temporary(err error) bool {
	if cooling := new(CoolDownError); errors.As(err, &cooling) {
		return cooling.Temporary()
	}
	if refused := new(Error); errors.As(err, &refused) {
		return refused.Temporary()
	}
	if failed := new(grantError); errors.As(err, &failed) {
		return failed.temporary
	}
	return timedOut(err) || !errors.Is(err, context.Canceled) && !errors.As(err, new(*guard.PanicError))
}

// timedOut reports whether a deadline is what ended err. An error with a
// Timeout method speaks for those that it wraps: a cool-down is no timeout,
// even if it follows one.
func timedOut(err error) bool {
	switch e := err.(type) {
	case nil:
		return false
	case *url.Error: // which looks no deeper than one level
		return timedOut(e.Err)
	case interface{ Timeout() bool }:
		return e.Timeout()
	case interface{ Unwrap() error }:
		return timedOut(e.Unwrap())
	case interface{ Unwrap() []error }:
		return slices.ContainsFunc(e.Unwrap(), timedOut)
	}
	return errors.Is(err, context.DeadlineExceeded)
}
