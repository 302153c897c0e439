package moovauth

// This file is what memory knows of the past: tokens that are no longer handed
// out, for Revoke, and those that are never taken again.

import (
	"hash/maphash"
	"slices"
)

const (
	maxFormer  = 16    // tokens remembered for Revoke
	maxRetired = 1_000 // tokens that are never taken again
)

// past is what a source remembers beyond the snapshot. It stands behind a
// pointer, so that no verb of package fmt prints a token when it prints a source.
type past struct {
	former  []former  // no longer handed out, but maybe alive; oldest first
	retired []uint64  // hashes of tokens that were invalidated or revoked, oldest first
	said    [2]string // what was logged last: about the lifetime, about scopes
}

// former is a token that is no longer handed out, but may be alive.
type former struct {
	token string
	hint  TokenTypeHint
	endAt instant // when it is dead for certain
}

// alive reports whether the server might still accept f. A token counts as
// expired only if both clocks say so.
func (f former) alive(now instant) bool {
	return now.wall < f.endAt.wall || now.monotonic < f.endAt.monotonic
}

// past is m's, to write to. mu is held.
func (m *memory) past() *past {
	if m.behind == nil {
		m.behind = new(past)
	}
	return m.behind
}

// texts are the tokens that may be alive: in hand, and former.
func (m *memory) texts(now instant) (texts []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if h := m.load().held; h != nil {
		texts = append(texts, h.token.AccessToken, h.token.RefreshToken)
	}
	if m.behind != nil {
		for _, f := range m.behind.former {
			if f.alive(now) {
				texts = append(texts, f.token)
			}
		}
	}
	return texts
}

// gone reports whether token was invalidated or revoked.
func (m *memory) gone(token string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.isRetired(token)
}

// revoked forgets a token that is dead.
func (m *memory) revoked(token string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.forget(token)
}

// first reports whether what was not said the last time about the same matter.
func (m *memory) first(matter int, what string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	if what == "" && m.behind == nil {
		return false
	}
	before := m.past().said[matter]
	m.past().said[matter] = what
	return what != "" && what != before
}

// remember adds f to the former tokens, and forgets the oldest. Each token has
// one place. mu is held.
func (m *memory) remember(f former, now instant) {
	if f.token == "" {
		return
	}
	m.forget(f.token)
	m.past().former = slices.DeleteFunc(append(m.past().former, f), func(f former) bool { return !f.alive(now) })
	m.past().former = slices.Delete(m.past().former, 0, max(0, len(m.past().former)-maxFormer))
}

// forget removes token from the former ones. mu is held.
func (m *memory) forget(token string) {
	if m.behind != nil {
		m.behind.former = slices.DeleteFunc(m.behind.former, func(f former) bool { return f.token == token })
	}
}

var hashSeed = maphash.MakeSeed()

// retire makes sure that token is never taken again. mu is held.
func (m *memory) retire(token string) {
	if !m.isRetired(token) {
		m.past().retired = append(slices.Delete(m.past().retired, 0, max(0, len(m.past().retired)+1-maxRetired)), maphash.String(hashSeed, token))
	}
}

func (m *memory) isRetired(token string) bool {
	return m.behind != nil && slices.Contains(m.behind.retired, maphash.String(hashSeed, token))
}
