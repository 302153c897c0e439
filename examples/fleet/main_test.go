package main

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMain is the fleet's process where the example starts this binary again.
func TestMain(m *testing.M) {
	if os.Getenv(folderVariable) != "" {
		main()
		return
	}
	os.Unsetenv("REDIS_URL")
	os.Exit(m.Run())
}

func TestOneProcessAsksForEachToken(t *testing.T) {
	var out strings.Builder
	require.NoError(t, inFolder(t.Context(), nil, &out))
	t.Log(out.String())
	for _, token := range []string{"1", "2", "3"} {
		assert.Len(t, regexp.MustCompile(`process \d  asked   token `+token).FindAllString(out.String(), -1), 1)
		assert.Len(t, regexp.MustCompile(`process \d  adopted token `+token).FindAllString(out.String(), -1), 3)
	}
	assert.Contains(t, out.String(), "3 token requests; without a cache: 12")

	folder := regexp.MustCompile(`a cache in ([^,]+)`).FindStringSubmatch(out.String())[1]
	assert.NoDirExists(t, folder)
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, inFolder(ctx, nil, new(strings.Builder)), context.Canceled)
}
