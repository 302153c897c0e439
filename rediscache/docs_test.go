package rediscache

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/internal/snippet"
)

// This test checks the code blocks that need this module.
func TestCodeInTheDocumentsCompiles(t *testing.T) {
	n, err := snippet.Check("..", "rediscache")
	require.NoError(t, err)
	assert.NotZero(t, n)
}
