// Rollover drives callers through the expiry of several tokens, for each peer
// twice: with a token endpoint that is merely slow, and with one that is down
// for a while just as the first token is due. It prints what the callers saw,
// and draws it.
//
// Token requests are real, over HTTP on loopback. API calls end in the process,
// which answers 401 if the token is dead.
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
	quick := flag.Bool("quick", false, "take seconds, with shorter tokens and a faster endpoint")
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

// lanes are what a run had, with the endpoint up and with it down for a while.
type lanes struct{ steady, outage []*lane }

// report runs the lanes, prints what came of it and draws it.
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

// timetable is what happens when, on the lanes' clocks.
type timetable struct {
	length   time.Duration // of a run, which starts with the first token
	lifetime time.Duration // of a token
	early    time.Duration // before its expiry that a peer is to replace it, if the peer lets one say
	latency  time.Duration // of the endpoint
	downFrom time.Duration // in the run with an outage
	downTo   time.Duration
	rest     time.Duration // azcore's, see lane
	every    time.Duration // a caller makes a call
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

// Titles of the peers, in the table and above the panels.
var titles = map[string]string{
	peers.Moovauth:  "moovauth",
	peers.XOAuth2:   "golang.org/x/oauth2",
	peers.CloudAuth: "cloud.google.com/go/auth",
	peers.Azcore:    "azcore",
	peers.AWS:       "aws.CredentialsCache",
	peers.Floor:     "a token that stays",
}

// run runs all lanes at the same time.
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

// explain says what each peer was given.
func explain(out io.Writer, t timetable) {
	fmt.Fprintf(out, "%d callers, each with a call every %v for %v; an endpoint that takes %v; tokens that live for %v.\n",
		callers, t.every, t.length, t.latency, t.lifetime)
	fmt.Fprintf(out, "\n- moovauth: default settings.\n")
	fmt.Fprintf(out, "- x/oauth2, aws: to replace a token %v before its expiry (`ReuseTokenSourceWithExpiry`, `ExpiryWindow`).\n", t.early)
	fmt.Fprintf(out, "- cloud auth: the same (`ExpireEarly`), in the background.\n")
	if t.rest > 0 {
		life := azcoreLife(t)
		fmt.Fprintf(out, "- azcore: tokens that live for %v, with a `RefreshOn` after %v, since it tries early once in 30 s at most. After each token request its callers rest for %v, which is neither counted nor drawn.\n",
			life, t.lifetime-t.early+t.rest, t.rest)
	} else {
		fmt.Fprintf(out, "- azcore: the same (`RefreshOn`), but it tries early once in 30 s at most, so not at all in a run as short as this.\n")
	}
	fmt.Fprintf(out, "- all but moovauth: the same three attempts at a token request as moovauth makes.\n")
	fmt.Fprintf(out, "- %s: a source that never asks for another. What it shows is the machine's own noise.\n", titles[peers.Floor])
}

// azcoreLife is long enough for a second early attempt, 30 s after a first that failed.
func azcoreLife(t timetable) time.Duration {
	if t.rest == 0 {
		return t.lifetime
	}
	return t.lifetime - t.early + t.rest + 32*time.Second
}
