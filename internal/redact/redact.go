// Package redact masks known secrets in text from outside, such as a server's error
// message. It finds a secret as it is, percent-encoded (RFC 3986) and JSON-escaped
// (RFC 8259). It may not find a secret in any other encoding.
package redact

import (
	"encoding/json"
	"errors"
	"net/url"
	"regexp"
	"slices"
	"strings"
)

// Mask replaces a secret.
const Mask = "***"

// Text replaces the secrets in s. A secret of less than 8 bytes can be part of a
// longer word by chance, so Text replaces it only if it is a whole word.
func Text(s string, secrets ...string) string {
	secrets = slices.DeleteFunc(slices.Clone(secrets), func(secret string) bool { return len(secret) > len(s) || strings.Contains(Mask, secret) })
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // a secret may contain another
	for _, secret := range secrets {
		quoted, _ := json.Marshal(secret)
		asJSON, asURL := string(quoted[1:len(quoted)-1]), strings.ReplaceAll(url.QueryEscape(secret), "+", "%20")
		for _, spelling := range []string{
			secret, asURL, percent.ReplaceAllStringFunc(asURL, strings.ToLower), url.QueryEscape(secret), url.PathEscape(secret),
			asJSON, strings.ReplaceAll(asJSON, "/", `\/`), notHTML.Replace(asJSON),
		} {
			s = replace(s, spelling, len(secret) < 8)
		}
	}
	return s
}

var percent = regexp.MustCompile(`%[0-9A-F]{2}`)
var notHTML = strings.NewReplacer(`\\`, `\\`, `\u003c`, "<", `\u003e`, ">", `\u0026`, "&")

// replace replaces secret in s, or only where no letter or digit is next to it.
func replace(s, secret string, wholeWords bool) string {
	const alphanumeric = "0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"
	inWord := func(i int) bool { return 0 <= i && i < len(s) && strings.ContainsRune(alphanumeric, rune(s[i])) }
	var b strings.Builder
	written, from := 0, 0
	for i := strings.Index(s, secret); i >= 0; i = strings.Index(s[from:], secret) {
		start, end := from+i, from+i+len(secret)
		if from = start + 1; !wholeWords || !inWord(start-1) && !inWord(end) {
			b.WriteString(s[written:start] + Mask)
			written, from = end, end
		}
	}
	return b.String() + s[written:]
}

// Unknown replaces all of s if it may contain a token that is not a known secret.
func Unknown(s string) string {
	if strings.Contains(s, "access_token") || strings.Contains(s, "refresh_token") {
		return "[not shown: it may hold a token]"
	}
	return s
}

// Error returns err if [Text] and [Unknown] do not change its text. Otherwise it returns
// an error with the masked text. With this error, errors.Is still finds what err wraps.
func Error(err error, secrets ...string) error {
	text := Unknown(Text(err.Error(), secrets...))
	if text == err.Error() {
		return err
	}
	return &masked{text, func(target error) bool { return errors.Is(err, target) }}
}

// masked hides the original error from package fmt, which would print its fields.
type masked struct {
	text string
	is   func(target error) bool
}

func (e *masked) Error() string        { return e.text }
func (e *masked) Is(target error) bool { return e.is(target) }
