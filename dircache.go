package moovauth

// This file is a Cache in a directory: regular files, and a lock file beside
// each. How a file is locked is dircache_flock.go's and dircache_windows.go's;
// what an entry holds, and when it is read or locked, is cache.go's.

import (
	"context"
	crand "crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"time"
)

// DirCache is a [Cache] and a [Locker] in a directory, for the processes of one
// machine: network file systems may not lock. It makes the directory if there
// is none, for its owner alone (0700), with files that only the owner can read
// (0600). It uses regular files only: anything else that has the name of an
// entry, such as a named pipe or a link, is an error of Get, at once, and Put
// replaces it, unless it is a directory. A key is a file name, with neither a
// separator nor ".lock" at its end.
//
// A file is written whole or not at all, also if the process is killed. What a
// killed process left behind, Put removes after an hour. Nothing is synced to
// the disk: after a power failure an entry may be gone, older or garbage.
// Garbage and a lost entry cost a token request; an older entry may lead to a
// refresh token being sent a second time.
type DirCache string

const (
	partAge = time.Hour // after which a part file belongs to nobody

	firstPoll = 2 * time.Millisecond // doubled with each look at a lock that is held
	maxPoll   = 50 * time.Millisecond
)

// partFile is the name of a file that Put has not finished: 26 letters and digits
// are what [crand.Text] returns.
var partFile = regexp.MustCompile(`.\.part-[A-Z2-7]{26}$`)

// errHeld is what lockFile returns if another has the lock.
var errHeld = errors.New("the lock is held")

// Get reads a file. If there is none, its error is [fs.ErrNotExist]; no other
// error of a DirCache is.
func (d DirCache) Get(ctx context.Context, key string) ([]byte, error) {
	data, err := d.read(ctx, key)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, d.failure(err)
	}
	return data, err
}

func (d DirCache) read(ctx context.Context, key string) ([]byte, error) {
	dir, err := d.open(ctx, key)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	f, err := openRegular(dir, key, os.O_RDONLY)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return io.ReadAll(io.LimitReader(f, maxEntry))
}

// Put writes a file. It also removes the part files of killed processes.
func (d DirCache) Put(ctx context.Context, key string, data []byte) error {
	dir, err := d.make(ctx, key)
	if err != nil {
		return d.failure(err)
	}
	defer dir.Close()
	removeOldParts(dir) // first: the disk may be full
	if err := checkRegular(dir.Lstat(key)); errors.As(err, new(*isDirectory)) {
		return d.failure(err)
	}
	name := key + ".part-" + crand.Text()
	f, err := dir.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return d.failure(err)
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Close())
	if err == nil {
		err = dir.Rename(name, key)
	}
	if err != nil {
		return d.failure(errors.Join(err, dir.Remove(name)))
	}
	return nil
}

// Delete removes a file. If there is none, that is no error.
func (d DirCache) Delete(ctx context.Context, key string) error {
	dir, err := d.open(ctx, key)
	if err == nil {
		defer dir.Close()
		// Remove would also remove a directory that is empty.
		if err = checkRegular(dir.Lstat(key)); !errors.As(err, new(*isDirectory)) {
			err = dir.Remove(key)
		}
	}
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return d.failure(err)
}

// Lock waits for the lock on key as long as ctx lets it. The lock is on a file
// with ".lock" after the key, which stays: flock on Unix, a handle that shares
// nothing on Windows. The system frees the lock of a process that dies. On
// other systems Lock fails, with [errors.ErrUnsupported].
func (d DirCache) Lock(ctx context.Context, key string) (unlock func(), err error) {
	for wait := firstPoll; ; wait = min(2*wait, maxPoll) {
		unlock, err := d.tryLock(ctx, key)
		if err == nil {
			return unlock, nil
		}
		if !errors.Is(err, errHeld) {
			return nil, d.failure(err)
		}
		select {
		case <-time.After(wait/2 + rand.N(wait/2)): // jitter, so that waiters do not come in step
		case <-ctx.Done():
			return nil, d.failure(fmt.Errorf("another process holds the lock on %s: %w", key, ctx.Err()))
		}
	}
}

// tryLock opens the lock file anew each time: flock excludes those who opened it
// separately, and the file may have been removed meanwhile.
func (d DirCache) tryLock(ctx context.Context, key string) (unlock func(), err error) {
	dir, err := d.make(ctx, key)
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	return lockFile(dir, key+lockSuffix)
}

const lockSuffix = ".lock"

// open opens the directory. Its error is fs.ErrNotExist only if there is no
// directory yet and nothing stands in the way of one.
func (d DirCache) open(ctx context.Context, key string) (*os.Root, error) {
	if err := d.check(ctx, key); err != nil {
		return nil, err
	}
	path := string(d)
	if runtime.GOOS != "windows" {
		path += "/" // so that open fails for a named pipe, and does not wait for its other end
	}
	dir, err := os.OpenRoot(path)
	if errors.Is(err, fs.ErrNotExist) {
		if obstacle := d.obstacle(); obstacle != nil {
			return nil, hideNotExist(obstacle)
		}
	}
	return dir, err
}

// make is open for a directory that may have to be made.
func (d DirCache) make(ctx context.Context, key string) (*os.Root, error) {
	if err := d.check(ctx, key); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return nil, err
	}
	return d.open(ctx, key)
}

// check refuses what names no file in a directory.
func (d DirCache) check(ctx context.Context, key string) error {
	switch {
	case ctx.Err() != nil:
		return ctx.Err()
	case d == "":
		return errors.New("it names no directory")
	case !filepath.IsLocal(key), key == ".", filepath.Base(key) != key:
		return fmt.Errorf("the key %q is not a file name", key)
	case filepath.Ext(key) == lockSuffix:
		return fmt.Errorf("the key %q is the name of a lock file: leave out %s", key, lockSuffix)
	}
	return nil
}

// obstacle returns why the directory, which is not there, could not be made
// either: the working directory is gone, or something else has the name of the
// directory or of one above it.
func (d DirCache) obstacle() error {
	path, err := filepath.Abs(string(d))
	if err != nil {
		return err
	}
	for {
		_, err := os.Lstat(path)
		if err == nil {
			break
		}
		above := filepath.Dir(path)
		if !errors.Is(err, fs.ErrNotExist) || above == path {
			return err
		}
		path = above
	}
	// Stat, since links are followed here: the path is the user's own.
	info, err := os.Stat(path)
	if err == nil && !info.IsDir() {
		err = fmt.Errorf("%s is not a directory", path)
	}
	return err
}

// failure says whose error it is, which is not that of a miss.
func (d DirCache) failure(err error) error {
	return fmt.Errorf("moovauth: DirCache(%q): %w", string(d), hideNotExist(err))
}

// hideNotExist keeps only the text of an fs.ErrNotExist.
func hideNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return errors.New(err.Error())
	}
	return err
}

// openRegular opens a regular file, and nothing else. It looks first, since to
// open a device can have effects, and once more afterwards, since another file
// may have the name by then. A link that takes the name in between leads to a
// file in the same directory: os.Root sees to that.
func openRegular(dir *os.Root, name string, flag int) (*os.File, error) {
	err := checkRegular(dir.Lstat(name))
	if err != nil && !(flag&os.O_CREATE != 0 && errors.Is(err, fs.ErrNotExist)) {
		return nil, err
	}
	f, err := dir.OpenFile(name, flag|noWait, 0o600)
	if err != nil {
		return nil, err
	}
	if err := checkRegular(f.Stat()); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// checkRegular takes what Stat returns.
func checkRegular(info fs.FileInfo, err error) error {
	if err != nil {
		return err
	}
	kind := "a device"
	switch mode := info.Mode(); {
	case mode.IsRegular():
		return nil
	case mode.IsDir():
		return &isDirectory{info.Name()}
	case mode&fs.ModeSymlink != 0:
		kind = "a link"
	case mode&fs.ModeNamedPipe != 0:
		kind = "a named pipe"
	case mode&fs.ModeSocket != 0:
		kind = "a socket"
	}
	return fmt.Errorf("%s is %s, not a regular file: remove it", info.Name(), kind)
}

// isDirectory is the error for what Rename does not replace.
type isDirectory struct{ name string }

func (e *isDirectory) Error() string {
	return e.name + " is a directory, not a regular file: remove it"
}

// removeOldParts removes what killed processes left behind. Its errors are not
// Put's, which does without.
func removeOldParts(dir *os.Root) {
	self, err := dir.Open(".")
	if err != nil {
		return
	}
	defer self.Close()
	// The n-th thousand of names is read by one Put in n, so that a large
	// directory slows none of them down.
	for n := 1; ; n++ {
		names, err := self.Readdirnames(1000)
		for _, name := range names {
			if !partFile.MatchString(name) {
				continue
			}
			info, err := dir.Lstat(name)
			if err == nil && info.Mode().IsRegular() && time.Since(info.ModTime()) > partAge {
				_ = dir.Remove(name)
			}
		}
		if err != nil || rand.N(n+1) == 0 {
			return
		}
	}
}
