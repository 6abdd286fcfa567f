// ops.h for AVX2 with FMA and F16C: two registers of eight floats.
#include <immintrin.h>

#include "ops/ops.h"

#define EDGEKIT_ISA_NAME "avx2"
#include "ops/ops_body.h"
