package sandbox

import (
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Descriptors that the keeper leaves open for an init.
const (
	controlFD = 3 // the keeper's end speaks frames; its end closes when the keeper dies
	joinFD    = 4 // the first of the namespaces to join, when there are any
)

// Modes, the init's first argument.
const (
	ModePark  = "park"  // own namespaces, waits for a Spec
	ModeExec  = "exec"  // joins a container's namespaces, waits for an Exec
	ModePause = "pause" // holds a shared process namespace as its first process
)

// maxFrame bounds a message on the control socket: a spec with its mounts, environment and filter.
const maxFrame = 8 << 20

// Main runs the init: args are the mode, the staging directory and the number of namespaces to join. It returns only
// on failure.
func Main(args []string) int {
	// Everything below changes attributes of one thread; that thread executes the program.
	runtime.LockOSThread()
	if len(args) < 3 {
		return ExitCannotStart
	}
	joins, _ := strconv.Atoi(args[2])
	control := os.NewFile(controlFD, "control")
	unix.CloseOnExec(controlFD)
	err := run(args[0], args[1], joins, control)
	if err == nil {
		return 0 // the keeper is gone or does not need us
	}
	f := Failure{Message: err.Error(), ExitCode: ExitCannotStart}
	if ee, ok := errors.AsType[*execError](err); ok {
		f.ExitCode = ee.code
	}
	body, _ := json.Marshal(f)
	_ = WriteFrame(control, body)
	return f.ExitCode
}

func run(mode, stage string, joins int, control *os.File) error {
	switch mode {
	case ModePark:
		return park(stage, joins, control)
	case ModeExec:
		return execute(control)
	case ModePause:
		return pause(control)
	}
	return fmt.Errorf("unknown mode %q", mode)
}

// park prepares all that needs no image, says so, and waits.
func park(stage string, joins int, control *os.File) error {
	// The keeper says when it has put this process into its cgroups.
	var ready Ready
	body, err := ReadFrame(control)
	if err != nil {
		return nil
	}
	if err := json.Unmarshal(body, &ready); err != nil {
		return fmt.Errorf("read cgroups: %w", err)
	}
	for i := range joins {
		if err := unix.Setns(joinFD+i, 0); err != nil {
			return fmt.Errorf("join namespace %d: %w", i, err)
		}
		unix.Close(joinFD + i)
	}
	if err := buildSkeleton(stage, &ready); err != nil {
		return err
	}
	if err := WriteFrame(control, []byte("{}")); err != nil {
		return nil
	}
	var spec Spec
	stdio, err := receive(control, &spec)
	if errors.Is(err, io.EOF) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("read spec: %w", err)
	}
	return become(stage, &spec, stdio, control)
}

// receive reads one frame with the descriptors that came with it.
func receive(control *os.File, into any) ([]int, error) {
	head := make([]byte, 4)
	oob := make([]byte, unix.CmsgSpace(4*4))
	n, oobn, _, _, err := unix.Recvmsg(int(control.Fd()), head, oob, unix.MSG_WAITALL|unix.MSG_CMSG_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if n == 0 {
		return nil, io.EOF
	}
	if n < len(head) {
		return nil, io.ErrUnexpectedEOF
	}
	var fds []int
	if oobn > 0 {
		messages, err := unix.ParseSocketControlMessage(oob[:oobn])
		if err != nil {
			return nil, err
		}
		for i := range messages {
			more, err := unix.ParseUnixRights(&messages[i])
			if err != nil {
				return nil, err
			}
			fds = append(fds, more...)
		}
	}
	size := binary.BigEndian.Uint32(head)
	if size > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes", size)
	}
	body := make([]byte, size)
	if _, err := io.ReadFull(control, body); err != nil {
		return nil, err
	}
	return fds, json.Unmarshal(body, into)
}

// WriteFrame writes one length-prefixed message.
func WriteFrame(w io.Writer, body []byte) error {
	buf := make([]byte, 4+len(body))
	binary.BigEndian.PutUint32(buf, uint32(len(body)))
	copy(buf[4:], body)
	_, err := w.Write(buf)
	return err
}

// ReadFrame reads one length-prefixed message.
func ReadFrame(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	size := binary.BigEndian.Uint32(head[:])
	if size > maxFrame {
		return nil, fmt.Errorf("frame of %d bytes is more than %d", size, maxFrame)
	}
	body := make([]byte, size)
	_, err := io.ReadFull(r, body)
	return body, err
}

// pause is the first process of a process namespace that a whole group shares: it reaps what is left to it and ends
// when the keeper lets go of the control socket's other end on purpose or the group's last container is deleted.
func pause(control *os.File) error {
	if _, err := ReadFrame(control); err != nil {
		return nil
	}
	if err := WriteFrame(control, []byte("{}")); err != nil {
		return nil
	}
	for {
		var status unix.WaitStatus
		if _, err := unix.Wait4(-1, &status, 0, nil); err == unix.ECHILD {
			// Nothing to reap now; a signal or a new child ends the nap.
			nap := unix.Timespec{Sec: 1}
			_ = unix.Nanosleep(&nap, nil)
		}
	}
}

// execError is a program that could not be executed.
type execError struct {
	code    int
	message string
}

func (e *execError) Error() string { return e.message }

func execFailure(path string, err error) error {
	code := ExitNotExecutable
	if errors.Is(err, unix.ENOENT) {
		code = ExitNotFound
	}
	return &execError{code, fmt.Sprintf("exec %s: %v", strconv.Quote(clip(path)), err)}
}

// clip bounds what a tenant's string may add to a message.
func clip(s string) string {
	const most = 256
	s = strings.ToValidUTF8(s, "?")
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
