package main

import (
	"context"
	"errors"
	"io"
	"os"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/examples/fleet/internal/fleet"
)

// TestMain runs the main function if the example has started this binary as a process
// of the fleet.
func TestMain(m *testing.M) {
	if os.Getenv(folderVariable) != "" {
		main()
		return
	}
	os.Unsetenv("REDIS_URL")
	os.Exit(m.Run())
}

func TestOneProcessRequestsEachToken(t *testing.T) {
	var out strings.Builder
	require.NoError(t, inFolder(t.Context(), nil, &out))
	t.Log(out.String())
	for _, token := range []string{"1", "2", "3"} {
		assert.Len(t, regexp.MustCompile(`process \d  got token `+token+` from the server\n`).FindAllString(out.String(), -1), 1)
		assert.Len(t, regexp.MustCompile(`process \d  got token `+token+` from the cache\n`).FindAllString(out.String(), -1), 3)
	}
	assert.Contains(t, out.String(), "received 3 token requests. Without a cache it would have received 12, for 3 tokens in each of 4 processes.")

	folder := regexp.MustCompile(`a cache in folder ([^,]+)`).FindStringSubmatch(out.String())[1]
	assert.NoDirExists(t, folder)
}

func TestRunStopsWithItsContext(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.ErrorIs(t, inFolder(ctx, nil, new(strings.Builder)), context.Canceled)
}

func TestCommandLine(t *testing.T) {
	never := func(context.Context, io.Reader, io.Writer) error { panic("run was called") }
	fails := func(context.Context, io.Reader, io.Writer) error { return errors.New("no luck") }
	for _, c := range []struct {
		args      []string
		run       func(context.Context, io.Reader, io.Writer) error
		code      int
		out, errs string
	}{
		{[]string{"-h"}, never, 0, "  REDIS_URL  ", ""},
		{[]string{"--help"}, never, 0, "usage: go run ./examples/fleet\n", ""},
		{[]string{"-verbose"}, never, 2, "", "fleet: flag provided but not defined: -verbose; -h shows the usage\n"},
		{[]string{"now"}, never, 2, "", "fleet: unexpected argument \"now\"; -h shows the usage\n"},
		{nil, fails, 1, "", "fleet: no luck\n"},
	} {
		var out, errs strings.Builder
		assert.Equal(t, c.code, fleet.Main(t.Context(), c.args, nil, &out, &errs, c.run))
		assert.Contains(t, out.String(), c.out)
		assert.Equal(t, c.out == "", out.Len() == 0)
		assert.Equal(t, c.errs, errs.String())
	}
}
