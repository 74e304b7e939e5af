/* Preloaded by avx2.py: answers `cpuid` like a CPU that has AVX2 but neither AVX-512, VNNI nor AMX.

   In the copy of onnxruntime that avx2.py makes, every `cpuid` (0F A2) is `int3; nop` (CC 90). */
#define _GNU_SOURCE
#include <cpuid.h>
#include <signal.h>
#include <ucontext.h>

#define BIT(n) (1u << (n))

/* Leaf 7, subleaf 0. EBX: F, DQ, IFMA, PF, ER, CD, BW, VL. ECX: VBMI, VBMI2, VNNI, BITALG, VPOPCNTDQ.
   EDX: 4VNNIW, 4FMAPS, VP2INTERSECT; AMX-BF16, AVX512-FP16, AMX-TILE, AMX-INT8. */
#define EBX_7_0 (BIT(16) | BIT(17) | BIT(21) | BIT(26) | BIT(27) | BIT(28) | BIT(30) | BIT(31))
#define ECX_7_0 (BIT(1) | BIT(6) | BIT(11) | BIT(12) | BIT(14))
#define EDX_7_0 (BIT(2) | BIT(3) | BIT(8) | BIT(22) | BIT(23) | BIT(24) | BIT(25))
/* Leaf 7, subleaf 1. EAX: AVX-VNNI, AVX512-BF16, AMX-FP16, AVX-IFMA.
   EDX: AVX-VNNI-INT8, AVX-NE-CONVERT, AMX-COMPLEX, AVX-VNNI-INT16, AVX10. */
#define EAX_7_1 (BIT(4) | BIT(5) | BIT(21) | BIT(23))
#define EDX_7_1 (BIT(4) | BIT(5) | BIT(8) | BIT(10) | BIT(19))

static void answer(int signal_number, siginfo_t *info, void *context) {
    greg_t *regs = ((ucontext_t *)context)->uc_mcontext.gregs;
    const unsigned char *next = (const unsigned char *)regs[REG_RIP];
    (void)info;
    if (next[-1] != 0xCC || next[0] != 0x90) { /* not ours: the default, which ends the process */
        signal(signal_number, SIG_DFL);
        raise(signal_number);
        return;
    }
    unsigned leaf = (unsigned)regs[REG_RAX], subleaf = (unsigned)regs[REG_RCX], a, b, c, d;
    __cpuid_count(leaf, subleaf, a, b, c, d);
    if (leaf == 7 && subleaf == 0) {
        b &= ~EBX_7_0;
        c &= ~ECX_7_0;
        d &= ~EDX_7_0;
    } else if (leaf == 7 && subleaf == 1) {
        a &= ~EAX_7_1;
        d &= ~EDX_7_1;
    }
    regs[REG_RAX] = a;
    regs[REG_RBX] = b;
    regs[REG_RCX] = c;
    regs[REG_RDX] = d;
}

__attribute__((constructor)) static void install(void) {
    struct sigaction action = {.sa_sigaction = answer, .sa_flags = SA_SIGINFO};
    sigaction(SIGTRAP, &action, 0);
}
