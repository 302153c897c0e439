package bench

// This file has the benchmarks. Each has one sub-benchmark per peer. The program
// report turns their output into the tables of README.md.

import (
	"bufio"
	"context"
	"flag"
	"fmt"
	"net/http"
	"os"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moovauth/moovauth/bench/peers"
)

// TestMain adds what the header of a benchmark run does not say about the machine.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.bench"); f.Value.String() != "" {
		fmt.Printf("go: %s\ncores: %d\nos: %s\n", strings.TrimPrefix(runtime.Version(), "go"), runtime.NumCPU(), system())
	}
	os.Exit(m.Run())
}

// system is the name of the operating system.
func system() string {
	if f, err := os.Open("/etc/os-release"); err == nil {
		defer f.Close()
		for lines := bufio.NewScanner(f); lines.Scan(); {
			if name, ok := strings.CutPrefix(lines.Text(), "PRETTY_NAME="); ok {
				return strings.Trim(name, `"`)
			}
		}
	}
	return runtime.GOOS
}

// each runs a benchmark for every peer, with a source that does not have a token yet.
func each(b *testing.B, benchmark func(b *testing.B, source *peers.Source, url string)) {
	endpoint := peers.NewEndpoint(time.Hour, 0)
	defer endpoint.Server.Close()
	for _, peer := range peers.All() {
		source, err := peer.New(endpoint.Config())
		if err != nil {
			b.Fatal(err)
		}
		b.Run("peer="+peer.Name, func(b *testing.B) { benchmark(b, source, endpoint.Server.URL) })
	}
}

func token(b *testing.B, source *peers.Source) func(context.Context) (string, error) {
	if source.Token == nil {
		b.Skip("this peer has no call that only returns the token")
	}
	if _, err := source.Token(b.Context()); err != nil {
		b.Fatal(err)
	}
	return source.Token
}

// BenchmarkToken asks a source for its token, which is fresh.
func BenchmarkToken(b *testing.B) {
	b.Run("goroutines=1", func(b *testing.B) {
		each(b, func(b *testing.B, source *peers.Source, _ string) {
			get := token(b, source)
			ctx := context.Background()
			b.ReportAllocs()
			for b.Loop() {
				if _, err := get(ctx); err != nil {
					b.Fatal(err)
				}
			}
		})
	})
	for _, c := range []struct {
		name        string
		parallelism int // goroutines per core
	}{{"cores", 1}, {"1000", max(1, 1000/runtime.GOMAXPROCS(0))}} {
		b.Run("goroutines="+c.name, func(b *testing.B) {
			each(b, func(b *testing.B, source *peers.Source, _ string) {
				get := token(b, source)
				ctx := context.Background()
				b.ReportAllocs()
				b.SetParallelism(c.parallelism)
				b.RunParallel(func(pb *testing.PB) {
					for pb.Next() {
						if _, err := get(ctx); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		})
	}
}

// BenchmarkRequest sends a request with the token and the version header to a
// base that returns at once.
func BenchmarkRequest(b *testing.B) {
	each(b, func(b *testing.B, source *peers.Source, url string) {
		if source.Through == nil {
			b.Skip("this peer has no transport for bearer tokens")
		}
		do, err := source.Through(new(peers.Nowhere))
		if err != nil {
			b.Fatal(err)
		}
		req := peers.NewRequest(context.Background(), url)
		if _, err := do(req); err != nil {
			b.Fatal(err)
		}
		b.ReportAllocs()
		for b.Loop() {
			if _, err := do(req); err != nil {
				b.Fatal(err)
			}
		}
	})
}

// BenchmarkExpired measures the time from the moment that 1,000 goroutines ask for
// a token, when it has expired, until the last one has a token. The endpoint takes
// 5 ms.
func BenchmarkExpired(b *testing.B) {
	const goroutines = 1000
	endpoint := peers.NewEndpoint(time.Hour, 5*time.Millisecond)
	defer endpoint.Server.Close()
	config := endpoint.Config()
	config.Expired = true
	for _, peer := range peers.All() {
		b.Run("peer="+peer.Name, func(b *testing.B) {
			before := endpoint.Requests()
			n := 0
			for b.Loop() {
				b.StopTimer()
				source, err := peer.New(config)
				if err != nil {
					b.Fatal(err)
				}
				gate := make(chan struct{})
				var ready, done sync.WaitGroup
				ready.Add(goroutines)
				for range goroutines {
					done.Go(func() {
						get := getter(b, source, endpoint.Server.URL)
						ready.Done()
						<-gate
						if err := get(); err != nil {
							b.Error(err)
						}
					})
				}
				ready.Wait()
				b.StartTimer()
				close(gate)
				done.Wait()
				n++
			}
			b.ReportMetric(float64(endpoint.Requests()-before)/float64(n), "requests")
		})
	}
}

// getter returns a function that obtains the token. If source has no Token, the
// function sends a request to Nowhere.
func getter(b *testing.B, source *peers.Source, url string) func() error {
	ctx := context.Background()
	if source.Token != nil {
		return func() error { _, err := source.Token(ctx); return err }
	}
	do, err := source.Through(new(peers.Nowhere))
	if err != nil {
		b.Error(err)
	}
	req := peers.NewRequest(context.Background(), url)
	return func() error { _, err := do(req); return err }
}

// BenchmarkMemory measures the memory of a source with a token. Each source has
// its own client configuration and token. All sources share one http.Client.
func BenchmarkMemory(b *testing.B) {
	const sources = 100_000
	config := peers.Config{TokenURL: "https://127.0.0.1/oauth2/token", Client: &http.Client{Transport: peers.InMemory{}}}
	for _, peer := range peers.All() {
		b.Run("peer="+peer.Name, func(b *testing.B) {
			held := make([]any, sources)
			var bytes uint64
			for b.Loop() {
				clear(held)
				before := heap()
				for i := range held {
					source, err := peer.New(config)
					if err != nil {
						b.Fatal(err)
					}
					if err := getter(b, source, config.TokenURL)(); err != nil {
						b.Fatal(err)
					}
					held[i] = source.Held
				}
				bytes = heap() - before
			}
			runtime.KeepAlive(held)
			b.ReportMetric(0, "ns/op")
			b.ReportMetric(float64(bytes)/sources, "bytes/source")
		})
	}
}

// heap returns the size of all reachable objects.
func heap() uint64 {
	runtime.GC()
	runtime.GC() // a sync.Pool keeps its objects for one more collection
	var stats runtime.MemStats
	runtime.ReadMemStats(&stats)
	return stats.HeapAlloc
}
