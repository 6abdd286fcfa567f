// Where the pieces of a text end, for each pre-tokenizer pattern. Linear in the length of the text.
#pragma once

#include <stddef.h>

#include <string_view>

#include "tokenizer/format.h"

namespace edgekit::tokenizer {

// The end of the piece that starts at `start`: a match of the pattern, or all that lies before the next match.
// Requires valid UTF-8 and start < text.size().
size_t piece_end(format::Pattern pattern, std::string_view text, size_t start);

// The same for the Digits pre-tokenizer: a digit (or a run of them unless `individual`), or a run of anything else.
size_t digits_end(bool individual, std::string_view text, size_t start);

// The same for pieces that start at each U+2581.
size_t marker_end(std::string_view text, size_t start);

}  // namespace edgekit::tokenizer
