package hostlink

import (
	"context"
	"encoding/json"
	"fmt"
	"io"

	"google.golang.org/grpc/metadata"

	"spillway.dev/spillway/internal/fault"
	"spillway.dev/spillway/internal/host"
	"spillway.dev/spillway/internal/stream"
)

// answer answers a question of the server.
func (n *connection) answer(ctx context.Context, q *ask) *answer {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	local := n.c.cfg.Local
	var value any
	var err error
	switch q.Kind {
	case askStats:
		value, err = local.Stats(ctx, q.Name)
	case askImages:
		value, err = local.Images(ctx)
	case askRemove:
		err = local.RemoveImage(ctx, q.Name)
	default:
		err = unknown(q.Kind)
	}
	a := &answer{ID: q.ID, Error: toWire(err)}
	if err == nil {
		if a.Value, err = json.Marshal(value); err != nil {
			a.Error = toWire(err)
		}
	}
	return a
}

func unknown(kind string) error {
	return fault.New(fault.Unavailable, "HostTooOld", "This host's release does not know %q. Upgrade it.", clean(kind, 64))
}

// open opens a stream and does over it what the server has asked for.
func (n *connection) open(ctx context.Context, o *open) {
	ctx, cancel := context.WithCancel(metadata.AppendToOutgoingContext(ctx, ticketKey, o.Ticket))
	defer cancel()
	ss, err := n.conn.NewStream(ctx, &byteStream, "/"+serviceName+"/"+byteStream.StreamName)
	if err != nil {
		return // the server's wait for the ticket ends by itself
	}
	out := &sender{to: ss}
	in, sizes := inputs(ss, cancel)
	end, err := n.carryOut(ctx, o, host.Streams{Stdin: in, Stdout: writer{out, stream.Stdout}, Stderr: writer{out, stream.Stderr}, Resize: sizes}, out)
	in.Close() // what the caller still sends is for nobody
	end.Error = toWire(err)
	if out.sendJSON(stream.Exit, end) == nil {
		_ = ss.CloseSend()
		<-ctx.Done() // the server lets the stream go when it has read all of it
	}
}

// carryOut does what a stream is for.
func (n *connection) carryOut(ctx context.Context, o *open, s host.Streams, out *sender) (end ending, err error) {
	local := n.c.cfg.Local
	switch {
	case o.Kind == openLogs && o.Logs != nil:
		err = local.Logs(ctx, o.Name, o.Container, *o.Logs, s.Stdout)
	case o.Kind == openExec && o.Exec != nil:
		if !o.Exec.Stdin {
			s.Stdin = nil
		}
		end.ExitCode, err = local.Exec(ctx, o.Name, o.Container, *o.Exec, s)
	case o.Kind == openAttach:
		err = local.Attach(ctx, o.Name, o.Container, s)
	case o.Kind == openForward:
		err = local.Forward(ctx, o.Name, o.Port, s)
	case o.Kind == openPull:
		var img host.Image
		img, err = local.PullImage(ctx, o.Name, o.Creds, func(p host.Progress) { _ = out.sendJSON(channelProgress, p) })
		end.Images = []host.Image{img}
	case o.Kind == openImport:
		end.Images, err = local.ImportImage(ctx, s.Stdin)
	default:
		err = unknown(o.Kind)
	}
	return end, err
}

// inputs reads what the caller sends: bytes of standard input, and sizes of its terminal. gone is called when the
// server has let the stream go.
func inputs(w wire, gone func()) (*io.PipeReader, <-chan host.Size) {
	r, stdin := io.Pipe()
	sizes := make(chan host.Size, 1)
	go func() {
		defer gone()
		defer close(sizes)
		for {
			var f frame
			if err := w.RecvMsg(&f); err != nil || len(f.raw) == 0 {
				stdin.CloseWithError(io.ErrUnexpectedEOF)
				return
			}
			switch data := f.raw[1:]; stream.Channel(f.raw[0]) {
			case stream.Stdin:
				if _, err := stdin.Write(data); err != nil { // nobody reads any more
					stdin.CloseWithError(io.ErrClosedPipe)
				}
			case stream.StdinClosed:
				stdin.Close()
			case stream.Resize:
				var size host.Size
				if json.Unmarshal(data, &size) == nil {
					newest(sizes, size)
				}
			default:
				stdin.CloseWithError(fmt.Errorf("a frame of channel %d makes no sense here", f.raw[0]))
			}
		}
	}()
	return r, sizes
}

// newest puts a size where the reader finds it; one that it has not read yet is out of date.
func newest(sizes chan host.Size, size host.Size) {
	for {
		select {
		case sizes <- size:
			return
		default:
		}
		select {
		case <-sizes:
		default:
		}
	}
}
