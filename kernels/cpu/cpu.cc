#include "edgekit/cpu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__x86_64__)
#include <cpuid.h>
#elif defined(__aarch64__) && defined(__linux__)
#include <sys/auxv.h>
#endif

namespace {

constexpr uint64_t kNeon = EDGEKIT_CPU_NEON;
constexpr uint64_t kDotprod = kNeon | EDGEKIT_CPU_DOTPROD;
constexpr uint64_t kI8mm = kDotprod | EDGEKIT_CPU_I8MM;
constexpr uint64_t kAvx2 = EDGEKIT_CPU_AVX2;
constexpr uint64_t kAvxVnni = kAvx2 | EDGEKIT_CPU_AVX_VNNI;
constexpr uint64_t kAvx512Vnni = kAvx2 | EDGEKIT_CPU_AVX512_VNNI;

struct Isa {
  const char* word;
  uint64_t features;
};

// Best first within an architecture.
constexpr Isa kIsas[] = {
    {"avx512_vnni", kAvx512Vnni}, {"avx_vnni", kAvxVnni},     {"avx2", kAvx2},
    {"neon_i8mm", kI8mm},         {"neon_dotprod", kDotprod}, {"neon", kNeon},
    {"scalar", 0},
};

#if defined(__x86_64__)
// XCR0, the register states that the operating system saves. Bits 1, 2: sse and avx; 5, 6, 7: avx512.
uint64_t saved_states() {
  uint32_t low = 0, high = 0;
  __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
  return static_cast<uint64_t>(high) << 32 | low;
}

uint64_t detect() {
  uint32_t a = 0, b = 0, c = 0, d = 0;
  if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
  // Compilers use all of x86-64-v3 where they may use avx2. targets/isa.json lists the same.
  constexpr uint32_t kFma = 1u << 12, kMovbe = 1u << 22, kPopcnt = 1u << 23, kOsxsave = 1u << 27;
  constexpr uint32_t kAvx = 1u << 28, kF16c = 1u << 29;
  constexpr uint32_t kNeeded = kFma | kMovbe | kPopcnt | kOsxsave | kAvx | kF16c;
  if ((c & kNeeded) != kNeeded) return 0;
  const uint64_t saved = saved_states();
  if ((saved & 0x06) != 0x06) return 0;
  constexpr uint32_t kLzcnt = 1u << 5;
  if (!__get_cpuid(0x80000001, &a, &b, &c, &d) || (c & kLzcnt) == 0) return 0;

  if (!__get_cpuid_count(7, 0, &a, &b, &c, &d)) return 0;
  constexpr uint32_t kBmi = 1u << 3, kAvx2Bit = 1u << 5, kBmi2 = 1u << 8;
  constexpr uint32_t kV3 = kBmi | kAvx2Bit | kBmi2;
  if ((b & kV3) != kV3) return 0;
  uint64_t features = EDGEKIT_CPU_AVX2;

  constexpr uint32_t kF = 1u << 16, kDq = 1u << 17, kCd = 1u << 28, kBw = 1u << 30, kVl = 1u << 31;
  constexpr uint32_t kV4 = kF | kDq | kCd | kBw | kVl;
  constexpr uint32_t kVnni = 1u << 11;
  if ((b & kV4) == kV4 && (saved & 0xe6) == 0xe6 && (c & kVnni) != 0) features |= EDGEKIT_CPU_AVX512_VNNI;
  if (a >= 1 && __get_cpuid_count(7, 1, &a, &b, &c, &d) && (a & 1u << 4) != 0) features |= EDGEKIT_CPU_AVX_VNNI;
  return features;
}
#elif defined(__aarch64__) && defined(__linux__)
uint64_t detect() {
  constexpr unsigned long kAsimdDp = 1ul << 20;  // AT_HWCAP
  constexpr unsigned long kI8mmBit = 1ul << 13;  // AT_HWCAP2
  uint64_t features = EDGEKIT_CPU_NEON;
  if ((getauxval(AT_HWCAP) & kAsimdDp) != 0) features |= EDGEKIT_CPU_DOTPROD;
  if ((getauxval(AT_HWCAP2) & kI8mmBit) != 0) features |= EDGEKIT_CPU_I8MM;
  return features;
}
#elif defined(__aarch64__)
uint64_t detect() { return EDGEKIT_CPU_NEON; }
#else
uint64_t detect() { return 0; }
#endif

// An unknown word in EDGEKIT_ISA changes nothing: the library cannot complain, the programs that use it do.
uint64_t lowered(uint64_t features) {
  const char* isa = getenv("EDGEKIT_ISA");
  if (isa == nullptr || *isa == '\0') return features;
  return features & edgekit_isa_features(isa);
}

}  // namespace

uint64_t edgekit_cpu_features(void) {
  static const uint64_t features = lowered(detect());
  return features;
}

uint64_t edgekit_isa_features(const char* isa) {
  for (const Isa& known : kIsas) {
    if (strcmp(isa, known.word) == 0) return known.features;
  }
  return UINT64_MAX;
}

const char* edgekit_isa_word(size_t index) {
  return index < sizeof kIsas / sizeof *kIsas ? kIsas[index].word : nullptr;
}

const char* edgekit_isa_name(uint64_t features) {
  for (const Isa& known : kIsas) {
    if ((features & known.features) == known.features) return known.word;
  }
  return "scalar";
}
