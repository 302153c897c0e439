package redact

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/url"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var unreserved = regexp.MustCompile(`[0-9A-Za-z\-._~]`) // RFC 3986 §2.3

// spellings returns secret in the encodings that Text knows, as other programs write
// them.
func spellings(secret string) []string {
	percent := func(hex string) string {
		var b strings.Builder
		for _, c := range []byte(secret) {
			if unreserved.Match([]byte{c}) {
				b.WriteByte(c)
			} else {
				fmt.Fprintf(&b, hex, c)
			}
		}
		return b.String()
	}
	marshalled, _ := json.Marshal(secret)
	var plain strings.Builder
	encoder := json.NewEncoder(&plain)
	encoder.SetEscapeHTML(false)
	_ = encoder.Encode(secret)
	inQuotes := func(s string) string { return s[1 : len(s)-1] }
	return []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), percent("%%%02X"), percent("%%%02x"),
		inQuotes(string(marshalled)), inQuotes(strings.TrimSpace(plain.String())), strings.ReplaceAll(inQuotes(string(marshalled)), "/", `\/`),
	}
}

func TestSecretIsMaskedInEachSpelling(t *testing.T) {
	t.Parallel()
	for _, secret := range []string{`"s3cr3t+/=%<&> 'ü\u003c"`, "cGFzc3dvcmQ/Pj4+fn4=", "eyJhbGciOiJIUzI1NiJ9.e30.c2ln", "a\xffb\xfe-secret", "a+/<b"} {
		for _, spelled := range spellings(secret) {
			assert.Equal(t, "(***) (***)(***)", Text("("+spelled+") ("+spelled+")("+spelled+")", "", secret), spelled)
		}
	}
	assert.Equal(t, "nothing to hide", Text("nothing to hide", "", "s3cr3t-key"))
	assert.Equal(t, "nothing to hide", Text("nothing to hide"))
}

func TestSecretThatContainsAnotherIsMaskedAsAWhole(t *testing.T) {
	t.Parallel()
	assert.Equal(t, "*** and ***", Text("s3cr3t-key-2 and s3cr3t-key", "s3cr3t-key", "s3cr3t-key-2"))
	assert.Equal(t, "***s", Text("s3cr3t-keys", "s3cr3t-key", "key"))
}

func TestShortSecretIsMaskedAsAWholeWord(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"abc":                      "***",
		"key abc, abcd, (abc)abc":  "key ***, abcd, (***)***",
		"abc abc-abc":              "*** ***-***",
		"abcabc 1abc abc2 Xabc":    "abcabc 1abc abc2 Xabc",
		"“abc” äabc":               "“***” ä***",
		"xa.a.a":                   "xa.***",
		"\xff \xffx":               "*** \xffx",
		"what is *** and **bold**": "what is *** and **bold**",
	} {
		assert.Equal(t, want, Text(text, "abc", "a.a", "\xff", "*"), text)
	}
}

func TestTextThatMayHoldAnUnknownTokenIsNotShown(t *testing.T) {
	t.Parallel()
	for _, text := range []string{`[{"access_token": "t0ken"}]`, "refresh_token=t0ken", `malformed HTTP response "{\"access_token\":\"t0ken\"}"`} {
		assert.NotContains(t, Unknown(text), "t0ken")
		assert.NotContains(t, Error(errors.New(text)).Error(), "t0ken")
	}
	assert.Equal(t, "a token", Unknown("a token"))
}

func TestMaskedErrorKeepsItsIdentity(t *testing.T) {
	t.Parallel()
	inner := fmt.Errorf("proxy said s3cr3t-key: %w", context.DeadlineExceeded)
	err := Error(inner, "s3cr3t-key")
	require.EqualError(t, err, "proxy said ***: context deadline exceeded")
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, context.Canceled)
	assert.NoError(t, errors.Unwrap(err), "the wrapped error has the secret in its text")
	assert.NotContains(t, fmt.Sprintf("%v %+v %#v %s %q", err, err, err, err, err), "s3cr3t")

	assert.Same(t, inner, Error(inner, "another-secret"), "the text contains no secret")
}

// FuzzText checks that no text keeps a secret in any of the spellings. A short secret
// may stay inside a longer word.
func FuzzText(f *testing.F) {
	for _, secret := range []string{`s3cr3t+/="<&>ü`, "s3cr3t-key", "cGFzc3dvcmQ/Pj4+fn4=", "abc", "+", `\u003c`, "%41%25", "a\xffb"} {
		f.Add("key=", secret, "other-secret", "&x")
		f.Add(secret+secret, secret, secret+"-2", secret[:1]+`"\`)
	}
	f.Fuzz(func(t *testing.T, before, secret, other, after string) {
		if strings.Contains(secret+other, "*") {
			t.Skip("the mask itself may be part of the secret")
		}
		for _, spelled := range spellings(secret) {
			if secret == "" {
				require.Equal(t, before+after, Text(before+after, secret))
				continue
			}
			margin := ""
			if len(secret) < 8 {
				margin = " "
				require.Equal(t, "x"+secret+"x", Text("x"+secret+"x", secret))
			}
			text := Text(before+margin+spelled+margin+spelled+margin+after, secret, other)
			require.NotContains(t, text, margin+spelled+margin)
		}
	})
}
