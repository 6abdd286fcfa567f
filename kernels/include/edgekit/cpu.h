// What this CPU has. Bits are stored in program files: a bit never changes its meaning.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

typedef enum edgekit_feature {
  EDGEKIT_CPU_NEON = 1 << 0,
  EDGEKIT_CPU_DOTPROD = 1 << 1,
  EDGEKIT_CPU_I8MM = 1 << 2,
  EDGEKIT_CPU_AVX2 = 1 << 8,  // with fma and f16c
  EDGEKIT_CPU_AVX_VNNI = 1 << 9,
  EDGEKIT_CPU_AVX512_VNNI = 1 << 10,  // with f, bw, dq, vl
} edgekit_feature;

// Features that the CPU and the operating system both support. The environment variable EDGEKIT_ISA (an ISA word of
// the kernel names) lowers them to that word's, never raises them. The answer is computed once.
uint64_t edgekit_cpu_features(void);

// The features that an ISA word stands for ("neon_dotprod" -> NEON | DOTPROD), or UINT64_MAX for an unknown word.
uint64_t edgekit_isa_features(const char* isa);

// The ISA words, best first within an architecture; null for an index beyond the last.
const char* edgekit_isa_word(size_t index);

// The best ISA word for a set of features; "scalar" if none.
const char* edgekit_isa_name(uint64_t features);

#ifdef __cplusplus
}
#endif
