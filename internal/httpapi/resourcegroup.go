package httpapi

import (
	"net/http"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
)

type resourceGroup struct {
	ID         string            `json:"id"`
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	Location   string            `json:"location"`
	Tags       map[string]string `json:"tags"`
	Properties struct {
		State string `json:"provisioningState"`
	} `json:"properties"`
}

func renderResourceGroup(rg controller.ResourceGroup) resourceGroup {
	out := resourceGroup{ID: arm.ResourceGroupID(rg.Subscription, rg.Name), Name: rg.Name, Type: arm.ResourceGroupType, Location: rg.Location, Tags: orEmpty(rg.Tags)}
	out.Properties.State = "Succeeded"
	if rg.Deleting {
		out.Properties.State = "Deleting"
	}
	return out
}

func (a *api) listResourceGroups(c *call) error {
	items := []resourceGroup{}
	for _, rg := range a.Controller.ListResourceGroups(c.params["subscription"]) {
		items = append(items, renderResourceGroup(rg))
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func (a *api) getResourceGroup(c *call) error {
	rg, err := a.Controller.ResourceGroup(c.params["subscription"], c.params["resourceGroup"])
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, renderResourceGroup(rg))
}

func (a *api) headResourceGroup(c *call) error {
	if _, err := a.Controller.ResourceGroup(c.params["subscription"], c.params["resourceGroup"]); err != nil {
		return c.empty(http.StatusNotFound)
	}
	return c.empty(http.StatusNoContent)
}

// putResourceGroup creates or replaces (PUT), or changes the tags (PATCH).
func (a *api) putResourceGroup(c *call) error {
	name := c.params["resourceGroup"]
	if err := arm.CheckResourceGroupName(name); err != nil {
		return err
	}
	var body struct {
		ID         string            `json:"id"`
		Name       string            `json:"name"`
		Type       string            `json:"type"`
		Location   string            `json:"location"`
		Tags       map[string]string `json:"tags"`
		ManagedBy  string            `json:"managedBy"`
		Properties map[string]any    `json:"properties"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	existing, missing := a.Controller.ResourceGroup(c.params["subscription"], name)
	if c.r.Method == http.MethodPatch {
		if missing != nil {
			return missing
		}
		body.Location = existing.Location
	}
	if body.Location == "" {
		return &fault.Error{Kind: fault.Invalid, Code: "LocationRequired", Target: "location", Message: "The location property is required for this definition."}
	}
	rg, created, err := a.Controller.PutResourceGroup(c.r.Context(), controller.ResourceGroup{
		Subscription: strings.ToLower(c.params["subscription"]), Name: name, Location: body.Location, Tags: body.Tags,
	})
	if err != nil {
		return err
	}
	status := http.StatusOK
	if created {
		status = http.StatusCreated
	}
	return c.answer(status, renderResourceGroup(rg))
}

func (a *api) deleteResourceGroup(c *call) error {
	rg, err := a.Controller.DeleteResourceGroup(c.r.Context(), c.params["subscription"], c.params["resourceGroup"])
	if err != nil {
		return err
	}
	op := operation{kind: opDeleteRG, uid: rg.Name, subscription: rg.Subscription, location: rg.Location}
	c.w.Header().Set("Location", c.operationURL(op, "operationResults", "2021-04-01"))
	c.w.Header().Set("Retry-After", "1")
	return c.empty(http.StatusAccepted)
}

// filteredGroup reads the resource group out of a filter such as: resourceGroup eq 'R'.
func filteredGroup(filter string) string {
	before, after, ok := strings.Cut(filter, "eq")
	if !ok || !strings.EqualFold(strings.TrimSpace(before), "resourceGroup") {
		return ""
	}
	return strings.Trim(strings.TrimSpace(after), "'")
}
