// ops.h for ARMv8.0: four registers of four floats.
#include <arm_neon.h>

#include "ops/ops.h"

#define EDGEKIT_ISA_NAME "neon"
#include "ops/ops_body.h"
