// What every call across the C ABI returns. The library never prints, throws or aborts.
#pragma once

#ifdef __cplusplus
extern "C" {
#endif

typedef enum edgekit_status {
  EDGEKIT_OK = 0,
  EDGEKIT_DAMAGED = 1,      // the file is truncated, altered, or contradicts itself
  EDGEKIT_UNSUPPORTED = 2,  // a version, operator or scheme that this build does not know
  EDGEKIT_NO_MEMORY = 3,
  EDGEKIT_BAD_ARGUMENT = 4,
  EDGEKIT_IO = 5,
} edgekit_status;

// A sentence for the person, filled in whenever a call does not return EDGEKIT_OK.
typedef struct edgekit_error {
  char message[256];
} edgekit_error;

#ifdef __cplusplus
}
#endif
