// Package snippet type-checks the Go code in the project's documents. The tests of
// each module check the blocks that need this module and no other nested module.
package snippet

import (
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/scanner"
	"go/token"
	"go/types"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// Block is a ```go block of a document.
type Block struct {
	File  string
	Line  int    // line number of the first line of code
	Text  string // the code
	Above string // the last line of text above the block, such as a comment
}

// modules lists what blocks may use without declaring it. The key is the directory of
// the module. The imports are import specs, and the vars are var specs for values that
// the reader of a block already has. All modules can use those of the root. A block
// needs a nested module if it uses one of the module's names.
var modules = map[string]struct{ names, imports, vars string }{
	"": {"", `"context"; "errors"; "fmt"; "log"; "log/slog"; "net/http"; "os"; "sync/atomic"; "testing"; "testing/synctest"; "time"; "golang.org/x/oauth2"
		"github.com/moovauth/moovauth"; "github.com/moovauth/moovauth/dircache"; "github.com/moovauth/moovauth/moovtest"`,
		`accountID, connectedID, platformID, token string; connectedIDs []string; ctx context.Context
		base http.RoundTripper; cards func(http.ResponseWriter, *http.Request); mux *http.ServeMux; saved *oauth2.Token
		cache moovauth.Cache; creds moovauth.Credentials; opts []moovauth.Option; source *moovauth.TokenSource; server *moovtest.Server
		// in examples/checkout
		a struct { userOf func(*http.Request) (user string, err error); scopes func(user string) []string }
		// Moov's own SDK, which is not on the module proxy
		moov struct { CredentialsDefault func() struct { PublicKey, SecretKey, Host string }
			WithCredentials func(struct { PublicKey, SecretKey, Host string }) func(*http.Client)
			WithHttpClient func(*http.Client) func(*http.Client); NewClient func(...func(*http.Client)) (*http.Client, error) }
		err error`},
	"platform":   {"platform|rate|tokens", `"github.com/moovauth/moovauth/platform"; "golang.org/x/time/rate"`, `limiter moovauth.Limiter; tokens *platform.Tokens`},
	"rediscache": {"rediscache|redis", `"github.com/moovauth/moovauth/rediscache"; redis "github.com/redis/go-redis/v9"`, ``},
	"interop": {"grpc|oauth|retryablehttp|otelhttp", `"google.golang.org/grpc"; "google.golang.org/grpc/credentials/oauth"
		retryablehttp "github.com/hashicorp/go-retryablehttp"; "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp"`, ``},
}

// Blocks returns the blocks of all documents below root, the root's directory.
func Blocks(root string) (blocks []Block, err error) {
	for _, pattern := range []string{"*.md", "docs/*.md", "*/README.md"} {
		files, _ := filepath.Glob(filepath.Join(root, pattern)) // the patterns are well formed
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				return nil, err
			}
			blocks = append(blocks, blocksOf(file, string(text))...)
		}
	}
	return blocks, nil
}

var fenced = regexp.MustCompile("(?ms)^[ \t]*```go\n(.*?)^[ \t]*```$")

func blocksOf(file, text string) (blocks []Block) {
	for _, at := range fenced.FindAllStringSubmatchIndex(text, -1) {
		above := strings.TrimSpace(text[:at[0]])
		blocks = append(blocks, Block{file, strings.Count(text[:at[2]], "\n") + 1, text[at[2]:at[3]], above[strings.LastIndexByte(above, '\n')+1:]})
	}
	return blocks
}

// Check type-checks the blocks of all documents that need module. The module is a
// directory below root, or "" for root itself. Check skips blocks that are excerpts of a
// file. It returns how many blocks it checked, and the errors that it found.
func Check(root, module string) (checked int, err error) {
	blocks, err := Blocks(root)
	if err != nil {
		return 0, err
	}
	return check(blocks, root, module)
}

func check(blocks []Block, root, module string) (checked int, err error) {
	names := modules[""]
	if module != "" {
		names.imports += "\n" + modules[module].imports
		names.vars += "\n" + modules[module].vars
	}
	packages, err := load(filepath.Join(root, module), names.imports)
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, b := range blocks {
		if strings.HasPrefix(b.Above, "<!-- in ") {
			continue // the block is compiled in that file
		}
		switch needed := b.modules(); {
		case len(needed) > 1:
			errs = append(errs, fmt.Errorf("%s:%d: the block needs the modules %s: split it", b.File, b.Line, strings.Join(needed, " and ")))
		case strings.Join(needed, "") == module:
			checked++
			errs = append(errs, b.check(packages, names.imports, names.vars))
		}
	}
	return checked, errors.Join(errs...)
}

// load returns an importer that reads the compiler's export data of the imported
// packages and of their dependencies.
func load(dir, imports string) (types.Importer, error) {
	args := []string{"list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}"}
	for _, path := range regexp.MustCompile(`"(.+?)"`).FindAllStringSubmatch(imports, -1) {
		args = append(args, path[1])
	}
	list := exec.Command("go", args...)
	list.Dir, list.Stderr = dir, os.Stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w", err)
	}
	files := map[string]string{}
	for line := range strings.Lines(string(out)) {
		path, file, _ := strings.Cut(strings.TrimSpace(line), " ")
		files[path] = file
	}
	return importer.ForCompiler(token.NewFileSet(), "gc", func(path string) (io.ReadCloser, error) { return os.Open(files[path]) }), nil
}

// modules returns the nested modules that b needs.
func (b Block) modules() (needed []string) {
	for dir, m := range modules {
		if dir != "" && regexp.MustCompile(`\b(`+m.names+`)\.[A-Z]`).MatchString(b.Text) {
			needed = append(needed, dir)
		}
	}
	slices.Sort(needed)
	return needed
}

func (b Block) isFile() bool { return strings.HasPrefix(b.Text, "package ") }

// check type-checks b. If b is not a whole file, check tries it as the body of a
// function that returns one value, as the body of a function that returns two, and as
// declarations. It returns nil if one of them is correct. Otherwise it returns the error
// of the first one without a syntax error.
func (b Block) check(packages types.Importer, imports, vars string) (first error) {
	if b.isFile() {
		return b.checkAs(packages, fmt.Sprintf("/*line %s:%d:1*/%s", b.File, b.Line, b.Text))
	}
	for _, around := range [][2]string{{"func _() error {", "\npanic(0)\n}"}, {"func _() (any, error) {", "\npanic(0)\n}"}, {"", ""}} {
		err := b.checkAs(packages, fmt.Sprintf("package p; import (%s\n); %s/*line %s:%d:1*/%s%s\n//line variables:1\nvar (%s\n)",
			imports, around[0], b.File, b.Line, b.Text, around[1], vars))
		if err == nil {
			return nil
		}
		if first == nil || errors.As(first, new(scanner.ErrorList)) && !errors.As(err, new(scanner.ErrorList)) {
			first = err
		}
	}
	return first
}

// checkAs type-checks text, which contains b, and ignores errors outside of b. If b is
// not a whole file, it may leave its variables unused and redeclare those in modules.
func (b Block) checkAs(packages types.Importer, text string) error {
	set := token.NewFileSet()
	syntax, err := parser.ParseFile(set, "", text, parser.SkipObjectResolution)
	if err != nil {
		return err
	}
	var errs []error
	conf := types.Config{Importer: packages, Error: func(err error) {
		e := err.(types.Error)
		if (!e.Soft || b.isFile()) && set.Position(e.Pos).Filename == b.File && !strings.HasPrefix(e.Msg, "\t") {
			errs = append(errs, err)
		}
	}}
	_, _ = conf.Check("p", set, []*ast.File{syntax}, nil)
	return errors.Join(errs...)
}
