package repo

import (
	"bytes"
	"maps"
	"os/exec"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// decode reads a YAML file into a T, which knows all the keys that the file may have.
func decode[T any](t *testing.T, name string) (v T) {
	t.Helper()
	d := yaml.NewDecoder(bytes.NewReader([]byte(read(t, name))))
	d.KnownFields(true)
	require.NoError(t, d.Decode(&v), name)
	return v
}

type workflow struct {
	Name        string
	On          map[string]any
	Permissions map[string]string
	Concurrency map[string]any
	Jobs        map[string]struct {
		Name     string
		RunsOn   string `yaml:"runs-on"`
		Timeout  int    `yaml:"timeout-minutes"`
		Strategy struct {
			FailFast bool `yaml:"fail-fast"`
			Matrix   map[string][]string
		}
		Steps []struct {
			Uses, Run, If string
			With, Env     map[string]string
		}
	}
}

func workflows(t *testing.T) map[string]workflow {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, ".github", "workflows", "*"))
	require.NoError(t, err)
	found := make(map[string]workflow)
	for _, file := range files {
		name := filepath.Base(file)
		found[name] = decode[workflow](t, ".github/workflows/"+name)
	}
	require.NotEmpty(t, found)
	return found
}

// ciSteps are the steps that .ci/run has.
func ciSteps(t *testing.T) []string {
	t.Helper()
	out, err := exec.Command("bash", filepath.Join(root, ".ci", "run"), "-h").Output()
	require.NoError(t, err)
	_, list, _ := strings.Cut(string(out), "\n")
	require.NotEmpty(t, strings.Fields(list))
	return strings.Fields(list)
}

func TestWorkflowsRunEveryStep(t *testing.T) {
	steps := make(map[string]bool)
	for name, w := range workflows(t) {
		assert.Equal(t, map[string]string{"contents": "read"}, w.Permissions, name)
		assert.NotEmpty(t, w.On, name)
		for _, job := range w.Jobs {
			assert.NotEmpty(t, job.RunsOn, name)
			assert.NotZero(t, job.Timeout, name)
			for _, step := range job.Steps {
				assert.NotEqual(t, step.Uses == "", step.Run == "", name)
				args, is := strings.CutPrefix(step.Run, ".ci/run")
				if !is {
					continue
				}
				if args = strings.TrimSpace(args); args == "${{ matrix.step }}" {
					args = strings.Join(job.Strategy.Matrix["step"], " ")
				}
				for _, arg := range strings.Fields(args) {
					steps[arg] = true
				}
			}
		}
	}
	assert.ElementsMatch(t, ciSteps(t), slices.Collect(maps.Keys(steps)))
}

var pinnedAction = regexp.MustCompile(`^[\w-]+/[\w-]+@v\d+$`)

func TestActionsArePinnedByMajorVersion(t *testing.T) {
	for name, w := range workflows(t) {
		for _, job := range w.Jobs {
			for _, step := range job.Steps {
				if step.Uses != "" {
					assert.Regexp(t, pinnedAction, step.Uses, name)
				}
			}
		}
	}
}

func TestDependabotKnowsEveryModule(t *testing.T) {
	config := decode[struct {
		Version int
		Updates []struct {
			Ecosystem   string `yaml:"package-ecosystem"`
			Directory   string
			Directories []string
			Schedule    map[string]string
			Groups      map[string]any
		}
	}](t, ".github/dependabot.yml")
	assert.Equal(t, 2, config.Version)
	folders := make(map[string][]string)
	for _, u := range config.Updates {
		assert.NotEmpty(t, u.Schedule["interval"])
		folders[u.Ecosystem] = append(folders[u.Ecosystem], u.Directories...)
		if u.Directory != "" {
			folders[u.Ecosystem] = append(folders[u.Ecosystem], u.Directory)
		}
	}
	var want []string
	for folder := range modules(t) {
		want = append(want, path.Join("/", folder))
	}
	assert.ElementsMatch(t, want, folders["gomod"])
	assert.Equal(t, []string{"/"}, folders["github-actions"])
}

func TestIssueFormAsksForWhatIsNeeded(t *testing.T) {
	form := decode[struct {
		Name, Description string
		Labels            []string
		Body              []struct {
			Type, ID    string
			Attributes  struct{ Label, Description, Placeholder, Render string }
			Validations struct{ Required bool }
		}
	}](t, ".github/ISSUE_TEMPLATE/bug.yml")
	required := make(map[string]string)
	for _, field := range form.Body {
		assert.Contains(t, []string{"input", "textarea"}, field.Type)
		assert.NotEmpty(t, field.Attributes.Label)
		if field.Validations.Required {
			required[field.ID] = field.Attributes.Description
		}
	}
	assert.Contains(t, required["version"], rootModule)
	assert.Contains(t, required["request-id"], "RequestID")
	assert.Contains(t, required["log"], "slog.LevelDebug")
	decode[map[string]any](t, ".github/ISSUE_TEMPLATE/config.yml")
}

func TestContributingExplainsEveryStep(t *testing.T) {
	text := read(t, "CONTRIBUTING.md")
	for _, step := range ciSteps(t) {
		assert.Contains(t, text, "\n| `"+step+"` | ", step)
	}
}

// The variables that tests read, and that somebody may want to set.
func TestContributingNamesEverySeed(t *testing.T) {
	text := read(t, "CONTRIBUTING.md")
	files, err := filepath.Glob(filepath.Join(root, "*_test.go"))
	require.NoError(t, err)
	found := make(map[string]bool)
	for _, file := range files {
		for _, name := range regexp.MustCompile(`"([A-Z]+_(?:SEED|RUNS))"`).FindAllStringSubmatch(read(t, filepath.Base(file)), -1) {
			found[name[1]] = true
			assert.Contains(t, text, "`"+name[1]+"=n`", file)
		}
	}
	assert.Len(t, found, 3)
}

// Files and folders that the two pages and the issue form name are there.
func TestPagesNameWhatExists(t *testing.T) {
	link := regexp.MustCompile(`\]\(([^):]+)\)|` + "`([a-z_/]+\\.(?:go|md))`")
	for _, page := range []string{"CONTRIBUTING.md", "RELEASING.md"} {
		found := link.FindAllStringSubmatch(read(t, page), -1)
		for _, m := range found {
			assert.FileExists(t, filepath.Join(root, m[1]+m[2]), page)
		}
	}
}
