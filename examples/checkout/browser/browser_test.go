package browser

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/chromedp/cdproto/accessibility"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth/moovtest"
)

// visit signs Ada in, links a card and asks for Grace's cards, as the picture in the
// README shows.
func visit(b *tab) {
	b.signIn("ada")
	b.click("#link")
	b.reads("#linked", "201 Created")
	b.click("#other")
	b.reads("#refused", "403 Forbidden")
}

func TestVisit(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	assert.Contains(t, b.text("#where"), "Embedded test server")
	b.click("#link")
	b.reads("#linked", "Sign in first.")

	b.signIn("ada")
	assert.Contains(t, b.text("#scopes"), "/accounts/ada-5c21/cards.write")
	assert.NotContains(t, b.text("#scopes"), "grace")
	assert.True(t, b.api.Alive(b.token()))

	b.click("#link")
	b.reads("#linked", "201 Created")
	assert.Contains(t, b.text("#linked"), "ending in 1111")
	b.click("#other")
	b.reads("#refused", "403 Forbidden, as expected")

	token := b.token()
	b.click("#out")
	b.reads("#ended", "401 Unauthorized, as expected")
	assert.False(t, b.api.Alive(token))
	assert.Empty(t, b.api.AccessTokens())
	assert.Equal(t, "–", b.text("#seconds"))

	// The page made the calls with its token, and the server made none.
	var calls []string
	for _, r := range b.api.Requests() {
		if strings.HasPrefix(r.Path, "/accounts/") && r.Method != http.MethodOptions {
			calls = append(calls, r.Method+" "+r.Path)
			assert.Equal(t, b.url, r.Header.Get("Origin"))
			assert.Equal(t, "Bearer "+token, r.Header.Get("Authorization"))
			assert.Contains(t, r.Header.Get("User-Agent"), "Chrome")
		}
	}
	assert.Equal(t, []string{"POST /accounts/ada-5c21/cards", "GET /accounts/grace-8e07/cards", "GET /accounts/ada-5c21/cards"}, calls)
}

func TestNothingSecretReachesTheBrowser(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	visit(b)
	b.reads("#next", "so far: 1") // after one renewal
	b.click("#users button[value=grace]")
	b.reads("#signed", "You are Grace")
	b.reads("#token", "Token received.")
	b.click("#out")
	b.reads("#ended", "401")
	b.do(chromedp.Reload())
	b.see("#users button")

	all := b.all()
	// search finds what is known to be there, in each kind of place.
	assert.NotEmpty(t, search(all, b.token()), "the access token")
	assert.NotEmpty(t, search(all, "default-src 'none'"), "a header")
	assert.NotEmpty(t, search(all, "checkout_session="), "the cookie")
	assert.NotEmpty(t, search(all, "export function moovToken(options)"), "the script")
	for _, path := range []string{"/", "/app.js", "/moov-token.js", "/style.css", "/session", "/sign-in", "/moov-token"} {
		assert.Condition(t, func() bool {
			for _, r := range all {
				if strings.HasPrefix(r.from, "body ") && strings.HasSuffix(r.from, b.url+path) {
					return true
				}
			}
			return false
		}, "the body of %s", path)
	}

	refresh := b.api.RefreshTokens()
	require.GreaterOrEqual(t, len(refresh), 3, "for two tokens of Ada and one of Grace")
	for _, secret := range append(refresh, b.api.ClientSecret) {
		assert.Empty(t, search(all, secret))
	}
	assert.Empty(t, search(all, "refresh_token"))
}

func TestSearchFindsEncodedSecrets(t *testing.T) {
	t.Parallel()
	const secret = "moovtest-secret-key"
	for _, what := range []string{
		"a" + secret + "b", fmt.Sprintf("%x", "id:"+secret),
		"Basic bW9vdnRlc3QtcHVibGljLWtleTptb292dGVzdC1zZWNyZXQta2V5", // base64 of moovtest-public-key: and the secret
	} {
		assert.NotEmpty(t, search([]received{{"x", what}}, secret), what)
	}
	assert.Empty(t, search([]received{{"x", "moovtest-public-key"}}, secret))
}

func TestPageRenewsAcrossExpiry(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 6 * time.Second})
	b.signIn("ada")
	first := b.token()
	b.reads("#next", "so far: 1")
	assert.True(t, b.api.Alive(first), "the next token arrives before the first one expires")
	assert.NotEqual(t, first, b.token())
	b.reads("#next", "so far: 2")
	assert.False(t, b.api.Alive(first))
	b.click("#link")
	b.reads("#linked", "201 Created")
	assert.Less(t, len(b.api.TokenRequests()), 5, "the page makes no unnecessary renewals")
}

func TestSwitchingUsersRevokes(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("ada")
	ada := b.token()
	b.click("#users button[value=grace]")
	b.reads("#signed", "You are Grace")
	b.reads("#token", "Token received.")
	b.reads("#scopes", "/accounts/grace-8e07/cards.write")
	assert.False(t, b.api.Alive(ada))
	b.click("#other")
	b.reads("#refused", "Ada’s cards stay private")
}

func TestReloadKeepsTheSession(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("grace")
	b.do(chromedp.Reload())
	b.reads("#signed", "You are Grace")
	b.reads("#token", "Token received.")
	b.click("#out")
	b.reads("#ended", "401 Unauthorized")
	assert.Empty(t, b.api.AccessTokens(), "the token from before the reload is revoked too")
	b.do(chromedp.Reload())
	b.see("#users button")
	assert.Empty(t, b.text("#signed"))
}

func TestPageShowsThatTheSessionHasEnded(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	b.signIn("ada")
	_, err := b.app.Close(b.ctx)
	require.NoError(t, err)
	b.reads("#signed", "401. The session has ended")
	assert.Equal(t, "–", b.text("#seconds"))
	requests := len(b.api.TokenRequests())
	time.Sleep(2 * time.Second) // long enough for another request
	assert.Len(t, b.api.TokenRequests(), requests)
}

// Ada has the page open in one tab, and Grace signs in from another.
func TestTwoUsersInTwoTabs(t *testing.T) {
	t.Parallel()
	ada := open(t, setting{lifetime: 10 * time.Second})
	ada.signIn("ada")
	grace := ada.beside()
	grace.reads("#signed", "You are Ada") // the same cookie
	grace.click("#users button[value=grace]")
	grace.reads("#signed", "You are Grace")
	grace.reads("#scopes", "grace-8e07")
	ada.reads("#signed", "409. Another user has signed in from another tab. This page was signed in as Ada") // at the next renewal
	assert.NotContains(t, ada.text("#scopes"), "grace")
	assert.Equal(t, "–", ada.text("#seconds"))
	assert.False(t, ada.api.Alive(ada.token()))
	ada.mu.Lock()
	for _, r := range ada.received {
		if strings.HasSuffix(r.from, "/moov-token") {
			assert.NotContains(t, r.what, "grace", "Ada's page got no token for Grace")
		}
	}
	ada.mu.Unlock()
	assert.Contains(t, grace.text("#signed"), "You are Grace")
	grace.click("#link")
	grace.reads("#linked", "201 Created")
}

// Grace signs in from another tab. Ada's token is revoked, so her page finds out with
// its next API call. Her page cannot sign Grace out.
func TestTabOfAnotherUserCannotAct(t *testing.T) {
	t.Parallel()
	for button, status := range map[string]string{"#link": "#linked", "#out": "#signed"} {
		t.Run(button, func(t *testing.T) {
			t.Parallel()
			ada := open(t, setting{})
			ada.signIn("ada")
			grace := ada.beside()
			grace.click("#users button[value=grace]")
			grace.reads("#scopes", "grace-8e07")
			ada.click(button)
			ada.reads("#signed", "409. Another user has signed in")
			if button == "#link" {
				ada.reads(status, "The card was not linked")
			}
			assert.NotEmpty(t, ada.api.AccessTokens(), "Grace is still signed in")
			grace.click("#link")
			grace.reads("#linked", "201 Created")
			grace.do(chromedp.Reload())
			grace.reads("#signed", "You are Grace")
		})
	}
}

// Moov refuses the first revoke request, and the server retries.
func TestSignOutWhoseRevocationFails(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("ada")
	token := b.token()
	b.api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_request"}`})
	b.click("#out")
	b.reads("#ended", "502. You are signed out, but Moov has not revoked the token yet. Your server retries")
	require.Eventually(t, func() bool { return !b.api.Alive(token) }, patience, 10*time.Millisecond)
}

func TestAPIAtItsLimit(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("ada")
	b.click("#many")
	b.reads("#limited", "429 Too Many Requests")
	assert.Regexp(t, `\d+ of 25 calls wait 1 s`, b.text("#limited"))
	b.reads("#limited", "25 of 25 calls succeeded.")
	done := eval[int](b, `document.querySelectorAll("#dots .done").length`)
	assert.Equal(t, 25, done)
	calls, refusals := 0, 0
	for _, r := range b.api.Requests() {
		if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/cards") {
			calls++
		}
	}
	_, err := fmt.Sscanf(b.text("#limited"), "25 of 25 calls succeeded. The API answered 429 to %d", &refusals)
	require.NoError(t, err)
	assert.Equal(t, 25+refusals, calls, "the page retries a call once for each refusal")
	assert.Less(t, calls, 60, "the page waited")
}

func TestPageRetriesAfterATimeoutInTheQueue(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	b.signIn("ada")
	b.api.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"12"}}}) // a page waits in the queue for 10 s at most
	b.reads("#token", "503. The request waited too long in your server’s queue. The page retries in ")
	b.until(`document.querySelector("#unit").textContent === "expired" && document.querySelector("#next").textContent.includes("waiting")`)
	b.reads("#token", "Token renewed.")
	b.click("#link")
	b.reads("#linked", "201 Created")
}

func TestOperatorSeesTheQueue(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.reads("#queued", "0")
	b.click("#crowd")
	b.reads("#crowded", "Sign in first.")
	b.signIn("ada")
	b.click("#crowd")
	b.reads("#crowded", "This page went first.")
	requests := b.api.TokenRequests()
	first, last := ofAda(requests)
	before, after := 0, 0 // the numbers of requests in the queue
	_, err := fmt.Sscanf(b.text("#crowded"), "This page went first. There were %d requests in the queue when this page requested its token. When the token arrived, %d requests", &before, &after)
	require.NoError(t, err, b.text("#crowded"))
	assert.Greater(t, before, 300)
	assert.Greater(t, after, 200, "they were in the queue first, and were not served first")
	assert.Less(t, first, last)
	assert.Less(t, last, 250, "Ada's place among the requests, although 500 accounts were waiting")

	served := eval[int](b, `Number(document.querySelector("#served").textContent)`)
	b.until(fmt.Sprintf(`Number(document.querySelector("#served").textContent) > %d + 10`, served))
	assert.Regexp(t, `^\d+\.\d s$`, b.text("#longest"))
	for _, id := range []string{"#rate", "#needed"} {
		assert.Regexp(t, `^\d+\.\d/s$`, b.text(id))
	}
	assert.Regexp(t, `^\d+$`, b.text("#toomany")) // may be 1: the server sends 9.7 requests a second, and the API accepts 10
	assert.Equal(t, "0", b.text("#timedout"))
	assert.Less(t, eval[float64](b, `document.querySelector("#progress").value`), 400.0)
}

// ofAda returns the indexes of Ada's first and last token requests.
func ofAda(requests []moovtest.Request) (first, last int) {
	first = -1
	for i, r := range requests {
		if strings.Contains(r.Form.Get("scope"), "/ada-") {
			last = i
			if first < 0 {
				first = i
			}
		}
	}
	return first, last
}

func TestPageRetriesARenewalThatMoovRefused(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	b.signIn("ada")
	b.api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_scope"}`})
	b.reads("#token", "502. Your server could not get a token from Moov. The server’s log says why. The page retries in 5 s.")
	b.reads("#token", "Token renewed.")
}

func TestRealMoov(t *testing.T) {
	t.Parallel()
	b := open(t, setting{real: true})
	assert.Contains(t, b.text("#where"), "Moov’s API: "+b.api.URL)
	visible := eval[bool](b, `document.querySelector("#link").checkVisibility()`)
	assert.False(t, visible, "the demo's users have no accounts at Moov")
	b.signIn("ada")
	assert.Equal(t, "/ping.read", b.text("#scopes"))
	b.click("#ping")
	b.reads("#pinged", "200 OK")
	b.click("#out")
	b.reads("#ended", "401 Unauthorized, as expected")
}

func TestKeyboardOnly(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	focused := func() string {
		id := eval[string](b, `document.activeElement.id || document.activeElement.value || document.activeElement.tagName`)
		return id
	}
	press := func(key string) { t.Helper(); b.do(chromedp.KeyEvent(key)) }
	press(kb.Tab)
	assert.Equal(t, "ada", focused())
	outline := eval[string](b, `getComputedStyle(document.activeElement).outlineStyle + " " + getComputedStyle(document.activeElement).outlineWidth`)
	assert.Equal(t, "solid 3px", outline)
	press(kb.Enter)
	b.reads("#token", "Token received.")
	assert.Equal(t, "ada", focused(), "the focus stays")
	for _, want := range []string{"grace", "link", "other", "many", "out"} {
		press(kb.Tab)
		assert.Equal(t, want, focused())
	}
	press(" ")
	b.reads("#ended", "401")
	assert.Equal(t, "out", focused())
}

// A screen reader sees the page as this tree.
func TestAccessibilityTree(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	visit(b)
	nodes := command(b, accessibility.GetFullAXTree, accessibility.GetFullAXTreeParams{}).Nodes
	named := make(map[string][]string)
	for _, n := range nodes {
		if n.Ignored || n.Role == nil {
			continue
		}
		var role, name string
		require.NoError(t, json.Unmarshal(n.Role.Value, &role))
		if n.Name != nil && n.Name.Value != nil {
			require.NoError(t, json.Unmarshal(n.Name.Value, &name))
		}
		named[role] = append(named[role], name)
	}
	assert.ElementsMatch(t, []string{"Signed in as Ada account ada-5c21", "Switch to Grace account grace-8e07", "Link a test card", "Ask for Grace’s cards", "Make 25 calls at once", "Sign out", "Request tokens for 500 accounts"}, named["button"])
	assert.ElementsMatch(t, []string{"Access tokens for the browser", "This page", "Your server", "Moov’s API", "Sign in", "Get a token", "Call the API", "Sign out", "What the platform’s operator sees", "Requests from this page"}, named["heading"])
	assert.Contains(t, named["group"], "Sign in as")
	require.Len(t, named["image"], 1)
	assert.Regexp(t, `^The token has \d+ seconds left$`, named["image"][0])
	assert.GreaterOrEqual(t, len(named["status"]), 6)
	assert.Len(t, named["main"], 1)
}

// contrast lists what has less contrast than WCAG's level AA requires: 4.5 for text, and 3
// for borders and graphics.
const contrast = `(() => {
	const canvas = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
	const rgba = (color) => { canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = color; canvas.fillRect(0, 0, 1, 1); return [...canvas.getImageData(0, 0, 1, 1).data]; };
	const luminance = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4).reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
	const behind = (e) => { for (; e; e = e.parentElement) { const c = rgba(getComputedStyle(e).backgroundColor); if (c[3] === 255) return c; } return [255, 255, 255]; };
	const ratio = (a, b) => { const [x, y] = [luminance(a), luminance(b)].sort((p, q) => q - p); return (x + 0.05) / (y + 0.05); };
	const poor = [];
	let seen = 0;
	const walk = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
	while (walk.nextNode()) {
		const e = walk.currentNode.parentElement;
		if (!walk.currentNode.data.trim() || !e.checkVisibility() || e.closest("noscript, .hidden")) continue;
		seen++;
		const got = ratio(rgba(getComputedStyle(e).color), behind(e));
		if (got < 4.5) poor.push(got.toFixed(2) + " " + walk.currentNode.data.trim());
	}
	for (const e of document.querySelectorAll("button, .left, .dots i, .mark, .status:not(:empty)")) {
		const style = getComputedStyle(e);
		const color = e instanceof SVGElement ? style.stroke : style.borderLeftColor;
		if (!e.checkVisibility()) continue;
		seen++;
		const got = ratio(rgba(color), behind(e.parentElement));
		if (got < 3) poor.push(got.toFixed(2) + " " + (e.id || e.className.baseVal || e.className));
	}
	return { seen, poor };
})()`

type contrasts struct {
	Seen int      `json:"seen"`
	Poor []string `json:"poor"`
}

func TestContrast(t *testing.T) {
	t.Parallel()
	for _, dark := range []bool{false, true} {
		t.Run(fmt.Sprintf("dark=%v", dark), func(t *testing.T) {
			t.Parallel()
			b := open(t, setting{dark: dark})
			check := func(when string) {
				t.Helper()
				result := eval[contrasts](b, contrast)
				assert.Greater(t, result.Seen, 40, when)
				assert.Empty(t, result.Poor, when)
			}
			check("before sign-in")
			visit(b)
			b.click("#many")
			b.reads("#limited", "429")
			check("at the limit")
			b.reads("#limited", "25 of 25")
			b.click("#out")
			b.reads("#ended", "401")
			check("after sign-out")
			// The check finds a text that cannot be seen.
			eval[chromedp.Void](b, `document.querySelector(".lead").style.color = getComputedStyle(document.body).backgroundColor`)
			assert.Len(t, eval[contrasts](b, contrast).Poor, 1)
		})
	}
}

func TestNarrowScreens(t *testing.T) {
	t.Parallel()
	for _, width := range []int64{320, 360, 768} {
		t.Run(fmt.Sprint(width), func(t *testing.T) {
			t.Parallel()
			b := open(t, setting{width: width, height: 740})
			visit(b)
			b.click("#many")
			b.reads("#limited", "25 of 25")
			wide := eval[[]string](b, `[...document.querySelectorAll("body *")].filter((e) => e.checkVisibility() && !e.closest(".hidden, svg") &&
				(e.getBoundingClientRect().right > innerWidth + 0.5 || e.scrollWidth > e.clientWidth + 1 && getComputedStyle(e).display !== "inline"))
				.map((e) => e.tagName + "#" + e.id + "." + e.className)`)
			assert.Empty(t, wide, "wider than the screen")
			small := eval[[]string](b, `[...document.querySelectorAll("button")].filter((e) => e.checkVisibility() && e.getBoundingClientRect().height < 44).map((e) => e.id)`)
			assert.Empty(t, small, "too small for a finger")
		})
	}
}

func TestReducedMotion(t *testing.T) {
	t.Parallel()
	for calm, want := range map[bool]string{true: "0s", false: "0.25s"} {
		t.Run(fmt.Sprintf("calm=%v", calm), func(t *testing.T) {
			t.Parallel()
			b := open(t, setting{calm: calm})
			assert.Equal(t, want, eval[string](b, `getComputedStyle(document.querySelector("#left")).transitionDuration`))
		})
	}
}

func TestRingRunsDown(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 10 * time.Second})
	b.signIn("ada")
	share := func() float64 {
		return eval[float64](b, `parseFloat(document.querySelector("#left").style.strokeDasharray)`)
	}
	b.until(`parseFloat(document.querySelector("#left").style.strokeDasharray) < 95`)
	before := share()
	b.until(fmt.Sprintf(`parseFloat(document.querySelector("#left").style.strokeDasharray) < %f`, before-10))
	b.reads("#next", "so far: 1")
	assert.Greater(t, share(), 80.0, "the ring is full again")
}

func TestPolicyStopsInjectedScripts(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	ran := eval[bool](b, `new Promise((done) => {
		const script = document.createElement("script");
		addEventListener("securitypolicyviolation", () => setTimeout(done, 100, window.ran === true), { once: true });
		try { script.text = "window.ran = true"; document.head.append(script); } catch { done(window.ran === true); }
	})`)
	assert.False(t, ran)
	reached := eval[bool](b, `fetch("http://127.0.0.1:1/").then(() => true, () => false)`)
	assert.False(t, reached)
	b.mu.Lock()
	defer b.mu.Unlock()
	require.NotEmpty(t, b.wrong)
	for _, w := range b.wrong {
		assert.Regexp(t, "(?i)content security policy|TrustedScript", w)
	}
	b.wrong = nil // the test caused them
	b.outside = nil
}

func TestScreenshots(t *testing.T) {
	t.Parallel()
	for name, s := range map[string]setting{
		"light": {}, "dark": {dark: true}, "readme": {width: 1024, height: 900}, "narrow": {width: 360, height: 740}, "narrow-dark": {width: 360, height: 740, dark: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			b := open(t, s)
			b.screenshot(name + "-1-first")
			visit(b)
			b.click("#many")
			b.reads("#limited", "429")
			b.screenshot(name + "-2-limit")
			b.reads("#limited", "25 of 25")
			b.screenshot(name + "-3-calls")
			b.click("#out")
			b.reads("#ended", "401")
			b.screenshot(name + "-4-out")
		})
	}
}
