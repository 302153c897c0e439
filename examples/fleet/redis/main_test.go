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

// TestMain is the fleet's process where the example starts this binary again.
func TestMain(m *testing.M) {
	if os.Getenv("FLEET_MEMBER") != "" {
		main()
		return
	}
	os.Exit(m.Run())
}

func TestOneProcessAsksForEachToken(t *testing.T) {
	var out strings.Builder
	require.NoError(t, run(t.Context(), nil, &out, "redis://"+miniredis.RunT(t).Addr()))
	t.Log(out.String())
	for _, token := range []string{"1", "2", "3"} {
		assert.Len(t, regexp.MustCompile(`process \d  asked   token `+token).FindAllString(out.String(), -1), 1)
		assert.Len(t, regexp.MustCompile(`process \d  adopted token `+token).FindAllString(out.String(), -1), 3)
	}
	assert.Contains(t, out.String(), "3 token requests; without a cache: 12")
}

func TestRunNamesTheVariableThatIsWrong(t *testing.T) {
	require.ErrorContains(t, run(t.Context(), nil, new(strings.Builder), "localhost"), "REDIS_URL")
}
