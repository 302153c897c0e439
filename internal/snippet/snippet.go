// Package snippet type-checks the Go code in the project's documents. Each
// module's tests check the blocks that need that module and no other.
package snippet

import (
	"bytes"
	"errors"
	"fmt"
	"go/ast"
	"go/importer"
	"go/parser"
	"go/token"
	"go/types"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// Block is a ```go block of a document.
type Block struct {
	File  string
	Line  int    // of its first line of code
	Text  string // with its first line
	Above string // the last line of text above it, such as a comment
}

// Blocks are those of all documents below root, the root's directory.
func Blocks(root string) ([]Block, error) {
	var blocks []Block
	for _, pattern := range []string{"*.md", "docs/*.md", "*/README.md"} {
		files, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			return nil, err
		}
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

func blocksOf(file, text string) (blocks []Block) {
	var block *Block
	above := ""
	for n, line := range strings.Split(text, "\n") {
		switch fence := strings.TrimSpace(line); {
		case block == nil && fence == "```go":
			block = &Block{File: file, Line: n + 2, Above: above}
		case block != nil && fence == "```":
			blocks = append(blocks, *block)
			block = nil
		case block != nil:
			block.Text += line + "\n"
		case fence != "":
			above = line
		}
	}
	return blocks
}

// pkg is a package that a block may name.
type pkg struct {
	path   string
	module string // the directory of the module that requires it; "": the root
}

var packages = map[string]pkg{
	"atomic":        {path: "sync/atomic"},
	"context":       {path: "context"},
	"errors":        {path: "errors"},
	"fmt":           {path: "fmt"},
	"http":          {path: "net/http"},
	"log":           {path: "log"},
	"os":            {path: "os"},
	"slog":          {path: "log/slog"},
	"time":          {path: "time"},
	"moovauth":      {path: "github.com/moovauth/moovauth"},
	"moovtest":      {path: "github.com/moovauth/moovauth/moovtest"},
	"oauth2":        {path: "golang.org/x/oauth2"},
	"platform":      {"github.com/moovauth/moovauth/platform", "platform"},
	"rate":          {"golang.org/x/time/rate", "platform"},
	"rediscache":    {"github.com/moovauth/moovauth/rediscache", "rediscache"},
	"redis":         {"github.com/redis/go-redis/v9", "rediscache"},
	"grpc":          {"google.golang.org/grpc", "interop"},
	"oauth":         {"google.golang.org/grpc/credentials/oauth", "interop"},
	"otelhttp":      {"go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp", "interop"},
	"retryablehttp": {"github.com/hashicorp/go-retryablehttp", "interop"},
}

// standIns are what a reader of a block has already, by name.
var standIns = map[string]string{
	"accountID":    "string",
	"base":         "http.RoundTripper",
	"cache":        "moovauth.Cache",
	"cards":        "func(http.ResponseWriter, *http.Request)",
	"connectedID":  "string",
	"connectedIDs": "[]string",
	"creds":        "moovauth.Credentials",
	"ctx":          "context.Context",
	"mux":          "*http.ServeMux",
	"opts":         "[]moovauth.Option",
	"platformID":   "string",
	"saved":        "*oauth2.Token",
	"server":       "*moovtest.Server",
	"source":       "*moovauth.TokenSource",
	"token":        "string",
	"tokens":       "*platform.Tokens",

	// examples/checkout
	"a": `struct {
		remember func(http.Handler) http.Handler
		sessions interface{ of(*http.Request) *struct{ user string } }
		scopes   func(user string) []string
	}`,
	"status": "func(int) error",

	// Moov's own SDK is not on the module proxy.
	"moov": `struct {
		NewClient      func(...func(*http.Client)) (*http.Client, error)
		WithHttpClient func(*http.Client) func(*http.Client)
	}`,
}

// file is a block as a file of its own.
type file struct {
	Block
	text    string
	imports map[string]bool // by path
	module  string
}

// newFile wraps b, so that it can be compiled: in a package, and in a function
// if it is not made of declarations.
func newFile(b Block) (*file, error) {
	wrapped, line := b.Text, b.Line
	if _, err := parse(b, "package p\n"+wrapped); err != nil {
		body := b.Text + "\npanic(0)\n}\n"
		wrapped, line = "func _() error {\n"+body, line-1
		if returnsTwo(wrapped) {
			wrapped = "func _() (any, error) {\n" + body
		}
	}
	syntax, err := parse(b, "package p\n"+wrapped)
	if err != nil {
		return nil, err
	}
	f := &file{Block: b, imports: make(map[string]bool)}
	head := new(strings.Builder)
	own := make(map[string]bool) // what b declares itself
	for _, decl := range syntax.Decls {
		if d, ok := decl.(*ast.GenDecl); ok {
			for _, spec := range d.Specs {
				if t, ok := spec.(*ast.TypeSpec); ok {
					own[t.Name.Name] = true
				}
			}
		}
	}
	var used []string
	names(syntax, func(name string) { used = append(used, name) })
	for i := 0; i < len(used); i++ {
		declared, ok := standIns[used[i]]
		if ok && !own[used[i]] && !slices.Contains(used[:i], used[i]) {
			line := "var " + used[i] + " " + declared + "\n"
			fmt.Fprint(head, line)
			of, err := parse(b, "package p\n"+line)
			if err != nil {
				return nil, err
			}
			names(of, func(name string) {
				if _, ok := packages[name]; ok {
					used = append(used, name)
				}
			})
		}
	}
	var imports strings.Builder
	for _, name := range slices.Compact(slices.Sorted(slices.Values(used))) {
		p, ok := packages[name]
		if !ok {
			continue
		}
		fmt.Fprintf(&imports, "import %s %q\n", name, p.path)
		f.imports[p.path] = true
		if p.module != "" {
			if f.module != "" && f.module != p.module {
				return nil, fmt.Errorf("%s:%d: it needs modules %s and %s: split it", b.File, b.Line, f.module, p.module)
			}
			f.module = p.module
		}
	}
	f.text = fmt.Sprintf("package p\n%s%s//line %s:%d\n%s", &imports, head, b.File, line, wrapped)
	return f, nil
}

// returnsTwo reports whether a function returns two values.
func returnsTwo(text string) (two bool) {
	f, err := parser.ParseFile(token.NewFileSet(), "", "package p\n"+text, parser.SkipObjectResolution)
	if err != nil {
		return false
	}
	ast.Inspect(f, func(n ast.Node) bool {
		ret, ok := n.(*ast.ReturnStmt)
		two = two || ok && len(ret.Results) == 2
		_, inner := n.(*ast.FuncLit)
		return !inner
	})
	return two
}

func parse(b Block, text string) (*ast.File, error) {
	f, err := parser.ParseFile(token.NewFileSet(), "", text, parser.SkipObjectResolution)
	if err != nil {
		return nil, fmt.Errorf("%s:%d: %w", b.File, b.Line, err)
	}
	return f, nil
}

// names calls found for each identifier that may be a package or a stand-in.
func names(syntax *ast.File, found func(string)) {
	ast.Inspect(syntax, func(n ast.Node) bool {
		switch n := n.(type) {
		case *ast.SelectorExpr:
			ast.Inspect(n.X, func(n ast.Node) bool {
				if id, ok := n.(*ast.Ident); ok {
					found(id.Name)
				}
				return true
			})
		case *ast.Ident:
			if _, ok := packages[n.Name]; !ok {
				found(n.Name)
			}
		}
		return true
	})
}

// Check type-checks the blocks of all documents that need module, the directory
// of a module below root, or "" for the root itself. It returns how many there
// were, and what is wrong with them.
func Check(root, module string) (checked int, err error) {
	blocks, err := Blocks(root)
	if err != nil {
		return 0, err
	}
	var files []*file
	paths := map[string]bool{"errors": true}
	var errs []error
	for _, b := range blocks {
		f, err := newFile(b)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if f.module == module {
			files = append(files, f)
			maps.Copy(paths, f.imports)
		}
	}
	exports, err := exportData(filepath.Join(root, module), slices.Sorted(maps.Keys(paths)))
	if err != nil {
		return 0, err
	}
	for _, f := range files {
		errs = append(errs, f.check(exports))
	}
	return len(files), errors.Join(errs...)
}

// exportData finds what the compiler left of packages, and of those they need.
func exportData(dir string, paths []string) (map[string]string, error) {
	list := exec.Command("go", append([]string{"list", "-export", "-deps", "-f", "{{.ImportPath}} {{.Export}}"}, paths...)...)
	list.Dir = dir
	stderr := new(bytes.Buffer)
	list.Stderr = stderr
	out, err := list.Output()
	if err != nil {
		return nil, fmt.Errorf("go list: %w: %s", err, stderr)
	}
	files := make(map[string]string)
	for line := range strings.Lines(string(out)) {
		if path, file, ok := strings.Cut(strings.TrimSpace(line), " "); ok {
			files[path] = file
		}
	}
	return files, nil
}

// check type-checks f. What only a fragment may do is no error: it need not use
// what it declares.
func (f *file) check(exports map[string]string) error {
	set := token.NewFileSet()
	syntax, err := parser.ParseFile(set, "block.go", f.text, parser.SkipObjectResolution|parser.ParseComments)
	if err != nil {
		return err
	}
	var errs []error
	conf := types.Config{
		Importer: importer.ForCompiler(set, "gc", func(path string) (io.ReadCloser, error) {
			file, ok := exports[path]
			if !ok {
				return nil, fmt.Errorf("package %s is not among those that blocks use", path)
			}
			return os.Open(file)
		}),
		Error: func(err error) {
			for _, harmless := range []string{"declared and not used", "imported and not used", "imported as "} {
				if strings.Contains(err.Error(), harmless) {
					return
				}
			}
			errs = append(errs, err)
		},
	}
	_, _ = conf.Check("p", set, []*ast.File{syntax}, nil)
	return errors.Join(errs...)
}
