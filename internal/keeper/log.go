package keeper

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// maxLine is the longest line written in one piece; a longer one is marked as partial (P) and continued.
const maxLine = 16 << 10

// logger writes the output of one container's run as lines "TIME STREAM F|P TEXT" and rotates the file. The current
// file is "log", older ones are "log.1" (newest) and up. STREAM is O or E. Reading them back is package logs' business.
type logger struct {
	dir   string
	limit int64 // bytes of one file
	files int   // how many, the current one included

	mu      sync.Mutex // guards what follows; two streams write
	file    *os.File
	size    int64
	pending map[byte][]byte // the unfinished line of each stream
}

func (l *logger) path(n int) string {
	if n == 0 {
		return filepath.Join(l.dir, "log")
	}
	return filepath.Join(l.dir, fmt.Sprintf("log.%d", n))
}

// write takes output as it comes and writes whole lines.
func (l *logger) write(stream byte, data []byte) {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []byte
	now := time.Now().UTC()
	for len(data) > 0 {
		i := bytes.IndexByte(data, '\n')
		pending := l.pending[stream]
		switch {
		case i >= 0:
			out = appendLine(out, now, stream, 'F', pending, data[:i])
			l.pending[stream] = pending[:0]
			data = data[i+1:]
		case len(pending)+len(data) > maxLine:
			out = appendLine(out, now, stream, 'P', pending, data)
			l.pending[stream] = pending[:0]
			data = nil
		default:
			l.pending[stream] = append(pending, data...)
			data = nil
		}
	}
	l.flush(out)
}

// close writes what has no end of line and lets go of the file.
func (l *logger) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	var out []byte
	for stream, pending := range l.pending {
		if len(pending) > 0 {
			out = appendLine(out, time.Now().UTC(), stream, 'P', pending, nil)
		}
	}
	l.pending = nil
	l.flush(out)
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}

func appendLine(out []byte, now time.Time, stream, mark byte, head, tail []byte) []byte {
	out = now.AppendFormat(out, "2006-01-02T15:04:05.000000000Z")
	out = append(out, ' ', stream, ' ', mark, ' ')
	out = append(out, head...)
	out = append(out, tail...)
	return append(out, '\n')
}

// flush appends to the file, made on first use. A full disk loses log lines, never a container.
func (l *logger) flush(out []byte) {
	if len(out) == 0 {
		return
	}
	if l.file != nil && l.size+int64(len(out)) > l.limit {
		l.rotate()
	}
	if l.file == nil {
		f, err := os.OpenFile(l.path(0), os.O_CREATE|os.O_APPEND|os.O_WRONLY|unix.O_NOFOLLOW, 0o600)
		if err != nil {
			return
		}
		l.file, l.size = f, 0
		if info, err := f.Stat(); err == nil {
			l.size = info.Size()
		}
	}
	n, _ := l.file.Write(out)
	l.size += int64(n)
}

func (l *logger) rotate() {
	l.file.Close()
	l.file = nil
	for n := l.files - 1; n > 0; n-- {
		_ = os.Rename(l.path(n-1), l.path(n))
	}
	if l.files <= 1 {
		_ = os.Remove(l.path(0))
	}
}
