package moovauth

// This file holds the documents to the code: their blocks compile, their limits
// and tables are those of the code, and their links lead somewhere.

import (
	"go/ast"
	"go/parser"
	gotoken "go/token"
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

// Those that need other modules are checked by the tests of those.
func TestCodeInTheDocumentsCompiles(t *testing.T) {
	t.Parallel()
	n, err := snippet.Check(".", "")
	require.NoError(t, err)
	assert.GreaterOrEqual(t, n, 10)
}

func TestCodeInTheDocumentsIsThatOfTheExamples(t *testing.T) {
	t.Parallel()
	blocks, err := snippet.Blocks(".")
	require.NoError(t, err)
	found := 0
	for _, b := range blocks {
		if example, ok := strings.CutPrefix(b.Above, "<!-- in "); ok && !strings.HasPrefix(example, "platform/") { // checked there
			found++
			assert.Contains(t, document(t, strings.TrimSuffix(example, " -->")), b.Text, "%s:%d", b.File, b.Line)
		}
	}
	assert.Equal(t, 3, found)
}

// heldBy names the tests that fail if a row of the README's table is not true.
var heldBy = map[string][]string{
	"first token":          {"TestFirstTokenIsAClientCredentialsGrant", "TestThousandCallersOfAnExpiredTokenShareOneGrant"},
	"fresh token":          {"TestFreshTokenIsHandedOutWithoutARequest", "TestReadersNeedNoLock", "TestCallersMayChangeTheirToken"},
	"early refresh":        {"TestStaleTokenIsHandedOutDuringOneBackgroundGrant", "TestEarlyRefresh", "TestPhases"},
	"hard expiry":          {"TestExpiredTokenIsNotHandedOut", "TestThousandCallersOfAnExpiredTokenShareOneGrant", "TestPhases"},
	"refresh token":        {"TestRefusedRefreshIsFollowedByClientCredentialsInTheSameFlight", "TestRefreshThatFailsIsFollowedByClientCredentialsOnceTheAttemptsAreUsedUp"},
	"waiting":              {"TestCancelledCallerLeavesOthersWaiting", "TestDefaultTimeoutIsThirtySeconds", "TestOneSilentConnectionDoesNotUseUpAGrant", "TestShare"},
	"retries":              {"TestTemporaryFailureIsTriedThreeTimes", "TestPermanentFailureIsTriedOnce", "TestBackOffHasFullJitter"},
	"`Retry-After`":        {"TestServersWaitReplacesTheBackOff", "TestAbsurdWaitIsCutToAnHour", "TestWaitThatTheServerAsksForIsSpread"},
	"cool-down":            {"TestCoolDownAnswersAtOnceWithTheLastError", "TestCoolDownGrows"},
	"failed early refresh": {"TestFailedBackgroundGrantIsNotSeen", "TestWaitThatABackgroundRefreshWasToldEndsWithTheToken"},
	"`expires_in`":         {"TestExpiresIn", "TestExpiresInThatMakesNoSense"},
	"clocks":               {"TestBothClocksExpireAToken"},
	"missing scope":        {"TestRefreshThatLacksAScopeIsFollowedByClientCredentials", "TestScopeThatIsNeverGrantedIsLoggedOnceByName"},
	"`Invalidate`":         {"TestInvalidateForgetsTheCurrentTokenAlone", "TestRequestsThatFollowInvalidationsBackOff", "TestInterval"},
	"`WithLimiter`":        {"TestEachRequestWaitsInLine", "TestTimeInLineDoesNotCountTowardsTheTimeout"},
	"version":              {"TestTokenRequestOnTheWire", "TestVersionOfARequest"},
	"redirects":            {"TestRedirectsAreNotFollowed", "TestRedirectElsewhereIsFollowedWithoutTheToken"},
	"401":                  {"TestReplayAfter401", "Test401WithABodyThatCannotBeHadAgain"},
	"hosts":                {"TestTokenGoesToTrustedHostsAlone"},
	"cache":                {"TestRestartTakesTheCachedToken", "TestCacheThatFails", "TestSlowCacheLeavesTimeForTheGrant"},
	"plugged-in code":      {"TestPanicsBecomeErrors", "TestRoundTripperThatDoesNotHeedItsContextHangsNobody"},
	"logs":                 {"TestLogRecordsAreThoseOfTheTable", "TestSilentByDefault", "TestNoSecretInSight"},
}

func TestEachRowOfTheBehaviourTableHasATest(t *testing.T) {
	t.Parallel()
	tests := make(map[string]bool)
	names, err := filepath.Glob("*_test.go")
	require.NoError(t, err)
	for _, name := range names {
		f, err := parser.ParseFile(gotoken.NewFileSet(), name, nil, parser.SkipObjectResolution)
		require.NoError(t, err)
		for _, d := range f.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok {
				tests[fn.Name.Name] = true
			}
		}
	}
	behaviour := make(map[string]bool)
	for _, cells := range rows(t, "README.md", "## What it does") {
		require.Len(t, cells, 3, "%v", cells)
		behaviour[cells[0]] = true
		assert.Contains(t, heldBy, cells[0], "no test is named for this row")
	}
	for row, holders := range heldBy {
		assert.True(t, behaviour[row], "the table has no row %q", row)
		for _, holder := range holders {
			assert.True(t, tests[holder], "%s, which holds the row %q, is gone", holder, row)
		}
	}
}

// The README is for someone who has two minutes. Whatever stands between white
// space counts, also the bars of a table.
func TestREADMEHasAtMost1600Words(t *testing.T) {
	t.Parallel()
	assert.LessOrEqual(t, len(strings.Fields(document(t, "README.md"))), 1600)
}

// What Revoke reaches has limits, which are said in the same words everywhere.
func TestLimitsOfWhatIsRememberedAreSaidInTheSameWords(t *testing.T) {
	t.Parallel()
	const words = "remembers the text of the last 16 former tokens that may be alive, for Revoke and for masking, " +
		"and hashes of the last 1,000 that were revoked or invalidated."
	for _, file := range []string{"revoke.go", "README.md", "SECURITY.md"} {
		text := strings.ReplaceAll(document(t, file), "\n//", "\n")
		assert.Contains(t, strings.Join(strings.Fields(text), " "), words, file)
	}
	assert.Equal(t, 16, maxFormer)
	assert.Equal(t, 1000, maxRetired)
}

var link = regexp.MustCompile(`\]\(([^)\s]+)\)`)

func TestLinksOfTheDocumentsLeadSomewhere(t *testing.T) {
	t.Parallel()
	if _, err := os.Stat("bench"); err != nil {
		t.Skip("the nested modules are not here: this is no clone")
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

// anchors are those that GitHub makes of headings.
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
