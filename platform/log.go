package platform

// This file logs a warning once that would come with each minted token.

import (
	"context"
	"log/slog"
	"sync"
)

// once is a [slog.Handler] that passes on each warning only once for a set of
// scopes, except for the warnings about a failure, which have an error.
type once struct {
	slog.Handler
	logged *sync.Map // by scopes and message
}

func (o once) Handle(ctx context.Context, r slog.Record) error {
	key, failed := r.Message, false
	r.Attrs(func(a slog.Attr) bool {
		if a.Key == "scopes" {
			key += a.Value.String()
		}
		failed = failed || a.Key == "error"
		return true
	})
	if r.Level == slog.LevelWarn && !failed {
		if _, before := o.logged.LoadOrStore(key, true); before {
			return nil
		}
	}
	return o.Handler.Handle(ctx, r)
}
