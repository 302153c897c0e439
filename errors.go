package moovauth

// This file holds the errors that a caller sees: a refusal by the server, a
// cool-down, and failures without an answer of the server. reply.go reads an
// Error from an answer.

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	maxErrorText = 2 << 10 // bytes of an error's text, and of the body that it keeps
	maxShort     = 256     // bytes of each other text that it keeps
	maxQuoted    = 200     // bytes of a quotation
	maxFields    = 16      // of an Error
)

// Error is returned if the token or revoke endpoint refuses a request.
// [errors.As] also finds an [*oauth2.RetrieveError] in it, with the same status
// and body but without the headers. Known secrets are masked in all its
// strings. The text and the body are cut to 2 KiB and each other string to 256
// bytes. Fields has at most 16 members.
type Error struct {
	Op          string            // "token" or "revoke"
	GrantType   string            // for "token": "client_credentials" or "refresh_token"
	StatusCode  int               // of the HTTP response
	Code        string            // the "error" member (RFC 6749 §5.2), if there is one
	Description string            // the "error_description" member, if there is one
	Fields      map[string]string // the messages of a 422, by field: "scope", "refresh_token", "token", …
	RequestID   string            // the X-Request-Id header, which Moov's support asks for
	RetryAfter  time.Duration     // from Retry-After or X-Retry-In; 0 if absent

	advice   string // what to change, if that is known
	retrieve *oauth2.RetrieveError
}

// Error returns one line that says what was refused, why, and what to change.
func (e *Error) Error() string {
	var b strings.Builder
	fmt.Fprintf(&b, "moovauth: %s answered %d %s", &request{op: e.Op, grantType: e.GrantType}, e.StatusCode, http.StatusText(e.StatusCode))
	for _, text := range []string{e.Code, e.Description} {
		if text != "" {
			b.WriteString(" " + quoted(text))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(e.Fields)) {
		if b.Len() < maxErrorText/2 {
			b.WriteString(" " + quoted(name) + ":" + quoted(e.Fields[name]))
		}
	}
	if e.Code == "" && len(e.Fields) == 0 && e.retrieve != nil && len(e.retrieve.Body) > 0 && e.retrieve.Body[0] != '{' {
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
	return cut(b.String(), maxErrorText)
}

// whatToChange returns the advice of an Error.
func (e *Error) whatToChange(c *config) string {
	_, refusesToken := e.Fields["refresh_token"]
	status := e.StatusCode
	switch {
	case status/100 == 3:
		return "redirects are not followed, so that credentials do not go astray: set WithBaseURL to the API's own address"
	case status == http.StatusNotFound || status == http.StatusMethodNotAllowed:
		return fmt.Sprintf("this is not Moov's %s endpoint, or the version is malformed: check WithBaseURL, such as %s, and WithVersion", e.Op, DefaultBaseURL)
	case e.Temporary():
		return ""
	case e.GrantType == grantRefreshToken && (e.Code == "invalid_grant" || refusesToken):
		return "the refresh token has expired, or was revoked or used: give WithToken a new one, or use WithScopes"
	case status == http.StatusUnauthorized || e.Code == "invalid_client":
		return "check Credentials against the API key in Moov's dashboard, and whether it is a production or a test key"
	case e.Op == opToken && (e.refusesScopes() || status == http.StatusUnprocessableEntity):
		return "check the scopes, the accounts in them, and what the API key may do; the scopes were " + cut(strings.Join(c.scopes, " "), maxShort)
	case status != http.StatusBadRequest && status != http.StatusForbidden || e.Code == "invalid_grant":
		return ""
	case c.origin == "":
		return "Moov requires an Origin: set WithOrigin to a domain of the API key's allowed-domain list"
	}
	return fmt.Sprintf("compare WithOrigin (%s) with the API key's allowed-domain list", c.origin)
}

// refusesScopes reports whether the server refused the requested scopes.
func (e *Error) refusesScopes() bool {
	_, scope := e.Fields["scope"]
	return scope || e.Code == "invalid_scope"
}

// Temporary reports whether a retry may succeed: after 408, 421, 425, 429 and
// any 5xx.
func (e *Error) Temporary() bool {
	return e.StatusCode >= 500 || slices.Contains([]int{http.StatusRequestTimeout, http.StatusMisdirectedRequest,
		http.StatusTooEarly, http.StatusTooManyRequests}, e.StatusCode)
}

// Timeout returns false, since the server answered.
func (e *Error) Timeout() bool { return false }

// Unwrap returns an [*oauth2.RetrieveError] for the same answer, for code
// written for x/oauth2.
func (e *Error) Unwrap() error {
	if e.retrieve == nil {
		return nil
	}
	return e.retrieve
}

// CoolDownError is returned while a source without a valid token is backing off
// after a failure. It wraps that failure. The source backs off for 250 ms at
// first, doubling to 30 s (5 minutes if the scopes were refused), or for as
// long as the server asks, an hour at most.
type CoolDownError struct {
	Until time.Time // when the next attempt is possible
	Err   error     // the failure
}

// Error returns the text of the failure, and says when the next attempt is
// possible.
func (e *CoolDownError) Error() string {
	return fmt.Sprintf("%v; backing off: the next attempt is due in %v", e.Err, max(0, time.Until(e.Until)).Round(time.Millisecond))
}

// Unwrap returns the failure.
func (e *CoolDownError) Unwrap() error { return e.Err }

// Temporary reports whether a retry after Until may succeed.
func (e *CoolDownError) Temporary() bool { return e.Err != nil && temporary(e.Err) }

// Timeout returns false, even if the failure was a timeout, since this call did
// not wait.
func (e *CoolDownError) Timeout() bool { return false }

// grantError is a failure without an answer of the server.
type grantError struct {
	text               string
	err                error
	temporary, timeout bool
}

func (e *grantError) Error() string   { return e.text }
func (e *grantError) Unwrap() error   { return e.err }
func (e *grantError) Temporary() bool { return e.temporary }
func (e *grantError) Timeout() bool   { return e.timeout }

// failure returns err as an error that has Temporary and Timeout.
func failure(err error) error {
	switch err.(type) {
	case nil, *Error, *CoolDownError, *grantError:
		return err
	}
	return &grantError{cut(err.Error(), maxErrorText), err, temporary(err), timedOut(err)}
}

// temporary reports whether a retry may succeed after err. An error without an
// answer of the server, such as a failed connection, is temporary, unless the
// caller has cancelled the request.
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
	return timedOut(err) || !errors.Is(err, context.Canceled)
}

// timedOut reports whether err was caused by a deadline. A cool-down is not a
// timeout, even if it follows one.
func timedOut(err error) bool {
	if errors.As(err, new(*CoolDownError)) {
		return false
	}
	var timeout interface{ Timeout() bool }
	return errors.As(err, &timeout) && timeout.Timeout() || errors.Is(err, context.DeadlineExceeded)
}

// notUsedUp reports whether a refresh token can be sent again after its request
// has failed with err. It can if no connection was made, or if the server
// refused the request with 429. After any other failure the server may have
// used it up. That includes 500 and 503, which a proxy may have written.
func notUsedUp(err error) bool {
	failed := new(net.OpError)
	return throttled(err) || errors.As(err, &failed) && failed.Op == "dial"
}

// askedWait returns how long the server asks to wait after err.
func askedWait(err error) time.Duration {
	if refused := new(Error); errors.As(err, &refused) {
		return refused.RetryAfter
	}
	return 0
}

// throttled reports whether err is a 429.
func throttled(err error) bool {
	refused := new(Error)
	return errors.As(err, &refused) && refused.StatusCode == http.StatusTooManyRequests
}

// quoted returns text from outside, so that it cannot break or fill a log line.
func quoted(s string) string { return strconv.Quote(cut(s, maxQuoted)) }

// cut returns at most the first n bytes of s, without a part of a character.
func cut(s string, n int) string {
	return strings.ToValidUTF8(s[:min(len(s), n)], "?")
}
