package platform

import (
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/internal/snippet"
)

// The code in the documents that needs this module.
func TestCodeInTheDocumentsCompiles(t *testing.T) {
	n, err := snippet.Check("..", "platform")
	require.NoError(t, err)
	assert.NotZero(t, n)
}

func TestCodeInTheDocumentsIsThatOfTheExamples(t *testing.T) {
	blocks, err := snippet.Blocks("..")
	require.NoError(t, err)
	found := 0
	for _, b := range blocks {
		if example, ok := strings.CutPrefix(b.Above, "<!-- in platform/"); ok {
			found++
			text, err := os.ReadFile(strings.TrimSuffix(example, " -->"))
			require.NoError(t, err)
			assert.Contains(t, string(text), b.Text, "%s:%d", b.File, b.Line)
		}
	}
	assert.Equal(t, 1, found)
}
