// What a CPU can do, and how the environment lowers it.
#include <cstdlib>
#include <cstring>

#include "check.h"
#include "edgekit/cpu.h"

namespace {

TEST(an_isa_word_stands_for_everything_it_builds_on) {
  CHECK(edgekit_isa_features("scalar") == 0);
  CHECK(edgekit_isa_features("neon_i8mm") == (EDGEKIT_CPU_NEON | EDGEKIT_CPU_DOTPROD | EDGEKIT_CPU_I8MM));
  CHECK(edgekit_isa_features("avx_vnni") == (EDGEKIT_CPU_AVX2 | EDGEKIT_CPU_AVX_VNNI));
  CHECK(edgekit_isa_features("avx512_vnni") == (EDGEKIT_CPU_AVX2 | EDGEKIT_CPU_AVX512_VNNI));
}

TEST(an_unknown_isa_word_has_no_features_to_give) { CHECK(edgekit_isa_features("sse9") == UINT64_MAX); }

TEST(every_isa_word_is_listed_and_known) {
  size_t count = 0;
  for (; edgekit_isa_word(count) != nullptr; count++) {
    const uint64_t features = edgekit_isa_features(edgekit_isa_word(count));
    CHECK(std::strcmp(edgekit_isa_name(features), edgekit_isa_word(count)) == 0);
  }
  CHECK(count == 7);
  CHECK(edgekit_isa_word(count + 1) == nullptr);
}

TEST(the_name_of_a_set_of_features_is_the_best_word_in_it) {
  CHECK(std::strcmp(edgekit_isa_name(0), "scalar") == 0);
  CHECK(std::strcmp(edgekit_isa_name(EDGEKIT_CPU_NEON), "neon") == 0);
  CHECK(std::strcmp(edgekit_isa_name(EDGEKIT_CPU_NEON | EDGEKIT_CPU_DOTPROD), "neon_dotprod") == 0);
  CHECK(std::strcmp(edgekit_isa_name(EDGEKIT_CPU_NEON | EDGEKIT_CPU_I8MM), "neon") == 0);
  CHECK(std::strcmp(edgekit_isa_name(EDGEKIT_CPU_AVX2), "avx2") == 0);
  CHECK(std::strcmp(edgekit_isa_name(~uint64_t{0}), "avx512_vnni") == 0);
}

TEST(the_environment_lowers_and_never_raises) {
  // main() set EDGEKIT_ISA before the first call.
  const char* isa = std::getenv("EDGEKIT_ISA");
  CHECK(isa != nullptr);
  CHECK((edgekit_cpu_features() & ~edgekit_isa_features(isa)) == 0);
}

}  // namespace

int main(int argc, char** argv) {
#if defined(__aarch64__)
  setenv("EDGEKIT_ISA", "neon", 1);
#else
  setenv("EDGEKIT_ISA", "avx2", 1);
#endif
  return edgekit::testing::run_tests(argc, argv);
}
