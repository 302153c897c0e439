package moovauth

// This file reads a token out of a successful reply (RFC 6749 §5.1): what its
// members mean, and how long the token lives. It takes nothing on trust.

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strings"
	"time"

	"golang.org/x/oauth2"
)

const (
	maxExtra  = 64 << 10 // bytes of members that Extra finds
	perMember = 64       // bytes that a member takes beyond its text
)

// reply is what a token request was answered with.
type reply struct {
	token     *oauth2.Token  // without its Expiry, which depends on the caller's clock
	members   map[string]any // what Extra finds
	sent      instant        // when the request was
	lifetime  time.Duration  // from then on
	assumed   bool           // the reply does not say how long that is
	requestID string
	warning   string // what was odd about the lifetime; "": nothing
}

var errNoToken = errors.New("it has no access_token")

// readToken reads a successful reply to a request sent at sent. The type of
// its content is what it parses as, whatever it is called.
func readToken(header http.Header, body []byte, sent time.Time) (*reply, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &raw); err != nil {
		return nil, fmt.Errorf("want a JSON object, got %d bytes of type %q (is a proxy in between?): %w", len(body), header.Get("Content-Type"), err)
	}
	text := func(name string) (s string) {
		_ = json.Unmarshal(raw[name], &s)
		return s
	}
	access, refresh, tokenType := text("access_token"), text("refresh_token"), text("token_type")
	switch {
	case access == "":
		return nil, errNoToken
	case !usable(access):
		return nil, errors.New("its access_token is not visible ASCII (RFC 6750 §2.1)")
	case tokenType == "" && len(raw["token_type"]) > 0 && string(raw["token_type"]) != `""` && string(raw["token_type"]) != "null":
		return nil, errors.New("its token_type is not a string")
	}
	scheme, err := bearer(tokenType)
	if err != nil {
		return nil, err
	}
	r := new(reply)
	r.lifetime, r.warning, r.assumed = lifetime(raw["expires_in"], header, sent)
	t := &oauth2.Token{AccessToken: access, TokenType: scheme, RefreshToken: refresh, ExpiresIn: int64(r.lifetime / time.Second)}
	r.members = extra(raw)
	if r.token = t; r.members != nil {
		r.token = t.WithExtra(r.members)
	}
	return r, nil
}

// fields are the members for which an oauth2.Token has fields of its own.
var fields = []string{"access_token", "refresh_token", "token_type", "expires_in"}

// extra is what Extra finds: the other members that are strings, numbers or
// booleans. nil: there are none.
func extra(raw map[string]json.RawMessage) map[string]any {
	var members map[string]any
	left := maxExtra
	for _, name := range slices.Sorted(maps.Keys(raw)) {
		if slices.Contains(fields, name) {
			continue
		}
		text := raw[name]
		size := len(name) + len(text) + perMember
		if text[0] == '{' || text[0] == '[' || size > left {
			continue
		}
		var v any
		if json.Unmarshal(text, &v) != nil { // a number may be too large
			continue
		}
		switch v.(type) {
		case string, float64, bool:
			if members == nil {
				members = make(map[string]any)
			}
			members[name] = v
			left -= size
		}
	}
	return members
}

// lifetime reads expires_in. Moov documents a Unix timestamp, and has answered
// with seconds (RFC 6749 §5.1): from 1e9 on it is taken for a timestamp. The
// timestamp is read against the reply's Date, so that a wrong local clock does
// not matter. A token that does not say, or that is said to be dead already, is
// used for a short time: the server has just handed it out. The warning says
// what was assumed.
func lifetime(expiresIn json.RawMessage, header http.Header, sent time.Time) (life time.Duration, warning string, assumed bool) {
	var seconds float64
	var text string
	if json.Unmarshal(expiresIn, &text) == nil {
		expiresIn = json.RawMessage(text)
	}
	if json.Unmarshal(expiresIn, &seconds) != nil {
		seconds = 0
	}
	if seconds >= 1e9 {
		now := sent
		if date, err := http.ParseTime(header.Get("Date")); err == nil {
			now = date
		}
		seconds -= float64(now.UnixMilli()) / 1e3
	}
	switch {
	case seconds < 1:
		return assumedLifetime, "expires_in is absent, unreadable or in the past: 5 minutes are assumed", true
	case seconds > maxLifetime.Seconds():
		return maxLifetime, "expires_in is more than 30 days ahead: 30 days are assumed", false
	}
	return time.Duration(seconds * float64(time.Second)), "", false
}

// bearer is the scheme of the Authorization header for a token_type. Older
// pages of Moov's documentation name the token's format there. An unknown type
// is not quoted: it may be the token itself.
func bearer(tokenType string) (string, error) {
	switch strings.ToLower(tokenType) {
	case "", "bearer", "opaque", "jwt":
		return "Bearer", nil
	}
	return "", fmt.Errorf("its token_type %s is not Bearer", shownType(tokenType))
}

// usable reports whether token can stand in an Authorization header.
func usable(token string) bool {
	return token != "" && strings.IndexFunc(token, func(r rune) bool { return !visibleASCII(r) }) < 0
}

func visibleASCII(r rune) bool { return '!' <= r && r <= '~' }
