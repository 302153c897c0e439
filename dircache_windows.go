package moovauth

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

const (
	noWait = 0 // named pipes are not in directories

	errorSharingViolation syscall.Errno = 32 // ERROR_SHARING_VIOLATION
)

// lockFile opens a file that nobody else can open meanwhile, or returns errHeld.
// os.Root shares what it opens, hence the path.
func lockFile(dir *os.Root, name string) (unlock func(), err error) {
	if err := checkRegular(dir.Lstat(name)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, err
	}
	path := filepath.Join(dir.Name(), name)
	text, err := syscall.UTF16PtrFromString(path)
	if err != nil {
		return nil, err
	}
	handle, err := syscall.CreateFile(text, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS,
		syscall.FILE_ATTRIBUTE_NORMAL|syscall.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if errors.Is(err, errorSharingViolation) {
		return nil, errHeld
	}
	if err != nil {
		return nil, &os.PathError{Op: "CreateFile", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(handle), path)
	if err := checkRegular(f.Stat()); err != nil {
		f.Close()
		return nil, err
	}
	return func() { f.Close() }, nil
}
