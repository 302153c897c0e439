//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package dircache_test

// This file has the tests that need Unix: named pipes, sockets, permissions, resource
// limits, and a working directory that was removed.

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/dircache"
)

func init() {
	roles["limited"] = writeOnAFullDisk
	roles["unprivileged"] = useWithoutPermission
}

func makePipe(t *testing.T, path string) { require.NoError(t, syscall.Mkfifo(path, 0o600)) }

func makeSocket(t *testing.T, path string) {
	t.Chdir(filepath.Dir(path)) // the name of a socket must be short
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: filepath.Base(path)})
	require.NoError(t, err)
	l.SetUnlinkOnClose(false)
	require.NoError(t, l.Close())
}

func linkTo(target string) func(*testing.T, string) {
	return func(t *testing.T, path string) { require.NoError(t, os.Symlink(target, path)) }
}

// atOnce fails the test if f does not return within a minute.
func atOnce(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		require.Fail(t, "the call blocks")
	}
}

func TestOnlyRegularFilesAreUsed(t *testing.T) {
	for name, c := range map[string]struct {
		mode string
		make func(t *testing.T, path string)
	}{
		"pipe":            {"p", makePipe},
		"socket":          {"S", makeSocket},
		"link":            {"L", linkTo("target")},
		"dangling link":   {"L", linkTo("nowhere")},
		"link to a pipe":  {"L", linkTo("pipe")},
		"link outside":    {"L", linkTo("../outside")},
		"absolute link":   {"L", linkTo("/dev/zero")},
		"link to itself":  {"L", linkTo("a")},
		"link to the dir": {"L", linkTo(".")},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			dir := filepath.Join(above, "tokens")
			cache := newIn(t, dir)
			for _, path := range []string{filepath.Join(dir, "target"), filepath.Join(above, "outside")} {
				require.NoError(t, os.WriteFile(path, []byte("not ours"), 0o600))
			}
			makePipe(t, filepath.Join(dir, "pipe"))
			for _, name := range []string{"a", "c.lock"} {
				c.make(t, filepath.Join(dir, name))
			}
			before := names(t, dir)

			atOnce(t, func() {
				want := "a is not a regular file (" + c.mode
				_, err := cache.Get(t.Context(), "a")
				failed(t, err, want, "remove it")
				failed(t, cache.Put(t.Context(), "a", []byte("x")), want)
				failed(t, cache.Delete(t.Context(), "a"), want)
				_, err = cache.Lock(t.Context(), "c")
				failed(t, err, "c.lock is not a regular file ("+c.mode, "remove it")
			})
			assert.Equal(t, before, names(t, dir), "no file is created or removed")
			for _, path := range []string{filepath.Join(dir, "target"), filepath.Join(above, "outside")} {
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.Equal(t, "not ours", string(data))
			}
		})
	}
}

func TestNewRefusesFilesThatAreNotDirectories(t *testing.T) {
	for name, make := range map[string]func(t *testing.T, path string){
		"pipe": makePipe, "socket": makeSocket, "dangling link": linkTo("nowhere"),
		"link to a pipe": linkTo("pipe"), "link to a device": linkTo("/dev/zero"), "link to itself": linkTo("tokens"),
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			makePipe(t, filepath.Join(above, "pipe"))
			make(t, filepath.Join(above, "tokens"))
			before := names(t, above)
			for _, path := range []string{"tokens", "tokens/", "tokens/below"} {
				atOnce(t, func() {
					_, err := dircache.New(above + "/" + path)
					failed(t, err, above)
				})
			}
			assert.Equal(t, before, names(t, above))
		})
	}
}

// The path may contain symbolic links, for example to another disk.
func TestDirectoryMayBeASymbolicLink(t *testing.T) {
	t.Parallel()
	above := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(above, "disk"), 0o700))
	require.NoError(t, os.Symlink("disk", filepath.Join(above, "tokens")))
	c := newIn(t, filepath.Join(above, "tokens"))
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, "x", string(data))
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	unlock()
}

func TestWorkingDirectoryThatWasRemoved(t *testing.T) {
	working := filepath.Join(t.TempDir(), "working")
	require.NoError(t, os.Mkdir(working, 0o700))
	t.Chdir(working)
	c := newIn(t, "tokens")
	require.NoError(t, os.RemoveAll(working))
	for _, dir := range []string{"tokens", "./tokens/", "far/away/tokens"} {
		_, err := dircache.New(dir)
		assert.ErrorContains(t, err, "dircache: \""+dir+"\": getwd: no such file or directory")
	}
	_, err := c.Get(t.Context(), "a")
	failed(t, err, "the directory was removed")
	require.NoError(t, c.Put(t.Context(), "a", nil), "the cache has the absolute path")
}

// A child process may have inherited the lock file.
func TestUnlockReleasesTheLockIfAnotherProcessHasTheFileOpen(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newIn(t, dir)
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	inherited, err := syscall.Dup(openFD(t, filepath.Join(dir, "a.lock")))
	require.NoError(t, err)
	defer syscall.Close(inherited)
	unlock()
	again, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	again()
}

// openFD returns the descriptor of a file that this process has open.
func openFD(t *testing.T, path string) int {
	t.Helper()
	want, err := os.Stat(path)
	require.NoError(t, err)
	for fd := range 1024 {
		var have syscall.Stat_t
		if syscall.Fstat(fd, &have) == nil && have.Ino == want.Sys().(*syscall.Stat_t).Ino && have.Dev == want.Sys().(*syscall.Stat_t).Dev {
			return fd
		}
	}
	require.Fail(t, "the file is not open")
	return -1
}

// runProcess runs a process that contains the checks of the test.
func runProcess(t *testing.T, role, dir string) {
	t.Helper()
	out, err := process(t, role, dir).CombinedOutput()
	require.NoError(t, err, "%s", out)
	if bytes.Contains(out, []byte("skipped: ")) {
		t.Skipf("%s", out)
	}
}

// writeOnAFullDisk is a process that can write only a part of an entry.
func writeOnAFullDisk(t *testing.T, dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit))
	limit.Cur = 64 << 10
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	failed(t, newIn(t, dir).Put(t.Context(), "a", wholeEntry(1)), syscall.EFBIG.Error())
}

func TestPutOnAFullDiskLeavesTheOldEntry(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newIn(t, dir)
	require.NoError(t, c.Put(t.Context(), "a", wholeEntry(0)))
	runProcess(t, "limited", dir)
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, wholeEntry(0), data)
	assert.Equal(t, []string{"a"}, names(t, dir), "no other file is left")
}

// useWithoutPermission is a process of a user that is not root, so that the
// permissions of files apply to it.
func useWithoutPermission(t *testing.T, _ string) {
	if os.Geteuid() == 0 {
		const nobody = 65534
		require.NoError(t, syscall.Setgroups(nil))
		require.NoError(t, syscall.Setgid(nobody))
		require.NoError(t, syscall.Setuid(nobody))
	}
	above, err := os.MkdirTemp("", "dircache")
	if err != nil {
		os.Stdout.WriteString("skipped: " + err.Error())
		return
	}
	defer os.RemoveAll(above)
	dir := filepath.Join(above, "tokens")
	c := newIn(t, dir)
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	denied := func(err error) {
		t.Helper()
		failed(t, err)
		assert.ErrorIs(t, err, fs.ErrPermission)
	}

	require.NoError(t, os.Chmod(dir, 0o500)) // only reading is allowed
	_, err = dircache.New(dir)
	denied(err)
	assert.ErrorContains(t, err, "the directory cannot be written to")
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, "x", string(data))
	_, err = c.Get(t.Context(), "b")
	require.ErrorIs(t, err, fs.ErrNotExist, "a miss")
	denied(c.Put(t.Context(), "a", []byte("y")))
	denied(c.Delete(t.Context(), "a"))
	require.NoError(t, c.Delete(t.Context(), "b"))
	_, err = c.Lock(t.Context(), "a")
	denied(err)

	require.NoError(t, os.Chmod(dir, 0)) // nothing is allowed
	for _, closed := range []string{dir, dir + "/below"} {
		_, err = dircache.New(closed)
		denied(err)
	}
	_, err = c.Get(t.Context(), "a")
	denied(err)
	denied(c.Put(t.Context(), "a", []byte("y")))
	denied(c.Delete(t.Context(), "a"))
	_, err = c.Lock(t.Context(), "a")
	denied(err)

	require.NoError(t, os.Chmod(dir, 0o700))
	require.NoError(t, os.Chmod(filepath.Join(dir, "a"), 0)) // as if the entry were another user's
	_, err = c.Get(t.Context(), "a")
	denied(err)
	require.NoError(t, c.Put(t.Context(), "a", []byte("y")))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.lock"), nil, 0))
	_, err = c.Lock(t.Context(), "a")
	denied(err)
}

func TestMissingPermissionIsNotACacheMiss(t *testing.T) {
	t.Parallel()
	runProcess(t, "unprivileged", "")
}
