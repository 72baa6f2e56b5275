package httpapi

import (
	"sort"
	"strings"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
)

// node is a step of a path: its fixed successors in lower case, and the one that takes anything.
type node struct {
	fixed   map[string]*node
	any     *node
	name    string            // of what any takes
	methods map[string]*route // where a pattern ends
}

// build makes the tree of all routes.
func build(list []route) *node {
	root := &node{}
	for i := range list {
		n := root
		for part := range strings.SplitSeq(strings.TrimPrefix(list[i].pattern, "/"), "/") {
			n = n.step(part)
		}
		if n.methods == nil {
			n.methods = map[string]*route{}
		}
		n.methods[list[i].method] = &list[i]
	}
	return root
}

// step is the successor for a part of a pattern.
func (n *node) step(part string) *node {
	if strings.HasPrefix(part, "{") {
		if n.any == nil {
			n.any, n.name = &node{}, strings.Trim(part, "{}")
		}
		return n.any
	}
	if n.fixed == nil {
		n.fixed = map[string]*node{}
	}
	key := strings.ToLower(part)
	if n.fixed[key] == nil {
		n.fixed[key] = &node{}
	}
	return n.fixed[key]
}

// find walks the segments; fixed steps win over open ones.
func (n *node) find(segments []string, params map[string]string) *node {
	if len(segments) == 0 {
		if n.methods == nil {
			return nil
		}
		return n
	}
	if next := n.fixed[strings.ToLower(segments[0])]; next != nil {
		if hit := next.find(segments[1:], params); hit != nil {
			return hit
		}
	}
	if n.any == nil {
		return nil
	}
	hit := n.any.find(segments[1:], params)
	if hit != nil {
		params[n.name] = segments[0]
	}
	return hit
}

// match finds the route of a request. Empty segments and case do not matter; nothing is redirected. Errors: invalid,
// not-found, method-not-allowed (allow lists what there is).
func (n *node) match(method, path string) (r *route, params map[string]string, allow string, err error) {
	segments, err := arm.Segments(path)
	if err != nil {
		return nil, nil, "", err
	}
	params = map[string]string{}
	hit := n.find(segments, params)
	if hit == nil {
		return nil, nil, "", fault.New(fault.NotFound, "InvalidResourceType", "The path '%.300s' does not name anything that this platform has.", path)
	}
	if r = hit.methods[method]; r != nil {
		return r, params, "", nil
	}
	var names []string
	for m := range hit.methods {
		names = append(names, m)
	}
	sort.Strings(names)
	allow = strings.Join(names, ", ")
	return nil, nil, allow, fault.New(fault.MethodNotAllowed, "", "The requested resource does not support http method '%.16s'. It supports %s.", method, allow)
}
