package moovauth_test

import (
	"fmt"
	"log"
	"net/http"
	"net/http/httptest"
	"time"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
)

// readiness answers 503 while the source has no token and its last attempt to
// get one has failed. It makes no request, so a probe may call it every second.
// A source that is only idle is ready: its next call gets a token.
func readiness(source *moovauth.TokenSource) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := source.Stats()
		if s.Phase == moovauth.PhaseNone && time.Now().Before(s.CoolDownUntil) {
			http.Error(w, s.LastError.Error(), http.StatusServiceUnavailable)
			return
		}
		fmt.Fprintln(w, "ok")
	})
}

// A readiness probe made of Stats. A liveness probe should not look at the token:
// a restart does not help against a token endpoint that is down.
func ExampleTokenSource_Stats_readiness() {
	server := moovtest.NewServer() // for this example: yours is Moov
	defer server.Close()
	server.Enqueue(moovtest.Answer{Status: http.StatusUnauthorized, Body: `{"error":"invalid_client"}`})
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret},
		moovauth.WithScopes("/ping.read"),
		moovauth.WithBaseURL(server.URL),
	)
	if err != nil {
		log.Fatal(err)
	}
	probe := func() {
		reply := httptest.NewRecorder()
		readiness(source).ServeHTTP(reply, httptest.NewRequest(http.MethodGet, "/ready", nil))
		fmt.Println(reply.Code, source.Stats().Phase)
	}

	probe() // before the first call

	_, _ = source.Token() // which Moov refuses
	probe()

	time.Sleep(300 * time.Millisecond) // the cool-down
	if _, err := source.Token(); err != nil {
		log.Fatal(err)
	}
	probe()
	// Output:
	// 200 none
	// 503 none
	// 200 fresh
}
