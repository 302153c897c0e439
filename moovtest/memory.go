package moovtest

// This file holds a RoundTripper that calls a handler without a network. It does not
// depend on Moov's API.

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"testing/iotest"
)

var errHungUp = errors.New("moovtest: the server is closed, or it hung up without an answer")

// memory is a RoundTripper that calls a handler directly.
type memory struct {
	handler http.Handler
	enter   func(hangUp func()) (leave func(), ok bool) // see Server.enter
}

func (m *memory) RoundTrip(req *http.Request) (*http.Response, error) {
	body := newRequestBody(req.Body)
	// If the handler is still reading the body, this makes it stop.
	defer body.Close()
	if req.Context().Err() != nil {
		return nil, context.Cause(req.Context())
	}
	ctx, cancel := context.WithCancelCause(req.Context())
	defer cancel(nil)
	leave, ok := m.enter(func() { cancel(errHungUp) })
	if !ok {
		return nil, errHungUp
	}
	defer leave()
	incoming, err := asIncoming(ctx, req, body)
	if err != nil {
		return nil, err
	}

	recorder := httptest.NewRecorder()
	done := make(chan error, 1)
	go func() {
		err := errHungUp // remains if the handler panics or calls runtime.Goexit
		defer func() {
			if p := recover(); p != nil && p != http.ErrAbortHandler {
				err = fmt.Errorf("moovtest: the handler panicked: %v\n%s", p, debug.Stack())
			}
			done <- err
		}()
		m.handler.ServeHTTP(recorder, incoming)
		err = nil
	}()

	select {
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	case err := <-done:
		// If the context ended or the body failed, that is why the handler gave up.
		if err := cmp.Or(context.Cause(ctx), body.err, err); err != nil {
			return nil, err
		}
		return asReceived(recorder, req), nil
	}
}

// asIncoming returns req in the form in which a server receives it.
func asIncoming(ctx context.Context, req *http.Request, body *requestBody) (*http.Request, error) {
	host := req.Host
	if req.URL != nil {
		host = cmp.Or(host, req.URL.Host)
	}
	if req.URL == nil || host == "" {
		return nil, errors.New("moovtest: the request has no URL with a host")
	}
	target, err := url.ParseRequestURI(req.URL.RequestURI())
	if err != nil {
		return nil, fmt.Errorf("moovtest: %w", err)
	}
	header := make(http.Header)
	for name, values := range req.Header { // a client may write a name in any case
		for _, value := range values {
			header.Add(name, value)
		}
	}
	header.Del("Host") // net/http's client sends Request.Host instead
	length := req.ContentLength
	if length == 0 && body.ReadCloser != http.NoBody {
		length = -1 // in a client's request, 0 with a body means unknown
	}
	incoming := &http.Request{
		Method:        cmp.Or(req.Method, http.MethodGet),
		URL:           target,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    1,
		Header:        header,
		Body:          body,
		ContentLength: length,
		Host:          host,
		RequestURI:    req.URL.RequestURI(),
		RemoteAddr:    "192.0.2.1:1234", // an address for documentation (RFC 5737)
	}
	return incoming.WithContext(ctx), nil
}

// asReceived returns the recorded response in the form in which a client receives it.
func asReceived(recorder *httptest.ResponseRecorder, req *http.Request) *http.Response {
	resp := recorder.Result()
	resp.Request = req
	maps.DeleteFunc(resp.Header, func(_ string, values []string) bool { return len(values) == 0 })
	written, declared := int64(recorder.Body.Len()), resp.ContentLength
	resp.ContentLength = max(written, declared)
	switch {
	case resp.StatusCode == http.StatusNoContent || resp.StatusCode == http.StatusNotModified:
		resp.Body, resp.ContentLength = http.NoBody, 0
	case req.Method == http.MethodHead:
		resp.Body = http.NoBody
	case declared > written:
		resp.Body = io.NopCloser(io.MultiReader(resp.Body, iotest.ErrReader(io.ErrUnexpectedEOF)))
	}
	return resp
}

// requestBody closes a request's body only once, even if Close is called several
// times, and keeps the error of a failed read.
type requestBody struct {
	io.ReadCloser
	close  func() error
	closed atomic.Bool
	err    error
}

func newRequestBody(body io.ReadCloser) *requestBody {
	if body == nil {
		body = http.NoBody
	}
	return &requestBody{ReadCloser: body, close: sync.OnceValue(body.Close)}
}

func (b *requestBody) Read(p []byte) (int, error) {
	if b.closed.Load() {
		return 0, http.ErrBodyReadAfterClose // the client may already use the body for something else
	}
	n, err := b.ReadCloser.Read(p)
	if err != nil && err != io.EOF {
		b.err = err
	}
	return n, err
}

func (b *requestBody) Close() error {
	b.closed.Store(true)
	return b.close()
}
