// Checkout serves a web page that calls Moov's API from the browser. The page uses
// access tokens that this server mints for the user who is signed in.
//
//	go run -C examples/checkout .
//
// Without an API key, this command uses an embedded test server. -h shows how to use
// Moov itself.
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

const usage = `Checkout serves a web page that calls Moov's API from the browser. The page uses
access tokens that this server obtains for the user who is signed in.

  -addr address      the address to listen on, which only this computer can reach
                     (default localhost:8080, or CHECKOUT_ADDR; port 0 is any free port)
  -lifetime duration the lifetime of the embedded test server's tokens, 3s or more (default 20s)

Without an API key, the page calls an embedded test server. To use Moov itself, set
these environment variables:

  MOOV_PUBLIC_KEY, MOOV_SECRET_KEY   the API key; it must allow the scope /ping.read
  MOOV_HOST                          the API's host (default api.moov.io)
  MOOV_ORIGIN                        a domain of the key's allowed-domain list
                                     (default the page's origin, such as http://localhost:8080)
`

// closing is the longest time that the server takes to finish requests and to revoke the
// tokens of all sessions.
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
	flags.SetOutput(io.Discard) // main prints the error
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
		return fmt.Errorf("unexpected argument %q; -h shows the usage", flags.Arg(0))
	}
	if *lifetime < 3*time.Second {
		return fmt.Errorf("-lifetime: want 3s or more, so that the page has time to renew a token; got %v", *lifetime)
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
		fmt.Fprintf(out, "%-8s %s, with the origin %s\n", "API", config.API, origin)
	case config.Credentials.ClientID != "" || config.Credentials.ClientSecret != "":
		return errors.New("set both MOOV_PUBLIC_KEY and MOOV_SECRET_KEY, or set neither to use the embedded test server")
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

// serve serves app until ctx ends. It then shuts down and revokes tokens, within the
// time of closing.
func serve(ctx context.Context, out io.Writer, listener net.Listener, app *checkout.App, page string) error {
	serving, cancelRequests := context.WithCancel(context.Background())
	defer cancelRequests()
	server := &http.Server{
		Handler:           app,
		ReadHeaderTimeout: 5 * time.Second,
		IdleTimeout:       time.Minute,
		BaseContext:       func(net.Listener) context.Context { return serving },
	}
	failed := make(chan error, 1)
	go func() { failed <- server.Serve(listener) }()
	fmt.Fprintf(out, "%-8s %s\n%-8s press Ctrl-C; this revokes the tokens\n", "open", page, "stop")

	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
	}
	ctx, cancel := context.WithTimeout(context.Background(), closing)
	defer cancel()
	cancelRequests() // pages may be waiting in the queue for a token
	stopping, cancelStopping := context.WithTimeout(ctx, closing/5)
	defer cancelStopping()
	if server.Shutdown(stopping) != nil {
		server.Close()
	}
	n, err := app.Close(ctx)
	fmt.Fprintf(out, "%-8s page tokens: %d\n", "revoked", n)
	return err
}

// listen accepts only loopback addresses, because the demo's users have no passwords.
func listen(addr string) (net.Listener, error) {
	host, _, err := net.SplitHostPort(addr)
	if err != nil {
		return nil, fmt.Errorf("-addr: want a host and a port, such as localhost:8080: %w", err)
	}
	if ip := net.ParseIP(host); host != "localhost" && (ip == nil || !ip.IsLoopback()) {
		return nil, fmt.Errorf("-addr: want an address that only this computer can reach, such as localhost:8080, because the demo's users have no passwords; got %q", addr)
	}
	listener, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("-addr: %w; localhost:0 takes any free port", err)
	}
	return listener, nil
}

// origins returns the origins that the page can have in a browser on this computer.
func origins(port int) []string {
	var origins []string
	for _, host := range []string{"localhost", "127.0.0.1", "[::1]"} {
		origins = append(origins, fmt.Sprintf("http://%s:%d", host, port))
	}
	return origins
}
