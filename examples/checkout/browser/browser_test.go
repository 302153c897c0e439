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

// visit is what the README shows: sign-in, token, card, the other user's account.
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
	assert.Contains(t, b.text("#linked"), "ends in 1111")
	b.click("#other")
	b.reads("#refused", "403 Forbidden, as it should be")

	token := b.token()
	b.click("#out")
	b.reads("#ended", "401 Unauthorized, as it should be")
	assert.False(t, b.api.Alive(token))
	assert.Empty(t, b.api.AccessTokens())
	assert.Equal(t, "–", b.text("#seconds"))

	// The calls came from the page, with its token, and not from the server.
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
	b.reads("#next", "1 so far") // a renewal
	b.click("#users button[value=grace]")
	b.reads("#signed", "You are Grace")
	b.reads("#token", "Here it is.")
	b.click("#out")
	b.reads("#ended", "401")
	b.do(chromedp.Reload())
	b.see("#users button")

	all := b.all()
	// What is known to be there is found, in each kind of place.
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
	require.GreaterOrEqual(t, len(refresh), 3, "of Ada's two tokens and Grace's")
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
	b.reads("#next", "1 so far")
	assert.True(t, b.api.Alive(first), "the next token comes before the end of the first")
	assert.NotEqual(t, first, b.token())
	b.reads("#next", "2 so far")
	assert.False(t, b.api.Alive(first))
	b.click("#link")
	b.reads("#linked", "201 Created")
	assert.Less(t, len(b.api.TokenRequests()), 5, "no more renewals than are needed")
}

func TestSwitchingUsersRevokes(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("ada")
	ada := b.token()
	b.click("#users button[value=grace]")
	b.reads("#signed", "You are Grace")
	b.reads("#token", "Here it is.")
	b.reads("#scopes", "/accounts/grace-8e07/cards.write")
	assert.False(t, b.api.Alive(ada))
	b.click("#other")
	b.reads("#refused", "Ada’s cards stay Ada’s")
}

func TestReloadKeepsTheSession(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("grace")
	b.do(chromedp.Reload())
	b.reads("#signed", "You are Grace")
	b.reads("#token", "Here it is.")
	b.click("#out")
	b.reads("#ended", "401 Unauthorized")
	assert.Empty(t, b.api.AccessTokens(), "the token of the page before was revoked, too")
	b.do(chromedp.Reload())
	b.see("#users button")
	assert.Empty(t, b.text("#signed"))
}

func TestSessionThatEndedElsewhere(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	b.signIn("ada")
	_, err := b.app.Close(b.ctx)
	require.NoError(t, err)
	b.reads("#signed", "401. The session has ended")
	assert.Equal(t, "–", b.text("#seconds"))
	requests := len(b.api.TokenRequests())
	time.Sleep(2 * time.Second) // a page that asked again would have
	assert.Len(t, b.api.TokenRequests(), requests)
}

// Ada has the page open, and Grace signs in in another tab.
func TestTwoUsersInTwoTabs(t *testing.T) {
	t.Parallel()
	ada := open(t, setting{lifetime: 10 * time.Second})
	ada.signIn("ada")
	grace := ada.beside()
	grace.reads("#signed", "You are Ada") // the same cookie
	grace.click("#users button[value=grace]")
	grace.reads("#signed", "You are Grace")
	grace.reads("#scopes", "grace-8e07")
	ada.reads("#signed", "409. Somebody else has signed in, in another tab. This page was Ada’s") // at the next renewal
	assert.NotContains(t, ada.text("#scopes"), "grace")
	assert.Equal(t, "–", ada.text("#seconds"))
	assert.False(t, ada.api.Alive(ada.token()))
	ada.mu.Lock()
	for _, r := range ada.received {
		if strings.HasSuffix(r.from, "/moov-token") {
			assert.NotContains(t, r.what, "grace", "it got no token of hers")
		}
	}
	ada.mu.Unlock()
	assert.Contains(t, grace.text("#signed"), "You are Grace")
	grace.click("#link")
	grace.reads("#linked", "201 Created")
}

// It learns so at once if it calls the API, since the token was revoked; and it
// cannot sign her out.
func TestTabOfAnotherUserDoesNothingForHer(t *testing.T) {
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
			ada.reads("#signed", "409. Somebody else has signed in")
			if button == "#link" {
				ada.reads(status, "The card was not linked")
			}
			assert.NotEmpty(t, ada.api.AccessTokens(), "she is signed in")
			grace.click("#link")
			grace.reads("#linked", "201 Created")
			grace.do(chromedp.Reload())
			grace.reads("#signed", "You are Grace")
		})
	}
}

// Moov is away at sign-out.
func TestSignOutWhoseRevocationFails(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("ada")
	token := b.token()
	b.api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_request"}`})
	b.click("#out")
	b.reads("#ended", "502. Signed out, but Moov has not revoked the token yet. Your server tries again")
	require.Eventually(t, func() bool { return !b.api.Alive(token) }, patience, 10*time.Millisecond)
}

func TestAPIAtItsLimit(t *testing.T) {
	t.Parallel()
	b := open(t, setting{})
	b.signIn("ada")
	b.click("#many")
	b.reads("#limited", "429 Too Many Requests")
	assert.Regexp(t, `\d+ of 25 calls wait 1 s`, b.text("#limited"))
	b.reads("#limited", "25 of 25 calls answered.")
	done := eval[int](b, `document.querySelectorAll("#dots .done").length`)
	assert.Equal(t, 25, done)
	calls, refusedOnce := 0, 0
	for _, r := range b.api.Requests() {
		if r.Method == http.MethodGet && strings.HasSuffix(r.Path, "/cards") {
			calls++
		}
	}
	_, err := fmt.Sscanf(b.text("#limited"), "25 of 25 calls answered. The API said 429 to %d", &refusedOnce)
	require.NoError(t, err)
	assert.Equal(t, 25+refusedOnce, calls, "each refused call was made again, once for each refusal")
	assert.Less(t, calls, 60, "the page waited")
}

func TestServerWhoseQueueIsFull(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	b.signIn("ada")
	b.api.Enqueue(moovtest.Answer{Status: 429, Header: http.Header{"Retry-After": {"12"}}}) // more than the 10 s that a page waits in the queue
	b.reads("#token", "503. Your server has many requests in the queue. The page asks again in ")
	b.until(`document.querySelector("#unit").textContent === "expired" && document.querySelector("#next").textContent.includes("waits")`)
	b.reads("#token", "Renewed.")
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
	b.reads("#crowded", "People first.")
	requests := b.api.TokenRequests()
	first, last := ofAda(requests)
	before, after := 0, 0 // how many requests were in the queue
	_, err := fmt.Sscanf(b.text("#crowded"), "People first. %d requests were in the queue when this page asked for its token. When the token came, %d of them", &before, &after)
	require.NoError(t, err, b.text("#crowded"))
	assert.Greater(t, before, 300)
	assert.Greater(t, after, 200, "the page came after them, and was served before them")
	assert.Less(t, first, last)
	assert.Less(t, last, 250, "of the requests that Moov has answered, with 500 accounts")

	served := eval[int](b, `Number(document.querySelector("#served").textContent)`)
	b.until(fmt.Sprintf(`Number(document.querySelector("#served").textContent) > %d + 10`, served))
	assert.Regexp(t, `^\d+\.\d s$`, b.text("#longest"))
	for _, id := range []string{"#rate", "#needed"} {
		assert.Regexp(t, `^\d+\.\d/s$`, b.text(id))
	}
	assert.Regexp(t, `^\d+$`, b.text("#toomany")) // 9.7 a second, of the 10 that the API takes: one may come too early
	assert.Equal(t, "0", b.text("#timedout"))
	assert.Less(t, eval[float64](b, `document.querySelector("#progress").value`), 400.0)
}

// ofAda is where Ada's first and last token requests are among all.
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

func TestServerThatIsAway(t *testing.T) {
	t.Parallel()
	b := open(t, setting{lifetime: 4 * time.Second})
	b.signIn("ada")
	b.api.Enqueue(moovtest.Answer{Status: 400, Body: `{"error":"invalid_scope"}`})
	b.reads("#token", "502. Your server got no token from Moov; its log says why. The page asks again in 5 s.")
	b.reads("#token", "Renewed.")
}

func TestRealMoov(t *testing.T) {
	t.Parallel()
	b := open(t, setting{real: true})
	assert.Contains(t, b.text("#where"), "Moov itself: "+b.api.URL)
	visible := eval[bool](b, `document.querySelector("#link").checkVisibility()`)
	assert.False(t, visible, "there is nothing at Moov to link a card to")
	b.signIn("ada")
	assert.Equal(t, "/ping.read", b.text("#scopes"))
	b.click("#ping")
	b.reads("#pinged", "200 OK")
	b.click("#out")
	b.reads("#ended", "401 Unauthorized, as it should be")
}

func TestKeyboardAlone(t *testing.T) {
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
	b.reads("#token", "Here it is.")
	assert.Equal(t, "ada", focused(), "the focus stays")
	for _, want := range []string{"grace", "link", "other", "many", "out"} {
		press(kb.Tab)
		assert.Equal(t, want, focused())
	}
	press(" ")
	b.reads("#ended", "401")
	assert.Equal(t, "out", focused())
}

// What a screen reader finds.
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
	assert.ElementsMatch(t, []string{"Signed in as Ada account ada-5c21", "Switch to Grace account grace-8e07", "Link a test card", "Ask for Grace’s cards", "Make 25 calls at once", "Sign out", "Let 500 accounts get tokens at once"}, named["button"])
	assert.ElementsMatch(t, []string{"Access tokens for the browser", "This page", "Your server", "Moov’s API", "Sign in", "Get a token", "Call the API", "Sign out", "What the platform’s operator sees", "What this page sent"}, named["heading"])
	assert.Contains(t, named["group"], "Sign in as")
	require.Len(t, named["image"], 1)
	assert.Regexp(t, `^The token has \d+ seconds left$`, named["image"][0])
	assert.GreaterOrEqual(t, len(named["status"]), 6)
	assert.Len(t, named["main"], 1)
}

// contrast lists the visible texts whose contrast is below WCAG's AA.
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
	for (const e of document.querySelectorAll("button, .left, .dots i, .mark, .status:not(:empty)")) { // what is no text: 3
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
			// A check that finds nothing wrong can be made to.
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
	b.reads("#next", "1 so far")
	assert.Greater(t, share(), 80.0, "it is full again")
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
	b.wrong = nil // they were asked for
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
