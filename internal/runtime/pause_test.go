package runtime

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
)

// TestPause executes the program as the host's: it must stay, and ignore SIGCHLD.
func TestPause(t *testing.T) {
	path := filepath.Join(t.TempDir(), "pause")
	if err := os.WriteFile(path, pauseProgram(), 0o700); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	const sigchld = 1 << (17 - 1)
	ignored := func() bool {
		body, _ := os.ReadFile("/proc/" + strconv.Itoa(cmd.Process.Pid) + "/status")
		_, rest, _ := strings.Cut(string(body), "SigIgn:\t")
		mask, _, _ := strings.Cut(rest, "\n")
		n, err := strconv.ParseUint(mask, 16, 64)
		return err == nil && n&sigchld != 0
	}
	for deadline := time.Now().Add(5 * time.Second); !ignored(); time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Error("SIGCHLD is not ignored")
			break
		}
	}
	select {
	case err := <-ended:
		t.Fatalf("it ended: %v", err)
	case <-time.After(50 * time.Millisecond):
	}
	if err := cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	<-ended
}
