package moovauth

// This file is the one way to the logger, which a user plugged in and which may
// panic or hang.

import (
	"context"
	"log/slog"
	"time"

	"github.com/moovauth/moovauth/internal/guard"
)

// maxLog is how long a record may take.
const maxLog = time.Second

// log logs, and returns soon whatever the handler does. Its error says that the
// handler panicked or did not return.
func (c *config) log(level slog.Level, msg string, attrs ...any) error {
	if c.logger == nil {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), maxLog)
	defer cancel()
	_, err := guard.Call(ctx, guard.Code{Name: "slog.Handler", Redact: &c.redact}, func() (struct{}, error) {
		c.logger.Log(ctx, level, msg, attrs...)
		return struct{}{}, nil
	}, nil)
	return err
}

// withStack adds to a log record's attributes if err is a panic.
func withStack(err error, attrs ...any) []any {
	if stack := guard.Stack(err); stack != "" {
		attrs = append(attrs, "stack", stack)
	}
	return attrs
}
