package browser

// This file tests moov-token.js in a page of its own. Fake time cannot show how a real
// browser freezes, caches and prerenders a page.

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/target"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
)

// script is the page's script. It records the calls of its functions in tokens, ends
// and troubles. Setting ahead makes Date.now() jump, as it does after sleep.
const script = `
import { moovToken } from "/moov-token.js";
const real = Date.now;
Date.now = () => real() + (window.ahead ?? 0);
window.tokens = []; window.ends = []; window.troubles = []; window.shown = [];
addEventListener("pageshow", (event) => shown.push(event.persisted));
window.session = moovToken({
	url: "/moov-token",
	onToken(token) { tokens.push({ token: token.access_token, after: Date.now() - (window.woken ?? 0) }); },
	onEnd(status) { ends.push(status); },
	onTrouble(trouble) { troubles.push(trouble); },
});
`

const policy = "default-src 'none'; script-src 'self'; connect-src 'self'; require-trusted-types-for 'script'; trusted-types 'none'"

// site is a server with a page that uses the module.
type site struct {
	*httptest.Server
	mux    *http.ServeMux
	script string

	mu       sync.Mutex // guards the fields below
	posts    []time.Time
	gone     int                // posts that the page aborted
	answers  []http.HandlerFunc // to the posts, in order; then tokens
	lifetime int
}

func newSite(t *testing.T, lifetime int, answers ...http.HandlerFunc) *site {
	t.Helper()
	s := &site{script: script, lifetime: lifetime, answers: answers}
	mux := http.NewServeMux()
	s.mux = mux
	mux.Handle("GET /moov-token.js", platform.PageModule())
	mux.HandleFunc("POST /moov-token", s.token)
	mux.HandleFunc("GET /page.js", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/javascript")
		_, _ = io.WriteString(w, s.script)
	})
	mux.HandleFunc("GET /page", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Security-Policy", policy)
		_, _ = io.WriteString(w, `<!doctype html><title>Page</title><script type="module" src="page.js"></script><p>the page`)
	})
	mux.HandleFunc("GET /before", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<!doctype html><title>Before</title><p>before`)
	})
	mux.HandleFunc("GET /sign-in", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<!doctype html><title>Sign in</title>`)
	})
	s.Server = httptest.NewServer(mux)
	t.Cleanup(s.Close)
	return s
}

func (s *site) token(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	s.posts = append(s.posts, time.Now())
	n := len(s.posts)
	var answer http.HandlerFunc
	if len(s.answers) > 0 {
		answer, s.answers = s.answers[0], s.answers[1:]
	}
	s.mu.Unlock()
	if answer != nil {
		answer(w, r)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{"access_token": fmt.Sprint("token ", n), "token_type": "Bearer", "expires_in": s.lifetime})
}

func status(code int, header ...string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		for i := 0; i < len(header); i += 2 {
			w.Header().Set(header[i], header[i+1])
		}
		w.WriteHeader(code)
	}
}

// hang does not answer. It waits until the page aborts the request.
func (s *site) hang(_ http.ResponseWriter, r *http.Request) {
	<-r.Context().Done()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gone++
}

func (s *site) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.posts)
}

// visit opens the page.
func (s *site) visit(t *testing.T) *tab {
	t.Helper()
	if browser == nil {
		t.Skip("skipped, no browser: ", noBrowser)
	}
	b := blank(t, browser, chromedp.WithNewBrowserContext())
	b.do(chromedp.Navigate(s.URL + "/page"))
	b.until(`window.session !== undefined`)
	return b
}

// wakes waits for a number of tokens. The last token must arrive within a second of
// window.woken.
func (b *tab) wakes(tokens int) {
	b.t.Helper()
	b.until(fmt.Sprintf(`tokens.length === %d`, tokens))
	assert.Less(b.t, eval[float64](b, `tokens.at(-1).after`), 1000.0, "ms after the page woke")
	assert.Equal(b.t, fmt.Sprint("token ", tokens), eval[string](b, `session.token`))
}

func TestModuleInAFrozenPage(t *testing.T) {
	t.Parallel()
	s := newSite(t, 8)
	b := s.visit(t)
	b.until(`tokens.length === 1`)
	command(b, page.SetWebLifecycleState, page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateFrozen})
	time.Sleep(9 * time.Second) // the renewal was due after 6.4 s, and the token has expired
	require.Equal(t, 1, s.count(), "the frozen page makes no request")
	woken := time.Now()
	command(b, page.SetWebLifecycleState, page.SetWebLifecycleStateParams{State: page.SetWebLifecycleStateStateActive})
	b.until(`tokens.length === 2`)
	assert.Less(t, s.posts[1].Sub(woken), time.Second)
	assert.Equal(t, "token 2", eval[string](b, `session.token`))
}

// While the machine sleeps, timers stop, but the clock runs on.
func TestModuleAfterSleep(t *testing.T) {
	t.Parallel()
	for event, on := range map[string]string{"visibilitychange": "document", "pageshow": "window", "online": "window"} {
		t.Run(event, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 900)
			b := s.visit(t)
			b.until(`tokens.length === 1`)
			eval[chromedp.Void](b, `window.ahead = 20 * 60 * 1000; window.woken = Date.now()`)
			assert.True(t, eval[bool](b, `session.token === null`))
			eval[chromedp.Void](b, fmt.Sprintf(`%s.dispatchEvent(new Event(%q))`, on, event))
			b.wakes(2)
			assert.Equal(t, 2, s.count())
		})
	}
}

func TestModuleOffline(t *testing.T) {
	t.Parallel()
	s := newSite(t, 5)
	b := s.visit(t)
	b.until(`tokens.length === 1`)
	offline := func(off bool) {
		conditions := &network.Conditions{Offline: off, DownloadThroughput: -1, UploadThroughput: -1}
		command(b, network.EmulateNetworkConditionsByRule, network.EmulateNetworkConditionsByRuleParams{MatchedNetworkConditions: []*network.Conditions{conditions}})
		command(b, network.OverrideNetworkState, network.OverrideNetworkStateParams{Offline: off, DownloadThroughput: -1, UploadThroughput: -1})
	}
	command(b, network.Enable, network.EnableParams{})
	offline(true)
	b.until(`troubles.length === 2`) // after 5 s and about 10 s
	assert.Equal(t, []any{0.0, 0.0}, eval[[]any](b, `troubles.map((trouble) => trouble.status)`))
	assert.GreaterOrEqual(t, eval[float64](b, `troubles[1].retryIn`), 10.0)
	assert.True(t, eval[bool](b, `session.token === null`))
	eval[chromedp.Void](b, `window.woken = Date.now()`)
	offline(false)
	b.wakes(2)
}

// The visitor leaves the page and returns to it from the back-forward cache.
func TestModuleInTheBackForwardCache(t *testing.T) {
	t.Parallel()
	s := newSite(t, 6)
	b := s.visit(t)
	b.until(`tokens.length === 1`)
	b.do(chromedp.Navigate(s.URL + "/before"))
	time.Sleep(7 * time.Second) // the token has expired
	require.Equal(t, 1, s.count(), "the page makes no request while it is in the cache")
	woken := time.Now()
	history := command(b, page.GetNavigationHistory, cdp.Empty{})
	command(b, page.NavigateToHistoryEntry, page.NavigateToHistoryEntryParams{EntryID: history.Entries[history.CurrentIndex-1].ID})
	b.until(`window.tokens?.length === 2`)
	assert.Equal(t, []any{false, true}, eval[[]any](b, `shown`), "the page comes from the cache")
	assert.Less(t, s.posts[1].Sub(woken), time.Second)
}

// A prerendered page may never be shown, so it makes no request until it is shown.
// DevTools must not be attached to the tab, because it would turn prerendering off.
func TestModuleInAPrerenderedPage(t *testing.T) {
	t.Parallel()
	if browser == nil {
		t.Skip("skipped, no browser: ", noBrowser)
	}
	s := newSite(t, 900)
	s.script = script + `fetch("/ran?prerendering=" + document.prerendering);`
	ran, show := make(chan string, 2), make(chan bool)
	s.mux.HandleFunc("GET /ran", func(_ http.ResponseWriter, r *http.Request) { ran <- r.URL.RawQuery })
	s.mux.HandleFunc("GET /show", func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-show:
		case <-r.Context().Done():
		}
	})
	s.mux.HandleFunc("GET /opener", func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `<!doctype html><title>Opener</title>
			<script type="speculationrules">{"prerender": [{"source": "list", "urls": ["/page"], "eagerness": "immediate"}]}</script>
			<script>fetch("/show").then(() => { location.href = "/page"; });</script>`)
	})
	profile := blank(t, browser, chromedp.WithNewBrowserContext())
	_, err := chromedp.CallBrowser(browser, target.CreateTarget, target.CreateTargetParams{
		URL: s.URL + "/opener", BrowserContextID: chromedp.FromContext(profile.ctx).BrowserContextID,
	})
	require.NoError(t, err)
	select {
	case how := <-ran:
		require.Equal(t, "prerendering=true", how)
	case <-time.After(patience):
		require.Fail(t, "the page was not prerendered")
	}
	time.Sleep(time.Second)
	assert.Zero(t, s.count())
	close(show)
	require.Eventually(t, func() bool { return s.count() == 1 }, patience, 5*time.Millisecond)
	assert.Empty(t, ran, "the prerendered page is shown, and no new one is loaded")
}

func TestModuleHasOneChain(t *testing.T) {
	t.Parallel()
	s := newSite(t, 1)
	b := s.visit(t)
	b.until(`tokens.length === 1`)
	eval[chromedp.Void](b, `(async () => { for (let i = 0; i < 10; i++) await session.renew(); })()`)
	eval[chromedp.Void](b, `Promise.all(Array.from({ length: 10 }, () => session.renew()))`)
	require.Equal(t, 12, s.count(), "the last ten calls share one request")
	time.Sleep(7 * time.Second)
	assert.Equal(t, 13, s.count(), "the renewal comes 5 s later")
}

func TestModuleRetries(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		answer http.HandlerFunc
		status int
		after  time.Duration
	}{
		"502":                     {status(502), 502, 5 * time.Second},
		"503":                     {status(503), 503, 5 * time.Second},
		"503 that says when":      {status(503, "Retry-After", "2"), 503, 2 * time.Second},
		"504":                     {status(504), 504, 5 * time.Second},
		"a redirect to a sign-in": {status(302, "Location", "/sign-in"), 200, 5 * time.Second},
		"an answer that breaks off": {func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "1000")
			_, _ = io.WriteString(w, `{"access_token":"a"`)
		}, 200, 5 * time.Second},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 900, c.answer)
			b := s.visit(t)
			b.until(`troubles.length === 1`)
			assert.Equal(t, c.status, eval[int](b, `troubles[0].status`))
			assert.True(t, eval[bool](b, `session.token === null`))
			b.until(`tokens.length === 1`)
			assert.Equal(t, 2, s.count())
			waited := s.posts[1].Sub(s.posts[0])
			assert.GreaterOrEqual(t, waited, c.after-50*time.Millisecond)
			assert.Less(t, waited, c.after+5*time.Second) // jitter, and a busy machine
			assert.Empty(t, eval[[]any](b, `ends`))
		})
	}
}

// The module aborts a fetch after a minute. The test sets the clock forward instead of
// waiting.
func TestModuleEndsAFetchThatHangs(t *testing.T) {
	t.Parallel()
	s := newSite(t, 900)
	s.answers = []http.HandlerFunc{s.hang}
	b := s.visit(t)
	eval[chromedp.Void](b, `window.ahead = 61 * 1000; document.dispatchEvent(new Event("visibilitychange"))`)
	b.until(`troubles.length === 1`)
	assert.Equal(t, 0, eval[int](b, `troubles[0].status`))
	b.until(`tokens.length === 1`)
	assert.Equal(t, 1, s.gone, "the connection is closed")
}

func TestModuleStops(t *testing.T) {
	t.Parallel()
	s := newSite(t, 900)
	s.answers = []http.HandlerFunc{s.hang}
	b := s.visit(t)
	require.Eventually(t, func() bool { return s.count() == 1 }, patience, 5*time.Millisecond)
	assert.Equal(t, "moovToken: stopped", eval[string](b, `(() => { const renewal = session.renew(); session.stop(); return renewal.then(String, (error) => error.message); })()`))
	require.Eventually(t, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.gone == 1
	}, patience, 5*time.Millisecond, "the fetch is aborted")
	eval[chromedp.Void](b, `window.ahead = 3600 * 1000; for (const type of ["pageshow", "online"]) dispatchEvent(new Event(type)); document.dispatchEvent(new Event("visibilitychange"))`)
	time.Sleep(time.Second)
	assert.Equal(t, 1, s.count())
	assert.Empty(t, eval[[]any](b, `[...tokens, ...ends, ...troubles]`))
}

func TestModuleEnds(t *testing.T) {
	t.Parallel()
	for _, code := range []int{401, 403, 409} {
		t.Run(fmt.Sprint(code), func(t *testing.T) {
			t.Parallel()
			s := newSite(t, 900, status(code))
			b := s.visit(t)
			b.until(`ends.length === 1`)
			assert.Equal(t, code, eval[int](b, `ends[0]`))
			eval[chromedp.Void](b, `window.ahead = 3600 * 1000; document.dispatchEvent(new Event("visibilitychange"))`)
			time.Sleep(500 * time.Millisecond)
			assert.Equal(t, 1, s.count())
		})
	}
}

// The README's JavaScript runs unchanged.
func TestModuleAsTheREADMEShowsIt(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../../README.md")
	require.NoError(t, err)
	_, lines, ok := strings.Cut(string(readme), "```js\n")
	require.True(t, ok)
	lines, _, ok = strings.Cut(lines, "```")
	require.True(t, ok)
	assert.LessOrEqual(t, strings.Count(lines, "\n"), 6)
	s := newSite(t, 900)
	s.script = "const drop = window.drop = {};\n" + lines + "window.session = session;"
	s.answers = []http.HandlerFunc{func(w http.ResponseWriter, _ *http.Request) {
		_, _ = io.WriteString(w, `{"access_token":"a","token_type":"Bearer","expires_in":900}`)
	}}
	b := s.visit(t)
	b.until(`drop.token === "a"`)
	s.mu.Lock()
	s.answers = []http.HandlerFunc{status(401)}
	s.mu.Unlock()
	eval[chromedp.Void](b, `window.before = true; session.renew(); 0`)
	b.until(`window.before === undefined && document.readyState === "complete"`) // the page was reloaded
}

// The page and its server have different origins. The page loads the module from the
// server, and the module sends the server's cookie.
func TestModuleOfAnotherOrigin(t *testing.T) {
	t.Parallel()
	api := moovtest.NewServer()
	t.Cleanup(api.Close)
	s := newSite(t, 900) // the page's origin
	tokens, err := platform.New(moovauth.Credentials{ClientID: api.ClientID, ClientSecret: api.ClientSecret},
		platform.WithSource(moovauth.WithBaseURL(api.URL)), platform.WithOrigins(s.URL))
	require.NoError(t, err)
	mux := http.NewServeMux()
	mux.Handle("GET /moov-token.js", platform.PageModule())
	mux.Handle("/moov-token", tokens.Handler(func(r *http.Request) ([]string, error) {
		if _, err := r.Cookie("session"); err != nil || r.Header.Get("X-Page-User") != "ada" {
			return nil, fmt.Errorf("no one is signed in: %w", err)
		}
		return []string{"/ping.read"}, nil
	}))
	mux.HandleFunc("GET /sign-in", func(w http.ResponseWriter, _ *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "ada", HttpOnly: true, SameSite: http.SameSiteStrictMode})
	})
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	s.script = strings.NewReplacer(`"/moov-token.js"`, `"`+server.URL+`/moov-token.js"`, `"/moov-token"`, `"`+server.URL+`/moov-token", headers: { "X-Page-User": "ada" }`).Replace(script)
	if browser == nil {
		t.Skip("skipped, no browser: ", noBrowser)
	}
	b := blank(t, browser, chromedp.WithNewBrowserContext())
	b.do(chromedp.Navigate(server.URL + "/sign-in"))
	b.do(chromedp.Navigate(s.URL + "/before"))
	eval[chromedp.Void](b, `(() => { const script = document.createElement("script"); script.type = "module"; script.src = "/page.js"; document.head.append(script); })()`)
	b.until(`window.tokens?.length === 1`)
	assert.True(t, api.Alive(eval[string](b, `session.token`)))
}
