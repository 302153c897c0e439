package moovauth

// This file holds what goes wrong, as a caller sees it: Error, which is what
// an endpoint answered, the masking of secrets in every message, and the guard
// against plugged-in code that panics or does not return.

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
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
func newError(op, grantType string, resp *http.Response, body []byte, hide *redact.Set) *Error {
	shown := *resp
	shown.Status, shown.Body, shown.Request = hide.Text(resp.Status), http.NoBody, withoutCredentials(resp.Request)
	shown.Trailer = nil
	shown.Header = make(http.Header, len(resp.Header))
	for name, values := range resp.Header {
		for _, v := range values {
			shown.Header.Add(name, hide.Text(v))
		}
	}
	var members map[string]any
	_ = json.Unmarshal(body, &members) // what is no object has no members
	member := func(name string) string {
		text, _ := members[name].(string)
		delete(members, name)
		return hide.Text(text)
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
	text := hide.Text(string(body))
	if resp.StatusCode != http.StatusUnprocessableEntity { // whose members are messages
		text = hide.Body(text)
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
			e.Fields[hide.Text(name)] = hide.Text(text)
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

// CoolDownError is what a caller gets while the source leaves the server alone
// after a failure. It unwraps to that failure.
type CoolDownError struct {
	Until time.Time // when the next attempt is due
	Err   error
}

func (e *CoolDownError) Error() string {
	return fmt.Sprintf("%v; no request is made before the next attempt, which is due in %v", e.Err, max(0, time.Until(e.Until)).Round(time.Millisecond))
}

// Unwrap returns the failure.
func (e *CoolDownError) Unwrap() error { return e.Err }
