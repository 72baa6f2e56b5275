package nodeless

import (
	"bytes"
	"context"
	"log/slog"
	"os/exec"
	"runtime"
	"syscall"
	"time"
)

// Times between the end of a program and its next start. They double up to maxWait, and begin anew once it has run
// for a while.
const (
	firstWait = 200 * time.Millisecond
	maxWait   = 15 * time.Second
	steady    = time.Minute
)

// program is one child that is kept running.
type program struct {
	name    string
	path    string
	args    func() []string
	line    func(string)  // called for every line of its standard output
	grace   time.Duration // between SIGTERM and SIGKILL
	logFile string        // takes its standard error
	log     *slog.Logger
}

// keep runs a program until ctx ends, and starts it again when it ends by itself.
func keep(ctx context.Context, p *program) error {
	// The kernel kills a child together with the thread that has started it: this goroutine keeps its thread to itself.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	out, err := openLog(p.logFile)
	if err != nil {
		return err
	}
	defer out.close()
	for wait := firstWait; ctx.Err() == nil; wait = min(2*wait, maxWait) {
		began := time.Now()
		err := p.run(ctx, out)
		if ctx.Err() != nil {
			return nil
		}
		if time.Since(began) > steady {
			wait = firstWait
		}
		p.log.Error(p.name+" has ended and starts again", "error", err, "said", out.last(), "log", p.logFile, "in", wait)
		pause(ctx, wait)
	}
	return nil
}

func pause(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// run runs it once.
func (p *program) run(ctx context.Context, out *logFile) error {
	cmd := exec.CommandContext(ctx, p.path, p.args()...)
	// It never outlives this process, or two of them would write to one store. A signal from the terminal is for the
	// parent, which ends its children in order.
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL, Setpgid: true}
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = p.grace
	cmd.Stdout, cmd.Stderr = &lines{tell: p.line}, out
	return cmd.Run()
}

// lines cuts what is written into lines.
type lines struct {
	tell func(string)
	rest []byte
}

// maxLine bounds what is kept of a line that does not end.
const maxLine = 64 << 10

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, ok := bytes.Cut(l.rest, []byte("\n"))
		if !ok {
			break
		}
		l.tell(string(line))
		l.rest = rest
	}
	if len(l.rest) > maxLine {
		l.rest = nil
	}
	return len(b), nil
}
