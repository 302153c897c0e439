// Package repo has no code, only tests of what surrounds the code: that the
// modules can be released as RELEASING.md says, and that the files in .github
// and CONTRIBUTING.md agree with the tree. It is a module of its own, so that
// what it needs is not required by the others.
package repo
