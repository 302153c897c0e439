package redact

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func setOf(secrets ...string) *Set {
	s := new(Set)
	s.Pin(secrets...)
	return s
}

func TestSecretsAreMaskedInEveryEncoding(t *testing.T) {
	const secret = `s3cr3t+"<&/é😀ü`
	basic := base64.StdEncoding.EncodeToString([]byte("public-key:" + secret))
	set := setOf(secret, basic)
	text, _ := json.Marshal(secret)
	for _, spelled := range []string{
		secret, url.QueryEscape(secret), url.PathEscape(secret), html.EscapeString(secret), string(text[1 : len(text)-1]),
		`s3cr3t+\"\u003c\u0026\/\u00e9\ud83d\ude00\u00fc`, `s3cr3t&plus;&quot;&lt;&amp;&sol;&eacute;&#128512;&#xfc;`, `s3cr3t&plus&quot&lt&amp&sol&eacute&#128512&#xfc`,
		url.QueryEscape(url.QueryEscape(secret)), url.QueryEscape(html.EscapeString(secret)), html.EscapeString(url.QueryEscape(secret)),
		strings.Trim(fmt.Sprintf("%q", secret), `"`), strings.Trim(fmt.Sprintf("%+q", secret), `"`),
		basic, strings.TrimRight(basic, "="), strings.ReplaceAll(basic, "=", `\u003d`), strings.ReplaceAll(basic, "=", "&#x3D;"), strings.ReplaceAll(basic, "=", "%253D"),
	} {
		assert.Regexp(t, `^<\*\*\*(=*|&#x3D;|\\u003d|%253D)*>$`, set.Text("<"+spelled+">"), spelled)
	}
	assert.Equal(t, "nothing to hide", set.Text("nothing to hide"))
}

func TestTokensAreKeptUntil64OthersHaveBeenAdded(t *testing.T) {
	var s Set
	s.Pin("pinned-secret")
	s.Add("first-token", "", "second-token")
	for i := range 62 {
		s.Add(fmt.Sprintf("other-%d-token", i))
	}
	s.Add("first-token")
	assert.Equal(t, "*** *** ***", s.Text("pinned-secret first-token second-token"))
	s.Add("one-more-t0ken")
	assert.Equal(t, "*** *** second-token", s.Text("pinned-secret first-token second-token"))
	assert.Equal(t, "***", s.Text("other-0-token"))
}

func TestNilAndZeroSetsMaskMembersAlone(t *testing.T) {
	for _, s := range []*Set{nil, new(Set)} {
		assert.Equal(t, "some text", s.Text("some text"))
		assert.Equal(t, `{"access_token":"***"}`, s.Body(`{"access_token":"unknown-token"}`))
		assert.EqualError(t, s.Error("asking", errors.New("no answer")), "asking: no answer")
		assert.NoError(t, s.Error("asking", nil))
	}
}

func TestMaskedErrorKeepsItsIdentity(t *testing.T) {
	hide := setOf("s3cr3t-key")
	inner := fmt.Errorf("proxy said s3cr3t-key: %w", context.DeadlineExceeded)
	err := hide.Error("moovauth: asking", inner)
	assert.Equal(t, "moovauth: asking: proxy said ***: context deadline exceeded", err.Error())
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.NotErrorIs(t, err, context.Canceled)
	assert.NoError(t, errors.Unwrap(err))
	assert.NotContains(t, fmt.Sprintf("%#v", err), "s3cr3t")

	clean := hide.Error("moovauth: asking", context.Canceled)
	assert.Equal(t, context.Canceled, errors.Unwrap(clean))
}

func TestEachMasksManyTextsAtOnce(t *testing.T) {
	set := setOf("s3cr3t-key")
	texts := []string{"a s3cr3t-key", "", "b\x00c", "czNjcjN0LWtleQ", "s3cr3t-", "key", strings.Repeat("x", maxTexts), "after"}
	pointers := make([]*string, len(texts))
	for i := range texts {
		pointers[i] = &texts[i]
	}
	set.Each(pointers...)
	assert.Equal(t, []string{"a ***", "", "b\ufffdc", "***", "s3cr3t-", "key", "", ""}, texts)

	hostile, other := "%"+strings.Repeat("25", 2000), "other"
	set.Each(&hostile, &other)
	assert.Equal(t, []string{withheld, withheld}, []string{hostile, other}, "one that takes too long")
	assert.NotPanics(t, func() { set.Each() })
}
