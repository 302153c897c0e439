package moovauth

// This file holds the table of log records in docs/operations.md to the code, and
// what is promised of every record.

import (
	"context"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// sourceFiles parses the package's files, without its tests.
func sourceFiles(t testing.TB) (*gotoken.FileSet, []*ast.File) {
	t.Helper()
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	set := gotoken.NewFileSet()
	var files []*ast.File
	for _, name := range names {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		f, err := parser.ParseFile(set, name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		files = append(files, f)
	}
	return set, files
}

// literal is the text of a string literal, or "".
func literal(e ast.Expr) string {
	lit, ok := e.(*ast.BasicLit)
	if !ok || lit.Kind != gotoken.STRING {
		return ""
	}
	text, _ := strconv.Unquote(lit.Value)
	return text
}

// record is a log record as the table has it.
type record struct {
	level, message string
	attrs          []string
}

func (r record) String() string { return fmt.Sprintf("%s %q %v", r.level, r.message, r.attrs) }

// loggedRecords are the calls of log in the source. The function that forwards to
// it in report adds attributes of its own.
func loggedRecords(t *testing.T) []string {
	set, files := sourceFiles(t)
	var records []record
	var local []string // attributes that the local log adds
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			call, ok := n.(*ast.CallExpr)
			if !ok || len(call.Args) < 2 {
				return true
			}
			forwarded := false
			switch fun := call.Fun.(type) {
			case *ast.SelectorExpr:
				if fun.Sel.Name != "log" {
					return true
				}
			case *ast.Ident:
				if forwarded = fun.Name == "log"; !forwarded {
					return true
				}
			default:
				return true
			}
			level, ok := call.Args[0].(*ast.SelectorExpr)
			if !ok { // the local log itself
				require.Empty(t, local, "%s: a second function that forwards records", set.Position(call.Pos()))
				local = attributesIn(call.Args[2:])
				return true
			}
			r := record{level: strings.TrimPrefix(level.Sel.Name, "Level"), attrs: attributesIn(call.Args[2:])}
			if forwarded {
				require.NotEmpty(t, local)
				r.attrs = append(slices.Clone(local), r.attrs...)
			}
			messages := []string{literal(call.Args[1])}
			if sum, ok := call.Args[1].(*ast.BinaryExpr); ok {
				prefix := literal(sum.X)
				messages = nil
				for _, warning := range lifetimeWarnings(files) {
					messages = append(messages, prefix+warning)
				}
			}
			for _, message := range messages {
				require.True(t, strings.HasPrefix(message, "moovauth: "), "%s: %q", set.Position(call.Pos()), message)
				r.message = message
				records = append(records, r)
			}
			return true
		})
	}
	return unique(records)
}

// attributesIn are the names among a call's arguments, also within calls such as
// withStack's, which adds one.
func attributesIn(args []ast.Expr) (names []string) {
	for i := 0; i < len(args); i++ {
		switch arg := args[i].(type) {
		case *ast.BasicLit:
			names = append(names, literal(arg))
			i++ // its value
		case *ast.CompositeLit:
			names = append(names, attributesIn(arg.Elts)...)
		case *ast.CallExpr:
			name, ok := arg.Fun.(*ast.Ident)
			switch {
			case ok && name.Name == "withStack":
				names = append(append(names, attributesIn(arg.Args[1:])...), "stack")
			case ok && name.Name == "append":
				names = append(names, attributesIn(arg.Args)...)
			}
		}
	}
	return names
}

// lifetimeWarnings are what the function lifetime returns.
func lifetimeWarnings(files []*ast.File) (warnings []string) {
	for _, f := range files {
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Name.Name == "lifetime" {
				ast.Inspect(fn, func(n ast.Node) bool {
					if ret, ok := n.(*ast.ReturnStmt); ok && literal(ret.Results[1]) != "" {
						warnings = append(warnings, literal(ret.Results[1]))
					}
					return true
				})
			}
		}
	}
	return warnings
}

func unique(records []record) []string {
	seen := make(map[string]bool)
	for _, r := range records {
		seen[r.String()] = true
	}
	return slices.Sorted(maps.Keys(seen))
}

// rows are the cells of the tables in a section of a document, without heads.
func rows(t testing.TB, file, section string) (table [][]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	_, rest, ok := strings.Cut(string(text), "\n"+section+"\n")
	require.True(t, ok, "%s has no section %q", file, section)
	level, _, _ := strings.Cut(section, " ")
	body, _, _ := strings.Cut(rest, "\n"+level+" ")
	head := true
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		switch {
		case !strings.HasPrefix(line, "|"):
			head = true
		case strings.HasPrefix(line, "|--"):
			head = false
		case !head:
			var cells []string
			for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			table = append(table, cells)
		}
	}
	require.NotEmpty(t, table)
	return table
}

// quotedIn are the texts between backticks.
func quotedIn(cell string) (quoted []string) {
	parts := strings.Split(cell, "`")
	for i := 1; i < len(parts); i += 2 {
		quoted = append(quoted, parts[i])
	}
	return quoted
}

func TestLogRecordsAreThoseOfTheTable(t *testing.T) {
	t.Parallel()
	var documented []record
	for _, cells := range rows(t, "docs/operations.md", "## Log records") {
		require.Len(t, cells, 5, "%v", cells)
		assert.NotEmpty(t, cells[3])
		assert.NotEmpty(t, cells[4])
		documented = append(documented, record{cells[0], strings.Trim(cells[1], "`"), quotedIn(cells[2])})
	}
	assert.Equal(t, loggedRecords(t), unique(documented))
}

// All records go through log.go, which adds whose they are.
func TestLoggerIsCalledInOnePlace(t *testing.T) {
	t.Parallel()
	_, files := sourceFiles(t)
	var uses []string
	for _, f := range files {
		ast.Inspect(f, func(n ast.Node) bool {
			if sel, ok := n.(*ast.SelectorExpr); ok {
				if of, ok := sel.X.(*ast.SelectorExpr); ok && of.Sel.Name == "logger" {
					uses = append(uses, sel.Sel.Name)
				}
			}
			return true
		})
	}
	assert.Equal(t, []string{"Enabled", "Log"}, uses)
}

func TestErrorsInTheTableAreThoseOfTheCode(t *testing.T) {
	t.Parallel()
	_, files := sourceFiles(t)
	guard, err := parser.ParseFile(gotoken.NewFileSet(), "internal/guard/guard.go", nil, 0)
	require.NoError(t, err)
	var all strings.Builder
	for _, f := range append(files, guard) {
		ast.Inspect(f, func(n ast.Node) bool {
			if lit, ok := n.(*ast.BasicLit); ok {
				all.WriteString(literal(lit) + "\n")
			}
			return true
		})
	}
	said := all.String()
	for _, cells := range rows(t, "docs/operations.md", "## Errors") {
		require.Len(t, cells, 3, "%v", cells)
		for _, text := range quotedIn(cells[1]) {
			if strings.HasPrefix(text, "answered ") {
				text = "answered %d"
			}
			assert.Contains(t, said, text)
		}
	}
}

func attributesOf(r slog.Record) map[string]slog.Value {
	attrs := make(map[string]slog.Value)
	r.Attrs(func(a slog.Attr) bool { attrs[a.Key] = a.Value; return true })
	return attrs
}

func TestEveryRecordSaysWhoseItIs(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t)
		cache := newLockingCache()
		s := sourceOf(t, server, log.option(), WithCache(cache))
		server.Enqueue(moovtest.Answer{Status: 503}, moovtest.Answer{Status: 401})
		_, err := s.Token()
		require.Error(t, err)
		time.Sleep(time.Minute)
		token(t, s)
		time.Sleep(time.Hour)
		server.Enqueue(moovtest.Answer{Status: 403})
		token(t, s)
		token(t, sourceOf(t, server, log.option(), WithCache(cache)))
		server.Enqueue(moovtest.Answer{Status: 403})
		require.Error(t, s.Revoke(t.Context()))
		synctest.Wait()

		seen := make(map[string]bool)
		for _, r := range log.records {
			seen[r.Message] = true
			attrs := attributesOf(r)
			assert.Equal(t, server.ClientID, attrs["client_id"].String(), r.Message)
			assert.Regexp(t, "^[0-9a-f]{8}$", attrs["scopes"].String(), r.Message)
		}
		assert.Equal(t, []string{
			"moovauth: attempt failed",
			"moovauth: no token obtained",
			"moovauth: the refresh grant failed; going on with client credentials",
			"moovauth: token adopted from the cache",
			"moovauth: token not revoked",
			"moovauth: token obtained",
			"moovauth: token revoked",
		}, slices.Sorted(maps.Keys(seen)))
	})
}

func TestScopesHaveOneFingerprintInAnyOrder(t *testing.T) {
	t.Parallel()
	server := onLoopback(t)
	of := func(scopes ...string) string {
		log := new(logged)
		token(t, sourceOf(t, server, log.option(), WithScopes(scopes...)))
		return attributesOf(log.records[0])["scopes"].String()
	}
	assert.Equal(t, of("/a.read", "/b.read"), of("/b.read", "/a.read", "/b.read"))
	assert.NotEqual(t, of("/a.read", "/b.read"), of("/a.read"))
	assert.NotContains(t, of("/a.read"), "read")
}

func TestGrantsAndRevocationsAreLoggedWithTheirDuration(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t, moovtest.WithLatency(2*time.Second))
		s := sourceOf(t, server, log.option())
		token(t, s)
		require.NoError(t, s.Revoke(t.Context()))
		server.Enqueue(moovtest.Answer{Status: 401})
		_, err := s.Token()
		require.Error(t, err)
		require.NoError(t, Revoke(t.Context(), credentialsOf(server), "unknown",
			WithBaseURL(server.URL), WithHTTPClient(server.Client()), log.option(), WithTokenTypeHint(AccessToken)))

		for message, want := range map[string]int{"token obtained": 1, "no token obtained": 1, "token revoked": 3} {
			records := log.of(message)
			require.Len(t, records, want, message)
			for _, attrs := range records {
				assert.Equal(t, 2*time.Second, attrs["duration"].Duration(), message)
			}
		}
		hints := make([]string, 0, 3)
		for _, attrs := range log.of("token revoked") {
			hints = append(hints, attrs["token_type_hint"].String())
		}
		assert.Equal(t, []string{"refresh_token", "access_token", "access_token"}, hints)
	})
}

// noLine is a Limiter that lets every request go at once.
type noLine struct{}

func (noLine) Wait(context.Context) error { return nil }

func TestRevocationThatFailsIsLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		for name, opts := range map[string][]Option{"alone": nil, "in line": {WithLimiter(noLine{})}} {
			log := new(logged)
			server := inMemory(t)
			server.Enqueue(moovtest.Answer{Status: 429, Header: map[string][]string{"Retry-After": {"1800"}}})
			err := Revoke(t.Context(), credentialsOf(server), "token", append(opts,
				WithBaseURL(server.URL), WithHTTPClient(server.Client()), log.option(), WithTimeout(time.Second))...)
			if name == "in line" { // time in line does not count
				require.NoError(t, err)
				assert.Len(t, log.of("refused with 429; getting in line again"), 1)
				assert.Len(t, log.of("token revoked"), 1)
				continue
			}
			require.Error(t, err)
			assert.Len(t, log.of("token not revoked"), 1, name)
		}
	})
}

func TestRevocationThatLeavesTheLineIsLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t)
		server.Enqueue(moovtest.Answer{Status: 429, Header: map[string][]string{"Retry-After": {"60"}}})
		ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
		defer cancel()
		require.Error(t, Revoke(ctx, credentialsOf(server), "token", WithLimiter(noLine{}),
			WithBaseURL(server.URL), WithHTTPClient(server.Client()), log.option()))
		records := log.of("token not revoked")
		require.Len(t, records, 1)
		assert.Equal(t, 10*time.Second, records[0]["duration"].Duration())
	})
}

func TestGrantThatGetsInLineAgainIsLogged(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t)
		server.Enqueue(moovtest.Answer{Status: 429, Header: map[string][]string{"Retry-After": {"1"}}})
		token(t, sourceOf(t, server, WithLimiter(noLine{}), log.option()))
		records := log.of("refused with 429; getting in line again")
		require.Len(t, records, 1)
		assert.GreaterOrEqual(t, records[0]["delay"].Duration(), time.Second)
		assert.Contains(t, records[0]["error"].String(), "429")
	})
}

// What repeats is logged when it changes: about the lifetime, and about scopes.
func TestRepeatedWarningIsLoggedWhenItChanges(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		log := new(logged)
		server := inMemory(t, moovtest.WithoutRefreshTokens())
		s := sourceOf(t, server, log.option(), WithScopes("/a.read", "/b.read"))
		n := 0
		grant := func(members string) {
			t.Helper()
			n++
			server.Enqueue(moovtest.Answer{Body: fmt.Sprintf(`{"access_token":"token-%d",%s}`, n, members)})
			token(t, s)
			time.Sleep(31 * 24 * time.Hour)
		}
		const (
			absent = "expires_in is absent, unreadable or in the past: 5 minutes are assumed"
			long   = "expires_in is more than 30 days ahead: 30 days are assumed"
			scopes = "the server did not grant all scopes"
		)
		said := func() [3]int { return [3]int{len(log.of(absent)), len(log.of(long)), len(log.of(scopes))} }
		for _, step := range []struct {
			members string
			want    [3]int
		}{
			{`"scope":"/a.read /b.read"`, [3]int{1, 0, 0}},
			{`"expires_in":0`, [3]int{1, 0, 0}},
			{`"expires_in":3000000`, [3]int{1, 1, 0}},
			{`"expires_in":4000000`, [3]int{1, 1, 0}},
			{`"expires_in":-5`, [3]int{2, 1, 0}},
			{`"expires_in":900`, [3]int{2, 1, 0}},
			{`"scope":"/a.read"`, [3]int{3, 1, 1}},
			{`"expires_in":900,"scope":"/a.read"`, [3]int{3, 1, 1}},
			{`"expires_in":900,"scope":"/b.read"`, [3]int{3, 1, 2}},
			{`"expires_in":900,"scope":"/a.read /b.read"`, [3]int{3, 1, 2}},
			{`"expires_in":900,"scope":"/b.read"`, [3]int{3, 1, 3}},
		} {
			grant(step.members)
			require.Equal(t, step.want, said(), "%s", step.members)
		}
	})
}

// A handler that hangs costs one record's time, not that of all.
func TestHandlerThatHangsHoldsUpRevokeOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		server := inMemory(t)
		var hangs atomic.Bool
		var records atomic.Int32
		s := sourceOf(t, server, WithLogger(slog.New(handler(func(slog.Record) {
			if records.Add(1); hangs.Load() {
				time.Sleep(time.Minute)
			}
		}))))
		for range 10 {
			s.Invalidate(token(t, s).AccessToken)
			time.Sleep(31 * time.Second)
		}
		hangs.Store(true)
		began := time.Now()
		require.NoError(t, s.Revoke(t.Context()))
		assert.Equal(t, maxLog, time.Since(began))
		assert.Empty(t, server.AccessTokens())
		time.Sleep(time.Minute)

		hangs.Store(false)
		before := records.Load()
		token(t, s)
		assert.Greater(t, records.Load(), before, "it is used again once it has returned")
	})
}
