package arm

import "spillway.dev/spillway/internal/group"

// The JSON of a placement; all of it is Spillway's.

type wirePlacement struct {
	Pools        []string        `json:"pools,omitempty"`
	HostLabels   *wireHostLabels `json:"hostLabels,omitempty"`
	Affinity     []wireAffinity  `json:"affinity,omitempty"`
	AntiAffinity []wireAffinity  `json:"antiAffinity,omitempty"`
	Spread       []wireSpread    `json:"spread,omitempty"`
}

type wireHostLabels struct {
	Required  []wireCondition      `json:"required,omitempty"`
	Preferred []wireHostPreference `json:"preferred,omitempty"`
}

type wireHostPreference struct {
	Weight int             `json:"weight"`
	Labels []wireCondition `json:"labels"`
}

type wireCondition struct {
	Key      string         `json:"key"`
	Operator group.Operator `json:"operator"`
	Values   []string       `json:"values,omitempty"`
}

type wireAffinity struct {
	Labels   []wireCondition `json:"labels"`
	Topology group.Topology  `json:"topology"`
	Weight   int             `json:"weight,omitempty"` // absent: required
}

type wireSpread struct {
	Labels            []wireCondition `json:"labels"`
	Topology          group.Topology  `json:"topology"`
	MaxSkew           int             `json:"maxSkew"`
	WhenUnsatisfiable string          `json:"whenUnsatisfiable"`
}

type wireGPU struct {
	Count int64  `json:"count"`
	SKU   string `json:"sku,omitempty"`
}

func placement(p *group.Placement) *wirePlacement {
	if p == nil {
		return nil
	}
	w := &wirePlacement{Pools: p.Pools, Affinity: affinities(p.Affinity), AntiAffinity: affinities(p.AntiAffinity)}
	if len(p.Require)+len(p.Prefer) > 0 {
		w.HostLabels = &wireHostLabels{Required: conditions(p.Require)}
		for _, t := range p.Prefer {
			w.HostLabels.Preferred = append(w.HostLabels.Preferred, wireHostPreference{t.Weight, conditions(t.Match)})
		}
	}
	for _, s := range p.Spread {
		when := doNotSchedule
		if s.Anyway {
			when = scheduleAnyway
		}
		w.Spread = append(w.Spread, wireSpread{conditions(s.Match), s.Topology, s.MaxSkew, when})
	}
	return w
}

func affinities(list []group.Affinity) []wireAffinity {
	var out []wireAffinity
	for _, a := range list {
		out = append(out, wireAffinity{conditions(a.Match), a.Topology, a.Weight})
	}
	return out
}

func conditions(list []group.Expression) []wireCondition {
	var out []wireCondition
	for _, e := range list {
		out = append(out, wireCondition(e))
	}
	return out
}
