package repo

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	modzip "golang.org/x/mod/zip"
)

// released are the folders of the modules that others require.
var released = []string{".", "rediscache", "platform"}

func modulePath(folder string) string { return path.Join(rootModule, folder) }

// What a go.mod asks for counts for those who require it; its replace
// directives, with which this tree is built, do not.
func TestModulesRequireEachOtherAtTheVersionOfTheChangelog(t *testing.T) {
	require.True(t, semver.IsValid(version(t)), version(t))
	for folder, mod := range modules(t) {
		assert.Equal(t, modulePath(folder), mod.Module.Mod.Path)
		replaced := make(map[string]string)
		for _, r := range mod.Replace {
			replaced[r.Old.Path] = filepath.Join(root, folder, filepath.FromSlash(r.New.Path))
		}
		for _, r := range mod.Require {
			if !strings.HasPrefix(r.Mod.Path+"/", rootModule+"/") {
				continue
			}
			assert.Equal(t, version(t), r.Mod.Version, "%s/go.mod: %s", folder, r.Mod.Path)
			want := filepath.Join(root, filepath.FromSlash(strings.TrimPrefix(strings.TrimPrefix(r.Mod.Path, rootModule), "/")))
			assert.Equal(t, want, replaced[r.Mod.Path], "%s/go.mod: %s is built from this tree", folder, r.Mod.Path)
		}
	}
	assert.Empty(t, modules(t)["."].Replace, "go run and go install refuse a module with replace directives")
}

func TestReleasingNamesEveryTag(t *testing.T) {
	text := read(t, "RELEASING.md")
	for _, folder := range released {
		assert.Contains(t, text, "git tag -a "+path.Join(folder, "$v")+" ")
	}
	assert.Equal(t, len(released), strings.Count(text, "git tag -a "))
}

// TestOutsiderBuilds releases this tree to a module proxy of its own, in a
// folder, and requires the modules as somebody else's program would.
func TestOutsiderBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: it builds everything anew")
	}
	v := version(t)
	proxy := t.TempDir()
	for _, folder := range released {
		publish(t, proxy, folder, v)
	}

	outsider := t.TempDir()
	for name, text := range map[string]string{"go.mod": "module example.com/outsider\n\ngo 1.26.0\n", "main.go": outsiderMain} {
		require.NoError(t, os.WriteFile(filepath.Join(outsider, name), []byte(text), 0o644))
	}
	run := outsiderGo(t, outsider, proxy)

	var wanted []string
	for _, folder := range released {
		wanted = append(wanted, modulePath(folder)+"@"+v)
	}
	run(append([]string{"get"}, wanted...)...)
	run("mod", "tidy")
	run("build", "./...")
	assert.Equal(t, "/ping.read\n", run("run", "."))

	for _, folder := range released {
		out := run("list", "-m", "-json", modulePath(folder))
		var got struct {
			Version string
			Replace any
		}
		require.NoError(t, json.Unmarshal([]byte(out), &got))
		assert.Equal(t, v, got.Version)
		assert.Nil(t, got.Replace)
	}

	// Without a clone, as pkg.go.dev's readers would try it.
	assert.Contains(t, run("run", rootModule+"/examples/quickstart@"+v, "-h"), "MOOV_PUBLIC_KEY")
}

// publish puts the module in folder into a module proxy, with the layout of
// https://go.dev/ref/mod#goproxy-protocol.
func publish(t *testing.T, proxy, folder, v string) {
	t.Helper()
	m := module.Version{Path: modulePath(folder), Version: v}
	escaped, err := module.EscapePath(m.Path)
	require.NoError(t, err)
	dir := filepath.Join(proxy, filepath.FromSlash(escaped), "@v")
	require.NoError(t, os.MkdirAll(dir, 0o755))
	write := func(name, text string) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644))
	}
	write("list", v+"\n")
	write(v+".info", fmt.Sprintf(`{"Version":%q,"Time":%q}`, v, time.Now().UTC().Format(time.RFC3339)))
	write(v+".mod", read(t, path.Join(folder, "go.mod")))

	zip, err := os.Create(filepath.Join(dir, v+".zip"))
	require.NoError(t, err)
	require.NoError(t, modzip.CreateFromDir(zip, m, filepath.Join(root, folder))) // without the modules nested in it
	require.NoError(t, zip.Close())
}

// outsiderGo returns a function that runs the go command in dir and returns
// what it prints. Our modules come from proxy; all else comes from this
// machine's module cache, or from where it came from.
func outsiderGo(t *testing.T, dir, proxy string) func(args ...string) string {
	env, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	require.NoError(t, err)
	cache, upstream, _ := strings.Cut(strings.TrimSpace(string(env)), "\n")
	fileURL := func(dir string) string { return (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir)}).String() }
	environment := append(os.Environ(),
		"GOPROXY="+strings.Join([]string{fileURL(proxy), fileURL(filepath.Join(cache, "cache", "download")), upstream}, ","),
		"GOMODCACHE="+t.TempDir(), // else our version would stay in this machine's, as if it had been released
		"GOFLAGS=-mod=mod -modcacherw",
		"GONOSUMDB="+rootModule, "GONOPROXY=", "GOPRIVATE=", "GOWORK=off")
	return func(args ...string) string {
		t.Helper()
		cmd := exec.CommandContext(t.Context(), "go", args...)
		cmd.Dir, cmd.Env = dir, environment
		var errs strings.Builder
		cmd.Stderr = &errs
		out, err := cmd.Output()
		require.NoError(t, err, "go %s\n%s%s", strings.Join(args, " "), out, errs.String())
		return string(out)
	}
}

const outsiderMain = `package main

import (
	"context"
	"fmt"
	"log"

	"github.com/moovauth/moovauth"
	"github.com/moovauth/moovauth/moovtest"
	"github.com/moovauth/moovauth/platform"
	"github.com/moovauth/moovauth/rediscache"
	"github.com/redis/go-redis/v9"
)

func main() {
	server := moovtest.NewServer()
	defer server.Close()
	cache, err := rediscache.New(redis.NewClient(&redis.Options{}))
	if err != nil {
		log.Fatal(err)
	}
	var _ moovauth.Cache = cache
	creds := moovauth.Credentials{ClientID: server.ClientID, ClientSecret: server.ClientSecret}
	tokens, err := platform.New(creds, platform.WithSource(moovauth.WithBaseURL(server.URL)))
	if err != nil {
		log.Fatal(err)
	}
	source, err := tokens.Source("/ping.read")
	if err != nil {
		log.Fatal(err)
	}
	token, err := source.TokenContext(context.Background())
	if err != nil {
		log.Fatal(err)
	}
	fmt.Println(token.Extra("scope"))
}
`
