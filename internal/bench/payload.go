package bench

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The payload is a program of one page whose first instructions read CLOCK_MONOTONIC: it prints that as 16
// hexadecimal digits and a newline. Without an argument it then waits for ever; with one it exits. The source, for
// x86-64:
//
//	mov rbx, [rsp]            number of arguments
//	sub rsp, 64
//	clock_gettime(CLOCK_MONOTONIC, rsp)
//	rax = seconds * 1e9 + nanoseconds
//	16 times: rol rax, 4; the low digit goes to the buffer
//	write(1, buffer, 17)
//	rbx > 1: exit(0), else pause() for ever
const payloadCode = "488b1c244883ec40b8e4000000bf010000004889e60f05488b04244869c000ca9a3b4803442408488d7c2410b91000000048c1c00489c283e20f83fa0a" +
	"720383c22783c230881748ffc7ffc975e3c6070ab801000000bf01000000488d742410ba110000000f054883fb017709b8220000000f05ebf7b83c00000031ff0f05"

// stampLength is the length of what the payload prints.
const stampLength = 17

// payloadELF is the payload as a program: one header, one loadable segment, the code.
func payloadELF() []byte {
	const base, headers = 0x400000, 64 + 56
	code, _ := hex.DecodeString(payloadCode)
	var b bytes.Buffer
	le := func(vs ...any) {
		for _, v := range vs {
			_ = binary.Write(&b, binary.LittleEndian, v)
		}
	}
	b.WriteString("\x7fELF\x02\x01\x01\x00\x00\x00\x00\x00\x00\x00\x00\x00")
	le(uint16(2), uint16(62), uint32(1), uint64(base+headers), uint64(64), uint64(0), uint32(0), uint16(64), uint16(56), uint16(1), uint16(0), uint16(0), uint16(0))
	size := uint64(headers + len(code))
	le(uint32(1), uint32(5), uint64(0), uint64(base), uint64(base), size, size, uint64(0x1000))
	b.Write(code)
	return b.Bytes()
}

// imageName is the payload's image everywhere.
const imageName = "spillway-bench:1"

// writeRoot writes the payload's root file system.
func writeRoot(dir string) error {
	for _, sub := range []string{"dev", "proc", "sys", "etc", "tmp"} {
		if err := os.MkdirAll(filepath.Join(dir, sub), 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(dir, "payload"), payloadELF(), 0o755)
}

// archive is the payload's image as a docker archive, which every engine can load.
func archive() ([]byte, error) {
	var layer bytes.Buffer
	w := tar.NewWriter(&layer)
	for _, sub := range []string{"dev/", "proc/", "sys/", "etc/", "tmp/"} {
		if err := w.WriteHeader(&tar.Header{Name: sub, Mode: 0o755, Typeflag: tar.TypeDir}); err != nil {
			return nil, err
		}
	}
	program := payloadELF()
	if err := addFile(w, "payload", 0o755, program); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	diff := sha256.Sum256(layer.Bytes())
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux", "config": map[string]any{"Cmd": []string{"/payload"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{"sha256:" + hex.EncodeToString(diff[:])}}})
	if err != nil {
		return nil, err
	}
	id := sha256.Sum256(config)
	configName, layerName := hex.EncodeToString(id[:])+".json", hex.EncodeToString(diff[:])+"/layer.tar"
	manifest, err := json.Marshal([]map[string]any{{"Config": configName, "RepoTags": []string{imageName}, "Layers": []string{layerName}}})
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	w = tar.NewWriter(&out)
	for _, f := range []struct {
		name string
		body []byte
	}{{configName, config}, {layerName, layer.Bytes()}, {"manifest.json", manifest}} {
		if err := addFile(w, f.name, 0o644, f.body); err != nil {
			return nil, err
		}
	}
	return out.Bytes(), w.Close()
}

func addFile(w *tar.Writer, name string, mode int64, body []byte) error {
	if err := w.WriteHeader(&tar.Header{Name: name, Mode: mode, Size: int64(len(body)), Typeflag: tar.TypeReg}); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// now is CLOCK_MONOTONIC, the payload's clock.
func now() time.Duration {
	var ts unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts)
	return time.Duration(ts.Nano())
}

// stamp reads what the payload printed, wherever a log puts it.
func stamp(output string) (time.Duration, error) { return stampAfter(output, 0) }

// stampAfter reads the first time after a moment that the payload printed.
func stampAfter(output string, after time.Duration) (time.Duration, error) {
	for line := range strings.Lines(output) {
		text := strings.TrimSpace(line)
		if len(text) != stampLength-1 {
			continue
		}
		if n, err := strconv.ParseUint(text, 16, 63); err == nil && time.Duration(n) > after {
			return time.Duration(n), nil
		}
	}
	return 0, fmt.Errorf("payload printed no time: %q", output)
}
