package runtime

const pauseMachine = 62 // EM_X86_64

var pauseCode = []byte{
	0xb8, 13, 0, 0, 0, // mov eax, SYS_rt_sigaction
	0xbf, 17, 0, 0, 0, // mov edi, SIGCHLD
	0x48, 0x8d, 0x35, 0x17, 0, 0, 0, // lea rsi, [rip+23]: the action below
	0x31, 0xd2, // xor edx, edx
	0x41, 0xba, 8, 0, 0, 0, // mov r10d, 8: size of its mask
	0x0f, 0x05, // syscall
	0xb8, 34, 0, 0, 0, // again: mov eax, SYS_pause
	0x0f, 0x05, // syscall
	0xeb, 0xf7, // jmp again
	0x0f, 0x1f, 0x40, 0, // to a multiple of 8
	1, 0, 0, 0, 0, 0, 0, 0, // SIG_IGN
	0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, // flags, restorer, mask
}
