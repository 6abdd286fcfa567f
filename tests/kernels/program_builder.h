// Small random models: as a program file in memory, and as plain numbers for a forward pass in double.
//
// The forward pass shares nothing with the runtime: weights are dequantized from their codes as the scheme's definition
// says, activations are quantized to int8 where the runtime does, keys and values are rounded as the cache rounds them.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "edgekit/cpu.h"
#include "edgekit/gemm.h"
#include "program/crc32.h"
#include "program/format.h"

namespace edgekit::testing {

// SplitMix64: the same numbers with every compiler and library.
class Random {
 public:
  explicit Random(uint64_t seed) : state_(seed) {}

  uint64_t next() {
    state_ += 0x9e3779b97f4a7c15u;
    uint64_t z = state_;
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  // In [-1, 1), a multiple of 2^-20.
  float uniform() { return static_cast<float>(next() >> 43) * 0x1p-20f - 1.0f; }
  size_t below(size_t n) { return static_cast<size_t>(next() % n); }

 private:
  uint64_t state_;
};

struct ModelShape {
  uint32_t layers = 2, hidden = 64, heads = 4, kv_heads = 2, head_dim = 16, intermediate = 96, vocab = 100;
  uint32_t context = 256, max_rows = 32;
  edgekit_format qkv[3] = {EDGEKIT_Q8, EDGEKIT_Q8, EDGEKIT_Q8};
  edgekit_format out = EDGEKIT_Q8, gate_up = EDGEKIT_Q8, down = EDGEKIT_Q8, head = EDGEKIT_Q8;
  uint32_t group = 32;
  bool split_qkv = false, tied = true, bias = false, qk_norm = false;
  uint32_t window = 0;
  format::KvFormat kv = format::KvFormat::kF16;
  float weight_scale = 1.0f;
};

struct DenseMatrix {
  size_t n = 0, k = 0, group = 0;
  bool is_float = false;
  std::vector<float> values;  // [n][k]
  std::vector<float> bias;    // [n] or empty
};

struct DenseLayer {
  std::vector<float> attention_norm, mlp_norm, q_norm, k_norm;
  DenseMatrix q, k, v, out, gate, up, down;
};

struct DenseModel {
  ModelShape shape;
  DenseMatrix embedding, head;
  std::vector<float> final_norm, inverse_frequency;
  std::vector<DenseLayer> layers;
};

inline uint16_t half_bits(float value) {
  // Small magnitudes only (below 65504); rounds to nearest, ties to even, by scaling to whole steps.
  if (value == 0.0f) return 0;
  int exponent = 0;
  std::frexp(value, &exponent);  // |value| in [2^(e-1), 2^e)
  const int step = (exponent - 11 < -24) ? -24 : exponent - 11;
  const double units = std::nearbyint(std::ldexp(static_cast<double>(value), -step));
  const double rounded = std::ldexp(units, step);
  const uint16_t sign = rounded < 0 ? 0x8000 : 0;
  const double magnitude = std::fabs(rounded);
  if (magnitude < std::ldexp(1.0, -14)) return static_cast<uint16_t>(sign | int(std::ldexp(magnitude, 24)));
  std::frexp(magnitude, &exponent);
  const int fraction = int(std::ldexp(magnitude, 11 - exponent)) - 1024;
  return static_cast<uint16_t>(sign | (exponent + 14) << 10 | fraction);
}

inline double value_of_half(uint16_t bits) {
  const int exponent = bits >> 10 & 31, fraction = bits & 1023;
  const double magnitude =
      exponent == 0 ? std::ldexp(fraction, -24) : std::ldexp(1024 + fraction, exponent - 25);
  return (bits & 0x8000) != 0 ? -magnitude : magnitude;
}

inline float value_of_bf16(uint16_t bits) {
  const uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, 4);
  return value;
}

// Lays sections and tensors out as format.h says.
class ProgramWriter {
 public:
  explicit ProgramWriter(const ModelShape& shape, uint64_t seed = 1) : shape_(shape), random_(seed) {
    model_.shape = shape;
  }

  // The program file, and model() to go with it.
  std::vector<uint8_t> write() {
    write_model();
    return assemble();
  }

  const DenseModel& model() const { return model_; }

  std::vector<uint8_t> tokenizer, probe;  // raw sections, empty: absent
  uint32_t bos = format::kNone;
  std::vector<uint32_t> eos;
  uint64_t kernel_features = edgekit_cpu_features();  // of the CPU that the plan was made for
  bool fill_codes_at_random = false;  // large models: no dense numbers, codes straight from the generator

 private:
  static size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

  uint32_t add_tensor(edgekit_format format, uint32_t layout, uint32_t group, size_t n, size_t k, const void* codes,
                      size_t codes_bytes, const void* scales, size_t scales_bytes) {
    format::Tensor tensor{};
    tensor.format = format;
    tensor.layout = layout;
    tensor.group = group;
    tensor.n = static_cast<uint32_t>(n);
    tensor.k = static_cast<uint32_t>(k);
    tensor.codes_offset = append(codes, codes_bytes);
    tensor.codes_bytes = codes_bytes;
    tensor.scales_offset = append(scales, scales_bytes);
    tensor.scales_bytes = scales_bytes;
    tensors_.push_back(tensor);
    return static_cast<uint32_t>(tensors_.size() - 1);
  }

  uint64_t append(const void* data, size_t bytes) {
    const size_t offset = round_up(weights_.size(), 64);
    weights_.resize(offset + bytes);
    if (bytes > 0) std::memcpy(weights_.data() + offset, data, bytes);
    return offset;
  }

  uint32_t add_vector(const std::vector<float>& values) {
    return add_tensor(EDGEKIT_F32, 0, 0, 1, values.size(), values.data(), values.size() * 4, nullptr, 0);
  }

  std::vector<float> random_vector(size_t n, float around, float spread) {
    std::vector<float> values(n);
    for (float& value : values) value = around + spread * random_.uniform();
    return values;
  }

  // A random matrix of [n][k] in `format`, as codes and as the numbers they stand for.
  struct Coded {
    edgekit_format format;
    size_t n, k, group;
    std::vector<int8_t> codes;
    std::vector<uint16_t> scales, halves;
    std::vector<float> floats;
  };

  Coded random_matrix(size_t n, size_t k, edgekit_format format, DenseMatrix* dense) {
    const float spread = shape_.weight_scale * std::sqrt(3.0f / static_cast<float>(k));
    const bool is_float = format == EDGEKIT_F32 || format == EDGEKIT_F16;
    const size_t group = is_float ? 0 : shape_.group;
    Coded coded{format, n, k, group, {}, {}, {}, {}};
    *dense = {n, k, group, is_float, std::vector<float>(n * k), {}};
    if (is_float) coded.floats = random_vector(n * k, 0.0f, spread);
    if (format == EDGEKIT_F32) {
      dense->values = coded.floats;
      return coded;
    }
    if (format == EDGEKIT_F16) {
      coded.halves.resize(n * k);
      for (size_t i = 0; i < n * k; i++) {
        coded.halves[i] = half_bits(coded.floats[i]);
        dense->values[i] = static_cast<float>(value_of_half(coded.halves[i]));
      }
      return coded;
    }
    // Any code with any scale is a legal weight; no quantizer is needed to find some.
    const size_t groups = (k + group - 1) / group;
    coded.codes.resize(n * k);
    coded.scales.resize(n * groups);
    const int lowest = format == EDGEKIT_Q8   ? -127
                       : format == EDGEKIT_Q4 ? -8
                       : format == EDGEKIT_Q3 ? -4
                       : format == EDGEKIT_Q2 ? -2
                                              : -1;
    const int highest = format == EDGEKIT_Q8 ? 127 : format == EDGEKIT_T2 ? 1 : -lowest - 1;
    for (int8_t& code : coded.codes) {
      code = static_cast<int8_t>(lowest + static_cast<int>(random_.below(static_cast<size_t>(highest - lowest + 1))));
    }
    for (uint16_t& scale : coded.scales) {
      const float wanted = spread / static_cast<float>(highest + 1) * (1.0f + 0.5f * random_.uniform());
      uint32_t bits;
      std::memcpy(&bits, &wanted, 4);
      scale = static_cast<uint16_t>(bits >> 16);
    }
    const float offset = format == EDGEKIT_Q2 ? 0.5f : 0.0f;
    for (size_t row = 0; row < n; row++) {
      for (size_t p = 0; p < k; p++) {
        const float scale = value_of_bf16(coded.scales[row * groups + p / group]);
        dense->values[row * k + p] = scale * (static_cast<float>(coded.codes[row * k + p]) + offset);
      }
    }
    return coded;
  }

  uint32_t add_matrix(const Coded& coded) {
    const size_t tiles = round_up(coded.n, 16) / 16;
    std::vector<uint8_t> packed(tiles * edgekit_tile_code_bytes(coded.format, coded.k));
    const void* source = coded.format == EDGEKIT_F32   ? static_cast<const void*>(coded.floats.data())
                         : coded.format == EDGEKIT_F16 ? static_cast<const void*>(coded.halves.data())
                                                       : static_cast<const void*>(coded.codes.data());
    edgekit_pack_codes(coded.format, coded.n, coded.k, source, packed.data());
    std::vector<uint16_t> scales;
    if (coded.group > 0) {
      const size_t groups = (coded.k + coded.group - 1) / coded.group;
      scales.resize(tiles * groups * 16);
      edgekit_pack_scales(coded.n, groups, coded.scales.data(), scales.data());
    }
    return add_tensor(coded.format, 1, static_cast<uint32_t>(coded.group), coded.n, coded.k, packed.data(),
                      packed.size(), scales.data(), scales.size() * 2);
  }

  // Bytes from the generator: any codes are legal; scales keep sums in range.
  uint32_t add_random_matrix(size_t n, size_t k, edgekit_format format) {
    const bool is_float = format == EDGEKIT_F32 || format == EDGEKIT_F16;
    const size_t tiles = round_up(n, 16) / 16;
    std::vector<uint8_t> packed(tiles * edgekit_tile_code_bytes(format, k));
    if (!is_float) {
      for (size_t i = 0; i + 8 <= packed.size(); i += 8) {
        const uint64_t word = random_.next();
        std::memcpy(packed.data() + i, &word, 8);
      }
    }
    std::vector<uint16_t> scales(is_float ? 0 : tiles * edgekit_tile_scale_bytes(format, k, shape_.group) / 2, 0x3a80);
    return add_tensor(format, 1, is_float ? 0 : shape_.group, n, k, packed.data(), packed.size(), scales.data(),
                      scales.size() * 2);
  }

  static void stack(const Coded& from, Coded* onto) {
    onto->n += from.n;
    onto->codes.insert(onto->codes.end(), from.codes.begin(), from.codes.end());
    onto->scales.insert(onto->scales.end(), from.scales.begin(), from.scales.end());
    onto->halves.insert(onto->halves.end(), from.halves.begin(), from.halves.end());
    onto->floats.insert(onto->floats.end(), from.floats.begin(), from.floats.end());
  }

  // Rows [from, from + 16) of `coded`, zeros where there are none.
  static Coded tile_of(const Coded& coded, size_t from) {
    Coded tile{coded.format, 16, coded.k, coded.group, {}, {}, {}, {}};
    const size_t groups = coded.group > 0 ? (coded.k + coded.group - 1) / coded.group : 0;
    tile.codes.resize(coded.codes.empty() ? 0 : 16 * coded.k);
    tile.scales.resize(16 * groups);
    tile.halves.resize(coded.halves.empty() ? 0 : 16 * coded.k);
    tile.floats.resize(coded.floats.empty() ? 0 : 16 * coded.k);
    for (size_t i = from; i < from + 16 && i < coded.n; i++) {
      const size_t to = i - from;
      if (!coded.codes.empty()) std::memcpy(&tile.codes[to * coded.k], &coded.codes[i * coded.k], coded.k);
      if (groups > 0) std::memcpy(&tile.scales[to * groups], &coded.scales[i * groups], groups * 2);
      if (!coded.halves.empty()) std::memcpy(&tile.halves[to * coded.k], &coded.halves[i * coded.k], coded.k * 2);
      if (!coded.floats.empty()) std::memcpy(&tile.floats[to * coded.k], &coded.floats[i * coded.k], coded.k * 4);
    }
    return tile;
  }

  uint32_t buffer(size_t width) {
    format::Buffer made{static_cast<uint32_t>(round_up(width, 16)), shape_.max_rows, arena_};
    arena_ += uint64_t(made.width) * made.rows * 4;
    buffers_.push_back(made);
    return static_cast<uint32_t>(buffers_.size() - 1);
  }

  uint32_t kernel(edgekit_format format, size_t rows) {
    const edgekit_gemm_kernel* chosen = edgekit_gemm_choose(format, rows, kernel_features);
    for (size_t i = 0; i < kernels_.size(); i++) {
      if (std::strcmp(kernels_[i].name, chosen->name) == 0) return static_cast<uint32_t>(i);
    }
    format::KernelName name{};
    std::strncpy(name.name, chosen->name, sizeof name.name - 1);
    kernels_.push_back(name);
    return static_cast<uint32_t>(kernels_.size() - 1);
  }

  format::Operator start_operator(format::OperatorKind kind) {
    format::Operator op{};
    op.kind = static_cast<uint32_t>(kind);
    op.input = op.output = op.norm = op.q_norm = op.k_norm = op.rope = format::kNone;
    op.decode_kernel = op.prefill_kernel = format::kNone;
    for (int i = 0; i < 3; i++) op.weight[i] = op.bias[i] = format::kNone;
    const bool has_no_norm = kind == format::OperatorKind::kEmbed || kind == format::OperatorKind::kLinearAdd;
    op.eps = has_no_norm ? 0.0f : 1e-5f;
    op.rope_scale = 1.0f;
    return op;
  }

  void use_kernels(edgekit_format format, format::Operator* op) {
    op->decode_kernel = kernel(format, 1);
    op->prefill_kernel = kernel(format, 2);
  }

  uint32_t plain_matrix(size_t n, size_t k, edgekit_format format, DenseMatrix* dense) {
    return fill_codes_at_random ? add_random_matrix(n, k, format) : add_matrix(random_matrix(n, k, format, dense));
  }

  std::vector<float> maybe_bias(size_t n) { return shape_.bias ? random_vector(n, 0.0f, 0.3f) : std::vector<float>(); }

  void write_qkv(DenseLayer* layer, format::Operator* op) {
    DenseMatrix* dense[3] = {&layer->q, &layer->k, &layer->v};
    const size_t n[3] = {size_t(shape_.heads) * shape_.head_dim, size_t(shape_.kv_heads) * shape_.head_dim,
                         size_t(shape_.kv_heads) * shape_.head_dim};
    if (fill_codes_at_random) {
      op->weight[0] = add_random_matrix(n[0] + n[1] + n[2], shape_.hidden, shape_.qkv[0]);
    } else {
      Coded all{};
      std::vector<float> bias;
      for (int i = 0; i < 3; i++) {
        const Coded coded = random_matrix(n[i], shape_.hidden, shape_.qkv[i], dense[i]);
        dense[i]->bias = maybe_bias(n[i]);
        if (shape_.split_qkv) {
          op->weight[i] = add_matrix(coded);
          if (shape_.bias) op->bias[i] = add_vector(dense[i]->bias);
        } else if (i == 0) {
          all = coded;
        } else {
          stack(coded, &all);
        }
        bias.insert(bias.end(), dense[i]->bias.begin(), dense[i]->bias.end());
      }
      if (!shape_.split_qkv) {
        op->weight[0] = add_matrix(all);
        if (shape_.bias) op->bias[0] = add_vector(bias);
      }
    }
    use_kernels(shape_.qkv[0], op);
  }

  void write_gate_up(DenseLayer* layer, format::Operator* op) {
    const size_t tiles = round_up(shape_.intermediate, 16) / 16;
    if (fill_codes_at_random) {
      op->weight[0] = add_random_matrix(32 * tiles, shape_.hidden, shape_.gate_up);
    } else {
      const Coded gate = random_matrix(shape_.intermediate, shape_.hidden, shape_.gate_up, &layer->gate);
      const Coded up = random_matrix(shape_.intermediate, shape_.hidden, shape_.gate_up, &layer->up);
      Coded both = tile_of(gate, 0);
      stack(tile_of(up, 0), &both);
      for (size_t tile = 1; tile < tiles; tile++) {
        stack(tile_of(gate, 16 * tile), &both);
        stack(tile_of(up, 16 * tile), &both);
      }
      op->weight[0] = add_matrix(both);
    }
    use_kernels(shape_.gate_up, op);
  }

  void write_layer(uint32_t index, uint32_t x, uint32_t qkv, uint32_t mixed, uint32_t gated, uint32_t rope) {
    using format::OperatorKind;
    DenseLayer& layer = model_.layers[index];
    layer.attention_norm = random_vector(shape_.hidden, 1.0f, 0.3f);
    layer.mlp_norm = random_vector(shape_.hidden, 1.0f, 0.3f);

    format::Operator op = start_operator(OperatorKind::kNormLinear);
    op.input = x;
    op.output = qkv;
    op.norm = add_vector(layer.attention_norm);
    write_qkv(&layer, &op);
    operators_.push_back(op);

    op = start_operator(OperatorKind::kAttention);
    op.layer = index;
    op.input = qkv;
    op.output = mixed;
    op.rope = rope;
    op.window = shape_.window;
    op.scale = 1.0f / std::sqrt(static_cast<float>(shape_.head_dim));
    if (shape_.qk_norm) {
      layer.q_norm = random_vector(shape_.head_dim, 1.0f, 0.3f);
      layer.k_norm = random_vector(shape_.head_dim, 1.0f, 0.3f);
      op.q_norm = add_vector(layer.q_norm);
      op.k_norm = add_vector(layer.k_norm);
    }
    operators_.push_back(op);

    op = start_operator(OperatorKind::kLinearAdd);
    op.input = mixed;
    op.output = x;
    op.weight[0] =
        plain_matrix(shape_.hidden, size_t(shape_.heads) * shape_.head_dim, shape_.out, &layer.out);
    if (shape_.bias) {
      layer.out.bias = maybe_bias(shape_.hidden);
      op.bias[0] = add_vector(layer.out.bias);
    }
    use_kernels(shape_.out, &op);
    operators_.push_back(op);

    op = start_operator(OperatorKind::kNormGatedLinear);
    op.input = x;
    op.output = gated;
    op.norm = add_vector(layer.mlp_norm);
    write_gate_up(&layer, &op);
    operators_.push_back(op);

    op = start_operator(OperatorKind::kLinearAdd);
    op.input = gated;
    op.output = x;
    op.weight[0] = plain_matrix(shape_.hidden, shape_.intermediate, shape_.down, &layer.down);
    use_kernels(shape_.down, &op);
    operators_.push_back(op);
  }

  void write_model() {
    using format::OperatorKind;
    const uint32_t x = buffer(shape_.hidden);
    const uint32_t qkv = buffer(size_t(shape_.heads + 2 * shape_.kv_heads) * shape_.head_dim);
    const uint32_t mixed = buffer(size_t(shape_.heads) * shape_.head_dim);
    const uint32_t gated = buffer(shape_.intermediate);
    for (uint32_t i = 0; i < shape_.head_dim / 2; i++) {
      const double exponent = 2.0 * i / shape_.head_dim;
      model_.inverse_frequency.push_back(static_cast<float>(1.0 / std::pow(10000.0, exponent)));
    }
    const uint32_t rope = add_vector(model_.inverse_frequency);

    format::Operator op = start_operator(OperatorKind::kEmbed);
    op.output = x;
    const uint32_t table = op.weight[0] = plain_matrix(shape_.vocab, shape_.hidden, shape_.head, &model_.embedding);
    operators_.push_back(op);

    model_.layers.resize(shape_.layers);
    for (uint32_t i = 0; i < shape_.layers; i++) write_layer(i, x, qkv, mixed, gated, rope);

    model_.final_norm = random_vector(shape_.hidden, 1.0f, 0.3f);
    op = start_operator(OperatorKind::kHead);
    op.input = x;
    op.norm = add_vector(model_.final_norm);
    if (shape_.tied) {
      op.weight[0] = table;
      model_.head = model_.embedding;
    } else {
      op.weight[0] = plain_matrix(shape_.vocab, shape_.hidden, shape_.head, &model_.head);
    }
    use_kernels(shape_.head, &op);
    operators_.push_back(op);
  }

  template <typename T>
  static std::vector<uint8_t> bytes_of(const std::vector<T>& values) {
    const auto* from = reinterpret_cast<const uint8_t*>(values.data());
    return std::vector<uint8_t>(from, from + values.size() * sizeof(T));
  }

  std::vector<uint8_t> assemble() {
    using format::SectionKind;
    format::Config config{};
    config.layers = shape_.layers;
    config.hidden = shape_.hidden;
    config.heads = shape_.heads;
    config.kv_heads = shape_.kv_heads;
    config.head_dim = shape_.head_dim;
    config.intermediate = shape_.intermediate;
    config.vocab = shape_.vocab;
    config.context = shape_.context;
    config.max_rows = shape_.max_rows;
    config.decode_threads = config.prefill_threads = 1;
    config.bos = bos;
    config.eos_count = static_cast<uint32_t>(eos.size());
    for (size_t i = 0; i < eos.size(); i++) config.eos[i] = eos[i];
    config.arena_bytes = static_cast<uint32_t>(arena_);
    config.kv_format = static_cast<uint32_t>(shape_.kv);

    struct Part {
      SectionKind kind;
      std::vector<uint8_t> bytes;
    };
    std::vector<Part> parts = {
        {SectionKind::kConfig, bytes_of(std::vector<format::Config>{config})},
        {SectionKind::kOperators, bytes_of(operators_)},
        {SectionKind::kTensors, bytes_of(tensors_)},
        {SectionKind::kBuffers, bytes_of(buffers_)},
        {SectionKind::kKernels, bytes_of(kernels_)},
    };
    if (!tokenizer.empty()) parts.push_back({SectionKind::kTokenizer, tokenizer});
    if (!probe.empty()) parts.push_back({SectionKind::kProbe, probe});
    parts.push_back({SectionKind::kWeights, {}});
    parts.back().bytes.swap(weights_);

    std::vector<format::Section> table;
    uint64_t end = sizeof(format::Header) + parts.size() * sizeof(format::Section);
    for (const Part& part : parts) {
      const uint64_t alignment = part.kind == SectionKind::kWeights ? format::kPageBytes : format::kAlignBytes;
      format::Section section{};
      section.kind = static_cast<uint32_t>(part.kind);
      section.crc = crc32(part.bytes.data(), part.bytes.size());
      section.offset = round_up(end, alignment);
      section.bytes = part.bytes.size();
      end = section.offset + section.bytes;
      table.push_back(section);
    }
    format::Header header{};
    std::memcpy(header.magic, format::kMagic, sizeof header.magic);
    header.version = format::kVersion;
    header.header_bytes = sizeof header;
    header.file_bytes = end;
    header.section_count = static_cast<uint32_t>(table.size());
    header.section_table_crc =
        crc32(reinterpret_cast<const uint8_t*>(table.data()), table.size() * sizeof(format::Section));
    header.header_crc = crc32(reinterpret_cast<const uint8_t*>(&header), sizeof header - 4);

    std::vector<uint8_t> file(end);
    std::memcpy(file.data(), &header, sizeof header);
    std::memcpy(file.data() + sizeof header, table.data(), table.size() * sizeof(format::Section));
    for (size_t i = 0; i < parts.size(); i++) {
      if (!parts[i].bytes.empty()) {
        std::memcpy(file.data() + table[i].offset, parts[i].bytes.data(), parts[i].bytes.size());
      }
    }
    return file;
  }

  ModelShape shape_;
  Random random_;
  DenseModel model_;
  std::vector<uint8_t> weights_;
  std::vector<format::Tensor> tensors_;
  std::vector<format::Operator> operators_;
  std::vector<format::Buffer> buffers_;
  std::vector<format::KernelName> kernels_;
  uint64_t arena_ = 0;
};

// A forward pass over a whole sequence in double, the slow and plain way.
class DenseForward {
 public:
  explicit DenseForward(const DenseModel& model) : model_(model) {}

  // Logits [tokens][vocab].
  std::vector<double> run(const std::vector<uint32_t>& tokens) const {
    const ModelShape& shape = model_.shape;
    std::vector<std::vector<double>> x;
    for (const uint32_t token : tokens) {
      const float* row = &model_.embedding.values[size_t(token) * shape.hidden];
      x.emplace_back(row, row + shape.hidden);
    }
    for (const DenseLayer& layer : model_.layers) {
      mix(layer, &x);
      for (std::vector<double>& row : x) {
        const std::vector<double> normed = norm(row, layer.mlp_norm);
        const std::vector<double> gate = multiply(layer.gate, normed), up = multiply(layer.up, normed);
        std::vector<double> h(gate.size());
        for (size_t i = 0; i < h.size(); i++) h[i] = gate[i] / (1.0 + std::exp(-gate[i])) * up[i];
        add(multiply(layer.down, h), &row);
      }
    }
    std::vector<double> logits;
    for (const std::vector<double>& row : x) {
      const std::vector<double> last = multiply(model_.head, norm(row, model_.final_norm));
      logits.insert(logits.end(), last.begin(), last.end());
    }
    return logits;
  }

 private:
  static void add(const std::vector<double>& from, std::vector<double>* to) {
    for (size_t i = 0; i < from.size(); i++) (*to)[i] += from[i];
  }

  static std::vector<double> norm(const std::vector<double>& x, const std::vector<float>& weight) {
    double squares = 0;
    for (const double value : x) squares += value * value;
    const double inverse = 1.0 / std::sqrt(squares / static_cast<double>(x.size()) + 1e-5);
    std::vector<double> out(x.size());
    for (size_t i = 0; i < x.size(); i++) out[i] = x[i] * inverse * weight[i];
    return out;
  }

  // Activations as int8 with one scale a group, for quantized weights.
  static std::vector<double> rounded(const std::vector<double>& x, size_t group) {
    std::vector<double> out(x.size());
    for (size_t start = 0; start < x.size(); start += group) {
      const size_t end = start + group < x.size() ? start + group : x.size();
      double most = 0;
      for (size_t i = start; i < end; i++) most = std::fmax(most, std::fabs(x[i]));
      for (size_t i = start; i < end; i++) out[i] = most == 0 ? 0 : std::nearbyint(x[i] / most * 127) * most / 127;
    }
    return out;
  }

  static std::vector<double> multiply(const DenseMatrix& matrix, const std::vector<double>& x) {
    const std::vector<double> a = matrix.is_float ? x : rounded(x, matrix.group);
    std::vector<double> y(matrix.n);
    for (size_t j = 0; j < matrix.n; j++) {
      for (size_t p = 0; p < matrix.k; p++) y[j] += a[p] * matrix.values[j * matrix.k + p];
      if (!matrix.bias.empty()) y[j] += matrix.bias[j];
    }
    return y;
  }

  void rotate(size_t position, const std::vector<float>& norm_weight, double* head) const {
    const size_t half = model_.shape.head_dim / 2;
    if (!norm_weight.empty()) {
      const std::vector<double> normed = norm(std::vector<double>(head, head + 2 * half), norm_weight);
      std::memcpy(head, normed.data(), normed.size() * sizeof(double));
    }
    for (size_t i = 0; i < half; i++) {
      const double angle = static_cast<float>(static_cast<float>(position) * model_.inverse_frequency[i]);
      const double a = head[i], b = head[i + half];
      head[i] = a * std::cos(angle) - b * std::sin(angle);
      head[i + half] = b * std::cos(angle) + a * std::sin(angle);
    }
  }

  // Each head on its own.
  std::vector<double> cached(std::vector<double> heads) const {
    if (model_.shape.kv == format::KvFormat::kQ8) return rounded(heads, model_.shape.head_dim);
    for (double& value : heads) value = value_of_half(half_bits(static_cast<float>(value)));
    return heads;
  }

  void mix(const DenseLayer& layer, std::vector<std::vector<double>>* x) const {
    const ModelShape& shape = model_.shape;
    const size_t dim = shape.head_dim, group = shape.heads / shape.kv_heads;
    std::vector<std::vector<double>> keys, values;
    for (size_t position = 0; position < x->size(); position++) {
      const std::vector<double> normed = norm((*x)[position], layer.attention_norm);
      std::vector<double> q = multiply(layer.q, normed), k = multiply(layer.k, normed), v = multiply(layer.v, normed);
      for (size_t head = 0; head < shape.heads; head++) rotate(position, layer.q_norm, &q[head * dim]);
      for (size_t head = 0; head < shape.kv_heads; head++) rotate(position, layer.k_norm, &k[head * dim]);
      keys.push_back(cached(k));
      values.push_back(cached(v));
      std::vector<double> mixed(q.size());
      const size_t first = shape.window > 0 && position + 1 > shape.window ? position + 1 - shape.window : 0;
      for (size_t head = 0; head < shape.heads; head++) {
        const size_t from = head / group * dim;
        std::vector<double> weights;
        double total = 0;
        for (size_t at = first; at <= position; at++) {
          double score = 0;
          for (size_t d = 0; d < dim; d++) score += q[head * dim + d] * keys[at][from + d];
          weights.push_back(std::exp(score / std::sqrt(static_cast<double>(dim))));
          total += weights.back();
        }
        for (size_t at = first; at <= position; at++) {
          for (size_t d = 0; d < dim; d++) mixed[head * dim + d] += weights[at - first] / total * values[at][from + d];
        }
      }
      add(multiply(layer.out, mixed), &(*x)[position]);
    }
  }

  const DenseModel& model_;
};

}  // namespace edgekit::testing
