// ops.h for AVX-512 F, BW, DQ and VL: one register of sixteen floats.
#if defined(__GNUC__) && !defined(__clang__) && __GNUC__ < 13
// The compiler's own header starts from a register it leaves undefined on purpose (GCC bug 105593, fixed in 13).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#endif
#include <immintrin.h>

#include "ops/ops.h"

#define EDGEKIT_ISA_NAME "avx512_vnni"
#include "ops/ops_body.h"
