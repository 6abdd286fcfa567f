// Programs and sessions that close themselves, for tests.
#pragma once

#include <cstdlib>
#include <cstring>
#include <memory>

#include "check.h"
#include "edgekit/program.h"

namespace edgekit::testing {

struct Freed {
  void operator()(uint8_t* data) const { std::free(data); }
  void operator()(edgekit_program* program) const { edgekit_program_close(program); }
  void operator()(edgekit_session* session) const { edgekit_session_free(session); }
};

using Bytes = std::unique_ptr<uint8_t, Freed>;
using Program = std::unique_ptr<edgekit_program, Freed>;
using Session = std::unique_ptr<edgekit_session, Freed>;

// A copy that starts at a multiple of 64 bytes and ends where the data ends, so that the sanitizer sees a read past it.
inline Bytes aligned(const uint8_t* data, size_t bytes) {
  void* memory = nullptr;
  if (posix_memalign(&memory, 64, bytes > 0 ? bytes : 1) != 0) std::abort();
  std::memcpy(memory, data, bytes);
  return Bytes(static_cast<uint8_t*>(memory));
}

inline Program open(const Bytes& data, size_t bytes) {
  edgekit_program* program = nullptr;
  edgekit_error error{};
  const edgekit_status status = edgekit_program_open(data.get(), bytes, &program, &error);
  CHECK_THAT(status == EDGEKIT_OK, "%s", error.message);
  return Program(program);
}

inline Session start(const Program& program, uint32_t threads, uint32_t context = 0,
                     edgekit_kv_format kv = EDGEKIT_KV_AS_PLANNED, edgekit_executor executor = {}) {
  const edgekit_session_options options = {context, threads, threads, 5, 0, kv, executor};
  edgekit_session* session = nullptr;
  edgekit_error error{};
  const edgekit_status status = edgekit_session_create(program.get(), &options, &session, &error);
  CHECK_THAT(status == EDGEKIT_OK, "%s", error.message);
  return Session(session);
}

}  // namespace edgekit::testing
