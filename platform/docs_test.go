package platform

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/internal/snippet"
)

// Code in README and docs that uses this module compiles.
func TestCodeInTheDocumentsCompiles(t *testing.T) {
	n, err := snippet.Check("..", "platform")
	require.NoError(t, err)
	assert.NotZero(t, n)
}
