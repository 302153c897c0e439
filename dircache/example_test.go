package dircache_test

import (
	"fmt"
	"log"
	"os"
	"path/filepath"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
)

// A command-line tool can keep its token in the user's cache directory, so that not
// every run requests one.
func ExampleNew() {
	folder, err := os.UserCacheDir()
	if err != nil {
		log.Fatal(err)
	}
	cache, err := dircache.New(filepath.Join(folder, "myapp"))
	if err != nil {
		log.Fatal(err)
	}
	source, err := moovauth.NewTokenSource(
		moovauth.Credentials{ClientID: os.Getenv("MOOV_PUBLIC_KEY"), ClientSecret: os.Getenv("MOOV_SECRET_KEY")},
		moovauth.WithScopes("/ping.read"), moovauth.WithCache(cache))
	if err != nil {
		log.Fatal(err)
	}
	token, err := source.Token()
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Expiry)
}
