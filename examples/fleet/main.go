// Fleet starts several processes that share a token, and prints who asked the
// server for each and who adopted it:
//
//	go run ./examples/fleet
//
// keeps the token in a temporary folder (package dircache), for processes that
// call the API in turn. With REDIS_URL set, such as redis://localhost:6379, it is
// kept in Redis, whose lock is for processes that come at once. The server is an
// embedded one; no account is needed.
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

// inRedis runs the program in folder redis, which is a module of its own, so
// that its dependencies are not this module's.
func inRedis(ctx context.Context, in io.Reader, out io.Writer) error {
	_, file, _, _ := runtime.Caller(0)
	cmd := exec.CommandContext(ctx, "go", "run", ".")
	cmd.Dir = filepath.Join(filepath.Dir(file), "redis")
	if _, err := os.Stat(cmd.Dir); err != nil {
		return fmt.Errorf("REDIS_URL: the program for Redis is not beside this one (%w): run both from a clone, with go run ./examples/fleet", err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = in, out, os.Stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("the program for Redis, in %s: %w", cmd.Dir, err)
	}
	return nil
}
