package arm

import (
	"strings"

	"spillway.dev/spillway/internal/group"
)

// Bounds of probes and hooks.
const (
	maxProbeSeconds = 24 * 60 * 60
	maxThreshold    = 10_000
	maxHeaders      = 64
	maxHookSleep    = 60 * 60
)

// probe reads a probe. once: it has to be fine only once, as liveness and startup.
func (d *decoder) probe(o *object, once bool) *group.Probe {
	if o == nil {
		return nil
	}
	p := &group.Probe{Handler: d.handler(o, false)}
	set := func(name string, low, high int64, to *int) {
		if n, present := o.integer(name, low, high); present {
			*to = int(n)
		}
	}
	set("initialDelaySeconds", 0, maxProbeSeconds, &p.InitialDelaySeconds)
	set("periodSeconds", 0, maxProbeSeconds, &p.PeriodSeconds)
	set("timeoutSeconds", 0, maxProbeSeconds, &p.TimeoutSeconds)
	set("successThreshold", 0, maxThreshold, &p.SuccessThreshold)
	set("failureThreshold", 0, maxThreshold, &p.FailureThreshold)
	if n, present := o.integer(o.since(vOwn, "terminationGracePeriodSeconds"), 0, group.MaxGraceSeconds); present {
		grace := int(n)
		p.GraceSeconds = &grace
	}
	if once && p.SuccessThreshold > 1 {
		d.fault("", o.at("successThreshold"), "The field '%s' must be 1 for a liveness or startup probe, got %d.", o.at("successThreshold"), p.SuccessThreshold)
	}
	o.done()
	return p
}

func (d *decoder) hook(o *object) *group.Handler {
	if o == nil {
		return nil
	}
	h := d.handler(o, true)
	o.done()
	return &h
}

// handler reads the one way that a probe or hook names.
func (d *decoder) handler(o *object, hook bool) group.Handler {
	var h group.Handler
	var ways []string
	if e := o.child("exec"); e != nil {
		ways = append(ways, "exec")
		h.Exec = d.command(e, "command")
		if len(h.Exec) == 0 {
			d.fault("", e.at("command"), "The field '%s' must name a program.", e.at("command"))
		}
		e.done()
	}
	if g := o.child("httpGet"); g != nil {
		ways = append(ways, "httpGet")
		h.HTTP = d.httpGet(g)
	}
	if t := o.child(o.since(vOwn, "tcpSocket")); t != nil {
		ways = append(ways, "tcpSocket")
		h.TCP = &group.TCPConnect{Port: t.port()}
		t.done()
	}
	if hook {
		if s := o.child("sleep"); s != nil {
			ways = append(ways, "sleep")
			n, _ := s.integer("seconds", 1, maxHookSleep)
			h.SleepSeconds = int(n)
			s.done()
		}
	} else if g := o.child(o.since(vOwn, "grpc")); g != nil {
		ways = append(ways, "grpc")
		h.GRPC = &group.GRPCCheck{Port: g.port(), Service: g.str("service")}
		g.done()
	}
	if len(ways) != 1 {
		got := "none"
		if len(ways) > 1 {
			got = strings.Join(ways, " and ")
		}
		d.fault("", o.path, "The field '%s' must have exactly one of exec, httpGet, tcpSocket, grpc (probes) or sleep (hooks), got %s.", o.path, got)
	}
	return h
}

// port reads the field port.
func (o *object) port() int {
	n, present := o.integer("port", 1, 65535)
	if !present {
		o.d.fault("", o.at("port"), "The field '%s' is required.", o.at("port"))
	}
	return int(n)
}

func (d *decoder) httpGet(o *object) *group.HTTPGet {
	g := &group.HTTPGet{Path: o.str("path"), Port: o.port(), HTTPS: o.choice("scheme", "http", "http", "https") == "https"}
	g.Host = o.str(o.since(vOwn, "host"))
	if len(g.Path) > maxPath || strings.ContainsAny(g.Path, "\r\n\x00 ") {
		d.fault("", o.at("path"), "The field '%s' must be a URL path, got '%s'.", o.at("path"), clip(g.Path))
	}
	if strings.ContainsAny(g.Host, "\r\n\x00 /") || len(g.Host) > 300 {
		d.fault("", o.at("host"), "The field '%s' must be a host name, got '%s'.", o.at("host"), clip(g.Host))
	}
	for _, h := range o.list("httpHeaders") {
		header := group.Header{Name: h.required("name"), Value: h.str("value")}
		if !headerName(header.Name) || strings.ContainsAny(header.Value, "\r\n\x00") {
			d.fault("", h.path, "The field '%s' is not an HTTP header.", h.path)
		}
		g.Headers = append(g.Headers, header)
		h.done()
	}
	if len(g.Headers) > maxHeaders {
		d.fault("", o.at("httpHeaders"), "The field '%s' has %d headers; at most %d are allowed.", o.at("httpHeaders"), len(g.Headers), maxHeaders)
	}
	o.done()
	return g
}

func headerName(s string) bool {
	for i := range len(s) {
		if !alnum(s[i]) && strings.IndexByte("!#$%&'*+-.^_`|~", s[i]) < 0 {
			return false
		}
	}
	return true
}
