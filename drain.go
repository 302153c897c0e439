package moovauth

// This file reads the body of a 401, so that its connection is free for the
// token request that follows.

import (
	"bytes"
	"io"
	"net/http"
	"sync"
	"time"
)

// How much of a 401's body is read, and for how long, to keep its connection.
const (
	maxRefusal  = 64 << 10
	refusalTime = 250 * time.Millisecond
)

// release reads the body of resp, as far as its limits let it, and closes it.
// It returns resp with what was read.
func release(resp *http.Response) *http.Response {
	if resp.Body == nil || resp.Body == http.NoBody {
		return resp
	}
	cut := *resp // which a Read that goes on does not change
	cut.Trailer = resp.Trailer.Clone()
	r := &refusedBody{from: resp.Body, closed: make(chan struct{})}
	go r.read()
	timer := time.NewTimer(refusalTime)
	defer timer.Stop()
	select {
	case <-r.closed:
	case <-timer.C:
		go r.close(io.ErrUnexpectedEOF) // which makes Read return
		select {
		case <-r.closed:
		case <-time.After(refusalTime): // Close hangs too
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.err == io.EOF {
		resp.Body = io.NopCloser(bytes.NewReader(r.text))
		return resp
	}
	cut.Body = io.NopCloser(io.MultiReader(bytes.NewReader(r.text), ending{r.err}))
	return &cut
}

// refusedBody is the body of a 401 while it is read.
type refusedBody struct {
	from   io.ReadCloser
	closed chan struct{} // closed when from is

	mu   sync.Mutex
	text []byte
	err  error // what it ended in; nil: it is still read
}

func (r *refusedBody) read() {
	err := io.ErrUnexpectedEOF
	defer func() {
		_ = recover() // nobody above us could
		r.close(err)
	}()
	piece := make([]byte, 4<<10)
	for {
		n, readErr := r.from.Read(piece)
		r.mu.Lock()
		if r.err != nil {
			r.mu.Unlock()
			return
		}
		room := min(n, maxRefusal-len(r.text))
		r.text = append(r.text, piece[:room]...)
		r.mu.Unlock()
		if room < n {
			return
		}
		if readErr != nil {
			err = readErr
			return
		}
	}
}

// close ends the reading, unless it has ended.
func (r *refusedBody) close(err error) {
	r.mu.Lock()
	over := r.err != nil
	if !over {
		r.err = err
	}
	r.mu.Unlock()
	if !over {
		defer func() { _ = recover(); close(r.closed) }()
		r.from.Close()
	}
}

// ending is a reader that has nothing but an error.
type ending struct{ err error }

func (e ending) Read([]byte) (int, error) { return 0, e.err }
