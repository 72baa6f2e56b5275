package image

import (
	"slices"
	"sort"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"spillway.dev/spillway/internal/fault"
)

// canonical writes a reference in full, as Docker reads it: nginx is docker.io/library/nginx:latest. With tag and
// digest, the digest decides.
func canonical(ref string) (string, error) {
	named, err := reference.ParseDockerRef(ref)
	if err != nil {
		return "", fault.New(fault.Invalid, "InvalidImageName", "image reference %q is malformed: %v; write registry/repository:tag or registry/repository@sha256:…", ref, err)
	}
	return named.String(), nil
}

// registryOf is the registry of a canonical reference.
func registryOf(name string) string {
	host, _, _ := strings.Cut(name, "/")
	return host
}

// lenient takes blanks in an image's platform as "like this host": small build tools leave them out.
type lenient struct{ platforms.MatchComparer }

// Match says whether an image of platform p runs here.
func (l lenient) Match(p ocispec.Platform) bool {
	if p.OS == "" {
		p.OS = "linux"
	}
	return p.Architecture == "" || l.MatchComparer.Match(p)
}

// access is who may use an image: all, or tenants by name.
type access struct {
	all     bool
	tenants []string
}

// origin is what an image is besides its content.
type origin struct {
	access   access
	imported bool // by the operator: no registry may have it, so it stays until it is removed
}

// Labels under which it is kept with the image's record.
const (
	accessLabel   = "spillway.dev/access"
	importedLabel = "spillway.dev/imported"
)

func parseOrigin(labels map[string]string) origin {
	return origin{access: parseAccess(labels[accessLabel]), imported: labels[importedLabel] != ""}
}

func (o origin) labels() map[string]string {
	labels := map[string]string{accessLabel: o.access.label()}
	if o.imported {
		labels[importedLabel] = "yes"
	}
	return labels
}

// and is the origin of content that came from both.
func (o origin) and(p origin) origin {
	return origin{access: o.access.and(p.access), imported: o.imported || p.imported}
}

// onlyMark begins the label of an image that not all may use; names of tenants follow, if any.
const onlyMark = "only:"

// only is the access of one tenant. The operator, who has no tenant, proves it for nobody.
func only(tenant string) access {
	if tenant == "" {
		return access{}
	}
	return access{tenants: []string{tenant}}
}

func parseAccess(label string) access {
	names, restricted := strings.CutPrefix(label, onlyMark)
	if !restricted {
		return access{all: true}
	}
	return access{tenants: strings.FieldsFunc(names, func(r rune) bool { return r == ',' })}
}

func (a access) label() string {
	if a.all {
		return "all"
	}
	return onlyMark + strings.Join(a.tenants, ",")
}

func (a access) allows(tenant string) bool { return a.all || slices.Contains(a.tenants, tenant) }

// and is the access of those of a and b together.
func (a access) and(b access) access {
	if a.all || b.all {
		return access{all: true}
	}
	tenants := append(slices.Clone(a.tenants), b.tenants...)
	slices.Sort(tenants)
	return access{tenants: slices.Compact(tenants)}
}

func sortImages(list []Image) {
	sort.Slice(list, func(i, j int) bool { return list[i].Ref < list[j].Ref })
}
