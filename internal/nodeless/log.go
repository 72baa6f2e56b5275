package nodeless

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"sync"
)

// maxLog is how large a program's log grows before it becomes the one that is kept beside the next.
const maxLog = 10 << 20

// logFile is a log of bounded size.
type logFile struct {
	path string

	mu   sync.Mutex // guards the others
	file *os.File
	size int64
	tail []byte // of the last write
}

func openLog(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.open()
}

func (l *logFile) open() error {
	f, err := os.OpenFile(l.path, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("open log: %w", err)
	}
	info, err := f.Stat()
	if err != nil {
		return err
	}
	l.file, l.size = f, info.Size()
	return nil
}

// Write never fails: a full disk must not end the program that writes.
func (l *logFile) Write(b []byte) (int, error) {
	const kept = 300
	l.mu.Lock()
	defer l.mu.Unlock()
	l.tail = append(l.tail[:0], b[max(0, len(b)-kept):]...)
	if l.file == nil {
		_ = l.open()
	}
	if l.size > maxLog && l.file != nil {
		l.file.Close()
		l.file = nil
		_ = os.Rename(l.path, l.path+".1")
		_ = l.open()
	}
	if l.file != nil {
		n, _ := l.file.Write(b)
		l.size += int64(n)
	}
	return len(b), nil
}

// last is the last line that was written, or the end of it.
func (l *logFile) last() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	text := bytes.TrimSpace(l.tail)
	return strings.ToValidUTF8(string(text[bytes.LastIndexByte(text, '\n')+1:]), "")
}

func (l *logFile) close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.file != nil {
		l.file.Close()
		l.file = nil
	}
}
