//go:build darwin || dragonfly || freebsd || illumos || linux || netbsd || openbsd

package moovauth

// This file holds DirCache against what only Unix has: named pipes, sockets,
// permissions, limits, a working directory that is gone.

import (
	"bytes"
	"io/fs"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func init() {
	dirRoles["limited"] = dirLimited
	dirRoles["unprivileged"] = dirUnprivileged
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

// atOnce fails if f waits for something.
func atOnce(t *testing.T, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(10 * time.Second):
		require.Fail(t, "it waits")
	}
}

func TestDirCacheUsesRegularFilesOnly(t *testing.T) {
	for name, c := range map[string]struct {
		kind string
		make func(t *testing.T, path string)
	}{
		"pipe":            {"a named pipe", makePipe},
		"socket":          {"a socket", makeSocket},
		"link":            {"a link", linkTo("target")},
		"dangling link":   {"a link", linkTo("nowhere")},
		"link to a pipe":  {"a link", linkTo("pipe")},
		"link outside":    {"a link", linkTo("../outside")},
		"absolute link":   {"a link", linkTo("/dev/zero")},
		"link to itself":  {"a link", linkTo("a")},
		"link to the dir": {"a link", linkTo(".")},
	} {
		t.Run(name, func(t *testing.T) {
			above := t.TempDir()
			dir := DirCache(filepath.Join(above, "tokens"))
			require.NoError(t, os.Mkdir(string(dir), 0o700))
			in := func(name string) string { return filepath.Join(string(dir), name) }
			for _, path := range []string{in("target"), filepath.Join(above, "outside")} {
				require.NoError(t, os.WriteFile(path, []byte("not ours"), 0o600))
			}
			makePipe(t, in("pipe"))
			for _, name := range []string{"a", "b", "c.lock"} {
				c.make(t, in(name))
			}

			atOnce(t, func() {
				_, err := dir.Get(t.Context(), "a")
				notMissing(t, err, "a is "+c.kind+", not a regular file: remove it")

				assert.NoError(t, dir.Put(t.Context(), "a", []byte("x")), "it is replaced")
				data, err := dir.Get(t.Context(), "a")
				assert.NoError(t, err)
				assert.Equal(t, "x", string(data))
				info, err := os.Lstat(in("a"))
				assert.NoError(t, err)
				assert.Equal(t, fs.FileMode(0o600), info.Mode())

				assert.NoError(t, dir.Delete(t.Context(), "b"))

				_, err = dir.Lock(t.Context(), "c")
				notMissing(t, err, "c.lock is "+c.kind+", not a regular file: remove it")
			})
			assert.ElementsMatch(t, []string{"a", "c.lock", "pipe", "target"}, names(t, string(dir)), "nothing else is made or removed")
			for _, path := range []string{in("target"), filepath.Join(above, "outside")} {
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				assert.Equal(t, "not ours", string(data))
			}
		})
	}
}

// A pipe that gets the name after the first look holds nobody up either.
func TestOpenRegularLooksOnceMore(t *testing.T) {
	t.Parallel()
	dir, err := os.OpenRoot(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	makePipe(t, filepath.Join(dir.Name(), "a"))
	atOnce(t, func() {
		f, err := dir.OpenFile("a", os.O_RDONLY|noWait, 0)
		if assert.NoError(t, err, "it does not wait for a writer") {
			assert.ErrorContains(t, checkRegular(f.Stat()), "a named pipe")
			assert.NoError(t, f.Close())
		}
	})
}

func TestDirCacheWhoseDirectoryIsSomethingElse(t *testing.T) {
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
				c := DirCache(above + "/" + path)
				atOnce(t, func() {
					_, err := c.Get(t.Context(), "a")
					notMissing(t, err)
					notMissing(t, c.Put(t.Context(), "a", nil))
					notMissing(t, c.Delete(t.Context(), "a"))
					_, err = c.Lock(t.Context(), "a")
					notMissing(t, err)
					assert.Contains(t, sourceLog(t, c), "moovauth: DirCache(")
				})
			}
			assert.Equal(t, before, names(t, above))
		})
	}
}

// The path is the user's own: it may lead through links, to another disk, say.
func TestDirCacheMayBeALinkToADirectory(t *testing.T) {
	t.Parallel()
	above := t.TempDir()
	require.NoError(t, os.Mkdir(filepath.Join(above, "disk"), 0o700))
	require.NoError(t, os.Symlink("disk", filepath.Join(above, "tokens")))
	c := DirCache(filepath.Join(above, "tokens"))
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, "x", string(data))
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	unlock()
}

func TestWorkingDirectoryThatIsGoneIsNoMiss(t *testing.T) {
	gone := filepath.Join(t.TempDir(), "gone")
	require.NoError(t, os.Mkdir(gone, 0o700))
	t.Chdir(gone)
	require.NoError(t, os.Remove(gone))
	for _, c := range []DirCache{"tokens", "./tokens/", "far/away/tokens"} {
		_, err := c.Get(t.Context(), "a")
		notMissing(t, err, "no such file or directory")
		notMissing(t, c.Put(t.Context(), "a", nil), "no such file or directory")
		notMissing(t, c.Delete(t.Context(), "a"), "no such file or directory")
		_, err = c.Lock(t.Context(), "a")
		notMissing(t, err, "no such file or directory")
		log := sourceLog(t, c)
		for _, op := range []string{"Get", "Lock", "Put"} {
			assert.Contains(t, log, "moovauth: cache: "+op+": ")
		}
	}
}

// Here each holder removes the file before it frees the lock. Some have opened the
// old file by then, and lock it while others lock a new one.
func TestDirCacheLockIsNeverOnAFileThatWasRemoved(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	dir, err := os.OpenRoot(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	const times = 50
	var inside atomic.Int32
	var all sync.WaitGroup
	for range 8 {
		all.Go(func() {
			for held := 0; held < times; {
				unlock, err := lockFile(dir, "a.lock")
				if err != nil {
					assert.ErrorIs(t, err, errHeld)
					continue
				}
				held++
				assert.Equal(t, int32(1), inside.Add(1))
				runtime.Gosched()
				inside.Add(-1)
				assert.NoError(t, dir.Remove("a.lock"))
				unlock()
			}
		})
	}
	all.Wait()
}

func TestDirCacheUnlockAfterTheDirectoryIsGone(t *testing.T) {
	t.Parallel()
	c := DirCache(filepath.Join(t.TempDir(), "tokens"))
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	require.NoError(t, os.RemoveAll(string(c)))
	unlock()
	again, err := c.Lock(t.Context(), "a")
	require.NoError(t, err, "it is made anew")
	again()
}

// A child that is being started, or has inherited the file, keeps no lock.
func TestDirCacheUnlockFreesTheLockForAllWhoHaveTheFile(t *testing.T) {
	t.Parallel()
	dir, err := os.OpenRoot(t.TempDir())
	require.NoError(t, err)
	defer dir.Close()
	unlock, err := lockFile(dir, "a.lock")
	require.NoError(t, err)
	fd := lockedFD(t, filepath.Join(dir.Name(), "a.lock"))
	inherited, err := syscall.Dup(fd)
	require.NoError(t, err)
	defer syscall.Close(inherited)
	_, err = lockFile(dir, "a.lock")
	require.ErrorIs(t, err, errHeld)
	unlock()
	again, err := lockFile(dir, "a.lock")
	require.NoError(t, err)
	again()
}

// lockedFD returns this process's file descriptor of a file.
func lockedFD(t *testing.T, path string) int {
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

// runDirProcess runs a process whose test holds by itself.
func runDirProcess(t *testing.T, role, dir string) {
	t.Helper()
	p := dirProcess(t, role, dir)
	out, err := p.CombinedOutput()
	require.NoError(t, err, "%s", out)
	if bytes.Contains(out, []byte("skipped: ")) {
		t.Skipf("%s", out)
	}
}

// dirLimited can write a part of an entry, as on a disk that is nearly full.
func dirLimited(t *testing.T, dir string) {
	signal.Ignore(syscall.SIGXFSZ)
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_FSIZE, &limit))
	limit.Cur = 64 << 10
	require.NoError(t, syscall.Setrlimit(syscall.RLIMIT_FSIZE, &limit))
	notMissing(t, DirCache(dir).Put(t.Context(), "a", wholeEntry(1)), syscall.EFBIG.Error())
}

func TestPutOnAFullDiskLeavesTheOldEntry(t *testing.T) {
	t.Parallel()
	c := DirCache(t.TempDir())
	require.NoError(t, c.Put(t.Context(), "a", wholeEntry(0)))
	runDirProcess(t, "limited", string(c))
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, wholeEntry(0), data)
	assert.Equal(t, []string{"a"}, names(t, string(c)), "nothing is left behind")
}

// dirUnprivileged is nobody, for whom permissions count.
func dirUnprivileged(t *testing.T, _ string) {
	if os.Geteuid() == 0 {
		const nobody = 65534
		require.NoError(t, syscall.Setgroups(nil))
		require.NoError(t, syscall.Setgid(nobody))
		require.NoError(t, syscall.Setuid(nobody))
	}
	above, err := os.MkdirTemp("", "moovauth")
	if err != nil {
		os.Stdout.WriteString("skipped: " + err.Error())
		return
	}
	defer os.RemoveAll(above)
	c := DirCache(filepath.Join(above, "tokens"))
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	denied := func(err error) {
		t.Helper()
		notMissing(t, err)
		assert.ErrorIs(t, err, fs.ErrPermission)
	}

	require.NoError(t, os.Chmod(string(c), 0o500)) // to read from
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

	require.NoError(t, os.Chmod(string(c), 0)) // closed
	_, err = c.Get(t.Context(), "a")
	denied(err)
	denied(c.Put(t.Context(), "a", []byte("y")))
	denied(c.Delete(t.Context(), "a"))
	_, err = c.Lock(t.Context(), "a")
	denied(err)
	below := c + "/below"
	_, err = below.Get(t.Context(), "a")
	denied(err)
	denied(below.Put(t.Context(), "a", nil))

	require.NoError(t, os.Chmod(string(c), 0o700))
	require.NoError(t, os.Chmod(filepath.Join(string(c), "a"), 0)) // another user's entry, say
	_, err = c.Get(t.Context(), "a")
	denied(err)
	require.NoError(t, c.Put(t.Context(), "a", []byte("y")))
	require.NoError(t, os.WriteFile(filepath.Join(string(c), "a.lock"), nil, 0))
	_, err = c.Lock(t.Context(), "a")
	denied(err)
}

func TestDirCacheThatIsNotAllowedIsNoMiss(t *testing.T) {
	t.Parallel()
	runDirProcess(t, "unprivileged", "")
}
