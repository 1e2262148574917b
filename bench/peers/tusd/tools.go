//go:build tools

// Package tools names the program, so that go.sum pins all that it is built from.
package tools

import _ "github.com/tus/tusd/v2/cmd/tusd"
