package moovauth

// This file reads an answer without a token: what the server refused, and what
// to change. All of it is masked and cut before it is kept.

import (
	"bytes"
	"encoding/json"
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

	"github.com/moovauth/moovauth/internal/redact"
)

const (
	maxRead   = 4 << 10 // bytes of a reply that are looked at
	maxFields = 16      // of an Error
)

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
