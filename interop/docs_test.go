package interop

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/internal/snippet"
)

// This test checks the code in the documents that needs this module.
func TestCodeInTheDocumentsCompiles(t *testing.T) {
	n, err := snippet.Check("..", "interop")
	require.NoError(t, err)
	assert.NotZero(t, n)
}
