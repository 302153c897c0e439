package moovauth

// This file says where a token may go: to which hosts, over which scheme, and
// which requests are for the endpoints that take client credentials instead.
// What a Transport does about it is transport.go's.

import (
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"
)

// HostError is what a request to a host outside Transport.Hosts, or over plain
// http, gets before anything is sent. Trying again does not help.
type HostError struct {
	URL   string   // where the request was to go, without user name, query and fragment
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

// destination is where a Transport's token may go. It is worked out once.
type destination struct {
	hosts    []string // as in HostError
	trusted  []address
	usual    url.URL // scheme and host of most requests, which need no closer look
	endpoint address // where the token and revoke endpoints are; zero: on any of trusted
	paths    [2]path // theirs
}

// path is that of a URL, in both of its forms.
type path struct{ plain, escaped string }

// newDestination reads Transport.Hosts. base is the base URL of a TokenSource,
// or nil for a source of another kind.
func newDestination(hosts []string, base *url.URL) (destination, error) {
	var d destination
	if base != nil {
		d.endpoint = addressOf(base)
	} else {
		base, _ = url.Parse(DefaultBaseURL)
	}
	for i, name := range []string{tokenPath, revokePath} {
		d.paths[i] = path{base.Path + name, base.EscapedPath() + name}
	}
	if len(hosts) == 0 {
		d.usual = url.URL{Scheme: base.Scheme, Host: base.Host}
		d.trusted = []address{addressOf(base)}
		d.hosts = []string{base.Host}
		if base.Scheme == "http" && base.Port() == "" {
			d.hosts = []string{base.Host + ":80"} // as it has to be in Hosts
		}
		return d, nil
	}
	d.hosts = slices.Clone(hosts)
	for _, host := range hosts {
		u, err := parseHost(host)
		if err != nil {
			return destination{}, err
		}
		d.usual = *u
		d.trusted = append(d.trusted, addressOf(u))
		if plain := (&url.URL{Scheme: "http", Host: host}); u.Port() == "" && secure(plain) {
			d.trusted = append(d.trusted, addressOf(plain))
		}
	}
	return d, nil
}

// parseHost reads one of Transport.Hosts. What could never be the host of a
// request is an error, since it is a mistake: a wildcard, a port out of range.
func parseHost(host string) (*url.URL, error) {
	u, err := url.Parse("https://" + host)
	if err == nil && u.Host == host && !strings.HasSuffix(host, ":") {
		name, port := u.Hostname(), u.Port()
		n, err := strconv.ParseUint(port, 10, 16)
		portOK := port == "" || err == nil && n > 0
		if strings.HasPrefix(host, "[") {
			if _, err := netip.ParseAddr(name); err == nil && portOK {
				return u, nil
			}
		} else if name != "" && portOK && !strings.ContainsFunc(name, notInName) {
			return u, nil
		}
	}
	return nil, fmt.Errorf("moovauth: Transport.Hosts: want a host or host:port, such as %q; got %q", "api.moov.io", host)
}

// notInName reports whether r cannot be in a host's name. An internationalized
// name may be written in either of its forms, and is then only that one.
func notInName(r rune) bool {
	letter := 'a' <= r && r <= 'z' || 'A' <= r && r <= 'Z' || r >= 0x80 && r != utf8.RuneError
	return !letter && !('0' <= r && r <= '9') && r != '-' && r != '.' && r != '_'
}

// trusts reports whether the token may go to u. Names are compared as they are
// written but for the case of ASCII letters: a trailing dot, another spelling
// of an IP address and another form of an internationalized name are other
// hosts.
func (d *destination) trusts(u *url.URL) bool {
	if u.Host == d.usual.Host && u.Scheme == d.usual.Scheme {
		return true
	}
	return secure(u) && slices.Contains(d.trusted, addressOf(u))
}

// refuse says why the token may not go to u.
func (d *destination) refuse(u *url.URL) error {
	shown := url.URL{Scheme: u.Scheme, Host: u.Host, Path: u.Path, RawPath: u.RawPath}
	return &HostError{URL: shown.String(), Hosts: slices.Clone(d.hosts)}
}

// isEndpoint reports whether u, which is trusted, is one of the endpoints that
// take client credentials.
func (d *destination) isEndpoint(u *url.URL) bool {
	for _, p := range d.paths {
		if u.Path == p.plain && u.EscapedPath() == p.escaped {
			return d.endpoint == (address{}) || d.endpoint == addressOf(u)
		}
	}
	return false
}

// secure reports whether a token may travel to u: over https, or over http
// if it does not leave the machine.
func secure(u *url.URL) bool {
	if u.Scheme == "https" {
		return true
	}
	if u.Scheme != "http" {
		return false
	}
	host := u.Hostname()
	ip := net.ParseIP(host)
	return lowerASCII(host) == "localhost" || ip != nil && ip.IsLoopback()
}

// address is where a request goes to.
type address struct {
	host string // in lower case
	port string
}

func addressOf(u *url.URL) address {
	name, zone, zoned := strings.Cut(u.Hostname(), "%")
	a := address{lowerASCII(name), u.Port()}
	if zoned { // the name of an interface, whose case counts
		a.host += "%" + zone
	}
	if a.port == "" && u.Scheme == "https" {
		a.port = "443"
	} else if a.port == "" {
		a.port = "80"
	}
	return a
}

// lowerASCII leaves all other bytes alone: İ would become an i, and each byte
// that is no UTF-8 the same character, but they name other hosts.
func lowerASCII(name string) string {
	lower := []byte(name)
	for i, c := range lower {
		if 'A' <= c && c <= 'Z' {
			lower[i] += 'a' - 'A'
		}
	}
	return string(lower)
}
