package identity

import "strings"

// Action is what a call does, in ARM's words: resource type and verb.
type Action string

// The actions of the API.
const (
	ReadGroups          Action = "Microsoft.ContainerInstance/containerGroups/read"
	WriteGroups         Action = "Microsoft.ContainerInstance/containerGroups/write"
	DeleteGroups        Action = "Microsoft.ContainerInstance/containerGroups/delete"
	StartGroups         Action = "Microsoft.ContainerInstance/containerGroups/start/action"
	StopGroups          Action = "Microsoft.ContainerInstance/containerGroups/stop/action"
	RestartGroups       Action = "Microsoft.ContainerInstance/containerGroups/restart/action"
	ExplainPlacement    Action = "Microsoft.ContainerInstance/containerGroups/explainPlacement/action"
	ReadLogs            Action = "Microsoft.ContainerInstance/containerGroups/containers/logs/read"
	Exec                Action = "Microsoft.ContainerInstance/containerGroups/containers/exec/action"
	Attach              Action = "Microsoft.ContainerInstance/containerGroups/containers/attach/action"
	ReadAddresses       Action = "Microsoft.ContainerInstance/serviceAddresses/read"
	WriteAddresses      Action = "Microsoft.ContainerInstance/serviceAddresses/write"
	DeleteAddresses     Action = "Microsoft.ContainerInstance/serviceAddresses/delete"
	ReadNetworks        Action = "Microsoft.Network/virtualNetworks/read"
	WriteNetworks       Action = "Microsoft.Network/virtualNetworks/write"
	DeleteNetworks      Action = "Microsoft.Network/virtualNetworks/delete"
	ReadSubnets         Action = "Microsoft.Network/virtualNetworks/subnets/read"
	WriteSubnets        Action = "Microsoft.Network/virtualNetworks/subnets/write"
	DeleteSubnets       Action = "Microsoft.Network/virtualNetworks/subnets/delete"
	JoinSubnets         Action = "Microsoft.Network/virtualNetworks/subnets/join/action" // put a group into one
	ReadLocations       Action = "Microsoft.ContainerInstance/locations/read"
	ReadSubscriptions   Action = "Microsoft.Resources/subscriptions/read"
	ReadResourceGroups  Action = "Microsoft.Resources/subscriptions/resourceGroups/read"
	WriteResourceGroup  Action = "Microsoft.Resources/subscriptions/resourceGroups/write"
	DeleteResourceGroup Action = "Microsoft.Resources/subscriptions/resourceGroups/delete"
	ReadHosts           Action = "Spillway.Platform/hosts/read"
	WriteHosts          Action = "Spillway.Platform/hosts/write"
	OpenHosts           Action = "Spillway.Platform/hosts/endpoints/write" // a service address that leads to hosts themselves
	AccessHosts         Action = "Spillway.Platform/hosts/access/write"    // groups that have something of a host itself
	CreateTokens        Action = "Spillway.Platform/tokens/write"          // with which hosts join
	ReadImages          Action = "Spillway.Platform/images/read"
	WriteImages         Action = "Spillway.Platform/images/write"
)

// Role is a named set of actions.
type Role string

// The roles.
const (
	Administrator Role = "Administrator"
	Contributor   Role = "Contributor"
	Reader        Role = "Reader"
)

// grants is THE table of who may do what: for each role the actions it has and those taken out again. A star stands
// for any text. A role of one's own will be one more row.
var grants = map[Role]struct{ actions, except []string }{
	Administrator: {actions: []string{"*"}},
	Contributor:   {actions: []string{"Microsoft.ContainerInstance/*", "Microsoft.Network/*", "Microsoft.Resources/*"}},
	Reader:        {actions: []string{"Microsoft.ContainerInstance/*/read", "Microsoft.Network/*/read", "Microsoft.Resources/*/read"}},
}

// Assignment gives a role on a scope and all below it. "/" is the whole platform.
type Assignment struct {
	Role  Role   `json:"role"`
	Scope string `json:"scope"`
}

// Allowed says whether assignments allow an action on a scope such as /subscriptions/S/resourceGroups/R.
func Allowed(assignments []Assignment, action Action, scope string) bool {
	for _, a := range assignments {
		if within(scope, a.Scope) && a.Role.has(action) {
			return true
		}
	}
	return false
}

func (r Role) has(action Action) bool {
	row := grants[r]
	return matches(row.actions, action) && !matches(row.except, action)
}

func matches(patterns []string, action Action) bool {
	for _, p := range patterns {
		if glob(strings.ToLower(p), strings.ToLower(string(action))) {
			return true
		}
	}
	return false
}

// glob matches a pattern in which a star stands for any text.
func glob(pattern, s string) bool {
	head, rest, star := strings.Cut(pattern, "*")
	if !star {
		return pattern == s
	}
	if !strings.HasPrefix(s, head) {
		return false
	}
	for i := len(head); i <= len(s); i++ {
		if glob(rest, s[i:]) {
			return true
		}
	}
	return false
}

// within says whether a scope is another or below it.
func within(scope, outer string) bool {
	scope, outer = strings.ToLower(strings.TrimRight(scope, "/")), strings.ToLower(strings.TrimRight(outer, "/"))
	return scope == outer || strings.HasPrefix(scope, outer+"/")
}
