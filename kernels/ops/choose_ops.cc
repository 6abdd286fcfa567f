// Finds the best set of operations for a CPU.
#include "edgekit/cpu.h"
#include "ops/ops.h"

namespace edgekit::ops {

namespace scalar {
extern const Ops kOps;
}
#if defined(__x86_64__)
namespace avx2 {
extern const Ops kOps;
}
namespace avx512_vnni {
extern const Ops kOps;
}
#elif defined(__aarch64__)
namespace neon {
extern const Ops kOps;
}
#endif

namespace {

struct Row {
  uint64_t features;
  const Ops* ops;
};

const Row kRows[] = {
#if defined(__x86_64__)
    {EDGEKIT_CPU_AVX512_VNNI, &avx512_vnni::kOps},
    {EDGEKIT_CPU_AVX2, &avx2::kOps},
#elif defined(__aarch64__)
    {EDGEKIT_CPU_NEON, &neon::kOps},
#endif
    {0, &scalar::kOps},
};

}  // namespace

size_t list_ops(uint64_t features, const Ops* sets[4]) {
  size_t count = 0;
  for (const Row& row : kRows) {
    if ((row.features & ~features) == 0) {
      sets[count++] = row.ops;
    }
  }
  return count;
}

const Ops& choose_ops(uint64_t features) {
  const Ops* sets[4];
  list_ops(features, sets);
  return *sets[0];
}

}  // namespace edgekit::ops
