package moovauth

import (
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

// sourceAt returns a source for baseURL that has a token.
func sourceAt(t *testing.T, baseURL string) *TokenSource {
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL(baseURL), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	return s
}

func TestTokenGoesOnlyToTrustedHosts(t *testing.T) {
	t.Parallel()
	type list = []string
	gateway, local := sourceAt(t, "https://Gateway.example.com:8443/moov"), sourceAt(t, "http://localhost")
	for _, c := range []struct {
		name   string
		source oauth2.TokenSource
		hosts  []string
		target string
		want   string // "": the token is sent; else a part of the error
	}{
		{"the API", static, nil, "https://api.moov.io/ping", ""},
		{"upper case, with its port", static, nil, "https://API.moov.io:443/ping", ""},
		{"another port", static, nil, "https://api.moov.io:444/ping", "Transport.Hosts"},
		{"a subdomain", static, nil, "https://x.api.moov.io/ping", "Transport.Hosts"},
		{"a longer name", static, nil, "https://api.moov.io.example.com/ping", "Transport.Hosts"},
		{"a trailing dot", static, nil, "https://api.moov.io./ping", "Transport.Hosts"},
		{"a user name", static, nil, "https://api.moov.io@example.com/ping", "Transport.Hosts"},
		{"plain http", static, nil, "http://api.moov.io/ping", "https"},
		{"plain http on 443", static, nil, "http://api.moov.io:443/ping", "https"},
		{"loopback, not listed", static, nil, "http://localhost/ping", "Transport.Hosts"},
		{"the source's base URL", gateway, nil, "https://gateway.example.com:8443/anything", ""},
		{"the source's base URL, without the port", gateway, nil, "https://gateway.example.com/moov", "Transport.Hosts"},
		{"the default host, with a source elsewhere", gateway, nil, "https://api.moov.io/ping", "Transport.Hosts"},
		{"a listed host", static, list{"a.example.com", "B.example.com:8443"}, "https://b.example.com:8443/", ""},
		{"another listed host", static, list{"a.example.com", "b.example.com:8443"}, "https://a.example.com/", ""},
		{"the default host, if others are listed", static, list{"a.example.com"}, "https://api.moov.io/", "Transport.Hosts"},
		{"listed loopback", static, list{"127.0.0.1:8080"}, "http://127.0.0.1:8080/", ""},
		{"listed loopback on port 80", static, list{"localhost:80"}, "http://localhost/", ""},
		{"listed loopback without a port", static, list{"localhost"}, "http://localhost/", "Transport.Hosts"},
		{"listed loopback on another port", static, list{"127.0.0.1:8080"}, "http://127.0.0.1:8081/", "Transport.Hosts"},
		{"listed IPv6 loopback", static, list{"[::1]:8080"}, "http://[::1]:8080/", ""},
		{"listed, but plain http", static, list{"a.example.com"}, "http://a.example.com/", "https"},
		{"another scheme", static, nil, "ftp://api.moov.io/", "https"},
		{"an empty port", static, nil, "https://api.moov.io:/ping", ""},
		{"a port with a zero before it", static, nil, "https://api.moov.io:0443/ping", "Transport.Hosts"},
		{"a user name before the host", static, nil, "https://user:password@api.moov.io/ping", ""},
		{"a name below localhost", static, list{"api.localhost"}, "http://api.localhost/", "use https"},
		{"localhost with a trailing dot", static, list{"localhost."}, "http://localhost./", "use https"},
		{"a name that folds to localhost", static, list{"localho\u017ft"}, "http://localho\u017ft/", "use https"},
		{"the unspecified address", static, list{"0.0.0.0"}, "http://0.0.0.0/", "use https"},
		{"an internationalized name", static, list{"b\u00fccher.example"}, "https://b\u00fccher.example/", ""},
		{"its Punycode form", static, list{"b\u00fccher.example"}, "https://xn--bcher-kva.example/", "Transport.Hosts"},
		{"a dotted İ, which Unicode folds to i", static, list{"bilbao.example"}, "https://b\u0130lbao.example/", "Transport.Hosts"},
		{"a Kelvin sign, which Unicode folds to k", static, list{"kelvin.example"}, "https://\u212aelvin.example/", "Transport.Hosts"},
		{"a wide spelling of the API", static, nil, "https://\uff41pi.moov.io/", "Transport.Hosts"},
		{"no host", static, nil, "https:///ping", "Transport.Hosts"},
		{"no scheme", static, nil, "//api.moov.io/ping", "use https"},
		{"the loopback base URL", local, nil, "http://localhost/ping", ""},
		{"the loopback base URL, by https", local, nil, "https://localhost/ping", "Transport.Hosts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := new(sink)
			_, err := roundTrip(t, &Transport{Source: c.source, Hosts: c.hosts, Base: base}, c.target)
			if c.want != "" {
				require.ErrorContains(t, err, c.want)
				require.ErrorAs(t, err, new(*HostError))
				assert.Nil(t, base.last, "nothing is sent")
				return
			}
			require.NoError(t, err)
			assert.True(t, strings.HasPrefix(base.last.Header.Get("Authorization"), "Bearer "))
		})
	}
}

func TestHostErrorSaysWhereTheTokenMayGo(t *testing.T) {
	t.Parallel()
	for _, c := range []struct {
		transport *Transport
		target    string
		want      HostError
		text      string
	}{
		{
			&Transport{Source: static}, "https://user:password@example.com/a%2Fb?q=secret#f",
			HostError{"https://example.com/a%2Fb", []string{"api.moov.io"}},
			"moovauth: the token is not sent to https://example.com/a%2Fb, only to api.moov.io: add the host to Transport.Hosts, or use another client",
		},
		{
			&Transport{Source: static, Hosts: []string{"A.example.com", "b.example.com:8443"}}, "https://example.com",
			HostError{"https://example.com", []string{"A.example.com", "b.example.com:8443"}},
			"moovauth: the token is not sent to https://example.com, only to A.example.com, b.example.com:8443: add the host to Transport.Hosts, or use another client",
		},
		{
			&Transport{Source: static}, "http://api.moov.io/ping",
			HostError{"http://api.moov.io/ping", []string{"api.moov.io"}},
			"moovauth: the token is not sent to http://api.moov.io/ping, which is neither https nor a loopback address: use https",
		},
	} {
		_, err := (&http.Client{Transport: c.transport}).Get(c.target)
		var got *HostError
		require.ErrorAs(t, err, &got)
		assert.Equal(t, c.want, *got)
		assert.EqualError(t, got, c.text)
	}
}

func TestInvalidHosts(t *testing.T) {
	t.Parallel()
	for _, host := range []string{
		"", " ", "https://api.moov.io", "api.moov.io/", "api.moov.io/x", "api.moov.io?", "api.moov.io#", "user@api.moov.io", "*.moov.io", "*",
		".moov.io ", "api.moov.io:", ":443", "api.moov.io:https", "api.moov.io:443:443",
		"a.example,b.example", "::1", "[::1", "::1]", "[::1]x", "[localhost]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "api.moov.io\n", "a%2eb",
	} {
		base := new(sink)
		_, err := roundTrip(t, &Transport{Source: static, Base: base, Hosts: []string{"api.moov.io", host}}, DefaultBaseURL)
		assert.ErrorContains(t, err, "Transport.Hosts: want a host", "%q", host)
		assert.Nil(t, base.last)
	}
}

// The caller's client credentials are sent only to the endpoints of the source.
// If the source cannot say where its endpoints are, a request to these paths on
// any listed host keeps the caller's credentials.
func TestOnlyTheSourcesEndpointsGetClientCredentials(t *testing.T) {
	t.Parallel()
	moov, gateway := sourceAt(t, DefaultBaseURL), sourceAt(t, "https://gateway.example/a%2Fb")
	for _, c := range []struct {
		source oauth2.TokenSource
		target string
		want   string
	}{
		{moov, "https://api.moov.io/oauth2/token", "Basic"},
		{moov, "https://API.moov.io:443/oauth2/revoke?x", "Basic"},
		{moov, "https://gateway.example/oauth2/token", "Bearer"},
		{moov, "https://api.moov.io/oauth2%2Ftoken", "Bearer"},
		{moov, "https://api.moov.io/oauth2/token/", "Bearer"},
		{moov, "https://api.moov.io/x/oauth2/token", "Bearer"},
		{gateway, "https://gateway.example/a%2Fb/oauth2/token", "Basic"},
		{gateway, "https://gateway.example/a%2Fb/oauth2/revoke", "Basic"},
		{gateway, "https://gateway.example/a/b/oauth2/token", "Bearer"},
		{gateway, "https://gateway.example/oauth2/token", "Bearer"},
		{static, "https://gateway.example/oauth2/token", "Basic"},
	} {
		base := new(sink)
		req, err := http.NewRequest(http.MethodPost, c.target, nil)
		require.NoError(t, err)
		req.SetBasicAuth("a", "b")
		_, err = (&Transport{Source: c.source, Base: base, Hosts: []string{"api.moov.io", "gateway.example"}}).RoundTrip(req)
		require.NoError(t, err)
		assert.Contains(t, base.last.Header.Get("Authorization"), c.want, c.target)
	}
}

// Whatever Hosts lists and whatever is requested, a token is sent only to a
// listed host, over https or to a loopback address. Redirects are no exception.
func FuzzHosts(f *testing.F) {
	for _, c := range [][2]string{
		{"api.moov.io", "https://api.moov.io/ping"}, {"localhost:80", "http://localhost/"}, {"[::1]:8080", "http://[::1]:8080"},
		{"api.moov.io", "https://api.moov.io@example.com/"}, {"a", "https://a.b"}, {"A", "https://a:443"}, {"h:0", "https://h:00"},
		{"localhost", "http://localhost:443"}, {"[fe80::1]", "https://[fe80::1%25a]"}, {"k", "https://\u212a"}, {"a:1", "//a:1"},
	} {
		f.Add(c[0], c[1])
	}
	f.Fuzz(func(t *testing.T, host, target string) {
		req, err := http.NewRequest(http.MethodGet, target, nil)
		if err != nil {
			return
		}
		base := new(sink)
		tr := &Transport{Source: static, Base: base, Hosts: []string{"listed.example:8443", host}}
		_, err = tr.RoundTrip(req)
		sent := base.last
		req.Response = new(http.Response)
		_, _ = tr.RoundTrip(req)
		if err != nil {
			require.Nil(t, sent)
			if base.last != nil {
				require.Empty(t, base.last.Header["Authorization"], "redirect of %q to %q", host, target)
			}
			return
		}
		require.Equal(t, []string{"Bearer static"}, sent.Header["Authorization"])
		to := dialed(t, sent)
		require.Contains(t, append(dialable(host), "listed.example:8443"), to.address, "%q for %q", target, host)
		if to.scheme != "https" {
			require.Equal(t, "http", to.scheme)
			require.True(t, loopback(to.host), target)
		}
	})
}

type dial struct{ scheme, host, address string }

// dialed returns where net/http would connect for req, with ASCII letters in
// lower case. It reads the URL's authority as text, without the code of
// hosts.go.
func dialed(t *testing.T, req *http.Request) dial {
	port := map[string]string{"http": "80", "https": "443"}[req.URL.Scheme]
	require.NotEmpty(t, port)
	authority := strings.TrimSuffix(asciiLower(req.URL.Host), ":")
	host, given, err := net.SplitHostPort(authority)
	if err != nil {
		host, given = strings.Trim(authority, "[]"), port
	}
	return dial{req.URL.Scheme, host, net.JoinHostPort(host, given)}
}

// dialable returns the addresses to which an entry of Hosts allows a
// connection.
func dialable(entry string) []string {
	entry = asciiLower(entry)
	if host, port, err := net.SplitHostPort(entry); err == nil {
		return []string{net.JoinHostPort(host, port)}
	}
	return []string{net.JoinHostPort(strings.Trim(entry, "[]"), "443")}
}

func loopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.Unmap().IsLoopback() && ip.Zone() == ""
}

func asciiLower(s string) string {
	text := []byte(s)
	for i, b := range text {
		if 'A' <= b && b <= 'Z' {
			text[i] += 'a' - 'A'
		}
	}
	return string(text)
}
