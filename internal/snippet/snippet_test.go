package snippet

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// checkText checks a document that has one block.
func checkText(t *testing.T, block string) (int, error) {
	t.Helper()
	blocks := blocksOf("doc.md", "# Title\n\nText.\n\n```go\n"+block+"```\n")
	require.Len(t, blocks, 1)
	assert.Equal(t, Block{"doc.md", 6, block, "Text."}, blocks[0])
	return check(blocks, "../..", "")
}

func TestBlocksThatCompile(t *testing.T) {
	for name, block := range map[string]string{
		"statements":   "req, err := http.NewRequestWithContext(ctx, \"GET\", \"/\", nil)\nif err != nil {\n\treturn err\n}\n",
		"an option":    "fmt.Sprint(time.Second)\n",
		"its own type": "type status int\n\nfunc (s status) Error() string { return fmt.Sprint(int(s)) }\n",
		"two values":   "tok, err := source.Token()\nif err != nil {\n\treturn nil, err\n}\n",
		"a whole file": "package main\n\nimport \"fmt\"\n\nfunc main() { fmt.Println() }\n",
		"its own name": "status := 200\nfmt.Sprint(status + 1)\n",
		"declarations": "type t struct{ n int }\n\nfunc (t) String() string { return fmt.Sprint(1) }\n",
	} {
		n, err := checkText(t, block)
		assert.NoError(t, err, name)
		assert.Equal(t, 1, n, name)
	}
}

func TestBlocksThatDoNotCompile(t *testing.T) {
	for block, want := range map[string]string{
		"x := 1\nhttp.Gett(ctx)\n":                           "doc.md:7:6: undefined: http.Gett",
		"func f() int { return \"x\" }\n":                    "doc.md:6:",
		"time.Sleep(accountID)\n":                            "doc.md:6:12: cannot use accountID",
		"package main\n\nimport \"fmt\"\n\nfunc main() {}\n": "doc.md:8:8: \"fmt\" imported and not used",
		"unknown.Do()\n":                                     "undefined: unknown",
		"x := {\n":                                           "doc.md:6",
		"platform.New(creds, grpc.WithBlock())\n":            "doc.md:6: the block needs the modules interop and platform: split it",
	} {
		_, err := checkText(t, block)
		assert.ErrorContains(t, err, want, block)
	}
}

func TestBlockOfAnotherModuleIsSkipped(t *testing.T) {
	n, err := checkText(t, "_ = rate.NewLimiter(\"\")\n")
	assert.NoError(t, err)
	assert.Zero(t, n)
}
