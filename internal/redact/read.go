package redact

// This file reads a text in every way that a reader could, and says which part of it each reading comes from.

import (
	"bytes"
	"html"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

const (
	maxWork  = 24     // bytes of all readings, for each byte of the text
	minWork  = 1 << 9 // bytes of the text that are counted at least
	maxName  = 16     // letters of an HTML entity's name that stands for an ASCII character
	minBytes = 4      // in a row that base64 decodes to: less is an accident
)

// readings are all readings of one text, one after the other in bytes, each
// with a 0 after it. Byte i of them comes from [lo[i], hi[i]) of the text.
type readings struct {
	bytes  []byte
	lo, hi []uint16
	spans  []span
	ascii  bool // no secret has other characters
}

// span is one reading.
type span struct {
	from, to int
	base64   bool // has been undone on the way
}

// read returns nil if there are too many readings. Escapes are undone one kind
// at a time, in every order: a secret may hold what looks like an escape, and so
// may what stands before it, and an escape may be broken up by others.
func read(text string, secrets []string) *readings {
	n := 4 * len(text)
	r := &readings{bytes: make([]byte, 0, n), lo: make([]uint16, 0, n), hi: make([]uint16, 0, n)}
	r.ascii = !slices.ContainsFunc(secrets, func(secret string) bool {
		return strings.ContainsFunc(secret, func(c rune) bool { return c >= utf8.RuneSelf })
	})
	for i := range len(text) {
		r.add(text[i], uint16(i), uint16(i+1))
	}
	r.end(span{})
	budget := maxWork * max(len(text), minWork)
	for i := 0; i < len(r.spans); i++ {
		r.unescape(r.spans[i], '\\', backslash)
		r.unescape(r.spans[i], '&', entity)
		r.unescape(r.spans[i], '%', percent)
		r.unbase64(r.spans[i])
		if len(r.bytes) > budget {
			return nil
		}
	}
	return r
}

func (r *readings) add(c byte, lo, hi uint16) {
	r.bytes, r.lo, r.hi = append(r.bytes, c), append(r.lo, lo), append(r.hi, hi)
}

// repeat adds [from, to) once more.
func (r *readings) repeat(from, to int) {
	r.bytes, r.lo, r.hi = append(r.bytes, r.bytes[from:to]...), append(r.lo, r.lo[from:to]...), append(r.hi, r.hi[from:to]...)
}

func (r *readings) cut(n int) { r.bytes, r.lo, r.hi = r.bytes[:n], r.lo[:n], r.hi[:n] }

// end makes what was added since s.from a reading, unless there is one like it.
func (r *readings) end(s span) {
	s.to = len(r.bytes)
	own := r.bytes[s.from:]
	for _, other := range r.spans {
		if bytes.Equal(own, r.bytes[other.from:other.to]) && s.base64 == other.base64 {
			r.cut(s.from)
			return
		}
	}
	r.add(0, 0, 0)
	r.spans = append(r.spans, s)
}

// unescape undoes the escapes of one kind. undo returns what the escape that b
// starts with stands for, and how long it is, or 0 if it is none.
func (r *readings) unescape(s span, start byte, undo func(b []byte) (char []byte, n int)) {
	from, changed, done := len(r.bytes), false, s.from
	for i := s.from; i < s.to; {
		n := bytes.IndexByte(r.bytes[i:s.to], start)
		if n < 0 {
			break
		}
		i += n
		char, n := undo(r.bytes[i:s.to])
		if n == 0 {
			i++
			continue
		}
		r.repeat(done, i)
		for _, c := range char {
			r.add(c, r.lo[i], r.hi[i+n-1])
		}
		i += n
		done, changed = i, true
	}
	if changed {
		r.repeat(done, s.to)
		r.end(span{from: from, base64: s.base64})
	}
}

// backslash undoes the escapes of JSON, and of Go's and JavaScript's strings.
func backslash(b []byte) ([]byte, int) {
	if len(b) < 2 {
		return nil, 0
	}
	switch c := b[1]; c {
	case 'u':
		if len(b) > 3 && b[2] == '{' {
			if end := bytes.IndexByte(b[:min(len(b), 12)], '}'); end > 0 {
				if r, ok := number(b[3:end], 16); ok {
					return utf8.AppendRune(nil, r), end + 1
				}
			}
			return nil, 0
		}
		r, ok := fixed(b, 2, 4)
		if !ok {
			return nil, 0
		}
		if utf16.IsSurrogate(r) && len(b) >= 8 && b[6] == '\\' && b[7] == 'u' {
			if low, ok := fixed(b, 8, 4); ok && utf16.DecodeRune(r, low) != utf8.RuneError {
				return utf8.AppendRune(nil, utf16.DecodeRune(r, low)), 12
			}
		}
		return utf8.AppendRune(nil, r), 6
	case 'U':
		if r, ok := fixed(b, 2, 8); ok {
			return utf8.AppendRune(nil, r), 10
		}
	case 'x':
		if r, ok := fixed(b, 2, 2); ok {
			return []byte{byte(r)}, 4
		}
	default:
		if i := strings.IndexByte("abfnrtv", c); i >= 0 {
			return []byte{"\a\b\f\n\r\t\v"[i]}, 2
		}
		if '!' <= c && c <= '/' || ':' <= c && c <= '@' || '[' <= c && c <= '`' || '{' <= c && c <= '~' {
			return b[1:2], 2
		}
	}
	return nil, 0
}

// entity undoes the character references of HTML, with or without their semicolon.
func entity(b []byte) ([]byte, int) {
	n := 1
	if n < len(b) && b[n] == '#' {
		base, isDigit := 10, func(c byte) bool { return '0' <= c && c <= '9' }
		n++
		if n < len(b) && (b[n] == 'x' || b[n] == 'X') {
			base, isDigit = 16, isHex
			n++
		}
		start := n
		for n < len(b) && isDigit(b[n]) {
			n++
		}
		r, ok := number(b[start:n], base)
		if !ok {
			return nil, 0
		}
		if n < len(b) && b[n] == ';' {
			n++
		}
		return utf8.AppendRune(nil, r), n
	}
	for n < len(b) && n <= maxName && isLetterOrDigit(b[n]) {
		n++
	}
	for whole := n; n > 2; n-- {
		name := string(b[:n]) + ";"
		char := html.UnescapeString(name)
		if char == name || char != ";" && strings.HasSuffix(char, ";") {
			continue
		}
		if n == whole && n < len(b) && b[n] == ';' {
			n++
		}
		return []byte(char), n
	}
	return nil, 0
}

// percent undoes the escapes of URLs and forms, and those of JavaScript's escape.
func percent(b []byte) ([]byte, int) {
	if r, ok := fixed(b, 1, 2); ok {
		return []byte{byte(r)}, 3
	}
	if len(b) > 1 && (b[1] == 'u' || b[1] == 'U') {
		if r, ok := fixed(b, 2, 4); ok {
			return utf8.AppendRune(nil, r), 6
		}
	}
	return nil, 0
}

// fixed reads the n hexadecimal digits at b[at:].
func fixed(b []byte, at, n int) (rune, bool) {
	if len(b) < at+n {
		return 0, false
	}
	return number(b[at:at+n], 16)
}

func number(digits []byte, base int) (rune, bool) {
	digits = bytes.TrimLeft(digits, "0")
	if len(digits) > 10 {
		return 0, false
	}
	n, err := strconv.ParseUint("0"+string(digits), base, 31)
	return rune(n), err == nil
}

func isHex(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'f' }

func isLetterOrDigit(c byte) bool { return '0' <= c && c <= '9' || 'a' <= c|0x20 && c|0x20 <= 'z' }

// unbase64 decodes whatever may be base64, in either alphabet, wherever its
// groups of four may start, and keeps what is text.
func (r *readings) unbase64(s span) {
	from := len(r.bytes)
	var run []int                     // where the characters of one run are
	for i := s.from; i <= s.to; i++ { // a 0 is at s.to
		c := r.bytes[i]
		if sextet[c] >= 0 {
			run = append(run, i)
			continue
		}
		if c == '\r' || c == '\n' {
			continue
		}
		for skip := 0; skip < 4 && len(run)-skip > minBytes; skip++ {
			r.decode(run[skip:])
		}
		run = run[:0]
	}
	if len(r.bytes) > from {
		r.end(span{from: from, base64: true})
	}
}

// decode adds the text in what the characters at run decode to. Each piece of
// it has a 0 after it.
func (r *readings) decode(run []int) {
	out, lo, hi := r.bytes, r.lo, r.hi
	from := len(out) // of the piece
	bits, n := uint32(0), 0
	for i, at := range run {
		bits, n = bits<<6|uint32(sextet[out[at]]), n+6
		if n < 8 {
			continue
		}
		n -= 8
		c := byte(bits >> n)
		if c >= ' ' && c < 0x7f || c > 0x7f && !r.ascii || c == '\n' || c == '\r' || c == '\t' {
			out, lo, hi = append(out, c), append(lo, lo[run[i-1]]), append(hi, hi[at])
			continue
		}
		if len(out)-from >= minBytes {
			out, lo, hi = append(out, 0), append(lo, 0), append(hi, 0)
			from = len(out)
		}
		out, lo, hi = out[:from], lo[:from], hi[:from]
	}
	if len(out)-from < minBytes {
		out, lo, hi = out[:from], lo[:from], hi[:from]
	} else {
		out, lo, hi = append(out, 0), append(lo, 0), append(hi, 0)
	}
	r.bytes, r.lo, r.hi = out, lo, hi
}

// sextet is what a character of either base64 alphabet stands for, or -1.
var sextet = func() (table [256]int8) {
	for i := range table {
		table[i] = -1
	}
	for i, c := range "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/" {
		table[c] = int8(i)
	}
	table['-'], table['_'] = 62, 63
	return table
}()
