// Package redact keeps known secrets out of text from outside, such as a
// server's error message. It finds a secret as it stands, percent-encoded (RFC
// 3986) and JSON-escaped (RFC 8259), and promises nothing about other
// spellings.
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

// Text replaces the secrets in s. A secret of less than 8 bytes may occur by
// chance inside a longer word, so it is replaced only where it is a whole word.
func Text(s string, secrets ...string) string {
	secrets = slices.DeleteFunc(slices.Clone(secrets), func(secret string) bool { return len(secret) > len(s) || strings.Contains(Mask, secret) })
	slices.SortFunc(secrets, func(a, b string) int { return len(b) - len(a) }) // a secret may be a part of another
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

// replace replaces secret in s. If wholeWords is true, it replaces only
// occurrences without a letter or digit beside them.
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

// Unknown replaces all of s if it may hold a token that no one knows yet.
func Unknown(s string) string {
	if strings.Contains(s, "access_token") || strings.Contains(s, "refresh_token") {
		return "[not shown: it may hold a token]"
	}
	return s
}

// Error returns err if its text shows no secret and cannot hold a token.
// Otherwise it returns an error with the masked text, in which errors.Is still
// finds what err wraps.
func Error(err error, secrets ...string) error {
	text := Unknown(Text(err.Error(), secrets...))
	if text == err.Error() {
		return err
	}
	return &masked{text, func(target error) bool { return errors.Is(err, target) }}
}

// masked hides the error that it replaces from package fmt.
type masked struct {
	text string
	is   func(target error) bool
}

func (e *masked) Error() string        { return e.text }
func (e *masked) Is(target error) bool { return e.is(target) }
