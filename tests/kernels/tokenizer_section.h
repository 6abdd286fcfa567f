// Builds tokenizer sections by hand, from kernels/tokenizer/format.h alone, for tests.
#pragma once

#include <cstring>
#include <string>
#include <vector>

#include "tokenizer/format.h"

namespace edgekit::testing {

namespace format = tokenizer::format;

struct SectionParts {
  uint32_t flags = format::kByteLevel;
  uint32_t unknown = format::kNone;
  format::DecoderKind decoder = format::DecoderKind::kBytes;
  uint32_t strip_left = 0;
  uint32_t raw_added = 0;
  std::vector<std::string> tokens;
  std::vector<uint16_t> attributes;  // zeros where missing
  std::vector<uint32_t> byte_ids = std::vector<uint32_t>(256, format::kNone);
  std::vector<format::Character> characters;
  std::vector<uint32_t> strings;
  std::vector<std::vector<format::Merge>> merges;  // of each left id
  std::vector<format::Added> added;                // text offsets are filled in
  std::vector<std::string> added_texts;
  std::vector<format::NormalizerKind> normalizers;
  std::vector<format::Step> steps;
  std::vector<uint32_t> before, after;
};

// 4-byte aligned, of exactly the section's size so that a sanitizer sees the first byte past it.
class Section {
 public:
  explicit Section(SectionParts parts) {
    bytes_.resize(sizeof(format::Header));
    format::Header header{};
    header.magic = format::kMagic;
    header.version = format::kVersion;
    header.flags = parts.flags;
    header.vocab = static_cast<uint32_t>(parts.tokens.size());
    header.unknown = parts.unknown;
    header.decoder = static_cast<uint32_t>(parts.decoder);
    header.strip_left = parts.strip_left;
    header.raw_added = parts.raw_added;
    parts.attributes.resize(parts.tokens.size());
    parts.merges.resize(parts.tokens.size());
    std::string text, added_text;
    std::vector<uint32_t> ends, merge_ends;
    for (const std::string& token : parts.tokens) ends.push_back(static_cast<uint32_t>((text += token).size()));
    std::vector<format::Merge> merges;
    for (const auto& of_left : parts.merges) {
      merges.insert(merges.end(), of_left.begin(), of_left.end());
      merge_ends.push_back(static_cast<uint32_t>(merges.size()));
    }
    for (size_t i = 0; i < parts.added.size(); ++i) {
      parts.added[i].text_offset = static_cast<uint32_t>(added_text.size());
      parts.added[i].text_bytes = static_cast<uint32_t>(parts.added_texts[i].size());
      added_text += parts.added_texts[i];
    }
    header.token_ends = put(ends);
    header.token_bytes = put(std::vector<char>(text.begin(), text.end()));
    header.attributes = put(parts.attributes);
    header.byte_ids = put(parts.byte_ids);
    header.characters = put(parts.characters);
    header.strings = put(parts.strings);
    header.merge_ends = put(merge_ends);
    header.merges = put(merges);
    header.added = put(parts.added);
    header.added_text = put(std::vector<char>(added_text.begin(), added_text.end()));
    header.normalizers = put(parts.normalizers);
    header.steps = put(parts.steps);
    header.before = put(parts.before);
    header.after = put(parts.after);
    header.bytes = static_cast<uint32_t>(bytes_.size());
    memcpy(bytes_.data(), &header, sizeof header);
  }

  uint8_t* data() { return bytes_.data(); }
  size_t size() const { return bytes_.size(); }
  format::Header& header() { return *reinterpret_cast<format::Header*>(bytes_.data()); }

 private:
  template <typename T>
  format::Span put(const std::vector<T>& items) {
    const format::Span span{static_cast<uint32_t>(bytes_.size()), static_cast<uint32_t>(items.size())};
    const size_t size = items.size() * sizeof(T);
    bytes_.resize(bytes_.size() + (size + 3) / 4 * 4);
    if (size > 0) memcpy(bytes_.data() + span.offset, items.data(), size);
    return span;
  }

  std::vector<uint8_t> bytes_;
};

}  // namespace edgekit::testing
