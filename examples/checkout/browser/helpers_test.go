package browser

// This file starts the browser, opens the page in it, and records what the page receives.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/log"
	"github.com/chromedp/cdproto/network"
	"github.com/chromedp/cdproto/page"
	"github.com/chromedp/cdproto/runtime"
	"github.com/chromedp/chromedp"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/examples/checkout/internal/checkout"
	"github.com/moovauth/moovauth/moovtest"
)

// patience is how long a test waits for the page to show something.
const patience = 30 * time.Second

// browser is one Chromium for all tests. Each test has its own profile in it.
var browser context.Context

// noBrowser says why there is no browser.
var noBrowser string

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	path, err := find()
	if err != nil {
		noBrowser = err.Error()
		return m.Run()
	}
	dir, err := os.MkdirTemp("", "checkout")
	if err != nil {
		panic(err)
	}
	defer os.RemoveAll(dir)
	allocator, cancel := chromedp.NewExecAllocator(context.Background(),
		chromedp.ExecPath(path), chromedp.UserDataDir(dir), chromedp.NoFirstRun, chromedp.NoDefaultBrowserCheck,
		chromedp.Headless, chromedp.DisableGPU, chromedp.NoSandbox,
		chromedp.Flag("disable-background-networking", true), chromedp.Flag("disable-component-update", true),
		chromedp.Flag("disable-sync", true), chromedp.Flag("disable-background-timer-throttling", true),
		chromedp.Flag("disable-renderer-backgrounding", true), chromedp.Flag("disable-backgrounding-occluded-windows", true), chromedp.Flag("disable-quic", true), chromedp.Flag("disable-dev-shm-usage", true),
		chromedp.Flag("hide-scrollbars", true), chromedp.Flag("force-color-profile", "srgb"),
		chromedp.WSURLReadTimeout(time.Minute))
	defer cancel()
	ctx, cancel := chromedp.NewContext(allocator)
	defer cancel()
	if err := chromedp.Do(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "%s does not start: %v\n", path, err)
		return 1 // skipping the tests would hide this
	}
	browser = ctx
	return m.Run()
}

func find() (string, error) {
	if path := os.Getenv("CHROMIUM"); path != "" {
		return exec.LookPath(path)
	}
	for _, name := range []string{"chromium", "chromium-browser", "google-chrome", "google-chrome-stable"} {
		if path, err := exec.LookPath(name); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("there is no chromium or google-chrome in PATH: install one (apt-get install chromium), or set CHROMIUM to its path")
}

// tab is a page in the browser, with its server and the API behind that.
type tab struct {
	t      *testing.T
	ctx    context.Context
	target *chromedp.Target
	app    *checkout.App
	api    *moovtest.Server
	url    string

	mu       sync.Mutex // guards the fields below
	requests map[network.RequestID]string
	received []received
	outside  []string // requests to other hosts
	wrong    []string // errors and console messages
	unread   int      // bodies that were received and are not read yet
}

// received is something that the browser received, and where it came from.
type received struct{ from, what string }

type setting struct {
	lifetime      time.Duration
	dark, calm    bool // prefers-color-scheme, prefers-reduced-motion
	width, height int64
	real          bool // treat the API as Moov's own
}

// open loads the page in a new profile.
func open(t *testing.T, s setting) *tab {
	t.Helper()
	if browser == nil {
		t.Skip("skipped, no browser: ", noBrowser)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	origin := "http://" + listener.Addr().String()
	if s.lifetime == 0 {
		s.lifetime = time.Minute
	}
	api := checkout.NewAPI(s.lifetime, origin)
	t.Cleanup(api.Close)
	app, err := checkout.New(checkout.Config{
		Credentials: moovauth.Credentials{ClientID: api.ClientID, ClientSecret: api.ClientSecret},
		API:         api.URL, Embedded: !s.real, Origins: []string{origin},
	})
	require.NoError(t, err)
	server := &http.Server{Handler: app}
	go server.Serve(listener)
	t.Cleanup(func() { server.Close() })

	b := blank(t, browser, chromedp.WithNewBrowserContext())
	b.app, b.api, b.url, b.requests = app, api, origin, make(map[network.RequestID]string)
	require.NoError(t, chromedp.Listen(b.ctx, b.listen))

	if s.width == 0 {
		s.width, s.height = 1200, 900
	}
	scheme, motion := "light", "no-preference"
	if s.dark {
		scheme = "dark"
	}
	if s.calm {
		motion = "reduce"
	}
	command(b, network.Enable, network.EnableParams{})
	command(b, log.Enable, cdp.Empty{})
	command(b, runtime.Enable, cdp.Empty{})
	command(b, emulation.SetFocusEmulationEnabled, emulation.SetFocusEmulationEnabledParams{Enabled: true}) // because tests share the browser
	command(b, emulation.SetDeviceMetricsOverride, emulation.SetDeviceMetricsOverrideParams{
		Width: s.width, Height: s.height, DeviceScaleFactor: 1, Mobile: s.width < 500,
	})
	command(b, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
		{Name: "prefers-color-scheme", Value: scheme}, {Name: "prefers-reduced-motion", Value: motion},
	}})
	b.do(chromedp.Navigate(origin))
	b.see("#users button")
	t.Cleanup(func() {
		b.mu.Lock()
		defer b.mu.Unlock()
		assert.Empty(t, b.outside, "requests to other hosts")
		assert.Empty(t, b.wrong, "errors and console messages")
	})
	return b
}

// blank opens an empty tab in the parent's profile. An option can create a new profile.
func blank(t *testing.T, parent context.Context, opts ...chromedp.ContextOption) *tab {
	t.Helper()
	ctx, cancel := chromedp.NewContext(parent, opts...)
	t.Cleanup(cancel)
	b := &tab{t: t, ctx: ctx}
	require.NoError(t, chromedp.Do(ctx, chromedp.Func(func(_ context.Context, target *chromedp.Target) error {
		b.target = target
		return nil
	})))
	return b
}

// beside opens the page in another tab of the same profile.
func (b *tab) beside() *tab {
	b.t.Helper()
	other := blank(b.t, b.ctx)
	other.app, other.api, other.url = b.app, b.api, b.url
	other.do(chromedp.Navigate(b.url))
	other.see("#users button")
	return other
}

func (b *tab) listen(event any) {
	switch e := event.(type) {
	case *network.EventRequestWillBeSent:
		b.mu.Lock()
		b.requests[e.RequestID] = e.Request.Method + " " + e.Request.URL
		if !strings.HasPrefix(e.Request.URL, b.url+"/") && !strings.HasPrefix(e.Request.URL, b.api.URL+"/") {
			b.outside = append(b.outside, e.Request.URL)
		}
		b.mu.Unlock()
		b.got("request of", e.RequestID, e.Request)
	case *network.EventRequestWillBeSentExtraInfo:
		b.got("headers of the request", e.RequestID, e.Headers)
	case *network.EventResponseReceived:
		b.got("response", e.RequestID, e.Response)
	case *network.EventResponseReceivedExtraInfo:
		b.got("headers", e.RequestID, e.Headers)
	case *network.EventLoadingFinished:
		b.mu.Lock()
		b.unread++
		b.mu.Unlock()
		go func() { // listen must not block
			body, err := cdp.Call(b.ctx, b.target, network.GetResponseBody, network.GetResponseBodyParams{RequestID: e.RequestID})
			if err == nil { // a preflight has no body
				b.got("body", e.RequestID, string(body.Body))
			}
			b.mu.Lock()
			defer b.mu.Unlock()
			b.unread--
		}()
	case *runtime.EventConsoleAPICalled:
		b.complain("console", e.Args)
	case *runtime.EventExceptionThrown:
		b.complain("exception", e.ExceptionDetails)
	case *log.EventEntryAdded:
		// The browser logs every 401, 403, 429 and 503, even if the page expects it.
		if e.Entry.Source != log.EntrySourceNetwork {
			b.complain("log", e.Entry)
		}
	}
}

func (b *tab) got(what string, id network.RequestID, value any) {
	text, ok := value.(string)
	if !ok {
		raw, err := json.Marshal(value)
		if err != nil {
			panic(err)
		}
		text = string(raw)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.received = append(b.received, received{what + " " + b.requests[id], text})
}

func (b *tab) complain(what string, value any) {
	raw, _ := json.Marshal(value)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.wrong = append(b.wrong, what+": "+string(raw))
}

// all returns what the browser has received so far, and what it stores.
func (b *tab) all() []received {
	b.t.Helper()
	b.settle()
	raw, err := json.Marshal(command(b, network.GetCookies, network.GetCookiesParams{URLs: []string{b.url, b.api.URL}}))
	require.NoError(b.t, err)
	stored := eval[string](b, `(async () => JSON.stringify({
		cookie: document.cookie, local: {...localStorage}, session: {...sessionStorage}, history: history.state, name: window.name,
		databases: await indexedDB.databases(), caches: await caches.keys(), page: document.documentElement.outerHTML,
	}))()`)
	b.mu.Lock()
	defer b.mu.Unlock()
	return append(append([]received{}, b.received...), received{"cookies", string(raw)}, received{"storage", stored})
}

// search returns where a secret occurs as plain text, in hexadecimal or in base64.
func search(all []received, secret string) []string {
	shapes := []string{secret, fmt.Sprintf("%x", secret)}
	for shift := range 3 { // base64 depends on the secret's offset in the encoded text
		padded := base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat("x", shift) + secret))
		shapes = append(shapes, padded[(shift*8+5)/6:len(padded)-1])
	}
	var found []string
	for _, r := range all {
		for _, shape := range shapes {
			if strings.Contains(r.what, shape) || strings.Contains(strings.NewReplacer("-", "+", "_", "/").Replace(r.what), shape) {
				found = append(found, r.from)
				break
			}
		}
	}
	return found
}

// settle waits until all received bodies are read.
func (b *tab) settle() {
	b.t.Helper()
	require.Eventually(b.t, func() bool {
		b.mu.Lock()
		defer b.mu.Unlock()
		return b.unread == 0
	}, patience, 5*time.Millisecond)
}

func (b *tab) do(steps ...chromedp.Action[chromedp.Void]) {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	require.NoError(b.t, chromedp.Do(ctx, steps...))
}

func command[P, R any](b *tab, c cdp.Command[P, R], params P) R {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	result, err := cdp.Call(ctx, b.target, c, params)
	require.NoError(b.t, err)
	return result
}

// eval evaluates a script in the page.
func eval[T any](b *tab, script string) T {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(b.ctx, patience)
	defer cancel()
	result, err := chromedp.Run(ctx, chromedp.Evaluate[T](script, chromedp.EvalAwaitPromise))
	require.NoError(b.t, err, script)
	return result
}

func (b *tab) see(selector string) { b.t.Helper(); b.do(chromedp.WaitVisible(chromedp.CSS(selector))) }

func (b *tab) click(selector string) { b.t.Helper(); b.do(chromedp.Click(chromedp.CSS(selector))) }

func (b *tab) text(selector string) string {
	b.t.Helper()
	return eval[string](b, fmt.Sprintf("document.querySelector(%q).textContent", selector))
}

// reads waits until an element of the page contains a text.
func (b *tab) reads(selector, want string) {
	b.t.Helper()
	b.until(fmt.Sprintf("document.querySelector(%q).textContent.includes(%q)", selector, want))
}

// until waits until a JavaScript condition is true. chromedp.Poll would need a
// Content-Security-Policy that allows eval.
func (b *tab) until(condition string) {
	b.t.Helper()
	for begin := time.Now(); !eval[bool](b, condition); time.Sleep(20 * time.Millisecond) {
		if time.Since(begin) > patience {
			require.Fail(b.t, condition, "the page:\n%s", eval[string](b, "document.body.innerText"))
		}
	}
}

// signIn signs a user in and waits for the token.
func (b *tab) signIn(id string) {
	b.t.Helper()
	b.click(fmt.Sprintf("#users button[value=%s]", id))
	b.reads("#token", "Token received.")
}

// token returns the page's newest access token.
func (b *tab) token() string {
	b.t.Helper()
	b.settle()
	b.mu.Lock()
	defer b.mu.Unlock()
	for i := len(b.received) - 1; i >= 0; i-- {
		var token struct {
			AccessToken string `json:"access_token"`
		}
		r := b.received[i]
		if r.from == "body POST "+b.url+"/moov-token" && json.Unmarshal([]byte(r.what), &token) == nil && token.AccessToken != "" {
			return token.AccessToken
		}
	}
	require.Fail(b.t, "the page got no token")
	return ""
}

// screenshot saves a picture of the whole page.
func (b *tab) screenshot(name string) {
	b.t.Helper()
	size := eval[[]float64](b, "scrollTo(0, 0), [document.documentElement.clientWidth, document.documentElement.scrollHeight]")
	beyond := true
	picture := command(b, page.CaptureScreenshot, page.CaptureScreenshotParams{
		CaptureBeyondViewport: &beyond, Clip: &page.Viewport{Width: size[0], Height: size[1], Scale: 1},
	}).Data
	require.NoError(b.t, os.MkdirAll("screenshots", 0o755))
	require.NoError(b.t, os.WriteFile(filepath.Join("screenshots", name+".png"), picture, 0o644))
}
