package moovauth

// This file holds what a caller configures, and refuses what cannot work before any request is made.
// It knows nothing of requests or of a token's life: the other files read what is gathered here.

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
	"unicode"
	"unicode/utf8"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
)

const (
	// DefaultBaseURL is Moov's production API.
	DefaultBaseURL = "https://api.moov.io"

	// DefaultVersion is the API version that Moov assumes if a request names none.
	DefaultVersion = "v2024.01.00"

	// VersionHeader names the API version on every request to Moov.
	VersionHeader = "X-Moov-Version"

	defaultTimeout = 30 * time.Second
)

// masked stands where a secret was.
const masked = redact.Mask

// Credentials identify an API key. They print, format, log and marshal with the
// secret masked. An unexported field of a struct of yours is the exception:
// package fmt cannot call its methods, so name that field Creds, not creds. Text
// that was marshalled can be read back, but not used: its secret is the mask.
type Credentials struct {
	ClientID     string // Moov's dashboard: public key
	ClientSecret string // Moov's dashboard: secret key
}

// bare is Credentials without methods.
type bare Credentials

func (c Credentials) masked() bare {
	if c.ClientSecret != "" {
		c.ClientSecret = masked
	}
	return bare(c)
}

// String returns c with the secret masked.
func (c Credentials) String() string {
	return fmt.Sprintf("{ClientID:%s ClientSecret:%s}", c.ClientID, c.masked().ClientSecret)
}

// Format implements [fmt.Formatter]: every verb prints [Credentials.String].
func (c Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// LogValue implements [slog.LogValuer] with the secret masked.
func (c Credentials) LogValue() slog.Value { return slog.StringValue(c.String()) }

// MarshalJSON implements [json.Marshaler]: an object with the secret masked.
func (c Credentials) MarshalJSON() ([]byte, error) { return json.Marshal(c.masked()) }

// MarshalXML implements [xml.Marshaler]: an element with the secret masked.
func (c Credentials) MarshalXML(e *xml.Encoder, start xml.StartElement) error {
	return e.EncodeElement(c.masked(), start)
}

// MarshalYAML is what YAML encoders call: a mapping with the secret masked.
func (c Credentials) MarshalYAML() (any, error) {
	m := c.masked()
	return map[string]string{"clientid": m.ClientID, "clientsecret": m.ClientSecret}, nil
}

// MarshalText implements [encoding.TextMarshaler], for other encoders, with the
// secret masked.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

// GobEncode implements [gob.GobEncoder] with the secret masked.
func (c Credentials) GobEncode() ([]byte, error) { return c.MarshalJSON() }

// GobDecode implements [gob.GobDecoder].
func (c *Credentials) GobDecode(data []byte) error { return json.Unmarshal(data, (*bare)(c)) }

func (c Credentials) check() error {
	for _, f := range []struct{ name, value, dashboard string }{
		{"ClientID", c.ClientID, "public key"},
		{"ClientSecret", c.ClientSecret, "secret key"},
	} {
		if wrong := checkKey(f.value, f.dashboard); wrong != "" {
			return fmt.Errorf("moovauth: Credentials.%s %s", f.name, wrong)
		}
	}
	if strings.Contains(c.ClientID, ":") {
		return errors.New("moovauth: Credentials.ClientID holds a colon, which HTTP Basic (RFC 7617) cannot carry: set it to the public key alone")
	}
	return nil
}

// checkKey says what is wrong with a client ID or secret, without quoting it.
func checkKey(s, dashboard string) string {
	first, _, _ := strings.Cut(s, " ")
	switch {
	case s == "":
		return "is empty: set it to the API key's " + dashboard + " from Moov's dashboard"
	case strings.Trim(s, "*") == "":
		return "is only the mask, as it stands in a log or in JSON: set it to the API key's " + dashboard + " from Moov's dashboard"
	case strings.HasPrefix(s, "\ufeff"):
		return "starts with a byte order mark: save the file that it was read from without one"
	case strings.TrimSpace(s) != s:
		return "starts or ends with white space: trim what was read from the file or variable"
	case strings.ContainsFunc(s, unicode.IsControl):
		return "holds a control character, which RFC 7617 forbids"
	case !utf8.ValidString(s):
		return "is not UTF-8: was it decoded from something else?"
	case strings.ContainsFunc(s, unseen):
		r, _ := utf8.DecodeRuneInString(s[strings.IndexFunc(s, unseen):])
		return fmt.Sprintf("holds %U, a character that cannot be seen: copy the %s once more", r, dashboard)
	case strings.ContainsAny(s[:1], "\"'`") && s[0] == s[len(s)-1] || strings.HasPrefix(s, "“") || strings.HasPrefix(s, "‘"):
		return "stands in quotation marks: leave them out"
	case first != s && (strings.EqualFold(first, "Basic") || strings.EqualFold(first, "Bearer")):
		return "starts with " + first + ", like an Authorization header: set it to the " + dashboard + " alone"
	}
	return ""
}

// unseen reports whether r leaves no ink: white space beyond ASCII, what only
// formats, and the letters and symbols that are blank.
func unseen(r rune) bool {
	const blank = "\u034f\u115f\u1160\u17b4\u17b5\u2800\u3164\uffa0"
	return r >= utf8.RuneSelf && unicode.IsSpace(r) || !unicode.IsGraphic(r) || unicode.Is(unicode.Variation_Selector, r) || strings.ContainsRune(blank, r)
}

// setup is what the options add up to: a configuration, and what only a
// constructor reads.
type setup struct {
	*config
	token *oauth2.Token // nil: start without one
	hint  TokenTypeHint // "": none is sent
	cache Cache         // nil: none
}

// config is what a source keeps. It is not changed after newSetup.
type config struct {
	creds     Credentials
	scopes    []string
	origin    string
	version   string
	baseURL   string // without a slash at its end
	client    *http.Client
	authStyle oauth2.AuthStyle
	early     time.Duration // negative: the default, which depends on the token's lifetime
	timeout   time.Duration
	logger    *slog.Logger // nil: nowhere
	stuck     atomic.Int32 // records on which the logger has not returned in time
	limiter   Limiter      // nil: none
	redact    redact.Set   // what no message may carry

	clock  func() instant
	random func() float64 // in [0, 1)
}

// An Option configures [NewTokenSource] or [Revoke]. If one is given
// twice, the last counts.
type Option func(*setup) error

// newSetup checks all that can be checked without the network.
func newSetup(creds Credentials, opts []Option) (*setup, error) {
	if err := creds.check(); err != nil {
		return nil, err
	}
	c := &setup{config: &config{
		creds:   creds,
		version: DefaultVersion,
		baseURL: DefaultBaseURL,
		client:  http.DefaultClient,
		early:   -1,
		timeout: defaultTimeout,
		clock:   clock,
		random:  rand.Float64,
	}}
	c.redact.Pin(creds.ClientSecret, base64.StdEncoding.EncodeToString([]byte(creds.ClientID+":"+creds.ClientSecret)))
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("moovauth: option %d is nil: leave it out", i+1)
		}
		if err := opt(c); err != nil {
			return nil, c.redact.Error("moovauth", err) // the secret may be in the wrong place
		}
	}
	return c, nil
}

// option refuses what is not ok, with an error that says what is wanted.
func option(ok bool, set func(*setup), wanted string, args ...any) Option {
	return func(c *setup) error {
		if !ok {
			return fmt.Errorf(wanted, args...)
		}
		set(c)
		return nil
	}
}

// WithScopes sets what a token may do, for the client-credentials grant.
// Moov's scopes look like /ping.read and
// /accounts/6f9c…/transfers.write: with a leading slash, and with the
// account's ID instead of {accountID}.
func WithScopes(scopes ...string) Option {
	return func(c *setup) error {
		for _, s := range scopes {
			if err := checkScope(s); err != nil {
				return err
			}
		}
		c.scopes = append([]string(nil), scopes...)
		return nil
	}
}

func checkScope(s string) error {
	switch {
	case s == "":
		return errors.New("WithScopes: a scope is empty: leave it out")
	case strings.ContainsFunc(s, unicode.IsSpace):
		return fmt.Errorf("WithScopes: %s has white space in it: give each scope as an argument of its own", quoted(s))
	case strings.ContainsAny(s, ",;|&+%"):
		return fmt.Errorf("WithScopes: %s looks like several scopes in one: give each as an argument of its own", quoted(s))
	case strings.ContainsAny(s, "{}"):
		return fmt.Errorf("WithScopes: %s still holds a placeholder: put the account's ID there", quoted(s))
	case s[0] != '/':
		return fmt.Errorf("WithScopes: %s lacks the leading slash: Moov's scopes look like %q", quoted(s), "/ping.read")
	}
	if i := strings.IndexFunc(s, func(r rune) bool { return !visibleASCII(r) || r == '"' || r == '\\' }); i >= 0 {
		return fmt.Errorf("WithScopes: %s holds a character that RFC 6749 §3.3 does not allow in a scope", quoted(s))
	}
	for segment := range strings.SplitSeq(s[1:], "/") {
		if segment == "" {
			return fmt.Errorf("WithScopes: %s has nothing between two slashes, or after the last one: is an account's ID missing?", quoted(s))
		}
	}
	return nil
}

// WithOrigin sets the Origin header of token and revoke requests: a scheme
// and a host, such as https://example.com, without a path. It must match an
// entry of the API key's allowed-domain list; Moov's documentation says that
// a token request must carry one. Default: no Origin is sent.
func WithOrigin(origin string) Option {
	u, err := url.Parse(origin)
	ok := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && origin == u.Scheme+"://"+u.Host && oddHost(u) == ""
	return option(ok, func(c *setup) { c.origin = origin },
		"WithOrigin: want a scheme and a host alone, such as %q, with no path or slash after it; got %s", "https://example.com", shownURL(origin))
}

// oddHost says what is wrong with a host that url.Parse takes.
func oddHost(u *url.URL) string {
	switch host := u.Hostname(); {
	case strings.EqualFold(host, "http") || strings.EqualFold(host, "https"):
		return "has a scheme twice"
	case strings.HasSuffix(u.Host, ":"):
		return "has a colon, and no port"
	case strings.ContainsFunc(host, unseen):
		return "has a character in its host that cannot be seen"
	}
	return ""
}

// shownURL is rawURL as it may stand in an error: without credentials or a query.
func shownURL(rawURL string) string {
	u, err := url.Parse(rawURL)
	if err != nil {
		return "what is no URL"
	}
	u.User, u.RawQuery, u.Fragment = nil, "", ""
	return quoted(u.String())
}

// WithVersion sets the X-Moov-Version header: vYYYY.QQ.BB, such as
// v2026.07.00, or dev or latest. Default: [DefaultVersion].
func WithVersion(version string) Option {
	err := checkVersion(version)
	return option(err == nil, func(c *setup) { c.version = version }, "WithVersion: %w", err)
}

var versionShape = regexp.MustCompile(`^(v[0-9]{4}\.[0-9]{2}\.[0-9]{2}|dev|latest)$`)

func checkVersion(v string) error {
	if !versionShape.MatchString(v) {
		return fmt.Errorf("want vYYYY.QQ.BB, such as v2026.07.00, or dev or latest; got %q", v)
	}
	return nil
}

// WithBaseURL sets where the API is, for a gateway or a test server: an
// https URL, or an http URL of a loopback address. A path in it goes before
// /oauth2/token and /oauth2/revoke. Default: [DefaultBaseURL].
func WithBaseURL(baseURL string) Option {
	return func(c *setup) error {
		u, err := url.Parse(baseURL)
		switch {
		case err != nil || u.Hostname() == "":
			return fmt.Errorf("WithBaseURL: want an absolute URL, such as %q", DefaultBaseURL)
		case u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
			return errors.New("WithBaseURL: the URL has credentials, a query or a fragment in it: want scheme, host and at most a path")
		case oddHost(u) != "":
			return fmt.Errorf("WithBaseURL: %s %s: want an absolute URL, such as %q", shownURL(baseURL), oddHost(u), DefaultBaseURL)
		case !secure(u):
			return fmt.Errorf("WithBaseURL: %s is not https: credentials and tokens travel in the clear to no host but a loopback address", shownURL(baseURL))
		}
		for _, path := range []string{tokenPath, revokePath} {
			if strings.HasSuffix(strings.ToLower(strings.TrimRight(u.Path, "/")), path) {
				return fmt.Errorf("WithBaseURL: %s ends in %s: leave that out, it is added", shownURL(baseURL), path)
			}
		}
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
		if c.baseURL = baseURL; u.String() != baseURL {
			c.baseURL = u.String()
		}
		return nil
	}
}

// WithHTTPClient sets the client that makes token and revoke requests, for a
// proxy, a client certificate or tracing. Redirects are not followed, whatever
// its CheckRedirect says; its Transport must not follow them itself.
// Default: [http.DefaultClient].
func WithHTTPClient(client *http.Client) Option {
	return option(client != nil, func(c *setup) { c.client = client },
		"WithHTTPClient: the client is nil: leave the option out for http.DefaultClient")
}

// WithAuthStyle sets how the client ID and secret are sent:
// [oauth2.AuthStyleInHeader] as HTTP Basic (RFC 6749 §2.3.1, though not
// form-encoded first, as Moov documents it), [oauth2.AuthStyleInParams] in
// the body. Default, also for [oauth2.AuthStyleAutoDetect]: in the header.
func WithAuthStyle(style oauth2.AuthStyle) Option {
	known := []oauth2.AuthStyle{oauth2.AuthStyleAutoDetect, oauth2.AuthStyleInHeader, oauth2.AuthStyleInParams}
	return option(slices.Contains(known, style), func(c *setup) { c.authStyle = style },
		"WithAuthStyle: want oauth2.AuthStyleInHeader or oauth2.AuthStyleInParams, got %d", style)
}

// WithToken starts from a token obtained earlier, of which the refresh token
// alone will do. An access token without an Expiry is used for 5 minutes;
// one that claims more than 30 days, for 30 days.
func WithToken(t *oauth2.Token) Option {
	return func(c *setup) error {
		if t == nil || t.AccessToken == "" && t.RefreshToken == "" {
			return errors.New("WithToken: the token has neither an access token nor a refresh token: leave the option out to start without one")
		}
		if t.AccessToken != "" && !usable(t.AccessToken) {
			return errors.New("WithToken: the access token is not visible ASCII (RFC 6750 §2.1): it would break the Authorization header")
		}
		scheme, err := bearer(t.TokenType)
		if err != nil {
			return fmt.Errorf("WithToken: %w", err)
		}
		own := *t
		own.TokenType = scheme
		c.token = &own
		c.redact.Add(t.AccessToken, t.RefreshToken)
		return nil
	}
}

// WithEarlyRefresh sets how long before its expiry a token is refreshed, less a
// random tenth so that a fleet does not refresh in step. The first call after
// that moment starts the refresh, in the background, and gets the token in hand.
// If no call comes before the expiry, the next one waits. At most four fifths of
// a token's lifetime are taken; with 0 nothing is refreshed early, and callers
// wait at each expiry. Default: a fifth of the lifetime, 5 minutes at most.
func WithEarlyRefresh(d time.Duration) Option {
	return option(d >= 0, func(c *setup) { c.early = d }, "WithEarlyRefresh: want a duration of 0 or more, got %v", d)
}

// WithTimeout bounds one whole grant, or one whole Revoke, retries included.
// Default: 30 s.
func WithTimeout(d time.Duration) Option {
	return option(d > 0, func(c *setup) { c.timeout = d }, "WithTimeout: want a duration above 0, got %v", d)
}

// WithLogger sets where grants, revocations and failures are logged. No record
// carries a secret. docs/operations.md lists them all. Default: nowhere.
func WithLogger(l *slog.Logger) Option {
	return option(l != nil, func(c *setup) { c.logger = l }, "WithLogger: the logger is nil: leave the option out to log nothing")
}

// WithTokenTypeHint tells [Revoke] which kind of token it is given, so that
// the server finds it sooner (RFC 7009 §2.1). Default: no hint is sent.
func WithTokenTypeHint(hint TokenTypeHint) Option {
	return option(hint == AccessToken || hint == RefreshToken, func(c *setup) { c.hint = hint },
		"WithTokenTypeHint: want moovauth.AccessToken or moovauth.RefreshToken, got %q", hint)
}

// Limiter is what *rate.Limiter of golang.org/x/time/rate is. Sources that share
// an API key share one. A Limiter that also has Refused(retryAfter
// time.Duration) is told of each 429, by sources and by Transports on them, with
// what Retry-After asks for, or 0.
type Limiter interface {
	Wait(ctx context.Context) error
}

// WithLimiter makes each token and revoke request wait for l first. Time in line
// does not count towards [WithTimeout], which starts when l lets the first
// request go. After a 429 a request waits for as long as the server asks for and
// gets in line again, as long as a caller waits for it, and for an hour at most.
// Default: no limiter, and a 429 is retried like any temporary failure.
func WithLimiter(l Limiter) Option {
	return option(l != nil, func(c *setup) { c.limiter = l }, "WithLimiter: the limiter is nil: leave the option out to do without")
}
