// Package stream is the framing of spillway.exec.v1, the WebSocket subprotocol of exec and attach.
//
// Every message is binary: one byte that names the channel, then its data. The caller sends stdin, stdin-closed and
// resize; the platform sends stdout, stderr and, last, one exit. The package is pure and must never block. Start at
// Parse.
package stream

import (
	"encoding/json"
	"fmt"

	"spillway.dev/spillway/internal/host"
)

// Protocol is the name of the subprotocol.
const Protocol = "spillway.exec.v1"

// Channel says what a frame carries.
type Channel byte

// The channels.
const (
	Stdin       Channel = 0
	Stdout      Channel = 1
	Stderr      Channel = 2
	Resize      Channel = 3 // JSON {"rows":24,"cols":80}
	Exit        Channel = 4 // JSON {"exitCode":0} or {"error":{"code":…,"message":…}}
	StdinClosed Channel = 5 // empty
)

// MaxFrame is the largest message, in bytes.
const MaxFrame = 1 << 20

// Result ends a stream.
type Result struct {
	ExitCode int    `json:"exitCode"`
	Error    *Error `json:"error,omitempty"`
}

// Error is why a stream ended without an exit code.
type Error struct {
	Code    string `json:"code"`
	Message string `json:"message"`
}

// Frame is one message.
type Frame struct {
	Channel Channel
	Data    []byte // aliases the message
	Size    host.Size
	Result  Result
}

// Parse reads one message.
func Parse(message []byte) (Frame, error) {
	if len(message) == 0 {
		return Frame{}, fmt.Errorf("the message is empty; its first byte must name a channel")
	}
	f := Frame{Channel: Channel(message[0]), Data: message[1:]}
	switch f.Channel {
	case Stdin, Stdout, Stderr, StdinClosed:
		return f, nil
	case Resize:
		if err := json.Unmarshal(f.Data, &f.Size); err != nil {
			return Frame{}, fmt.Errorf("read resize frame: %w", err)
		}
		return f, nil
	case Exit:
		if err := json.Unmarshal(f.Data, &f.Result); err != nil {
			return Frame{}, fmt.Errorf("read exit frame: %w", err)
		}
		return f, nil
	}
	return Frame{}, fmt.Errorf("channel %d does not exist", message[0])
}

// Make writes one message.
func Make(c Channel, data []byte) []byte {
	return append(append(make([]byte, 0, len(data)+1), byte(c)), data...)
}

// MakeResize writes a resize message.
func MakeResize(size host.Size) []byte {
	return Make(Resize, fmt.Appendf(nil, `{"rows":%d,"cols":%d}`, size.Rows, size.Cols))
}

// MakeExit writes an exit message.
func MakeExit(r Result) []byte {
	data, err := json.Marshal(r)
	if err != nil { // two plain fields always marshal
		data = []byte(`{"error":{"code":"InternalServerError","message":"the result cannot be written"}}`)
	}
	return Make(Exit, data)
}
