package moovauth

import (
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/oauth2"
)

func TestTokenGoesToTrustedHostsAlone(t *testing.T) {
	t.Parallel()
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("https://Gateway.example.com:8443/moov"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	local, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("http://localhost"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	zoned, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("https://[fe80::1%25eth0]"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	for _, c := range []struct {
		name      string
		transport *Transport
		target    string
		want      string // "": goes; else in the error
	}{
		{"the API", &Transport{Source: static}, "https://api.moov.io/ping", ""},
		{"upper case, with its port", &Transport{Source: static}, "https://API.moov.io:443/ping", ""},
		{"another port", &Transport{Source: static}, "https://api.moov.io:444/ping", "Transport.Hosts"},
		{"a subdomain", &Transport{Source: static}, "https://x.api.moov.io/ping", "Transport.Hosts"},
		{"a longer name", &Transport{Source: static}, "https://api.moov.io.example.com/ping", "Transport.Hosts"},
		{"a trailing dot", &Transport{Source: static}, "https://api.moov.io./ping", "Transport.Hosts"},
		{"a user name", &Transport{Source: static}, "https://api.moov.io@example.com/ping", "Transport.Hosts"},
		{"plain http", &Transport{Source: static}, "http://api.moov.io/ping", "https"},
		{"plain http on 443", &Transport{Source: static}, "http://api.moov.io:443/ping", "https"},
		{"loopback, not listed", &Transport{Source: static}, "http://localhost/ping", "Transport.Hosts"},
		{"the source's base URL", &Transport{Source: s}, "https://gateway.example.com:8443/anything", ""},
		{"the source's, without the port", &Transport{Source: s}, "https://gateway.example.com/moov", "Transport.Hosts"},
		{"not the default with a source", &Transport{Source: s}, "https://api.moov.io/ping", "Transport.Hosts"},
		{"a listed host", &Transport{Source: static, Hosts: []string{"a.example.com", "B.example.com:8443"}}, "https://b.example.com:8443/", ""},
		{"another listed host", &Transport{Source: static, Hosts: []string{"a.example.com", "b.example.com:8443"}}, "https://a.example.com/", ""},
		{"the default if hosts are listed", &Transport{Source: static, Hosts: []string{"a.example.com"}}, "https://api.moov.io/", "Transport.Hosts"},
		{"listed loopback", &Transport{Source: static, Hosts: []string{"127.0.0.1:8080"}}, "http://127.0.0.1:8080/", ""},
		{"listed loopback without a port", &Transport{Source: static, Hosts: []string{"localhost"}}, "http://localhost/", ""},
		{"listed loopback on another port", &Transport{Source: static, Hosts: []string{"127.0.0.1:8080"}}, "http://127.0.0.1:8081/", "Transport.Hosts"},
		{"listed IPv6 loopback", &Transport{Source: static, Hosts: []string{"[::1]:8080"}}, "http://[::1]:8080/", ""},
		{"listed, but plain http", &Transport{Source: static, Hosts: []string{"a.example.com"}}, "http://a.example.com/", "https"},
		{"another scheme", &Transport{Source: static}, "ftp://api.moov.io/", "https"},
		{"an empty port", &Transport{Source: static}, "https://api.moov.io:/ping", ""},
		{"a port with a zero before it", &Transport{Source: static}, "https://api.moov.io:0443/ping", "Transport.Hosts"},
		{"a user name before the host", &Transport{Source: static}, "https://user:password@api.moov.io/ping", ""},
		{"a loopback address in another spelling", &Transport{Source: static, Hosts: []string{"[::1]"}}, "https://[0:0:0:0:0:0:0:1]/", "Transport.Hosts"},
		{"loopback mapped into IPv6", &Transport{Source: static, Hosts: []string{"[::ffff:127.0.0.1]"}}, "http://[::ffff:127.0.0.1]/", ""},
		{"a name below localhost", &Transport{Source: static, Hosts: []string{"api.localhost"}}, "http://api.localhost/", "use https"},
		{"localhost with a trailing dot", &Transport{Source: static, Hosts: []string{"localhost."}}, "http://localhost./", "use https"},
		{"a name that folds to localhost", &Transport{Source: static, Hosts: []string{"localho\u017ft"}}, "http://localho\u017ft/", "use https"},
		{"the unspecified address", &Transport{Source: static, Hosts: []string{"0.0.0.0"}}, "http://0.0.0.0/", "use https"},
		{"loopback with a zone", &Transport{Source: static, Hosts: []string{"[::1]"}}, "http://[::1%25lo]/", "use https"},
		{"a zone", &Transport{Source: static, Hosts: []string{"[fe80::1]"}}, "https://[fe80::1%25eth0]/", "Transport.Hosts"},
		{"the source's zone", &Transport{Source: zoned}, "https://[FE80::1%25eth0]/", ""},
		{"the source's address in another zone", &Transport{Source: zoned}, "https://[fe80::1%25ETH0]/", "Transport.Hosts"},
		{"a listed trailing dot", &Transport{Source: static, Hosts: []string{"a.example.com."}}, "https://A.example.com./", ""},
		{"a listed name without its trailing dot", &Transport{Source: static, Hosts: []string{"a.example.com."}}, "https://a.example.com/", "Transport.Hosts"},
		{"an internationalized name", &Transport{Source: static, Hosts: []string{"b\u00fccher.example"}}, "https://b\u00fccher.example/", ""},
		{"its other form", &Transport{Source: static, Hosts: []string{"b\u00fccher.example"}}, "https://xn--bcher-kva.example/", "Transport.Hosts"},
		{"a wide spelling of the API", &Transport{Source: static}, "https://\uff41pi.moov.io/", "Transport.Hosts"},
		{"no host", &Transport{Source: static}, "https:///ping", "Transport.Hosts"},
		{"no scheme", &Transport{Source: static}, "//api.moov.io/ping", "use https"},
		{"the loopback base URL", &Transport{Source: local}, "http://localhost/ping", ""},
		{"the loopback base URL, by https", &Transport{Source: local}, "https://localhost/ping", "Transport.Hosts"},
	} {
		t.Run(c.name, func(t *testing.T) {
			base := new(sink)
			c.transport.Base = base
			sent := &body{Reader: strings.NewReader("x")}
			req, err := http.NewRequest(http.MethodPost, c.target, sent)
			require.NoError(t, err)
			_, err = c.transport.RoundTrip(req)
			assert.EqualValues(t, 1, sent.closed.Load())
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

func TestHostThatOnlyFoldsToAListedOne(t *testing.T) {
	t.Parallel()
	base := new(sink)
	for _, target := range []string{"https://b\u0130lbao.example/", "https://\u212aelvin.example/"} {
		_, err := roundTrip(t, &Transport{Source: static, Base: base, Hosts: []string{"bilbao.example", "kelvin.example"}}, target)
		assert.Error(t, err)
	}
	assert.Nil(t, base.last)
	assert.NotEqual(t, addressOf(&url.URL{Host: "\xe0"}), addressOf(&url.URL{Host: "\x84"}))
}

func TestEndpointsBelowAPathKeepTheirAuthorization(t *testing.T) {
	t.Parallel()
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("https://gateway.example/moov"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	for path, want := range map[string]string{"/moov/oauth2/token": "Basic", "/moov/oauth2/revoke": "Basic", "/oauth2/token": "Bearer"} {
		base := new(sink)
		req, err := http.NewRequest(http.MethodPost, "https://gateway.example"+path, nil)
		require.NoError(t, err)
		req.SetBasicAuth("a", "b")
		_, err = (&Transport{Source: s, Base: base}).RoundTrip(req)
		require.NoError(t, err)
		assert.Contains(t, base.last.Header.Get("Authorization"), want, path)
	}
}

func TestHostErrorSaysWhereTheTokenMayGo(t *testing.T) {
	t.Parallel()
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithBaseURL("http://localhost"), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
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
		{
			&Transport{Source: s}, "https://localhost/ping",
			HostError{"https://localhost/ping", []string{"localhost:80"}},
			"moovauth: the token is not sent to https://localhost/ping, only to localhost:80: add the host to Transport.Hosts, or use another client",
		},
	} {
		_, err := (&http.Client{Transport: c.transport}).Get(c.target)
		var got *HostError
		require.ErrorAs(t, err, &got)
		assert.Equal(t, c.want, *got)
		assert.EqualError(t, got, c.text)
	}
}

func TestHostsThatAreNone(t *testing.T) {
	t.Parallel()
	for _, host := range []string{
		"", " ", "https://api.moov.io", "api.moov.io/", "api.moov.io/x", "api.moov.io?", "api.moov.io#", "user@api.moov.io", "*.moov.io", "*",
		".moov.io ", "api.moov.io:", ":443", "api.moov.io:https", "api.moov.io:0", "api.moov.io:65536", "api.moov.io:443:443",
		"a.example,b.example", "::1", "[::1", "::1]", "[::1]x", "[localhost]", "[fe80::1%eth0]", "[fe80::1%25eth0]", "api.moov.io\n", "a%2eb", "\xe0", "\ufffd.example",
	} {
		base := new(sink)
		_, err := roundTrip(t, &Transport{Source: static, Base: base, Hosts: []string{"api.moov.io", host}}, DefaultBaseURL)
		assert.ErrorContains(t, err, "Transport.Hosts: want a host", "%q", host)
		assert.Nil(t, base.last)
	}
}

// A host in Hosts is no place for client credentials, unless the source cannot
// say where its endpoints are.
func TestEndpointsAreThoseOfTheSource(t *testing.T) {
	t.Parallel()
	s, err := NewTokenSource(testCredentials, WithScopes(pingScope), WithToken(&oauth2.Token{AccessToken: "x"}))
	require.NoError(t, err)
	for _, c := range []struct {
		source oauth2.TokenSource
		target string
		want   string
	}{
		{s, "https://api.moov.io/oauth2/token", "Basic"},
		{s, "https://API.moov.io:443/oauth2/revoke?x", "Basic"},
		{s, "https://b.example/oauth2/token", "Bearer"},
		{s, "https://api.moov.io/oauth2%2Ftoken", "Bearer"},
		{s, "https://api.moov.io/oauth2/token/", "Bearer"},
		{s, "https://api.moov.io/x/oauth2/token", "Bearer"},
		{static, "https://b.example/oauth2/token", "Basic"},
	} {
		base := new(sink)
		req, err := http.NewRequest(http.MethodPost, c.target, nil)
		require.NoError(t, err)
		req.SetBasicAuth("a", "b")
		_, err = (&Transport{Source: c.source, Base: base, Hosts: []string{"api.moov.io", "b.example"}}).RoundTrip(req)
		require.NoError(t, err)
		assert.Contains(t, base.last.Header.Get("Authorization"), c.want, c.target)
	}
}

// Whatever is listed in Hosts and asked for: a token goes nowhere but to a
// listed host, over https or to a loopback address, also on a redirect.
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

// dialed is where net/http would connect to for req, with ASCII in lower case.
// It is worked out from the text of the URL's authority, without hosts.go's
// help.
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

// dialable is what an entry of Hosts allows to connect to.
func dialable(entry string) []string {
	entry = asciiLower(entry)
	if host, port, err := net.SplitHostPort(entry); err == nil {
		return []string{net.JoinHostPort(host, port)}
	}
	host := strings.Trim(entry, "[]")
	if loopback(host) {
		return []string{net.JoinHostPort(host, "443"), net.JoinHostPort(host, "80")}
	}
	return []string{net.JoinHostPort(host, "443")}
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
