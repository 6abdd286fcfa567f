// The program file `model.edge`, version 1. Little-endian. Written by edgekit/engines/native.py, read by program.cc;
// tests/test_native.py holds the two together.
//
//   Header | section table | sections, each at a multiple of 64 bytes, the weights at a multiple of 64 KiB
//
// Weights are used in place through mmap. Every count, offset and length is checked before use.
//
// The rules below are checked at load, so a writer must keep them:
//   sections   in the table in rising order of offset, each kind at most once, no overlap; kTokenizer and kProbe may be
//              absent; kWeights is last and ends at the end of the file
//   buffers    width is a multiple of 16 and offset of 64; arena_bytes is the end of the last buffer, exactly
//   operators  kEmbed first, kHead last; one kAttention a layer, `layer` rising from 0. kEmbed and kLinearAdd write
//              `hidden` floats a row; kNormLinear writes n of its weights side by side; kAttention reads heads + 2 *
//              kv_heads heads of head_dim and writes heads * head_dim; kNormGatedLinear has one weight of n = 2 *
//              (intermediate rounded up to 16) outputs and writes half as many; kHead writes `vocab`. The input of
//              kAttention is overwritten (rotary in place); an operator's input and output never share memory. What a
//              kind does not use is kNone (indices), 0 (layer, window, eps, scale, reserved) or 1 (rope_scale)
//   tensors    codes_bytes and scales_bytes are exactly what edgekit/gemm.h gives for (format, n, k, group); k of a
//              weight is the count of floats its operator reads; a norm has k = hidden, a bias k = n of its weight
#pragma once

#include <stdint.h>

namespace edgekit::format {

constexpr char kMagic[8] = {'e', 'd', 'g', 'e', 'k', 'i', 't', '\0'};
constexpr uint32_t kVersion = 1;
constexpr uint32_t kNone = 0xffffffff;  // "no tensor", "no buffer"
constexpr uint64_t kPageBytes = 65536;
constexpr uint64_t kAlignBytes = 64;

struct Header {  // 64 bytes
  char magic[8];
  uint32_t version;
  uint32_t header_bytes;
  uint64_t file_bytes;
  uint32_t section_count;
  uint32_t section_table_crc;  // CRC-32 (zlib) of the section table
  uint8_t reserved[28];        // zero
  uint32_t header_crc;         // CRC-32 of the 60 bytes before
};

enum class SectionKind : uint32_t {
  kConfig = 1,     // one Config
  kOperators = 2,  // Operator[], in order of execution
  kTensors = 3,    // Tensor[]
  kBuffers = 4,    // Buffer[]
  kKernels = 5,    // KernelName[]: kernels the plan chose; operators refer to them by index
  kTokenizer = 6,  // see tokenizer/format.h
  kProbe = 7,      // see probe_format.h; may be absent
  kWeights = 8,    // tensor data; last
};

struct Section {  // 32 bytes
  uint32_t kind;
  uint32_t crc;     // CRC-32 of the section's bytes; checked at load but for the weights, those by verify
  uint64_t offset;  // from the start of the file
  uint64_t bytes;
  uint64_t reserved;  // zero
};

struct Config {  // 128 bytes
  uint32_t layers;
  uint32_t hidden;
  uint32_t heads;
  uint32_t kv_heads;
  uint32_t head_dim;
  uint32_t intermediate;
  uint32_t vocab;
  uint32_t context;   // longest context the model was made for, at most 2^20
  uint32_t max_rows;  // tokens of prefill computed at once, at most 65536
  uint32_t decode_threads;
  uint32_t prefill_threads;
  uint32_t bos;  // kNone: none
  uint32_t eos_count;
  uint32_t eos[8];
  uint32_t arena_bytes;        // all buffers, for max_rows rows
  uint64_t required_features;  // of the ISA the plan was made for (edgekit/cpu.h)
  uint32_t kv_format;          // KvFormat: of the cache, unless the caller wants another
  uint8_t reserved[28];        // zero
};

enum class KvFormat : uint32_t {
  kF16 = 0,
  kQ8 = 1,
};

enum class OperatorKind : uint32_t {
  kEmbed = 1,            // output = rows of weight[0] at the token ids
  kNormLinear = 2,       // output = linear(rmsnorm(input, norm)); weight[0..2] write side by side (q | k | v), + bias
  kAttention = 3,        // input = q | k | v; q/k norm, rotary, append to cache, grouped-query attention
  kLinearAdd = 4,        // output = output + linear(input) (+ bias)
  kNormGatedLinear = 5,  // output = silu(gate) * up; weight[0] holds gate and up in alternating tiles of 16 outputs
  kHead = 6,             // output = logits of the rows asked for: linear(rmsnorm(input, norm))
};

struct Operator {  // 96 bytes
  uint32_t kind;
  uint32_t layer;      // kAttention: which cache
  uint32_t input;      // buffer; kNone for kEmbed
  uint32_t output;     // buffer; kNone for kHead, whose logits go to the caller
  uint32_t norm;       // kNormLinear, kNormGatedLinear, kHead: tensor [hidden], f32
  uint32_t weight[3];  // tensors; kNone where absent
  uint32_t bias[3];    // tensors, f32, one for each weight, or kNone; kNone for kEmbed
  uint32_t q_norm;     // kAttention: tensor [head_dim] or kNone
  uint32_t k_norm;
  uint32_t rope;           // kAttention: tensor [head_dim / 2], f32: inverse frequencies (scaling already applied)
  uint32_t decode_kernel;  // index into kKernels for m == 1; kNone for kEmbed and kAttention
  uint32_t prefill_kernel;
  uint32_t window;  // kAttention: positions seen, 0 = all
  float eps;        // of the norm; kAttention: of q_norm and k_norm
  float scale;      // kAttention: of q . k
  float rope_scale;  // kAttention: factor on cos and sin (1 unless the model's rope scaling has one)
  uint8_t reserved[16];  // zero
};

struct Tensor {  // 64 bytes
  uint32_t format;  // edgekit_format
  uint32_t layout;  // 0 plain vector of f32, 1 tiles (edgekit/gemm.h)
  uint32_t group;   // 0 for floats
  uint32_t n;       // outputs; 1 for a vector
  uint32_t k;
  uint32_t reserved0;
  uint64_t codes_offset;  // from the start of the weights section, multiple of 64
  uint64_t codes_bytes;
  uint64_t scales_offset;
  uint64_t scales_bytes;
  uint64_t reserved1;
};

struct Buffer {  // 16 bytes
  uint32_t width;   // f32 elements a row (a token), multiple of 16
  uint32_t rows;    // max_rows
  uint64_t offset;  // in the arena, multiple of 64
};

struct KernelName {  // 64 bytes, zero-padded
  char name[64];
};

static_assert(sizeof(Header) == 64 && sizeof(Section) == 32 && sizeof(Config) == 128);
static_assert(sizeof(Operator) == 96 && sizeof(Tensor) == 64 && sizeof(Buffer) == 16);

}  // namespace edgekit::format
