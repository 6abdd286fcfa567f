#include "program/memory.h"

#include <stdlib.h>

namespace edgekit {
namespace {

constexpr size_t kLine = 64;

}  // namespace

bool Memory::allocate(uint64_t bytes) {
  if (bytes > SIZE_MAX - kLine) {
    return false;
  }
  raw_ = calloc(1, size_t(bytes) + kLine);
  if (raw_ == nullptr) {
    return false;
  }
  data_ = reinterpret_cast<uint8_t*>(round_up(reinterpret_cast<uintptr_t>(raw_), kLine));
  bytes_ = bytes;
  return true;
}

Memory::~Memory() { free(raw_); }

}  // namespace edgekit
