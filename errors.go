package moovauth

// This file holds what goes wrong, as a caller sees it: what an endpoint
// answered, a reply without a token, and the failures that are no answer. It
// says what to change. What came from outside is masked and short in all of it.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"iter"
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
	maxRead      = 4 << 10 // bytes of an unusable reply that are looked at
	maxErrorText = 2 << 10 // bytes of an error's text, and of the body that it keeps
	maxShort     = 256     // bytes of anything else that it keeps
	maxQuoted    = 200     // characters of a quotation
	maxFields    = 16
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

// newError reads an answer that refuses. All that the server wrote is masked,
// also a token that it sent with the refusal.
func newError(op, grantType string, resp *http.Response, body []byte, hide *redact.Set) *Error {
	e := &Error{
		Op:         op,
		GrantType:  grantType,
		StatusCode: resp.StatusCode,
		RetryAfter: retryAfter(resp.Header, time.Now()),
	}
	var uri string
	var fields [maxFields]struct{ name, value string }
	n := 0
	for name, value := range members(body) {
		var text string
		isText := json.Unmarshal(value, &text) == nil
		switch {
		case name == "error" && isText:
			e.Code = text
		case name == "error_description" && isText:
			e.Description = text
		case name == "error_uri" && isText:
			uri = text
		case resp.StatusCode == http.StatusUnprocessableEntity && n < maxFields:
			if !isText {
				text = string(value)
			}
			fields[n].name, fields[n].value = name, text
			n++
		}
	}
	outside := []*string{&e.Code, &e.Description, &uri}
	for i := range n {
		outside = append(outside, &fields[i].name, &fields[i].value)
	}
	e.retrieve = retrieveError(resp, body, hide, outside)
	e.retrieve.ErrorCode, e.retrieve.ErrorDescription, e.retrieve.ErrorURI = e.Code, e.Description, uri
	e.RequestID = e.retrieve.Response.Header.Get("X-Request-Id")
	if n > 0 {
		e.Fields = make(map[string]string, n)
		for _, f := range fields[:n] {
			e.Fields[f.name] = f.value
		}
	}
	e.text = e.line()
	return e
}

// members are the members of the JSON object that body starts with, as far as
// it goes.
func members(body []byte) iter.Seq2[string, json.RawMessage] {
	return func(yield func(string, json.RawMessage) bool) {
		d := json.NewDecoder(bytes.NewReader(start(body)))
		if t, err := d.Token(); err != nil || t != json.Delim('{') {
			return
		}
		for d.More() {
			t, err := d.Token()
			name, ok := t.(string)
			var value json.RawMessage
			if err != nil || !ok || d.Decode(&value) != nil || !yield(name, value) {
				return
			}
		}
	}
}

// start is as much of a reply's body as is looked at in an error.
func start(body []byte) []byte {
	return bytes.TrimPrefix(body[:min(len(body), maxRead)], []byte("\xef\xbb\xbf"))
}

// keptHeader are the fields of a reply's header that an error keeps.
var keptHeader = []string{
	"Allow", "Cf-Ray", "Content-Encoding", "Content-Type", "Date", "Location", "Retry-After", "Server", "Via", "Www-Authenticate",
	"X-Request-Id", "X-Retry-In",
}

// retrieveError is what x/oauth2 makes of a reply. It tells hide the tokens in
// it. What else comes from outside is in outside, and is masked and cut, too.
func retrieveError(resp *http.Response, body []byte, hide *redact.Set, outside []*string) *oauth2.RetrieveError {
	isMessage := resp.StatusCode == http.StatusUnprocessableEntity // of each member
	for name, value := range members(body) {
		var token string
		if (name == "access_token" || name == "refresh_token") && !isMessage && json.Unmarshal(value, &token) == nil {
			hide.Add(token)
		}
	}
	shown := &http.Response{
		Status:     resp.Status,
		StatusCode: resp.StatusCode,
		Proto:      resp.Proto,
		ProtoMajor: resp.ProtoMajor,
		ProtoMinor: resp.ProtoMinor,
		Header:     headerOf(resp.Header, keptHeader),
		Body:       http.NoBody,
	}
	outside = append([]*string{&shown.Status, &shown.Proto}, append(values(shown.Header), outside...)...)
	if req := resp.Request; req != nil { // a RoundTripper may have put any there
		to := &url.URL{}
		if req.URL != nil {
			to = &url.URL{Scheme: req.URL.Scheme, Host: req.URL.Host, Path: req.URL.Path}
		}
		shown.Request = &http.Request{Method: req.Method, Host: req.Host, URL: to,
			Header: headerOf(req.Header, []string{"Accept", "Content-Type", "Origin", "User-Agent", VersionHeader})}
		outside = append(outside, &shown.Request.Method, &shown.Request.Host, &to.Scheme, &to.Host, &to.Path)
		outside = append(outside, values(shown.Request.Header)...)
	}
	encoding := compressed(resp.Header, body)
	for _, s := range append(outside, &encoding) {
		*s = redact.Cut(*s, 2*maxShort) // masking takes time
	}
	hide.Each(append(outside, &encoding)...)
	for _, s := range outside {
		*s = redact.Cut(*s, maxShort)
	}

	mask := hide.Body
	if isMessage {
		mask = hide.Text
	}
	text := mask(string(start(body)))
	if encoding != "" {
		text = fmt.Sprintf("(%d bytes, Content-Encoding: %s)", len(body), strings.Trim(quoted(encoding), `"`))
	}
	return &oauth2.RetrieveError{Response: shown, Body: []byte(redact.Cut(text, maxErrorText))}
}

// headerOf is as much of a header as an error keeps.
func headerOf(header http.Header, names []string) http.Header {
	kept := make(http.Header)
	for _, name := range names {
		if v := header.Get(name); v != "" {
			kept.Set(name, v)
		}
	}
	return kept
}

func values(header http.Header) (all []*string) {
	for _, v := range header {
		all = append(all, &v[0])
	}
	return all
}

// compressed is the Content-Encoding that body still has, or "".
func compressed(header http.Header, body []byte) string {
	encoding := strings.TrimSpace(header.Get("Content-Encoding"))
	text := bytes.TrimLeft(start(body), " \t\r\n")
	switch {
	case len(text) > 0 && (text[0] == '{' || text[0] == '<'):
		return "" // whatever the header says
	case encoding != "" && !strings.EqualFold(encoding, "identity"):
		return encoding
	case bytes.HasPrefix(body, []byte("\x1f\x8b")):
		return "gzip"
	case bytes.HasPrefix(body, []byte("\x28\xb5\x2f\xfd")):
		return "zstd"
	}
	return ""
}

// unusableReply is the error of a 2xx that brought no token. why says what is
// wrong with it. An [*oauth2.RetrieveError] is found in it. A page is quoted,
// but not a JSON object, nor a single word: they may hold, or be, a token.
func unusableReply(grantType string, resp *http.Response, body []byte, why error, hide *redact.Set) error {
	retrieve := retrieveError(resp, body, hide, nil)
	doing := fmt.Sprintf("moovauth: reply to the token request (%s, %s, request ID %s) is unusable",
		grantType, retrieve.Response.Status, quoted(retrieve.Response.Header.Get("X-Request-Id")))
	page := strings.TrimSpace(string(retrieve.Body))
	err := hide.Error(doing, why)
	text := err.Error()
	switch {
	case compressed(resp.Header, body) != "":
		text = doing + ": it is compressed " + page +
			": give WithHTTPClient a client that undoes the Content-Encoding which it asks for, or that leaves Accept-Encoding to net/http; or is a proxy in between?"
	case strings.HasPrefix(page, "{") || !strings.ContainsAny(page, " \t\r\n<"):
		retrieve.Body = nil
	default:
		text += "; it starts with " + quoted(page)
	}
	return &grantError{text: redact.Cut(text, maxErrorText), causes: []error{retrieve, err}, temporary: true}
}

// shownType is a token_type as it may stand in an error. One that is not
// registered with IANA can be the token itself: only its length is given.
func shownType(tokenType string) string {
	switch name := strings.ToLower(tokenType); name {
	case "mac", "pop", "dpop", "n_a":
		return strconv.Quote(name)
	}
	return fmt.Sprintf("(%d bytes)", len(tokenType))
}

// advise adds what to change. scopes are those configured; origin says whether
// there is an Origin.
func (e *Error) advise(scopes []string, origin bool) {
	e.advice = e.whatToChange(scopes, origin)
	e.text = e.line()
}

func (e *Error) whatToChange(scopes []string, origin bool) string {
	_, refused := e.Fields["refresh_token"]
	switch {
	case e.StatusCode/100 == 3:
		return "redirects are not followed, so that credentials do not go astray: give WithBaseURL the API's own address"
	case e.StatusCode == http.StatusNotFound || e.StatusCode == http.StatusMethodNotAllowed:
		return fmt.Sprintf("this is not Moov's %s endpoint: give WithBaseURL the address to which /oauth2/%[1]s is added, such as %s", e.Op, DefaultBaseURL)
	case e.Temporary():
		return ""
	case e.GrantType == grantRefreshToken && (e.Code == "invalid_grant" || refused):
		if len(scopes) == 0 {
			return "the refresh token has expired, was revoked or used up: give WithToken a new one, or WithScopes to do without"
		}
		return ""
	case e.StatusCode == http.StatusUnauthorized || e.Code == "invalid_client":
		return "check Credentials against the API key in Moov's dashboard, and check the credentials' environment: production or test"
	case e.Op == opRevoke:
		if e.StatusCode == http.StatusUnprocessableEntity {
			return "check the token that is to be revoked, and WithTokenTypeHint if it is given" + e.named()
		}
		return ""
	case e.Code == "invalid_scope" || e.StatusCode == http.StatusUnprocessableEntity:
		if len(scopes) == 0 {
			return "check what the token given with WithToken is for" + e.named()
		}
		return "check the scopes given with WithScopes, the accounts in them, and what the API key may do" + e.named() +
			"; asked for were " + redact.Cut(strings.Join(scopes, " "), 2*maxShort)
	case !origin && (e.StatusCode == http.StatusBadRequest || e.StatusCode == http.StatusForbidden) && e.Code != "invalid_grant":
		return "Moov wants an Origin on token requests: give WithOrigin a domain of the API key's allowed-domain list"
	}
	return ""
}

// named names the fields that were refused.
func (e *Error) named() string {
	if len(e.Fields) == 0 {
		return ""
	}
	return " (refused: " + redact.Cut(strings.Join(slices.Sorted(maps.Keys(e.Fields)), ", "), maxShort) + ")"
}

// CoolDownError is what a caller gets while the source leaves the server alone
// after a failure. It unwraps to that failure.
type CoolDownError struct {
	Until time.Time // when the next attempt is due
	Err   error     // the failure
}

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
