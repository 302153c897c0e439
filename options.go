package moovauth

// This file holds the options. It refuses what cannot work before any request
// is made.

import (
	"context"
	"encoding/base64"
	"encoding/json"
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
	"time"
	"unicode"

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

// Credentials identify an API key. When they are printed, formatted, logged or
// marshaled, the secret is masked. There is one exception: package fmt cannot
// call the methods of a value in an unexported field, so Credentials in such a
// field of your own struct print in the clear.
type Credentials struct {
	ClientID     string // the public key in Moov's dashboard
	ClientSecret string // the secret key in Moov's dashboard
}

// String returns c with the secret masked.
func (c Credentials) String() string {
	return fmt.Sprintf("{ClientID:%s ClientSecret:%s}", c.ClientID, redact.Mask)
}

// Format implements [fmt.Formatter]. Every verb prints [Credentials.String].
func (c Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, c.String()) }

// MarshalJSON implements [json.Marshaler]. It returns an object with the secret
// masked.
func (c Credentials) MarshalJSON() ([]byte, error) {
	return json.Marshal(map[string]string{"ClientID": c.ClientID, "ClientSecret": redact.Mask})
}

// MarshalText implements [encoding.TextMarshaler] with the secret masked.
func (c Credentials) MarshalText() ([]byte, error) { return []byte(c.String()), nil }

func (c Credentials) check() error {
	for _, f := range []struct{ name, value, dashboard string }{
		{"ClientID", c.ClientID, "public key"},
		{"ClientSecret", c.ClientSecret, "secret key"},
	} {
		switch {
		case f.value == "":
			return fmt.Errorf("moovauth: Credentials.%s is empty: set it to the API key's %s from Moov's dashboard", f.name, f.dashboard)
		case strings.ContainsFunc(f.value, func(r rune) bool { return unicode.IsSpace(r) || unicode.IsControl(r) || r == '\ufeff' }):
			return fmt.Errorf("moovauth: Credentials.%s contains white space or a control character: trim what was read from the file or variable", f.name)
		}
	}
	if strings.Trim(c.ClientSecret, "*") == "" {
		return errors.New("moovauth: Credentials.ClientSecret is the mask of a log or of JSON: set it to the API key's secret key from Moov's dashboard")
	}
	return nil
}

// secrets returns what no error or log record may show.
func (c Credentials) secrets() []string {
	return []string{c.ClientSecret, base64.StdEncoding.EncodeToString([]byte(c.ClientID + ":" + c.ClientSecret))}
}

var discard = slog.New(slog.DiscardHandler)

// config is the result of all options. It does not change after the
// constructor.
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
	logger    *slog.Logger
	limiter   Limiter       // nil: none
	cache     Cache         // nil: none
	token     *oauth2.Token // to start from; nil: none
	hint      TokenTypeHint // of Revoke; "": none is sent

	clock  func() instant
	random func() float64 // in [0, 1)
}

// An Option configures [NewTokenSource], [RequestToken] or [Revoke]. If an
// option is given twice, the last one applies.
type Option func(*config) error

// newConfig applies the options, and checks everything that can be checked
// without the network.
func newConfig(creds Credentials, opts []Option) (*config, error) {
	if err := creds.check(); err != nil {
		return nil, err
	}
	c := &config{creds: creds, version: DefaultVersion, baseURL: DefaultBaseURL, client: http.DefaultClient,
		early: -1, timeout: defaultTimeout, logger: discard, clock: clock, random: rand.Float64}
	for i, opt := range opts {
		if opt == nil {
			return nil, fmt.Errorf("moovauth: option %d is nil: leave it out", i+1)
		}
		if err := opt(c); err != nil {
			return nil, fmt.Errorf("moovauth: %w", redact.Error(err, creds.secrets()...)) // the secret may be in the wrong place
		}
	}
	return c, nil
}

// option returns an Option that calls set if ok is true. Otherwise it returns
// an error that says what is wanted.
func option(ok bool, set func(*config), wanted string, args ...any) Option {
	return func(c *config) error {
		if !ok {
			return fmt.Errorf(wanted, args...)
		}
		set(c)
		return nil
	}
}

// WithScopes sets what a token may do (RFC 6749 §3.3), such as /ping.read.
// Replace {accountID} in Moov's documentation with the account's ID, as in
// /accounts/6f9c…/transfers.write. A scope must start with a slash, and must
// not contain white space, a comma or a brace. Give each scope as its own
// argument.
func WithScopes(scopes ...string) Option {
	return func(c *config) error {
		for _, s := range scopes {
			switch {
			case strings.ContainsFunc(s, unicode.IsSpace) || strings.Contains(s, ","):
				return fmt.Errorf("WithScopes: %s looks like several scopes: give each as an argument of its own", quoted(s))
			case strings.ContainsAny(s, "{}"):
				return fmt.Errorf("WithScopes: %s contains a placeholder: put the account's ID there", quoted(s))
			case !strings.HasPrefix(s, "/"):
				return fmt.Errorf(`WithScopes: %s lacks the leading slash: Moov's scopes look like "/ping.read"`, quoted(s))
			}
		}
		c.scopes = slices.Clone(scopes)
		return nil
	}
}

// WithOrigin sets the Origin header of token and revoke requests: a scheme and
// a host without a path, such as https://example.com. It must match an entry of
// the API key's allowed-domain list. Moov's documentation says that a token
// request must have an Origin, so set it in production. By default, none is
// sent.
func WithOrigin(origin string) Option {
	u, err := url.Parse(origin)
	ok := err == nil && (u.Scheme == "https" || u.Scheme == "http") && u.Hostname() != "" && origin == u.Scheme+"://"+u.Host
	return option(ok, func(c *config) { c.origin = origin },
		`WithOrigin: want only a scheme and a host, such as "https://example.com", without a path or a slash at the end`)
}

// WithVersion sets the X-Moov-Version header. Its form is vYYYY.QQ.BB, such as
// v2026.07.00; dev and latest are also possible. The default is
// [DefaultVersion].
func WithVersion(version string) Option {
	err := checkVersion(version)
	return option(err == nil, func(c *config) { c.version = version }, "WithVersion: %w", err)
}

var versionShape = regexp.MustCompile(`^(v[0-9]{4}\.[0-9]{2}\.[0-9]{2}|dev|latest)$`)

func checkVersion(v string) error {
	if !versionShape.MatchString(v) {
		return fmt.Errorf("want vYYYY.QQ.BB, such as v2026.07.00, or dev or latest; got %q", v)
	}
	return nil
}

// WithBaseURL sets the URL of the API, for a gateway or a test server. It must
// be an https URL, or an http URL of a loopback address. /oauth2/token and
// /oauth2/revoke are appended to its path. The default is [DefaultBaseURL].
func WithBaseURL(baseURL string) Option {
	return func(c *config) error {
		u, err := url.Parse(baseURL)
		switch {
		case err != nil || u.Hostname() == "" || u.User != nil || u.RawQuery != "" || u.ForceQuery || u.Fragment != "":
			return fmt.Errorf("WithBaseURL: want an absolute URL, such as %q, without credentials, query or fragment", DefaultBaseURL)
		case !secure(u):
			return fmt.Errorf("WithBaseURL: %s://%s is not https: credentials and tokens are sent in the clear only to a loopback address", u.Scheme, u.Host)
		case strings.Contains(u.Path, endpointPath):
			return errors.New("WithBaseURL: leave /oauth2/token and /oauth2/revoke out: they are added")
		}
		u.Path, u.RawPath = strings.TrimRight(u.Path, "/"), strings.TrimRight(u.RawPath, "/")
		c.baseURL = u.String()
		return nil
	}
}

// WithHTTPClient sets the client that makes token and revoke requests, for a
// proxy, a client certificate or tracing. Its Timeout applies to each attempt.
// Redirects of these requests are not followed: the client's CheckRedirect is
// ignored, and its Transport must not follow them. [TokenSource.Client] uses a
// copy of this client for API calls. The default is [http.DefaultClient].
func WithHTTPClient(client *http.Client) Option {
	return option(client != nil, func(c *config) { c.client = client },
		"WithHTTPClient: the client is nil: leave the option out for http.DefaultClient")
}

// WithAuthStyle sets how the client ID and secret are sent. With
// [oauth2.AuthStyleInHeader], the default, they are sent as HTTP Basic (RFC
// 6749 §2.3.1), but without form-encoding, as Moov documents it. With
// [oauth2.AuthStyleInParams] they are sent in the body.
// [oauth2.AuthStyleAutoDetect] means the default.
func WithAuthStyle(style oauth2.AuthStyle) Option {
	return option(oauth2.AuthStyleAutoDetect <= style && style <= oauth2.AuthStyleInHeader, func(c *config) { c.authStyle = style },
		"WithAuthStyle: want oauth2.AuthStyleInHeader or oauth2.AuthStyleInParams, got %d", style)
}

// WithToken makes a source start with a token that was obtained earlier. t may
// hold a refresh token without an access token. An access token without an
// Expiry is used for 5 minutes. An Expiry more than 30 days ahead counts as 30
// days. With [WithCache], the source does not send the refresh token, since
// another process may send it. [RequestToken] uses the refresh token of t.
func WithToken(t *oauth2.Token) Option {
	return func(c *config) error {
		if t == nil || t.AccessToken == "" && t.RefreshToken == "" {
			return errors.New("WithToken: the token has neither an access token nor a refresh token: leave the option out to start without one")
		}
		if t.AccessToken != "" && !headerSafe(t.AccessToken) {
			return errors.New("WithToken: the access token is not visible ASCII (RFC 6750 §2.1)")
		}
		scheme, err := bearer(t.TokenType)
		if err != nil {
			return fmt.Errorf("WithToken: %w", err)
		}
		saved := *t
		saved.TokenType = scheme
		c.token = &saved
		return nil
	}
}

// WithEarlyRefresh sets how long before its hard expiry a token is refreshed. A
// random part of that time, a tenth at most, is subtracted, so that the replicas of
// a fleet do not refresh all at once. The first call after that moment starts the
// refresh in the background and returns the current token. A value of more than
// four fifths of the token's lifetime counts as four fifths. With 0, no token is
// refreshed early, and callers wait at each expiry. The default is a fifth of the
// lifetime, 5 minutes at most.
func WithEarlyRefresh(d time.Duration) Option {
	return option(d >= 0, func(c *config) { c.early = d }, "WithEarlyRefresh: want a duration of 0 or more, got %v", d)
}

// WithTimeout bounds the time that a source's token request, a [RequestToken]
// or a Revoke may take with all its retries. The time that they wait for a
// [Limiter] does not count. The minimum is 1 ms. The default is 30 s.
func WithTimeout(d time.Duration) Option {
	return option(d >= time.Millisecond, func(c *config) { c.timeout = min(d, maxLifetime) }, "WithTimeout: want a duration of 1 ms or more, such as 5*time.Second; got %v", d)
}

// WithLogger sets the logger for token requests, revocations and failures. No
// record contains a secret. docs/operations.md lists the records. By default,
// nothing is logged.
func WithLogger(l *slog.Logger) Option {
	return option(l != nil, func(c *config) { c.logger = l }, "WithLogger: the logger is nil: leave the option out to log nothing")
}

// WithTokenTypeHint tells [Revoke] which kind of token it is given, so that the
// server finds the token sooner (RFC 7009 §2.1). By default, no hint is sent.
func WithTokenTypeHint(hint TokenTypeHint) Option {
	return option(hint == AccessToken || hint == RefreshToken, func(c *config) { c.hint = hint },
		"WithTokenTypeHint: want moovauth.AccessToken or moovauth.RefreshToken, got %q", hint)
}

// Limiter paces token and revoke requests. A [*rate.Limiter] of
// golang.org/x/time/rate is a Limiter. Sources with the same API key should
// share a Limiter.
//
// A Limiter may have two more methods. Refused(retryAfter time.Duration) is
// called after each 429 to a token or revoke request. retryAfter is
// [Error].RetryAfter: the time that the server asks for, or 0. Unused() is
// called if a request that Wait has admitted is not made after all. That
// happens if another process has put a token into the cache meanwhile, or if
// the current token expired while its background refresh waited.
//
// [*rate.Limiter]: https://pkg.go.dev/golang.org/x/time/rate#Limiter
type Limiter interface {
	Wait(ctx context.Context) error
}

// WithLimiter makes each token and revoke request wait for l first. The context
// of Wait has no deadline, but it may be canceled. The time of these waits does
// not count towards [WithTimeout]. If Wait returns an error, the request fails.
// After a 429, a request waits for as long as the server asks, and then calls
// Wait again. It repeats this while a caller waits for the result. By default
// there is no limiter, and a 429 is retried like any other temporary failure.
func WithLimiter(l Limiter) Option {
	return option(l != nil, func(c *config) { c.limiter = l }, "WithLimiter: the limiter is nil: leave the option out to do without")
}

// log adds the client ID and the scopes, so that a record tells which source it
// is from.
func (c *config) log(level slog.Level, msg string, attrs ...any) {
	scopes := cut(strings.Join(c.scopes[:min(len(c.scopes), 3)], " "), maxShort)
	c.logger.Log(context.Background(), level, msg, append(attrs, "client_id", c.creds.ClientID, "scopes", scopes)...)
}
