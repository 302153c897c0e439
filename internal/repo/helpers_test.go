package repo

import (
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
)

const root = "../.."

const rootModule = "github.com/moovauth/moovauth"

// read returns the text of a file of the repository.
func read(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, filepath.FromSlash(name)))
	require.NoError(t, err)
	return string(text)
}

// modules returns every module of the repository, by its folder: "." is the root.
func modules(t *testing.T) map[string]*modfile.File {
	t.Helper()
	found := make(map[string]*modfile.File)
	require.NoError(t, fs.WalkDir(os.DirFS(root), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() && name != "." && (strings.HasPrefix(d.Name(), ".") || slices.Contains([]string{"testdata", "node_modules"}, d.Name())) {
			return fs.SkipDir
		}
		if d.Name() == "go.mod" {
			found[path.Dir(name)], err = modfile.Parse(name, []byte(read(t, name)), nil)
		}
		return err
	}))
	require.Contains(t, found, ".")
	return found
}

// version returns the version of the release that the tree is, or will be: the
// first one in the change log.
func version(t *testing.T) string {
	t.Helper()
	_, rest, _ := strings.Cut(read(t, "CHANGELOG.md"), "\n## ")
	number, _, _ := strings.Cut(rest, " ")
	return "v" + number
}
