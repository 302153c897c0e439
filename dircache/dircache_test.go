package dircache_test

// Tests of several processes start this test binary again, in one of the roles.
// lock_flock_test.go has the tests that need Unix.

import (
	"bufio"
	"bytes"
	"context"
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

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
	"github.com/moovauth/moovauth/moovtest"
)

var (
	_ moovauth.Cache  = (*dircache.Cache)(nil)
	_ moovauth.Locker = (*dircache.Cache)(nil)
)

const (
	roleVariable = "DIRCACHE_TEST_ROLE" // the role of a process that a test starts
	dirVariable  = "DIRCACHE_TEST_DIR"  // the directory of its cache
)

// roles are what a process that a test starts can do.
var roles = map[string]func(t *testing.T, dir string){
	"writer":  writeUntilKilled,
	"holder":  holdTheLockUntilKilled,
	"counter": countInAFile,
	"command": command,
}

// TestProcess runs the role in a process that another test has started.
func TestProcess(t *testing.T) {
	t.Parallel()
	role := roles[os.Getenv(roleVariable)]
	if role == nil {
		t.Skip("run by other tests")
	}
	role(t, os.Getenv(dirVariable))
}

func process(t *testing.T, role, dir string, env ...string) *exec.Cmd {
	t.Helper()
	if runtime.GOOS == "js" || runtime.GOOS == "wasip1" {
		t.Skip("there are no processes to start")
	}
	cmd := exec.Command(os.Args[0], "-test.run=^TestProcess$", "-test.v=false")
	cmd.Env = append(append(os.Environ(), roleVariable+"="+role, dirVariable+"="+dir), env...)
	return cmd
}

// newIn returns a cache in dir.
func newIn(t *testing.T, dir string) *dircache.Cache {
	t.Helper()
	c, err := dircache.New(dir)
	require.NoError(t, err)
	return c
}

// needsLock skips the test on a system that has no lock.
func needsLock(t *testing.T) {
	t.Helper()
	unlock, err := newIn(t, t.TempDir()).Lock(t.Context(), "a")
	if errors.Is(err, errors.ErrUnsupported) {
		t.Skip(err)
	}
	require.NoError(t, err)
	unlock()
}

// names returns the names of the files in a directory.
func names(t *testing.T, dir string) (names []string) {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

// failed checks that err is an error of the cache, and not a cache miss.
func failed(t *testing.T, err error, contains ...string) {
	t.Helper()
	require.Error(t, err)
	assert.NotErrorIs(t, err, fs.ErrNotExist)
	for _, text := range append(contains, "dircache: ") {
		assert.ErrorContains(t, err, text)
	}
}

func TestEntriesAreForTheirOwnerOnly(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "not", "there yet")
	c := newIn(t, dir)
	assert.Empty(t, names(t, dir), "New leaves no file in the directory")
	_, err := c.Get(t.Context(), "a")
	require.ErrorIs(t, err, fs.ErrNotExist)
	require.NoError(t, c.Delete(t.Context(), "a"))

	require.NoError(t, c.Put(t.Context(), "a", []byte("1")))
	require.NoError(t, c.Put(t.Context(), "a", []byte("2")))
	data, err := newIn(t, dir).Get(t.Context(), "a")
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

	ended, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, c.Put(ended, "a", nil), context.Canceled)
	assert.ErrorIs(t, c.Delete(ended, "a"), context.Canceled)
	_, err = c.Get(ended, "a")
	assert.ErrorIs(t, err, context.Canceled)
	_, err = c.Lock(ended, "a")
	assert.ErrorIs(t, err, context.Canceled)
}

func TestNewRefusesADirectoryThatCannotBeUsed(t *testing.T) {
	t.Chdir(t.TempDir())
	require.NoError(t, os.WriteFile("file", []byte("not ours"), 0o600))
	for dir, want := range map[string]string{
		"":               "dir is empty",
		"~":              "the shell expands ~",
		"~/.cache/x":     "use os.UserHomeDir or os.UserCacheDir",
		"~user/x":        "the shell expands ~",
		"file":           "directory",
		"file/tokens":    "directory",
		"file/not/there": "directory",
	} {
		c, err := dircache.New(dir)
		failed(t, err, want)
		assert.Nil(t, c)
	}
	assert.Equal(t, []string{"file"}, names(t, "."))
	data, err := os.ReadFile("file")
	require.NoError(t, err)
	assert.Equal(t, "not ours", string(data))
}

func TestRelativeDirectoryIsResolvedByNew(t *testing.T) {
	for _, dir := range []string{"tokens", "./tokens/", "a/b/../tokens", ".", "./~"} {
		t.Run(dir, func(t *testing.T) {
			t.Chdir(t.TempDir())
			c := newIn(t, dir)
			path, err := filepath.Abs(dir)
			require.NoError(t, err)
			t.Chdir(t.TempDir())
			require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
			data, err := c.Get(t.Context(), "a")
			require.NoError(t, err)
			assert.Equal(t, "x", string(data))
			assert.Equal(t, []string{"a"}, names(t, path))
			assert.Empty(t, names(t, "."))
		})
	}
}

func TestRemovedDirectoryIsNotACacheMissAndPutCreatesItAgain(t *testing.T) {
	t.Parallel()
	dir := filepath.Join(t.TempDir(), "above", "tokens")
	c := newIn(t, dir)
	remove := func() { require.NoError(t, os.RemoveAll(filepath.Dir(dir))) }
	remove()
	_, err := c.Get(t.Context(), "a")
	failed(t, err, "the directory was removed", dir)
	failed(t, c.Delete(t.Context(), "a"), "the directory was removed")
	assert.NoDirExists(t, dir)
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	data, err := c.Get(t.Context(), "a")
	require.NoError(t, err)
	assert.Equal(t, "x", string(data))

	remove()
	unlock, err := c.Lock(t.Context(), "a")
	if errors.Is(err, errors.ErrUnsupported) {
		return
	}
	require.NoError(t, err)
	if runtime.GOOS != "windows" { // Windows cannot remove an open file
		remove()
	}
	unlock()
	again, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	again()

	remove()
	require.NoError(t, os.WriteFile(filepath.Dir(dir), nil, 0o600))
	_, err = c.Get(t.Context(), "a")
	failed(t, err)
	failed(t, c.Put(t.Context(), "a", nil))
	failed(t, c.Delete(t.Context(), "a"))
	_, err = c.Lock(t.Context(), "a")
	failed(t, err)
}

// writeUntilKilled is a process that is killed while it writes.
func writeUntilKilled(t *testing.T, dir string) {
	c := newIn(t, dir)
	fmt.Println("writing")
	for i := 0; ; i++ {
		if err := c.Put(t.Context(), "a", wholeEntry(i)); err != nil {
			fmt.Println(err)
		}
	}
}

// wholeEntry returns an entry that takes a while to write. All its bytes are the same,
// so a test can tell whether the entry is complete.
func wholeEntry(i int) []byte { return bytes.Repeat([]byte{'a' + byte(i%26)}, 256<<10) }

func TestEntryIsNeverHalfWritten(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newIn(t, dir)
	require.NoError(t, c.Put(t.Context(), "a", wholeEntry(0)))
	kills, cut := 100, 0
	if testing.Short() {
		kills = 5
	}
	for killed := 0; killed < kills || cut == 0 && killed < 300; killed++ {
		writer := process(t, "writer", dir)
		out, err := writer.StdoutPipe()
		require.NoError(t, err)
		require.NoError(t, writer.Start())
		_, err = out.Read(make([]byte, len("writing")))
		require.NoError(t, err)
		var data []byte
		for range 3 {
			data, err = c.Get(t.Context(), "a")
			require.NoError(t, err)
			require.Equal(t, wholeEntry(int(data[0]-'a')), data)
		}
		require.NoError(t, writer.Process.Kill())
		_ = writer.Wait()
		data, err = c.Get(t.Context(), "a")
		require.NoError(t, err)
		require.Equal(t, wholeEntry(int(data[0]-'a')), data)
		parts, err := filepath.Glob(filepath.Join(dir, "a.part-*"))
		require.NoError(t, err)
		cut += len(parts)
		for _, part := range parts {
			require.NoError(t, os.Remove(part))
		}
	}
	t.Logf("of at least %d writers that were killed, %d were writing a file", kills, cut)
	assert.NotZero(t, cut, "no writer was killed while it was writing a file")
}

func TestKeyIsAnyFileName(t *testing.T) {
	t.Parallel()
	above := t.TempDir()
	dir := filepath.Join(above, "tokens")
	c := newIn(t, dir)
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

	require.NoError(t, os.WriteFile(filepath.Join(above, "out"), []byte("not ours"), 0o600))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "folder"), 0o700))
	before := names(t, dir)
	for _, key := range []string{"", ".", "..", "../out", "/out", "../../out", "folder/../../out", "folder/a", "folder/", "./a", "a\x00b", "a.lock", ".lock", strings.Repeat("x", 300)} {
		_, err := c.Get(t.Context(), key)
		failed(t, err)
		failed(t, c.Put(t.Context(), key, []byte("x")))
		failed(t, c.Delete(t.Context(), key))
		_, err = c.Lock(t.Context(), key)
		failed(t, err)
	}
	assert.Equal(t, before, names(t, dir))
	data, err := os.ReadFile(filepath.Join(above, "out"))
	require.NoError(t, err)
	assert.Equal(t, "not ours", string(data))
}

func TestDirectoryWithTheNameOfAnEntryIsNotRemoved(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	c := newIn(t, dir)
	for _, name := range []string{"a", "b.lock"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	const want = "a is not a regular file (d"
	_, err := c.Get(t.Context(), "a")
	failed(t, err, want, "remove it")
	failed(t, c.Put(t.Context(), "a", nil), want)
	failed(t, c.Delete(t.Context(), "a"), want)
	_, err = c.Lock(t.Context(), "b")
	failed(t, err, "b.lock is not a regular file (d")
	assert.Equal(t, []string{"a", "b.lock"}, names(t, dir))
}

func TestLockExcludesGoroutines(t *testing.T) {
	t.Parallel()
	needsLock(t)
	c := newIn(t, t.TempDir())
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

func TestLockIsForOneKey(t *testing.T) {
	t.Parallel()
	needsLock(t)
	dir := t.TempDir()
	c := newIn(t, dir)
	a, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	b, err := c.Lock(t.Context(), "b")
	require.NoError(t, err)
	// Entries can be written and deleted while the lock is held.
	require.NoError(t, c.Put(t.Context(), "a", []byte("x")))
	_, err = c.Get(t.Context(), "a")
	require.NoError(t, err)
	require.NoError(t, c.Delete(t.Context(), "a"))
	a()
	b()
	assert.Equal(t, []string{"a.lock", "b.lock"}, names(t, dir))
	if runtime.GOOS != "windows" {
		info, err := os.Stat(filepath.Join(dir, "a.lock"))
		require.NoError(t, err)
		assert.Equal(t, fs.FileMode(0o600), info.Mode())
	}
}

func TestLockWaitsUntilItsContextEnds(t *testing.T) {
	t.Parallel()
	needsLock(t)
	synctest.Test(t, func(t *testing.T) {
		c := newIn(t, t.TempDir())
		holding, cancel := context.WithCancel(t.Context())
		unlock, err := c.Lock(holding, "a")
		require.NoError(t, err)
		cancel() // the context limits the wait, not the time for which the lock is held

		for _, patience := range []time.Duration{0, time.Millisecond, 10*time.Second - time.Millisecond} {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			start := time.Now()
			_, err = c.Lock(ctx, "a")
			require.ErrorIs(t, err, context.DeadlineExceeded)
			assert.Equal(t, patience, time.Since(start))
			cancel()
		}
		assert.ErrorContains(t, err, "waiting for the lock on a: ")

		time.AfterFunc(time.Minute, unlock)
		start := time.Now()
		again, err := c.Lock(t.Context(), "a")
		require.NoError(t, err)
		assert.WithinRange(t, time.Now(), start.Add(time.Minute), start.Add(time.Minute+50*time.Millisecond))
		again()
	})
}

// holdTheLockUntilKilled is a process that is killed while it holds the lock.
func holdTheLockUntilKilled(t *testing.T, dir string) {
	c := newIn(t, dir)
	fmt.Println("waiting")
	_, err := c.Lock(context.Background(), "a")
	require.NoError(t, err)
	fmt.Println("held")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

func TestOneOtherProcessGetsTheLockOfAKilledProcess(t *testing.T) {
	if testing.Short() {
		t.Skip("this takes a second")
	}
	t.Parallel()
	needsLock(t)
	dir := t.TempDir()
	c := newIn(t, dir)
	holders := make(chan *exec.Cmd)
	ready := make(chan error)
	for range 4 {
		p := process(t, "holder", dir)
		_, err := p.StdinPipe() // keeps the input open
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
		case <-time.After(time.Minute):
			require.Fail(t, "no process has the lock")
		}
		brief, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		_, err := c.Lock(brief, "a")
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded)
		select {
		case <-holders:
			require.Fail(t, "two processes have the lock")
		default:
		}
		require.NoError(t, holder.Process.Kill())
	}
	unlock, err := c.Lock(t.Context(), "a")
	require.NoError(t, err)
	unlock()
}

const counts = 50

// countInAFile is a process that counts in a file. The count is right only if one
// process does so at a time.
func countInAFile(t *testing.T, dir string) {
	c := newIn(t, dir)
	for range counts {
		unlock, err := c.Lock(t.Context(), "counter")
		require.NoError(t, err)
		data, err := c.Get(t.Context(), "counter")
		if !errors.Is(err, fs.ErrNotExist) {
			require.NoError(t, err)
		}
		n, _ := strconv.Atoi(string(data))
		require.NoError(t, c.Put(t.Context(), "counter", []byte(strconv.Itoa(n+1))))
		unlock()
	}
}

func TestLockExcludesProcesses(t *testing.T) {
	t.Parallel()
	needsLock(t)
	dir := filepath.Join(t.TempDir(), "tokens")
	var processes []*exec.Cmd
	for range 4 {
		p := process(t, "counter", dir)
		var out bytes.Buffer
		p.Stdout, p.Stderr = &out, &out
		require.NoError(t, p.Start())
		t.Cleanup(func() { _ = p.Process.Kill() })
		processes = append(processes, p)
	}
	for _, p := range processes {
		require.NoError(t, p.Wait(), "%s", p.Stdout)
	}
	data, err := newIn(t, dir).Get(t.Context(), "counter")
	require.NoError(t, err)
	assert.Equal(t, strconv.Itoa(4*counts), string(data))
}

func TestSystemWithoutALock(t *testing.T) {
	t.Parallel()
	unlock, err := newIn(t, t.TempDir()).Lock(t.Context(), "a")
	if err == nil {
		unlock()
		t.Skip("this system has a lock")
	}
	require.ErrorIs(t, err, errors.ErrUnsupported)
	failed(t, err, "there is no lock on "+runtime.GOOS)
}

// sourceOf returns a source that uses the server and the cache.
func sourceOf(t *testing.T, server *moovtest.Server, c *dircache.Cache, opts ...moovauth.Option) *moovauth.TokenSource {
	t.Helper()
	s, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		append(opts, moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server.URL),
			moovauth.WithHTTPClient(server.Client()), moovauth.WithCache(c))...)
	require.NoError(t, err)
	return s
}

func token(t *testing.T, s *moovauth.TokenSource) string {
	t.Helper()
	tok, err := s.Token()
	require.NoError(t, err)
	return tok.AccessToken
}

func TestTokenOutlivesASource(t *testing.T) {
	t.Parallel()
	server := moovtest.NewInMemory()
	defer server.Close()
	dir := t.TempDir()
	first := token(t, sourceOf(t, server, newIn(t, dir)))
	assert.Equal(t, first, token(t, sourceOf(t, server, newIn(t, dir))))
	assert.Len(t, server.TokenRequests(), 1)
	require.NoError(t, sourceOf(t, server, newIn(t, dir)).Revoke(t.Context()))
	for _, name := range names(t, dir) {
		assert.Regexp(t, `^moovauth-[0-9a-f]+\.lock$`, name, "only the lock file is left")
	}
}

func TestSourceWorksWithoutItsDirectory(t *testing.T) {
	t.Parallel()
	server := moovtest.NewInMemory()
	defer server.Close()
	dir := filepath.Join(t.TempDir(), "tokens")
	c := newIn(t, dir)
	require.NoError(t, os.Remove(dir))
	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	var log bytes.Buffer
	token(t, sourceOf(t, server, c, moovauth.WithLogger(slog.New(slog.NewTextHandler(&log, nil)))))
	assert.Contains(t, log.String(), "dircache: ")
	assert.Contains(t, log.String(), "not a directory")
}

func TestSourcesRequestEachTokenOnce(t *testing.T) {
	t.Parallel()
	needsLock(t)
	synctest.Test(t, func(t *testing.T) {
		server := moovtest.NewInMemory(moovtest.WithReuseDetection(), moovtest.WithLatency(200*time.Millisecond))
		defer server.Close()
		c := newIn(t, t.TempDir())
		var sources []*moovauth.TokenSource
		for range 4 {
			sources = append(sources, sourceOf(t, server, c))
		}
		for range 40 {
			var all sync.WaitGroup
			for _, s := range sources {
				all.Go(func() {
					tok, err := s.Token()
					if assert.NoError(t, err) {
						assert.True(t, server.Alive(tok.AccessToken))
					}
				})
			}
			all.Wait()
			time.Sleep(20 * time.Minute) // until the token has expired
		}
		assert.Len(t, server.TokenRequests(), 40)
	})
}

const serverVariable = "DIRCACHE_TEST_SERVER" // its URL, and the credentials

// command is one of four commands that start at the same time. It reads a line with
// the tokens of the last round, obtains another token and prints it.
func command(t *testing.T, dir string) {
	server := strings.Fields(os.Getenv(serverVariable))
	s, err := moovauth.NewTokenSource(moovauth.Credentials{ClientID: server[1], ClientSecret: server[2]},
		moovauth.WithScopes("/ping.read"), moovauth.WithBaseURL(server[0]), moovauth.WithCache(newIn(t, dir)))
	require.NoError(t, err)
	fmt.Println("ready")
	old := bufio.NewScanner(os.Stdin)
	if !old.Scan() {
		return
	}
	tok := token(t, s)
	if strings.Contains(old.Text(), tok) {
		s.Invalidate(tok)
		tok = token(t, s)
	}
	fmt.Println(tok)
}

// If a refresh token is used twice, the server revokes all tokens that descend from it.
func TestCommandsRequestEachTokenOnce(t *testing.T) {
	needsLock(t)
	t.Parallel()
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	server := moovtest.NewServer(moovtest.WithReuseDetection(), moovtest.WithLatency(50*time.Millisecond))
	defer server.Close()
	dir := t.TempDir()
	counted := 0
	var tokens []string // of the last round
	for range rounds {
		var starts []io.Writer
		var outs []*bufio.Scanner
		for range 4 {
			p := process(t, "command", dir, serverVariable+"="+strings.Join([]string{server.URL, server.ClientID, server.ClientSecret}, " "))
			p.Stderr = os.Stderr
			in, err := p.StdinPipe()
			require.NoError(t, err)
			out, err := p.StdoutPipe()
			require.NoError(t, err)
			require.NoError(t, p.Start())
			t.Cleanup(func() {
				_ = p.Process.Kill()
				_ = p.Wait()
			})
			lines := bufio.NewScanner(out)
			require.True(t, lines.Scan())
			starts, outs = append(starts, in), append(outs, lines)
		}
		before, start := len(server.TokenRequests()), time.Now()
		for _, in := range starts {
			_, err := fmt.Fprintln(in, strings.Join(tokens, " "))
			require.NoError(t, err)
		}
		tokens = nil
		for _, lines := range outs {
			require.True(t, lines.Scan())
			tokens = append(tokens, lines.Text())
			assert.True(t, server.Alive(lines.Text()))
		}
		if took := time.Since(start); took > time.Second {
			t.Logf("%v: this machine is so busy that commands may not have waited for the lock", took)
			continue
		}
		counted++
		assert.Equal(t, 1, len(server.TokenRequests())-before, "token requests of four commands")
	}
	if counted == 0 {
		t.Skip("this machine is too busy for the test")
	}
}
