// Opens a program file: header, section table, checksums, config. Nothing is read before it is known to be in the file.
#include <new>

#include "edgekit/cpu.h"
#include "program/crc32.h"
#include "program/format.h"
#include "program/loaded.h"
#include "program/refuse.h"

namespace edgekit {
namespace {

using format::SectionKind;

constexpr size_t kMostSections = 8;

const char* const kSectionNames[kMostSections + 1] = {
    "", "config", "operators", "tensors", "buffers", "kernels", "tokenizer", "probe", "weights",
};

// Above these a count is taken for damage; far above any model that fits a small machine.
constexpr uint32_t kMostLayers = 1024;
constexpr uint32_t kMostHeads = 1024;
constexpr uint32_t kMostHeadDim = 1024;
constexpr uint32_t kMostWidth = 1u << 20;
constexpr uint32_t kMostVocab = 1u << 22;
constexpr uint32_t kMostContext = 1u << 20;
constexpr uint32_t kMostRows = 65536;

edgekit_status check_header(const uint8_t* data, size_t bytes, format::Header* header, edgekit_error* error) {
  if (bytes < sizeof *header) {
    return refuse(error, EDGEKIT_DAMAGED, "the program file has only %zu bytes, less than its header", bytes);
  }
  memcpy(header, data, sizeof *header);
  if (memcmp(header->magic, format::kMagic, sizeof header->magic) != 0) {
    return refuse(error, EDGEKIT_DAMAGED, "this is not an edgekit program file");
  }
  if (crc32(data, sizeof *header - sizeof header->header_crc) != header->header_crc) {
    return refuse(error, EDGEKIT_DAMAGED, "the header of the program file is damaged");
  }
  if (header->version != format::kVersion) {
    return refuse(error, EDGEKIT_UNSUPPORTED, "the program file has version %u and this program reads version %u",
                  header->version, format::kVersion);
  }
  if (header->header_bytes != sizeof *header) {
    return refuse(error, EDGEKIT_DAMAGED, "the program file gives its header %u bytes instead of %zu",
                  header->header_bytes, sizeof *header);
  }
  if (header->file_bytes != bytes) {
    return refuse(error, EDGEKIT_DAMAGED, "the program file has %zu bytes and should have %llu", bytes,
                  static_cast<unsigned long long>(header->file_bytes));
  }
  return EDGEKIT_OK;
}

Array* array_of(Sections& sections, SectionKind kind, size_t* element_bytes) {
  *element_bytes = 1;
  switch (kind) {
    case SectionKind::kConfig:
      *element_bytes = sizeof(format::Config);
      return &sections.config;
    case SectionKind::kOperators:
      *element_bytes = sizeof(format::Operator);
      return &sections.operators;
    case SectionKind::kTensors:
      *element_bytes = sizeof(format::Tensor);
      return &sections.tensors;
    case SectionKind::kBuffers:
      *element_bytes = sizeof(format::Buffer);
      return &sections.buffers;
    case SectionKind::kKernels:
      *element_bytes = sizeof(format::KernelName);
      return &sections.kernels;
    case SectionKind::kTokenizer:
      return &sections.tokenizer;
    case SectionKind::kProbe:
      return &sections.probe;
    case SectionKind::kWeights:
      return &sections.weights;
  }
  return nullptr;
}

edgekit_status check_sections(const uint8_t* data, size_t bytes, const format::Header& header, edgekit_program* program,
                              edgekit_error* error) {
  const uint32_t count = header.section_count;
  const size_t table_bytes = count * sizeof(format::Section);
  if (count == 0 || count > kMostSections || bytes < sizeof header + table_bytes) {
    return refuse(error, EDGEKIT_DAMAGED, "the program file has %u sections; 1 to %zu are possible", count,
                  kMostSections);
  }
  if (crc32(data + sizeof header, table_bytes) != header.section_table_crc) {
    return refuse(error, EDGEKIT_DAMAGED, "the section table of the program file is damaged");
  }
  uint64_t free_from = sizeof header + table_bytes;
  for (uint32_t i = 0; i < count; ++i) {
    format::Section section;
    memcpy(&section, data + sizeof header + i * sizeof section, sizeof section);
    size_t element_bytes = 1;
    Array* array = array_of(program->sections, SectionKind(section.kind), &element_bytes);
    if (array == nullptr || array->data != nullptr) {
      return refuse(error, EDGEKIT_DAMAGED, "section %u of the program file has kind %u, which is %s", i, section.kind,
                    array == nullptr ? "unknown" : "there twice");
    }
    const char* name = kSectionNames[section.kind];
    const bool is_weights = SectionKind(section.kind) == SectionKind::kWeights;
    const uint64_t alignment = is_weights ? format::kPageBytes : format::kAlignBytes;
    if (section.offset % alignment != 0 || section.offset < free_from || section.offset > bytes ||
        section.bytes > bytes - section.offset || section.bytes % element_bytes != 0) {
      return refuse(error, EDGEKIT_DAMAGED, "section '%s' of the program file cannot lie at %llu with %llu bytes", name,
                    static_cast<unsigned long long>(section.offset),
                    static_cast<unsigned long long>(section.bytes));
    }
    if (is_weights && (i + 1 != count || section.offset + section.bytes != bytes)) {
      return refuse(error, EDGEKIT_DAMAGED, "the weights are not the end of the program file");
    }
    if (!is_weights && crc32(data + section.offset, section.bytes) != section.crc) {
      return refuse(error, EDGEKIT_DAMAGED, "section '%s' of the program file is damaged", name);
    }
    free_from = section.offset + section.bytes;
    *array = {data + section.offset, size_t(section.bytes) / element_bytes};
    program->section_info[program->section_count++] = {name, section.offset, section.bytes, section.crc};
    if (is_weights) {
      program->sections.weights_crc = section.crc;
    }
  }
  const Sections& found = program->sections;
  if (found.config.count != 1 || found.operators.count == 0 || found.tensors.count == 0 || found.buffers.count == 0 ||
      found.weights.data == nullptr) {
    return refuse(error, EDGEKIT_DAMAGED, "the program file lacks a section or has an empty one");
  }
  return EDGEKIT_OK;
}

bool is_between(uint32_t value, uint32_t least, uint32_t most) { return value >= least && value <= most; }

bool is_possible(const format::Config& config) {
  bool possible = is_between(config.layers, 1, kMostLayers) && is_between(config.hidden, 1, kMostWidth) &&
                  is_between(config.heads, 1, kMostHeads) && is_between(config.kv_heads, 1, config.heads) &&
                  config.heads % config.kv_heads == 0 && is_between(config.head_dim, 2, kMostHeadDim) &&
                  config.head_dim % 2 == 0 && is_between(config.intermediate, 1, kMostWidth) &&
                  is_between(config.vocab, 1, kMostVocab) && is_between(config.context, 1, kMostContext) &&
                  is_between(config.max_rows, 1, kMostRows) && config.decode_threads <= EDGEKIT_MOST_THREADS &&
                  config.prefill_threads <= EDGEKIT_MOST_THREADS && config.eos_count <= 8 &&
                  (config.bos == format::kNone || config.bos < config.vocab) &&
                  config.kv_format <= uint32_t(format::KvFormat::kQ8);
  for (uint32_t i = 0; possible && i < config.eos_count; ++i) {
    possible = config.eos[i] < config.vocab;
  }
  return possible;
}

void fill_info(const format::Config& config, size_t bytes, const Sections& sections, edgekit_program_info* info) {
  info->layers = config.layers;
  info->hidden = config.hidden;
  info->heads = config.heads;
  info->kv_heads = config.kv_heads;
  info->head_dim = config.head_dim;
  info->intermediate = config.intermediate;
  info->vocab = config.vocab;
  info->context = config.context;
  info->max_rows = config.max_rows;
  info->decode_threads = config.decode_threads;
  info->prefill_threads = config.prefill_threads;
  info->bos = config.bos;
  info->eos_count = config.eos_count;
  memcpy(info->eos, config.eos, sizeof info->eos);
  info->required_features = config.required_features;
  info->kv_format = format::KvFormat(config.kv_format) == format::KvFormat::kQ8 ? EDGEKIT_KV_Q8 : EDGEKIT_KV_F16;
  info->file_bytes = bytes;
  info->weights_bytes = sections.weights.count;
  info->tokenizer = sections.tokenizer.count > 0 ? sections.tokenizer.data : nullptr;
  info->tokenizer_bytes = sections.tokenizer.count;
  info->probe = sections.probe.count > 0 ? sections.probe.data : nullptr;
  info->probe_bytes = sections.probe.count;
  info->weights = sections.weights.data;
}

edgekit_status check_file(const uint8_t* data, size_t bytes, edgekit_program* program, edgekit_error* error) {
  format::Header header;
  edgekit_status status = check_header(data, bytes, &header, error);
  if (status != EDGEKIT_OK) {
    return status;
  }
  status = check_sections(data, bytes, header, program, error);
  if (status != EDGEKIT_OK) {
    return status;
  }
  format::Config config;
  memcpy(&config, program->sections.config.data, sizeof config);
  if (!is_possible(config)) {
    return refuse(error, EDGEKIT_DAMAGED, "the config of the program file contradicts itself");
  }
  fill_info(config, bytes, program->sections, &program->info);
  status = check_tables(program->sections, config, program, error);
  return status == EDGEKIT_OK ? check_operators(program->sections, config, program, error) : status;
}

}  // namespace
}  // namespace edgekit

using namespace edgekit;

edgekit_status edgekit_program_open(const uint8_t* data, size_t bytes, edgekit_program** program,
                                    edgekit_error* error) {
  *program = nullptr;
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % format::kAlignBytes != 0) {
    return refuse(error, EDGEKIT_BAD_ARGUMENT, "a program must be 64-byte aligned in memory");
  }
  auto* made = new (std::nothrow) edgekit_program();
  if (made == nullptr) {
    return refuse(error, EDGEKIT_NO_MEMORY, "there is no memory for the program's tables");
  }
  made->ops = &ops::choose_ops(edgekit_cpu_features());
  const edgekit_status status = check_file(data, bytes, made, error);
  if (status != EDGEKIT_OK) {
    edgekit_program_close(made);
    return status;
  }
  *program = made;
  return EDGEKIT_OK;
}

void edgekit_program_close(edgekit_program* program) {
  if (program == nullptr) {
    return;
  }
  free(program->steps);
  free(program->ropes);
  free(program->kernels);
  delete program;
}

const edgekit_program_info* edgekit_program_get_info(const edgekit_program* program) { return &program->info; }

const edgekit_section_info* edgekit_program_sections(const edgekit_program* program, size_t* count) {
  *count = program->section_count;
  return program->section_info;
}

const edgekit_kernel_use* edgekit_program_kernels(const edgekit_program* program, size_t* count) {
  *count = program->kernel_count;
  return program->kernels;
}

int edgekit_program_fell_back(const edgekit_program* program) { return program->fell_back ? 1 : 0; }

edgekit_status edgekit_verify_weights(const edgekit_program* program, edgekit_error* error) {
  const Array& weights = program->sections.weights;
  if (crc32(weights.data, weights.count) != program->sections.weights_crc) {
    return refuse(error, EDGEKIT_DAMAGED, "the weights of the program file are damaged");
  }
  return EDGEKIT_OK;
}
