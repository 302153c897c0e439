// Package interop holds tests, and collectors of metrics to copy. The tests use
// package moovauth with the clients that its users plug it into, against
// authorization servers that others wrote, and against Moov's description of its
// API. They also test the repository from outside, as a program that requires the
// released modules. It is a module of its own, so that none of them reaches those
// who import moovauth.
package interop
