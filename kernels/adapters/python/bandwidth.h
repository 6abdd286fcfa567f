// How fast this machine reads memory.
#pragma once

#include <stddef.h>

namespace edgekit::python {

// Bytes a second that `threads` threads read together from a block of `bytes` bytes, far larger than the caches: the
// best of `rounds` passes. 0 if the memory cannot be had. Takes about bytes * (rounds + 1) / bandwidth seconds.
double read_bandwidth(size_t threads, size_t bytes, size_t rounds);

}  // namespace edgekit::python
