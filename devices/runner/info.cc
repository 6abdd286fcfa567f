// What a model file holds, whether it is whole, and what this CPU can do.
#include <cstdio>

#include "edgekit/cpu.h"
#include "edgekit/gemm.h"
#include "failure.h"
#include "json.h"
#include "machine.h"
#include "measurement.h"
#include "verbs.h"

namespace edgekit::runner {
namespace {

// Bits of edgekit/cpu.h that a set holds, by name.
void write_features(const char* name, uint64_t features, Json* json) {
  constexpr struct {
    uint64_t bit;
    const char* name;
  } kNames[] = {
      {EDGEKIT_CPU_NEON, "neon"},           {EDGEKIT_CPU_DOTPROD, "dotprod"},
      {EDGEKIT_CPU_I8MM, "i8mm"},           {EDGEKIT_CPU_AVX2, "avx2"},
      {EDGEKIT_CPU_AVX_VNNI, "avx_vnni"},   {EDGEKIT_CPU_AVX512_VNNI, "avx512_vnni"},
  };
  json->key(name).open_list();
  for (const auto& feature : kNames) {
    if ((features & feature.bit) != 0) {
      json->value(feature.name);
    }
  }
  json->close_list();
}

void write_config(const edgekit_program_info& info, Json* json) {
  json->key("config").open_object();
  json->member("layers", info.layers).member("hidden", info.hidden).member("heads", info.heads);
  json->member("kv_heads", info.kv_heads).member("head_dim", info.head_dim);
  json->member("intermediate", info.intermediate).member("vocab", info.vocab).member("context", info.context);
  json->member("max_rows", info.max_rows).member("decode_threads", info.decode_threads);
  json->member("prefill_threads", info.prefill_threads);
  json->member("kv_format", name_of(info.kv_format));
  json->key("bos");
  info.bos == EDGEKIT_NO_TOKEN ? json->null() : json->value(info.bos);
  json->list("eos", std::vector<uint32_t>(info.eos, info.eos + info.eos_count));
  json->close_object();
}

void write_sections(const edgekit_program* program, Json* json) {
  size_t count = 0;
  const edgekit_section_info* sections = edgekit_program_sections(program, &count);
  json->key("sections").open_list();
  for (size_t i = 0; i < count; ++i) {
    json->open_object().member("name", sections[i].name).member("offset", sections[i].offset);
    json->member("bytes", sections[i].bytes).member("crc", sections[i].crc).close_object();
  }
  json->close_list();
}

}  // namespace

void info(int count, char** words) {
  const Arguments arguments(count, words, {{"--json", Takes::kNothing}});
  const Model model(arguments.file());
  const edgekit_program_info& info = model.info();
  if (!arguments.has("--json")) {
    std::printf("%u layers, %u wide, vocabulary %u, context %u\n", info.layers, info.hidden, info.vocab, info.context);
    std::printf("%llu bytes of weights, %llu read for each token\n",
                static_cast<unsigned long long>(info.weights_bytes),
                static_cast<unsigned long long>(info.bytes_per_token));
    size_t kernels = 0;
    const edgekit_kernel_use* uses = edgekit_program_kernels(model.program(), &kernels);
    for (size_t i = 0; i < kernels; ++i) {
      std::printf("planned %s, runs %s\n", uses[i].planned, uses[i].runs);
    }
    return;
  }
  Json json;
  json.open_object();
  write_config(info, &json);
  json.member("file_bytes", info.file_bytes).member("weights_bytes", info.weights_bytes);
  json.member("bytes_per_token", info.bytes_per_token);
  write_sections(model.program(), &json);
  write_kernel_list(model.program(), &json);
  json.member("fell_back", edgekit_program_fell_back(model.program()) != 0);
  write_features("required_features", info.required_features, &json);
  write_features("cpu_features", edgekit_cpu_features(), &json);
  json.close_object();
  write_text("-", json.text());
}

void verify(int count, char** words) {
  const Arguments arguments(count, words, {});
  Model model(arguments.file());
  edgekit_error error{};
  const edgekit_status status = edgekit_verify_weights(model.program(), &error);
  if (status != EDGEKIT_OK) {
    fail(status, error, model.path());
  }
  if (model.info().tokenizer != nullptr) {
    model.tokenizer();
  }
  std::printf("%s is whole\n", model.path().c_str());
}

void cpu(int count, char** words) {
  const Arguments arguments(count, words, {{"--json", Takes::kNothing}});
  const Machine machine = read_machine();
  const uint64_t features = edgekit_cpu_features();
  if (!arguments.has("--json")) {
    std::printf("%s\n%s\n%u CPUs, %s\n", machine.cpu.c_str(), machine.system.c_str(), machine.cpus,
                edgekit_isa_name(features));
    return;
  }
  Json json;
  json.open_object();
  json.member("cpu", machine.cpu).member("system", machine.system).member("cores", machine.cpus);
  json.member("isa", edgekit_isa_name(features)).member("page_bytes", machine.page_bytes);
  json.member("emulated", machine.emulated);
  write_features("features", features, &json);
  size_t kernels = 0;
  const edgekit_gemm_kernel* table = edgekit_gemm_kernels(&kernels);
  json.key("kernels").open_list();
  for (size_t i = 0; i < kernels; ++i) {
    if ((table[i].features & ~features) == 0) {
      json.value(table[i].name);
    }
  }
  json.close_list();
  json.close_object();
  write_text("-", json.text());
}

}  // namespace edgekit::runner
