package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/alicebob/miniredis/v2"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestMain runs the main function if the example has started this binary as a process
// of the fleet.
func TestMain(m *testing.M) {
	if os.Getenv(serverVariable) != "" {
		main()
		return
	}
	os.Unsetenv("REDIS_URL")
	os.Exit(m.Run())
}

func TestProcessesShareALimitInRedis(t *testing.T) {
	t.Setenv("REDIS_URL", "redis://"+miniredis.RunT(t).Addr())
	var out strings.Builder
	require.NoError(t, runFleet(t.Context(), &out))
	t.Log(out.String())
	assert.Len(t, regexp.MustCompile(`process \d has the tokens of its \d+ accounts`).FindAllString(out.String(), -1), 3)
	assert.Regexp(t, `The server refused \d of 10\d requests\.`, out.String(), "a few at most, if the machine is very busy")
}

func TestProcessesWithoutRedisExceedTheLimit(t *testing.T) {
	var out strings.Builder
	require.NoError(t, runFleet(t.Context(), &out))
	t.Log(out.String())
	assert.Regexp(t, `The server refused [1-9]\d* of \d+ requests\.`, out.String())
}
