package virtualnode

import (
	"fmt"
	"strings"
)

// Permissions name what an administrator may allow on one virtual node although a shared platform does not give it.
// What is the host's must be given by the platform, too.
type Permissions struct {
	HostNetwork, HostPID, HostIPC, HostPath, Privileged bool

	UnconfinedSeccomp bool // run under the platform's profile instead of being refused
}

// permissions are the words of --allow.
var permissions = []struct {
	word string
	of   func(p *Permissions) *bool
}{
	{"host-network", func(p *Permissions) *bool { return &p.HostNetwork }},
	{"host-pid", func(p *Permissions) *bool { return &p.HostPID }},
	{"host-ipc", func(p *Permissions) *bool { return &p.HostIPC }},
	{"host-path", func(p *Permissions) *bool { return &p.HostPath }},
	{"privileged", func(p *Permissions) *bool { return &p.Privileged }},
	{"unconfined-seccomp", func(p *Permissions) *bool { return &p.UnconfinedSeccomp }},
}

// PermissionWords are the words that ParsePermissions reads.
func PermissionWords() string {
	var words []string
	for _, p := range permissions {
		words = append(words, p.word)
	}
	return strings.Join(words, ", ")
}

// ParsePermissions reads the words of --allow.
func ParsePermissions(words []string) (Permissions, error) {
	var p Permissions
	for _, w := range words {
		known := false
		for _, one := range permissions {
			if one.word == w {
				*one.of(&p), known = true, true
			}
		}
		if !known {
			return Permissions{}, fmt.Errorf("--allow %q: there are %s", w, PermissionWords())
		}
	}
	return p, nil
}

// unless says which flag would allow what is refused.
func unless(why, word string) string {
	return why + "; --allow " + word + " of the node and of the platform would let it"
}
