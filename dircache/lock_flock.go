//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package dircache

import (
	"errors"
	"os"
	"syscall"
)

// lockFile locks the file, or returns errHeld.
func lockFile(dir *os.Root, name string) (unlock func(), err error) {
	f, err := dir.OpenFile(name, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) || errors.Is(err, syscall.EINTR) {
			return nil, errHeld
		}
		return nil, os.NewSyscallError("flock "+name, err)
	}
	return func() {
		// A child process that is being started may have the file open. Then Close does
		// not release the lock.
		_ = syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
		f.Close()
	}, nil
}
