package arm

import (
	"fmt"
	"slices"

	"spillway.dev/spillway/internal/group"
)

// placement reads where a group may run; nil when it may run anywhere.
func (d *decoder) placement(o *object) *group.Placement {
	if o == nil {
		return nil
	}
	p := &group.Placement{Pools: o.strings("pools")}
	for _, name := range p.Pools {
		if why := labelRule(name, 1, true); why != "" {
			d.fault("", o.at("pools"), "The pool name '%s' in '%s' is invalid: %s.", clip(name), o.at("pools"), why)
		}
	}
	d.atMost(o, "pools", len(p.Pools))
	if h := o.child("hostLabels"); h != nil {
		p.Require = d.conditions(h, "required", false)
		for _, t := range d.terms(h, "preferred") {
			w := d.weight(t)
			if w == 0 {
				d.fault("", t.at("weight"), "The field '%s' is required: from 1 to %d.", t.at("weight"), group.MaxWeight)
			}
			p.Prefer = append(p.Prefer, group.Preference{Weight: w, Match: d.conditions(t, "labels", true)})
			t.done()
		}
		h.done()
	}
	p.Affinity = d.affinities(o, "affinity")
	p.AntiAffinity = d.affinities(o, "antiAffinity")
	for _, t := range d.terms(o, "spread") {
		s := group.Spread{Match: d.conditions(t, "labels", true), Topology: d.topology(t), MaxSkew: 1}
		if n, ok := t.integer("maxSkew", 1, group.MaxSkew); ok {
			s.MaxSkew = int(n)
		}
		s.Anyway = t.choice("whenUnsatisfiable", doNotSchedule, doNotSchedule, scheduleAnyway) == scheduleAnyway
		p.Spread = append(p.Spread, s)
		t.done()
	}
	o.done()
	d.contradictions(o, p)
	if len(p.Pools)+len(p.Require)+len(p.Prefer)+len(p.Affinity)+len(p.AntiAffinity)+len(p.Spread) == 0 {
		return nil // absent and empty mean the same
	}
	return p
}

// What is done with a group that would make a spread uneven.
const (
	doNotSchedule  = "DoNotSchedule"
	scheduleAnyway = "ScheduleAnyway"
)

func (d *decoder) atMost(o *object, name string, n int) {
	if n > group.MaxTerms {
		d.fault("", o.at(name), "The field '%s' has %d entries; at most %d are allowed.", o.at(name), n, group.MaxTerms)
	}
}

// terms reads a list of rules.
func (d *decoder) terms(o *object, name string) []*object {
	list := o.list(name)
	d.atMost(o, name, len(list))
	return list
}

func (d *decoder) weight(o *object) int {
	n, ok := o.integer("weight", 1, group.MaxWeight)
	if !ok {
		return 0
	}
	return int(n)
}

func (d *decoder) topology(o *object) group.Topology {
	before := len(d.faults)
	t := o.choice("topology", "", string(group.TopologyHost), string(group.TopologyFaultDomain), string(group.TopologyZone))
	if t == "" && len(d.faults) == before {
		d.fault("", o.at("topology"), "The field '%s' is required: host, faultDomain or zone.", o.at("topology"))
	}
	return group.Topology(t)
}

func (d *decoder) affinities(o *object, name string) []group.Affinity {
	var out []group.Affinity
	for _, t := range d.terms(o, name) {
		out = append(out, group.Affinity{Match: d.conditions(t, "labels", true), Topology: d.topology(t), Weight: d.weight(t)})
		t.done()
	}
	return out
}

// conditions reads expressions on labels. A rule about other groups must say which.
func (d *decoder) conditions(o *object, name string, required bool) []group.Expression {
	var out []group.Expression
	list := o.list(name)
	if required && len(list) == 0 {
		d.fault("", o.at(name), "The field '%s' must hold at least one condition: {key, operator, values}.", o.at(name))
	}
	if len(list) > group.MaxConditions {
		d.fault("", o.at(name), "The field '%s' has %d conditions; at most %d are allowed.", o.at(name), len(list), group.MaxConditions)
	}
	for _, c := range list {
		e := group.Expression{Key: c.required("key"), Values: c.strings("values")}
		before := len(d.faults)
		e.Operator = group.Operator(c.choice("operator", "", string(group.In), string(group.NotIn), string(group.Exists), string(group.DoesNotExist)))
		valued := e.Operator == group.In || e.Operator == group.NotIn
		switch {
		case e.Operator == "" && len(d.faults) == before:
			d.fault("", c.at("operator"), "The field '%s' is required: In, NotIn, Exists or DoesNotExist.", c.at("operator"))
		case valued && len(e.Values) == 0:
			d.fault("", c.at("values"), "The field '%s' must hold at least one value for the operator '%s'.", c.at("values"), e.Operator)
		case e.Operator != "" && !valued && len(e.Values) > 0:
			d.fault("", c.at("values"), "The field '%s' must be empty for the operator '%s'.", c.at("values"), e.Operator)
		case len(e.Values) > group.MaxValues:
			d.fault("", c.at("values"), "The field '%s' has %d values; at most %d are allowed.", c.at("values"), len(e.Values), group.MaxValues)
		}
		if len(e.Key) > maxLabelLength || slices.ContainsFunc(e.Values, func(v string) bool { return len(v) > maxTagValue }) {
			d.fault("", c.path, "The condition on '%s' is too long: a label's name has at most %d characters, a value %d.", clip(e.Key), maxLabelLength, maxTagValue)
		}
		out = append(out, e)
		c.done()
	}
	return out
}

// contradictions finds rules that no host can meet: beside and away from the same groups.
func (d *decoder) contradictions(o *object, p *group.Placement) {
	for i, a := range p.Affinity {
		for j, b := range p.AntiAffinity {
			if a.Weight == 0 && b.Weight == 0 && a.Topology == b.Topology && len(a.Match) > 0 && group.Canonical(a.Match) == group.Canonical(b.Match) {
				d.fault("", fmt.Sprintf("%s[%d]", o.at("antiAffinity"), j), "The required anti-affinity '%s[%d]' and the required affinity '%s[%d]' select the same labels over the topology '%s': no host can meet both. Remove one, or give it a weight.",
					o.at("antiAffinity"), j, o.at("affinity"), i, a.Topology)
			}
		}
	}
}

// gpu reads {count, sku} of a container's requests.
func (d *decoder) gpu(o *object) (count int64, sku string) {
	if o == nil {
		return 0, ""
	}
	count, given := o.integer("count", 1, group.MaxGPUs)
	if !given {
		d.fault("", o.at("count"), "The field '%s' is required: from 1 to %d.", o.at("count"), group.MaxGPUs)
	}
	sku = o.str("sku")
	if len(sku) > maxName {
		d.fault("", o.at("sku"), "The field '%s' has %d characters; at most %d are allowed.", o.at("sku"), len(sku), maxName)
	}
	o.done()
	return count, sku
}

// gpus checks what the containers of a group ask for together: GPUs of one kind.
func (d *decoder) gpus(s *group.Spec) {
	sku := s.GPUSKU()
	for _, list := range [][]group.Container{s.InitContainers, s.Containers} {
		for _, c := range list {
			if c.GPUSKU != "" && c.GPUSKU != sku {
				d.fault("", "properties.containers", "The containers of the group '%s' ask for GPUs of the skus '%s' and '%s'. A group gets GPUs of one sku.", d.group, clip(sku), clip(c.GPUSKU))
				return
			}
		}
	}
	if n := s.Total().GPUs; n > group.MaxGPUs {
		d.fault("InvalidResourceRequest", "properties.containers", "The container group '%s' requests %d GPUs; at most %d are allowed for a group.", d.group, n, group.MaxGPUs)
	}
}
