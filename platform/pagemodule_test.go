package platform

import (
	"bytes"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// module asks a server for the module.
func module(t *testing.T, method string, header ...string) (*http.Response, []byte) {
	t.Helper()
	server := httptest.NewServer(PageModule())
	t.Cleanup(server.Close)
	r, err := http.NewRequest(method, server.URL+"/moov-token.js", nil)
	require.NoError(t, err)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	resp, err := server.Client().Do(r)
	require.NoError(t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, body
}

func TestPageModuleIsServedAsAScript(t *testing.T) {
	want, err := os.ReadFile("moov-token.js")
	require.NoError(t, err)
	for _, method := range []string{http.MethodGet, http.MethodHead} {
		resp, body := module(t, method)
		assert.Equal(t, http.StatusOK, resp.StatusCode)
		assert.Equal(t, "text/javascript; charset=utf-8", resp.Header.Get("Content-Type"))
		assert.Equal(t, "*", resp.Header.Get("Access-Control-Allow-Origin"))
		assert.Equal(t, "nosniff", resp.Header.Get("X-Content-Type-Options"))
		assert.Equal(t, "no-cache", resp.Header.Get("Cache-Control"))
		assert.EqualValues(t, len(want), resp.ContentLength)
		if method == http.MethodGet {
			assert.Equal(t, string(want), string(body))
		}
	}
}

func TestPageModuleIsSentOnce(t *testing.T) {
	resp, _ := module(t, http.MethodGet)
	tag := resp.Header.Get("ETag")
	require.Regexp(t, `^"[0-9a-f]{64}"$`, tag)
	for _, held := range []string{tag, "W/" + tag, `"other", ` + tag} { // W/: a proxy that compresses
		resp, body := module(t, http.MethodGet, "If-None-Match", held)
		assert.Equal(t, http.StatusNotModified, resp.StatusCode, held)
		assert.Equal(t, tag, resp.Header.Get("ETag"))
		assert.Equal(t, "*", resp.Header.Get("Access-Control-Allow-Origin"))
		assert.Empty(t, body)
	}
	resp, body := module(t, http.MethodGet, "If-None-Match", `"of another version"`)
	assert.Equal(t, http.StatusOK, resp.StatusCode)
	assert.NotEmpty(t, body)
}

func TestPageModuleIsReadOnly(t *testing.T) {
	for _, method := range []string{http.MethodPost, http.MethodPut, http.MethodDelete, http.MethodOptions} {
		resp, body := module(t, method)
		assert.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode, method)
		assert.Equal(t, "GET, HEAD", resp.Header.Get("Allow"), method)
		assert.NotContains(t, string(body), "moovToken")
	}
}

// A page with a strict Content-Security-Policy runs it, and one can read it.
func TestPageModuleIsShortAndStandsAlone(t *testing.T) {
	assert.LessOrEqual(t, bytes.Count(pageModule, []byte("\n")), 100)
	assert.NotRegexp(t, regexp.MustCompile(`\bimport\b|\beval\b|new Function|innerHTML|set(Timeout|Interval)\(["'\x60]`), string(pageModule))
}

// nodePath is "" if there is no node that can run tests.
var nodePath = sync.OnceValue(func() string {
	path, err := exec.LookPath("node")
	if err != nil || exec.Command(path, "--test-reporter=tap", "--version").Run() != nil {
		return ""
	}
	return path
})

// node runs the module's own tests, in fake time, on a file: all, or those that
// are named. It returns the names of those that failed.
func node(t *testing.T, module, named string) (failed []string, out string) {
	t.Helper()
	if nodePath() == "" {
		t.Skip("there is no node, or an old one: module_test.go of examples/checkout/browser tries the module in Chromium")
	}
	cmd := exec.CommandContext(t.Context(), nodePath(), "--test-reporter=tap", "--test-name-pattern="+named, "testdata/moov-token.test.mjs")
	cmd.Env = append(os.Environ(), "MODULE="+module)
	raw, err := cmd.CombinedOutput()
	out = string(raw)
	for _, match := range regexp.MustCompile(`(?m)^not ok \d+ - (.*)$`).FindAllStringSubmatch(out, -1) {
		failed = append(failed, match[1])
	}
	require.Equal(t, err == nil, failed == nil, "%s", out)
	require.Regexp(t, `(?m)^# tests [1-9]`, out)
	return failed, out
}

func TestPageModuleInNode(t *testing.T) {
	t.Parallel()
	module, err := filepath.Abs("moov-token.js")
	require.NoError(t, err)
	failed, out := node(t, module, ".")
	if len(failed) > 0 {
		_, first, _ := strings.Cut(out, "\nnot ok")
		t.Errorf("failed: %q; the first:\nnot ok%.2000s", failed, first)
	}
}

// If a rule of the module is broken, the test of that rule fails.
func TestPageModuleWithABrokenRuleFailsItsTest(t *testing.T) {
	if testing.Short() {
		t.Skip("runs the tests of the module many times")
	}
	for _, c := range []struct{ old, new, test string }{
		{`visibilitychange: document, `, ``, `the machine sleeps for 20 min: visibilitychange`},
		{`pageshow: window, `, ``, `the machine sleeps for 20 min: pageshow`},
		{`, online: window }`, ` }`, `the machine sleeps for 20 min: online`},
		{`Math.min(left, LOOK)`, `left`, `the machine sleeps for 20 min, and no event says so`},
		{`Math.min(left, LOOK)`, `left`, `a lifetime of 30 days`},
		{`const slept = Date.now() - sent > 2 * REQUEST_MOST`, `const slept = false`, `the machine sleeps during a request`},
		{` || Date.now() < sent`, ``, `the clock is set back`},
		{`if (flight) return flight.promise;`, ``, `calls of renew share one chain of renewals`},
		{"\t\tclearTimeout(timer);\n\t\tconst left", `		const left`, `calls of renew share one chain of renewals`},
		{`over ? tell`, `if (!over && !status) return stop(); over ? tell`, `offline: retried at longer intervals`},
		{"\t\tlook();\n\t\tover ?", "\t\tover ?", `503: retried at longer intervals`},
		{`[401, 403, 409]`, `[401, 403, 409, 502]`, `502: retried at longer intervals`},
		{`[401, 403, 409]`, `[401, 403, 409, 504]`, `504: retried at longer intervals`},
		{`flight ? flight.abort() : renew()`, `flight || renew()`, `a fetch that hangs: retried at longer intervals`},
		{`Promise.race([ask(signal), aborted])`, `ask(signal)`, `a fetch that ignores its signal: retried at longer intervals`},
		{`2 ** failures++`, `1`, `503: retried at longer intervals`},
		{`, 50) * (1 +`, `, 500) * (1 +`, `503: retried at longer intervals`},
		{` * (1 + Math.random() / 5)`, ``, `pages do not all retry at the same moment`},
		{`, sent + Math.max(0.8 * life, EARLIEST), 0]`, `, sent + Math.max(0.8 * life, EARLIEST), failures]`, `after a token the back-off starts over`},
		{`/^\d+$/.test(retryAfter) ? `, `true ? `, `Retry-After: Thu, 01 Jan 2026 00:00:30 GMT`},
		{`slept ? 0.1 : seconds(retryAfter) || Math.floor(10 * backOff) / 10`, `Number(retryAfter)`, `503 without Retry-After is retried after 5 s`},
		{`seconds(retryAfter) || `, ``, `Retry-After: 7`},
		{`Math.min(s, 3600)`, `s`, `Retry-After: 604800`},
		{`if (type === "online" && lost) due = 0;`, ``, `online: a retry after no answer starts at once`},
		{`"online" && lost`, `"online"`, `online: a retry after an answer keeps its time`},
		{`, Date.now() + REQUEST_MOST, false]`, `, Date.now() + REQUEST_MOST, lost]`, `online: a request under way continues`},
		{"{ type }) {\n\t\tif (type === \"online\" && lost) due = 0;", "{ type }) {\n\t\tif (lost) due = 0;", `shown: a retry keeps its time`},
		{`REQUEST_MOST = 60_000`, `REQUEST_MOST = 90_000`, `a request takes 60 s at most`},
		{"\t\tflight?.abort();\n", ``, `stop during a fetch`},
		{"\t\tif (ended) throw failure(\"stopped\");\n", ``, `stop during a fetch`},
		{"\t\tif (ended) throw failure(\"renewals have ended\");\n", ``, `stop ends everything`},
		{"\t\tclearTimeout(timer);\n\t\tlisten", `		listen`, `stop ends everything`},
		{"\t\tlisten(\"removeEventListener\");\n", ``, `stop ends everything`},
		{"\t\tif (over) stop();\n", ``, `401 ends the renewals`},
		{`[401, 403, 409]`, `[401, 409]`, `403 ends the renewals`},
		{`[401, 403, 409]`, `[401, 403]`, `409 ends the renewals`},
		{`!ended && Date.now() < expiry`, `Date.now() < expiry`, `401 ends the renewals`},
		{`!ended && Date.now() < expiry`, `!ended`, `renewals are at least 5 s apart`},
		{`await reply.json().catch(() => null)`, `{ access_token: await reply.text(), expires_in: 900 }`, `200 with a sign-in page is no token, and is retried`},
		{` && typeof token.access_token === "string"`, ``, `200 with a token that is not a string is no token, and is retried`},
		{`token?.access_token &&`, `token &&`, `200 with an empty token is no token, and is retried`},
		{`0.8 * life, EARLIEST`, `0.8 * life, 0`, `renewals are at least 5 s apart`},
		{`0.8 * life`, `0.9 * life`, `renewals are at 80 % of the lifetime`},
		{`sent + life`, `Date.now() + life`, `the lifetime begins when the request is sent`},
		{`sent + Math.max(0.8`, `Date.now() + Math.max(0.8`, `the lifetime begins when the request is sent`},
		{`typeof token.expires_in === "number" ? token.expires_in : 300`, `token.expires_in`, `without a usable expires_in the lifetime is 5 min`},
		{"\t\t\tlook();\n\t\t\ttell(\"onToken\"", "\t\t\ttimer = setTimeout(look, LOOK);\n\t\t\ttell(\"onToken\"", `a token that has expired on arrival is renewed at once`},
		{`try { await options[name]?.(value); } catch (error) { console.error(error); }`, `await options[name]?.(value);`, `renewals continue if functions of the page throw`},
		{`options[name]?.(value)`, `options[name](value)`, `only url is required`},
		{` && !document.prerendering`, ``, `a prerendered page requests nothing until it is shown`},
		{`left > 0 ? Math.min(left, LOOK) : LOOK`, `Math.min(left, LOOK)`, `a prerendered page requests nothing until it is shown`},
		{"\t\tflight.promise.catch(() => {}); // often no one waits for the promise\n", ``, `a failure that no one waits for is not an unhandled rejection`},
		{"\t\tflight = null;\n", ``, `renew does not wait for the 5 s`},
		{`credentials: "include"`, `credentials: "omit"`, `the request`},
		{`headers: options.headers, `, ``, `the request`},
		{`		throw failure(status ?`, `		return failure(status ?`, `renew is rejected at the first failure`},
	} {
		t.Run(c.test, func(t *testing.T) {
			t.Parallel()
			require.Equal(t, 1, bytes.Count(pageModule, []byte(c.old)), c.old)
			broken := filepath.Join(t.TempDir(), "moov-token.mjs")
			require.NoError(t, os.WriteFile(broken, bytes.Replace(pageModule, []byte(c.old), []byte(c.new), 1), 0o600))
			failed, _ := node(t, broken, "^"+regexp.QuoteMeta(c.test)+"$")
			assert.Equal(t, []string{c.test}, failed)
		})
	}
}
