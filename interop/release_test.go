package interop

// This file tests that the modules can be released as RELEASING.md says, and that
// .github and CONTRIBUTING.md agree with the repository.

import (
	"encoding/json"
	"fmt"
	"net/url"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
	"golang.org/x/mod/module"
	"golang.org/x/mod/semver"
	modzip "golang.org/x/mod/zip"
)

const rootModule = "github.com/moovauth/moovauth"

// released lists the folders of the modules that users require.
var released = []string{".", "rediscache", "platform"}

func modulePath(folder string) string { return path.Join(rootModule, folder) }

// inRepository returns the text of a file of the repository.
func inRepository(t *testing.T, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("..", filepath.FromSlash(name)))
	require.NoError(t, err)
	return string(text)
}

// modules returns every module of the repository, by its folder: "." is the root.
func modules(t *testing.T) map[string]*modfile.File {
	t.Helper()
	found := make(map[string]*modfile.File)
	for _, name := range strings.Fields(output(t, "git", "ls-files", "*go.mod")) {
		mod, err := modfile.Parse(name, []byte(inRepository(t, name)), nil)
		require.NoError(t, err)
		found[path.Dir(name)] = mod
	}
	require.Contains(t, found, ".")
	return found
}

// output runs a command in the root's folder and returns what it prints.
func output(t *testing.T, name string, args ...string) string {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Dir = ".."
	out, err := cmd.Output()
	require.NoError(t, err)
	return string(out)
}

// treeVersion returns the first version in the changelog. It is the version of this
// tree or, before the release, the next one.
func treeVersion(t *testing.T) string {
	t.Helper()
	_, rest, _ := strings.Cut(inRepository(t, "CHANGELOG.md"), "\n## ")
	number, _, _ := strings.Cut(rest, " ")
	require.True(t, semver.IsValid("v"+number), number)
	return "v" + number
}

// This tree is built with the replace directives. A program that requires a module
// uses only the require lines of the module's go.mod.
func TestModulesRequireEachOtherAtTheVersionOfTheChangelog(t *testing.T) {
	all := modules(t)
	for folder, mod := range all {
		assert.Equal(t, modulePath(folder), mod.Module.Mod.Path)
		replaced := make(map[string]string)
		for _, r := range mod.Replace {
			replaced[r.Old.Path] = path.Join(folder, r.New.Path)
		}
		for _, r := range mod.Require {
			if !strings.HasPrefix(r.Mod.Path+"/", rootModule+"/") {
				continue
			}
			assert.Equal(t, treeVersion(t), r.Mod.Version, "%s/go.mod: %s", folder, r.Mod.Path)
			assert.Equal(t, r.Mod.Path, modulePath(replaced[r.Mod.Path]), "%s/go.mod: %s must be built from this tree", folder, r.Mod.Path)
		}
	}
	assert.Empty(t, all["."].Replace, "go run and go install refuse a module with replace directives")
}

func TestDependabotKnowsEveryModule(t *testing.T) {
	text := inRepository(t, ".github/dependabot.yml")
	all := modules(t)
	for folder := range all {
		assert.Contains(t, text, "\n      - "+path.Join("/", folder)+"\n")
	}
	assert.Equal(t, len(all), strings.Count(text, "\n      - /"), "a folder without a module")
}

func TestEachCIStepIsRunAndExplained(t *testing.T) {
	_, steps, _ := strings.Cut(output(t, "bash", ".ci/run", "-h"), "\n")
	require.NotEmpty(t, strings.Fields(steps))
	workflows := inRepository(t, ".github/workflows/ci.yml") + inRepository(t, ".github/workflows/nightly.yml")
	for _, step := range strings.Fields(steps) {
		assert.Regexp(t, `(\.ci/run |step: \[(.*, )?)`+step+`\b`, workflows)
		assert.Contains(t, inRepository(t, "CONTRIBUTING.md"), "\n| `"+step+"` | ")
	}
}

func TestPagesNameFilesThatExist(t *testing.T) {
	name := regexp.MustCompile(`\]\(([^):]+)\)|` + "`([a-z_/]+\\.(?:go|md))`")
	for _, page := range []string{"CONTRIBUTING.md", "RELEASING.md"} {
		for _, m := range name.FindAllStringSubmatch(inRepository(t, page), -1) {
			assert.FileExists(t, filepath.Join("..", m[1]+m[2]), page)
		}
	}
}

// TestOutsiderBuilds releases this tree to a module proxy in a folder. Then it
// requires the modules from a program outside of the repository.
func TestOutsiderBuilds(t *testing.T) {
	if testing.Short() {
		t.Skip("-short: this test builds all modules again")
	}
	v := treeVersion(t)
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

	// A reader of pkg.go.dev can run the example without a clone.
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
	write(v+".mod", inRepository(t, path.Join(folder, "go.mod")))

	zip, err := os.Create(filepath.Join(dir, v+".zip"))
	require.NoError(t, err)
	require.NoError(t, modzip.CreateFromDir(zip, m, filepath.Join("..", folder))) // it leaves out nested modules
	require.NoError(t, zip.Close())
}

// outsiderGo returns a function that runs the go command in dir and returns its
// output. Our modules come from proxy. All others come from this machine's module
// cache, or from its usual module proxy.
func outsiderGo(t *testing.T, dir, proxy string) func(args ...string) string {
	env, err := exec.Command("go", "env", "GOMODCACHE", "GOPROXY").Output()
	require.NoError(t, err)
	cache, upstream, _ := strings.Cut(strings.TrimSpace(string(env)), "\n")
	fileURL := func(dir string) string { return (&url.URL{Scheme: "file", Path: filepath.ToSlash(dir)}).String() }
	environment := append(os.Environ(),
		"GOPROXY="+strings.Join([]string{fileURL(proxy), fileURL(filepath.Join(cache, "cache", "download")), upstream}, ","),
		"GOMODCACHE="+t.TempDir(), // so that our version does not stay in this machine's module cache
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
