package virtualnode

import (
	"log/slog"
	"slices"
	"testing"

	"spillway.dev/spillway/internal/client"
)

func mirrorFor(t *testing.T) (*mirror, *[]string) {
	var told []string
	n := &Node{log: slog.New(slog.DiscardHandler), cluster: "c1", cfg: Config{Name: "virtual-1"}}
	return newMirror(n, func(uid string) { told = append(told, uid) }), &told
}

func generation(t *testing.T, g int64) *client.Group {
	out := groupOf(t, "Running", "10.0.0.1", nil)
	out.Properties.Generation = g
	return out
}

// TestMirrorNeverGoesBack: the answer to a change may overtake the watch, and the watch the answer.
func TestMirrorNeverGoesBack(t *testing.T) {
	m, told := mirrorFor(t)
	m.put("a", generation(t, 2))
	m.take("a", client.Event{Type: client.Modified, Object: generation(t, 1)})
	if g, gone := m.get("a"); gone || g.Properties.Generation != 2 {
		t.Errorf("generation = %d, gone %v: an older state came back", g.Properties.Generation, gone)
	}
	m.take("a", client.Event{Type: client.Modified, Object: generation(t, 3)})
	m.put("a", generation(t, 2))
	if g, _ := m.get("a"); g.Properties.Generation != 3 {
		t.Errorf("generation = %d, want 3", g.Properties.Generation)
	}
	if !slices.Equal(*told, []string{"a", "a"}) {
		t.Errorf("told of %v, want twice of a", *told)
	}
}

// TestMirrorRemembersWhatWent: how a group was last is what its pod's last status is made of.
func TestMirrorRemembersWhatWent(t *testing.T) {
	m, told := mirrorFor(t)
	for _, uid := range []string{"a", "b", "c"} {
		m.put(uid, generation(t, 1))
	}
	m.take("a", client.Event{Type: client.Deleted, Object: generation(t, 1)})
	m.retain(map[string]bool{"b": true}) // a fresh list: c went while nobody watched
	for uid, want := range map[string]bool{"a": true, "b": false, "c": true} {
		if g, gone := m.get(uid); g == nil || gone != want {
			t.Errorf("%s: group %v, gone %v, want %v", uid, g != nil, gone, want)
		}
	}
	if got := m.uids(); !slices.Equal(got, []string{"b"}) {
		t.Errorf("uids = %v, want b", got)
	}
	if !slices.Equal(*told, []string{"a", "c"}) {
		t.Errorf("told of %v, want a and c", *told)
	}
	m.forget("a")
	if g, gone := m.get("a"); g != nil || gone {
		t.Error("a is still remembered")
	}
	m.put("c", generation(t, 1)) // a pod's group is made again under its uid
	if _, gone := m.get("c"); gone {
		t.Error("c is there, and gone")
	}
}

func TestMine(t *testing.T) {
	n := &Node{cluster: "c1", cfg: Config{Name: "virtual-1"}}
	for _, c := range []struct {
		tags map[string]string
		want bool
	}{
		{map[string]string{tagCluster: "c1", tagNode: "virtual-1", tagUID: "u"}, true},
		{map[string]string{tagCluster: "c2", tagNode: "virtual-1", tagUID: "u"}, false},
		{map[string]string{tagCluster: "c1", tagNode: "virtual-2", tagUID: "u"}, false},
		{map[string]string{tagCluster: "c1", tagNode: "virtual-1"}, false},
		{nil, false},
	} {
		g := groupOf(t, "Running", "", nil)
		g.Tags = c.tags
		if got := n.mine(g); got != c.want {
			t.Errorf("mine(%v) = %v, want %v", c.tags, got, c.want)
		}
	}
}
