// Package bench measures moovauth beside its peers. It is all tests: package
// peers has what is measured, rollover and report are the programs that go
// with them. README.md says how to run them, and has the figures.
package bench
