// Redis is the fleet example with a cache in Redis. Run it with
//
//	REDIS_URL=redis://localhost:6379 go run ./examples/fleet
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/examples/fleet/internal/fleet"
	"github.com/moovauth/moovauth/rediscache"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	os.Exit(fleet.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, func(ctx context.Context, in io.Reader, out io.Writer) error {
		return run(ctx, in, out, os.Getenv("REDIS_URL"))
	}))
}

func run(ctx context.Context, in io.Reader, out io.Writer, url string) error {
	opts, err := redis.ParseURL(url)
	if err != nil {
		return fmt.Errorf("REDIS_URL: %w", err)
	}
	client := redis.NewClient(opts)
	defer client.Close()
	if err := client.Ping(ctx).Err(); err != nil {
		return fmt.Errorf("REDIS_URL: no reply from Redis at %s: %w", opts.Addr, err)
	}
	f := fleet.Fleet{
		Where: "Redis at " + opts.Addr,
		Cache: func() (moovauth.Cache, error) {
			return rediscache.New(client, rediscache.WithPrefix("example-"), rediscache.WithTTL(time.Minute))
		},
		AtOnce: true,
		Env:    []string{"REDIS_URL=" + url},
	}
	return f.Run(ctx, in, out)
}
