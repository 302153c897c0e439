// Rollover measures the latency of API calls while several tokens expire. It runs
// each peer twice: with a token endpoint that is only slow, and with one that is down
// for a while when the first token should be refreshed. It prints tables and draws a
// picture.
//
// Token requests are real, over HTTP on loopback. API calls do not leave the
// process. They return 401 if the token has expired.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"slices"
	"sync"
	"time"

	"github.com/moovauth/moovauth/bench/peers"
)

func main() {
	quick := flag.Bool("quick", false, "run for seconds, with shorter tokens and a faster endpoint")
	svg := flag.String("svg", "rollover.svg", "`file` to draw to")
	flag.Parse()
	t := full
	if *quick {
		t = short
	}
	if _, err := report(t, os.Stdout, *svg); err != nil {
		fmt.Fprintln(os.Stderr, "rollover:", err)
		os.Exit(1)
	}
}

// lanes are the lanes of all peers, with the endpoint up and with an outage.
type lanes struct{ steady, outage []*lane }

// report runs the lanes, prints the tables and draws the picture.
func report(t timetable, out io.Writer, svg string) (*lanes, error) {
	all, err := run(t)
	if err != nil {
		return nil, err
	}
	explain(out, t)
	fmt.Fprintf(out, "\nThe endpoint is up:\n\n")
	table(out, all.steady)
	fmt.Fprintf(out, "\nThe endpoint answers 503 from %v to %v:\n\n", t.downFrom, t.downTo)
	table(out, all.outage)
	f, err := os.Create(svg)
	if err != nil {
		return nil, err
	}
	return all, errors.Join(paint(f, all), f.Close())
}

// timetable says what happens when, on the lanes' clocks.
type timetable struct {
	length   time.Duration // of a run, which starts with the first token
	lifetime time.Duration // of a token
	early    time.Duration // how long before its expiry a token is replaced, if the peer has such an option
	latency  time.Duration // of the endpoint
	downFrom time.Duration // in the run with an outage
	downTo   time.Duration
	rest     time.Duration // of azcore's callers: see lane
	every    time.Duration // between two calls of a caller
}

const callers = 64

var (
	full = timetable{
		length: 24 * time.Second, lifetime: 10 * time.Second, early: 3 * time.Second, latency: 200 * time.Millisecond,
		downFrom: 6500 * time.Millisecond, downTo: 7900 * time.Millisecond,
		rest: 24 * time.Second, every: 20 * time.Millisecond,
	}
	short = timetable{
		length: 5 * time.Second, lifetime: 2 * time.Second, early: 600 * time.Millisecond, latency: 20 * time.Millisecond,
		downFrom: 1350 * time.Millisecond, downTo: 1500 * time.Millisecond,
		every: 20 * time.Millisecond,
	}
)

// The titles of the peers in the tables and above the panels.
var titles = map[string]string{
	peers.Moovauth:  "moovauth",
	peers.XOAuth2:   "golang.org/x/oauth2",
	peers.CloudAuth: "cloud.google.com/go/auth",
	peers.Azcore:    "azcore",
	peers.AWS:       "aws.CredentialsCache",
	peers.Floor:     "a token that never expires",
}

// run runs all lanes in parallel.
func run(t timetable) (*lanes, error) {
	all := new(lanes)
	for _, peer := range peers.All() {
		all.steady = append(all.steady, &lane{peer: peer, timetable: t})
		all.outage = append(all.outage, &lane{peer: peer, timetable: t, outage: true})
	}
	each := slices.Concat(all.steady, all.outage)
	errs := make([]error, len(each))
	var running sync.WaitGroup
	for i, l := range each {
		running.Go(func() { errs[i] = l.run(context.Background()) })
	}
	running.Wait()
	return all, errors.Join(errs...)
}

// explain writes how each peer was configured.
func explain(out io.Writer, t timetable) {
	fmt.Fprintf(out, "%d callers each make a call every %v for %v. The endpoint answers after %v, and tokens live for %v.\n",
		callers, t.every, t.length, t.latency, t.lifetime)
	fmt.Fprintf(out, "\n- moovauth has its default settings.\n")
	fmt.Fprintf(out, "- x/oauth2 and aws replace a token %v before its expiry (`ReuseTokenSourceWithExpiry`, `ExpiryWindow`).\n", t.early)
	fmt.Fprintf(out, "- cloud auth does the same in the background (`ExpireEarly`).\n")
	if t.rest > 0 {
		life := azcoreLife(t)
		fmt.Fprintf(out, "- azcore refreshes early at most once in 30 s. So its tokens live for %v, with a `RefreshOn` after %v, and its callers rest for %v after each token request. The rests are not counted or drawn.\n",
			life, t.lifetime-t.early+t.rest, t.rest)
	} else {
		fmt.Fprintf(out, "- azcore should do the same (`RefreshOn`). But it refreshes early at most once in 30 s, so it does not in a run as short as this.\n")
	}
	fmt.Fprintf(out, "- All others make up to three attempts at a token request, like moovauth.\n")
	fmt.Fprintf(out, "- \"%s\" is a source that never requests another token. It shows the machine's own noise.\n", titles[peers.Floor])
}

// azcoreLife returns a lifetime that is long enough for a second early attempt, 30 s
// after the first one has failed.
func azcoreLife(t timetable) time.Duration {
	if t.rest == 0 {
		return t.lifetime
	}
	return t.lifetime - t.early + t.rest + 32*time.Second
}
