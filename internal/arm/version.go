// Package arm is the wire format of the Azure Container Instances API: resource ids, api-versions, request bodies in,
// resources out.
//
// It is pure: bytes and vocabulary types in, vocabulary types and bytes out. It must never do IO, read a clock or
// return a secret. Start reading at Decode (body → group) and Render (group → body).
package arm

import (
	"sort"
	"strings"

	"spillway.dev/spillway/internal/fault"
)

// Version is one api-version. Later ones rank higher; a field names the first version that has it.
type Version struct {
	Name string
	rank int
	// PollByLocation: answers of long operations carry Location and Retry-After beside Azure-AsyncOperation.
	PollByLocation bool
	// Superset: fields that Azure's model lacks exist, and names follow Kubernetes' looser rules.
	Superset bool
}

// Superset is the name of Spillway's own api-version.
const Superset = "2026-11-01-spillway"

// The api-versions, oldest first. versions is THE table: routes, decoding and rendering all look here.
var (
	v2022   = Version{Name: "2022-10-01-preview", rank: 1}
	v2023   = Version{Name: "2023-05-01", rank: 2}
	v2025   = Version{Name: "2025-09-01", rank: 3, PollByLocation: true}
	vOwn    = Version{Name: Superset, rank: 4, PollByLocation: true, Superset: true}
	version = []Version{v2022, v2023, v2025, vOwn}
)

// Versions lists the names of all api-versions, newest first.
func Versions() []string {
	names := make([]string, 0, len(version))
	for i := len(version) - 1; i >= 0; i-- {
		names = append(names, version[i].Name)
	}
	return names
}

// ParseVersion finds an api-version. Errors: invalid, for a missing or unknown one.
func ParseVersion(name string) (Version, error) {
	if name == "" {
		return Version{}, fault.New(fault.Invalid, "MissingApiVersionParameter",
			"The api-version query parameter (?api-version=) is required for all requests. Use one of %s.", strings.Join(Versions(), ", "))
	}
	for _, v := range version {
		if strings.EqualFold(v.Name, name) {
			return v, nil
		}
	}
	return Version{}, fault.New(fault.Invalid, "InvalidApiVersionParameter",
		"The api-version '%s' is invalid. The supported versions are '%s'.", clip(name), strings.Join(Versions(), ","))
}

// SupersetVersion is Spillway's own api-version.
func SupersetVersion() Version { return vOwn }

// DatedVersion is an api-version of a resource that is the same in all of them.
func DatedVersion(name string) Version { return Version{Name: name} }

func (v Version) has(since Version) bool { return v.rank >= since.rank }

// clip shortens what a caller sent before it goes into a message.
func clip(s string) string {
	const most = 120
	if len(s) <= most {
		return s
	}
	return strings.ToValidUTF8(s[:most], "") + "…"
}

func sortedKeys[V any](m map[string]V) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}
