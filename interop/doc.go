// Package interop has tests, and metrics collectors that can be copied. The tests use
// package moovauth with other packages' clients and authorization servers, and check it
// against Moov's description of its API. They also test a release, from a program that
// requires the released modules. The package is a module of its own, so that users of
// moovauth do not need its dependencies.
package interop
