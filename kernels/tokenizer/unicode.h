// Characters: reading them from UTF-8, the properties the scanners ask for, and canonical composition (NFC).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <string_view>

namespace edgekit::tokenizer {

// Each as the `tokenizers` package sees it: its parts follow different versions of Unicode.
enum Property : uint8_t {
  kLetter = 1,         // \p{L}
  kNumber = 2,         // \p{N}
  kSpace = 4,          // \s
  kUpperSide = 8,      // \p{Lu} \p{Lt} \p{Lm} \p{Lo} \p{M}: may open a word that continues in lower case
  kLowerSide = 16,     // \p{Ll} \p{Lm} \p{Lo} \p{M}
  kNumeric = 32,       // isolated by the Digits pre-tokenizer
  kWord = 64,          // \w: what an added token marked single_word must not touch
  kPunctuation = 128,  // \p{P}
};

uint8_t properties(uint32_t code);

struct Character {
  uint32_t code;
  uint32_t bytes;  // 1 to 4
};

// The character at `at`, which must be the start of one in valid UTF-8.
Character read(std::string_view text, size_t at);

// The start of the character that ends before `at`, which must not be 0.
size_t before(std::string_view text, size_t at);

void append(uint32_t code, std::string* text);

// What a decoder of UTF-8 does at the start of `text`.
struct Utf8Step {
  uint32_t bytes;   // looked at: a whole character, or the longest start of one that is followed by something wrong
  bool valid;       // a whole character
  bool incomplete;  // the text ends inside a character that so far is right
};
Utf8Step step(std::string_view text);

bool is_utf8(std::string_view text);

// The text with U+FFFD for every longest wrong start of a character, as `bytes.decode("utf-8", "replace")` gives it.
std::string repaired(std::string_view text);

// Valid UTF-8 in canonical composition.
std::string nfc(std::string_view text);

}  // namespace edgekit::tokenizer
