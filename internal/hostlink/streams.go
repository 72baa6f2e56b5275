package hostlink

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"sync"

	"google.golang.org/grpc"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/stream"
)

// channelProgress carries the progress of a pull beside the channels of package stream.
const channelProgress stream.Channel = 100

// wire is either end of a stream of frames.
type wire interface {
	SendMsg(m any) error
	RecvMsg(m any) error
}

var (
	_ wire = grpc.ServerStream(nil)
	_ wire = grpc.ClientStream(nil)
)

// sender writes frames; several may write at once.
type sender struct {
	mu sync.Mutex // one message at a time
	to wire
}

func (s *sender) send(c stream.Channel, data []byte) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.to.SendMsg(&frame{append([]byte{byte(c)}, data...)})
}

func (s *sender) sendJSON(c stream.Channel, v any) error {
	body, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return s.send(c, body)
}

// writer is a channel of a stream as an io.Writer.
type writer struct {
	s       *sender
	channel stream.Channel
}

func (w writer) Write(b []byte) (int, error) {
	for n := 0; n < len(b); n += maxFrame {
		if err := w.s.send(w.channel, b[n:min(n+maxFrame, len(b))]); err != nil {
			return n, err
		}
	}
	return len(b), nil
}

// pump copies a caller's standard input into a stream until it ends.
func pump(s *sender, from io.Reader) {
	if from == nil {
		return
	}
	_, _ = io.Copy(writer{s, stream.Stdin}, from) // the other end tells how it ended
	_ = s.send(stream.StdinClosed, nil)
}

func resizes(ctx context.Context, s *sender, sizes <-chan host.Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok || s.sendJSON(stream.Resize, size) != nil {
				return
			}
		}
	}
}

// follow reads what the host sends until the stream's end.
func follow(w wire, out host.Streams, progress func(host.Progress)) (ending, error) {
	write := func(to io.Writer, data []byte) error {
		if to == nil {
			return nil
		}
		_, err := to.Write(data)
		return err
	}
	for {
		var f frame
		if err := w.RecvMsg(&f); err != nil {
			return ending{}, fmt.Errorf("the host's stream broke off: %w", err)
		}
		if len(f.raw) == 0 {
			return ending{}, errors.New("the host sent an empty frame")
		}
		channel, data := stream.Channel(f.raw[0]), f.raw[1:]
		var err error
		switch channel {
		case stream.Stdout:
			err = write(out.Stdout, data)
		case stream.Stderr:
			err = write(out.Stderr, data)
		case channelProgress:
			var p host.Progress
			if err = json.Unmarshal(data, &p); err == nil && progress != nil {
				progress(p)
			}
		case stream.Exit:
			var e ending
			if err := json.Unmarshal(data, &e); err != nil {
				return e, fmt.Errorf("the host's ending: %w", err)
			}
			return e, e.Error.err()
		}
		if err != nil {
			return ending{}, err
		}
	}
}

// converse opens a stream and carries a caller's streams over it until the host has ended it.
func (r *remote) converse(ctx context.Context, o open, s host.Streams, progress func(host.Progress)) (ending, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	w, done, err := r.server.await(ctx, r, o)
	if err != nil {
		return ending{}, err
	}
	defer done()
	out := &sender{to: w}
	go pump(out, s.Stdin)
	if s.Resize != nil {
		go resizes(ctx, out, s.Resize)
	}
	type result struct {
		e   ending
		err error
	}
	ended := make(chan result, 1)
	go func() {
		e, err := follow(w, s, progress)
		ended <- result{e, err}
	}()
	select {
	case <-ctx.Done():
		done()
		<-ended // the caller's writers are not touched after the return
		return ending{}, ctx.Err()
	case res := <-ended:
		return res.e, res.err
	}
}

// Logs implements host.Link.
func (r *remote) Logs(ctx context.Context, uid, container string, opt host.LogOptions, w io.Writer) error {
	_, err := r.converse(ctx, open{Kind: openLogs, Name: uid, Container: container, Logs: &opt}, host.Streams{Stdout: w}, nil)
	return err
}

// Exec implements host.Link.
func (r *remote) Exec(ctx context.Context, uid, container string, req host.ExecRequest, s host.Streams) (int, error) {
	e, err := r.converse(ctx, open{Kind: openExec, Name: uid, Container: container, Exec: &req}, s, nil)
	return e.ExitCode, err
}

// Attach implements host.Link.
func (r *remote) Attach(ctx context.Context, uid, container string, s host.Streams) error {
	_, err := r.converse(ctx, open{Kind: openAttach, Name: uid, Container: container}, s, nil)
	return err
}

// Forward implements host.Link.
func (r *remote) Forward(ctx context.Context, uid string, port int, s host.Streams) error {
	_, err := r.converse(ctx, open{Kind: openForward, Name: uid, Port: port}, s, nil)
	return err
}

// PullImage implements host.Images.
func (r *remote) PullImage(ctx context.Context, ref string, creds []group.RegistryCredential, progress func(host.Progress)) (host.Image, error) {
	e, err := r.converse(ctx, open{Kind: openPull, Name: ref, Creds: creds}, host.Streams{}, progress)
	if err != nil || len(e.Images) == 0 {
		return host.Image{}, err
	}
	return e.Images[0], nil
}

// ImportImage implements host.Images.
func (r *remote) ImportImage(ctx context.Context, body io.Reader) ([]host.Image, error) {
	e, err := r.converse(ctx, open{Kind: openImport}, host.Streams{Stdin: body}, nil)
	return e.Images, err
}
