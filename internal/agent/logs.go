package agent

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"spillway.dev/spillway/internal/group"
	"spillway.dev/spillway/internal/host"
)

// logDir is where a run's log is: the epoch and attempt order the runs.
func (a *Agent) logDir(l runLabel) string {
	return a.path("logs", l.UID, l.Name, fmt.Sprintf("%06d-%06d", l.Epoch, l.Attempt))
}

// runsWithLogs lists the log directories of a container, oldest first.
func (a *Agent) runsWithLogs(uid, name string) []string {
	entries, _ := os.ReadDir(a.path("logs", uid, name))
	var dirs []string
	for _, e := range entries {
		dirs = append(dirs, a.path("logs", uid, name, e.Name()))
	}
	slices.Sort(dirs)
	return dirs
}

// trimLogs keeps the log of the run before a new one and removes older ones.
func (a *Agent) trimLogs(l runLabel) {
	if l.Attempt <= 1 && l.Epoch <= 1 {
		return
	}
	dirs := a.runsWithLogs(l.UID, l.Name)
	for len(dirs) > 1 {
		_ = os.RemoveAll(dirs[0])
		dirs = dirs[1:]
	}
}

func parseRunID(id string) (runLabel, bool) {
	f := strings.Split(id, ".")
	if len(f) != 4 {
		return runLabel{}, false
	}
	epoch, err1 := strconv.ParseInt(f[1], 10, 64)
	attempt, err2 := strconv.Atoi(f[3])
	return runLabel{UID: f[0], Epoch: epoch, Name: f[2], Attempt: attempt}, err1 == nil && err2 == nil
}

func slotIndex(id string) uint32 {
	n, _ := strconv.ParseUint(strings.TrimPrefix(id, "s"), 10, 32)
	return uint32(n)
}

// lastOutput is the end of a run's log, for a termination message.
func (a *Agent) lastOutput(l runLabel) string {
	var out bytes.Buffer
	opt := host.LogOptions{Tail: 80, LimitBytes: group.MaxMessage / 2} // the kubelet's numbers
	_ = readLogs(context.Background(), a.logDir(l), opt, func() bool { return true }, &out)
	return out.String()
}

// logFiles are a run's files, oldest first.
func logFiles(dir string) []string {
	var files []string
	for n := group.MaxLogFiles - 1; n > 0; n-- {
		files = append(files, filepath.Join(dir, "log."+strconv.Itoa(n)))
	}
	return append(files, filepath.Join(dir, "log"))
}

// readLogs writes what is asked of a run's log, and with Follow what comes, until the run has ended or ctx does.
func readLogs(ctx context.Context, dir string, opt host.LogOptions, ended func() bool, out io.Writer) error {
	if dir == "" {
		return nil
	}
	f := &follower{dir: dir, opt: opt, out: out}
	defer f.close()
	if opt.Follow {
		// The watch is set up before the first read, so that nothing falls between.
		if err := f.watch(); err != nil {
			return err
		}
	}
	if err := f.history(); err != nil || !opt.Follow {
		return err
	}
	for {
		over := ended()
		if err := f.more(); err != nil {
			return err
		}
		if over {
			return nil
		}
		if err := f.wait(ctx); err != nil {
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		}
	}
}

// follower reads a log that is being written.
type follower struct {
	dir    string
	opt    host.LogOptions
	out    io.Writer
	file   *os.File
	reader *bufio.Reader
	rest   []byte // an incomplete line at the end of the file
	notify *os.File
}

func (f *follower) close() {
	if f.file != nil {
		f.file.Close()
	}
	if f.notify != nil {
		f.notify.Close()
	}
}

// history writes what is there already.
func (f *follower) history() error {
	var lines [][]byte
	var size int64
	for _, path := range logFiles(f.dir) {
		body, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return err
		}
		if path == filepath.Join(f.dir, "log") {
			// What is behind the last whole line is read again when it is complete.
			end := bytes.LastIndexByte(body, '\n') + 1
			if f.file, err = os.Open(path); err != nil {
				return err
			}
			if _, err := f.file.Seek(int64(end), io.SeekStart); err != nil {
				return err
			}
			f.reader = bufio.NewReader(f.file)
			body = body[:end]
		}
		for line := range bytes.Lines(body) {
			if text, ok := f.render(line); ok {
				lines = append(lines, text)
			}
		}
	}
	if f.opt.Tail < 0 {
		return nil
	}
	if f.opt.Tail > 0 && len(lines) > f.opt.Tail {
		lines = lines[len(lines)-f.opt.Tail:]
	}
	for i := len(lines) - 1; i >= 0 && f.opt.LimitBytes > 0; i-- {
		size += int64(len(lines[i]))
		if size > f.opt.LimitBytes {
			lines = lines[i+1:]
			break
		}
	}
	for _, line := range lines {
		if _, err := f.out.Write(line); err != nil {
			return err
		}
	}
	return nil
}

// render turns "TIME STREAM MARK TEXT\n" into what the caller sees.
func (f *follower) render(line []byte) ([]byte, bool) {
	parts := bytes.SplitN(line, []byte(" "), 4)
	if len(parts) != 4 {
		return nil, false
	}
	at, err := time.Parse(time.RFC3339Nano, string(parts[0]))
	if err != nil || at.Before(f.opt.Since) {
		return nil, false
	}
	text := parts[3]
	if len(parts[2]) > 0 && parts[2][0] == 'P' {
		text = bytes.TrimSuffix(text, []byte("\n"))
	}
	if f.opt.Timestamps {
		text = append(append(append([]byte{}, parts[0]...), ' '), text...)
	}
	return text, true
}

// more writes what has come since the last read, over a rotation too.
func (f *follower) more() error {
	for {
		if err := f.drain(); err != nil {
			return err
		}
		path := filepath.Join(f.dir, "log")
		now, err := os.Stat(path)
		if err != nil {
			return nil // not begun yet, or being rotated
		}
		if f.file != nil {
			if was, err := f.file.Stat(); err == nil && os.SameFile(was, now) {
				return nil
			}
			f.file.Close()
		}
		if f.file, err = os.Open(path); err != nil {
			return nil
		}
		f.reader = bufio.NewReader(f.file)
	}
}

func (f *follower) drain() error {
	for f.reader != nil {
		line, err := f.reader.ReadBytes('\n')
		f.rest = append(f.rest, line...)
		if err != nil {
			return nil
		}
		if text, ok := f.render(f.rest); ok {
			if _, err := f.out.Write(text); err != nil {
				return err
			}
		}
		f.rest = f.rest[:0]
	}
	return nil
}

// watch asks the kernel to tell when something in the directory changes.
func (f *follower) watch() error {
	fd, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	if err != nil {
		return err
	}
	f.notify = os.NewFile(uintptr(fd), "inotify")
	_, err = unix.InotifyAddWatch(fd, f.dir, unix.IN_MODIFY|unix.IN_CREATE|unix.IN_MOVED_TO)
	return err
}

// endedEvery is how often a follower looks whether a silent run has ended.
const endedEvery = 200 * time.Millisecond

func (f *follower) wait(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = f.notify.SetReadDeadline(time.Now()) })
	defer stop()
	_ = f.notify.SetReadDeadline(time.Now().Add(endedEvery))
	var buf [4096]byte
	_, err := f.notify.Read(buf[:])
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return nil
	}
	return err
}
