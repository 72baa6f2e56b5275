package httpapi

import (
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"time"

	"github.com/coder/websocket"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/stream"
)

// passwordTimeout is how long a stream may take to show its password.
const passwordTimeout = 10 * time.Second

// stream is the WebSocket behind exec and attach. Azure's clients speak plain binary frames; those that offer
// spillway.exec.v1 get channels.
func (a *api) stream(c *call) error {
	k := a.tickets.take(c.params["ticket"])
	if k == nil {
		return fault.New(fault.NotFound, "SessionNotFound", "The stream does not exist, was used already, or was not opened within %d seconds. Ask for a new one.", int(ticketLife.Seconds()))
	}
	// Azure's attach sends the password as a header; a wrong one is no way in.
	header := strings.TrimPrefix(c.r.Header.Get("Authorization"), "Bearer ")
	if header != "" && !k.matches(header) {
		return fault.New(fault.Unauthenticated, "", "The password of the stream is wrong. Ask for a new stream.")
	}
	done, err := a.openStream()
	if err != nil {
		return err
	}
	defer done()
	conn, err := websocket.Accept(c.w, c.r, &websocket.AcceptOptions{
		Subprotocols: []string{stream.Protocol}, InsecureSkipVerify: true, // any origin: the password is the proof, no cookie is
	})
	if err != nil {
		return nil // Accept has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(stream.MaxFrame)
	ctx, cancel := context.WithCancel(context.WithoutCancel(c.r.Context()))
	defer cancel()
	if header == "" && !passes(ctx, conn, k) {
		_ = conn.Close(websocket.StatusPolicyViolation, "the password is wrong or missing")
		return nil
	}
	s := &session{conn: conn, channels: conn.Subprotocol() == stream.Protocol, cancel: cancel}
	s.serve(ctx, k)
	return nil
}

// passes reads the first frame, which must be the password.
func passes(ctx context.Context, conn *websocket.Conn, k *ticket) bool {
	ctx, cancel := context.WithTimeout(ctx, passwordTimeout)
	defer cancel()
	_, first, err := conn.Read(ctx)
	return err == nil && k.matches(string(first))
}

// session is one open stream.
type session struct {
	conn     *websocket.Conn
	channels bool
	cancel   context.CancelFunc
}

// serve runs the ticket's command between the ends of the stream.
func (s *session) serve(ctx context.Context, k *ticket) {
	stdin, feed := io.Pipe()
	resize := make(chan host.Size, 1)
	go s.receive(ctx, feed, resize)
	streams := host.Streams{Stdin: stdin, Stdout: s.writer(ctx, stream.Stdout), Stderr: s.writer(ctx, stream.Stderr), Resize: resize}
	code, err := k.run(ctx, streams)
	_ = stdin.Close() // ends a receiver that waits for a reader
	if ctx.Err() != nil {
		return // the caller hung up
	}
	if s.channels {
		_ = s.conn.Write(ctx, websocket.MessageBinary, stream.MakeExit(result(code, err))) // a caller that is gone misses nothing
	} else if err != nil {
		_ = s.conn.Write(ctx, websocket.MessageBinary, []byte(err.Error()+"\r\n"))
	}
	_ = s.conn.Close(websocket.StatusNormalClosure, "")
}

func result(code int, err error) stream.Result {
	if err == nil {
		return stream.Result{ExitCode: code}
	}
	e, ok := errors.AsType[*fault.Error](err)
	if !ok {
		e = fault.New(fault.Internal, "", "The command could not be run: %v.", err)
	}
	return stream.Result{Error: &stream.Error{Code: e.ARMCode(), Message: e.Message}}
}

// receive carries frames from the caller until the stream ends.
func (s *session) receive(ctx context.Context, stdin *io.PipeWriter, resize chan host.Size) {
	defer s.cancel()
	defer stdin.Close()
	for {
		_, message, err := s.conn.Read(ctx)
		if err != nil {
			return
		}
		f := stream.Frame{Channel: stream.Stdin, Data: message}
		if s.channels {
			if f, err = stream.Parse(message); err != nil {
				_ = s.conn.Close(websocket.StatusUnsupportedData, "malformed frame")
				return
			}
		}
		switch f.Channel {
		case stream.Stdin:
			_, _ = stdin.Write(f.Data) // a program that reads no more ignores the rest
		case stream.StdinClosed:
			_ = stdin.Close()
		case stream.Resize:
			select { // only the newest size matters
			case <-resize:
			default:
			}
			resize <- f.Size
		}
	}
}

// writer sends output on a channel.
func (s *session) writer(ctx context.Context, ch stream.Channel) io.Writer {
	return writerFunc(func(p []byte) (int, error) {
		ctx, cancel := context.WithTimeout(ctx, writeLimit)
		defer cancel()
		for sent := 0; sent < len(p); {
			part := p[sent:min(len(p), sent+stream.MaxFrame/2)]
			message := part
			if s.channels {
				message = stream.Make(ch, part)
			}
			if err := s.conn.Write(ctx, websocket.MessageBinary, message); err != nil {
				return sent, err
			}
			sent += len(part)
		}
		return len(p), nil
	})
}

type writerFunc func(p []byte) (int, error)

func (f writerFunc) Write(p []byte) (int, error) { return f(p) }

var _ http.Handler = (*api)(nil)
