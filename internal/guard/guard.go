// Package guard calls code that a user plugged in: it may panic with any
// value, exit its goroutine or hang.
package guard

import (
	"context"
	"errors"
	"fmt"
	"reflect"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/moovauth/moovauth/internal/redact"
)

// Code is what was plugged in.
type Code struct {
	Name   string        // what it is, such as "Cache"
	Heed   time.Duration // how long after its context's end it may take to return
	Redact *redact.Set   // masks its errors
}

// Call calls f, which calls c. If c panics or ends its goroutine, or returns an
// error whose methods panic, Call returns a [*PanicError]. If c does not heed
// ctx, Call returns c.Heed after ctx has ended, and f's result goes to lost,
// which may be nil, when it comes.
func Call[T any](ctx context.Context, c Code, f func() (T, error), lost func(T)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done, gone := make(chan result), make(chan struct{})
	defer close(gone)
	go func() {
		r := result{err: &PanicError{err: errors.New("moovauth: the " + c.Name + " plugged in called runtime.Goexit")}}
		defer func() {
			_ = recover() // of a panic value whose methods panic
			select {
			case done <- r:
			case <-gone:
				defer func() { _ = recover() }() // there is nobody left to tell
				if r.err == nil && lost != nil {
					lost(r.value)
				}
			}
		}()
		defer func() {
			if v := recover(); v != nil {
				panicked := &PanicError{err: fmt.Errorf("moovauth: the %s plugged in panicked with a %T", c.Name, v), stack: c.Redact.Text(string(debug.Stack()))}
				r.err = panicked
				r.err = &PanicError{c.Redact.Error("moovauth: the "+c.Name+" plugged in panicked", cause(v)), panicked.stack}
			}
		}()
		value, err := f()
		if err != nil && !redact.Sound(err) {
			err = &PanicError{err: fmt.Errorf("moovauth: the %s plugged in returned an error, a %T, whose methods panic", c.Name, err)}
		}
		r = result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
	}
	select {
	case r := <-done:
		return r.value, r.err
	case <-time.After(c.Heed):
		var none T
		return none, fmt.Errorf("moovauth: the %s plugged in has not returned, though its context has ended: %w", c.Name, context.Cause(ctx))
	}
}

// cause is the panic value v as an error.
func cause(v any) error {
	switch v := v.(type) {
	case error:
		return v
	case fmt.Stringer:
		return errors.New(v.String())
	case string:
		return errors.New(v)
	}
	return fmt.Errorf("%T(%s)", v, show(reflect.ValueOf(v), 4))
}

const maxShown = 8 // fields or elements of a value

// show is what v holds, down to depth. Package fmt is not let loose on it: it
// would follow a value that contains itself until the stack overflows, and read
// a map that is written to.
func show(v reflect.Value, depth int) string {
	switch {
	case v.Kind() == reflect.String:
		return v.String()
	case v.Kind() == reflect.Bool:
		return strconv.FormatBool(v.Bool())
	case v.CanInt():
		return strconv.FormatInt(v.Int(), 10)
	case v.CanUint():
		return strconv.FormatUint(v.Uint(), 10)
	case v.CanFloat():
		return strconv.FormatFloat(v.Float(), 'g', -1, 64)
	case depth == 0:
		return "…"
	}
	var parts []string
	switch v.Kind() {
	case reflect.Pointer, reflect.Interface:
		if !v.IsNil() {
			return show(v.Elem(), depth-1)
		}
		return "nil"
	case reflect.Struct:
		for i := range min(v.NumField(), maxShown) {
			parts = append(parts, show(v.Field(i), depth-1))
		}
	case reflect.Slice, reflect.Array:
		for i := range min(v.Len(), maxShown) {
			parts = append(parts, show(v.Index(i), depth-1))
		}
	}
	return "{" + strings.Join(parts, " ") + "}"
}

// PanicError says that code that was plugged in panicked, or ended its goroutine.
type PanicError struct {
	err   error
	stack string
}

func (e *PanicError) Error() string { return e.err.Error() }

// Unwrap returns what says what the panic was.
func (e *PanicError) Unwrap() error { return e.err }

// Stack returns the masked stack of the panic that err reports, or "".
func Stack(err error) string {
	if e := new(PanicError); errors.As(err, &e) {
		return e.stack
	}
	return ""
}
