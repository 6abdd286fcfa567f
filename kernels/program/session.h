// One sequence of tokens on its way through a program: cache, activations, threads.
#pragma once

#include <atomic>
#include <memory>

#include "cpu/speeds.h"
#include "program/kv_cache.h"
#include "program/loaded.h"
#include "program/memory.h"
#include "program/threads.h"

namespace edgekit {

constexpr size_t kRowBlock = 256;      // rows of a product at once, at most: weights are unpacked once for them
constexpr size_t kPrefillTiles = 4;    // tiles of a piece of work when m > 1
constexpr size_t kMostPieceTiles = kRowBlock * kPrefillTiles;  // when m == 1: what fits the same scratch
constexpr size_t kAttendRows = 8;      // rows of a piece of attention when m > 1
constexpr size_t kRowsPerPiece = 16;   // rows normed or appended to the cache at once: keys lie in groups of 16

// Activations of some rows as one ActivationForm wants them.
struct Activations {
  void* values;   // int8_t [rows][stride], or float [rows][stride]
  size_t stride;  // elements
  float* scale;   // [rows][groups]
  int32_t* sum;   // [rows][groups]
  size_t groups;
};

// What one thread has for itself.
struct Scratch {
  float* row;                         // a normed row
  uint8_t* activations_memory;        // of one row; an operator lays out its forms in it
  float* tiles;                       // [kRowBlock][16 * kPrefillTiles], or one row of 16 * kMostPieceTiles
  float* queries;                     // [group of heads][head_dim], rotated; then one key
  float* partial;                     // [queries][partial_stride]
  float* merged;                      // the same
  const float** query_rows;           // [queries]
  uint16_t* seen_begin;               // [queries]
  uint16_t* seen_end;                 // [queries]
  int8_t* codes;                      // of a key or a value
  std::atomic<uint32_t> speed;        // of the CPU it ran on last
  bool has_place;                     // it runs on fast CPUs only
};

// The rows that a run computes.
struct Job {
  const uint32_t* tokens = nullptr;
  size_t rows = 0;          // m
  size_t position = 0;      // of the first row
  unsigned active = 1;      // threads
  float* logits = nullptr;  // [logits_rows][vocab]
  size_t logits_rows = 0;   // of the last rows
};

// Runs of a step, by what its kernels were chosen for.
struct Passes {
  uint64_t one_row = 0;
  uint64_t many_rows = 0;

  void add(size_t rows) {
    one_row += rows == 1 ? 1 : 0;
    many_rows += rows > 1 ? 1 : 0;
  }
};

// Where a job is posted for members that may read it late, while the next one is being posted: they then get none.
class PostedJob {
 public:
  void post(uint32_t run, const Job& job);
  bool read(uint32_t run, Job* job) const;

 private:
  static constexpr uint64_t kBeingWritten = UINT64_MAX;
  std::atomic<uint64_t> run_{kBeingWritten};
  std::atomic<const uint32_t*> tokens_{nullptr};
  std::atomic<size_t> rows_{0};
  std::atomic<size_t> position_{0};
  std::atomic<unsigned> active_{1};
  std::atomic<float*> logits_{nullptr};
  std::atomic<size_t> logits_rows_{0};
};

// Phases of work in each step: preparing rows, then the step itself.
constexpr size_t kPhasesPerStep = 2;

}  // namespace edgekit

struct edgekit_session {
  const edgekit_program* program = nullptr;
  uint32_t decode_threads = 1;
  uint32_t prefill_threads = 1;
  uint32_t context = 0;
  uint32_t position = 0;

  edgekit::KvCache cache;
  edgekit::Memory arena;   // the plan's buffers
  edgekit::Memory shared;  // scratch of all threads together
  edgekit::Memory own;     // scratch of each
  std::unique_ptr<edgekit::Scratch[]> scratch;
  uint8_t* activations_memory = nullptr;  // of max_rows rows; an operator lays out its forms in it
  float* cosine = nullptr;                // [ropes][max_rows][head_dim / 2]
  float* sine = nullptr;
  size_t partial_stride = 0;
  float* partials = nullptr;                    // [kv_heads][blocks][group of heads][partial_stride]
  std::atomic<uint32_t>* blocks_done = nullptr;  // [kv_heads], one each 64 bytes

  edgekit::Passes passes;       // so far
  edgekit::Passes last_passes;  // of the steps that have only the rows whose logits are wanted
  bool keeps_to_fast_cpus = false;
  edgekit::CpuSpeeds speeds = edgekit::CpuSpeeds::read();
  edgekit::PostedJob job;
  edgekit::Team team;  // the last member: its threads end before what they use does
};

namespace edgekit {

constexpr size_t kCounterStride = 64 / sizeof(std::atomic<uint32_t>);

// Where form `i` of an operator finds its activations in memory that starts at `memory`: the layout for `rows` rows.
// Returns the bytes taken. `memory` may be null to measure.
size_t lay_out_activations(const ActivationForm& form, size_t rows, uint8_t* memory, Activations* activations);

// Executes the program for the posted job of a run, as one of its threads.
void run_steps(edgekit_session* session, unsigned member, uint32_t run);

}  // namespace edgekit
