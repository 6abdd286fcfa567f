// What a session did: which kernels multiplied, and how much of the cache a token attends to.
#include <algorithm>

#include "program/session.h"

using namespace edgekit;

uint64_t edgekit_session_products(const edgekit_session* session, const edgekit_gemm_kernel* kernel) {
  uint64_t products = 0;
  for (size_t i = 0; i < session->program->step_count; ++i) {
    const Step& step = session->program->steps[i];
    const Passes& passes = step.all_rows ? session->passes : session->last_passes;
    for (size_t w = 0; w < step.matrices; ++w) {
      products += step.decode[w] == kernel ? passes.one_row : 0;
      products += step.prefill[w] == kernel ? passes.many_rows : 0;
    }
  }
  return products;
}

uint64_t edgekit_session_attended_bytes(const edgekit_session* session, uint32_t position) {
  uint64_t positions = 0;
  for (size_t i = 0; i < session->program->step_count; ++i) {
    const Step& step = session->program->steps[i];
    if (step.kind == format::OperatorKind::kAttention) {
      const size_t seen = size_t(position) + 1;
      positions += step.window > 0 ? std::min(step.window, seen) : seen;
    }
  }
  return positions * session->cache.position_bytes();
}
