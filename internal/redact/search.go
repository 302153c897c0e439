package redact

// This file finds secrets in the readings of a text.

import (
	"bytes"
	"strings"
)

const (
	// Any 8 bytes of a secret hold 4 bytes that start at a multiple of 5.
	sample = 4
	stride = least - sample + 1

	tableBits = 12
	maxSteps  = 1 << 20 // comparisons in one search
)

// search says which bytes of text are hidden. If members is true it hides
// tokens that nobody knows yet, too, and adds them to secrets. It returns
// !ok if it gave up.
func search(text string, secrets *[]string, members bool) (hidden []bool, found, ok bool) {
	r := read(text, *secrets)
	if r == nil {
		return nil, false, false
	}
	s := &searcher{readings: r, hidden: make([]bool, len(text)), seen: make([]bool, len(r.bytes))}
	if members {
		for _, span := range r.spans {
			*secrets = append(*secrets, s.members(span)...)
		}
	}
	for i, c := range r.bytes {
		r.bytes[i] = fold(c)
	}
	s.index()
	for _, secret := range *secrets {
		secret = strings.ReplaceAll(secret, "+", " ")
		if len(secret) < least {
			s.short(secret)
		} else if !s.long(secret) {
			return nil, false, false
		}
	}
	return s.hidden, s.found, true
}

// fold makes + and the space one: a form has one for the other.
func fold(c byte) byte {
	if c == '+' {
		return ' '
	}
	return c
}

type searcher struct {
	*readings
	hidden []bool // of the text
	seen   []bool // of the readings: part of a secret
	found  bool
	steps  int
	first  [1 << tableBits]int32 // by hash of 4 bytes: one more than where they are last
	next   []int32               // where those with the same hash were before
}

func hash[T string | []byte](b T) uint32 {
	return (uint32(b[0]) | uint32(b[1])<<8 | uint32(b[2])<<16 | uint32(b[3])<<24) * 2654435761 >> (32 - tableBits)
}

func (s *searcher) index() {
	s.next = make([]int32, len(s.bytes))
	for i := 0; i+sample <= len(s.bytes); i++ {
		h := hash(s.bytes[i : i+sample])
		s.next[i], s.first[h] = s.first[h], int32(i+1)
	}
}

// long hides what holds least bytes of secret.
func (s *searcher) long(secret string) (ok bool) {
	for p := 0; p+sample <= len(secret); p += stride {
		four := secret[p : p+sample]
		for q := int(s.first[hash(four)]) - 1; q >= 0; q = int(s.next[q]) - 1 {
			if s.steps++; s.steps > maxSteps {
				return false
			}
			if string(s.bytes[q:q+sample]) != four || s.seen[q] && s.seen[q+sample-1] {
				continue
			}
			from, to := q, q+sample
			for n := p; n > 0 && from > 0 && secret[n-1] == s.bytes[from-1]; n-- {
				from--
			}
			for n := p + sample; n < len(secret) && to < len(s.bytes) && secret[n] == s.bytes[to]; n++ {
				to++
			}
			s.steps += to - from
			if to-from >= least {
				s.hide(from, to)
			}
		}
	}
	return true
}

// short hides secret if it stands whole. One that is shorter than 4 bytes
// must be a word of its own, and is not looked for in what was base64: it
// would be found in everything.
func (s *searcher) short(secret string) {
	if strings.Trim(secret, "*") == "" {
		return // as the mask does
	}
	for _, span := range s.spans {
		if span.base64 && len(secret) < minBytes {
			continue
		}
		for from := span.from; ; {
			i := bytes.Index(s.bytes[from:span.to], []byte(secret))
			if i < 0 {
				break
			}
			from += i
			to := from + len(secret)
			word := (from == span.from || !isLetterOrDigit(s.bytes[from-1])) && !isLetterOrDigit(s.bytes[to])
			if len(secret) >= minBytes || word {
				s.hide(from, to)
			}
			from++
		}
	}
}

// hide hides what bytes [from, to) of the readings come from.
func (s *searcher) hide(from, to int) {
	s.found = true
	for i := from; i < to; i++ {
		s.seen[i] = true
		for at := s.lo[i]; at < s.hi[i]; at++ {
			s.hidden[at] = true
		}
	}
}

// members hides the values of members that hold tokens, and returns the long ones.
func (s *searcher) members(in span) (values []string) {
	b := s.bytes[in.from:in.to]
	for i := 0; i < len(b); {
		if c := b[i] | 0x20; c != 'a' && c != 'r' && c != 't' {
			i++
			continue
		}
		at := i + nameEnd(b[i:])
		if at == i {
			i++
			continue
		}
		from, to := value(b, at)
		if from < to && string(b[from:to]) != Mask {
			s.hide(in.from+from, in.from+to)
			if to-from >= least {
				values = append(values, string(b[from:to]))
			}
		}
		i = max(at, to)
	}
	return values
}

// nameEnd returns how long the name of a token is that b starts with, or 0.
func nameEnd(b []byte) int {
	starts := func(b []byte, word string) bool {
		return len(b) >= len(word) && strings.EqualFold(string(b[:len(word)]), word)
	}
	for _, words := range [...][2]string{{"access", "token"}, {"refresh", "token"}, {"token", "type"}} {
		if !starts(b, words[0]) {
			continue
		}
		n := len(words[0])
		if n < len(b) && strings.IndexByte("_-.", b[n]) >= 0 {
			n++
		}
		if starts(b[n:], words[1]) {
			return n + len(words[1])
		}
	}
	return 0
}

// value returns where the value is of the member whose name ends at i; it is
// empty if there is none.
func value(b []byte, i int) (from, to int) {
	skip := func(set string) (n int) {
		for i < len(b) && strings.IndexByte(set, b[i]) >= 0 {
			i++
			n++
		}
		return n
	}
	skip(`\"']+ ` + "`\t\r\n") // + for a space, in a form
	if skip(":=>") == 0 {
		return i, i
	}
	skip("+ \t\r\n")
	slashes := skip(`\`)
	if i == len(b) {
		return i, i
	}
	switch open := b[i]; open {
	case '"', '\'', '`':
		from = i + 1
		for n, before := from, 0; n < len(b); n++ {
			switch {
			case b[n] == '\\':
				before++
				continue
			case b[n] == open && (before <= slashes || slashes == 0 && before%2 == 0):
				return from, n - min(before, slashes)
			}
			before = 0
		}
		return from, len(b)
	case '{', '[':
		depth, quoted := 0, false
		for n := i; n < len(b); n++ {
			switch c := b[n]; {
			case c == '"' && b[n-1] != '\\':
				quoted = !quoted
			case quoted:
			case c == '{' || c == '[':
				depth++
			case c == '}' || c == ']':
				depth--
			}
			if depth == 0 {
				return i, n + 1
			}
		}
		return i, len(b)
	}
	if n := bytes.IndexAny(b[i:], "&\"'<> \t\r\n"); n >= 0 {
		return i, i + n
	}
	return i, len(b)
}
