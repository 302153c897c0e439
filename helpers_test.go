package moovauth

// What several test files use.

import (
	"time"

	"github.com/moovauth/moovauth/internal/redact"
)

// setOf is a set of secrets.
func setOf(secrets ...string) *redact.Set {
	s := new(redact.Set)
	s.Pin(secrets...)
	return s
}

// goodFor is how long the token in hand is good.
func (s *TokenSource) goodFor() time.Duration { return s.memory.load().good(s.endpoint.clock()) }
