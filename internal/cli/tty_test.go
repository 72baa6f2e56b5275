package cli

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// terminal opens a pseudo-terminal of 24 rows and 80 columns.
func terminal(t *testing.T) (master, slave *os.File) {
	t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/ptmx: %v", err)
	}
	t.Cleanup(func() { master.Close() })
	if err := unix.IoctlSetPointerInt(int(master.Fd()), unix.TIOCSPTLCK, 0); err != nil {
		t.Fatal(err)
	}
	n, err := unix.IoctlGetInt(int(master.Fd()), unix.TIOCGPTN)
	if err != nil {
		t.Fatal(err)
	}
	slave, err = os.OpenFile(fmt.Sprintf("/dev/pts/%d", n), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		t.Skipf("needs /dev/pts: %v", err)
	}
	t.Cleanup(func() { slave.Close() })
	resize(t, master, 24, 80)
	return master, slave
}

func resize(t *testing.T, f *os.File, rows, cols uint16) {
	t.Helper()
	if err := unix.IoctlSetWinsize(int(f.Fd()), unix.TIOCSWINSZ, &unix.Winsize{Row: rows, Col: cols}); err != nil {
		t.Fatal(err)
	}
}

func TestExecWithTerminal(t *testing.T) {
	config, stop, err := startPlatform(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer stop()
	env := func(k string) string { return map[string]string{"SPILLWAY_CONFIG": config}[k] }
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	var quiet strings.Builder
	if code := Run(ctx, []string{"run", "busybox", "--name", "web", "--wait"}, env, nil, &quiet, &quiet); code != 0 {
		t.Fatalf("run: exit code %d: %s", code, quiet.String())
	}
	master, slave := terminal(t)
	before, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
	if err != nil {
		t.Fatal(err)
	}
	lines := make(chan string, 10)
	go func() {
		scan := bufio.NewScanner(master)
		for scan.Scan() {
			lines <- scan.Text()
		}
	}()
	done := make(chan int, 1)
	go func() { done <- Run(ctx, []string{"exec", "web", "-it", "--", "size"}, env, slave, slave, slave) }()
	// The simulated command prints the first size that it is told of after its start.
	for tick := time.NewTicker(50 * time.Millisecond); ; {
		select {
		case line := <-lines:
			if !strings.Contains(line, "40x100") {
				t.Errorf("the command saw %q, want 40x100", line)
			}
			if code := <-done; code != 0 {
				t.Errorf("exit code %d", code)
			}
			after, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS)
			if err != nil || after.Lflag != before.Lflag || after.Iflag != before.Iflag {
				t.Errorf("the terminal was left changed: %+v, %v, want %+v", after, err, before)
			}
			return
		case <-tick.C:
			if raw, err := unix.IoctlGetTermios(int(slave.Fd()), unix.TCGETS); err == nil && raw.Lflag&unix.ICANON == 0 {
				resize(t, master, 40, 100)
				if err := unix.Kill(unix.Getpid(), unix.SIGWINCH); err != nil {
					t.Fatal(err)
				}
			}
		case <-ctx.Done():
			t.Fatal("the command never answered")
		}
	}
}
