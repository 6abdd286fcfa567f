// Zeroed memory that gives itself back, and sizes in it.
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgekit {

// The least multiple of `to` that is not below n.
inline size_t round_up(size_t n, size_t to) { return (n + to - 1) / to * to; }

// 64-byte aligned.
class Memory {
 public:
  Memory() = default;
  ~Memory();
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;
  bool allocate(uint64_t bytes);
  uint64_t bytes() const { return bytes_; }

  template <typename T>
  T* at(uint64_t byte_offset) const {
    return reinterpret_cast<T*>(data_ + byte_offset);
  }

 private:
  void* raw_ = nullptr;
  uint8_t* data_ = nullptr;
  uint64_t bytes_ = 0;
};

}  // namespace edgekit
