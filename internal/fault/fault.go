// Package fault is the closed list of error kinds and the one table that maps them to HTTP, ARM and the command line.
//
// An error without a kind is Internal: the caller sees a correlation id, the log the cause. Start at Error.
package fault

import (
	"errors"
	"fmt"
	"net/http"
)

// Kind is what went wrong, as far as a caller can act on it.
type Kind int

// The kinds.
const (
	Internal Kind = iota
	Invalid
	NotFound
	Conflict
	Unauthenticated
	Denied
	Exhausted
	Unavailable
	TooLarge
	Gone
	MethodNotAllowed
	MediaType
)

// Row is one line of the table.
type Row struct {
	Name   string
	Status int    // HTTP
	Code   string // ARM code when the error names none
	Exit   int    // of the command line
}

// table is THE mapping from kinds to what callers see.
var table = map[Kind]Row{
	Internal:         {"internal", http.StatusInternalServerError, "InternalServerError", 1},
	Invalid:          {"invalid", http.StatusBadRequest, "InvalidRequestContent", 1},
	NotFound:         {"not found", http.StatusNotFound, "ResourceNotFound", 3},
	Conflict:         {"conflict", http.StatusConflict, "Conflict", 5},
	Unauthenticated:  {"unauthenticated", http.StatusUnauthorized, "AuthenticationFailed", 4},
	Denied:           {"denied", http.StatusForbidden, "AuthorizationFailed", 4},
	Exhausted:        {"exhausted", http.StatusTooManyRequests, "TooManyRequests", 6},
	Unavailable:      {"unavailable", http.StatusServiceUnavailable, "ServiceUnavailable", 6},
	TooLarge:         {"too large", http.StatusRequestEntityTooLarge, "RequestContentTooLarge", 1},
	Gone:             {"gone", http.StatusGone, "Gone", 5},
	MethodNotAllowed: {"method not allowed", http.StatusMethodNotAllowed, "MethodNotAllowed", 1},
	MediaType:        {"media type", http.StatusUnsupportedMediaType, "UnsupportedMediaType", 1},
}

// Row gives the kind's line of the table.
func (k Kind) Row() Row { return table[k] }

// Error is an error that a caller can act on. Message is for users: what happened, to which object, what to do next.
type Error struct {
	Kind    Kind
	Code    string // ARM code; "" = the table's
	Status  int    // HTTP status; 0 = the table's
	Message string
	Target  string // field or object, when there is one
	Details []Error
}

func (e *Error) Error() string { return e.Message }

// ARMCode is the code that the error body carries.
func (e *Error) ARMCode() string {
	if e.Code != "" {
		return e.Code
	}
	return e.Kind.Row().Code
}

// HTTPStatus is the status of the answer.
func (e *Error) HTTPStatus() int {
	if e.Status != 0 {
		return e.Status
	}
	return e.Kind.Row().Status
}

// New makes an error of a kind with an ARM code ("" for the table's).
func New(kind Kind, code, format string, args ...any) *Error {
	return &Error{Kind: kind, Code: code, Message: fmt.Sprintf(format, args...)}
}

// KindOf finds the kind in a chain of wrapped errors; Internal when there is none.
func KindOf(err error) Kind {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Kind
	}
	return Internal
}

// ForStatus is the kind that an HTTP status stands for.
func ForStatus(status int) Kind {
	for kind, row := range table {
		if row.Status == status {
			return kind
		}
	}
	return Internal
}

// KindNamed finds a kind by its name in the table; Internal when there is none.
func KindNamed(name string) Kind {
	for kind, row := range table {
		if row.Name == name {
			return kind
		}
	}
	return Internal
}
