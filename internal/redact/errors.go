package redact

// This file puts errors of foreign code into words, whose methods may do anything.

import (
	"errors"
	"fmt"
	"strings"
)

const (
	maxErrors = 64      // that one error wraps
	maxError  = 2 << 10 // bytes of an error's text
)

// Error returns an error that says what was being done, and why it failed: the
// masked text of err. It wraps err if nothing had to be masked, in it and all
// that it wraps. Otherwise only errors.Is reaches err.
func (s *Set) Error(doing string, err error) error {
	if err == nil {
		return nil
	}
	texts, sound := texts(err)
	if len(texts) == 0 {
		texts = []string{fmt.Sprintf("an error of type %T, whose text cannot be read", err)}
	}
	text := s.Body(texts[0])
	clean := sound
	for i, t := range texts {
		if i == 0 {
			clean = clean && text == t
		} else if !strings.Contains(texts[0], t) {
			clean = clean && s.Body(t) == t
		}
	}
	if doing != "" {
		text = doing + ": " + text
	}
	text = Cut(text, maxError)
	if clean {
		return &wrapped{text, err}
	}
	opaque := &masked{text: text, is: func(error) bool { return false }}
	if sound {
		opaque.is = func(target error) bool { return errors.Is(err, target) }
		var timeout interface{ Timeout() bool }
		opaque.timeout = errors.As(err, &timeout) && timeout.Timeout()
	}
	return opaque
}

// wrapped asks err for its text once.
type wrapped struct {
	text string
	err  error
}

func (e *wrapped) Error() string { return e.text }
func (e *wrapped) Unwrap() error { return e.err }

// masked keeps what had to be masked out of the reach of errors.As and of fmt.
type masked struct {
	text    string
	is      func(target error) bool
	timeout bool
}

func (e *masked) Error() string        { return e.text }
func (e *masked) Is(target error) bool { return e.is(target) }
func (e *masked) Timeout() bool        { return e.timeout }

// Sound reports whether the methods of err, and of all that it wraps, return:
// a nil pointer in an error, for one, has methods that panic.
func Sound(err error) bool {
	_, ok := texts(err)
	return ok
}

// texts are those of err and of all that it wraps. If !ok they are some of them.
func texts(err error) (all []string, ok bool) {
	defer func() { ok = recover() == nil && ok }()
	probe := errors.New("")
	var walk func(err error) bool
	walk = func(err error) bool {
		if err == nil {
			return true
		}
		if len(all) == maxErrors {
			return false
		}
		all = append(all, err.Error())
		if e, ok := err.(interface{ Is(error) bool }); ok {
			e.Is(probe)
		}
		if e, ok := err.(interface{ As(any) bool }); ok {
			e.As(new(*masked))
		}
		switch e := err.(type) {
		case interface{ Unwrap() error }:
			return walk(e.Unwrap())
		case interface{ Unwrap() []error }:
			for _, err := range e.Unwrap() {
				if !walk(err) {
					return false
				}
			}
		}
		return true
	}
	return all, walk(err)
}
