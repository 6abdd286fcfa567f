// Time that never goes backwards.
#pragma once

#include <chrono>

namespace edgekit::runner {

inline double seconds_now() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

}  // namespace edgekit::runner
