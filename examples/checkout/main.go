// Checkout is a web page that calls Moov's API from the browser, with tokens that
// its server mints for the user who is signed in.
//
//	go run -C examples/checkout .
//
// has an embedded test server behind it. -h tells how to use Moov itself.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/examples/checkout/internal/checkout"
)

const usage = `Checkout serves a web page that calls Moov's API from the browser, with tokens
that this server mints for the user who is signed in.

  -addr address      where to listen: a port of this computer alone
                     (default localhost:8080, or CHECKOUT_ADDR; port 0 is any free port)
  -lifetime duration how long the embedded test server's tokens live, 3s or more (default 20s)

An embedded test server takes the place of Moov, unless these are set:

  MOOV_PUBLIC_KEY, MOOV_SECRET_KEY   the API key; it needs the scope /ping.read
  MOOV_HOST                          default api.moov.io
  MOOV_ORIGIN                        a domain of the key's allowed-domain list;
                                     default the page's own, such as http://localhost:8080
`

// closing is how long the server takes, at most, to end what is under way and to
// revoke the tokens of all sessions.
const closing = 5 * time.Second

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	switch err := run(ctx, os.Stdout, os.Args[1:], os.Getenv); {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "checkout:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, out io.Writer, args []string, env func(string) string) error {
	flags := flag.NewFlagSet("checkout", flag.ContinueOnError)
	flags.SetOutput(io.Discard) // an error is main's to print, once
	addr := flags.String("addr", "localhost:8080", "")
	if a := env("CHECKOUT_ADDR"); a != "" {
		*addr = a
	}
	lifetime := flags.Duration("lifetime", 20*time.Second, "")
	err := flags.Parse(args)
	if errors.Is(err, flag.ErrHelp) {
		fmt.Fprint(out, usage)
	}
	if err != nil {
		return err
	}
	if flags.NArg() > 0 {
		return fmt.Errorf("%q is too much: see -h", flags.Arg(0))
	}
	if *lifetime < 3*time.Second {
		return fmt.Errorf("-lifetime: want 3s or more, so that there is time for a renewal; got %v", *lifetime)
	}

	listener, err := listen(*addr)
	if err != nil {
		return err
	}
	defer listener.Close()
	port := listener.Addr().(*net.TCPAddr).Port
	config := checkout.Config{
		Credentials: moovauth.Credentials{ClientID: env("MOOV_PUBLIC_KEY"), ClientSecret: env("MOOV_SECRET_KEY")},
		Origins:     origins(port),
	}
	page := config.Origins[0]
	switch {
	case config.Credentials.ClientID != "" && config.Credentials.ClientSecret != "":
		config.API = moovauth.DefaultBaseURL
		if host := env("MOOV_HOST"); host != "" {
			config.API = "https://" + host
		}
		origin := page
		if o := env("MOOV_ORIGIN"); o != "" {
			origin = o
		}
		config.Source = append(config.Source, moovauth.WithOrigin(origin))
		fmt.Fprintf(out, "%-8s %s, as a page of %s\n", "API", config.API, origin)
	case config.Credentials.ClientID != "" || config.Credentials.ClientSecret != "":
		return errors.New("set both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY, or neither for the embedded server")
	default:
		embedded := checkout.NewAPI(*lifetime, config.Origins...)
		defer embedded.Close()
		config.Embedded = true
		config.API = embedded.URL
		config.Credentials = moovauth.Credentials{ClientID: embedded.ClientID, ClientSecret: embedded.ClientSecret}
		fmt.Fprintf(out, "%-8s %s, an embedded test server: nothing leaves this computer\n", "API", config.API)
	}
	app, err := checkout.New(config)
	if err != nil {
		return err
	}
	return serve(ctx, out, listener, app, page)
}

// serve serves app until ctx ends. It then has the time of closing for all that
// is left to do.
func serve(ctx context.Context, out io.Writer, listener net.Listener, app *checkout.App, page string) error {
	serving, hurry := context.WithCancel(context.Background())
	defer hurry()
	server := &http.Server{
		Handler:           app,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		BaseContext:       func(net.Listener) context.Context { return serving },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(out, "%-8s %s\n%-8s Ctrl-C; the tokens are revoked\n", "open", page, "stop")

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	hurry() // pages that wait in the queue for a token
	stopping, cancelStopping := context.WithTimeout(ctx, closing/5)
	defer cancelStopping()
	if server.Shutdown(stopping) != nil {
		server.Close()
	}
	n, err := app.Close(ctx)
	fmt.Fprintf(out, "%-8s tokens of pages that were open: %d\n", "revoked", n)
	return err
}

// listen listens on this computer alone: the demo's users have no passwords.
func listen(addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("-addr: want a host and a port, such as localhost:8080: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("-addr: the demo's users have no passwords: want an address that only this computer reaches, such as localhost:8080; got %q", addr)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-addr: %w; localhost:0 takes any free port", err)
	}
	return listener, nil
}

// origins are those under which a browser on this computer knows the page.
func origins(port int) []string {
	var origins []string
	for _, host := range []string{"localhost", "127.0.0.1", "[::1]"} {
		origins = append(origins, fmt.Sprintf("http://%s:%d", host, port))
	}
	return origins
}
