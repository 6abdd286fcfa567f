// A program after its file was checked: pointers into the file instead of indices, and what the runtime needs to know.
#pragma once

#include <stdlib.h>
#include <string.h>

#include "edgekit/gemm.h"
#include "edgekit/program.h"
#include "ops/ops.h"
#include "program/format.h"

namespace edgekit {

constexpr size_t kMostWeights = 3;

inline size_t round_up_to_tile(size_t n) { return (n + EDGEKIT_TILE - 1) / EDGEKIT_TILE * EDGEKIT_TILE; }

inline bool is_float(edgekit_format format) { return format == EDGEKIT_F32 || format == EDGEKIT_F16; }

// Zeroed, given back with free(); null if there is none.
template <typename T>
T* allocate(size_t count) {
  return static_cast<T*>(calloc(count > 0 ? count : 1, sizeof(T)));
}

// A matrix in tiles.
struct Matrix {
  edgekit_format format;
  size_t n;
  size_t k;
  size_t group;
  size_t tiles;
  size_t tile_code_bytes;
  size_t tile_scale_count;
  const uint8_t* codes;
  const uint16_t* scales;
  const float* bias;  // [n], or null

  bool is_float() const { return edgekit::is_float(format); }
};

// The form in which a matrix wants its activations. Matrices of one operator that agree share them.
struct ActivationForm {
  bool is_float;
  size_t k;
  size_t group;
};

struct BufferUse {
  size_t offset;  // floats from the start of the arena
  size_t width;   // floats a row
};

struct Step {
  format::OperatorKind kind;
  bool all_rows;  // a later attention caches what comes of its results; else only those of the rows of the logits count
  size_t layer;
  BufferUse input;
  BufferUse output;
  const float* norm;  // [hidden], or null
  float eps;
  size_t matrices;
  Matrix matrix[kMostWeights];
  const edgekit_gemm_kernel* decode[kMostWeights];
  const edgekit_gemm_kernel* prefill[kMostWeights];
  size_t forms;
  ActivationForm form[kMostWeights];
  size_t form_of[kMostWeights];  // of each matrix
  const float* q_norm;
  const float* k_norm;
  size_t rope;  // index into edgekit_program::ropes
  size_t window;
  float scale;
};

// One table of rotary angles; layers that agree share it.
struct Rope {
  const float* inverse_frequency;
  float factor;
};

struct Array {
  const uint8_t* data;
  size_t count;
};

template <typename T>
T element(const Array& array, size_t index) {
  T value;
  memcpy(&value, array.data + index * sizeof(T), sizeof(T));
  return value;
}

// The sections by kind, as found in the file; absent ones are empty.
struct Sections {
  Array config, operators, tensors, buffers, kernels, tokenizer, probe, weights;
  uint32_t weights_crc;
};

// Checks what each table says for itself, and fills in the kernels and the arena. Defined in check_tables.cc.
edgekit_status check_tables(const Sections& sections, const format::Config& config, edgekit_program* program,
                            edgekit_error* error);

// After the tables: checks the operators against tensors and buffers, and fills in the steps. Defined in
// check_operators.cc.
edgekit_status check_operators(const Sections& sections, const format::Config& config, edgekit_program* program,
                               edgekit_error* error);

}  // namespace edgekit

struct edgekit_program {
  edgekit_program_info info;
  edgekit::Sections sections;
  edgekit_section_info section_info[8];
  size_t section_count;
  edgekit::Step* steps;
  size_t step_count;
  edgekit::Rope* ropes;
  size_t rope_count;
  edgekit_kernel_use* kernels;
  size_t kernel_count;
  bool fell_back;
  size_t arena_floats;
  const edgekit::ops::Ops* ops;
};
