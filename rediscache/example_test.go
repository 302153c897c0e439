package rediscache_test

// This file has the examples of the package documentation.

import (
	"log"

	"github.com/redis/go-redis/v9"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/rediscache"
)

// All processes that run this code share one token.
func ExampleNew() {
	client := redis.NewClient(&redis.Options{
		Addr:                  "localhost:6379",
		ContextTimeoutEnabled: true, // wait less if Redis does not reply
		DialerRetries:         1,    // wait less if Redis is down
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

// All processes that run this code share one rate limit. For many accounts, give the
// limiter to platform.WithLimiter instead.
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
