package moovauth

// This file is what goes wrong in the model test: processes die, the network
// loses requests and replies, the cache fails.

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptrace"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// step is a moment at which p may die. Nothing that it does later reaches the world.
func (p *process) step() {
	p.mu.Lock()
	dying := p.steps == 1 && !p.dead && !p.calm
	if p.steps > 1 {
		p.steps--
	}
	if dying {
		p.counts["deaths"]++
		p.note(p, "dies")
		p.dead = true
		p.shared.free(p)
	}
	dead, manner := p.dead, p.manner
	p.mu.Unlock()
	switch {
	case dying && manner == 0:
		panic("dies")
	case dying && manner == 1:
		runtime.Goexit()
	case dead:
		<-p.over
		runtime.Goexit()
	}
}

// n is a random number. w.mu is not held.
func (p *process) n(n int) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.random.IntN(n)
}

func (p *process) duration(most time.Duration) time.Duration {
	return time.Duration(p.n(int(most) + 1))
}

func (p *process) isCalm() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.calm
}

// answer is what becomes of a token request. unused says that the client can
// tell that its refresh token was not used up.
func (p *process) answer(r *http.Request, refresh string) (resp *http.Response, unused bool, err error) {
	serve := func() (*http.Response, error) { return p.server.Transport().RoundTrip(r) }
	if !p.isCalm() {
		if err := sleep(r.Context(), p.duration(pick(p.n, 0, time.Millisecond, time.Second))); err != nil {
			return nil, false, err
		}
	}
	if p.isCalm() || p.n(100) >= p.faults {
		resp, err = serve()
		return resp, false, err
	}
	html := func(status int) *http.Response {
		resp := answer(r, status, strings.NewReader("<html>Sorry</html>"))
		resp.Header.Set("Broken", "yes")
		return resp
	}
	switch p.n(14) {
	case 0:
		if trace := httptrace.ContextClientTrace(r.Context()); trace != nil {
			trace.GetConn(r.URL.Host)
		}
		return nil, true, errors.New("no route to host")
	case 1: // silence
		<-r.Context().Done()
		return nil, false, context.Cause(r.Context())
	case 2: // silence, after it has acted
		serve()
		<-r.Context().Done()
		return nil, false, context.Cause(r.Context())
	case 3, 4: // the reply is lost
		serve()
		return nil, false, io.ErrUnexpectedEOF
	case 5: // a reply that nobody can read
		serve()
		return html(http.StatusOK), false, nil
	case 6: // a gateway gives up waiting
		serve()
		return html(pick(p.n, http.StatusBadGateway, http.StatusGatewayTimeout, http.StatusRequestTimeout)), false, nil
	case 7: // a RoundTripper that is deaf to its context
		resp, err := serve()
		<-r.Context().Done()
		time.Sleep(p.duration(3 * time.Second))
		return resp, false, err
	case 8: // a RoundTripper that is broken: this fails the grant
		if serve(); p.n(2) == 0 {
			runtime.Goexit()
		}
		panic("broken")
	case 9: // the refresh token is dead
		p.mu.Lock()
		p.kill(refresh)
		p.mu.Unlock()
		resp, err := serve()
		if err == nil && refresh != "" && p.n(3) == 0 {
			resp.StatusCode = http.StatusOK
			resp.Header.Set("Broken", "yes")
		}
		return resp, false, err
	case 10, 11: // a firewall
		return html(pick(p.n, 400, 401, 403, 404, 422)), false, nil
	case 12:
		return html(pick(p.n, http.StatusInternalServerError, http.StatusServiceUnavailable)), true, nil
	default:
		resp := html(http.StatusTooManyRequests)
		if n := p.n(3); n > 0 {
			resp.Header.Set("Retry-After", strconv.Itoa(pick(p.n, 1, 5, 60)))
		}
		return resp, true, nil
	}
}

// revocation is what becomes of a revoke request.
func (p *process) revocation(r *http.Request, token string) (*http.Response, error) {
	p.mu.Lock()
	p.begin(r)
	p.mu.Unlock()
	defer func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.end(r)
	}()
	fault := p.n(100) < p.faults/2 && !p.isCalm()
	if fault {
		switch p.n(4) {
		case 0:
			return nil, errors.New("no route to host")
		case 1:
			<-r.Context().Done()
			return nil, context.Cause(r.Context())
		case 2:
			return answer(r, pick(p.n, 400, 403, 429, 500, 503), http.NoBody), nil
		}
	}
	p.mu.Lock()
	p.killed[token] = true
	p.gone[token] = p.note(p, "revokes %s", short(token))
	p.mu.Unlock()
	resp, err := p.server.Transport().RoundTrip(r)
	if p.step(); fault {
		return nil, io.ErrUnexpectedEOF // the reply is lost
	}
	return resp, err
}

// traits are how the cache of a world is.
type traits struct {
	there, locks bool
	flaky        int  // of 100 calls fail
	late         bool // Puts come late, also after the caller has given up
	readOnly     bool // it refuses writes
	keepsAll     bool // Delete fails
	losesLocks   bool // a lock ends by itself
}

// shelf is the cache's one place, and its lock.
type shelf struct {
	data    []byte
	changed time.Time
	holder  *process
	lease   int           // counts locks
	freed   chan struct{} // closed when the lock becomes free
}

// tokens are those on the shelf, which p's source can read. w.mu is held.
func (s *shelf) tokens(p *process) []string {
	if p.source.store == nil || s.data == nil {
		return nil
	}
	e, err := p.source.store.open(s.data)
	if err != nil {
		return nil
	}
	return slices.DeleteFunc([]string{e.AccessToken, e.RefreshToken}, func(tok string) bool { return tok == "" })
}

func (s *shelf) place(data []byte) { s.data, s.changed = data, time.Now() }

// free frees the lock if p has it. w.mu is held.
func (s *shelf) free(p *process) {
	if s.holder == p {
		s.holder = nil
		close(s.freed)
		s.freed = make(chan struct{})
	}
}

var errCache = errors.New("the cache is out of order")

// view is the cache as one process sees it.
type view struct{ *process }

// fail is what goes wrong before anything is done.
func (v view) fail(ctx context.Context) error {
	v.step()
	time.Sleep(v.duration(20 * time.Millisecond))
	if v.n(100) >= v.cacheIs.flaky || v.isCalm() {
		return nil
	}
	switch v.n(4) {
	case 0:
		<-ctx.Done()
		return ctx.Err()
	case 1: // deaf
		time.Sleep(5 * time.Second)
	case 2:
		panic("broken")
	}
	return errCache
}

func (v view) Get(ctx context.Context, _ string) ([]byte, error) {
	v.mu.Lock()
	data := v.shared.data
	v.mu.Unlock()
	if err := v.fail(ctx); err != nil {
		return nil, err
	}
	if v.n(100) < v.cacheIs.flaky/4 && !v.isCalm() && len(data) > 0 {
		data = data[:len(data)-1]
	}
	v.step()
	return data, nil
}

func (v view) Put(ctx context.Context, _ string, data []byte) error {
	if err := v.fail(ctx); err != nil {
		return err
	}
	if v.cacheIs.readOnly && !v.isCalm() {
		return errCache
	}
	if v.cacheIs.late && v.n(2) == 0 && !v.isCalm() {
		time.Sleep(v.duration(10 * time.Second))
	}
	v.mu.Lock()
	v.shared.place(data)
	if e, err := v.source.store.open(data); err == nil {
		v.note(v.process, "has put %s and %s, sent %v", short(e.AccessToken), short(e.RefreshToken), e.Sent)
	}
	v.mu.Unlock()
	v.step()
	return nil
}

func (v view) Delete(ctx context.Context, _ string) error {
	if err := v.fail(ctx); err != nil {
		return err
	}
	if v.cacheIs.keepsAll && !v.isCalm() {
		return errCache
	}
	v.mu.Lock()
	v.shared.place(nil)
	v.note(v.process, "has deleted the entry")
	v.mu.Unlock()
	v.step()
	return nil
}

// lockingView is a view of a cache that locks.
type lockingView struct{ view }

func (v lockingView) Lock(ctx context.Context, _ string) (func(), error) {
	if err := v.fail(ctx); err != nil {
		return nil, err
	}
	for {
		v.mu.Lock()
		s := &v.shared
		if s.holder == nil && !v.dead {
			s.lease++
			s.holder = v.process
			lease := s.lease
			v.note(v.process, "has the lock")
			v.mu.Unlock()
			unlock := func() {
				v.mu.Lock()
				defer v.mu.Unlock()
				if s.lease == lease {
					s.free(v.process)
				}
			}
			if v.cacheIs.losesLocks && !v.isCalm() {
				time.AfterFunc(maxCacheTime+v.duration(5*time.Second), unlock)
			}
			v.step()
			return func() { v.step(); unlock(); v.step() }, nil
		}
		freed := s.freed
		v.mu.Unlock()
		select {
		case <-freed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}
