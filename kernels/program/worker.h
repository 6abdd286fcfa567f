// One thread on its way through the steps of a program: what it works on, and how work is shared.
#pragma once

#include <algorithm>

#include "program/session.h"

namespace edgekit {

struct Worker {
  Worker(edgekit_session& of, const Job& its_job, unsigned its_number, uint32_t its_run, Pace its_pace)
      : session(of),
        program(*of.program),
        info(of.program->info),
        ops(*of.program->ops),
        scratch(of.scratch[its_number]),
        job(its_job),
        member(its_number),
        run(its_run),
        pace(its_pace) {}

  // Does work(range) for the ranges that this thread gets, and returns when all are finished.
  template <typename Work>
  void share_ranges(size_t phase, const Division& division, const Work& work) {
    if (job.active == 1) {
      for (Range range; (range = division.next({range.end, division.items()}, {})).size() > 0;) {
        work(range);
      }
      return;
    }
    Team& team = session.team;
    size_t done = 0;
    for (Range range; (range = claim(phase, division)).size() > 0;) {
      work(range);
      done += range.size();
    }
    if (done > 0) {
      team.finish(run, first_phase + phase, done, division.items());
    }
    team.await(run, first_phase + phase, division.items());
  }

  // The next range of a phase for this thread.
  Range claim(size_t phase, const Division& division) {
    return session.team.claim(run, first_phase + phase, division, member, job.active, pace);
  }

  // Does work(piece) for those of `pieces` that this thread gets, one at a time.
  template <typename Work>
  void share(size_t phase, size_t pieces, const Work& work) {
    share_ranges(phase, Division::one_by_one(pieces), [&](Range range) { work(range.begin); });
  }

  // The same for every row below `rows`, kRowsPerPiece of them a piece.
  template <typename Work>
  void share_rows(size_t phase, size_t rows, const Work& work) {
    share(phase, (rows + kRowsPerPiece - 1) / kRowsPerPiece, [&](size_t piece) {
      const size_t end = std::min(rows, (piece + 1) * kRowsPerPiece);
      for (size_t row = piece * kRowsPerPiece; row < end; ++row) {
        work(row);
      }
    });
  }

  // The first row of the job that the step has to give results of.
  size_t first_row(const Step& step) const { return step.all_rows ? 0 : job.rows - job.logits_rows; }

  float* row_of(const BufferUse& buffer, size_t row) const {
    return session.arena.at<float>((buffer.offset + row * buffer.width) * sizeof(float));
  }

  // Where the angles of a row begin in the session's tables.
  size_t angles_at(size_t rope, size_t row) const { return (rope * info.max_rows + row) * (info.head_dim / 2); }

  edgekit_session& session;
  const edgekit_program& program;
  const edgekit_program_info& info;
  const ops::Ops& ops;
  Scratch& scratch;
  const Job job;
  const unsigned member;
  const uint32_t run;
  const Pace pace;
  size_t first_phase = 0;  // of the step at hand
};

// Rows [first, first + m) of the step's input through its matrices: stored at out [m][stride], or added or gated into
// the step's output. Defined in multiply.cc.
void multiply(Worker& worker, const Step& step, size_t first, size_t m, float* out, size_t stride);

// Rotates, appends to the cache, and attends. Defined in attend.cc.
void attend(Worker& worker, const Step& step);

}  // namespace edgekit
