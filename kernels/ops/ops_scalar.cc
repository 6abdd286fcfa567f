// ops.h without vector registers: runs anywhere, and is what the others are compared with.
#include "ops/ops.h"

#define EDGEKIT_LANES_SCALAR
#define EDGEKIT_ISA_NAME "scalar"
#include "ops/ops_body.h"
