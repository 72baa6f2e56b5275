package sandbox

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// user is who a program runs as.
type user struct {
	uid, gid uint32
	groups   []uint32
	home     string
}

// maxID is the largest id that no kernel interface wraps to another user.
const maxID = 1<<31 - 1

// lookUpUser resolves user[:group], names or numbers, against the image's files. An id without a line in passwd is
// fine and belongs to group 0.
func lookUpUser(spec string, passwd, groupFile []byte) (user, error) {
	name, groupName, hasGroup := strings.Cut(spec, ":")
	u := user{home: "/"}
	if name == "" {
		name = "0"
	}
	wanted, numeric := parseID(name)
	found := false
	for line := range strings.SplitSeq(string(passwd), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 6 {
			continue
		}
		uid, ok := parseID(f[2])
		if !ok || f[0] != name && (!numeric || uid != wanted) {
			continue
		}
		gid, ok := parseID(f[3])
		if !ok {
			continue
		}
		u.uid, u.gid, name, found = uid, gid, f[0], true
		if strings.HasPrefix(f[5], "/") {
			u.home = f[5]
		}
		break
	}
	if !found {
		if !numeric {
			return u, fmt.Errorf("user %q: not in the image's /etc/passwd", clip(name))
		}
		u.uid = wanted
	}
	return u.withGroup(name, groupName, hasGroup && groupName != "", groupFile)
}

func (u user) withGroup(name, groupName string, explicit bool, groupFile []byte) (user, error) {
	wanted, numeric := parseID(groupName)
	resolved := explicit && numeric
	if resolved {
		u.gid = wanted
	}
	for line := range strings.SplitSeq(string(groupFile), "\n") {
		f := strings.Split(line, ":")
		if len(f) < 4 {
			continue
		}
		gid, ok := parseID(f[2])
		if !ok {
			continue
		}
		if explicit && !resolved && f[0] == groupName {
			u.gid, resolved = gid, true
		}
		if explicit {
			continue
		}
		for member := range strings.SplitSeq(f[3], ",") {
			if member == name && member != "" {
				u.groups = append(u.groups, gid)
			}
		}
	}
	if explicit && !resolved {
		return u, fmt.Errorf("group %q: not in the image's /etc/group", clip(groupName))
	}
	// The own group is listed too: otherwise a set-group-id program could shed it, and with it what it forbids.
	if !slices.Contains(u.groups, u.gid) {
		u.groups = append([]uint32{u.gid}, u.groups...)
	}
	return u, nil
}

func parseID(s string) (uint32, bool) {
	n, err := strconv.ParseUint(s, 10, 32)
	return uint32(n), err == nil && n <= maxID
}
