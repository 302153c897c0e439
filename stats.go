package moovauth

import "time"

// Stats is what a source has.
type Stats struct {
	Expiry          time.Time
	HasRefreshToken bool
}

// Stats returns it.
func (s *TokenSource) Stats() (st Stats) {
	if h := s.memory.load().held; h != nil {
		st.Expiry, st.HasRefreshToken = h.token.Expiry, h.token.RefreshToken != ""
	}
	return st
}
