package bench

import (
	"bufio"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// process is a program that runs on a machine of a site. It ends with this program, however that ends.
type process struct {
	cmd  *exec.Cmd
	log  string
	done chan struct{} // closed when it has ended
}

// readyPatience is how long a program may take to say that it works.
const readyPatience = 30 * time.Second

// run starts a program on the machine; its output goes to a file.
func (m *machine) run(log string, argv ...string) (*process, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: log, done: make(chan struct{})}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, err
	}
	defer out.Close()
	p.cmd.Stdout = out
	p.cmd.Stderr = out
	return p, p.begin(m)
}

// serve starts a program that prints one line when it works, and gives the line.
func (m *machine) serve(log string, argv ...string) (*process, string, error) {
	p := &process{cmd: exec.Command(argv[0], argv[1:]...), log: log, done: make(chan struct{})}
	errs, err := os.OpenFile(log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, "", err
	}
	defer errs.Close()
	p.cmd.Stderr = errs
	read, write, err := os.Pipe()
	if err != nil {
		return nil, "", err
	}
	p.cmd.Stdout = write
	err = p.begin(m)
	write.Close()
	if err != nil {
		read.Close()
		return nil, "", err
	}
	line := make(chan string, 1)
	go func() {
		defer read.Close()
		r := bufio.NewReader(read)
		text, _ := r.ReadString('\n')
		line <- strings.TrimSpace(text)
		_, _ = io.Copy(io.Discard, r)
	}()
	select {
	case text := <-line:
		if rest, ok := strings.CutPrefix(text, "ready"); ok {
			return p, strings.TrimSpace(rest), nil
		}
	case <-time.After(readyPatience):
	}
	p.kill()
	return nil, "", fmt.Errorf("%s does not work: %w", filepath.Base(argv[0])+" "+argv[1], tail(log))
}

func (p *process) begin(m *machine) error {
	// The machine's thread lives as long as the machine, and the process ends when its parent's thread does.
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Pdeathsig: syscall.SIGKILL}
	if err := m.do(p.cmd.Start); err != nil {
		return err
	}
	go func() {
		_ = p.cmd.Wait()
		close(p.done)
	}()
	return nil
}

// kill ends the process at once and waits for that.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	<-p.done
}

// stop asks the process to end, and kills it when it does not.
func (p *process) stop() {
	if p == nil {
		return
	}
	const patience = 20 * time.Second
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
	case <-time.After(patience):
		p.kill()
	}
}

// findProcesses gives the ids of processes by their arguments.
func findProcesses(match func(argv []string) bool) []int {
	var out []int
	dirs, _ := filepath.Glob("/proc/[0-9]*")
	for _, dir := range dirs {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		if err != nil || len(line) == 0 || !match(strings.Split(strings.TrimRight(string(line), "\x00"), "\x00")) {
			continue
		}
		if pid, err := strconv.Atoi(filepath.Base(dir)); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// unmountBelow lets go of what is mounted below a directory.
func unmountBelow(dir string) {
	body, _ := os.ReadFile("/proc/self/mounts")
	for line := range strings.Lines(string(body)) {
		if fields := strings.Fields(line); len(fields) > 1 && strings.HasPrefix(fields[1], dir+"/") {
			_ = syscall.Unmount(fields[1], syscall.MNT_DETACH)
		}
	}
}
