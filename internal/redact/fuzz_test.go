package redact

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"html"
	"math/rand/v2"
	"net/url"
	"strconv"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/stretchr/testify/require"
)

// spell writes text in another way, of which a reader could make text again.
func spell(text string, r *rand.Rand) string {
	// each spells every character in a way that f chooses, or leaves it.
	each := func(f func(c rune) string) string {
		var b strings.Builder
		often := 1 + r.IntN(8)
		for _, c := range text {
			if s := f(c); s != "" && (r.IntN(often) == 0 || strings.ContainsRune(`\"&%`, c)) {
				b.WriteString(s)
			} else {
				b.WriteRune(c)
			}
		}
		return b.String()
	}
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	switch r.IntN(14) {
	case 0:
		return url.QueryEscape(text)
	case 1:
		return url.PathEscape(text)
	case 2:
		return html.EscapeString(text)
	case 3:
		b, _ := json.Marshal(text)
		return string(b)
	case 4:
		return strconv.QuoteToASCII(text)
	case 5: // percent signs
		var b strings.Builder
		for i := range len(text) {
			if c := text[i]; c == '%' || r.IntN(3) == 0 {
				fmt.Fprintf(&b, pick("%%%02x", "%%%02X"), c)
			} else {
				b.WriteByte(c)
			}
		}
		return b.String()
	case 6: // JSON
		return each(func(c rune) string {
			if c > 0xffff {
				high, low := utf16.EncodeRune(c)
				return fmt.Sprintf(pick(`\u%04x\u%04x`, `\u%04X\u%04X`), high, low)
			}
			switch {
			case strings.ContainsRune(`"\/`, c) && r.IntN(2) == 0:
				return `\` + string(c)
			case c == '\n':
				return `\n`
			}
			return fmt.Sprintf(pick(`\u%04x`, `\u%04X`), c)
		})
	case 7: // HTML
		named := map[rune]string{'=': "equals", '+': "plus", '/': "sol", '_': "lowbar", '&': "amp", '<': "lt", '"': "quot", '.': "period", ':': "colon", '\\': "bsol", '%': "percnt", ';': "semi"}
		return each(func(c rune) string {
			if name := named[c]; name != "" && r.IntN(2) == 0 {
				return "&" + name + ";"
			}
			return fmt.Sprintf(pick("&#%d;", "&#x%x;", "&#X%X;", "&#0%d;", "&#x000%x;"), c)
		})
	case 8, 9, 10, 11:
		enc := []*base64.Encoding{base64.StdEncoding, base64.URLEncoding, base64.RawStdEncoding, base64.RawURLEncoding}[r.IntN(4)]
		return enc.EncodeToString([]byte(text))
	case 12: // base64 in lines
		s := base64.StdEncoding.EncodeToString([]byte(text))
		n := 4 + r.IntN(73)
		var b strings.Builder
		for len(s) > n {
			b.WriteString(s[:n] + pick("\n", "\r\n"))
			s = s[n:]
		}
		return b.String() + s
	}
	return text
}

// decoders undo one spelling each, with the standard library alone.
var decoders = map[string]func(string) []string{
	"query": func(s string) []string {
		return one(tolerant(s, '%', 3, func(s string) (string, error) { return url.QueryUnescape(s) }))
	},
	"plus": func(s string) []string { return one(strings.ReplaceAll(s, "+", " ")) },
	"html": func(s string) []string { return one(html.UnescapeString(s)) },
	"json": func(s string) []string {
		return one(unquote(s))
	},
	"base64": func(s string) (all []string) {
		s = strings.NewReplacer("-", "+", "_", "/", "\n", "", "\r", "").Replace(s)
		for _, run := range strings.FieldsFunc(s, func(c rune) bool {
			return !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '+' || c == '/')
		}) {
			for skip := range min(4, len(run)) {
				run := run[skip:]
				if len(run)%4 == 1 {
					run = run[:len(run)-1]
				}
				b, err := base64.RawStdEncoding.DecodeString(run)
				if err == nil && len(b) >= least {
					all = append(all, string(b))
				}
			}
		}
		return all
	},
}

func one(s string) []string { return []string{s} }

// tolerant undoes each escape of width n that starts with start, if it can be.
func tolerant(s string, start byte, n int, undo func(string) (string, error)) string {
	var b strings.Builder
	for len(s) > 0 {
		if s[0] == start && len(s) >= n {
			if c, err := undo(s[:n]); err == nil {
				b.WriteString(c)
				s = s[n:]
				continue
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// unquote undoes what of s are escapes of JSON.
func unquote(s string) string {
	var b strings.Builder
next:
	for len(s) > 0 {
		if s[0] == '\\' {
			for _, n := range []int{12, 6, 2} { // a pair of surrogates first
				var c string
				if len(s) >= n && json.Unmarshal([]byte(`"`+s[:n]+`"`), &c) == nil && utf8.RuneCountInString(c) == 1 {
					b.WriteString(c)
					s = s[n:]
					continue next
				}
			}
		}
		b.WriteByte(s[0])
		s = s[1:]
	}
	return b.String()
}

// leak finds what of secret can be read in text, or decoded from it.
func leak(text, secret string, depth int) string {
	seen := map[string]bool{}
	var look func(text, how string, depth int) string
	look = func(text, how string, depth int) string {
		if seen[text] {
			return ""
		}
		seen[text] = true
		for i := 0; i+least <= len(secret); i++ {
			if strings.Contains(text, secret[i:i+least]) {
				return fmt.Sprintf("%q%s", secret[i:i+least], how)
			}
		}
		if depth == 0 {
			return ""
		}
		for name, decode := range decoders {
			for _, text := range decode(text) {
				if found := look(text, how+" "+name, depth-1); found != "" {
					return found
				}
			}
		}
		return ""
	}
	return look(text, "", depth)
}

// FuzzText spells a secret in up to four ways, one in another, and puts it into
// a text: no 8 bytes of it can be got back from what is left.
func FuzzText(f *testing.F) {
	for i := range uint64(20) {
		f.Add(i, "s3cr3t-+/=key0", "id:", "\"}")
		f.Add(i, `p"a\s<s&w%o r/d`, `{"error":"`, `","b":1}`)
		f.Add(i, `&lt;%41\n\u0041;%2541`, `\`, "%")
		f.Add(i, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "Authorization: Bearer ", "\r\n")
		f.Add(i, "pässwörd-😀-x", "%", "&")
	}
	f.Fuzz(func(t *testing.T, seed uint64, secret, before, after string) {
		if len(secret) < least || len(secret) > 200 || len(before)+len(after) > 500 || !utf8.ValidString(secret) ||
			strings.ContainsFunc(secret, func(c rune) bool { return c < ' ' || c == 0x7f || c == utf8.RuneError }) {
			return
		}
		r := rand.New(rand.NewPCG(seed, 0))
		text := secret
		depth := 1 + r.IntN(4)
		at := r.IntN(depth)
		for i := range depth {
			if i == at {
				text = before + text + after
			}
			text = spell(text, r)
		}
		if r.IntN(4) == 0 { // only a piece of it is there
			text = text[r.IntN(len(text)):]
		}
		masked := setOf(secret).Text(text)
		if found := leak(masked, secret, depth); found != "" {
			require.Failf(t, "a piece of the secret is left", "%s: in %q, of %q", found, masked, text)
		}
		require.LessOrEqual(t, len(masked), max(2*len(text), len(withheld)))
	})
}

// FuzzBody puts a token that nobody knows into a member.
func FuzzBody(f *testing.F) {
	for i := range uint64(20) {
		f.Add(i, "n3w-t0ken-4711")
		f.Add(i, "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl+/==")
	}
	f.Fuzz(fuzzBody)
}

func fuzzBody(t *testing.T, seed uint64, token string) {
	for _, c := range []byte(token) {
		if c <= ' ' || c > '~' || strings.IndexByte(`"'&<>\%`+"`", c) >= 0 {
			return
		}
	}
	if len(token) < least || len(token) > 200 {
		return
	}
	r := rand.New(rand.NewPCG(seed, 0))
	pick := func(s ...string) string { return s[r.IntN(len(s))] }
	name := pick("access_token", "refresh_token", "Access_Token", "ACCESS_TOKEN", "accessToken", "refresh-token")
	text := pick(
		`{"`+name+`":"`+token+`"}`, `{"`+name+`" : "`+token+`","x":1}`, `{"`+name+`": "`+token, `{'`+name+`': '`+token+`'}`,
		name+"="+token+"&x=1", "x=1&"+name+"="+token, "<"+name+">"+token+"</"+name+">", name+": "+token,
		`map[`+name+`:`+token+` x:1]`, `{"`+name+`":["`+token+`"]}`, `{"`+name+`":{"value":"`+token+`"}}`,
		`{"`+name+`":"`+token+`","token_type":"Bearer `+token+`"}`, `{"token_type":"Bearer `+token+`"}`,
	)
	depth := r.IntN(4)
	for range depth {
		text = spell(text, r)
	}
	masked := new(Set).Body(text)
	if found := leak(masked, token, depth); found != "" {
		require.Failf(t, "a piece of the token is left", "%s: in %q, of %q", found, masked, text)
	}

}

// FuzzReadings feeds anything: it ends soon, and what is left holds no secret.
func FuzzReadings(f *testing.F) {
	f.Add("secret-key", "\\u0073ecret-key \xff&#x73;%73%2573")
	f.Add("aaaaaaaaaaaa", strings.Repeat("a", 9000))
	f.Fuzz(func(t *testing.T, secret, text string) {
		masked := setOf(secret).Body(text)
		if len(secret) >= least && len(text) < 1000 && bytes.IndexByte([]byte(secret), 0) < 0 {
			if found := leak(masked, secret, 2); found != "" && !strings.Contains(withheld, secret[:least]) {
				require.Failf(t, "a piece of the secret is left", "%s: in %q, of %q", found, masked, text)
			}
		}
	})
}
