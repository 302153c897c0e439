// Package dircache stores the tokens of package moovauth in a directory, so
// that the processes of one user on one machine share them:
//
//	cache, err := dircache.New("/var/lib/myapp/moov")
//	if err != nil {
//		return err
//	}
//	source, err := moovauth.NewTokenSource(creds,
//		moovauth.WithScopes("/ping.read"), moovauth.WithCache(cache))
package dircache

// This file is the cache. An entry is a regular file, with a lock file beside it.
// The lock_*.go files lock a file on each operating system. Package moovauth decides
// what an entry holds and when it is read or locked.

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

const (
	lockSuffix = ".lock"
	partSuffix = ".part-" // a random text follows

	poll = 10 * time.Millisecond // between two attempts to get a lock that is held
)

// errHeld is returned by lockFile if another process or goroutine has the lock.
var errHeld = errors.New("the lock is held")

// Cache is a moovauth.Cache and a moovauth.Locker in a directory. Make one with
// [New]. It is safe for concurrent use, and any number of sources may share it.
//
// A key must be a file name that does not end in ".lock". Files can be read and
// written only by their owner (0600). Only regular files are used. If a link, a
// named pipe or another special file has the name of an entry, every method
// returns an error that names the file to remove.
//
// An entry is written completely or not at all, even if the process is killed.
// A process that is killed may leave a file with ".part-" in its name. Such a
// file can be removed when it is older than a minute. Files are not synced to
// the disk, so after a power failure an entry may be missing, older or damaged.
// A missing or damaged entry costs a token request. An older entry may cause a
// refresh token to be sent a second time: the server refuses it, and may revoke
// the tokens that descend from it.
//
// Use a local directory, because network file systems may not support the lock.
type Cache struct{ dir string }

// New returns a cache in dir. It creates dir, and its missing parents, for
// their owner only (0700). It returns an error if it cannot write to dir. A
// relative dir is resolved, so a later change of the working directory has no
// effect.
func New(dir string) (*Cache, error) {
	if dir == "" {
		return nil, errors.New("dircache: dir is empty: name a directory")
	}
	if strings.HasPrefix(dir, "~") {
		return nil, fmt.Errorf("dircache: %q: the shell expands ~, and Go does not: use os.UserHomeDir or os.UserCacheDir", dir)
	}
	path, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("dircache: %q: %w", dir, err)
	}
	c := &Cache{path}
	root, err := c.open(true)
	if err != nil {
		return nil, c.wrap(err)
	}
	defer root.Close()
	probe := "new" + partSuffix + rand.Text()
	if err = root.WriteFile(probe, nil, 0o600); err == nil {
		err = root.Remove(probe)
	}
	if err != nil {
		return nil, c.wrap(fmt.Errorf("the directory cannot be written to: %w", err))
	}
	return c, nil
}

// Get returns the entry for key. If there is none, the error wraps
// [fs.ErrNotExist]. If the directory was removed after New, the error does not,
// so a source logs the failure. Put and Lock create the directory again.
func (c *Cache) Get(ctx context.Context, key string) ([]byte, error) {
	dir, err := c.openFor(ctx, key, "", false)
	if err != nil {
		return nil, c.wrap(err)
	}
	defer dir.Close()
	data, err := dir.ReadFile(key)
	return data, c.wrap(err)
}

// Put writes the entry for key.
func (c *Cache) Put(ctx context.Context, key string, data []byte) error {
	dir, err := c.openFor(ctx, key, "", true)
	if err != nil {
		return c.wrap(err)
	}
	defer dir.Close()
	part := key + partSuffix + rand.Text()
	if err = dir.WriteFile(part, data, 0o600); err == nil {
		err = dir.Rename(part, key)
	}
	if err != nil {
		_ = dir.Remove(part)
	}
	return c.wrap(err)
}

// Delete removes the entry for key, if there is one.
func (c *Cache) Delete(ctx context.Context, key string) error {
	dir, err := c.openFor(ctx, key, "", false)
	if err != nil {
		return c.wrap(err)
	}
	defer dir.Close()
	if err := dir.Remove(key); !errors.Is(err, fs.ErrNotExist) {
		return c.wrap(err)
	}
	return nil
}

// Lock waits for the lock on key. If ctx ends first, the error wraps that of
// ctx. The name of the lock file is the name of the entry and ".lock". The lock
// file is never removed. It is locked with flock on Unix, and opened without
// sharing on Windows, so the operating system releases the lock of a process
// that dies. On other systems the error of Lock is [errors.ErrUnsupported].
func (c *Cache) Lock(ctx context.Context, key string) (unlock func(), err error) {
	for {
		unlock, err := c.tryLock(ctx, key)
		if !errors.Is(err, errHeld) {
			return unlock, c.wrap(err)
		}
		select {
		case <-time.After(poll):
		case <-ctx.Done():
			return nil, c.wrap(fmt.Errorf("waiting for the lock on %s: %w", key, ctx.Err()))
		}
	}
}

// tryLock opens the lock file again for each attempt: flock does not exclude others
// that use the same open file, and the file may have been removed since.
func (c *Cache) tryLock(ctx context.Context, key string) (unlock func(), err error) {
	dir, err := c.openFor(ctx, key, lockSuffix, true)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return lockFile(dir, key+lockSuffix)
}

// openFor opens the directory to use the file whose name is key and suffix. If that
// file exists, it must be a regular file.
func (c *Cache) openFor(ctx context.Context, key, suffix string, create bool) (*os.Root, error) {
	switch {
	case ctx.Err() != nil:
		return nil, ctx.Err()
	case !filepath.IsLocal(key) || key == "." || filepath.Base(key) != key || filepath.Ext(key) == lockSuffix:
		return nil, fmt.Errorf("the key %q is not a file name, or it ends in %s", key, lockSuffix)
	}
	dir, err := c.open(create)
	if err != nil {
		return nil, err
	}
	if info, err := dir.Lstat(key + suffix); err == nil && !info.Mode().IsRegular() {
		dir.Close()
		return nil, fmt.Errorf("%s is not a regular file (%v): remove it", key+suffix, info.Mode())
	}
	return dir, nil
}

// open opens the directory. It never returns [fs.ErrNotExist], which would mean a
// cache miss.
func (c *Cache) open(create bool) (*os.Root, error) {
	if create {
		if err := os.MkdirAll(c.dir, 0o700); err != nil {
			return nil, err
		}
	}
	dir, err := os.OpenRoot(c.dir + string(filepath.Separator)) // the separator makes a named pipe fail instead of block
	if errors.Is(err, fs.ErrNotExist) {
		return nil, errors.New("the directory was removed")
	}
	return dir, err
}

func (c *Cache) wrap(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("dircache: %s: %w", c.dir, err)
}
