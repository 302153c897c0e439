package moovauth

// This file holds DirCache against its contract, with several processes if
// it is about processes: each is this test binary, started again. What needs
// Unix is in dircache_flock_test.go.

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

var _ Locker = DirCache("")

const (
	dirRole   = "MOOVAUTH_TEST_ROLE" // what a process that was started again does
	dirFolder = "MOOVAUTH_TEST_DIR"  // the directory of its DirCache
)

// dirRoles are what a process can do.
var dirRoles = map[string]func(t *testing.T, dir string){
	"writer":  dirWriter,
	"holder":  dirHolder,
	"counter": dirCounter,
}

// TestDirCacheProcess is the process that other tests start.
func TestDirCacheProcess(t *testing.T) {
	t.Parallel()
	role := dirRoles[os.Getenv(dirRole)]
	if role == nil {
		t.Skip("run by other tests")
	}
	role(t, os.Getenv(dirFolder))
}

func dirProcess(t *testing.T, role, dir string, env ...string) *exec.Cmd {
	t.Helper()
	if runtime.GOOS == "js" || runtime.GOOS == "wasip1" {
		t.Skip("there are no processes to start")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestDirCacheProcess$", "-test.v=false")
	cmd.Env = append(append(os.Environ(), dirRole+"="+role, dirFolder+"="+dir), env...)
	return cmd
}

// needsLock skips t on a system that has no lock.
func needsLock(t *testing.T) {
	t.Helper()
	unlock, err := DirCache(t.TempDir()).Lock(t.Context(), "a")
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	unlock()
}

// names are those of the files in a directory.
func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// notMissing holds that err is a failure, which no caller takes for a miss.
func notMissing(t *testing.T, err error, contains ...string) {
	t.Helper()
	require.Error(t, err)
	assert.NotErrorIs(t, err, fs.ErrNotExist)
	for _, text := range append(contains, "moovauth: DirCache(") {
		assert.ErrorContains(t, err, text)
	}
}

func TestDirCacheKeepsEntriesForItsOwnerAlone(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not", "there yet")
	c := DirCache(dir)
	_, err := c.Get(t.Context(), "a")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, c.Delete(t.Context(), "a"))

	require.NoError(t, c.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, c.Put(t.Context(), "a", []byte("2")))
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, "2", string(data))
	if runtime.GOOS != "windows" {
		for path, mode := range map[string]fs.FileMode{dir: 0o700 | fs.ModeDir, filepath.Join(dir, "a"): 0o600} {
			info, err := os.Stat(path)
			require.NoError(t, err)
			assert.Equal(t, mode, info.Mode())
		}
	}
	require.NoError(t, c.Delete(t.Context(), "a"))
	require.NoError(t, c.Delete(t.Context(), "a"))
	_, err = c.Get(t.Context(), "a")
	require.ErrorIs(t, err, fs.ErrNotExist)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "large"), make([]byte, maxEntry+1), 0o600))
	data, err = c.Get(t.Context(), "large")
	require.NoError(t, err)
	assert.Len(t, data, maxEntry, "no more is read than an entry can be long")
	require.NoError(t, c.Delete(t.Context(), "large"))

	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	assert.Error(t, c.Put(t.Context(), "folder", []byte("x")))
	assert.Equal(t, []string{"folder"}, names(t, dir), "nothing is left behind by what failed")

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, c.Put(ended, "a", nil), context.Canceled)
	assert.ErrorIs(t, c.Delete(ended, "a"), context.Canceled)
	_, err = c.Get(ended, "a")
	assert.ErrorIs(t, err, context.Canceled)
}

func TestDirCacheOutlivesASource(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	dir := DirCache(t.TempDir())
	first := token(t, sourceOf(t, server, WithCache(dir)))
	assert.Equal(t, first.AccessToken, token(t, sourceOf(t, server, WithCache(dir))).AccessToken)
	assert.Len(t, server.TokenRequests(), 1)
	require.NoError(t, sourceOf(t, server, WithCache(dir)).Revoke(t.Context()))
	for _, name := range names(t, string(dir)) {
		assert.Regexp(t, `^moovauth-[0-9a-f]+\.lock$`, name, "nothing but the lock file stays")
	}
}

// dirWriter writes until it is killed.
func dirWriter(t *testing.T, dir string) {
	fmt.Println("writing")
	for i := 0; ; i++ {
		if err := DirCache(dir).Put(t.Context(), "a", wholeEntry(i)); err != nil {
			fmt.Println(err)
		}
	}
}

// wholeEntry is large enough to be killed in, and tells whether it is whole.
func wholeEntry(i int) []byte { return bytes.Repeat([]byte{'a' + byte(i%26)}, 256<<10) }

func TestDirCacheIsNeverHalfWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	require.NoError(t, DirCache(dir).Put(t.Context(), "a", wholeEntry(0)))
	kills, cut := 100, 0
	if testing.Short() {
		kills = 5
	}
	for killed := 0; killed < kills || cut == 0 && killed < 300; killed++ {
		writer := dirProcess(t, "writer", dir)
		out, err := writer.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, writer.Start())
		_, err = out.Read(make([]byte, len("writing")))
		require.NoError(t, err)
		var data []byte
		for range 3 {
			data, err = DirCache(dir).Get(t.Context(), "a")
			require.NoError(t, err)
			require.Equal(t, wholeEntry(int(data[0]-'a')), data)
		}
		require.NoError(t, writer.Process.Kill())
		_ = writer.Wait()
		data, err = DirCache(dir).Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, wholeEntry(int(data[0]-'a')), data)
		parts, err := filepath.Glob(filepath.Join(dir, "a.part-*"))
		require.NoError(t, err)
		cut += len(parts)
		for _, part := range parts {
			require.NoError(t, os.Remove(part))
		}
	}
	t.Logf("of at least %d writers killed, %d were in the middle of a file", kills, cut)
	assert.NotZero(t, cut, "else nothing is shown")
}

func TestDirCacheTakesAnyFileNameAsAKey(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := DirCache(filepath.Join(dir, "tokens"))
	keys := []string{"a", ".hidden", "with space", "example.com+rsa", "ключ", "a.part-1", "a.locked", strings.Repeat("x", 200)}
	if runtime.GOOS != "windows" {
		keys = append(keys, `back\slash`, "new\nline", "colon:", "\xff")
	}
	for _, key := range keys {
		require.NoError(t, c.Put(t.Context(), key, []byte(key)))
		unlock, err := c.Lock(t.Context(), key)
		if !errors.Is(err, errors.ErrUnsupported) {
			require.NoError(t, err, "%q", key)
			unlock()
		}
	}
	for _, key := range keys {
		data, err := c.Get(t.Context(), key)
		require.NoError(t, err, "%q", key)
		assert.Equal(t, key, string(data))
		require.NoError(t, c.Delete(t.Context(), key), "%q", key)
		_, err = c.Get(t.Context(), key)
		require.ErrorIs(t, err, fs.ErrNotExist, "%q", key)
	}

	require.NoError(t, os.WriteFile(filepath.Join(dir, "out"), []byte("not ours"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(string(c), "folder"), 0o700))
	before := names(t, string(c))
	for _, key := range []string{"", ".", "..", "../out", "/out", "../../out", "folder/../../out", "folder/a", "folder/", "./a", "a\x00b", "a.lock", ".lock", strings.Repeat("x", 300)} {
		_, err := c.Get(t.Context(), key)
		notMissing(t, err)
		notMissing(t, c.Put(t.Context(), key, []byte("x")))
		notMissing(t, c.Delete(t.Context(), key))
		_, err = c.Lock(t.Context(), key)
		notMissing(t, err)
	}
	assert.Equal(t, before, names(t, string(c)))
	data, err := os.ReadFile(filepath.Join(dir, "out"))
	require.NoError(t, err)
	assert.Equal(t, "not ours", string(data))
}

func TestDirCacheWithoutADirectoryUsesNone(t *testing.T) {
	t.Chdir(t.TempDir())
	c := DirCache("")
	_, err := c.Get(t.Context(), "a")
	notMissing(t, err, "names no directory")
	notMissing(t, c.Put(t.Context(), "a", nil), "names no directory")
	notMissing(t, c.Delete(t.Context(), "a"), "names no directory")
	_, err = c.Lock(t.Context(), "a")
	notMissing(t, err, "names no directory")
	assert.Empty(t, names(t, "."))
}

func TestDirCacheInARelativeDirectory(t *testing.T) {
	needsLock(t)
	for _, dir := range []string{"tokens", "./tokens/", "a/b/../tokens", "."} {
		t.Run(dir, func(t *testing.T) {
			t.Chdir(t.TempDir())
			c := DirCache(dir)
			_, err := c.Get(t.Context(), "a")
			require.ErrorIs(t, err, fs.ErrNotExist, "the directory can be made: a miss")
			require.NoError(t, c.Delete(t.Context(), "a"))
			unlock, err := c.Lock(t.Context(), "a")
			require.NoError(t, err, "Lock makes the directory")
			defer unlock()
			require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
			data, err := c.Get(t.Context(), "a")
			require.NoError(t, err)
			assert.Equal(t, "x", string(data))
			assert.Equal(t, []string{"a", "a.lock"}, names(t, filepath.Clean(dir)))
		})
	}
}

// What is in the way of a directory is no miss, even for Get, which makes none.
func TestDirCacheThatIsNoDirectoryIsNoMiss(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte("not ours"), 0o600))
	for name, dir := range map[string]string{"a file": file, "under a file": filepath.Join(file, "tokens"), "far under a file": filepath.Join(file, "not", "there", "tokens")} {
		t.Run(name, func(t *testing.T) {
			c := DirCache(dir)
			_, err := c.Get(t.Context(), "a")
			notMissing(t, err, "directory")
			notMissing(t, c.Put(t.Context(), "a", nil))
			notMissing(t, c.Delete(t.Context(), "a"))
			_, err = c.Lock(t.Context(), "a")
			notMissing(t, err)
		})
	}
	data, err := os.ReadFile(file)
	require.NoError(t, err)
	assert.Equal(t, "not ours", string(data))
}

func TestDirCacheDoesNotRemoveADirectoryThatHasTheNameOfAnEntry(t *testing.T) {
	t.Parallel()
	needsLock(t)
	c := DirCache(t.TempDir())
	for _, name := range []string{"a", "b.lock"} {
		require.NoError(t, os.Mkdir(filepath.Join(string(c), name), 0o700))
	}
	const want = "a is a directory, not a regular file: remove it"
	_, err := c.Get(t.Context(), "a")
	notMissing(t, err, want)
	notMissing(t, c.Put(t.Context(), "a", nil), want)
	notMissing(t, c.Delete(t.Context(), "a"), want)
	_, err = c.Lock(t.Context(), "b")
	notMissing(t, err, "b.lock is a directory, not a regular file: remove it")
	assert.Equal(t, []string{"a", "b.lock"}, names(t, string(c)))
}

func TestPutRemovesPartFilesThatAreOlderThanAnHour(t *testing.T) {
	t.Parallel()
	c := DirCache(t.TempDir())
	key := "moovauth-" + strings.Repeat("0123456789abcdef", 4)
	fresh := key + ".part-" + rand.Text()
	others := []string{
		"movie.part-1", "a.part-" + strings.ToLower(rand.Text()), "a.part-" + rand.Text() + ".txt", // of other programs
		".part-" + rand.Text(), // of no key
		key,                    // an entry
	}
	for name, age := range map[string]time.Duration{key + ".part-" + rand.Text(): 61 * time.Minute, "a.part-" + rand.Text(): 10000 * time.Hour, fresh: 59 * time.Minute} {
		plant(t, c, name, age)
	}
	for _, name := range others {
		plant(t, c, name, 10000*time.Hour)
	}
	folder := "folder.part-" + rand.Text()
	require.NoError(t, os.Mkdir(filepath.Join(string(c), folder), 0o700))
	require.NoError(t, os.Chtimes(filepath.Join(string(c), folder), time.Time{}, time.Now().Add(-2*time.Hour)))

	require.NoError(t, c.Put(t.Context(), "b", []byte("x")))
	assert.ElementsMatch(t, append(others, fresh, folder, "b"), names(t, string(c)))
	for range 3 { // each Put looks, whatever others did
		plant(t, c, key+".part-"+rand.Text(), 2*time.Hour)
		require.NoError(t, c.Put(t.Context(), "b", []byte("x")))
	}
	assert.ElementsMatch(t, append(others, fresh, folder, "b"), names(t, string(c)))
}

func TestPutsFindOldPartFilesInALargeDirectoryInTheEnd(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	c := DirCache(t.TempDir())
	for i := range 1200 {
		plant(t, c, strconv.Itoa(i), 0)
	}
	for range 50 {
		plant(t, c, "a.part-"+rand.Text(), 2*time.Hour)
	}
	for i := range 200 { // that the second thousand is never read: 1 in 2^200
		require.NoError(t, c.Put(t.Context(), "1", []byte("x")))
		if len(names(t, string(c))) == 1200 {
			t.Logf("after %d Puts", i+1)
			return
		}
	}
	assert.Len(t, names(t, string(c)), 1200)
}

func plant(t *testing.T, c DirCache, name string, age time.Duration) {
	t.Helper()
	path := filepath.Join(string(c), name)
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, os.Chtimes(path, time.Time{}, time.Now().Add(-age)))
}

func TestDirCacheLockExcludesGoroutines(t *testing.T) {
	t.Parallel()
	needsLock(t)
	c := DirCache(t.TempDir())
	var inside, held atomic.Int32
	var all sync.WaitGroup
	for range 20 {
		all.Go(func() {
			unlock, err := c.Lock(t.Context(), "a")
			if assert.NoError(t, err) {
				assert.Equal(t, int32(1), inside.Add(1))
				time.Sleep(time.Millisecond)
				inside.Add(-1)
				held.Add(1)
				unlock()
			}
		})
	}
	all.Wait()
	assert.Equal(t, int32(20), held.Load())
}

func TestDirCacheLockIsOfOneKey(t *testing.T) {
	t.Parallel()
	needsLock(t)
	c := DirCache(t.TempDir())
	a, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	b, err := c.Lock(t.Context(), "b")
	require.NoError(t, err)
	// It is in nobody's way: entries come and go under it.
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	_, err = c.Get(t.Context(), "a")
	require.NoError(t, err)
	require.NoError(t, c.Delete(t.Context(), "a"))
	a()
	b()
	assert.Equal(t, []string{"a.lock", "b.lock"}, names(t, string(c)))
	if runtime.GOOS != "windows" {
		info, err := os.Stat(filepath.Join(string(c), "a.lock"))
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o600), info.Mode())
	}
}

func TestDirCacheLockWaitsAsLongAsItsContext(t *testing.T) {
	t.Parallel()
	needsLock(t)
	synctest.Test(t, func(t *testing.T) {
		c := DirCache(t.TempDir())
		holding, cancel := context.WithCancel(t.Context())
		unlock, err := c.Lock(holding, "a")
		require.NoError(t, err)
		cancel() // bounds the wait alone: the lock stays

		for _, patience := range []time.Duration{0, time.Millisecond, 10 * time.Second} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			start := time.Now()
			_, err = c.Lock(ctx, "a")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			assert.Equal(t, patience, time.Since(start))
			cancel()
		}
		assert.ErrorContains(t, err, "another process holds the lock on a")

		time.AfterFunc(time.Minute, unlock)
		start := time.Now()
		again, err := c.Lock(t.Context(), "a")
		require.NoError(t, err)
		assert.WithinRange(t, time.Now(), start.Add(time.Minute), start.Add(time.Minute+maxPoll))
		again()
	})
}

// dirHolder waits for the lock, and holds it until it is killed.
func dirHolder(t *testing.T, dir string) {
	fmt.Println("waiting")
	_, err := DirCache(dir).Lock(context.Background(), "a")
	require.NoError(t, err)
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestDirCacheLockOfAKilledProcessGoesToOneOther(t *testing.T) {
	if testing.Short() {
		t.Skip("takes a second")
	}
	t.Parallel()
	needsLock(t)
	c := DirCache(filepath.Join(t.TempDir(), "tokens"))
	holders := make(chan *exec.Cmd)
	ready := make(chan error)
	for range 4 {
		p := dirProcess(t, "holder", string(c))
		_, err := p.StdinPipe() // without an end
		require.NoError(t, err)
		out, err := p.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, p.Start())
		t.Cleanup(func() {
			_ = p.Process.Kill()
			_ = p.Wait()
		})
		go func() {
			lines := bufio.NewScanner(out)
			lines.Scan()
			ready <- lines.Err()
			if lines.Scan() && lines.Text() == "held" {
				holders <- p
			}
		}()
	}
	for range 4 {
		require.NoError(t, <-ready)
	}
	for range 4 {
		var holder *exec.Cmd
		select {
		case holder = <-holders:
		case <-time.After(20 * time.Second):
			require.Fail(t, "nobody has the lock")
		}
		brief, cancel := context.WithTimeout(t.Context(), 4*maxPoll)
		_, err := c.Lock(brief, "a")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		select {
		case <-holders:
			require.Fail(t, "two have the lock")
		default:
		}
		require.NoError(t, holder.Process.Kill())
	}
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	unlock()
}

const dirCount = 50

// dirCounter counts in a file, as only one can at a time.
func dirCounter(t *testing.T, dir string) {
	for range dirCount {
		unlock, err := DirCache(dir).Lock(t.Context(), "counter")
		require.NoError(t, err)
		data, err := DirCache(dir).Get(t.Context(), "counter")
		if !errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, err)
		}
		n, _ := strconv.Atoi(string(data))
		require.NoError(t, DirCache(dir).Put(t.Context(), "counter", []byte(strconv.Itoa(n+1))))
		unlock()
	}
}

func TestDirCacheLockExcludesProcesses(t *testing.T) {
	t.Parallel()
	needsLock(t)
	dir := filepath.Join(t.TempDir(), "tokens")
	var processes []*exec.Cmd
	for range 4 {
		p := dirProcess(t, "counter", dir)
		var out bytes.Buffer
		p.Stdout, p.Stderr = &out, &out
		require.NoError(t, p.Start())
		t.Cleanup(func() { _ = p.Process.Kill() })
		processes = append(processes, p)
	}
	for _, p := range processes {
		require.NoError(t, p.Wait(), "%s", p.Stdout)
	}
	data, err := DirCache(dir).Get(t.Context(), "counter")
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(4*dirCount), string(data))
}

// A system without a lock says so; sources go on without.
func TestDirCacheOnASystemWithoutALock(t *testing.T) {
	t.Parallel()
	unlock, err := DirCache(t.TempDir()).Lock(t.Context(), "a")
	if err == nil {
		unlock()
		t.Skip("this system has one")
	}
	require.ErrorIs(t, err, errors.ErrUnsupported)
	notMissing(t, err, "this system ("+runtime.GOOS+") has no lock for DirCache")
}

// sourceLog is what a source logs that finds a DirCache as it is, and gets its
// token without it.
func sourceLog(t *testing.T, dir DirCache) string {
	t.Helper()
	server := inMemory(t)
	var log bytes.Buffer
	s := sourceOf(t, server, WithCache(dir), WithLogger(slog.New(slog.NewTextHandler(&log, nil))))
	start := time.Now()
	token(t, s)
	assert.Less(t, time.Since(start), time.Second, "it holds nobody up")
	return log.String()
}

func TestDirCacheThatCannotBeMadeIsLogged(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	assert.Contains(t, sourceLog(t, DirCache(filepath.Join(file, "tokens"))), "not a directory")
	if runtime.GOOS != "js" && runtime.GOOS != "wasip1" && runtime.GOOS != "plan9" {
		assert.Empty(t, sourceLog(t, DirCache(filepath.Join(t.TempDir(), "tokens"))), "a miss is no failure")
	}
}
