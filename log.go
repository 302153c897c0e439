package moovauth

// This file is the one way to the logger, which a user plugged in and which may
// panic or hang. docs/operations.md lists the records.

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"log/slog"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/moovauth/moovauth/internal/guard"
)

// maxLog is how long a record may take.
const maxLog = time.Second

// log logs, and returns soon whatever the handler does. Its error says that the
// handler panicked or did not return. While a record is stuck in the handler,
// those that follow are dropped.
func (c *config) log(level slog.Level, msg string, attrs ...any) error {
	if c.logger == nil {
		return nil
	}
	if c.stuck.Load() > 0 { // waiting for each of many records would take longer than anybody has
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxLog)
	defer cancel()
	const running, late, over = 0, 1, 2
	var state atomic.Int32
	_, err := guard.Call(ctx, guard.Code{Name: "slog.Handler", Redact: &c.redact}, func() (struct{}, error) {
		defer func() {
			if state.Swap(over) == late {
				c.stuck.Add(-1)
			}
		}()
		if c.logger.Enabled(ctx, level) {
			c.logger.Log(ctx, level, msg, append(attrs, "client_id", c.creds.ClientID, "scopes", c.fingerprint())...)
		}
		return struct{}{}, nil
	}, nil)
	if ctx.Err() != nil {
		c.stuck.Add(1)
		if !state.CompareAndSwap(running, late) {
			c.stuck.Add(-1)
		}
	}
	return err
}

// fingerprint is a short name for the configured scopes, in any order. Sources
// for the same scopes have the same one.
func (c *config) fingerprint() string {
	hash := sha256.Sum256([]byte(strings.Join(slices.Compact(slices.Sorted(slices.Values(c.scopes))), " ")))
	return hex.EncodeToString(hash[:4])
}

// withStack adds to a log record's attributes if err is a panic.
func withStack(err error, attrs ...any) []any {
	if stack := guard.Stack(err); stack != "" {
		attrs = append(attrs, "stack", stack)
	}
	return attrs
}
