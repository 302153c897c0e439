//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package dircache

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

func lockFile(*os.Root, string) (unlock func(), err error) {
	return nil, fmt.Errorf("there is no lock on %s, so processes that need a token at the same time each request one: %w",
		runtime.GOOS, errors.ErrUnsupported)
}
