#include "program/refuse.h"

#include <stdarg.h>
#include <stdio.h>

namespace edgekit {

edgekit_status refuse(edgekit_error* error, edgekit_status status, const char* format, ...) {
  if (error != nullptr) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(error->message, sizeof error->message, format, arguments);
    va_end(arguments);
  }
  return status;
}

}  // namespace edgekit
