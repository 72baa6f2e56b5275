package group

import (
	"fmt"
	"net/netip"
)

// Bounds of a report.
const (
	maxReportText       = 4 * MaxMessage
	maxReportContainers = 3 * MaxContainers
)

// Check says whether a host's report can be true: what it says is shown to people and compared with others', so it is
// bounded and parsed before anything else is done with it.
func (s *Status) Check() error {
	switch s.State {
	case Pending, Running, Succeeded, Failed, Stopped:
	default:
		return fmt.Errorf("there is no state %q", cut(string(s.State)))
	}
	if s.UID == "" || len(s.UID) > 64 || s.Generation < 0 || s.Epoch < 0 {
		return fmt.Errorf("uid %q, generation %d and epoch %d name no group", cut(s.UID), s.Generation, s.Epoch)
	}
	for _, ip := range []string{s.IP, s.PublicIP} {
		if _, err := netip.ParseAddr(ip); ip != "" && err != nil {
			return fmt.Errorf("%q is no address", cut(ip))
		}
	}
	all := s.All()
	if len(all) > maxReportContainers {
		return fmt.Errorf("the report has %d containers; at most %d are possible", len(all), maxReportContainers)
	}
	if err := checkEvents(s.Events); err != nil {
		return err
	}
	if len(s.Reason) > maxReportText {
		return fmt.Errorf("the reason has %d bytes; at most %d are allowed", len(s.Reason), maxReportText)
	}
	for i := range all {
		if err := all[i].check(); err != nil {
			return fmt.Errorf("container %q: %w", cut(all[i].Name), err)
		}
	}
	return nil
}

func (c *ContainerStatus) check() error {
	moments := []*Moment{&c.Current, c.Previous}
	for _, m := range moments {
		if m == nil {
			continue
		}
		switch m.State {
		case Waiting, Started, Terminated, "":
		default:
			return fmt.Errorf("there is no state %q", cut(string(m.State)))
		}
		if len(m.Detail) > maxReportText || len(m.Message) > maxReportText {
			return fmt.Errorf("a text of %d bytes is too long; at most %d are allowed", max(len(m.Detail), len(m.Message)), maxReportText)
		}
	}
	if len(c.Name) > 253 || len(c.Image) > maxReportText || c.RestartCount < 0 {
		return fmt.Errorf("its name, image or count is impossible")
	}
	return checkEvents(c.Events)
}

func checkEvents(list []Event) error {
	if len(list) > MaxEvents {
		return fmt.Errorf("%d events are too many; at most %d are kept", len(list), MaxEvents)
	}
	for i := range list {
		if e := &list[i]; len(e.Name) > 128 || len(e.Message) > maxReportText || e.Type != Normal && e.Type != Warning {
			return fmt.Errorf("event %q is too long, or of no known type", cut(e.Name))
		}
	}
	return nil
}

// cut shortens what is quoted in an error.
func cut(text string) string { return text[:min(len(text), 64)] }
