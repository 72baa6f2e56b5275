package httpapi

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/json"
	"fmt"
	"net/http"
	"sync"
	"time"

	"spillway.dev/spillway/internal/arm"
	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// Limits of tickets.
const (
	ticketLife = 60 * time.Second
	maxTickets = 10_000
	maxWords   = 1024 // of a command
)

// ticket is leave to open one stream, once, soon.
type ticket struct {
	password [32]byte // hash
	expires  time.Time
	view     arm.View
	link     host.Link
	name     string // of the container
	attach   bool
	port     int // to forward to; 0: it is no forward
	request  host.ExecRequest
}

// tickets are the open ones. They live in memory: a restart of the platform breaks streams anyway.
type tickets struct {
	now  func() time.Time
	mu   sync.Mutex // guards open
	open map[string]*ticket
}

func newTickets(now func() time.Time) *tickets {
	return &tickets{now: now, open: map[string]*ticket{}}
}

// issue keeps a ticket and gives its id and password. Errors: exhausted.
func (t *tickets) issue(k *ticket) (id, password string, err error) {
	id, password = requestID(), requestID()+requestID()
	k.password = sha256.Sum256([]byte(password))
	k.expires = t.now().Add(ticketLife)
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.open) >= maxTickets {
		for id, old := range t.open {
			if t.now().After(old.expires) {
				delete(t.open, id)
			}
		}
	}
	if len(t.open) >= maxTickets {
		return "", "", fault.New(fault.Exhausted, "", "Too many streams are about to be opened. Try again.")
	}
	t.open[id] = k
	return id, password, nil
}

// take uses a ticket up; nil when there is none that is still valid.
func (t *tickets) take(id string) *ticket {
	t.mu.Lock()
	defer t.mu.Unlock()
	k := t.open[id]
	delete(t.open, id)
	if k == nil || t.now().After(k.expires) {
		return nil
	}
	return k
}

func (k *ticket) matches(password string) bool {
	sum := sha256.Sum256([]byte(password))
	return subtle.ConstantTimeCompare(sum[:], k.password[:]) == 1
}

// execBody is the request. Azure's command is one string, Spillway's an array.
type execBody struct {
	Command json.RawMessage `json:"command"`
	Size    *struct {
		Rows int `json:"rows"`
		Cols int `json:"cols"`
	} `json:"terminalSize"`
	TTY   *bool `json:"tty"`
	Stdin *bool `json:"stdin"`
}

func (a *api) exec(c *call) error {
	v, link, err := a.target(c)
	if err != nil {
		return err
	}
	var body execBody
	if err := c.decode(&body); err != nil {
		return err
	}
	req, err := body.request(c.version)
	if err != nil {
		return err
	}
	if err := running(v, c.params["container"]); err != nil {
		return err
	}
	if err := a.onHosts(c, v.Group.Spec.Needs()); err != nil {
		return err
	}
	return a.giveTicket(c, &ticket{view: v, link: link, name: c.params["container"], request: req})
}

// request reads the body as the api-version means it.
func (b *execBody) request(version arm.Version) (host.ExecRequest, error) {
	req := host.ExecRequest{TTY: true, Stdin: true}
	if b.Size != nil {
		if b.Size.Rows < 0 || b.Size.Rows > 65535 || b.Size.Cols < 0 || b.Size.Cols > 65535 {
			return req, fault.New(fault.Invalid, "", "The field 'terminalSize' must have rows and cols from 0 to 65535.")
		}
		req.Size = host.Size{Rows: uint16(b.Size.Rows), Cols: uint16(b.Size.Cols)}
	}
	var line string
	switch {
	case json.Unmarshal(b.Command, &line) == nil:
		req.Command = splitCommand(line)
	case !version.Superset:
		return req, fault.New(fault.Invalid, "", "The field 'command' must be a string in api-version %s. It can be an array in api-version %s.", version.Name, arm.Superset)
	case json.Unmarshal(b.Command, &req.Command) != nil:
		return req, fault.New(fault.Invalid, "", "The field 'command' must be a string or an array of strings.")
	}
	if len(req.Command) == 0 || req.Command[0] == "" || len(req.Command) > maxWords {
		return req, fault.New(fault.Invalid, "", "The field 'command' must name a program and have at most %d words.", maxWords)
	}
	if (b.TTY != nil || b.Stdin != nil) && !version.Superset {
		return req, fault.New(fault.Invalid, "", "The fields 'tty' and 'stdin' do not exist in api-version %s. They exist in api-version %s.", version.Name, arm.Superset)
	}
	if version.Superset {
		req.TTY, req.Stdin = b.TTY != nil && *b.TTY, b.Stdin != nil && *b.Stdin
	}
	return req, nil
}

// splitCommand splits a line into words; quotes hold words together, nothing else has a meaning.
func splitCommand(line string) []string {
	var words []string
	var word []rune
	var quote rune
	inWord := false
	for _, r := range line {
		switch {
		case quote != 0 && r == quote:
			quote = 0
		case quote == 0 && (r == '\'' || r == '"'):
			quote, inWord = r, true
		case quote == 0 && (r == ' ' || r == '\t' || r == '\n'):
			if inWord {
				words = append(words, string(word))
			}
			word, inWord = nil, false
		default:
			word, inWord = append(word, r), true
		}
	}
	if inWord {
		words = append(words, string(word))
	}
	return words
}

func (a *api) attach(c *call) error {
	v, link, err := a.target(c)
	if err != nil {
		return err
	}
	if err := running(v, c.params["container"]); err != nil {
		return err
	}
	if err := a.onHosts(c, v.Group.Spec.Needs()); err != nil {
		return err
	}
	return a.giveTicket(c, &ticket{view: v, link: link, name: c.params["container"], attach: true})
}

// portForward gives a stream to a port of a group, as the group's own programs see it.
func (a *api) portForward(c *call) error {
	v, err := a.Controller.Get(c.ref())
	if err != nil {
		return err
	}
	link, err := a.linkOf(v.Group)
	if err != nil {
		return err
	}
	var body struct {
		Port int `json:"port"`
	}
	if err := c.decode(&body); err != nil {
		return err
	}
	if body.Port < 1 || body.Port > 65535 {
		return fault.New(fault.Invalid, "", "The field 'port' must be from 1 to 65535, got %d.", body.Port)
	}
	if v.Group.Spec.HostNetwork { // every port of the machine, those on its loopback too
		if err := a.onHosts(c, v.Group.Spec.Needs()); err != nil {
			return err
		}
	}
	return a.giveTicket(c, &ticket{view: v, link: link, port: body.Port})
}

// running refuses a container that does not run. What is not reported yet is left to the host.
func running(v arm.View, name string) error {
	if v.Status == nil || v.Status.Epoch < v.Group.Epoch {
		return fault.New(fault.Conflict, "ContainerGroupTransitioning", "The container group '%s' is still transitioning, please retry later.", v.Group.Ref.Name)
	}
	for _, s := range v.Status.All() {
		if s.Name == name && s.Current.State != group.Started {
			return fault.New(fault.Conflict, "ContainerNotRunning", "The container '%s' of container group '%s' is not running: it is %s %s. Start the group, or look at its events.", name, v.Group.Ref.Name, s.Current.State, s.Current.Detail)
		}
	}
	return nil
}

func (a *api) giveTicket(c *call, k *ticket) error {
	id, password, err := a.tickets.issue(k)
	if err != nil {
		return err
	}
	uri := fmt.Sprintf("wss://%s/execstream/sessionId/%s?api-version=1.0", c.r.Host, id)
	if s := k.request.Size; s != (host.Size{}) {
		uri += fmt.Sprintf("&rows=%d&cols=%d", s.Rows, s.Cols)
	}
	return c.answer(http.StatusOK, map[string]string{"webSocketUri": uri, "password": password})
}

// run does what the ticket is for.
func (k *ticket) run(ctx context.Context, s host.Streams) (int, error) {
	if k.port != 0 {
		return 0, k.link.Forward(ctx, k.view.Group.UID, k.port, s)
	}
	if k.attach {
		return 0, k.link.Attach(ctx, k.view.Group.UID, k.name, s)
	}
	if !k.request.Stdin {
		s.Stdin = nil
	}
	return k.link.Exec(ctx, k.view.Group.UID, k.name, k.request, s)
}
