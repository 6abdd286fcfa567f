// Text to ids and back, equal to the `tokenizers` package for what edgekit/tokenizer.py packs. No I/O, no globals.
//
// The packed section is used in place and must outlive the Tokenizer. Bytes that are not UTF-8 encode as if each
// longest wrong start of a character were U+FFFD (what `bytes.decode("utf-8", "replace")` gives).
#pragma once

#include <stddef.h>
#include <stdint.h>

#include <string>
#include <string_view>
#include <vector>

#include "edgekit/status.h"
#include "tokenizer/format.h"
#include "tokenizer/merge.h"

namespace edgekit::tokenizer {

constexpr size_t kMaxTextBytes = size_t{1} << 28;

class Tokenizer {
 public:
  // Checks every count, offset and id of the section. `section` must be 4-byte aligned.
  edgekit_status open(const uint8_t* section, size_t bytes, edgekit_error* error);

  // Appends the ids of `text`. `with_template` adds what the post-processor puts around a text (the start of text, say).
  // Added tokens in the text are recognized, special ones too. EDGEKIT_BAD_ARGUMENT above kMaxTextBytes.
  edgekit_status encode(std::string_view text, bool with_template, std::vector<uint32_t>* ids,
                        edgekit_error* error) const;

  // How many ids the template puts after a text.
  size_t ids_after_text() const { return header_->after.count; }

  uint32_t vocab() const { return header_->vocab; }
  bool is_special(uint32_t id) const { return id < vocab() && (attributes_[id] & format::kSpecial); }

 private:
  friend class Decoder;
  class Encoding;

  struct AddedTokens {
    const format::Added* entries = nullptr;
    uint32_t count = 0;
  };

  std::string_view token(uint32_t id) const;
  std::string_view added_text(const format::Added& added) const;
  const format::Added* longest_added(const AddedTokens& group, std::string_view text) const;
  uint32_t find_string(std::string_view word) const;
  uint32_t find_character(uint32_t code) const;

  const format::Header* header_ = nullptr;
  const uint32_t* token_ends_ = nullptr;
  const char* token_bytes_ = nullptr;
  const uint16_t* attributes_ = nullptr;
  const uint32_t* byte_ids_ = nullptr;
  const format::Character* characters_ = nullptr;
  const uint32_t* strings_ = nullptr;
  const char* added_text_ = nullptr;
  const uint32_t* normalizers_ = nullptr;
  const format::Step* steps_ = nullptr;
  const uint32_t* before_ = nullptr;
  const uint32_t* after_ = nullptr;
  Merges merges_;
  AddedTokens raw_added_, normalized_added_;
  bool added_starts_[256] = {};  // bytes that some added token starts with
};

// Ids to text, one id at a time. What it returns is always valid UTF-8 when the tokens are.
class Decoder {
 public:
  enum class Pace {
    kStream,  // text as soon as its characters are whole
    kExact,   // text equal to what `Tokenizer.decode` gives, at the price of waiting for the end of a run of byte tokens
  };

  explicit Decoder(const Tokenizer& tokenizer, Pace pace = Pace::kStream, bool skip_special = false)
      : tokenizer_(&tokenizer), pace_(pace), skip_special_(skip_special) {}

  // The text that `id` completes; empty while a character is incomplete. An id without a token gives nothing.
  std::string push(uint32_t id);
  // The rest: U+FFFD for a character that stayed incomplete. The decoder is then as new.
  std::string finish();

 private:
  void take_bytes(std::string* text);
  void take_byte_run(bool at_end, std::string* text);
  void strip(std::string* text);

  const Tokenizer* tokenizer_;
  Pace pace_;
  bool skip_special_;
  bool is_first_ = true;    // no token yet
  bool run_broken_ = false;  // a byte token of this run was wrong
  uint32_t stripped_ = 0;   // characters of the start looked at for spaces to strip
  std::string pending_;     // bytes not yet decided
};

}  // namespace edgekit::tokenizer
