// Package redact keeps secrets out of text.
//
// Text from outside may echo a secret in an encoding of its own. So a text is
// looked at as it stands and as it reads after JSON escapes, HTML entities,
// percent signs and base64 are undone, in every order. What [least] bytes in
// a row of a secret come from is masked in the text itself.
package redact

import (
	"slices"
	"strings"
	"sync"
	"unicode/utf8"
)

// Mask stands where a secret was.
const Mask = "***"

const (
	withheld = "[withheld: it may hold a secret]"

	least   = 8       // bytes in a row of a secret that no text may hold
	keep    = 64      // tokens that a Set knows
	spare   = 2       // of them, those that are dead
	maxText = 4 << 10 // bytes of a text that are looked at, and returned

	maxTexts = 8 << 10 // bytes of many texts together
)

// Set is what no message of one token source may carry. The zero value is
// empty and ready. A nil Set knows no secret. A Set is safe
// for concurrent use.
type Set struct {
	mu     sync.Mutex
	pinned []string
	added  []string // oldest first
}

// Pin adds secrets that are kept for good: the client secret and what is made
// of it.
func (s *Set) Pin(secrets ...string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, secret := range secrets {
		if secret != "" && !slices.Contains(s.pinned, secret) {
			s.pinned = append(s.pinned, secret)
		}
	}
}

// Add adds tokens. Each is kept until 64 others have been added since. A token
// that is added again counts as new.
func (s *Set) Add(tokens ...string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, token := range tokens {
		if token == "" {
			continue
		}
		if i := slices.Index(s.added, token); i >= 0 {
			s.added = slices.Delete(s.added, i, i+1)
		}
		if len(s.added) == keep {
			s.added = slices.Delete(s.added, 0, 1)
		}
		s.added = append(s.added, token)
	}
}

// Keep forgets tokens that are dead: all but those in alive, and the two that
// were added last before them.
func (s *Set) Keep(alive []string) {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var kept []string
	dead := 0
	for _, token := range slices.Backward(s.added) {
		if !slices.Contains(alive, token) {
			if dead++; dead > spare {
				continue
			}
		}
		kept = append(kept, token)
	}
	slices.Reverse(kept)
	s.added = slices.Clip(kept)
}

func (s *Set) all() []string {
	if s == nil {
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Concat(s.pinned, s.added)
}

// Text masks every known secret in text, which comes from outside. Of a secret
// that is shorter than 8 bytes the whole is masked, of others any 8 bytes. If
// that cannot be done, or not with little work, the whole text is withheld.
// At most the first 4 KiB of text are returned.
func (s *Set) Text(text string) string { return s.mask(Cut(text, maxText), false) }

// Body is Text for what may be a reply. It also masks the values of members
// that are named access_token, refresh_token or token_type: they can be tokens
// that nobody knows yet. It reads JSON, forms and what is left of them.
func (s *Set) Body(text string) string { return s.mask(Cut(text, maxText), true) }

// Each is Text for many short texts at once, which costs little more than for
// one. Those after the first 8 KiB become empty.
func (s *Set) Each(texts ...*string) {
	var b strings.Builder
	n := 0
	for ; n < len(texts) && b.Len()+len(*texts[n]) < maxTexts; n++ {
		b.WriteString(strings.ReplaceAll(*texts[n], "\x00", "\ufffd") + "\x00")
	}
	masked := strings.Split(s.mask(b.String(), false), "\x00")
	for i, text := range texts {
		switch {
		case i >= n:
			*text = ""
		case len(masked) != n+1:
			*text = withheld
		default:
			*text = masked[i]
		}
	}
}

func (s *Set) mask(text string, members bool) string {
	secrets := s.all()
	for range 3 {
		if len(secrets) == 0 && !members {
			return text
		}
		hidden, found, ok := search(text, &secrets, members)
		if !ok {
			return withheld
		}
		if !found {
			return text
		}
		text = cover(text, hidden)
		members = false // their values are known now
	}
	return withheld
}

// Cut returns at most the first n bytes of text, and no part of a character.
func Cut(text string, n int) string {
	if len(text) <= n {
		return text
	}
	for back := 0; back < utf8.UTFMax && n > back; back++ {
		if utf8.RuneStart(text[n-back]) {
			return text[:n-back]
		}
	}
	return text[:n]
}

// cover replaces what is hidden, and the rest of a character that is hidden in
// part.
func cover(text string, hidden []bool) string {
	var b strings.Builder
	before := false // what is before i is hidden
	for i := 0; i < len(text); {
		_, n := utf8.DecodeRuneInString(text[i:])
		now := slices.Contains(hidden[i:i+n], true)
		if !now {
			b.WriteString(text[i : i+n])
		} else if !before {
			b.WriteString(Mask)
		}
		before = now
		i += n
	}
	return b.String()
}
