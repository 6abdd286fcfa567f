#include "failure.h"

#include <signal.h>

namespace edgekit::runner {
namespace {

volatile sig_atomic_t interrupted = 0;

}  // namespace

void interrupt() { interrupted = 1; }

void stop_if_interrupted() {
  if (interrupted != 0) {
    interrupted = 0;
    throw Failure{kInterrupted, "interrupted", ""};
  }
}

void fail(edgekit_status status, const edgekit_error& error, const std::string& file) {
  switch (status) {
    case EDGEKIT_DAMAGED:
      throw Failure{kDamaged, error.message, "'" + file + "' is not as it was written: copy it again"};
    case EDGEKIT_UNSUPPORTED:
      throw Failure{kUnsupported, error.message, "use the edgekit-run of the same bundle as '" + file + "'"};
    case EDGEKIT_NO_MEMORY:
      throw Failure{kDoesNotFit, error.message, "a smaller --context takes less memory"};
    case EDGEKIT_BAD_ARGUMENT:
      throw Failure{kUsage, error.message, ""};
    default:
      throw Failure{kInternal, error.message, ""};
  }
}

}  // namespace edgekit::runner
