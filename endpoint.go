package moovauth

// This file is the wire: it builds a grant or a revocation request, reads the
// reply, and tries again where that may help. It keeps nothing between two
// grants.

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"time"

	"golang.org/x/oauth2"

	"github.com/moovauth/moovauth/internal/redact"
)

const (
	tokenPath  = "/oauth2/token"
	revokePath = "/oauth2/revoke"

	// userAgent names the package and its version, which CHANGELOG.md has too.
	userAgent = "moovauth/0.1.0"

	maxBody = 1 << 20 // bytes of a reply that are read

	leastDelay   = 50 * time.Millisecond  // while a token is in hand
	maxAttempts  = 3                      // of one request
	maxAsked     = time.Hour              // of a Retry-After
	firstBackOff = 200 * time.Millisecond // doubled with each attempt

	assumedLifetime = 5 * time.Minute // of a token that does not say
	maxLifetime     = 24 * time.Hour
)

// The grant types (RFC 6749 §4.4.2 and §6).
const (
	grantClientCredentials = "client_credentials"
	grantRefreshToken      = "refresh_token"
)

// endpoint makes requests to Moov's token and revoke endpoints.
type endpoint struct {
	*config
	strict *http.Client // config's client, but it follows no redirect
}

func newEndpoint(c *config) *endpoint {
	strict := *c.client
	strict.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &endpoint{config: c, strict: &strict}
}

// reply is what a token request was answered with.
type reply struct {
	token     *oauth2.Token // without its Expiry, which depends on the caller's clock
	sent      instant       // when the request was
	lifetime  time.Duration // from then on
	requestID string
	warning   string // what was odd about the lifetime; "": nothing
}

// token makes a token request. What hide has is masked in the error.
func (e *endpoint) token(ctx context.Context, left func() time.Duration, grantType string, form url.Values, hide *redact.Set) (r *reply, err error) {
	form.Set("grant_type", grantType)
	err = e.attempt(ctx, left, func() error {
		r, err = e.tokenOnce(ctx, grantType, form, hide)
		return err
	}, "grant_type", grantType)
	return r, err
}

func (e *endpoint) tokenOnce(ctx context.Context, grantType string, form url.Values, hide *redact.Set) (*reply, error) {
	sent := e.clock()
	resp, body, err := e.post(ctx, tokenPath, form)
	if err != nil {
		return nil, hide.Error(fmt.Sprintf("moovauth: token request (%s) to %s", grantType, e.url(tokenPath)), err)
	}
	if resp.StatusCode/100 != 2 {
		refused := newError(opToken, grantType, resp, body, hide)
		refused.advise(e.scopes, e.origin != "")
		return nil, refused
	}
	r, err := readToken(resp.Header, body, sent.time())
	if errors.Is(err, errNoToken) {
		// Some servers refuse with 200 and an error member.
		if refused := newError(opToken, grantType, resp, body, hide); refused.Code != "" {
			refused.advise(e.scopes, e.origin != "")
			return nil, refused
		}
	}
	if err != nil {
		return nil, unusableReply(grantType, resp, body, err, hide)
	}
	r.sent = sent
	hide.Add(r.token.AccessToken, r.token.RefreshToken)
	r.requestID = hide.Text(r.requestID)
	return r, nil
}

// revoke makes a revocation request (RFC 7009 §2.1).
func (e *endpoint) revoke(ctx context.Context, token string, hint TokenTypeHint, hide *redact.Set) error {
	form := url.Values{"token": {token}}
	if hint != "" {
		form.Set("token_type_hint", string(hint))
	}
	none := func() time.Duration { return 0 }
	return e.attempt(ctx, none, func() error { return e.revokeOnce(ctx, form, hide) }, "token_type_hint", hint)
}

func (e *endpoint) revokeOnce(ctx context.Context, form url.Values, hide *redact.Set) error {
	resp, body, err := e.post(ctx, revokePath, form)
	if err != nil {
		return hide.Error("moovauth: revoke request to "+e.url(revokePath), err)
	}
	if resp.StatusCode/100 != 2 {
		refused := newError(opRevoke, "", resp, body, hide)
		refused.advise(e.scopes, e.origin != "")
		return refused
	}
	return nil
}

// attempt makes a request up to three times, as long as its failure is
// temporary, and the next attempt is due before ctx ends and before the token
// in hand, if there is one, expires. left is how long that one is good; attrs
// tell the log which request it is.
func (e *endpoint) attempt(ctx context.Context, left func() time.Duration, request func() error, attrs ...any) error {
	for n := 1; ; n++ {
		err := request()
		switch {
		case err == nil || ctx.Err() != nil || !temporary(err):
			return err
		case n == maxAttempts:
			return fmt.Errorf("%w (after %d attempts)", err, n)
		}
		good := left()
		delay := e.delay(time.Duration(e.random()*float64(firstBackOff<<(n-1))), good, err)
		if deadline, ok := ctx.Deadline(); ok && delay >= time.Until(deadline) || good > 0 && delay >= good {
			return fmt.Errorf("%w (not tried again within this grant: the next attempt would be due in %v)", err, delay.Round(time.Millisecond))
		}
		e.logger.DebugContext(ctx, "moovauth: attempt failed", append(attrs, "attempt", n, "delay", delay, "error", err)...)
		timer := time.NewTimer(delay)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("%w (not tried again: %w)", err, ctx.Err())
		}
	}
}

// delay is how long to leave the server alone after err: for backOff, but while
// the token in hand is good for at most half of the time that it has left, so
// that attempts come closer together as its expiry nears. What the server asked
// for counts if it is more, and has some jitter added, so that a fleet that is
// told the same does not come back in step.
func (e *endpoint) delay(backOff, good time.Duration, err error) time.Duration {
	if good > 0 {
		backOff = min(backOff, max(good/2, leastDelay))
	}
	var refused *Error
	if errors.As(err, &refused) {
		asked := min(refused.RetryAfter, maxAsked)
		backOff = max(backOff, asked+time.Duration(e.random()*float64(min(asked/10, time.Second))))
	}
	return backOff
}

// limit bounds a grant or a revocation.
func (e *endpoint) limit(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeoutCause(ctx, e.timeout, fmt.Errorf("not done within %v (see WithTimeout): %w", e.timeout, context.DeadlineExceeded))
}

func (e *endpoint) url(path string) string { return e.baseURL.String() + path }

// post sends form with the client's credentials, and reads the whole reply.
func (e *endpoint) post(ctx context.Context, path string, form url.Values) (*http.Response, []byte, error) {
	if e.authStyle == oauth2.AuthStyleInParams {
		form.Set("client_id", e.creds.ClientID)
		form.Set("client_secret", e.creds.ClientSecret)
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, e.url(path), strings.NewReader(form.Encode()))
	if err != nil {
		return nil, nil, err
	}
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", userAgent)
	req.Header.Set(VersionHeader, e.version)
	if e.origin != "" {
		req.Header.Set("Origin", e.origin)
	}
	if e.authStyle != oauth2.AuthStyleInParams {
		// As they are: Moov, unlike RFC 6749 §2.3.1, does not form-encode them first.
		req.SetBasicAuth(e.creds.ClientID, e.creds.ClientSecret)
	}
	resp, err := e.strict.Do(req)
	if err != nil {
		if wrapped := new(url.Error); errors.As(err, &wrapped) {
			err = wrapped.Err // the caller names the URL
		}
		return nil, nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return resp, nil, nil // its body is the connection, which does not heed ctx
	}
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxBody+1))
	if err == nil && len(body) > maxBody {
		err = fmt.Errorf("it is larger than %d bytes", maxBody)
	}
	switch {
	case err == nil:
		return resp, body, nil
	case resp.StatusCode/100 != 2:
		return resp, nil, nil // the status says enough
	}
	return nil, nil, fmt.Errorf("reading the reply: %w", err)
}

var errNoToken = errors.New("it has no access_token")

// readToken reads a successful reply (RFC 6749 §5.1) to a request sent at
// sent. The type of its content is what it parses as, whatever it is called.
func readToken(header http.Header, body []byte, sent time.Time) (*reply, error) {
	var raw map[string]json.RawMessage
	if err := json.Unmarshal(bytes.TrimPrefix(body, []byte("\xef\xbb\xbf")), &raw); err != nil {
		return nil, fmt.Errorf("want a JSON object, got %d bytes of type %q (is a proxy in between?): %w", len(body), header.Get("Content-Type"), err)
	}
	members := make(map[string]any, len(raw))
	for name, text := range raw {
		var v any
		if json.Unmarshal(text, &v) == nil { // a number may be too large
			members[name] = v
		}
	}
	access, _ := members["access_token"].(string)
	if access == "" {
		return nil, errNoToken
	}
	if !usable(access) {
		return nil, errors.New("its access_token is not visible ASCII (RFC 6750 §2.1)")
	}
	tokenType, ok := members["token_type"].(string)
	if !ok && members["token_type"] != nil {
		return nil, errors.New("its token_type is not a string")
	}
	refresh, _ := members["refresh_token"].(string)
	scheme, err := bearer(tokenType)
	if err != nil {
		return nil, err
	}
	r := &reply{requestID: header.Get("X-Request-Id")}
	r.lifetime, r.warning = lifetime(members["expires_in"], header, sent)
	t := &oauth2.Token{
		AccessToken:  access,
		TokenType:    scheme,
		RefreshToken: refresh,
		ExpiresIn:    int64(r.lifetime / time.Second),
	}
	delete(members, "access_token") // it has a field, and is long
	r.token = t.WithExtra(members)
	return r, nil
}

// lifetime reads expires_in. Moov documents a Unix timestamp, and has answered
// with seconds (RFC 6749 §5.1): from 1e9 on it is taken for a timestamp. The
// timestamp is read against the reply's Date, so that a wrong local clock
// does not matter. The server has just handed out the token, so one that is
// said to be dead already, or does not say, is used for a short time. The
// warning says what was assumed.
func lifetime(expiresIn any, header http.Header, sent time.Time) (life time.Duration, warning string) {
	var seconds float64
	switch v := expiresIn.(type) {
	case float64:
		seconds = v
	case string:
		if json.Unmarshal([]byte(v), &seconds) != nil {
			seconds = 0
		}
	}
	if seconds >= 1e9 {
		now := sent
		if date, err := http.ParseTime(header.Get("Date")); err == nil {
			now = date
		}
		seconds -= float64(now.UnixMilli()) / 1e3
	}
	switch {
	case seconds < 1:
		return assumedLifetime, "expires_in is absent, unreadable or in the past: 5 minutes are assumed"
	case seconds > maxLifetime.Seconds():
		return maxLifetime, "expires_in is more than 24 hours ahead: 24 hours are assumed"
	}
	return time.Duration(seconds * float64(time.Second)), ""
}

// bearer is the scheme of the Authorization header for a token_type. Older
// pages of Moov's documentation name the token's format there.
func bearer(tokenType string) (string, error) {
	switch strings.ToLower(tokenType) {
	case "", "bearer", "opaque", "jwt":
		return "Bearer", nil
	}
	return "", fmt.Errorf("the token type %s is not Bearer", shownType(tokenType))
}

// usable reports whether token can stand in an Authorization header.
func usable(token string) bool {
	return token != "" && strings.IndexFunc(token, func(r rune) bool { return !visibleASCII(r) }) < 0
}

func visibleASCII(r rune) bool { return '!' <= r && r <= '~' }
