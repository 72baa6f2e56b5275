package arm

import (
	"fmt"
	"regexp"
	"strings"
)

// The grammar of image references, as registries define it.
var (
	refDomain = regexp.MustCompile(`^(?:(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9])(?:\.(?:[a-zA-Z0-9]|[a-zA-Z0-9][a-zA-Z0-9-]*[a-zA-Z0-9]))*|\[[a-fA-F0-9:]+\])(?::[0-9]{1,5})?$`)
	refPath   = regexp.MustCompile(`^[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*)*$`)
	refTag    = regexp.MustCompile(`^[\w][\w.-]{0,127}$`)
	refDigest = regexp.MustCompile(`^[A-Za-z][A-Za-z0-9]*(?:[-_+.][A-Za-z][A-Za-z0-9]*)*:[0-9a-fA-F]{32,}$`)
)

// maxRepository is the longest repository name, registry included.
const maxRepository = 255

// ImageRef is an image reference in its parts.
type ImageRef struct {
	Registry   string // "" when the reference names none
	Repository string
	Tag        string
	Digest     string
}

// ParseImageRef splits an image reference; the error says which part is malformed.
func ParseImageRef(s string) (ImageRef, error) {
	var ref ImageRef
	rest := s
	if i := strings.IndexByte(rest, '@'); i >= 0 {
		rest, ref.Digest = rest[:i], rest[i+1:]
		if !refDigest.MatchString(ref.Digest) {
			return ref, fmt.Errorf("the digest '%s' is malformed", clip(ref.Digest))
		}
		if alg, hex, _ := strings.Cut(ref.Digest, ":"); alg == "sha256" && len(hex) != 64 {
			return ref, fmt.Errorf("a sha256 digest has 64 hex digits, got %d", len(hex))
		}
	}
	if i := strings.LastIndexByte(rest, ':'); i > strings.LastIndexByte(rest, '/') {
		rest, ref.Tag = rest[:i], rest[i+1:]
		if !refTag.MatchString(ref.Tag) {
			return ref, fmt.Errorf("the tag '%s' is malformed", clip(ref.Tag))
		}
	}
	if head, tail, ok := strings.Cut(rest, "/"); ok && (strings.ContainsAny(head, ".:") || head == "localhost" || strings.ToLower(head) != head) {
		ref.Registry, rest = head, tail
		if !refDomain.MatchString(head) {
			return ref, fmt.Errorf("the registry '%s' is malformed", clip(head))
		}
	}
	ref.Repository = rest
	switch {
	case rest == "":
		return ref, fmt.Errorf("the repository is missing")
	case len(ref.Registry)+1+len(rest) > maxRepository:
		return ref, fmt.Errorf("the repository name is longer than %d characters", maxRepository)
	case strings.ToLower(rest) != rest:
		return ref, fmt.Errorf("the repository '%s' must be lower-case", clip(rest))
	case !refPath.MatchString(rest):
		return ref, fmt.Errorf("the repository '%s' is malformed", clip(rest))
	}
	return ref, nil
}
