package checkout

// This file simulates the rest of the platform: many accounts that request a token at the
// same moment, and the figures that the operator sees.

import (
	"context"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/platform"
)

// crowdSize is the number of accounts, besides those of the two users who can sign in.
const crowdSize = 500

type crowd struct {
	tokens *platform.Tokens

	mu   sync.Mutex // guards the field below
	left int        // accounts that are waiting for their token
}

// start requests a token for all accounts at once. It does nothing while accounts of an
// earlier start are waiting.
func (c *crowd) start() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left > 0 {
		return nil
	}
	for i := range crowdSize {
		source, err := c.tokens.Source(fmt.Sprintf("/accounts/crowd-%03d/cards.read", i))
		if err != nil {
			return err
		}
		c.left++
		go func() {
			c.ask(source)
			c.mu.Lock()
			defer c.mu.Unlock()
			c.left--
		}()
	}
	return nil
}

// ask requests a token for an account. If the account has a token, it requests the next.
func (c *crowd) ask(source *moovauth.TokenSource) {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Minute)
	defer cancel()
	if time.Now().Before(source.Stats().Expiry) {
		if token, err := source.TokenContext(ctx); err == nil {
			source.Invalidate(token.AccessToken)
		}
	}
	_, _ = source.TokenContext(ctx) // the demo ignores failures
}

// stats has the figures that an operator would put on a dashboard.
type stats struct {
	Crowd       int     `json:"crowd"` // accounts that are waiting for their token
	InQueue     int     `json:"inQueue"`
	LongestWait float64 `json:"longestWait"` // seconds
	Rate        float64 `json:"rate"`        // requests per second
	Needed      float64 `json:"needed"`      // refreshes per second
	Served      uint64  `json:"served"`
	Refused     uint64  `json:"refused"`
	TimedOut    uint64  `json:"timedOut"`
}

func (a *App) stats(w http.ResponseWriter, _ *http.Request) {
	s := a.tokens.Stats()
	a.crowd.mu.Lock()
	left := a.crowd.left
	a.crowd.mu.Unlock()
	writeJSON(w, http.StatusOK, stats{
		Crowd: left, InQueue: s.InLine, LongestWait: s.LongestWait.Seconds(), Rate: s.Rate, Needed: s.Needed,
		Served: s.Served, Refused: s.Refused, TimedOut: s.TimedOut,
	})
}

// startCrowd requires the embedded server, because Moov has no such accounts.
func (a *App) startCrowd(w http.ResponseWriter, _ *http.Request) {
	if err := a.crowd.start(); err != nil {
		writeJSON(w, http.StatusInternalServerError, map[string]string{"error": "internal_server_error"})
		return
	}
	w.WriteHeader(http.StatusAccepted)
}
