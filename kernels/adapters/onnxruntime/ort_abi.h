// What this folder uses of ONNX Runtime's C interface, by position: the runtime's packages carry no headers.
//
// A runtime exports OrtGetApiBase(), or hands its result to RegisterCustomOps(). GetApi(version) gives a table of
// function pointers, or null if the runtime is older than `version`. A table only ever grows at its end, and neither
// positions nor signatures change, so a function is known by its number in it. The numbers below are the places of the
// members of `struct OrtApi` in onnxruntime_c_api.h, counted from 0; `struct OrtCustomOp` there has the layout of
// CustomOp. All of them are in version 17 (ONNX Runtime 1.17), where the last one, KernelContext_ParallelFor, came.
// They were compared with the header of 1.21 (Debian's libonnxruntime-dev) by offsetof, and run with 1.32.
//
// Names are those of the header, so that its documentation applies. A Status is null if all went well.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgekit::ort {

constexpr uint32_t kVersion = 17;
constexpr const char* kVersionText = "1.17";

struct CustomOpDomain;
struct Env;
struct KernelContext;
struct KernelInfo;
struct MemoryInfo;
struct Allocator;
struct Session;
struct SessionOptions;
struct Shape;  // OrtTensorTypeAndShapeInfo
struct Status;
struct TypeInfo;
struct Value;

enum class ErrorCode : int { kFail = 1, kInvalidArgument = 2, kNotImplemented = 9, kInvalidGraph = 10 };
enum class ElementType : int { kFloat = 1, kUint8 = 2, kInt64 = 7 };

class Api {
 public:
  explicit Api(const void* table) : table_(static_cast<const void* const*>(table)) {}

  Status* CreateStatus(ErrorCode code, const char* message) const {
    return at<Status*(ErrorCode, const char*)>(0)(code, message);
  }
  const char* GetErrorMessage(const Status* status) const { return at<const char*(const Status*)>(2)(status); }
  void ReleaseStatus(Status* status) const { at<void(Status*)>(93)(status); }

  // Of tensors.
  Status* GetTensorMutableData(Value* value, void** data) const {
    return at<Status*(Value*, void**)>(51)(value, data);
  }
  Status* GetDimensionsCount(const Shape* shape, size_t* count) const {
    return at<Status*(const Shape*, size_t*)>(61)(shape, count);
  }
  Status* GetDimensions(const Shape* shape, int64_t* dimensions, size_t count) const {
    return at<Status*(const Shape*, int64_t*, size_t)>(62)(shape, dimensions, count);
  }
  Status* GetTensorTypeAndShape(const Value* value, Shape** shape) const {
    return at<Status*(const Value*, Shape**)>(65)(value, shape);
  }
  void ReleaseTensorTypeAndShapeInfo(Shape* shape) const { at<void(Shape*)>(99)(shape); }

  // Of operators.
  Status* CreateCustomOpDomain(const char* name, CustomOpDomain** domain) const {
    return at<Status*(const char*, CustomOpDomain**)>(26)(name, domain);
  }
  Status* CustomOpDomain_Add(CustomOpDomain* domain, const struct CustomOp* op) const {
    return at<Status*(CustomOpDomain*, const CustomOp*)>(27)(domain, op);
  }
  Status* AddCustomOpDomain(SessionOptions* options, CustomOpDomain* domain) const {
    return at<Status*(SessionOptions*, CustomOpDomain*)>(28)(options, domain);
  }
  void ReleaseCustomOpDomain(CustomOpDomain* domain) const { at<void(CustomOpDomain*)>(101)(domain); }
  Status* HasSessionConfigEntry(const SessionOptions* options, const char* key, int* has) const {
    return at<Status*(const SessionOptions*, const char*, int*)>(237)(options, key, has);
  }
  Status* GetSessionConfigEntry(const SessionOptions* options, const char* key, char* text, size_t* bytes) const {
    return at<Status*(const SessionOptions*, const char*, char*, size_t*)>(238)(options, key, text, bytes);
  }
  Status* KernelInfoGetConstantInput_tensor(const KernelInfo* info, size_t index, int* is_constant,
                                            const Value** value) const {
    return at<Status*(const KernelInfo*, size_t, int*, const Value**)>(249)(info, index, is_constant, value);
  }
  Status* KernelInfoGetAttribute_int64(const KernelInfo* info, const char* name, int64_t* value) const {
    return at<Status*(const KernelInfo*, const char*, int64_t*)>(86)(info, name, value);
  }
  Status* KernelContext_GetInput(const KernelContext* context, size_t index, const Value** value) const {
    return at<Status*(const KernelContext*, size_t, const Value**)>(90)(context, index, value);
  }
  Status* KernelContext_GetOutput(KernelContext* context, size_t index, const int64_t* dimensions, size_t count,
                                  Value** value) const {
    return at<Status*(KernelContext*, size_t, const int64_t*, size_t, Value**)>(91)(context, index, dimensions, count,
                                                                                    value);
  }
  Status* KernelContext_ParallelFor(const KernelContext* context, void (*body)(void* argument, size_t i), size_t total,
                                    size_t batches, void* argument) const {
    return at<Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*)>(274)(
        context, body, total, batches, argument);
  }

  // Of programs that run a model.
  Status* CreateEnv(int log_level, const char* name, Env** env) const {
    return at<Status*(int, const char*, Env**)>(3)(log_level, name, env);
  }
  Status* CreateSession(const Env* env, const char* path, const SessionOptions* options, Session** session) const {
    return at<Status*(const Env*, const char*, const SessionOptions*, Session**)>(7)(env, path, options, session);
  }
  Status* Run(Session* session, const char* const* input_names, const Value* const* inputs, size_t input_count,
              const char* const* output_names, size_t output_count, Value** outputs) const {
    return at<Status*(Session*, const void*, const char* const*, const Value* const*, size_t, const char* const*,
                      size_t, Value**)>(9)(session, nullptr, input_names, inputs, input_count, output_names,
                                           output_count, outputs);
  }
  Status* SessionGetInputCount(const Session* session, size_t* count) const {
    return at<Status*(const Session*, size_t*)>(30)(session, count);
  }
  Status* SessionGetInputTypeInfo(const Session* session, size_t index, TypeInfo** info) const {
    return at<Status*(const Session*, size_t, TypeInfo**)>(33)(session, index, info);
  }
  Status* SessionGetInputName(const Session* session, size_t index, Allocator* allocator, char** name) const {
    return at<Status*(const Session*, size_t, Allocator*, char**)>(36)(session, index, allocator, name);
  }
  Status* CastTypeInfoToTensorInfo(const TypeInfo* info, const Shape** shape) const {
    return at<Status*(const TypeInfo*, const Shape**)>(55)(info, shape);
  }
  Status* GetAllocatorWithDefaultOptions(Allocator** allocator) const { return at<Status*(Allocator**)>(78)(allocator); }
  Status* CreateSessionOptions(SessionOptions** options) const { return at<Status*(SessionOptions**)>(10)(options); }
  Status* CreateTensorWithDataAsOrtValue(const MemoryInfo* memory, void* data, size_t bytes, const int64_t* dimensions,
                                         size_t count, ElementType type, Value** value) const {
    return at<Status*(const MemoryInfo*, void*, size_t, const int64_t*, size_t, ElementType, Value**)>(49)(
        memory, data, bytes, dimensions, count, type, value);
  }
  Status* CreateCpuMemoryInfo(int allocator, int memory_type, MemoryInfo** memory) const {
    return at<Status*(int, int, MemoryInfo**)>(69)(allocator, memory_type, memory);
  }
  void ReleaseEnv(Env* env) const { at<void(Env*)>(92)(env); }
  void ReleaseMemoryInfo(MemoryInfo* memory) const { at<void(MemoryInfo*)>(94)(memory); }
  void ReleaseSession(Session* session) const { at<void(Session*)>(95)(session); }
  void ReleaseValue(Value* value) const { at<void(Value*)>(96)(value); }
  void ReleaseSessionOptions(SessionOptions* options) const { at<void(SessionOptions*)>(100)(options); }
  Status* RegisterCustomOpsLibrary_V2(SessionOptions* options, const char* path) const {
    return at<Status*(SessionOptions*, const char*)>(228)(options, path);
  }

 private:
  template <typename Function>
  Function* at(size_t position) const {
    return reinterpret_cast<Function*>(const_cast<void*>(table_[position]));
  }

  const void* const* table_;
};

struct ApiBase {
  const void* (*GetApi)(uint32_t version);
  const char* (*GetVersionString)();
};

// An operator as the runtime asks for it. Null functions are left out where the header allows it.
struct CustomOp {
  uint32_t version = kVersion;
  void* (*CreateKernel)(const CustomOp*, const void* api, const KernelInfo*) = nullptr;
  const char* (*GetName)(const CustomOp*) = nullptr;
  const char* (*GetExecutionProviderType)(const CustomOp*) = nullptr;
  ElementType (*GetInputType)(const CustomOp*, size_t index) = nullptr;
  size_t (*GetInputTypeCount)(const CustomOp*) = nullptr;
  ElementType (*GetOutputType)(const CustomOp*, size_t index) = nullptr;
  size_t (*GetOutputTypeCount)(const CustomOp*) = nullptr;
  void (*KernelCompute)(void* kernel, KernelContext*) = nullptr;
  void (*KernelDestroy)(void* kernel) = nullptr;
  int (*GetInputCharacteristic)(const CustomOp*, size_t index) = nullptr;  // 0: required
  int (*GetOutputCharacteristic)(const CustomOp*, size_t index) = nullptr;
  int (*GetInputMemoryType)(const CustomOp*, size_t index) = nullptr;  // 0: the default
  int (*GetVariadicInputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicInputHomogeneity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputMinArity)(const CustomOp*) = nullptr;
  int (*GetVariadicOutputHomogeneity)(const CustomOp*) = nullptr;
  Status* (*CreateKernelV2)(const CustomOp*, const void* api, const KernelInfo*, void** kernel) = nullptr;
  Status* (*KernelComputeV2)(void* kernel, KernelContext*) = nullptr;
  Status* (*InferOutputShapeFn)(const CustomOp*, void* context) = nullptr;
  int (*GetStartVersion)(const CustomOp*) = nullptr;
  int (*GetEndVersion)(const CustomOp*) = nullptr;
  // Since version 18, which a CustomOp of version 17 does not claim to have; the space is there for safety.
  void* later[4] = {};
};
static_assert(sizeof(CustomOp) == 208 && offsetof(CustomOp, CreateKernelV2) == 136);

}  // namespace edgekit::ort
