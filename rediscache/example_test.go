package rediscache_test

// This file is what pkg.go.dev shows.

import (
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/rediscache"
)

// All processes that do this share one token.
func ExampleNew() {
	client := redis.NewClient(&redis.Options{
		Addr:                  "localhost:6379",
		ContextTimeoutEnabled: true, // a Redis that does not answer holds nothing for long
		DialerRetries:         1,    // nor does one that is down
	})
	defer client.Close()
	cache, err := rediscache.New(client, rediscache.WithPrefix("payments/"))
	if err != nil {
		log.Fatal(err)
	}
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: "public-key", ClientSecret: "secret-key"},
		moovauth.WithScopes("/ping.read"), moovauth.WithCache(cache))
	if err != nil {
		log.Fatal(err)
	}
	_ = source.Client()
}

// All processes that do this share one rate: each makes its token requests when
// it is its turn.
func ExampleNewLimiter() {
	client := redis.NewClient(&redis.Options{
		Addr:                  "localhost:6379",
		ContextTimeoutEnabled: true,
	})
	defer client.Close()
	limiter, err := rediscache.NewLimiter(client, "moov", 40)
	if err != nil {
		log.Fatal(err)
	}
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: "public-key", ClientSecret: "secret-key"},
		moovauth.WithScopes("/ping.read"), moovauth.WithLimiter(limiter))
	if err != nil {
		log.Fatal(err)
	}
	_ = source.Client()
}
