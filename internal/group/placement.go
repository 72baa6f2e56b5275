package group

import (
	"slices"
	"strconv"
	"strings"
)

// Placement is where a group may run, and where it would rather run. All that is named holds together.
type Placement struct {
	Pools        []string     `json:"pools,omitempty"`   // names of pools; empty: any
	Require      []Expression `json:"require,omitempty"` // of the host's labels
	Prefer       []Preference `json:"prefer,omitempty"`
	Affinity     []Affinity   `json:"affinity,omitempty"`     // beside groups of the subscription
	AntiAffinity []Affinity   `json:"antiAffinity,omitempty"` // away from groups of the subscription
	Spread       []Spread     `json:"spread,omitempty"`
}

// Expression is a condition on labels.
type Expression struct {
	Key      string   `json:"key"`
	Operator Operator `json:"operator"`
	Values   []string `json:"values,omitempty"` // of In and NotIn
}

// Operator compares a label.
type Operator string

// Operators as in Kubernetes: NotIn holds also where there is no such label.
const (
	In           Operator = "In"
	NotIn        Operator = "NotIn"
	Exists       Operator = "Exists"
	DoesNotExist Operator = "DoesNotExist"
)

// Preference is a condition on the host's labels that is worth something.
type Preference struct {
	Weight int          `json:"weight"` // 1 to MaxWeight
	Match  []Expression `json:"match"`
}

// Affinity is a rule about other groups: in the same domain as one whose labels match, or in none that has one.
type Affinity struct {
	Match    []Expression `json:"match"`
	Topology Topology     `json:"topology"`
	Weight   int          `json:"weight,omitempty"` // 0: required; else preferred, 1 to MaxWeight
}

// Topology is what counts as one place.
type Topology string

// Topologies, from narrow to wide. A host that does not say its zone or fault domain stands in none.
const (
	TopologyHost        Topology = "host"
	TopologyFaultDomain Topology = "faultDomain" // of a zone
	TopologyZone        Topology = "zone"
)

// Spread keeps the groups that match even over domains: no domain has more than MaxSkew above the emptiest.
type Spread struct {
	Match    []Expression `json:"match"`
	Topology Topology     `json:"topology"`
	MaxSkew  int          `json:"maxSkew"`
	Anyway   bool         `json:"anyway,omitempty"` // a wish, not a condition
}

// Regular and Spot are the priorities. A Spot group gives way to regular ones.
const (
	PriorityRegular = "Regular"
	PrioritySpot    = "Spot"
)

// Failover says how a group of a lost host is started elsewhere.
type Failover string

// Kinds of failover. Without a word the group is started elsewhere as soon as its host is lost, and may still run there.
// A fenced one runs while its host has a lease only, and is started elsewhere when no lease can be left.
const (
	FailoverPlain  Failover = ""
	FailoverFenced Failover = "Fenced"
)

// Fenced says whether the group must never run twice.
func (s *Spec) Fenced() bool { return s.Failover == FailoverFenced }

// Where is the group's placement, never nil.
func (s *Spec) Where() *Placement {
	if s.Placement == nil {
		return &anywhere
	}
	return s.Placement
}

var anywhere Placement

// GPUSKU is the name of the GPUs that a group asks for, "" when any will do or none is wanted.
func (s *Spec) GPUSKU() string {
	for _, list := range [][]Container{s.InitContainers, s.Containers} {
		for i := range list {
			if list[i].GPUSKU != "" {
				return list[i].GPUSKU
			}
		}
	}
	return ""
}

// Holds says whether labels meet a condition.
func (e *Expression) Holds(labels map[string]string) bool {
	value, there := labels[e.Key]
	switch e.Operator {
	case In:
		return there && slices.Contains(e.Values, value)
	case NotIn:
		return !there || !slices.Contains(e.Values, value)
	case Exists:
		return there
	}
	return !there
}

// Match says whether labels meet all conditions.
func Match(conditions []Expression, labels map[string]string) bool {
	for i := range conditions {
		if !conditions[i].Holds(labels) {
			return false
		}
	}
	return true
}

// Canonical is a text that is equal for conditions that say the same in another order.
func Canonical(conditions []Expression) string {
	parts := make([]string, 0, len(conditions))
	for _, e := range conditions {
		values := slices.Clone(e.Values)
		slices.Sort(values)
		part := strconv.Quote(e.Key) + string(e.Operator)
		for _, v := range slices.Compact(values) {
			part += strconv.Quote(v)
		}
		parts = append(parts, part)
	}
	slices.Sort(parts)
	return strings.Join(slices.Compact(parts), ";")
}
