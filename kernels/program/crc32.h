// CRC-32 as zlib computes it (polynomial 0xedb88320, reflected).
#pragma once

#include <stddef.h>
#include <stdint.h>

namespace edgekit {

uint32_t crc32(const uint8_t* data, size_t bytes);

}  // namespace edgekit
