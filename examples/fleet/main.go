// Fleet starts four processes that share an access token. For each new token it
// prints which process requested the token from the server, and which processes got
// it from the cache:
//
//	go run ./examples/fleet
//
// Without REDIS_URL, the cache is a temporary folder (package dircache), and the
// processes call the API one after the other. If REDIS_URL is set, such as to
// redis://localhost:6379, the cache is in Redis (package rediscache), and the
// processes call the API all at once. The server is a test server inside the program,
// so no Moov account is needed.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/dircache"
	"github.com/moovauth/moovauth/examples/fleet/internal/fleet"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	run := inFolder
	if os.Getenv("REDIS_URL") != "" {
		run = inRedis
	}
	os.Exit(fleet.Main(ctx, os.Args[1:], os.Stdin, os.Stdout, os.Stderr, run))
}

const folderVariable = "FLEET_FOLDER" // set in the processes of the fleet

func inFolder(ctx context.Context, in io.Reader, out io.Writer) error {
	folder := os.Getenv(folderVariable)
	if folder == "" {
		var err error
		if folder, err = os.MkdirTemp("", "fleet-"); err != nil {
			return err
		}
		defer os.RemoveAll(folder)
	}
	f := fleet.Fleet{
		Where: "folder " + folder,
		Cache: func() (moovauth.Cache, error) { return dircache.New(folder) },
		Env:   []string{folderVariable + "=" + folder},
	}
	return f.Run(ctx, in, out)
}

// inRedis runs the program in the folder redis. That is a module of its own, so that
// this module does not depend on Redis.
func inRedis(ctx context.Context, in io.Reader, out io.Writer) error {
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.CommandContext(ctx, "go", "run", ".")
	cmd.Dir = filepath.Join(filepath.Dir(file), "redis")
	if _, err := os.Stat(cmd.Dir); err != nil {
		return fmt.Errorf("REDIS_URL: the program for Redis is missing (%w): use go run ./examples/fleet in a clone of the repository", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the program for Redis, in %s: %w", cmd.Dir, err)
	}
	return nil
}
