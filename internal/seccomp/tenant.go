package seccomp

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"slices"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// Parse reads a tenant's profile, base64 of an OCI profile's JSON, and narrows it to what the platform allows anyway:
// a tenant may forbid more, never less.
func Parse(encoded string) (*specs.LinuxSeccomp, error) {
	body, err := base64.StdEncoding.DecodeString(encoded)
	if err != nil {
		return nil, fmt.Errorf("not base64: %w", err)
	}
	var p specs.LinuxSeccomp
	if err := json.Unmarshal(body, &p); err != nil {
		return nil, fmt.Errorf("not an OCI seccomp profile: %w", err)
	}
	narrow, err := restrict(&p)
	if err != nil {
		return nil, err
	}
	_, err = Compile(narrow)
	return narrow, err
}

func allows(a specs.LinuxSeccompAction) bool { return a == specs.ActAllow || a == specs.ActLog }

// restrict intersects a profile with Default.
func restrict(p *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	ours := Default()
	if allows(p.DefaultAction) {
		return subtract(ours, p)
	}
	out := &specs.LinuxSeccomp{DefaultAction: p.DefaultAction, DefaultErrnoRet: p.DefaultErrnoRet}
	for _, s := range p.Syscalls {
		if !allows(s.Action) {
			out.Syscalls = append(out.Syscalls, s)
			continue
		}
		plain := s
		plain.Names = nil
		for _, name := range s.Names {
			if slices.Contains(allowed, name) {
				plain.Names = append(plain.Names, name)
				continue
			}
			// Calls that we allow by their arguments keep our conditions.
			for _, rule := range ours.Syscalls[1:] {
				if slices.Contains(rule.Names, name) {
					out.Syscalls = append(out.Syscalls, rule)
				}
			}
		}
		if len(plain.Names) > 0 {
			out.Syscalls = append(out.Syscalls, plain)
		}
	}
	return out, nil
}

// subtract takes what a profile that allows by default forbids away from ours.
func subtract(ours, p *specs.LinuxSeccomp) (*specs.LinuxSeccomp, error) {
	forbidden := map[string]bool{}
	for i, s := range p.Syscalls {
		if allows(s.Action) {
			continue
		}
		if len(s.Args) > 0 {
			return nil, fmt.Errorf("syscalls[%d]: conditions on arguments need a profile whose defaultAction forbids", i)
		}
		for _, name := range s.Names {
			forbidden[name] = true
		}
	}
	out := *ours
	out.Syscalls = nil
	for _, s := range ours.Syscalls {
		s.Names = slices.DeleteFunc(slices.Clone(s.Names), func(name string) bool { return forbidden[name] })
		if len(s.Names) > 0 {
			out.Syscalls = append(out.Syscalls, s)
		}
	}
	return &out, nil
}
