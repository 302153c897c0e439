package snippet

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// checkText checks a document with one block.
func checkText(t *testing.T, block string) (int, error) {
	t.Helper()
	root, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "doc.md"), []byte("# Title\n\nText.\n\n```go\n"+block+"```\n"), 0o600))
	// go list needs a module, the document none.
	for _, file := range []string{"go.mod", "go.sum"} {
		text, err := os.ReadFile(filepath.Join(root, file))
		require.NoError(t, err)
		require.NoError(t, os.WriteFile(filepath.Join(dir, file), text, 0o600))
	}
	return Check(dir, "")
}

func TestBlocksThatCompile(t *testing.T) {
	for name, block := range map[string]string{
		"statements":   "req, err := http.NewRequestWithContext(ctx, \"GET\", \"/\", nil)\nif err != nil {\n\treturn err\n}\n",
		"an option":    "fmt.Sprint(time.Second)\n",
		"its own type": "type status int\n\nfunc (s status) Error() string { return fmt.Sprint(int(s)) }\n",
		"declarations": "type t struct{ n int }\n\nfunc (t) String() string { return fmt.Sprint(1) }\n",
	} {
		n, err := checkText(t, block)
		assert.NoError(t, err, name)
		assert.Equal(t, 1, n, name)
	}
}

func TestBlocksThatDoNotCompile(t *testing.T) {
	for block, want := range map[string]string{
		"x := 1\nhttp.Gett(ctx)\n":                "doc.md:7: undefined: http.Gett",
		"func f() int { return \"x\" }\n":         "doc.md:6:",
		"time.Sleep(accountID)\n":                 "doc.md:6: cannot use accountID",
		"unknown.Do()\n":                          "undefined: unknown",
		"x := {\n":                                "doc.md:6",
		"platform.New(creds, grpc.WithBlock())\n": "doc.md:6: it needs modules interop and platform: split it",
	} {
		_, err := checkText(t, block)
		assert.ErrorContains(t, err, want, block)
	}
}

func TestBlockOfAnotherModuleIsLeftToIt(t *testing.T) {
	n, err := checkText(t, "_ = rate.NewLimiter(\"\")\n")
	assert.NoError(t, err)
	assert.Zero(t, n)
}
