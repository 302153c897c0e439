package moovtest

// This file is what a server does in a testing/synctest bubble beyond its clock:
// it says why a test hangs.

import (
	"fmt"
	"net"
	"os"
	"time"
)

// patience is how long a server from NewServer in a bubble sees no new connection
// before it says that the bubble's time stands still.
const patience = 5 * time.Second

// bubbleListener is the listener of a server from NewServer in a bubble.
//
// A wait for the network keeps the bubble's time from passing, and nothing says so
// when the test hangs. A deadline of the network, which is a distance in the
// bubble's time, is kept in real time: this is how a listener in the bubble can
// notice.
type bubbleListener struct {
	*net.TCPListener
	warned bool // Accept alone uses it
}

func (l *bubbleListener) Accept() (net.Conn, error) {
	if !l.warned {
		l.SetDeadline(time.Now().Add(patience))
	}
	for {
		conn, err := l.TCPListener.Accept()
		if e, ok := err.(net.Error); !ok || !e.Timeout() || l.warned {
			return conn, err
		}
		l.warned = true
		l.SetDeadline(time.Time{})
		fmt.Fprintln(os.Stderr, bubbleWarning)
	}
}

const bubbleWarning = "moovtest: a server from NewServer is open inside a synctest bubble. If this test hangs: " +
	"no fake time passes and synctest.Wait does not return until the server is closed, since it waits for the network; use NewInMemory."
