package arm

import (
	"fmt"
	"net/url"
	"strings"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// Provider is the resource provider namespace; the types are those of container groups, service addresses, virtual
// networks and resource groups.
const (
	Provider          = "Microsoft.ContainerInstance"
	GroupType         = Provider + "/containerGroups"
	AddressType       = Provider + "/serviceAddresses"
	NetworkProvider   = "Microsoft.Network"
	NetworkType       = NetworkProvider + "/virtualNetworks"
	ResourceGroupType = "Microsoft.Resources/resourceGroups"
)

// Domain is the last part of every name that a DNS label makes.
const Domain = "spillway.internal"

// FQDN is the name of a group with a DNS label.
func FQDN(label, location string) string {
	return strings.ToLower(label) + "." + strings.ToLower(location) + "." + Domain
}

// ResourceGroupID renders the id of a resource group.
func ResourceGroupID(subscription, name string) string {
	return "/subscriptions/" + subscription + "/resourceGroups/" + name
}

// ID renders the canonical id of a container group.
func ID(ref group.Ref) string {
	return ResourceGroupID(ref.Subscription, ref.ResourceGroup) + "/providers/" + GroupType + "/" + ref.Name
}

// AddressID renders the canonical id of a service address.
func AddressID(ref group.Ref) string {
	return ResourceGroupID(ref.Subscription, ref.ResourceGroup) + "/providers/" + AddressType + "/" + ref.Name
}

// NetworkID renders the canonical id of a virtual network.
func NetworkID(ref group.Ref) string {
	return ResourceGroupID(ref.Subscription, ref.ResourceGroup) + "/providers/" + NetworkType + "/" + ref.Name
}

// SubnetID renders the canonical id of a subnet.
func SubnetID(network group.Ref, name string) string { return NetworkID(network) + "/subnets/" + name }

// ParseSubnetID reads the id of a subnet as ParseID does that of a group. Errors: invalid.
func ParseSubnetID(id string) (*group.Subnet, error) {
	segments, err := Segments(id)
	if err != nil {
		return nil, err
	}
	want := []string{"subscriptions", "", "resourcegroups", "", "providers", strings.ToLower(NetworkProvider), "virtualnetworks", "", "subnets", ""}
	fits := len(segments) == len(want)
	for i := 0; fits && i < len(want); i++ {
		fits = want[i] == "" || strings.EqualFold(segments[i], want[i])
	}
	if !fits {
		return nil, fault.New(fault.Invalid, "InvalidResourceId", "The subnet id '%s' is malformed. It must look like %s.", clip(id),
			SubnetID(group.Ref{Subscription: "{subscription}", ResourceGroup: "{resourceGroup}", Name: "{virtualNetwork}"}, "{subnet}"))
	}
	return &group.Subnet{Network: group.Ref{Subscription: segments[1], ResourceGroup: segments[3], Name: segments[7]}, Name: segments[9]}, nil
}

// ParseID reads the id of a container group; case, double and trailing slashes do not matter. Errors: invalid.
func ParseID(id string) (group.Ref, error) {
	segments, err := Segments(id)
	if err != nil {
		return group.Ref{}, err
	}
	want := []string{"subscriptions", "", "resourcegroups", "", "providers", strings.ToLower(Provider), "containergroups", ""}
	if len(segments) != len(want) {
		return group.Ref{}, badID(id)
	}
	for i, w := range want {
		if w != "" && !strings.EqualFold(segments[i], w) {
			return group.Ref{}, badID(id)
		}
	}
	return group.Ref{Subscription: segments[1], ResourceGroup: segments[3], Name: segments[7]}, nil
}

func badID(id string) error {
	return fault.New(fault.Invalid, "InvalidResourceId",
		"The resource id '%s' is malformed. It must look like %s.", clip(id), ID(group.Ref{Subscription: "{subscription}", ResourceGroup: "{resourceGroup}", Name: "{name}"}))
}

// Segments splits an escaped path into its unescaped parts; empty parts vanish. Errors: invalid, for a broken escape
// or a part that would read as another path.
func Segments(path string) ([]string, error) {
	var out []string
	for part := range strings.SplitSeq(path, "/") {
		if part == "" {
			continue
		}
		s, err := url.PathUnescape(part)
		if err != nil || strings.ContainsAny(s, "/\\\x00") || s == "." || s == ".." {
			return nil, fault.New(fault.Invalid, "InvalidResourceId", "The path segment '%s' is malformed.", clip(part))
		}
		out = append(out, s)
	}
	return out, nil
}

// Key is the canonical form of a reference: equal for all spellings of one group.
func Key(ref group.Ref) string {
	return strings.ToLower(fmt.Sprintf("%s/%s/%s", ref.Subscription, ref.ResourceGroup, ref.Name))
}
