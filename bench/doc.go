// Package bench compares moovauth with other packages that cache tokens, its
// peers. It contains only benchmarks and tests. Package peers has the code that is
// measured. README.md has the figures and says how to obtain them.
package bench
