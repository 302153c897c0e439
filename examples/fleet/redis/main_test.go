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
	if os.Getenv("FLEET_MEMBER") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestOneProcessRequestsEachToken(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), nil, &out, "redis://"+miniredis.RunT(t).Addr()))
	t.Log(out.String())
	for _, token := range []string{"1", "2", "3"} {
		assert.Len(t, regexp.MustCompile(`process \d  got token `+token+` from the server\n`).FindAllString(out.String(), -1), 1)
		assert.Len(t, regexp.MustCompile(`process \d  got token `+token+` from the cache\n`).FindAllString(out.String(), -1), 3)
	}
	assert.Contains(t, out.String(), "received 3 token requests. Without a cache it would have received 12, for 3 tokens in each of 4 processes.")
}

func TestRunNamesTheVariableThatIsWrong(t *testing.T) {
	require.ErrorContains(t, run(t.Context(), nil, new(strings.Builder), "localhost"), "REDIS_URL: ")
	require.ErrorContains(t, run(t.Context(), nil, new(strings.Builder), "redis://:hidden@127.0.0.1:1"), "REDIS_URL: no reply from Redis at 127.0.0.1:1: ")
}
