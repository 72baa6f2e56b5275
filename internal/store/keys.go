package store

import "strings"

// The layout: every key of the platform is made here. Names that users choose are lower-cased by the callers, and
// hold no slash.
const (
	Root           = "/spillway/"
	Groups         = Root + "groups/"         // subscription/resource group/name → group
	Statuses       = Root + "statuses/"       // uid → last status worth keeping
	ResourceGroups = Root + "resourcegroups/" // subscription/name → resource group
	Labels         = Root + "labels/"         // location/label → uid
	Addresses      = Root + "addresses/"      // subscription/resource group/name → service address
	AddressIPs     = Root + "addressips/"     // subscription/network/address → uid
	Networks       = Root + "networks/"       // subscription/resource group/name → virtual network
	SubnetIPs      = Root + "subnetips/"      // uid of a virtual network/address → uid of a group
	Hosts          = Root + "hosts/"          // name → what the platform wants of a host
	NetworkIDs     = Root + "networkids/"     // subscription/network → VXLAN id
	Range          = Root + "range"           // → the range of all groups' addresses, of servers that share a store
	Principals     = Root + "principals/"     // client id → principal
	SigningKeys    = Root + "signingkeys/"    // key id → token signing key
	Tenant         = Root + "tenant"          // → tenant and subscriptions
	JoinTokens     = Root + "jointokens/"     // id → what a new host may join with
	Authority      = Root + "authority"       // → the certificate authority, of servers that share a store
	Leaders        = "/spillway-leaders"      // election: lease → where the server is; outside Root, as no record of ours
)

// GroupKey is the key of a group.
func GroupKey(subscription, resourceGroup, name string) string {
	return Groups + join(subscription, resourceGroup, name)
}

// ResourceGroupKey is the key of a resource group.
func ResourceGroupKey(subscription, name string) string {
	return ResourceGroups + join(subscription, name)
}

// StatusKey is the key of a status.
func StatusKey(uid string) string { return Statuses + uid }

// LabelKey is the key that makes a DNS label unique in its location.
func LabelKey(location, label string) string { return Labels + join(location, label) }

// AddressKey is the key of a service address.
func AddressKey(subscription, resourceGroup, name string) string {
	return Addresses + join(subscription, resourceGroup, name)
}

// AddressIPKey is the key that makes a service address's IP address unique in its network.
func AddressIPKey(subscription, network, ip string) string {
	return AddressIPs + join(subscription, network, ip)
}

// NetworkKey is the key of a virtual network.
func NetworkKey(subscription, resourceGroup, name string) string {
	return Networks + join(subscription, resourceGroup, name)
}

// SubnetIPKey is the key that makes an address unique in its virtual network.
func SubnetIPKey(uid, ip string) string { return SubnetIPs + join(uid, ip) }

// NetworkIDKey is the key of a network's VXLAN id.
func NetworkIDKey(subscription, network string) string {
	return NetworkIDs + join(subscription, network)
}

// HostKey is the key of what the platform wants of a host.
func HostKey(name string) string { return Hosts + name }

// JoinTokenKey is the key of a join token.
func JoinTokenKey(id string) string { return JoinTokens + id }

// PrincipalKey is the key of a principal.
func PrincipalKey(clientID string) string { return Principals + strings.ToLower(clientID) }

// SigningKey is the key of a token signing key.
func SigningKey(id string) string { return SigningKeys + id }

func join(parts ...string) string { return strings.ToLower(strings.Join(parts, "/")) }
