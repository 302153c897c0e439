package redact

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"html"
	"io"
	"net"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"unsafe"

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
	s.Add("first-token", "first-token")
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

func TestShortSecretsAreMaskedIfTheyStandWhole(t *testing.T) {
	set := setOf("s3cr3t", "abc", "***", "*")
	for text, want := range map[string]string{
		"is s3cr3t":                "is ***",
		"xs3cr3ty":                 "x***y",
		"s3cr3":                    "s3cr3",
		"%733cr3t":                 "***",
		"czNjcjN0":                 "***",
		"key abc, abcd, (abc)":     "key ***, abcd, (***)",
		"a&#98;c":                  "***",
		"what is *** and **bold**": "what is *** and **bold**",
	} {
		assert.Equal(t, want, set.Text(text))
	}
}

func TestPiecesOfASecretAreMasked(t *testing.T) {
	const secret = "0123456789abcdefghij"
	for from := range secret {
		for to := from; to <= len(secret); to++ {
			masked := setOf(secret).Text("<" + secret[from:to] + ">")
			if to-from >= least {
				assert.Equal(t, "<***>", masked)
			} else {
				assert.Equal(t, "<"+secret[from:to]+">", masked)
			}
		}
	}
}

// A text is cut before it is masked: the piece of a secret before the cut goes, too.
func TestSecretThatStraddlesTheCut(t *testing.T) {
	const secret = "s3cr3t-key-4711-t0ken"
	for name, spelled := range map[string]string{
		"plain": secret, "base64": base64.StdEncoding.EncodeToString([]byte(secret)), "percent": url.QueryEscape(strings.ReplaceAll(secret, "", "+")),
		"JSON": strings.ReplaceAll(secret, "-", `\u002d`), "HTML": strings.ReplaceAll(secret, "-", "&#x2d;"),
	} {
		for shift := range len(spelled) {
			text := strings.Repeat(" ", maxText-shift) + spelled + " and on"
			masked := setOf(secret).Text(text)
			assert.LessOrEqual(t, len(masked), maxText+len(Mask), name)
			assert.Empty(t, leak(strings.TrimLeft(masked, " "), secret, 1), "%s, %d", name, shift)
		}
	}
	assert.Equal(t, strings.Repeat("x", maxText-1), setOf(secret).Text(strings.Repeat("x", maxText-1)+"é"), "no part of a character")
}

func TestTextThatTakesTooLongIsWithheld(t *testing.T) {
	deep := "%" + strings.Repeat("25", 2000) + "41"
	assert.Equal(t, withheld, setOf("s3cr3t-key").Text(deep))
	assert.Equal(t, Cut(deep, maxText), new(Set).Text(deep), "there is nothing to look for")
	spread := setOf(strings.Repeat("a", 4000), strings.Repeat("ab", 2000), strings.Repeat("aab", 1300))
	assert.NotPanics(t, func() { spread.Text(strings.Repeat("aabab", 1<<20)) })
}

func TestSetIsSmall(t *testing.T) {
	access, refresh, secret := strings.Repeat("a", 900), strings.Repeat("r", 900), "s3cr3t-key"
	const n = 1000
	sets := make([]*Set, n)
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for i := range sets {
		sets[i] = new(Set)
		sets[i].Pin(secret)
		sets[i].Add(access, refresh)
	}
	runtime.ReadMemStats(&after)
	s := sets[0]
	assert.LessOrEqual(t, (after.TotalAlloc-before.TotalAlloc)/n, uint64(200), "of which the Set itself has %d", unsafe.Sizeof(*s))
	assert.Same(t, unsafe.StringData(access), unsafe.StringData(s.added[0]))
}

func TestSetIsSafeForConcurrentUse(t *testing.T) {
	var s Set
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			for j := range 50 {
				token := fmt.Sprintf("token-%d-%d", i, j)
				s.Add(token) // which others may push out at once
				s.Pin("pinned")
				assert.NotContains(t, s.Text("a pinned "+token+" b"), "pinned")
				_ = s.Error("doing", errors.New(token))
			}
		})
	}
	wg.Wait()
	assert.Len(t, s.added, keep)
	assert.Len(t, s.pinned, 1)
}

// oddError does what it is told.
type oddError struct {
	text   func() string
	unwrap func() error
	is     func() bool
}

func (e *oddError) Error() string  { return e.text() }
func (e *oddError) Unwrap() error  { return e.unwrap() }
func (e *oddError) Is(error) bool  { return e.is() }
func (e *oddError) As(any) bool    { return e.is() }
func (e *oddError) String() string { panic("String") }

func TestErrorOutlivesErrorsWhoseMethodsPanic(t *testing.T) {
	text, none, no := func() string { return "text" }, func() error { return nil }, func() bool { return false }
	loop := &oddError{text: text, is: no}
	loop.unwrap = func() error { return loop }
	for name, c := range map[string]struct {
		err  error
		want string
	}{
		"nil pointer":        {(*url.Error)(nil), "asking: an error of type *url.Error, whose text cannot be read"},
		"Error panics":       {&oddError{func() string { panic(errors.New("x")) }, none, no}, "asking: an error of type *redact.oddError, whose text cannot be read"},
		"Unwrap panics":      {&oddError{text, func() error { panic("x") }, no}, "asking: text"},
		"Is panics":          {&oddError{text, none, func() bool { panic("x") }}, "asking: text"},
		"wraps itself":       {loop, "asking: text"},
		"wraps nil pointer":  {&oddError{text, func() error { return (*url.Error)(nil) }, no}, "asking: text"},
		"one of many panics": {errors.Join(io.EOF, &oddError{text, none, func() bool { panic("x") }}), "asking: EOF\ntext"},
	} {
		t.Run(name, func(t *testing.T) {
			assert.False(t, Sound(c.err))
			err := new(Set).Error("asking", c.err)
			require.EqualError(t, err, c.want)
			assert.NotPanics(t, func() {
				assert.NotErrorIs(t, err, io.EOF)
				assert.False(t, errors.As(err, new(*url.Error)))
				_ = fmt.Sprintf("%v %+v %#v", err, err, err)
			})
			assert.Nil(t, errors.Unwrap(err))
		})
	}
	assert.True(t, Sound(nil))
	assert.True(t, Sound(fmt.Errorf("x: %w", errors.Join(io.EOF, context.Canceled))))
}

func TestErrorLooksIntoAllThatIsWrapped(t *testing.T) {
	set := setOf("s3cr3t-key")
	quiet := &oddError{func() string { return "quiet" }, func() error { return errors.New("s3cr3t-key") }, func() bool { return false }}
	err := set.Error("asking", quiet)
	require.EqualError(t, err, "asking: quiet")
	assert.NoError(t, errors.Unwrap(err), "what it wraps says the secret")
	require.ErrorIs(t, err, quiet)

	timeout := set.Error("asking", &net.DNSError{Name: "s3cr3t-key", IsTimeout: true})
	require.ErrorContains(t, timeout, "lookup ***")
	var flag interface{ Timeout() bool }
	require.ErrorAs(t, timeout, &flag)
	assert.True(t, flag.Timeout())

	long := set.Error("asking", errors.New(strings.Repeat("long ", 1<<18)))
	assert.LessOrEqual(t, len(long.Error()), maxError)
	assert.NoError(t, errors.Unwrap(long), "nobody has looked at the rest")

	calls := 0
	once := set.Error("asking", &oddError{func() string { calls++; return "text" }, func() error { return nil }, func() bool { return false }})
	before := calls
	_, _ = once.Error(), once.Error()
	assert.Equal(t, before, calls)
	assert.EqualError(t, set.Error("", io.EOF), "EOF")
}

func TestMembersWithTokensAreMaskedInABody(t *testing.T) {
	for text, want := range map[string]string{
		`{"access_token":"n3w","refresh_token" : "n\"3w", "x":1}`: `{"access_token":"***","refresh_token" : "***", "x":1}`,
		`{"access_token": "n3w-t0ken`:                             `{"access_token": "***`,
		`access_token=n3w%2Ft0ken&x=1`:                            `access_token=***&x=1`,
		`{\"access_token\":\"n3w\/t0ken\",\"x\":1}`:               `{\"access_token\":\"***\",\"x\":1}`,
		`{&quot;access_token&quot;:&quot;n3w t0ken&quot;}`:        `{&quot;access_token&quot;:&quot;***&quot;}`,
		`{"access\u005ftoken":"n3w"}`:                             `{"access\u005ftoken":"***"}`,
		`{"accessToken":"n3w","REFRESH-TOKEN":"n3w"}`:             `{"accessToken":"***","REFRESH-TOKEN":"***"}`,
		`{"token_type":"Bearer n3w"}`:                             `{"token_type":"***"}`,
		`{"access_token":{"value":"}n3w"},"x":1}`:                 `{"access_token":***,"x":1}`,
		`{"access_token":"n3w-t0ken","x":"n3w-t0ken"}`:            `{"access_token":"***","x":"***"}`,
		`<access_token>n3w</access_token>`:                        `<access_token>***</access_token>`,
		`access_token`:                                            `access_token`,
		`the refresh_token is missing`:                            `the refresh_token is missing`,
	} {
		assert.Equal(t, want, new(Set).Body(text))
		assert.Equal(t, text, new(Set).Text(text), "Text leaves members alone")
	}
}

func TestKeepForgetsWhatIsDead(t *testing.T) {
	s := new(Set)
	s.Pin("the-client-secret")
	for i := range 20 {
		s.Add(fmt.Sprintf("token-number-%02d", i))
	}
	s.Keep([]string{"token-number-00", "token-number-07", "unknown-to-the-set"})
	assert.Equal(t, []string{"token-number-00", "token-number-07", "token-number-18", "token-number-19"}, s.added)
	assert.NotContains(t, s.Text("the-client-secret token-number-07"), "number")
	s.Keep(nil)
	assert.Equal(t, []string{"token-number-18", "token-number-19"}, s.added)
	new(Set).Keep(nil)
	(*Set)(nil).Keep(nil)
}
