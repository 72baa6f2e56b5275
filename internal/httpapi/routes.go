package httpapi

import (
	"slices"

	"spillway.dev/spillway/internal/identity"
)

// versionRule says which api-versions a route takes.
type versionRule int

const (
	noVersion    versionRule = iota // none needed
	anyVersion                      // some date: the route is the same in all
	groupVersion                    // one of arm.Versions
	ownVersion                      // Spillway's own
)

// flags of a route.
type flags int

const (
	public    flags = 1 << iota // no token needed
	streaming                   // no deadline, no body limit
	anyBody                     // no JSON content type demanded
)

// route is one operation of the API.
type route struct {
	method  string
	pattern string // segments; {name} takes any one
	action  identity.Action
	version versionRule
	flags   flags
	handle  func(*api, *call) error
}

const (
	sub       = "/subscriptions/{subscription}"
	rg        = sub + "/resourceGroups/{resourceGroup}"
	provider  = "/providers/Microsoft.ContainerInstance"
	location  = sub + provider + "/locations/{location}"
	groups    = rg + provider + "/containerGroups"
	one       = groups + "/{group}"
	container = one + "/containers/{container}"
	addresses = rg + provider + "/serviceAddresses"
	networks  = rg + "/providers/Microsoft.Network/virtualNetworks"
	network   = networks + "/{network}"
	subnet    = network + "/subnets/{subnet}"
	platform  = "/providers/Spillway.Platform"
)

// routes is the whole surface.
func routes() []route { return slices.Concat(azureRoutes(), networkRoutes(), platformRoutes()) }

// networkRoutes are those of virtual networks, which are the same in all of Azure's api-versions.
func networkRoutes() []route {
	return []route{
		{"GET", networks, identity.ReadNetworks, anyVersion, 0, (*api).listNetworks},
		{"GET", sub + "/providers/Microsoft.Network/virtualNetworks", identity.ReadNetworks, anyVersion, 0, (*api).listNetworks},
		{"GET", network, identity.ReadNetworks, anyVersion, 0, (*api).getNetwork},
		{"PUT", network, identity.WriteNetworks, anyVersion, 0, (*api).putNetwork},
		{"PATCH", network, identity.WriteNetworks, anyVersion, 0, (*api).tagNetwork},
		{"DELETE", network, identity.DeleteNetworks, anyVersion, 0, (*api).deleteNetwork},
		{"GET", network + "/checkIPAddressAvailability", identity.ReadNetworks, anyVersion, 0, (*api).checkAddress},
		{"GET", network + "/usages", identity.ReadNetworks, anyVersion, 0, (*api).networkUsages},
		{"GET", network + "/subnets", identity.ReadSubnets, anyVersion, 0, (*api).listSubnets},
		{"GET", subnet, identity.ReadSubnets, anyVersion, 0, (*api).getSubnet},
		{"PUT", subnet, identity.WriteSubnets, anyVersion, 0, (*api).putSubnet},
		{"DELETE", subnet, identity.DeleteSubnets, anyVersion, 0, (*api).deleteSubnet},
	}
}

// platformRoutes are what only Spillway has: hosts and their images.
func platformRoutes() []route {
	return []route{
		{"GET", platform + "/hosts", identity.ReadHosts, ownVersion, 0, (*api).listHosts},
		{"GET", platform + "/hosts/{host}", identity.ReadHosts, ownVersion, 0, (*api).getHost},
		{"POST", platform + "/hosts/{host}/cordon", identity.WriteHosts, ownVersion, anyBody, (*api).cordon},
		{"POST", platform + "/hosts/{host}/uncordon", identity.WriteHosts, ownVersion, anyBody, (*api).uncordon},
		{"POST", platform + "/hosts/{host}/drain", identity.WriteHosts, ownVersion, anyBody, (*api).drain},
		{"DELETE", platform + "/hosts/{host}", identity.WriteHosts, ownVersion, 0, (*api).removeHost},
		{"POST", platform + "/hosts/{host}/join", "", noVersion, public, (*api).join},
		{"POST", platform + "/tokens", identity.CreateTokens, ownVersion, 0, (*api).createToken},
		{"GET", platform + "/images", identity.ReadImages, ownVersion, 0, (*api).listImages},
		{"DELETE", platform + "/images", identity.WriteImages, ownVersion, 0, (*api).removeImage},
		{"POST", platform + "/images/pull", identity.WriteImages, ownVersion, streaming, (*api).pullImage},
		{"POST", platform + "/images/import", identity.WriteImages, ownVersion, streaming | anyBody, (*api).importImage},
	}
}

// azureRoutes are what Azure's clients use, with what groups have beyond it.
func azureRoutes() []route {
	return []route{
		{"GET", groups, identity.ReadGroups, groupVersion, streaming, (*api).listGroups},
		{"GET", sub + provider + "/containerGroups", identity.ReadGroups, groupVersion, streaming, (*api).listGroups},
		{"GET", one, identity.ReadGroups, groupVersion, streaming, (*api).getGroup},
		{"PUT", one, identity.WriteGroups, groupVersion, 0, (*api).putGroup},
		{"PATCH", one, identity.WriteGroups, groupVersion, 0, (*api).patchGroup},
		{"DELETE", one, identity.DeleteGroups, groupVersion, 0, (*api).deleteGroup},
		{"POST", one + "/start", identity.StartGroups, groupVersion, anyBody, (*api).startGroup},
		{"POST", one + "/stop", identity.StopGroups, groupVersion, anyBody, (*api).stopGroup},
		{"POST", one + "/restart", identity.RestartGroups, groupVersion, anyBody, (*api).restartGroup},
		{"POST", one + "/explainPlacement", identity.ExplainPlacement, ownVersion, 0, (*api).explainPlacement},
		{"GET", one + "/outboundNetworkDependenciesEndpoints", identity.ReadGroups, groupVersion, 0, (*api).outboundDependencies},
		{"GET", one + "/stats", identity.ReadGroups, ownVersion, 0, (*api).stats},
		{"GET", rg + provider + "/containerGroupStats", identity.ReadGroups, ownVersion, 0, (*api).listStats},
		{"POST", one + "/portForward", identity.Exec, ownVersion, 0, (*api).portForward},
		{"GET", container + "/logs", identity.ReadLogs, groupVersion, streaming, (*api).logs},
		{"POST", container + "/exec", identity.Exec, groupVersion, 0, (*api).exec},
		{"POST", container + "/attach", identity.Attach, groupVersion, anyBody, (*api).attach},
		{"GET", "/execstream/sessionId/{ticket}", "", noVersion, public | streaming, (*api).stream},

		{"GET", addresses, identity.ReadAddresses, ownVersion, streaming, (*api).listAddresses},
		{"GET", sub + provider + "/serviceAddresses", identity.ReadAddresses, ownVersion, streaming, (*api).listAddresses},
		{"GET", addresses + "/{address}", identity.ReadAddresses, ownVersion, streaming, (*api).getAddress},
		{"PUT", addresses + "/{address}", identity.WriteAddresses, ownVersion, 0, (*api).putAddress},
		{"DELETE", addresses + "/{address}", identity.DeleteAddresses, ownVersion, 0, (*api).deleteAddress},

		{"GET", location + "/usages", identity.ReadLocations, groupVersion, 0, (*api).usages},
		{"GET", location + "/cachedImages", identity.ReadLocations, groupVersion, 0, (*api).cachedImages},
		{"GET", location + "/capabilities", identity.ReadLocations, groupVersion, 0, (*api).capabilities},
		{"GET", location + "/operations/{operation}", identity.ReadGroups, anyVersion, 0, (*api).operationStatus},
		{"GET", location + "/operationResults/{operation}", identity.ReadGroups, anyVersion, 0, (*api).operationResult},
		{"GET", provider + "/operations", "", groupVersion, 0, (*api).operations},

		{"GET", "/subscriptions", "", anyVersion, 0, (*api).listSubscriptions},
		{"GET", sub, identity.ReadSubscriptions, anyVersion, 0, (*api).getSubscription},
		{"GET", sub + "/locations", identity.ReadSubscriptions, anyVersion, 0, (*api).listLocations},
		{"GET", sub + "/providers", identity.ReadSubscriptions, anyVersion, 0, (*api).listProviders},
		{"GET", sub + "/providers/{provider}", identity.ReadSubscriptions, anyVersion, 0, (*api).getProvider},
		{"POST", sub + "/providers/{provider}/register", identity.ReadSubscriptions, anyVersion, anyBody, (*api).getProvider},
		{"GET", sub + "/resources", identity.ReadGroups, anyVersion, 0, (*api).listResources},
		{"GET", sub + "/resourceGroups", identity.ReadResourceGroups, anyVersion, 0, (*api).listResourceGroups},
		{"GET", rg, identity.ReadResourceGroups, anyVersion, 0, (*api).getResourceGroup},
		{"HEAD", rg, identity.ReadResourceGroups, anyVersion, 0, (*api).headResourceGroup},
		{"PUT", rg, identity.WriteResourceGroup, anyVersion, 0, (*api).putResourceGroup},
		{"PATCH", rg, identity.WriteResourceGroup, anyVersion, 0, (*api).putResourceGroup},
		{"DELETE", rg, identity.DeleteResourceGroup, anyVersion, 0, (*api).deleteResourceGroup},
		{"GET", "/tenants", "", anyVersion, 0, (*api).listTenants},

		{"GET", "/metadata/endpoints", "", noVersion, public, (*api).metadata},
		{"GET", "/adfs/.well-known/openid-configuration", "", noVersion, public, (*api).openID},
		{"GET", "/{tenant}/.well-known/openid-configuration", "", noVersion, public, (*api).openID},
		{"GET", "/{tenant}/v2.0/.well-known/openid-configuration", "", noVersion, public, (*api).openID},
		{"POST", "/oauth2/token", "", noVersion, public | anyBody, (*api).token},
		{"POST", "/{tenant}/oauth2/token", "", noVersion, public | anyBody, (*api).token},
		{"POST", "/{tenant}/oauth2/v2.0/token", "", noVersion, public | anyBody, (*api).token},
		{"GET", "/healthz", "", noVersion, public, (*api).health},
		{"GET", "/metrics", identity.ReadHosts, noVersion, 0, (*api).metrics},
	}
}
