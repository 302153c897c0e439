package guard

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/internal/redact"
)

const secret = "s3cr3t-key"

// badError's methods do what they should not.
type badError struct{ do func() string }

func (e badError) Error() string        { return e.do() }
func (e badError) Is(target error) bool { return e.do() == "" }
func (e badError) Unwrap() error        { e.do(); return nil }

type badStringer struct{ do func() string }

func (s badStringer) String() string { return s.do() }

type goStringer struct{}

func (goStringer) GoString() string { panic("GoString") }

func (goStringer) Format(fmt.State, rune) { panic("Format") }

type key struct{ Name, Secret string }

type loop []any

func selfish() loop {
	l := loop{nil}
	l[0] = l
	return l
}

// panics are what a plugged-in function may panic with, and what is said.
func panics() map[string]struct {
	value any
	want  string
} {
	bad := func() string { panic("once more") }
	return map[string]struct {
		value any
		want  string
	}{
		"string":                    {"out of order", "panicked: out of order"},
		"secret":                    {"key " + secret, "panicked: key ***"},
		"error":                     {fs.ErrNotExist, "panicked: file does not exist"},
		"nil":                       {nil, "nil"},
		"nil pointer that is error": {(*url.Error)(nil), "panicked: an error of type *url.Error, whose text cannot be read"},
		"error that panics":         {badError{bad}, "badError, whose text cannot be read"},
		"error that panics so":      {badError{func() string { panic(badError{bad}) }}, "badError, whose text cannot be read"},
		"error that exits":          {badError{func() string { runtime.Goexit(); return "" }}, "panicked with a guard.badError"},
		"stringer":                  {badStringer{func() string { return secret }}, "panicked: ***"},
		"stringer that panics":      {badStringer{bad}, "panicked with a guard.badStringer"},
		"nil stringer":              {(*badStringer)(nil), "panicked with a *guard.badStringer"},
		"GoStringer, Formatter":     {goStringer{}, "panicked: guard.goStringer({})"},
		"struct":                    {key{"key", secret}, "panicked: guard.key({key ***})"},
		"pointer":                   {&key{"a", "b"}, "panicked: *guard.key({a b})"},
		"number":                    {time.Duration(7), "7ns"},
		"int":                       {7, "panicked: int(7)"},
		"value that holds itself":   {selfish(), "guard.loop({{…}})"},
		"function":                  {func() {}, "panicked: func()({})"},
		"map":                       {map[string]int{"a": 1}, "map[string]int"},
		"long text":                 {strings.Repeat("long ", 1<<20), "panicked: long long"},
	}
}

func TestAnyPanicBecomesAnError(t *testing.T) {
	set := new(redact.Set)
	set.Pin(secret)
	for name, c := range panics() {
		t.Run(name, func(t *testing.T) {
			value, err := Call(t.Context(), Code{Name: "Cache", Redact: set}, func() (int, error) { panic(c.value) }, nil)
			assert.Zero(t, value)
			require.ErrorContains(t, err, c.want)
			require.ErrorContains(t, err, "moovauth: the Cache plugged in panicked")
			assert.ErrorAs(t, err, new(*PanicError))
			assert.Contains(t, Stack(fmt.Errorf("wrapped: %w", err)), "guard_test.go")
			assert.NotContains(t, fmt.Sprintf("%v %+v %#v", err, err, err)+Stack(err), secret)
			assert.Less(t, len(err.Error()), 2<<10+1)
			assert.NotPanics(t, func() { errors.Is(err, fs.ErrExist); errors.As(err, new(*fs.PathError)) })
		})
	}
}

func TestPanicWithAnErrorCanBeTold(t *testing.T) {
	_, err := Call(t.Context(), Code{}, func() (int, error) { panic(fs.ErrNotExist) }, nil)
	assert.ErrorIs(t, err, fs.ErrNotExist)
	_, err = Call(t.Context(), Code{}, func() (int, error) { var none []int; return none[1], nil }, nil)
	assert.ErrorAs(t, err, new(runtime.Error))
}

func TestReturnedErrorWhoseMethodsPanicIsReplaced(t *testing.T) {
	loops := &cyclic{}
	for name, bad := range map[string]error{
		"nil pointer":        (*url.Error)(nil),
		"wraps one":          fmt.Errorf("%w", badError{func() string { panic("") }}),
		"wraps itself":       loops,
		"Is panics":          isPanics{},
		"joined with others": errors.Join(fs.ErrExist, (*fs.PathError)(nil)),
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Call(t.Context(), Code{Name: "Cache"}, func() (int, error) { return 0, bad }, nil)
			require.ErrorContains(t, err, "moovauth: the Cache plugged in returned an error")
			require.ErrorAs(t, err, new(*PanicError))
			require.NotErrorIs(t, err, fs.ErrExist)
			assert.Empty(t, Stack(err))
		})
	}
}

type cyclic struct{}

func (c *cyclic) Error() string { return "round" }
func (c *cyclic) Unwrap() error { return c }

type isPanics struct{}

func (isPanics) Error() string   { return "text" }
func (isPanics) Is(error) bool   { panic("Is") }
func (isPanics) As(any) bool     { return false }
func (isPanics) Unwrap() []error { return nil }

func TestSoundErrorIsReturnedAsItIs(t *testing.T) {
	value, err := Call(t.Context(), Code{}, func() (int, error) { return 7, fs.ErrNotExist }, nil)
	assert.Equal(t, fs.ErrNotExist, err)
	assert.Equal(t, 7, value)
	assert.Empty(t, Stack(err))
	assert.Empty(t, Stack(nil))
}

func TestGoexitBecomesAnError(t *testing.T) {
	for name, f := range map[string]func() (int, error){
		"in the code":        func() (int, error) { runtime.Goexit(); return 0, nil },
		"in an error's text": func() (int, error) { return 0, badError{func() string { runtime.Goexit(); return "" }} },
	} {
		_, err := Call(t.Context(), Code{Name: "Limiter"}, f, nil)
		require.EqualError(t, err, "moovauth: the Limiter plugged in called runtime.Goexit", name)
		assert.ErrorAs(t, err, new(*PanicError))
	}
}

func TestCodeThatHangsIsLeftBehind(t *testing.T) {
	hang := make(chan struct{})
	for name, f := range map[string]func() (int, error){
		"in the code":           func() (int, error) { <-hang; return 7, nil },
		"in its error's text":   func() (int, error) { return 0, badError{func() string { <-hang; return "" }} },
		"in its panic's text":   func() (int, error) { panic(badError{func() string { <-hang; return "" }}) },
		"in its panic's String": func() (int, error) { panic(badStringer{func() string { <-hang; return "" }}) },
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				hang = make(chan struct{})
				start := time.Now()
				ctx, cancel := context.WithTimeout(t.Context(), time.Second)
				defer cancel()
				lost := make(chan int, 1)
				_, err := Call(ctx, Code{Name: "Cache", Heed: 250 * time.Millisecond}, f, func(v int) { lost <- v; panic("lost") })
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.ErrorContains(t, err, "moovauth: the Cache plugged in has not returned")
				assert.Equal(t, 1250*time.Millisecond, time.Since(start))
				close(hang)
				synctest.Wait()
				if name == "in the code" {
					assert.Equal(t, 7, <-lost)
				}
			})
		})
	}
}

func TestCodeThatHeedsItsContextInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		value, err := Call(ctx, Code{Heed: 250 * time.Millisecond}, func() (int, error) { <-ctx.Done(); time.Sleep(249 * time.Millisecond); return 7, nil }, nil)
		require.NoError(t, err)
		assert.Equal(t, 7, value)
	})
}

func TestMapThatIsWrittenToMeanwhile(t *testing.T) {
	m := map[string]int{}
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
				m["a"]++
			}
		}
	})
	for range 1000 {
		_, err := Call(t.Context(), Code{}, func() (int, error) { panic(m) }, nil)
		require.Error(t, err)
	}
	close(stop)
	wg.Wait()
}
