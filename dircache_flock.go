//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package moovauth

import (
	"errors"
	"os"
	"syscall"
)

// noWait lets open return at once for a named pipe, and not make a terminal the
// process's own.
const noWait = syscall.O_NONBLOCK | syscall.O_NOCTTY

// lockFile locks a file, or returns errHeld.
func lockFile(dir *os.Root, name string) (unlock func(), err error) {
	f, err := openRegular(dir, name, os.O_RDWR|os.O_CREATE)
	if err != nil {
		return nil, err
	}
	if err := flock(f, syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, errHeld
		}
		return nil, os.NewSyscallError("flock "+name, err)
	}
	// If the file was removed before it was locked, another process may have made
	// and locked a new one: try again.
	locked, err := f.Stat()
	if err != nil {
		f.Close()
		return nil, err
	}
	if named, err := dir.Lstat(name); err != nil || !os.SameFile(locked, named) {
		f.Close()
		return nil, errHeld
	}
	return func() {
		// Close alone would leave the lock to a process that is being forked.
		_ = flock(f, syscall.LOCK_UN)
		f.Close()
	}, nil
}

func flock(f *os.File, how int) error {
	conn, err := f.SyscallConn()
	if err != nil {
		return err
	}
	var failed error
	err = conn.Control(func(fd uintptr) {
		for {
			if failed = syscall.Flock(int(fd), how); failed != syscall.EINTR {
				return
			}
		}
	})
	return errors.Join(err, failed)
}
