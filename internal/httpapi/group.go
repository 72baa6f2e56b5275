package httpapi

import (
	"encoding/base64"
	"net/http"
	"net/url"
	"strconv"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/controller"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// maxPage is the most groups of one page.
const maxPage = 1000

// group reads the group of a body.
func (c *call) group() (ref group.Ref, req *arm.Request, err error) {
	ref = c.ref()
	if err := arm.CheckGroupName(ref.Name); err != nil {
		return ref, nil, err
	}
	body, err := c.body()
	if err != nil {
		return ref, nil, err
	}
	req, err = arm.Decode(body, c.version, ref.Name)
	return ref, req, err
}

func (a *api) putGroup(c *call) error {
	ref, req, err := c.group()
	if err != nil {
		return err
	}
	if err := a.hostAccess(c, req.Spec.Needs()); err != nil {
		return err
	}
	if err := a.mayJoin(c, req.Spec.Subnet); err != nil {
		return err
	}
	res, err := a.Controller.Put(c.r.Context(), ref, req)
	if err != nil {
		return err
	}
	if res.Changed {
		c.async(a.operationFor(res.View, false))
	}
	status := http.StatusOK
	if res.Created {
		status = http.StatusCreated
	}
	return c.answer(status, arm.Render(res.View, c.version, a.Now()))
}

// explainPlacement says where the group of a body would go, and creates nothing.
func (a *api) explainPlacement(c *call) error {
	ref, req, err := c.group()
	if err != nil {
		return err
	}
	x, err := a.Controller.Explain(ref, req)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, x)
}

func (a *api) getGroup(c *call) error {
	if c.query("watch") == "true" {
		return a.watchGroups(c, controller.Filter(c.ref()))
	}
	v, err := a.Controller.Get(c.ref())
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, arm.Render(v, c.version, a.Now()))
}

func (a *api) patchGroup(c *call) error {
	body, err := c.body()
	if err != nil {
		return err
	}
	p, err := arm.DecodePatch(body, c.version, c.ref().Name)
	if err != nil {
		return err
	}
	if !p.HasTags && !p.Live() {
		return a.getGroup(c)
	}
	// Another image in a privileged container is as much as a new one.
	p.Guard = func(s *group.Spec) error { return a.hostAccess(c, s.Needs()) }
	res, err := a.Controller.Patch(c.r.Context(), c.ref(), p)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, arm.Render(res.View, c.version, a.Now()))
}

func (a *api) deleteGroup(c *call) error {
	var grace *int
	if n, given := arm.Grace(c.query("gracePeriodSeconds")); given && c.version.Superset {
		if grace = &n; n < 0 {
			return fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter 'gracePeriodSeconds' must be a number of seconds up to %d, got %s.", group.MaxGraceSeconds, quoted(c.query("gracePeriodSeconds")))
		}
	}
	res, err := a.Controller.Delete(c.r.Context(), c.ref(), grace)
	if fault.KindOf(err) == fault.NotFound {
		return c.empty(http.StatusNoContent)
	}
	if err != nil {
		return err
	}
	op := a.operationFor(res.View, true)
	c.async(op)
	c.w.Header().Set("Location", c.operationURL(op, "operationResults", c.version.Name))
	return c.empty(http.StatusAccepted)
}

func (a *api) startGroup(c *call) error {
	res, err := a.Controller.Start(c.r.Context(), c.ref())
	if err != nil {
		return err
	}
	if !res.Changed {
		return c.empty(http.StatusNoContent)
	}
	c.pollAt(a.operationFor(res.View, false))
	return c.empty(http.StatusAccepted)
}

func (a *api) stopGroup(c *call) error {
	if _, err := a.Controller.Stop(c.r.Context(), c.ref()); err != nil {
		return err
	}
	return c.empty(http.StatusNoContent)
}

func (a *api) restartGroup(c *call) error {
	res, err := a.Controller.Restart(c.r.Context(), c.ref())
	if err != nil {
		return err
	}
	if c.version.PollByLocation {
		c.pollAt(a.operationFor(res.View, false))
	}
	return c.empty(http.StatusNoContent)
}

func (a *api) outboundDependencies(c *call) error {
	if _, err := a.Controller.Get(c.ref()); err != nil {
		return err
	}
	return c.answer(http.StatusOK, []string{}) // always empty, as Azure's
}

func (a *api) listGroups(c *call) error {
	filter := controller.Filter{Subscription: c.params["subscription"], ResourceGroup: c.params["resourceGroup"]}
	if filter.ResourceGroup != "" {
		if _, err := a.Controller.ResourceGroup(filter.Subscription, filter.ResourceGroup); err != nil {
			return err
		}
	}
	if c.query("watch") == "true" {
		return a.watchGroups(c, filter)
	}
	views, next, err := cut(c, a.Controller.List(filter))
	if err != nil {
		return err
	}
	items := make([]*arm.Resource, 0, len(views))
	for _, v := range views {
		items = append(items, arm.RenderItem(v, c.version, a.Now()))
	}
	return c.answer(http.StatusOK, page{Value: items, NextLink: next})
}

// cut takes one page out of an ordered list: $top and $skipToken say which.
func cut[V interface{ Ref() group.Ref }](c *call, views []V) (part []V, next string, err error) {
	size := maxPage
	if top := c.query("$top"); top != "" {
		n, err := strconv.Atoi(top)
		if err != nil || n < 1 {
			return nil, "", fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter '$top' must be a whole number above 0, got '%.40s'.", top)
		}
		size = min(n, maxPage)
	}
	if token := c.query("$skipToken"); token != "" {
		after, err := base64.RawURLEncoding.DecodeString(token)
		if err != nil {
			return nil, "", fault.New(fault.Invalid, "InvalidQueryParameterValue", "The query parameter '$skipToken' is not one that this platform made. Start again without it.")
		}
		for len(views) > 0 && arm.Key(views[0].Ref()) <= string(after) {
			views = views[1:]
		}
	}
	if len(views) <= size {
		return views, "", nil
	}
	part = views[:size]
	query := url.Values{"api-version": {c.query("api-version")}, "$skipToken": {base64.RawURLEncoding.EncodeToString([]byte(arm.Key(part[size-1].Ref())))}}
	if size != maxPage {
		query.Set("$top", strconv.Itoa(size))
	}
	return part, c.base() + c.r.URL.EscapedPath() + "?" + query.Encode(), nil
}

// stats measures a group on its host.
func (a *api) stats(c *call) error {
	v, err := a.Controller.Get(c.ref())
	if err != nil {
		return err
	}
	link, err := a.linkOf(v.Group)
	if err != nil {
		return err
	}
	s, err := link.Stats(c.r.Context(), v.Group.UID)
	if err != nil {
		return err
	}
	return c.answer(http.StatusOK, s)
}

// listStats measures every running group of a resource group: one call instead of one for each.
func (a *api) listStats(c *call) error {
	type item struct {
		Name  string     `json:"name"`
		Stats host.Stats `json:"stats"`
	}
	ref := c.ref()
	if _, err := a.Controller.ResourceGroup(ref.Subscription, ref.ResourceGroup); err != nil {
		return err
	}
	list := struct {
		Value []item `json:"value"`
	}{Value: []item{}}
	for _, v := range a.Controller.List(controller.Filter{Subscription: ref.Subscription, ResourceGroup: ref.ResourceGroup}) {
		if v.Status == nil || v.Status.State != group.Running {
			continue
		}
		link, err := a.linkOf(v.Group)
		if err != nil {
			continue // its host is away: nothing is known of it now
		}
		if s, err := link.Stats(c.r.Context(), v.Group.UID); err == nil {
			list.Value = append(list.Value, item{v.Group.Ref.Name, s})
		}
	}
	return c.answer(http.StatusOK, list)
}

// Resources of a subscription as the resource manager lists them.
func (a *api) listResources(c *call) error {
	type item struct {
		ID       string            `json:"id"`
		Name     string            `json:"name"`
		Type     string            `json:"type"`
		Location string            `json:"location"`
		Tags     map[string]string `json:"tags"`
	}
	filter := controller.Filter{Subscription: c.params["subscription"], ResourceGroup: filteredGroup(c.query("$filter"))}
	items := []item{}
	for _, v := range a.Controller.List(filter) {
		items = append(items, item{ID: arm.ID(v.Group.Ref), Name: v.Group.Ref.Name, Type: arm.GroupType, Location: v.Group.Location, Tags: orEmpty(v.Group.Tags)})
	}
	for _, v := range a.Controller.Addresses(filter) {
		items = append(items, item{ID: arm.AddressID(v.Address.Ref), Name: v.Address.Ref.Name, Type: arm.AddressType, Location: v.Address.Location, Tags: orEmpty(v.Address.Tags)})
	}
	for _, v := range a.Controller.Networks(filter) {
		items = append(items, item{ID: arm.NetworkID(v.Network.Ref), Name: v.Network.Ref.Name, Type: arm.NetworkType, Location: v.Network.Location, Tags: orEmpty(v.Network.Tags)})
	}
	return c.answer(http.StatusOK, page{Value: items})
}

func orEmpty(tags map[string]string) map[string]string {
	if tags == nil {
		return map[string]string{}
	}
	return tags
}

// operationFor names the long operation that brought a group to its present epoch, or its deletion.
func (a *api) operationFor(v arm.View, deletion bool) operation {
	op := operation{kind: opDeploy, uid: v.Group.UID, epoch: v.Group.Epoch, subscription: v.Group.Ref.Subscription, location: v.Group.Location}
	if deletion {
		op.kind = opDelete
	}
	return op
}
