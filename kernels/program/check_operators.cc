// Turns the operators into steps, and refuses those that do not fit the tables or each other: after this no index,
// width or length of a step can lead outside the file or the arena.
#include <math.h>

#include "edgekit/cpu.h"
#include "program/loaded.h"
#include "program/refuse.h"

namespace edgekit {
namespace {

using format::kNone;
using format::OperatorKind;

constexpr size_t kFloatBytes = sizeof(float);
class Checker {
 public:
  Checker(const Sections& sections, const format::Config& config, edgekit_program* program, edgekit_error* error)
      : sections_(sections), config_(config), program_(program), error_(error), features_(edgekit_cpu_features()) {}

  edgekit_status run() {
    return check_operators() ? EDGEKIT_OK : status_;
  }

 private:
  bool fail(const char* what, size_t index, const char* why) {
    status_ = refuse(error_, EDGEKIT_DAMAGED, "%s %zu of the program file %s", what, index, why);
    return false;
  }

  bool no_memory() {
    status_ = refuse(error_, EDGEKIT_NO_MEMORY, "there is no memory for the program's tables");
    return false;
  }

  // The kernel the plan chose, if this build has it and the CPU runs it; else the best there is, and that is noted.
  bool choose_kernel(size_t at, uint32_t index, const Matrix& matrix, size_t rows, const edgekit_gemm_kernel** chosen) {
    if (index >= program_->kernel_count) {
      return fail("operator", at, "names a kernel that is not listed");
    }
    edgekit_kernel_use& use = program_->kernels[index];
    const edgekit_gemm_kernel* planned = edgekit_gemm_find(use.planned);
    if (planned != nullptr && planned->weights == matrix.format && planned->run != nullptr &&
        (planned->features & ~features_) == 0) {
      *chosen = planned;
      return true;
    }
    *chosen = edgekit_gemm_choose(matrix.format, rows, features_);
    if (*chosen == nullptr) {
      status_ = refuse(error_, EDGEKIT_UNSUPPORTED, "this program has no kernel for the weights of operator %zu", at);
      return false;
    }
    // A kernel names one format; the other matrices of a mixed operator always take the best.
    if (planned == nullptr || planned->weights == matrix.format) {
      use.runs = (*chosen)->name;
      program_->fell_back = true;
    }
    return true;
  }

  bool read_vector(size_t at, uint32_t index, size_t length, const float** vector) {
    *vector = nullptr;
    if (index == kNone) {
      return true;
    }
    if (index >= sections_.tensors.count) {
      return fail("operator", at, "refers to a tensor that is not there");
    }
    const auto tensor = element<format::Tensor>(sections_.tensors, index);
    if (tensor.layout != 0 || tensor.k != length) {
      return fail("operator", at, "has a vector of the wrong length");
    }
    *vector = reinterpret_cast<const float*>(sections_.weights.data + tensor.codes_offset);
    return true;
  }

  bool read_matrix(size_t at, uint32_t index, uint32_t bias, Matrix* matrix) {
    if (index >= sections_.tensors.count) {
      return fail("operator", at, "refers to a tensor that is not there");
    }
    const auto tensor = element<format::Tensor>(sections_.tensors, index);
    if (tensor.layout != 1) {
      return fail("operator", at, "has a vector where a matrix belongs");
    }
    matrix->format = edgekit_format(tensor.format);
    matrix->n = tensor.n;
    matrix->k = tensor.k;
    matrix->group = tensor.group;
    matrix->tiles = round_up_to_tile(tensor.n) / EDGEKIT_TILE;
    matrix->tile_code_bytes = edgekit_tile_code_bytes(matrix->format, tensor.k);
    matrix->tile_scale_count =
        matrix->is_float() ? 0 : edgekit_tile_scale_bytes(matrix->format, tensor.k, tensor.group) / sizeof(uint16_t);
    matrix->codes = sections_.weights.data + tensor.codes_offset;
    matrix->scales = reinterpret_cast<const uint16_t*>(sections_.weights.data + tensor.scales_offset);
    return read_vector(at, bias, tensor.n, &matrix->bias);
  }

  bool read_buffer(size_t at, uint32_t index, BufferUse* use) {
    if (index >= sections_.buffers.count) {
      return fail("operator", at, "refers to a buffer that is not there");
    }
    const auto buffer = element<format::Buffer>(sections_.buffers, index);
    *use = {size_t(buffer.offset / kFloatBytes), buffer.width};
    return true;
  }

  bool are_apart(const BufferUse& a, const BufferUse& b) const {
    const size_t rows = config_.max_rows;
    return a.offset + a.width * rows <= b.offset || b.offset + b.width * rows <= a.offset;
  }

  bool read_matrices(size_t at, const format::Operator& op, Step* step) {
    while (step->matrices < kMostWeights && op.weight[step->matrices] != kNone) {
      const size_t i = step->matrices++;
      Matrix& matrix = step->matrix[i];
      if (!read_matrix(at, op.weight[i], op.bias[i], &matrix)) {
        return false;
      }
      if (step->kind != OperatorKind::kEmbed) {
        if (!choose_kernel(at, op.decode_kernel, matrix, 1, &step->decode[i]) ||
            !choose_kernel(at, op.prefill_kernel, matrix, 2, &step->prefill[i])) {
          return false;
        }
        program_->info.bytes_per_token +=
            matrix.tiles * (matrix.tile_code_bytes + matrix.tile_scale_count * sizeof(uint16_t));
      }
      size_t form = 0;
      while (form < step->forms && !(step->form[form].is_float == matrix.is_float() &&
                                     step->form[form].group == matrix.group && step->form[form].k == matrix.k)) {
        ++form;
      }
      if (form == step->forms) {
        step->form[step->forms++] = {matrix.is_float(), matrix.k, matrix.group};
      }
      step->form_of[i] = form;
    }
    for (size_t i = step->matrices; i < kMostWeights; ++i) {
      if (op.weight[i] != kNone || op.bias[i] != kNone) {
        return fail("operator", at, "has a weight after an absent one");
      }
    }
    return true;
  }

  bool find_rope(size_t at, const format::Operator& op, size_t* found) {
    const float* frequencies = nullptr;
    if (!read_vector(at, op.rope, config_.head_dim / 2, &frequencies)) {
      return false;
    }
    if (frequencies == nullptr) {
      return fail("operator", at, "has no rotary frequencies");
    }
    for (size_t i = 0; i < program_->rope_count; ++i) {
      if (program_->ropes[i].inverse_frequency == frequencies && program_->ropes[i].factor == op.rope_scale) {
        *found = i;
        return true;
      }
    }
    *found = program_->rope_count;
    program_->ropes[program_->rope_count++] = {frequencies, op.rope_scale};
    return true;
  }

  // What no step of this kind reads must not be there: else it would be read, and past what was checked.
  bool check_unused(size_t at, const format::Operator& op) {
    const auto kind = OperatorKind(op.kind);
    const bool is_embed = kind == OperatorKind::kEmbed;
    const bool is_attention = kind == OperatorKind::kAttention;
    const bool has_norm = kind == OperatorKind::kNormLinear || kind == OperatorKind::kNormGatedLinear ||
                          kind == OperatorKind::kHead;
    bool is_empty = true;
    if (is_embed) {
      is_empty = is_empty && op.input == kNone && op.bias[0] == kNone;
    }
    if (kind == OperatorKind::kHead) {
      is_empty = is_empty && op.output == kNone;
    }
    if (!has_norm) {
      is_empty = is_empty && op.norm == kNone && (is_attention || op.eps == 0.0f);
    }
    if (is_embed || is_attention) {
      is_empty = is_empty && op.decode_kernel == kNone && op.prefill_kernel == kNone;
    }
    if (!is_attention) {
      is_empty = is_empty && op.layer == 0 && op.q_norm == kNone && op.k_norm == kNone && op.rope == kNone &&
                 op.window == 0 && op.scale == 0.0f && op.rope_scale == 1.0f;
    }
    for (const uint8_t byte : op.reserved) {
      is_empty = is_empty && byte == 0;
    }
    return is_empty || fail("operator", at, "has a field that its kind does not use");
  }

  // What each kind reads and writes, as format.h lists it. A norm is `hidden` long, and so is what it is applied to.
  bool check_kind(size_t at, const format::Operator& op, Step* step) {
    const size_t hidden = config_.hidden;
    const size_t query_width = size_t(config_.heads) * config_.head_dim;
    const size_t attention_width = query_width + 2 * size_t(config_.kv_heads) * config_.head_dim;
    const size_t gated = round_up_to_tile(config_.intermediate);
    bool fits = false;
    switch (step->kind) {
      case OperatorKind::kEmbed:
        fits = step->matrices == 1 && step->matrix[0].n == config_.vocab && step->matrix[0].k == hidden &&
               step->output.width >= hidden;
        program_->info.bytes_per_token += fits ? (step->matrix[0].tile_code_bytes +
                                                  step->matrix[0].tile_scale_count * sizeof(uint16_t)) /
                                                     EDGEKIT_TILE
                                               : 0;
        break;
      case OperatorKind::kNormLinear: {
        size_t outputs = 0;
        fits = step->matrices >= 1 && step->norm != nullptr && step->input.width >= hidden;
        for (size_t i = 0; i < step->matrices; ++i) {
          fits = fits && step->matrix[i].k == hidden;
          outputs += step->matrix[i].n;
        }
        fits = fits && outputs <= step->output.width;
        break;
      }
      case OperatorKind::kAttention:
        fits = step->matrices == 0 && step->input.width >= attention_width && step->output.width >= query_width &&
               step->layer == layers_ && step->layer < config_.layers;
        ++layers_;
        if (fits && (!find_rope(at, op, &step->rope) ||
                     !read_vector(at, op.q_norm, config_.head_dim, &step->q_norm) ||
                     !read_vector(at, op.k_norm, config_.head_dim, &step->k_norm))) {
          return false;
        }
        break;
      case OperatorKind::kLinearAdd:
        fits = step->matrices == 1 && step->matrix[0].n == hidden && step->matrix[0].k <= step->input.width &&
               step->output.width >= hidden;
        break;
      case OperatorKind::kNormGatedLinear:
        fits = step->matrices == 1 && step->norm != nullptr && step->matrix[0].n == 2 * gated &&
               step->matrix[0].k == hidden && step->input.width >= hidden && step->output.width >= gated;
        break;
      case OperatorKind::kHead:
        fits = step->matrices == 1 && step->norm != nullptr && step->matrix[0].n == config_.vocab &&
               step->matrix[0].k == hidden && step->input.width >= hidden;
        break;
    }
    return fits || fail("operator", at, "does not fit the model's dimensions");
  }

  bool check_operator(size_t at, Step* step) {
    const auto op = element<format::Operator>(sections_.operators, at);
    if (op.kind < uint32_t(OperatorKind::kEmbed) || op.kind > uint32_t(OperatorKind::kHead)) {
      status_ = refuse(error_, EDGEKIT_UNSUPPORTED, "operator %zu of the program file has the unknown kind %u", at,
                       op.kind);
      return false;
    }
    step->kind = OperatorKind(op.kind);
    step->layer = op.layer;
    step->eps = op.eps;
    step->scale = op.scale;
    step->window = op.window;
    if ((step->kind == OperatorKind::kEmbed) != (at == 0) ||
        (step->kind == OperatorKind::kHead) != (at + 1 == sections_.operators.count)) {
      return fail("operator", at, "is out of place");
    }
    if (!isfinite(op.eps) || op.eps < 0.0f || !isfinite(op.scale) || !isfinite(op.rope_scale)) {
      return fail("operator", at, "has a constant that is not a number");
    }
    if (!check_unused(at, op)) {
      return false;
    }
    const bool has_input = step->kind != OperatorKind::kEmbed;
    const bool has_output = step->kind != OperatorKind::kHead;
    if ((has_input && !read_buffer(at, op.input, &step->input)) ||
        (has_output && !read_buffer(at, op.output, &step->output))) {
      return false;
    }
    if (has_input && has_output && !are_apart(step->input, step->output)) {
      return fail("operator", at, "writes where it reads");
    }
    return read_vector(at, op.norm, config_.hidden, &step->norm) && read_matrices(at, op, step) &&
           check_kind(at, op, step);
  }

  bool check_operators() {
    const size_t count = sections_.operators.count;
    program_->steps = allocate<Step>(count);
    program_->ropes = allocate<Rope>(count);
    if (program_->steps == nullptr || program_->ropes == nullptr) {
      return no_memory();
    }
    program_->step_count = count;
    for (size_t i = 0; i < count; ++i) {
      if (!check_operator(i, &program_->steps[i])) {
        return false;
      }
    }
    if (layers_ != config_.layers) {
      status_ = refuse(error_, EDGEKIT_DAMAGED, "the program file has %zu attention operators for %u layers", layers_,
                       config_.layers);
      return false;
    }
    bool is_cached_later = false;
    for (size_t i = count; i-- > 0;) {
      program_->steps[i].all_rows = is_cached_later;
      is_cached_later = is_cached_later || program_->steps[i].kind == OperatorKind::kAttention;
    }
    return true;
  }

  const Sections& sections_;
  const format::Config& config_;
  edgekit_program* program_;
  edgekit_error* error_;
  uint64_t features_;
  edgekit_status status_ = EDGEKIT_OK;
  size_t layers_ = 0;
};

}  // namespace

edgekit_status check_operators(const Sections& sections, const format::Config& config, edgekit_program* program,
                               edgekit_error* error) {
  return Checker(sections, config, program, error).run();
}

}  // namespace edgekit
