package group

import (
	"fmt"
	"path"
	"slices"
	"strings"
)

// Access is something of the machine itself that a group gets only where the administrator gives it away.
type Access string

// What there is to give away; the words of `spillway up --allow`.
const (
	AccessNetwork    Access = "host-network"
	AccessPID        Access = "host-pid"
	AccessIPC        Access = "host-ipc"
	AccessPath       Access = "host-path"
	AccessPrivileged Access = "privileged"
)

// accesses is all of it, in the order in which it is shown.
var accesses = []Access{AccessNetwork, AccessPID, AccessIPC, AccessPath, AccessPrivileged}

// Need is a field of a spec that asks for something of the machine.
type Need struct {
	Access Access
	Field  string // its path in the API's JSON
	Path   string // on the host, of AccessPath
}

// Needs lists all that a spec asks of the machine itself: nothing, for almost every group.
func (s *Spec) Needs() []Need {
	var out []Need
	for _, n := range []struct {
		set bool
		Need
	}{{s.HostNetwork, Need{Access: AccessNetwork, Field: "properties.hostNetwork"}}, {s.HostPID, Need{Access: AccessPID, Field: "properties.hostPID"}},
		{s.HostIPC, Need{Access: AccessIPC, Field: "properties.hostIPC"}}} {
		if n.set {
			out = append(out, n.Need)
		}
	}
	for i := range s.Volumes {
		if h := s.Volumes[i].HostPath; h != nil {
			out = append(out, Need{AccessPath, fmt.Sprintf("properties.volumes[%d].hostPath", i), h.Path})
		}
	}
	for _, list := range []struct {
		name       string
		containers []Container
	}{{"initContainers", s.InitContainers}, {"containers", s.Containers}, {"ephemeralContainers", s.Ephemeral}} {
		for i := range list.containers {
			if list.containers[i].IsPrivileged() {
				out = append(out, Need{Access: AccessPrivileged, Field: fmt.Sprintf("properties.%s[%d].properties.securityContext.privileged", list.name, i)})
			}
		}
	}
	return out
}

// IsPrivileged says whether the container has all that the machine's own root has.
func (c *Container) IsPrivileged() bool { return c.Security != nil && c.Security.Privileged }

// Allowance is what of the machine an administrator gives to groups. The zero value gives nothing.
type Allowance struct {
	given map[Access]bool
	paths []string // directories below which host paths lie
}

// ParseAllowance reads words such as host-network; host-path=/DIR gives the paths in and below one directory only.
func ParseAllowance(words []string) (Allowance, error) {
	a := Allowance{given: map[Access]bool{}}
	for _, w := range words {
		name, dir, limited := strings.Cut(w, "=")
		access := Access(name)
		if !slices.Contains(accesses, access) || limited && access != AccessPath {
			return Allowance{}, fmt.Errorf("%q: there are %s; host-path=/DIR gives one directory", w, list(accesses))
		}
		if limited && (!path.IsAbs(dir) || path.Clean(dir) != dir) {
			return Allowance{}, fmt.Errorf("%q: the directory must be an absolute path without '..' and a '/' at its end", w)
		}
		a.given[access] = true
		if access == AccessPath {
			a.paths = append(a.paths, path.Join("/", dir))
		}
	}
	return a, nil
}

func list(all []Access) string {
	var words []string
	for _, a := range all {
		words = append(words, string(a))
	}
	return strings.Join(words, ", ")
}

// Any says whether anything is given at all.
func (a Allowance) Any() bool { return len(a.given) > 0 }

// Words are what is given, without the limits of paths.
func (a Allowance) Words() []string {
	var words []string
	for _, access := range accesses {
		if a.given[access] {
			words = append(words, string(access))
		}
	}
	return words
}

// Lacks are those needs that are not given.
func (a Allowance) Lacks(needs []Need) []Need {
	return slices.DeleteFunc(slices.Clone(needs), func(n Need) bool {
		if n.Access == AccessPath {
			_, ok := a.Base(n.Path)
			return ok
		}
		return a.given[n.Access]
	})
}

// Base is the given directory that a path of the host lies in, the innermost one. A path leads out of it by a symbolic
// link only, which whoever opens it has to see to.
func (a Allowance) Base(p string) (string, bool) {
	best := ""
	for _, dir := range a.paths {
		if below := strings.TrimSuffix(dir, "/") + "/"; (p == dir || strings.HasPrefix(p, below)) && len(dir) > len(best) {
			best = dir
		}
	}
	return best, best != ""
}

// Refusal says which flag of the platform would give what is not given.
func (n Need) Refusal() string {
	flag := "'spillway up --allow " + string(n.Access) + "'"
	if n.Access == AccessPath {
		return fmt.Sprintf("this platform does not give the path %s of the machine to groups; its administrator may with %s", n.Path, flag)
	}
	what := map[Access]string{AccessNetwork: "the machine's network", AccessPID: "the machine's processes", AccessIPC: "the machine's IPC objects",
		AccessPrivileged: "the machine as a whole"}[n.Access]
	return fmt.Sprintf("this platform does not give %s to groups; its administrator may with %s", what, flag)
}
