package stream

import (
	"bytes"
	"testing"

	"github.com/google/go-cmp/cmp"

	"spillway.dev/spillway/internal/host"
)

func TestFrames(t *testing.T) {
	tests := []struct {
		message []byte
		want    Frame
	}{
		{Make(Stdout, []byte("hello")), Frame{Channel: Stdout, Data: []byte("hello")}},
		{Make(StdinClosed, nil), Frame{Channel: StdinClosed, Data: []byte{}}},
		{MakeResize(host.Size{Rows: 24, Cols: 80}), Frame{Channel: Resize, Data: []byte(`{"rows":24,"cols":80}`), Size: host.Size{Rows: 24, Cols: 80}}},
		{MakeExit(Result{ExitCode: 3}), Frame{Channel: Exit, Data: []byte(`{"exitCode":3}`), Result: Result{ExitCode: 3}}},
	}
	for _, test := range tests {
		got, err := Parse(test.message)
		if err != nil {
			t.Fatalf("Parse(%q) = %v", test.message, err)
		}
		if diff := cmp.Diff(test.want, got); diff != "" {
			t.Errorf("Parse(%q) differs (-want +got):\n%s", test.message, diff)
		}
	}
	for _, bad := range [][]byte{nil, {9}, {byte(Resize), '{'}, {byte(Exit)}} {
		if f, err := Parse(bad); err == nil {
			t.Errorf("Parse(%q) = %v, want an error", bad, f)
		}
	}
}

func FuzzParse(f *testing.F) {
	f.Add(Make(Stdin, []byte("ls\n")))
	f.Add(MakeResize(host.Size{Rows: 1, Cols: 2}))
	f.Add(MakeExit(Result{Error: &Error{Code: "x", Message: "y"}}))
	f.Fuzz(func(t *testing.T, message []byte) {
		frame, err := Parse(message)
		if err != nil {
			return
		}
		if again := Make(frame.Channel, frame.Data); !bytes.Equal(again, message) {
			t.Errorf("Make(Parse(%q)) = %q", message, again)
		}
	})
}
