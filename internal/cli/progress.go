package cli

import (
	"fmt"
	"io"
	"os"
	"strings"
	"sync"

	"golang.org/x/term"

	"spillway.dev/spillway/internal/host"
)

// isTerminal says whether a stream is one that a person looks at.
func isTerminal(stream any) (*os.File, bool) {
	f, ok := stream.(*os.File)
	return f, ok && term.IsTerminal(int(f.Fd()))
}

// line is one line of a terminal that changes; without a terminal it stays silent.
type line struct {
	w     io.Writer // nil: no terminal
	width int
	text  string
}

// statusLine is on stderr, so that what a command prints can be piped all the same.
func (a *app) statusLine() *line {
	f, ok := isTerminal(a.stderr)
	if !ok {
		return &line{}
	}
	width, _, err := term.GetSize(int(f.Fd()))
	if err != nil || width < 20 {
		width = 80
	}
	return &line{w: f, width: width}
}

func (l *line) set(text string) {
	if l.w == nil || text == l.text {
		return
	}
	l.text = text
	fmt.Fprintf(l.w, "\r\x1b[K%s", clip(printable(text), l.width-1))
}

func (l *line) clear() {
	if l.w != nil && l.text != "" {
		fmt.Fprint(l.w, "\r\x1b[K")
		l.text = ""
	}
}

// bars shows one bar per layer of a pull on a terminal.
type bars struct {
	mu     sync.Mutex // guards all: progress comes from the connection's goroutine
	w      io.Writer  // nil: no terminal
	width  int
	order  []string
	layers map[string]host.Progress
	drawn  int // lines on the screen
}

func (a *app) bars() *bars {
	l := a.statusLine()
	return &bars{w: l.w, width: l.width, layers: map[string]host.Progress{}}
}

// tell takes news of a layer.
func (b *bars) tell(p host.Progress) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.w == nil || p.Layer == "" {
		return
	}
	if _, known := b.layers[p.Layer]; !known {
		b.order = append(b.order, p.Layer)
	}
	b.layers[p.Layer] = p
	b.draw()
}

// layerEvent is the event of a container that says how far one layer of its image is: "DIGEST PHASE DONE/TOTAL bytes".
const layerEvent = "PullingLayer"

// tellEvents takes news of layers out of a group's events.
func (b *bars) tellEvents(events []event) {
	for _, e := range events {
		var p host.Progress
		if e.Name != layerEvent {
			continue
		}
		if n, _ := fmt.Sscanf(e.Message, "%s %s %d/%d bytes", &p.Layer, &p.Phase, &p.Done, &p.Total); n == 4 && b.layers[p.Layer] != p {
			b.tell(p)
		}
	}
}

func (b *bars) draw() {
	var out strings.Builder
	if b.drawn > 0 {
		fmt.Fprintf(&out, "\x1b[%dA", b.drawn)
	}
	for _, id := range b.order {
		fmt.Fprintf(&out, "\r\x1b[K%s\n", clip(bar(b.layers[id], b.width), b.width-1))
	}
	b.drawn = len(b.order)
	io.WriteString(b.w, out.String())
}

// bar is one layer: short digest, phase, and how much of it.
func bar(p host.Progress, width int) string {
	id := strings.TrimPrefix(p.Layer, "sha256:")
	head := fmt.Sprintf("%-12s %-11s ", clip(id, 12), printable(p.Phase))
	if p.Phase != "downloading" || p.Total <= 0 {
		if p.Total > 0 {
			head += bytesText(p.Total)
		}
		return head
	}
	tail := fmt.Sprintf(" %s / %s", bytesText(p.Done), bytesText(p.Total))
	room := min(width-len(head)-len(tail)-3, 40)
	if room < 5 {
		return head + tail
	}
	full := int(int64(room) * min(p.Done, p.Total) / p.Total)
	return head + "[" + strings.Repeat("=", full) + strings.Repeat(" ", room-full) + "]" + tail
}

func clip(s string, width int) string {
	r := []rune(s)
	if len(r) <= width {
		return s
	}
	return string(r[:width])
}

// printable keeps control characters of others off the terminal.
func printable(s string) string {
	return strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, s)
}

// counting tells how much of a file has been sent.
type counting struct {
	r    io.Reader
	done int64
	tell func(done int64)
}

// Read counts.
func (c *counting) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.done += int64(n)
	c.tell(c.done)
	return n, err
}
