// How fast this machine reads memory: what no product can exceed whose weights come from there.
#pragma once

#include <stddef.h>

namespace edgekit {

// Bytes a second that `threads` threads read together, each its own share of a block of `bytes`, which should be far
// larger than the caches: the median of `rounds` passes in that pattern of cpu/read_memory.h which is the fastest. (Not
// the best pass: what is compared with it is a median, too.) 0 if the memory or the threads cannot be had.
double measure_read_ceiling(size_t threads, size_t bytes, size_t rounds);

}  // namespace edgekit
