package httpapi

import (
	"net/http"
	"net/url"
	"strconv"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
)

// operation is a long operation. It is not stored: its id says what to look at, so it outlives every restart.
type operation struct {
	kind         string
	uid          string // of the group; of a resource group its name
	epoch        int64
	subscription string
	location     string
}

// Kinds of operations.
const (
	opDeploy   = "deploy"
	opDelete   = "delete"
	opDeleteRG = "deleterg"
)

// statusVersion is what Azure puts into the address of a status, whatever the caller's version.
const statusVersion = "2018-06-01"

func (o operation) id() string {
	return o.kind + "-" + strconv.FormatInt(o.epoch, 10) + "-" + o.uid
}

func parseOperation(id string) (operation, bool) {
	kind, rest, _ := strings.Cut(id, "-")
	number, uid, ok := strings.Cut(rest, "-")
	epoch, err := strconv.ParseInt(number, 10, 64)
	known := kind == opDeploy || kind == opDelete || kind == opDeleteRG
	return operation{kind: kind, uid: uid, epoch: epoch}, ok && err == nil && known && uid != ""
}

// operationURL is an address that tells of an operation.
func (c *call) operationURL(o operation, what, version string) string {
	return c.base() + "/subscriptions/" + url.PathEscape(o.subscription) + provider + "/locations/" + url.PathEscape(o.location) + "/" + what + "/" + url.PathEscape(o.id()) + "?api-version=" + version
}

// async sends the headers of a long operation as the api-version has them.
func (c *call) async(o operation) {
	h := c.w.Header()
	h.Set("Azure-AsyncOperation", c.operationURL(o, "operations", statusVersion))
	h.Set("Retry-After", "1")
	if c.version.PollByLocation {
		h.Set("Location", c.operationURL(o, "operationResults", c.version.Name))
	}
}

// pollAt sends the headers of an operation that only declares Location.
func (c *call) pollAt(o operation) {
	c.w.Header().Set("Location", c.operationURL(o, "operationResults", c.version.Name))
	c.w.Header().Set("Retry-After", "1")
}

// outcome is how far an operation is.
type outcome struct {
	op    operation
	view  arm.View
	found bool
	state group.Provisioning // Succeeded, Failed, or anything else: still under way
}

func (a *api) outcome(c *call) (outcome, error) {
	op, ok := parseOperation(c.params["operation"])
	if !ok {
		return outcome{}, fault.New(fault.NotFound, "OperationNotFound", "The operation '%.80s' was not found.", c.params["operation"])
	}
	sub := c.params["subscription"]
	if op.kind == opDeleteRG {
		if rg, err := a.Controller.ResourceGroup(sub, op.uid); err == nil && rg.Deleting {
			return outcome{op: op, state: group.ProvisioningPending}, nil
		}
		return outcome{op: op, state: group.ProvisioningSucceeded}, nil
	}
	view, state, found := a.Controller.Operation(op.uid, op.epoch, op.kind == opDelete)
	if found && !strings.EqualFold(view.Group.Ref.Subscription, sub) {
		return outcome{}, fault.New(fault.NotFound, "OperationNotFound", "The operation '%.80s' was not found.", c.params["operation"])
	}
	if !found && op.kind == opDeploy {
		return outcome{}, fault.New(fault.NotFound, "OperationNotFound", "The operation '%.80s' was not found: its container group has been deleted.", c.params["operation"])
	}
	return outcome{op: op, view: view, found: found, state: state}, nil
}

type statusBody struct {
	ID         string              `json:"id,omitempty"`
	Status     string              `json:"status"`
	StartTime  string              `json:"startTime,omitempty"`
	Properties any                 `json:"properties"`
	Error      *arm.CloudErrorBody `json:"error,omitempty"`
}

// operationStatus is the target of Azure-AsyncOperation: always 200, the body decides.
func (a *api) operationStatus(c *call) error {
	o, err := a.outcome(c)
	if err != nil {
		return err
	}
	body := statusBody{Status: "Pending", Properties: map[string]any{"events": []any{}}}
	if o.found {
		body.ID = arm.ID(o.view.Group.Ref)
		body.StartTime = o.view.Group.Created.UTC().Format("2006-01-02T15:04:05.0000000Z")
		body.Properties = map[string]any{"events": arm.RenderEvents(o.view)}
	}
	switch o.state {
	case group.ProvisioningSucceeded:
		body.Status = "Succeeded"
	case group.ProvisioningFailed:
		body.Status = "Failed"
		body.Error = &arm.CloudErrorBody{Code: "ContainerGroupDeploymentFailed", Message: reason(o.view)}
	}
	c.w.Header().Set("Retry-After", "1")
	return c.answer(http.StatusOK, body)
}

// operationResult is the target of Location: 202 until done, then the result or an error.
func (a *api) operationResult(c *call) error {
	o, err := a.outcome(c)
	if err != nil {
		return err
	}
	switch o.state {
	case group.ProvisioningFailed:
		return fault.New(fault.Conflict, "ContainerGroupDeploymentFailed", "%s", reason(o.view))
	case group.ProvisioningSucceeded:
		switch {
		case o.op.kind == opDelete:
			return c.empty(http.StatusNoContent)
		case !o.found:
			return c.empty(http.StatusOK)
		}
		version, err := arm.ParseVersion(c.query("api-version"))
		if err != nil {
			return err
		}
		return c.answer(http.StatusOK, arm.Render(o.view, version, a.Now()))
	}
	o.op.subscription, o.op.location = c.params["subscription"], c.params["location"]
	c.w.Header().Set("Location", c.operationURL(o.op, "operationResults", url.QueryEscape(c.query("api-version"))))
	c.w.Header().Set("Retry-After", "1")
	return c.empty(http.StatusAccepted)
}

// reason says why a group could not be deployed.
func reason(v arm.View) string {
	if v.Status != nil && v.Status.Reason != "" {
		return v.Status.Reason
	}
	return "The container group '" + v.Group.Ref.Name + "' did not start in time. Its events say why."
}
