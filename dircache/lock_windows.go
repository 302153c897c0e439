package dircache

import (
	"errors"
	"os"
	"path/filepath"
	"syscall"
)

// lockFile opens the file without sharing, so that no one else can open it, or returns
// errHeld. It needs the path, because os.Root opens files with sharing.
func lockFile(dir *os.Root, name string) (unlock func(), err error) {
	path, err := syscall.UTF16PtrFromString(filepath.Join(dir.Name(), name))
	if err != nil {
		return nil, err
	}
	handle, err := syscall.CreateFile(path, syscall.GENERIC_READ|syscall.GENERIC_WRITE, 0, nil, syscall.OPEN_ALWAYS,
		syscall.FILE_ATTRIBUTE_NORMAL|syscall.FILE_FLAG_OPEN_REPARSE_POINT, 0)
	if errors.Is(err, syscall.Errno(32)) { // ERROR_SHARING_VIOLATION
		return nil, errHeld
	}
	if err != nil {
		return nil, os.NewSyscallError("CreateFile "+name, err)
	}
	return func() { _ = syscall.CloseHandle(handle) }, nil
}
