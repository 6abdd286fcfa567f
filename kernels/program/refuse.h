// Fills in the sentence of an edgekit_error and returns the status that goes with it.
#pragma once

#include "edgekit/status.h"

namespace edgekit {

[[gnu::format(printf, 3, 4)]] edgekit_status refuse(edgekit_error* error, edgekit_status status, const char* format,
                                                    ...);

}  // namespace edgekit
