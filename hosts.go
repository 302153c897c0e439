package moovauth

// This file decides where a token may go: to which hosts and over which scheme.
// It also recognizes the endpoints that take client credentials instead.

import (
	"fmt"
	"net"
	"net/url"
	"slices"
	"strings"
)

// HostError is returned for a request to a host that is not in Transport.Hosts,
// or over plain http to an address that is not loopback. Nothing was sent. Do
// not retry: the request will fail again.
type HostError struct {
	URL   string   // of the request, without user name, password, query or fragment
	Hosts []string // where the token may go, as in Transport.Hosts
}

// Error says what to change.
func (e *HostError) Error() string {
	if u, err := url.Parse(e.URL); err == nil && !secure(u) {
		return fmt.Sprintf("moovauth: the token is not sent to %s, which is neither https nor a loopback address: use https", e.URL)
	}
	return fmt.Sprintf("moovauth: the token is not sent to %s, only to %s: add the host to Transport.Hosts, or use another client",
		e.URL, strings.Join(e.Hosts, ", "))
}

// destination holds where a Transport's token may go.
type destination struct {
	hosts     []string // as in HostError
	trusted   []address
	usual     url.URL    // scheme and host of most requests, compared first
	endpoints [2]url.URL // the token and the revoke endpoint; without a host, they are at any of trusted
}

// newDestination reads Transport.Hosts. base is the base URL of a TokenSource,
// or nil for a source of another kind.
func newDestination(hosts []string, base *url.URL) (d destination, err error) {
	for i, path := range []string{endpointPath + opToken, endpointPath + opRevoke} {
		if base != nil {
			d.endpoints[i] = *base
		}
		if d.endpoints[i].Path += path; d.endpoints[i].RawPath != "" {
			d.endpoints[i].RawPath += path
		}
	}
	d.hosts = slices.Clone(hosts)
	if len(hosts) == 0 {
		if base == nil {
			base, _ = url.Parse(DefaultBaseURL)
		}
		d.usual, d.trusted, d.hosts = *base, []address{addressOf(base)}, []string{base.Host}
		return d, nil
	}
	for _, host := range hosts {
		u, err := parseHost(host)
		if err != nil {
			return d, err
		}
		d.usual = *u
		d.trusted = append(d.trusted, addressOf(u))
	}
	return d, nil
}

// parseHost reads one of Transport.Hosts. Anything that is not a host, such as
// a URL or a wildcard, is an error, since it would never match.
func parseHost(host string) (*url.URL, error) {
	u, err := url.Parse("https://" + host)
	if err == nil && u.Host == host && u.Hostname() != "" && !strings.HasSuffix(host, ":") && !strings.ContainsAny(host, "*,% ") {
		return u, nil
	}
	return nil, fmt.Errorf("moovauth: Transport.Hosts: want a host or host:port, such as %q; got %q", "api.moov.io", host)
}

// trusts reports whether the token may go to u. Names are compared byte by
// byte, except for the case of ASCII letters. So a name with a trailing dot,
// and another form of an internationalized name, are other hosts.
func (d *destination) trusts(u *url.URL) bool {
	if u.Host == d.usual.Host && u.Scheme == d.usual.Scheme {
		return true
	}
	return secure(u) && slices.Contains(d.trusted, addressOf(u))
}

// refuse returns the error of a request to u, which is not trusted.
func (d *destination) refuse(u *url.URL) error {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return &HostError{URL: shown.String(), Hosts: slices.Clone(d.hosts)}
}

// isEndpoint reports whether u, which is trusted, is the token or the revoke
// endpoint.
func (d *destination) isEndpoint(u *url.URL) bool {
	for i := range d.endpoints {
		e := &d.endpoints[i]
		if u.Path == e.Path && u.EscapedPath() == e.EscapedPath() {
			return e.Host == "" || addressOf(u) == addressOf(e)
		}
	}
	return false
}

// secure reports whether a token may be sent to u: over https, or over http if
// it does not leave the machine.
func secure(u *url.URL) bool {
	ip := net.ParseIP(u.Hostname())
	return u.Scheme == "https" || u.Scheme == "http" && (lowerASCII(u.Hostname()) == "localhost" || ip != nil && ip.IsLoopback())
}

// address is where a request goes.
type address struct{ host, port string }

func addressOf(u *url.URL) address {
	a := address{lowerASCII(u.Hostname()), u.Port()}
	switch {
	case a.port != "":
	case u.Scheme == "https":
		a.port = "443"
	default:
		a.port = "80"
	}
	return a
}

// lowerASCII leaves all other bytes as they are. In Unicode, İ becomes an i in
// lower case, but it names another host.
func lowerASCII(name string) string {
	lower := []byte(name)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] += 'a' - 'A'
		}
	}
	return string(lower)
}
