package moovauth

// This file reads the server's answer: a token (RFC 6749 §5.1), or an Error
// (§5.2) that says what to change. It trusts no part of the answer.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
)

// reply is a successful answer to a token request.
type reply struct {
	token     *oauth2.Token  // without an Expiry, which depends on the caller's clock
	members   map[string]any // for Extra
	sent      instant        // when the request was sent
	lifetime  time.Duration  // counted from sent
	expired   bool           // the server says that the token has expired
	requestID string
	warning   string // what is wrong with the lifetime; "": nothing
}

// readReply reads the server's answer to r. sent is when r was sent.
func (c *config) readReply(r *request, resp *http.Response, body []byte, sent instant) (*reply, error) {
	body = bytes.TrimSpace(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")))
	var members map[string]any
	err := json.Unmarshal(body, &members)
	if err != nil {
		err = fmt.Errorf("want a JSON object, got %d bytes of type %q (is a proxy in between?)", len(body), resp.Header.Get("Content-Type"))
	}
	masked, shown := c.outside(r, resp, body, members)
	refused := members["error"] != nil && members["error"] != "" && (r.op == opRevoke || members["access_token"] == nil)
	if resp.StatusCode/100 != 2 || refused { // some servers send an error with status 200
		return nil, c.refusal(r, resp, members, masked, shown())
	}
	if r.op == opRevoke && (len(body) == 0 || json.Valid(body)) {
		return nil, nil
	}
	rep := &reply{sent: sent, requestID: masked(resp.Header.Get("X-Request-Id"))}
	if err == nil {
		err = rep.read(members, resp.Header)
	}
	if err == nil {
		return rep, nil
	}
	why := fmt.Sprintf("answered %d: %s", resp.StatusCode, masked(err.Error()))
	// A JSON object may hold a token, and a single word may be one.
	if page := shown(); strings.ContainsAny(page, " \t\r\n<") && !strings.HasPrefix(page, "{") {
		why += "; it starts with " + quoted(page)
	}
	return nil, rep.unusable(r, why)
}

// read reads the members of a token reply.
func (rep *reply) read(members map[string]any, header http.Header) error {
	access, _ := members["access_token"].(string)
	refresh, _ := members["refresh_token"].(string)
	tokenType, isText := members["token_type"].(string)
	switch {
	case access == "":
		return errors.New("it has no access_token")
	case !headerSafe(access):
		return errors.New("its access_token is not visible ASCII (RFC 6750 §2.1)")
	case !isText && members["token_type"] != nil:
		return errors.New("its token_type is not a string")
	}
	scheme, err := bearer(tokenType)
	if err != nil {
		return fmt.Errorf("its %w", err)
	}
	rep.readLifetime(members["expires_in"], header)
	delete(members, "access_token")
	delete(members, "refresh_token")
	rep.members = share(members)
	rep.token = (&oauth2.Token{AccessToken: access, TokenType: scheme, RefreshToken: refresh}).WithExtra(rep.members)
	return nil
}

// lastPlain holds the last members that were only a token_type and an
// expires_in.
var lastPlain atomic.Pointer[map[string]any]

// share returns a map with the same members. Thousands of sources with plain
// replies share one map, which would take 400 bytes for each.
func share(members map[string]any) map[string]any {
	for name := range members {
		if name != "token_type" && name != "expires_in" {
			return members
		}
	}
	if last := lastPlain.Load(); last != nil && reflect.DeepEqual(*last, members) {
		return *last
	}
	lastPlain.Store(&members)
	return members
}

// readLifetime reads expires_in. Moov documents a Unix timestamp, and has also
// answered with seconds (RFC 6749 §5.1). From 1e9 on, the number is a
// timestamp. It is compared with the reply's Date, so that a wrong local clock
// does not matter. If the reply does not say how long the token lives, a short
// lifetime is assumed.
func (rep *reply) readLifetime(expiresIn any, header http.Header) {
	seconds, err := strconv.ParseFloat(fmt.Sprint(expiresIn), 64) // of a number or a string
	rep.expired = err == nil && seconds <= 0
	if seconds >= 1e9 {
		now := rep.sent.time()
		if date, err := http.ParseTime(header.Get("Date")); err == nil {
			now = date
		}
		seconds -= float64(now.UnixMilli()) / 1e3
	}
	switch {
	case !(seconds >= 1):
		rep.lifetime, rep.warning = assumedLifetime, "expires_in is absent, unreadable or in the past: 5 minutes are assumed"
	case seconds > maxLifetime.Seconds():
		rep.lifetime, rep.warning = maxLifetime, "expires_in is more than 30 days ahead: 30 days are assumed"
	default:
		rep.lifetime = time.Duration(seconds * float64(time.Second))
	}
}

// bearer returns the scheme of the Authorization header for a token_type. Older
// pages of Moov's documentation give the token's format there. The error does
// not quote an unknown type, since it may be the token itself.
func bearer(tokenType string) (string, error) {
	switch strings.ToLower(tokenType) {
	case "", "bearer", "opaque", "jwt":
		return "Bearer", nil
	}
	return "", fmt.Errorf("token_type (%d bytes) is not Bearer", len(tokenType))
}

// headerSafe reports whether token can be sent in an Authorization header.
func headerSafe(token string) bool {
	return token != "" && !strings.ContainsFunc(token, func(r rune) bool { return r < '!' || r > '~' })
}

// secretsOf returns what no error about r may show.
func (c *config) secretsOf(r *request) []string { return append(c.creds.secrets(), r.secrets...) }

// outside returns two functions that mask and cut text from an answer to r:
// masked does so for a short text, and shown returns the body.
func (c *config) outside(r *request, resp *http.Response, body []byte, members map[string]any) (masked func(string) string, shown func() string) {
	secrets := c.secretsOf(r)
	if resp.StatusCode != http.StatusUnprocessableEntity { // the members of a 422 are messages about fields
		for _, name := range []string{"access_token", "refresh_token"} {
			token, _ := members[name].(string)
			secrets = append(secrets, token)
		}
	}
	masked = func(s string) string { return cut(redact.Text(s, secrets...), maxShort) }
	shown = func() string {
		text := redact.Text(string(body), secrets...)
		if resp.StatusCode != http.StatusUnprocessableEntity {
			text = redact.Unknown(text)
		}
		return cut(text, maxErrorText)
	}
	return masked, shown
}

// refusal returns the Error of an answer to r that is not a success.
func (c *config) refusal(r *request, resp *http.Response, members map[string]any, masked func(string) string, shown string) *Error {
	e := &Error{Op: r.op, GrantType: r.grantType, StatusCode: resp.StatusCode, RetryAfter: retryAfter(resp.Header, time.Now())}
	e.RequestID = masked(resp.Header.Get("X-Request-Id"))
	member := func(name string) string {
		text, isText := members[name].(string)
		if !isText && members[name] != nil {
			text = redact.Unknown(fmt.Sprint(members[name]))
		}
		return masked(text)
	}
	e.Code, e.Description = member("error"), member("error_description")
	if resp.StatusCode == http.StatusUnprocessableEntity {
		e.Fields = make(map[string]string)
		names := slices.DeleteFunc(slices.Sorted(maps.Keys(members)), func(name string) bool {
			return slices.Contains([]string{"error", "error_description", "error_uri"}, name)
		})
		for _, name := range names[:min(len(names), maxFields)] {
			e.Fields[masked(name)] = member(name)
		}
	}
	status := fmt.Sprintf("%d %s", resp.StatusCode, http.StatusText(resp.StatusCode))
	e.retrieve = &oauth2.RetrieveError{
		Response: &http.Response{Status: status, StatusCode: resp.StatusCode, Header: http.Header{}, Body: http.NoBody},
		Body:     []byte(shown), ErrorCode: e.Code, ErrorDescription: e.Description, ErrorURI: member("error_uri"),
	}
	e.advice = e.whatToChange(c)
	return e
}

// unusable returns the error of a reply to r without a usable token.
func (rep *reply) unusable(r *request, why string) error {
	text := fmt.Sprintf("moovauth: %s: unusable reply (request ID %s): %s", r, quoted(rep.requestID), why)
	return &grantError{text: cut(text, maxErrorText), temporary: true}
}

// retryAfter reads Retry-After (RFC 9110 §10.2.3: seconds, or a date) and
// Moov's older X-Retry-In (milliseconds, or a duration such as 1.5s). A date is
// compared with the answer's own Date. If there are several values, the largest
// counts. A value that is unreadable or in the past counts as 0.
func retryAfter(header http.Header, now time.Time) (wait time.Duration) {
	if date, err := http.ParseTime(header.Get("Date")); err == nil {
		now = date
	}
	for name, unit := range map[string]time.Duration{"Retry-After": time.Second, "X-Retry-In": time.Millisecond} {
		for _, value := range header.Values(name) {
			if at, err := http.ParseTime(value); err == nil {
				wait = max(wait, at.Sub(now))
			}
			for part := range strings.SplitSeq(value, ",") {
				asDuration, _ := time.ParseDuration(strings.TrimSpace(part))
				wait = max(wait, duration(part, unit), asDuration)
			}
		}
	}
	return wait
}

// duration reads a decimal number of units. A number that is too large for a
// time.Duration is cut.
func duration(s string, unit time.Duration) time.Duration {
	if n, err := strconv.ParseFloat(strings.TrimSpace(s), 64); err == nil && n > 0 {
		return time.Duration(min(n*float64(unit), 1<<62))
	}
	return 0
}
