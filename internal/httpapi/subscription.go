package httpapi

import (
	"net/http"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/identity"
)

type subscription struct {
	ID             string `json:"id"`
	SubscriptionID string `json:"subscriptionId"`
	TenantID       string `json:"tenantId"`
	DisplayName    string `json:"displayName"`
	State          string `json:"state"`
}

func (a *api) subscription(s identity.Subscription) subscription {
	return subscription{ID: "/subscriptions/" + s.ID, SubscriptionID: s.ID, TenantID: a.Identity.Tenant().ID, DisplayName: s.Name, State: "Enabled"}
}

// listSubscriptions gives those that the caller may read.
func (a *api) listSubscriptions(c *call) error {
	items := []subscription{}
	for _, s := range a.Identity.Tenant().Subscriptions {
		if identity.Allowed(c.principal.Assignments, identity.ReadSubscriptions, "/subscriptions/"+s.ID) {
			items = append(items, a.subscription(s))
		}
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func (a *api) getSubscription(c *call) error {
	for _, s := range a.Identity.Tenant().Subscriptions {
		if strings.EqualFold(s.ID, c.params["subscription"]) {
			return c.answer(http.StatusOK, a.subscription(s))
		}
	}
	return fault.New(fault.NotFound, "SubscriptionNotFound", "The subscription '%.80s' could not be found.", c.params["subscription"])
}

func (a *api) listTenants(c *call) error {
	id := a.Identity.Tenant().ID
	return c.answer(http.StatusOK, page{Value: []map[string]string{{"id": "/tenants/" + id, "tenantId": id}}})
}

func (a *api) listLocations(c *call) error {
	name := a.Controller.Location()
	return c.answer(http.StatusOK, page{Value: []map[string]any{{
		"id": "/subscriptions/" + c.params["subscription"] + "/locations/" + name, "name": name, "displayName": name,
		"regionalDisplayName": name, "metadata": map[string]string{"regionType": "Physical"},
	}}})
}

// providerNames are the namespaces that the platform serves.
func providerNames() []string {
	return []string{arm.Provider, arm.NetworkProvider, "Microsoft.Resources", "Spillway.Platform"}
}

func (a *api) provider(c *call, name string) map[string]any {
	types := []map[string]any{}
	if name == arm.Provider {
		types = append(types, map[string]any{"resourceType": "containerGroups", "locations": []string{a.Controller.Location()}, "apiVersions": arm.Versions(), "capabilities": "SupportsTags, SupportsLocation"},
			map[string]any{"resourceType": "serviceAddresses", "locations": []string{a.Controller.Location()}, "apiVersions": []string{arm.Superset}, "capabilities": "SupportsTags, SupportsLocation"})
	}
	if name == arm.NetworkProvider {
		types = append(types, map[string]any{"resourceType": "virtualNetworks", "locations": []string{a.Controller.Location()}, "apiVersions": networkVersions, "capabilities": "SupportsTags, SupportsLocation"},
			map[string]any{"resourceType": "virtualNetworks/subnets", "locations": []string{}, "apiVersions": networkVersions})
	}
	return map[string]any{
		"id": "/subscriptions/" + c.params["subscription"] + "/providers/" + name, "namespace": name,
		"registrationState": "Registered", "registrationPolicy": "RegistrationFree", "resourceTypes": types,
	}
}

func (a *api) listProviders(c *call) error {
	items := []map[string]any{}
	for _, name := range providerNames() {
		items = append(items, a.provider(c, name))
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func (a *api) getProvider(c *call) error {
	for _, name := range providerNames() {
		if strings.EqualFold(name, c.params["provider"]) {
			return c.answer(http.StatusOK, a.provider(c, name))
		}
	}
	return fault.New(fault.NotFound, "InvalidResourceNamespace", "The resource namespace '%.80s' is invalid. This platform has %s.", c.params["provider"], strings.Join(providerNames(), ", "))
}

// checkLocation refuses a location that this platform is not.
func (a *api) checkLocation(c *call) error {
	if got, own := c.params["location"], a.Controller.Location(); !strings.EqualFold(strings.ReplaceAll(got, " ", ""), own) {
		return fault.New(fault.Invalid, "LocationNotAvailableForResourceType", "The provided location '%.64s' is not available. This platform is '%s'.", got, own)
	}
	return nil
}

func (a *api) usages(c *call) error {
	if err := a.checkLocation(c); err != nil {
		return err
	}
	u := a.Controller.Usage(c.params["subscription"])
	item := func(name, text string, current, limit int64) map[string]any {
		return map[string]any{
			"id":   "/subscriptions/" + c.params["subscription"] + provider + "/locations/" + a.Controller.Location() + "/usages/" + name,
			"unit": "Count", "currentValue": current, "limit": limit, "name": map[string]string{"value": name, "localizedValue": text},
		}
	}
	const core = 1000 // thousandths
	return c.answer(http.StatusOK, page{Value: []map[string]any{
		item("ContainerGroups", "Container Groups", int64(u.Groups), int64(u.LimitGroups)),
		item("StandardCores", "Standard Cores", (u.MilliCPU+core-1)/core, u.LimitMilliCPU/core),
	}})
}

func (a *api) cachedImages(c *call) error {
	if err := a.checkLocation(c); err != nil {
		return err
	}
	items := []map[string]string{}
	seen := map[string]bool{}
	for _, h := range a.Controller.Hosts() {
		link, ok := a.Controller.Host(h.Name)
		if !ok {
			continue
		}
		images, err := link.Images(c.r.Context())
		if err != nil {
			return err
		}
		for _, i := range images {
			if !seen[i.Ref] {
				items = append(items, map[string]string{"osType": "Linux", "image": i.Ref})
			}
			seen[i.Ref] = true
		}
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func (a *api) capabilities(c *call) error {
	if err := a.checkLocation(c); err != nil {
		return err
	}
	return c.answer(http.StatusOK, page{Value: []map[string]any{{
		"resourceType": "containerGroups", "osType": "Linux", "location": a.Controller.Location(), "ipAddressType": "Public", "gpu": "None",
		"capabilities": map[string]float64{"maxMemoryInGB": group.MaxMemory / (1 << 30), "maxCpu": group.MaxMilliCPU / 1000, "maxGpuCount": 0},
	}}})
}

// operations lists what callers can be allowed to do.
func (a *api) operations(c *call) error {
	items := []map[string]any{}
	seen := map[identity.Action]bool{}
	for _, r := range routes() {
		if !strings.HasPrefix(string(r.action), arm.Provider+"/") || seen[r.action] {
			continue
		}
		seen[r.action] = true
		parts := strings.Split(strings.TrimPrefix(string(r.action), arm.Provider+"/"), "/")
		verb := parts[len(parts)-1]
		items = append(items, map[string]any{
			"name": string(r.action), "origin": "User",
			"display": map[string]string{"provider": "Microsoft Container Instance", "resource": parts[0], "operation": verb, "description": verb + " " + strings.Join(parts[:len(parts)-1], "/")},
		})
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func (a *api) health(c *call) error {
	return c.answer(http.StatusOK, map[string]string{"status": "ok", "version": a.Version})
}

// metrics writes the platform's figures in Prometheus' text format.
func (a *api) metrics(c *call) error {
	if a.Metrics == nil {
		return fault.New(fault.NotFound, "", "This server keeps no metrics.")
	}
	a.Metrics.ServeHTTP(c.w, c.r)
	return nil
}
