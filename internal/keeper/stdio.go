package keeper

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"

	"golang.org/x/sys/unix"
)

// A container's standard streams are named pipes whose far ends are opened for reading and writing: a writer then
// never sees a broken pipe, whatever happens to the keeper, and a new keeper finds them by name.

// Streams of a container in its log.
const (
	streamOut = 'O'
	streamErr = 'E'
)

// readSize is the buffer of one read of a pipe, as large as the pipe itself.
const readSize = 64 << 10

var buffers = sync.Pool{New: func() any { b := make([]byte, readSize); return &b }}

func (s *Server) fifo(id, stream string) string {
	return filepath.Join(s.cfg.Dir, "fifo", id+"."+stream)
}

// openPipe makes (or finds) a named pipe and opens our end for reading.
func openPipe(path string) (*os.File, error) {
	if err := unix.Mkfifo(path, 0o600); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, err
	}
	return os.OpenFile(path, os.O_RDONLY|unix.O_NONBLOCK, 0)
}

// pump copies one stream into the log and to whoever is attached, until all writers are gone. It holds a buffer only
// while there is something to read.
func (ct *container) pump(f *os.File, stream byte) {
	defer f.Close()
	raw, err := f.SyscallConn()
	if err != nil {
		return
	}
	for {
		var n int
		var failed error
		err := raw.Read(func(fd uintptr) bool {
			buf := buffers.Get().(*[]byte)
			defer buffers.Put(buf)
			n, failed = unix.Read(int(fd), *buf)
			if failed == unix.EAGAIN {
				return false
			}
			if n > 0 {
				ct.output(stream, (*buf)[:n])
			}
			return true
		})
		if err != nil || failed != nil && failed != unix.EINTR || n == 0 && failed == nil {
			return
		}
	}
}

func (ct *container) output(stream byte, data []byte) {
	ct.log.write(stream, data)
	kind := byte(frameStdout)
	if stream == streamErr {
		kind = frameStderr
	}
	ct.subs.Range(func(key, _ any) bool {
		key.(*subscriber).offer(kind, data)
		return true
	})
}

// subscriber is somebody attached to a container. A slow one loses output rather than stopping the container.
type subscriber struct{ frames chan []byte }

const subscriberQueue = 64 // reads, each of at most readSize

func (b *subscriber) offer(kind byte, data []byte) {
	frame := append([]byte{kind}, data...)
	select {
	case b.frames <- frame:
	default:
	}
}

// closeAll closes what is not nil.
func closeAll(files ...io.Closer) {
	for _, f := range files {
		if f != nil {
			f.Close()
		}
	}
}
