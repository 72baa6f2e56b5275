package arm

import (
	"fmt"
	"path"
	"strconv"
	"strings"

	"spillway.dev/spillway/internal/group"
)

// validate checks the rules that span several fields; the fields themselves are fine by now.
func (d *decoder) validate(r *Request) {
	s := &r.Spec
	d.counts(s)
	d.uniqueNames(s)
	d.mounts(s)
	d.portClashes(s)
	d.totals(s)
	d.host(s)
	d.gpus(s)
	d.inSubnet(s)
	if s.Priority == "Spot" && s.IP != nil {
		d.fault("SpotPriorityContainerGroupNotSupportedForInboundConnectivity", "properties.ipAddress", "Spot Priority is not supported for container groups with inbound connectivity.")
	}
	if r.Location == "" && !d.version.Superset {
		d.fault("LocationRequired", "location", "The field 'location' is required for this resource.")
	}
	servers := map[string]bool{}
	for i, c := range s.Credentials {
		if servers[c.Server] {
			d.fault("", fmt.Sprintf("properties.imageRegistryCredentials[%d].server", i), "The registry server '%s' has two credentials; give one.", c.Server)
		}
		servers[c.Server] = true
	}
}

// inSubnet checks what goes with a subnet.
func (d *decoder) inSubnet(s *group.Spec) {
	if s.Subnet == nil {
		return
	}
	if s.IP != nil && s.IP.Public {
		d.fault("", "properties.ipAddress.type", "The field 'properties.ipAddress.type' must be 'Private' for a container group in a subnet: an address of a virtual network is not reached from outside.")
	}
	if s.Network != "" && !strings.Contains(s.Network, ":") { // else it is the key of the subnet's own network
		d.fault("", "properties.network", "The fields 'properties.network' and 'properties.subnetIds' exclude each other: a subnet is one of a network.")
	}
}

func (d *decoder) counts(s *group.Spec) {
	if len(s.Containers) == 0 {
		d.fault("", "properties.containers", "The field 'properties.containers' must hold at least one container.")
	}
	most := func(what string, n, limit int) {
		if n > limit {
			d.fault("", "properties."+what, "The field 'properties.%s' has %d entries; at most %d are allowed in a container group.", what, n, limit)
		}
	}
	most("containers", len(s.Containers), group.MaxContainers)
	most("initContainers", len(s.InitContainers), group.MaxInitContainers)
	volumes := group.MaxVolumes
	if d.version.Superset {
		volumes = group.MaxOwnVolumes
	}
	most("volumes", len(s.Volumes), volumes)
}

func (d *decoder) uniqueNames(s *group.Spec) {
	seen := map[string]bool{}
	for _, c := range s.InitContainers {
		d.unique(seen, "container", "properties.initContainers", c.Name)
	}
	for _, c := range s.Containers {
		d.unique(seen, "container", "properties.containers", c.Name)
	}
	for _, c := range s.Ephemeral {
		d.unique(seen, "container", "properties.ephemeralContainers", c.Name)
	}
	volumes := map[string]bool{}
	for _, v := range s.Volumes {
		d.unique(volumes, "volume", "properties.volumes", v.Name)
	}
}

func (d *decoder) unique(seen map[string]bool, what, path, name string) {
	if seen[name] {
		d.fault("DuplicateName", path, "The %s name '%s' is used twice in container group '%s'. Names must be unique.", what, name, d.group)
	}
	seen[name] = true
}

func (d *decoder) mounts(s *group.Spec) {
	volumes, host := map[string]bool{}, map[string]bool{}
	for _, v := range s.Volumes {
		volumes[v.Name], host[v.Name] = true, v.HostPath != nil
	}
	for _, list := range [][]group.Container{s.InitContainers, s.Containers, s.Ephemeral} {
		for _, c := range list {
			paths := map[string]bool{}
			for _, m := range c.Mounts {
				if !volumes[m.Volume] {
					d.fault("", "properties.volumes", "The container '%s' mounts the volume '%s', which the container group '%s' does not define.", c.Name, clip(m.Volume), d.group)
				}
				clean := path.Clean(m.Path)
				if reservedMount(clean, host[m.Volume]) {
					d.fault("", "properties.containers", "The mount path '%s' of container '%s' belongs to the platform. Choose another.", clip(m.Path), c.Name)
				}
				if paths[clean] {
					d.fault("", "properties.containers", "The container '%s' mounts two volumes at '%s'.", c.Name, clip(m.Path))
				}
				paths[clean] = true
			}
		}
	}
}

// portClashes finds ports that two containers of the shared network claim.
func (d *decoder) portClashes(s *group.Spec) {
	owner := map[group.Port]string{}
	for _, list := range [][]group.Container{s.InitContainers, s.Containers} {
		for _, c := range list {
			for _, p := range c.Ports {
				if other, taken := owner[p]; taken {
					d.fault("DuplicatePort", "properties.containers", "The port %d/%s of container '%s' is also a port of container '%s'; the containers of a group share one network.", p.Number, p.Protocol, c.Name, other)
				}
				owner[p] = c.Name
			}
		}
	}
	if s.IP == nil {
		return
	}
	seen := map[group.Port]bool{}
	for _, p := range s.IP.Ports {
		if seen[p] {
			d.fault("DuplicatePort", "properties.ipAddress.ports", "The port %d/%s is listed twice in 'properties.ipAddress.ports'.", p.Number, p.Protocol)
		}
		seen[p] = true
	}
}

// totals checks limits against requests, and both against what a group may have.
func (d *decoder) totals(s *group.Spec) {
	total := s.Total()
	if total.MilliCPU > group.MaxMilliCPU || total.Memory > group.MaxMemory {
		d.fault("InvalidResourceRequest", "properties.containers", "The container group '%s' requests %s CPU and %s GB memory; at most %s CPU and %s GB are allowed for a group.",
			d.group, Cores(total.MilliCPU), Gigabytes(total.Memory), Cores(group.MaxMilliCPU), Gigabytes(group.MaxMemory))
	}
	for _, c := range s.Containers {
		d.limit(c.Name, "Cpu", Cores, [3]int64{c.Requests.MilliCPU, c.Limits.MilliCPU, total.MilliCPU})
		d.limit(c.Name, "MemoryInGB", Gigabytes, [3]int64{c.Requests.Memory, c.Limits.Memory, total.Memory})
	}
	for _, c := range s.InitContainers {
		d.limit(c.Name, "Cpu", Cores, [3]int64{c.Requests.MilliCPU, c.Limits.MilliCPU, c.Limits.MilliCPU})
		d.limit(c.Name, "MemoryInGB", Gigabytes, [3]int64{c.Requests.Memory, c.Limits.Memory, c.Limits.Memory})
	}
}

// limit checks one amount: request, limit and the group's total.
func (d *decoder) limit(container, what string, show func(int64) string, amounts [3]int64) {
	request, limit, total := amounts[0], amounts[1], amounts[2]
	if limit == 0 || limit == group.Unlimited {
		return
	}
	if limit < request {
		d.fault("InvalidResourceLimit", "properties.containers", "The '%s' limit '%s' in container '%s' is less than its request '%s'.", what, show(limit), container, show(request))
	}
	if limit > total && !d.version.Superset {
		d.fault("ContainerLimitGreaterThanContainerGroupTotalRequest", "properties.containers", "The '%s' limit '%s' in container '%s' is greater than the total request '%s' of container group '%s'.", what, show(limit), container, show(total), d.group)
	}
}

// Cores shows thousandths of a core as cores.
func Cores(milli int64) string { return strconv.FormatFloat(float64(milli)/1000, 'f', -1, 64) }

// Gigabytes shows bytes as GB.
func Gigabytes(bytes int64) string { return strconv.FormatFloat(inGB(bytes), 'f', -1, 64) }
