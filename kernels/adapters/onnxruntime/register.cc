// What ONNX Runtime calls when it loads the library: registers edgekit::Decoder with the options of a session.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <new>

#include "decoder.h"

namespace edgekit::ort {
namespace {

constexpr const char* kDomain = "edgekit";
constexpr const char* kThreadsKey = "edgekit.threads";  // a session's configuration entry; without it the plan advises

constexpr size_t kInputs = 4;  // the program, then three of int64

// The operator for sessions with one number of threads, and the domain that holds it. Sessions refer to both without
// saying for how long, so each is made once and stays.
struct Registered : CustomOp {
  uint32_t threads = 0;
  CustomOpDomain* domain = nullptr;
  Registered* next = nullptr;
};

pthread_mutex_t registering = PTHREAD_MUTEX_INITIALIZER;
Registered* first_registered = nullptr;

const char* name_of(const CustomOp*) { return "Decoder"; }
const char* provider_of(const CustomOp*) { return nullptr; }  // the CPU's
ElementType input_type(const CustomOp*, size_t i) { return i == 0 ? ElementType::kUint8 : ElementType::kInt64; }
size_t input_count(const CustomOp*) { return kInputs; }
ElementType output_type(const CustomOp*, size_t) { return ElementType::kFloat; }
size_t output_count(const CustomOp*) { return 1; }
int required_or_default(const CustomOp*, size_t) { return 0; }
int no_arity(const CustomOp*) { return 0; }

Status* create_kernel(const CustomOp* op, const void* api, const KernelInfo* info, void** kernel) {
  Decoder* decoder = nullptr;
  Status* status = Decoder::create(Api(api), info, static_cast<const Registered*>(op)->threads, &decoder);
  *kernel = decoder;
  return status;
}

Status* compute_kernel(void* kernel, KernelContext* context) {
  return static_cast<Decoder*>(kernel)->compute(context);
}

void destroy_kernel(void* kernel) { delete static_cast<Decoder*>(kernel); }

void describe(CustomOp* op) {
  op->GetName = name_of;
  op->GetExecutionProviderType = provider_of;
  op->GetInputType = input_type;
  op->GetInputTypeCount = input_count;
  op->GetOutputType = output_type;
  op->GetOutputTypeCount = output_count;
  op->GetInputCharacteristic = required_or_default;
  op->GetOutputCharacteristic = required_or_default;
  op->GetInputMemoryType = required_or_default;
  op->GetVariadicInputMinArity = no_arity;
  op->GetVariadicInputHomogeneity = no_arity;
  op->GetVariadicOutputMinArity = no_arity;
  op->GetVariadicOutputHomogeneity = no_arity;
  op->CreateKernelV2 = create_kernel;
  op->KernelComputeV2 = compute_kernel;
  op->KernelDestroy = destroy_kernel;
}

Status* read_threads(const Api& api, const SessionOptions* options, uint32_t* threads) {
  *threads = 0;
  int has = 0;
  Status* status = api.HasSessionConfigEntry(options, kThreadsKey, &has);
  if (status != nullptr || !has) {
    return status;
  }
  char text[8] = {};
  size_t bytes = sizeof text;
  status = api.GetSessionConfigEntry(options, kThreadsKey, text, &bytes);
  char* end = text;
  const unsigned long number = status == nullptr ? strtoul(text, &end, 10) : 0;
  if (status != nullptr || *end != '\0' || text[0] < '0' || text[0] > '9' || number > EDGEKIT_MOST_THREADS) {
    if (status != nullptr) {
      api.ReleaseStatus(status);  // the text does not fit
    }
    char message[128];
    snprintf(message, sizeof message, "the session's entry %s has to be a number from 0 (as planned) to %u", kThreadsKey,
             EDGEKIT_MOST_THREADS);
    return api.CreateStatus(ErrorCode::kInvalidArgument, message);
  }
  *threads = uint32_t(number);
  return nullptr;
}

// The operator for `threads`, made if it is the first of its kind.
Status* find_or_make(const Api& api, uint32_t threads, Registered** found) {
  for (*found = first_registered; *found != nullptr; *found = (*found)->next) {
    if ((*found)->threads == threads) {
      return nullptr;
    }
  }
  auto* made = new (std::nothrow) Registered();
  if (made == nullptr) {
    return api.CreateStatus(ErrorCode::kFail, "there is no memory for an operator");
  }
  describe(made);
  made->threads = threads;
  Status* status = api.CreateCustomOpDomain(kDomain, &made->domain);
  if (status == nullptr) {
    status = api.CustomOpDomain_Add(made->domain, made);
  }
  if (status != nullptr) {
    if (made->domain != nullptr) {
      api.ReleaseCustomOpDomain(made->domain);
    }
    delete made;
    return status;
  }
  made->next = first_registered;
  first_registered = *found = made;
  return nullptr;
}

Status* refuse_runtime(const ApiBase& base) {
  char message[160];
  snprintf(message, sizeof message, "edgekit::Decoder needs ONNX Runtime %s or later and this is %s", kVersionText,
           base.GetVersionString());
  return Api(base.GetApi(1)).CreateStatus(ErrorCode::kNotImplemented, message);
}

}  // namespace
}  // namespace edgekit::ort

using namespace edgekit::ort;

extern "C" __attribute__((visibility("default"))) Status* RegisterCustomOps(SessionOptions* options,
                                                                            const ApiBase* base) {
  const void* table = base->GetApi(kVersion);
  if (table == nullptr) {
    return refuse_runtime(*base);
  }
  const Api api(table);
  uint32_t threads = 0;
  if (Status* status = read_threads(api, options, &threads)) {
    return status;
  }
  pthread_mutex_lock(&registering);
  Registered* registered = nullptr;
  Status* status = find_or_make(api, threads, &registered);
  pthread_mutex_unlock(&registering);
  return status == nullptr ? api.AddCustomOpDomain(options, registered->domain) : status;
}
