package hostlink

import (
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/service"
)

// Names and limits of the protocol.
const (
	serviceName = "spillway.host.v1.Hosts"
	// Version grows when an older side would misunderstand a newer one; unknown fields need no new version.
	Version = 1

	maxMessage = 24 << 20 // bytes: a group of the largest body, as JSON of JSON
	maxBatch   = 256      // groups or statuses in one message
	maxFrame   = 64 << 10 // bytes of a stream's frame

	ticketKey = "spillway-ticket" // of a stream's metadata
)

// up is what a host says; one field is set.
type up struct {
	Hello    *hello         `json:"hello,omitempty"`
	Statuses []group.Status `json:"statuses,omitempty"`
	Synced   bool           `json:"synced,omitempty"` // the statuses sent so far are all that there are
	Beat     *beat          `json:"beat,omitempty"`
	Answer   *answer        `json:"answer,omitempty"`
	Renew    []byte         `json:"renew,omitempty"` // a signing request for the host's next certificate
}

// hello begins a connection.
type hello struct {
	Version int       `json:"version"`
	Host    host.Host `json:"host"`
	Term    int64     `json:"term"` // the highest that the host has seen
}

// beat says that the host is there, and how it is now.
type beat struct {
	Host host.Host `json:"host"`
	Seq  int64     `json:"seq"`
	Time time.Time `json:"time"` // by the host's clock
}

// down is what a server says; one field is set.
type down struct {
	Welcome     *welcome        `json:"welcome,omitempty"`
	Assign      []*group.Group  `json:"assign,omitempty"`
	Retain      *retain         `json:"retain,omitempty"`
	Serve       *service.Update `json:"serve,omitempty"`
	Span        *host.Overlay   `json:"span,omitempty"`
	Name        *host.Names     `json:"name,omitempty"`
	Beat        *pulse          `json:"beat,omitempty"`
	Ask         *ask            `json:"ask,omitempty"`
	Open        *open           `json:"open,omitempty"`
	Certificate []byte          `json:"certificate,omitempty"` // PEM: the answer to Renew
}

// welcome is the server's part of the beginning.
type welcome struct {
	Version int           `json:"version"`
	Term    int64         `json:"term"`
	Every   time.Duration `json:"every"` // between two beats, in nanoseconds
	Time    time.Time     `json:"time"`  // by the server's clock
	Servers []string      `json:"servers,omitempty"`
}

// retain names all groups of the host.
type retain struct {
	UIDs []string `json:"uids"`
}

// pulse answers a beat: until so long after it was sent, nobody else is given the host's groups.
type pulse struct {
	Seq   int64         `json:"seq"`
	Lease time.Duration `json:"lease"` // in nanoseconds
}

// Kinds of questions and streams.
const (
	askStats  = "stats"
	askImages = "images"
	askRemove = "removeImage"

	openLogs    = "logs"
	openExec    = "exec"
	openAttach  = "attach"
	openForward = "forward"
	openPull    = "pullImage"
	openImport  = "importImage"
)

// ask is a question with a short answer.
type ask struct {
	ID   int64  `json:"id"`
	Kind string `json:"kind"`
	Name string `json:"name,omitempty"` // uid of a group, or reference of an image
}

// answer is a host's to a question.
type answer struct {
	ID    int64           `json:"id"`
	Value json.RawMessage `json:"value,omitempty"`
	Error *wireError      `json:"error,omitempty"`
}

// open asks the host to open a stream with a ticket that is good once, for one thing, for a short time.
type open struct {
	Ticket    string                     `json:"ticket"`
	Kind      string                     `json:"kind"`
	Name      string                     `json:"name,omitempty"` // uid of a group, or reference of an image
	Container string                     `json:"container,omitempty"`
	Logs      *host.LogOptions           `json:"logs,omitempty"`
	Exec      *host.ExecRequest          `json:"exec,omitempty"`
	Port      int                        `json:"port,omitempty"`
	Creds     []group.RegistryCredential `json:"creds,omitempty"`
}

// ending is how a stream ends.
type ending struct {
	ExitCode int          `json:"exitCode,omitempty"`
	Images   []host.Image `json:"images,omitempty"`
	Error    *wireError   `json:"error,omitempty"`
}

// wireError is a fault on its way to a caller.
type wireError struct {
	Kind    string `json:"kind"`
	Code    string `json:"code,omitempty"`
	Status  int    `json:"status,omitempty"`
	Message string `json:"message"`
	Target  string `json:"target,omitempty"`
}

func toWire(err error) *wireError {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*fault.Error](err); ok {
		return &wireError{e.Kind.Row().Name, e.Code, e.Status, e.Message, e.Target}
	}
	return &wireError{Kind: fault.Internal.Row().Name, Message: err.Error()}
}

// maxErrorText bounds what a host's error puts into logs and answers.
const maxErrorText = 2048

func (e *wireError) err() error {
	if e == nil {
		return nil
	}
	kind := fault.KindNamed(e.Kind)
	message := clean(e.Message, maxErrorText)
	if kind == fault.Internal {
		return errors.New(message)
	}
	return &fault.Error{Kind: kind, Code: clean(e.Code, 64), Status: e.Status, Message: message, Target: clean(e.Target, 256)}
}

// clean cuts a text and takes out what a terminal or a log would act on.
func clean(text string, most int) string {
	out := make([]rune, 0, min(len(text), most))
	for _, r := range text {
		if len(out) >= most {
			break
		}
		if r < ' ' && r != '\n' && r != '\t' || r == 0x7f {
			r = ' '
		}
		out = append(out, r)
	}
	return string(out)
}

// frame is a message of a stream: a channel and its bytes, as in package stream.
type frame struct{ raw []byte }

// codec writes messages as JSON, and frames as they are.
type codec struct{}

func (codec) Name() string { return "spillway" }

func (codec) Marshal(v any) ([]byte, error) {
	if f, ok := v.(*frame); ok {
		return f.raw, nil
	}
	return json.Marshal(v)
}

func (codec) Unmarshal(data []byte, v any) error {
	if f, ok := v.(*frame); ok {
		f.raw = append(f.raw[:0], data...)
		return nil
	}
	if err := json.Unmarshal(data, v); err != nil {
		return fmt.Errorf("message: %w", err)
	}
	return nil
}

var (
	connectStream = grpc.StreamDesc{StreamName: "Connect", ServerStreams: true, ClientStreams: true}
	byteStream    = grpc.StreamDesc{StreamName: "Stream", ServerStreams: true, ClientStreams: true}
)
