// Matrix products of activations with packed low-bit weights: c[i][j] = sum over p of a[i][p] * w[j][p].
//
// One packed layout for every ISA, so that any bundle runs on any CPU, with the same result to the last bit.
// A tile is 16 outputs; inside it k advances in quads of 4, padded with zero codes to a multiple of 32.
//
//   64-byte row of a tile = 16 columns x 4 bytes; byte 4 * column + i belongs to k = 4 * quad + i.
//
//   q8   one quad a row:      signed codes
//   q4   two quads a row:    low nibble quad 2r = code + 8; high nibble quad 2r + 1 = code modulo 16
//   q3   eight quads in three rows A, B, C (32 k): bits 0..2 of A, B, C hold quads 0, 1, 2 and bits 3..5 quads 3, 4, 5
//        as code + 4; quad 6 = A[7:6] << 1 | C[7] and quad 7 = B[7:6] << 1 | C[6], as code modulo 8
//   q2   four quads a row:    bits 2p, 2p + 1 hold quad 4r + p: code + 2 for p = 0, 1, 2 and code modulo 4 for p = 3;
//        value = code + 1/2
//   t2   as q2, but value = code (-1, 0, 1)
//        (The top field is two's complement: masked in place, a signed kernel reads code * 2^shift; an unsigned one
//        flips bit 7 and reads (code + bias) * 2^shift.)
//   f16, f32   16 columns a row, one k a row; no scales
//
// Scales are a stream of their own: bf16 [tile][group][16]. A last group that is partial is shorter, not padded.
//
// Arithmetic, the same in every kernel: per group an exact int32 sum, then
//   c = fma(float(sum), a_scale * w_scale, c)  with groups in rising order, c starting at 0.
// For q2 the sum is twice the value (2 * code + 1 is whole) and the factor is a_scale * (w_scale / 2).
// For f16 and f32 weights: c = fma(a[p], w[p], c) with p rising.
#pragma once

#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

enum { EDGEKIT_TILE = 16, EDGEKIT_K_UNIT = 32, EDGEKIT_ROW_BYTES = 64 };

typedef enum edgekit_format {  // the numbers are stored in program files
  EDGEKIT_F32 = 0,
  EDGEKIT_F16 = 1,
  EDGEKIT_Q8 = 2,
  EDGEKIT_Q4 = 3,
  EDGEKIT_Q3 = 4,
  EDGEKIT_Q2 = 5,
  EDGEKIT_T2 = 6,
} edgekit_format;

typedef struct edgekit_gemm_args {
  size_t m;           // rows of activations, any number
  size_t k;           // a multiple of EDGEKIT_K_UNIT; for float weights any number
  size_t group;       // 32, 64 or 128; ignored for float weights
  size_t tile_begin;  // first tile of 16 outputs to compute
  size_t tile_end;    // one past the last
  const void* a;      // int8 codes [m][a_stride], or float for float weights; 64-byte aligned rows
  size_t a_stride;    // elements between rows
  const float* a_scale;    // [m][groups]
  const int32_t* a_sum;    // [m][groups], sum of the group's codes
  const uint8_t* codes;    // packed codes of tile 0
  const uint16_t* scales;  // bf16 [tile][groups][16]
  float* c;                // c[i * c_stride + 16 * (tile - tile_begin) + column], overwritten
  size_t c_stride;
} edgekit_gemm_args;

typedef void (*edgekit_gemm_fn)(const edgekit_gemm_args* args);

// One row of kernels.inc. `features` must all be present (bits of edgekit/cpu.h) for `run` to be called. A kernel made
// for many rows takes any m, and so does one made for a single row.
typedef struct edgekit_gemm_kernel {
  const char* name;  // gemm_<activations>_<weights>_<result>_<mr>x<nr>x<kr>_<isa>
  edgekit_format weights;
  uint32_t mr;  // rows it is made for: 1 for decode, more for prefill
  uint64_t features;
  edgekit_gemm_fn run;  // null in a binary of another architecture
} edgekit_gemm_kernel;

// Every kernel of every architecture, best first for each (weights, mr class): plans are made for other machines, too.
const edgekit_gemm_kernel* edgekit_gemm_kernels(size_t* count);

// The kernel of that name, or null.
const edgekit_gemm_kernel* edgekit_gemm_find(const char* name);

// The first kernel in the table that a CPU with `features` can run: one made for a single row if m == 1, else for many.
const edgekit_gemm_kernel* edgekit_gemm_choose(edgekit_format weights, size_t m, uint64_t features);

// Bytes of codes of one tile, and of the scales of one tile. k is the unpadded row length.
size_t edgekit_tile_code_bytes(edgekit_format weights, size_t k);
size_t edgekit_tile_scale_bytes(edgekit_format weights, size_t k, size_t group);

// Packs rows [0, n) of codes ([n][k] int8; float for f32; uint16_t bits for f16) into tiles. The last tile is padded
// with zero codes and zero scales. For q2 and t2 a zero *code* is used as padding: activations there are zero.
void edgekit_pack_codes(edgekit_format weights, size_t n, size_t k, const void* codes, uint8_t* packed);
void edgekit_pack_scales(size_t n, size_t groups, const uint16_t* scales, uint16_t* packed);
// The inverse for one output row: values in float, k of them (embedding lookup).
void edgekit_unpack_row(edgekit_format weights, size_t k, size_t group, const uint8_t* packed_codes,
                        const uint16_t* packed_scales, size_t row, float* values);

// Quantizes one row of activations to int8, a group at a time: scale = max|x| / 127, code = x * (127 / max|x|)
// rounded to nearest, ties to even. k_padded >= k is a multiple of 32; codes past k are zero. A group whose max|x| is
// below 2^-100 counts as zeros (scale 0); one with an infinity or NaN gives scale NaN and zero codes, so that the fault
// is seen in the result. Uses the best ISA of edgekit_cpu_features(); the result is the same on every one.
void edgekit_quantize_row(size_t k, size_t k_padded, size_t group, const float* x, int8_t* codes, float* scale,
                          int32_t* sum);

// Quantizes weights [n][k] to codes [n][k] and bf16 scales [n][groups] for the format (q8, q4, q3, q2 or t2). For each
// group it tries `steps` scales (1 to 128), the first max|w| / |lowest level| and the others around it, and keeps the
// one with the least squared error (`importance` [k] weighs the error of each column; null for equal weights). q4 and q3
// have one level more below zero than above, so for them each is tried with both signs: a scale may be negative.
// Code = w / scale - offset, rounded to nearest, ties to even, and clamped. A group of zeros, of weights too small for
// a scale (below 2^-100), or with one that is not finite, has scale 0 and zero codes. Any k; the same on every ISA.
void edgekit_quantize_weights(edgekit_format format, size_t n, size_t k, size_t group, size_t steps,
                              const float* weights, const float* importance, int8_t* codes, uint16_t* scales);

#ifdef __cplusplus
}
#endif
