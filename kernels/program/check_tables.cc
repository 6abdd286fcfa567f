// Checks the tensors, buffers and kernel names of a program file each for itself.
#include "program/loaded.h"
#include "program/refuse.h"

namespace edgekit {
namespace {

constexpr size_t kFloatBytes = sizeof(float);
constexpr uint32_t kMostRowLength = 1u << 20;
constexpr uint32_t kMostOutputs = 1u << 23;

bool is_inside(const Array& weights, uint64_t offset, uint64_t bytes) {
  return offset % format::kAlignBytes == 0 && offset <= weights.count && bytes <= weights.count - offset;
}

bool has_known_shape(const format::Tensor& tensor) {
  return tensor.format <= EDGEKIT_T2 && tensor.layout <= 1 && tensor.n > 0 && tensor.k > 0 &&
         tensor.n <= kMostOutputs && tensor.k <= kMostRowLength;
}

// A vector is one row of plain f32; a quantized matrix has groups, a float one has none.
bool has_fitting_layout(const format::Tensor& tensor) {
  const bool is_group = tensor.group == 32 || tensor.group == 64 || tensor.group == 128;
  const bool is_vector = tensor.layout == 0;
  return (is_float(edgekit_format(tensor.format)) ? tensor.group == 0 : is_group) &&
         (!is_vector || (tensor.format == EDGEKIT_F32 && tensor.n == 1));
}

bool has_exact_size(const format::Tensor& tensor) {
  const auto format = edgekit_format(tensor.format);
  if (tensor.layout == 0) {
    return tensor.codes_bytes == tensor.k * kFloatBytes && tensor.scales_bytes == 0;
  }
  const uint64_t tiles = round_up_to_tile(tensor.n) / EDGEKIT_TILE;
  const uint64_t scale_bytes = is_float(format) ? 0 : edgekit_tile_scale_bytes(format, tensor.k, tensor.group);
  return tensor.codes_bytes == tiles * edgekit_tile_code_bytes(format, tensor.k) &&
         tensor.scales_bytes == tiles * scale_bytes;
}

edgekit_status check_tensors(const Sections& sections, edgekit_error* error) {
  for (size_t i = 0; i < sections.tensors.count; ++i) {
    const auto tensor = element<format::Tensor>(sections.tensors, i);
    const char* wrong = nullptr;
    if (!has_known_shape(tensor)) {
      wrong = "has an impossible format or shape";
    } else if (!has_fitting_layout(tensor)) {
      wrong = "has a layout or a group size that its format does not allow";
    } else if (!has_exact_size(tensor)) {
      wrong = "has another size than its shape needs";
    } else if (!is_inside(sections.weights, tensor.codes_offset, tensor.codes_bytes) ||
               !is_inside(sections.weights, tensor.scales_offset, tensor.scales_bytes)) {
      wrong = "lies outside the weights";
    }
    if (wrong != nullptr) {
      return refuse(error, EDGEKIT_DAMAGED, "tensor %zu of the program file %s", i, wrong);
    }
  }
  return EDGEKIT_OK;
}

edgekit_status check_buffers(const Sections& sections, const format::Config& config, edgekit_program* program,
                             edgekit_error* error) {
  uint64_t arena_end = 0;
  for (size_t i = 0; i < sections.buffers.count; ++i) {
    const auto buffer = element<format::Buffer>(sections.buffers, i);
    if (buffer.width == 0 || buffer.width % EDGEKIT_TILE != 0 || buffer.width > kMostOutputs ||
        buffer.rows != config.max_rows || buffer.offset % format::kAlignBytes != 0 ||
        buffer.offset > config.arena_bytes) {
      return refuse(error, EDGEKIT_DAMAGED, "buffer %zu of the program file has an impossible size or place", i);
    }
    const uint64_t end = buffer.offset + uint64_t(buffer.width) * buffer.rows * kFloatBytes;
    arena_end = end > arena_end ? end : arena_end;
  }
  if (arena_end != config.arena_bytes) {
    return refuse(error, EDGEKIT_DAMAGED, "the buffers of the program file take %llu bytes and should take %u",
                  static_cast<unsigned long long>(arena_end), config.arena_bytes);
  }
  program->arena_floats = arena_end / kFloatBytes;
  return EDGEKIT_OK;
}

bool is_kernel_name(const char* name) {
  if (name[0] == '\0' || memchr(name, '\0', sizeof(format::KernelName)) == nullptr) {
    return false;
  }
  for (const char* c = name; *c != '\0'; ++c) {
    if (!((*c >= 'a' && *c <= 'z') || (*c >= '0' && *c <= '9') || *c == '_')) {
      return false;
    }
  }
  return true;
}

edgekit_status check_kernels(const Sections& sections, edgekit_program* program, edgekit_error* error) {
  program->kernel_count = sections.kernels.count;
  program->kernels = allocate<edgekit_kernel_use>(sections.kernels.count);
  if (program->kernels == nullptr) {
    return refuse(error, EDGEKIT_NO_MEMORY, "there is no memory for the program's tables");
  }
  for (size_t i = 0; i < sections.kernels.count; ++i) {
    const char* name = reinterpret_cast<const char*>(sections.kernels.data) + i * sizeof(format::KernelName);
    if (!is_kernel_name(name)) {
      return refuse(error, EDGEKIT_DAMAGED, "kernel %zu of the program file has no proper name", i);
    }
    program->kernels[i] = {name, name};
  }
  return EDGEKIT_OK;
}

}  // namespace

edgekit_status check_tables(const Sections& sections, const format::Config& config, edgekit_program* program,
                            edgekit_error* error) {
  edgekit_status status = check_tensors(sections, error);
  if (status == EDGEKIT_OK) {
    status = check_buffers(sections, config, program, error);
  }
  return status == EDGEKIT_OK ? check_kernels(sections, program, error) : status;
}

}  // namespace edgekit
