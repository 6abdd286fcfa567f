// Continues tokens, the likeliest at a time, by ONNX Runtime: generate BUNDLE COUNT TOKEN...
//
// BUNDLE is a folder that `edgekit compile --engine onnxruntime` wrote for this machine, portable or not. Prints the
// tokens, those given included. Compiled against ../ort_abi.h, because the runtime's Python package has its library and
// no headers; with the headers, functions of the same names are members of OrtApi:
//
//   ln -s PACKAGE/onnxruntime/capi/libonnxruntime.so.1.* libonnxruntime.so.1
//   g++ -std=c++20 -I.. generate.cc libonnxruntime.so.1 -Wl,-rpath,. -o generate
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>

#include <algorithm>
#include <string>
#include <vector>

#include "ort_abi.h"

extern "C" const edgekit::ort::ApiBase* OrtGetApiBase();

using namespace edgekit::ort;

namespace {

const Api* api = nullptr;

void check(Status* status) {
  if (status != nullptr) {
    fprintf(stderr, "%s\n", api->GetErrorMessage(status));
    exit(1);
  }
}

Value* tensor_of(const MemoryInfo* memory, void* data, size_t bytes, const std::vector<int64_t>& shape,
                 ElementType type) {
  Value* value = nullptr;
  check(api->CreateTensorWithDataAsOrtValue(memory, data, bytes, shape.data(), shape.size(), type, &value));
  return value;
}

std::vector<int64_t> shape_of(const Shape* shape) {
  size_t rank = 0;
  check(api->GetDimensionsCount(shape, &rank));
  std::vector<int64_t> dimensions(rank);
  check(api->GetDimensions(shape, dimensions.data(), rank));
  return dimensions;
}

// The likeliest token after the last row of logits [1, rows, vocab].
int64_t likeliest(Value* logits) {
  Shape* info = nullptr;
  check(api->GetTensorTypeAndShape(logits, &info));
  const std::vector<int64_t> shape = shape_of(info);
  api->ReleaseTensorTypeAndShapeInfo(info);
  void* data = nullptr;
  check(api->GetTensorMutableData(logits, &data));
  const float* row = static_cast<const float*>(data) + (shape[1] - 1) * shape[2];
  return std::max_element(row, row + shape[2]) - row;
}

}  // namespace

int main(int argc, char** argv) {
  if (argc < 4) {
    fprintf(stderr, "usage: generate BUNDLE COUNT TOKEN...\n");
    return 2;
  }
  const void* table = OrtGetApiBase()->GetApi(kVersion);
  if (table == nullptr) {
    fprintf(stderr, "this needs ONNX Runtime %s or later\n", kVersionText);
    return 1;
  }
  const Api the_api(table);
  api = &the_api;

  const std::string bundle = argv[1];
  Env* env = nullptr;
  SessionOptions* options = nullptr;
  Session* session = nullptr;
  MemoryInfo* memory = nullptr;
  Allocator* allocator = nullptr;
  check(api->CreateEnv(3, "generate", &env));
  check(api->CreateSessionOptions(&options));
  struct stat found;
  if (stat((bundle + "/model.edge").c_str(), &found) == 0) {  // with edgekit's kernels
    check(api->RegisterCustomOpsLibrary_V2(options, (bundle + "/libedgekit_onnxruntime.so").c_str()));
  }
  check(api->CreateSession(env, (bundle + "/model.onnx").c_str(), options, &session));
  check(api->CreateCpuMemoryInfo(1, 0, &memory));
  check(api->GetAllocatorWithDefaultOptions(&allocator));

  std::vector<int64_t> tokens;
  for (int i = 3; i < argc; ++i) {
    tokens.push_back(atoll(argv[i]));
  }
  int64_t position = 0;
  int64_t rows = 1;

  // The names of the inputs, and values for all but input_ids, which grows. A portable graph takes its cache and gives
  // it back; the node with edgekit's kernels keeps it.
  size_t count = 0;
  check(api->SessionGetInputCount(session, &count));
  std::vector<std::string> names;
  std::vector<std::string> results = {"logits"};
  std::vector<std::vector<float>> zeros(count);
  std::vector<Value*> inputs(count);
  size_t ids = count;
  for (size_t i = 0; i < count; ++i) {
    char* name = nullptr;
    check(api->SessionGetInputName(session, i, allocator, &name));
    names.emplace_back(name);
    if (names[i] == "input_ids") {
      ids = i;
    } else if (names[i] == "position") {
      inputs[i] = tensor_of(memory, &position, sizeof position, {1}, ElementType::kInt64);
    } else if (names[i] == "num_logits_to_keep") {
      inputs[i] = tensor_of(memory, &rows, sizeof rows, {1}, ElementType::kInt64);
    } else {
      TypeInfo* type = nullptr;
      const Shape* shape = nullptr;
      check(api->SessionGetInputTypeInfo(session, i, &type));
      check(api->CastTypeInfoToTensorInfo(type, &shape));
      const std::vector<int64_t> dimensions = shape_of(shape);
      size_t elements = 1;
      for (const int64_t dimension : dimensions) {
        elements *= size_t(dimension);
      }
      zeros[i].resize(elements);
      inputs[i] = tensor_of(memory, zeros[i].data(), elements * sizeof(float), dimensions, ElementType::kFloat);
      results.push_back("present_" + names[i].substr(names[i].find('_') + 1));
    }
  }
  std::vector<const char*> input_names;
  std::vector<const char*> output_names;
  for (const std::string& name : names) {
    input_names.push_back(name.c_str());
  }
  for (const std::string& name : results) {
    output_names.push_back(name.c_str());
  }

  for (int i = 0; i < atoi(argv[2]); ++i) {
    const int64_t fed = int64_t(tokens.size()) - position;
    inputs[ids] = tensor_of(memory, &tokens[size_t(position)], size_t(fed) * sizeof(int64_t), {1, fed},
                            ElementType::kInt64);
    std::vector<Value*> outputs(results.size());
    check(api->Run(session, input_names.data(), inputs.data(), count, output_names.data(), outputs.size(),
                   outputs.data()));
    api->ReleaseValue(inputs[ids]);
    position += fed;
    tokens.push_back(likeliest(outputs[0]));
    api->ReleaseValue(outputs[0]);
    for (size_t input = 0, output = 1; output < outputs.size(); ++input) {
      if (!zeros[input].empty()) {
        api->ReleaseValue(inputs[input]);
        inputs[input] = outputs[output++];
      }
    }
  }
  for (const int64_t token : tokens) {
    printf("%lld ", static_cast<long long>(token));
  }
  printf("\n");
}
