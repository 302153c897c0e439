package moovauth

// This file checks the documents against the code: their code blocks compile,
// their limits and tables agree with the code, and their links are valid.

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/internal/snippet"
)

func document(t testing.TB, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	return string(text)
}

// rows returns the cells of the tables in a section of a document, without the
// tables' headings.
func rows(t testing.TB, file, section string) (table [][]string) {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	_, rest, ok := strings.Cut("\n"+string(text), "\n"+section+"\n")
	require.True(t, ok, "%s has no section %q", file, section)
	level, _, _ := strings.Cut(section, " ")
	body, _, _ := strings.Cut(rest, "\n"+level+" ")
	head := true
	for line := range strings.Lines(body) {
		line = strings.TrimSpace(line)
		switch {
		case !strings.HasPrefix(line, "|"):
			head = true
		case strings.HasPrefix(line, "|--"):
			head = false
		case !head:
			var cells []string
			for cell := range strings.SplitSeq(strings.Trim(line, "|"), "|") {
				cells = append(cells, strings.TrimSpace(cell))
			}
			table = append(table, cells)
		}
	}
	require.NotEmpty(t, table)
	return table
}

// quotedIn returns the texts between backticks.
func quotedIn(cell string) (quoted []string) {
	parts := strings.Split(cell, "`")
	for i := 1; i < len(parts); i += 2 {
		quoted = append(quoted, parts[i])
	}
	return quoted
}

// The tests of a nested module check the blocks that need this module.
func TestCodeInTheDocumentsCompiles(t *testing.T) {
	t.Parallel()
	n, err := snippet.Check(".", "")
	require.NoError(t, err)
	assert.GreaterOrEqual(t, n, 10)
}

func TestCodeInTheDocumentsEqualsTheExamples(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("examples/service"); err != nil {
		t.Skip("the nested modules are missing: this is not a clone of the repository")
	}
	blocks, err := snippet.Blocks(".")
	require.NoError(t, err)
	found := 0
	for _, b := range blocks {
		if example, ok := strings.CutPrefix(b.Above, "<!-- in "); ok {
			found++
			assert.Contains(t, document(t, strings.TrimSuffix(example, " -->")), b.Text, "%s:%d", b.File, b.Line)
		}
	}
	assert.Equal(t, 5, found)
}

// testsOf maps each row of docs/behaviour.md to tests that fail if the row is
// not true.
var testsOf = map[string][]string{
	"first token":          {"TestFirstTokenIsAClientCredentialsGrant", "TestThousandCallersOfAnExpiredTokenShareOneGrant"},
	"fresh token":          {"TestFreshTokenIsReturnedWithoutARequest", "TestFreshTokenIsReturnedWithoutALock", "TestCallersMayChangeTheirToken"},
	"early refresh":        {"TestStaleTokenIsReturnedDuringOneRefreshInTheBackground", "TestEarlyRefresh", "TestPhases"},
	"hard expiry":          {"TestExpiredTokenIsNotReturned", "TestThousandCallersOfAnExpiredTokenShareOneGrant", "TestPhases"},
	"refresh token":        {"TestFailedRefreshIsFollowedByClientCredentialsInTheSameFlight", "TestRefreshTokenThatTheServerHasNotUsedUpIsSentAgain"},
	"waiting":              {"TestCancelledCallerLeavesOthersWaiting", "TestGrantEndsWithinTheTimeout", "TestLimitsThatAreDocumented"},
	"retries":              {"TestTemporaryFailureIsTriedThreeTimes", "TestPermanentFailureIsTriedOnce", "TestBackOffHasFullJitter"},
	"dead connection":      {"TestAttemptOnAReusedConnectionIsAbandonedOnceInAGrant", "TestDeadConnectionsCostOneAttempt"},
	"`Retry-After`":        {"TestRetryAfter", "TestRetryAfterReplacesTheBackOff", "TestRetryAfterIsSpread"},
	"cool-down":            {"TestCoolDownAnswersAtOnceWithTheLastError", "TestCoolDownDoublesUpToItsMaximum", "TestCoolDownAfterRefusedScopesIsLonger"},
	"failed early refresh": {"TestFailedRefreshInTheBackgroundIsNotSeenByCallers", "TestCoolDownOfTheBackgroundEndsWithTheToken"},
	"`expires_in`":         {"TestExpiresIn", "TestExpiresInThatMakesNoSense"},
	"clocks":               {"TestEitherClockExpiresAToken"},
	"missing scope":        {"TestRefreshThatLacksAScopeIsFollowedByClientCredentials", "TestScopeThatIsNeverGrantedIsAskedForOnce", "TestRepeatedWarningIsLoggedOnce"},
	"`Invalidate`":         {"TestNoCallFailsAfterInvalidations", "TestRefusedTokenIsReturnedUntilTheNextAttempt", "TestPauseBetweenInvalidationsDoublesToThirtySeconds"},
	"`WithLimiter`":        {"TestEachTokenAndRevokeRequestWaitsForTheLimiter", "TestTimeInTheQueueDoesNotCountTowardsTheTimeout"},
	"version":              {"TestTokenRequestOnTheWire", "TestVersionOfARequest"},
	"redirects":            {"TestRedirectsAreNotFollowed", "TestRedirectElsewhereIsFollowedWithoutTheToken"},
	"401":                  {"TestReplayAfter401", "TestEndpointThatAnswers401DoesNotDisturbOthers"},
	"hosts":                {"TestTokenGoesOnlyToTrustedHosts"},
	"cache":                {"TestRestartTakesTheCachedToken", "TestCacheThatFails", "TestSlowCacheLeavesTimeForTheGrant"},
	"logs":                 {"TestLogRecordsMatchTheTable", "TestNothingIsLoggedByDefault", "TestNoErrorOrRecordShowsASecret"},
}

var testFunc = regexp.MustCompile(`(?m)^func (Test\w+)\(t `)

func TestEachRowOfTheBehaviourTableHasATest(t *testing.T) {
	t.Parallel()
	tests := make(map[string]bool)
	names, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	for _, name := range names {
		for _, match := range testFunc.FindAllStringSubmatch(document(t, name), -1) {
			tests[match[1]] = true
		}
	}
	behaviour := make(map[string]bool)
	for _, cells := range rows(t, "docs/behaviour.md", "## Rules") {
		require.Len(t, cells, 3, "%v", cells)
		behaviour[cells[0]] = true
		assert.Contains(t, testsOf, cells[0], "no test is named for this row")
	}
	var missing []string
	for row, names := range testsOf {
		assert.True(t, behaviour[row], "the table has no row %q", row)
		for _, name := range names {
			if !tests[name] {
				missing = append(missing, fmt.Sprintf("%s, a test of the row %q", name, row))
			}
		}
	}
	assert.Empty(t, missing)
}

// The README is for a reader who has two minutes. Everything between white
// space counts as a word, even the bars of a table.
func TestREADMEHasAtMost900Words(t *testing.T) {
	t.Parallel()
	assert.LessOrEqual(t, len(strings.Fields(document(t, "README.md"))), 900)
}

func TestErrorsInTheTableAreInTheCode(t *testing.T) {
	t.Parallel()
	names, err := filepath.Glob("*.go")
	require.NoError(t, err)
	var code strings.Builder
	for _, name := range names {
		if !strings.HasSuffix(name, "_test.go") {
			code.WriteString(document(t, name))
		}
	}
	for _, cells := range rows(t, "docs/operations.md", "## Errors") {
		require.Len(t, cells, 3, "%v", cells)
		for _, text := range quotedIn(cells[1]) {
			if strings.HasPrefix(text, "answered ") {
				text = "answered %d"
			}
			assert.Contains(t, code.String(), text)
		}
	}
}

// Each document states in the same words how many tokens Revoke reaches.
func TestLimitOfRevokeIsStatedInTheSameWords(t *testing.T) {
	t.Parallel()
	words := fmt.Sprintf("remembers the last %d former tokens that may be alive.", maxFormer)
	for _, file := range []string{"revoke.go", "docs/integrations.md", "SECURITY.md"} {
		text := strings.ReplaceAll(document(t, file), "\n//", "\n")
		assert.Contains(t, strings.Join(strings.Fields(text), " "), words, file)
	}
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksInTheDocumentsAreValid(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("bench"); err != nil {
		t.Skip("the nested modules are missing: this is not a clone of the repository")
	}
	files, err := filepath.Glob("docs/*.md")
	require.NoError(t, err)
	for _, file := range append(files, "README.md", "SECURITY.md", "CHANGELOG.md") {
		for _, match := range link.FindAllStringSubmatch(document(t, file), -1) {
			if strings.Contains(match[1], "://") {
				continue
			}
			path, anchor, _ := strings.Cut(match[1], "#")
			target := file
			if path != "" {
				target = filepath.Join(filepath.Dir(file), path)
			}
			if _, err := os.Stat(target); !assert.NoError(t, err, file) || anchor == "" {
				continue
			}
			if info, _ := os.Stat(target); info.IsDir() {
				target = filepath.Join(target, "README.md")
			}
			assert.Contains(t, anchors(document(t, target)), anchor, "%s has no section for %s", target, match[1])
		}
	}
}

// anchors returns the anchors that GitHub makes for the headings of text.
func anchors(text string) (all []string) {
	for line := range strings.Lines(text) {
		if title, ok := strings.CutPrefix(strings.TrimLeft(line, "#"), " "); ok && line[0] == '#' {
			title = strings.ToLower(strings.TrimSpace(title))
			title = regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(title, "")
			all = append(all, strings.ReplaceAll(title, " ", "-"))
		}
	}
	return all
}
