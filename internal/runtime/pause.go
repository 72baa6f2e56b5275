package runtime

import (
	"bytes"
	"encoding/binary"
)

// Layout of the program: an ELF header, one program header, the code.
const (
	pauseBase    = 0x400000 // where it is loaded
	elfHeader    = 64
	elfSegment   = 56
	pauseHeaders = elfHeader + elfSegment
)

// pauseProgram is a static program that ignores the ends of children, so that the kernel reaps them, and waits for
// ever. It is the first process of a guest. A program of a compiler's would be a thousand times as large, and would
// have to be kept somewhere and be in step with this one.
func pauseProgram() []byte {
	var b bytes.Buffer
	put := func(fields ...any) {
		for _, f := range fields {
			_ = binary.Write(&b, binary.LittleEndian, f) // into memory, of fixed sizes
		}
	}
	size := uint64(pauseHeaders + len(pauseCode))
	// 64 bits, little endian, version 1; an executable.
	put([16]byte{0x7f, 'E', 'L', 'F', 2, 1, 1}, uint16(2), uint16(pauseMachine), uint32(1), uint64(pauseBase+pauseHeaders),
		uint64(elfHeader), uint64(0), uint32(0), uint16(elfHeader), uint16(elfSegment), uint16(1), uint16(0), uint16(0), uint16(0))
	// One segment, loaded, readable and executable.
	put(uint32(1), uint32(5), uint64(0), uint64(pauseBase), uint64(pauseBase), size, size, uint64(0x1000))
	b.Write(pauseCode)
	return b.Bytes()
}
