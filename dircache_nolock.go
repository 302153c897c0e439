//go:build !(darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd || windows)

package moovauth

import (
	"errors"
	"fmt"
	"os"
	"runtime"
)

const noWait = 0 // openRegular looks before it opens

func lockFile(*os.Root, string) (unlock func(), err error) {
	return nil, fmt.Errorf("this system (%s) has no lock for DirCache: processes that need a token at the same time each ask for one: %w",
		runtime.GOOS, errors.ErrUnsupported)
}
