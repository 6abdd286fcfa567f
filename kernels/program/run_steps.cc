// The interpreter. All threads walk the same steps; within a phase of a step they claim parts of the work, and the next
// phase begins when all parts are finished (program/threads.h).
#include <algorithm>

#include "ops/rope.h"
#include "program/worker.h"

namespace edgekit {
namespace {

using format::OperatorKind;

// The rows of the table, and the rotary angles of their positions.
void embed(Worker& worker, const Step& step) {
  const Matrix& matrix = step.matrix[0];
  const edgekit_session& session = worker.session;
  worker.share_rows(0, worker.job.rows, [&](size_t row) {
    const uint32_t token = worker.job.tokens[row];
    const size_t tile = token / EDGEKIT_TILE;
    edgekit_unpack_row(matrix.format, matrix.k, matrix.group, matrix.codes + tile * matrix.tile_code_bytes,
                       matrix.scales + tile * matrix.tile_scale_count, token % EDGEKIT_TILE,
                       worker.row_of(step.output, row));
    for (size_t i = 0; i < worker.program.rope_count; ++i) {
      const Rope& rope = worker.program.ropes[i];
      const size_t at = worker.angles_at(i, row);
      ops::rope_angles(worker.info.head_dim / 2, rope.inverse_frequency, float(worker.job.position + row), rope.factor,
                       session.cosine + at, session.sine + at);
    }
  });
}

// Before its first work. The caller's thread is the caller's matter.
void keep_to_fast_cpus(edgekit_session* session, unsigned member) {
  if (session->keeps_to_fast_cpus && member > 0 && !session->scratch[member].has_place) {
    session->speeds.keep_to_fastest(member + 1);
    session->scratch[member].has_place = true;
  }
}

// How fast the CPU is that a member runs on now, beside those of all `active` members.
Pace pace_of(edgekit_session* session, unsigned member, unsigned active) {
  if (session->speeds.are_equal()) {
    return {};
  }
  const uint32_t speed = session->speeds.of_current();
  session->scratch[member].speed.store(speed, std::memory_order_relaxed);
  uint32_t of_all = 0;
  for (unsigned i = 0; i < active; ++i) {
    of_all += session->scratch[i].speed.load(std::memory_order_relaxed);
  }
  return {speed, std::max(1u, of_all / active)};
}

void run_step(Worker& worker, const Step& step) {
  const Job& job = worker.job;
  const size_t first = worker.first_row(step);
  const size_t rows = job.rows - first;
  if (rows == 0 && step.kind != OperatorKind::kAttention) {
    return;
  }
  switch (step.kind) {
    case OperatorKind::kEmbed:
      return embed(worker, step);
    case OperatorKind::kAttention:
      return attend(worker, step);
    case OperatorKind::kNormLinear:
      return multiply(worker, step, first, rows, worker.row_of(step.output, first), step.output.width);
    case OperatorKind::kLinearAdd:
    case OperatorKind::kNormGatedLinear:
      return multiply(worker, step, first, rows, nullptr, 0);
    case OperatorKind::kHead:
      return multiply(worker, step, first, rows, job.logits, worker.info.vocab);
  }
}

}  // namespace

void run_steps(edgekit_session* session, unsigned member, uint32_t run) {
  keep_to_fast_cpus(session, member);
  Job job;
  if (!session->job.read(run, &job)) {
    return;
  }
  Worker worker(*session, job, member, run, pace_of(session, member, job.active));
  for (size_t i = 0; i < worker.program.step_count; ++i) {
    worker.first_phase = i * kPhasesPerStep;
    run_step(worker, worker.program.steps[i]);
  }
}

}  // namespace edgekit
