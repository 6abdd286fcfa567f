// Memory whose first byte past the end faults, and whose end is the end of what was asked for.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>

namespace edgekit::testing {

// `count` values that end at a page that must not be touched, filled with zeros. T's size divides a page.
template <class T>
class Guarded {
 public:
  explicit Guarded(size_t count) : count_(count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE));
    const size_t pages = (count * sizeof(T) + page - 1) / page;
    bytes_ = (pages + 1) * page;
    base_ = static_cast<char*>(mmap(nullptr, bytes_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    if (base_ == MAP_FAILED || mprotect(base_ + pages * page, page, PROT_NONE) != 0) std::abort();
    data_ = reinterpret_cast<T*>(base_ + pages * page - count * sizeof(T));
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, bytes_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t size() const { return count_; }
  T& operator[](size_t i) { return data_[i]; }
  const T& operator[](size_t i) const { return data_[i]; }

 private:
  char* base_;
  size_t bytes_;
  T* data_;
  size_t count_;
};

}  // namespace edgekit::testing
