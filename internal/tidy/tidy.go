// Package tidy holds the rules of this house as tests: what a package may import, how large a thing may grow, what a
// document may point at. They run with all the others.
//
// A rule that does not fit somewhere gets an exception with its reason, in exceptions_test.go; it never gets switched off. The
// package has no code that a program could use. Start reading at layers in layers_test.go.
package tidy
