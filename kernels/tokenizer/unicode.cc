#include "tokenizer/unicode.h"

#include <algorithm>
#include <array>
#include <iterator>
#include <vector>

#include "unicode_tables.h"

namespace edgekit::tokenizer {
namespace {

constexpr uint32_t kHangulSyllables = 0xAC00, kHangulLead = 0x1100, kHangulVowel = 0x1161, kHangulTail = 0x11A7;
constexpr uint32_t kLeads = 19, kVowels = 21, kTails = 28, kSyllables = kLeads * kVowels * kTails;

constexpr uint8_t look_up_properties(uint32_t code) {
  const auto* above = std::upper_bound(std::begin(tables::kProperties), std::end(tables::kProperties), code << 8 | 0xff);
  return static_cast<uint8_t>(above[-1]);
}

constexpr std::array<uint8_t, 128> kAscii = [] {
  std::array<uint8_t, 128> all{};
  for (uint32_t code = 0; code < all.size(); ++code) all[code] = look_up_properties(code);
  return all;
}();

uint8_t combining_class(uint32_t code) {
  if (code < 0x300) return 0;
  const auto* found = std::lower_bound(std::begin(tables::kCombining), std::end(tables::kCombining), code << 8);
  return found != std::end(tables::kCombining) && *found >> 8 == code ? static_cast<uint8_t>(*found) : 0;
}

// The code point both compose to, or 0.
uint32_t compose(uint32_t first, uint32_t second) {
  if (first - kHangulLead < kLeads && second - kHangulVowel < kVowels) {
    return kHangulSyllables + ((first - kHangulLead) * kVowels + (second - kHangulVowel)) * kTails;
  }
  const uint32_t syllable = first - kHangulSyllables;
  if (syllable < kSyllables && syllable % kTails == 0 && second > kHangulTail && second < kHangulTail + kTails) {
    return first + (second - kHangulTail);
  }
  const auto [low, high] = std::equal_range(std::begin(tables::kFirst), std::end(tables::kFirst), first);
  const auto* seconds = tables::kSecond + (low - tables::kFirst);
  const auto* seconds_end = tables::kSecond + (high - tables::kFirst);
  const auto* found = std::lower_bound(seconds, seconds_end, second);
  return found != seconds_end && *found == second ? tables::kComposed[found - tables::kSecond] : 0;
}

struct Mark {
  uint32_t code;
  uint8_t combining_class;
};

void decompose(uint32_t code, std::vector<Mark>* out) {
  const uint32_t syllable = code - kHangulSyllables;
  if (syllable < kSyllables) {
    out->push_back({kHangulLead + syllable / (kVowels * kTails), 0});
    out->push_back({kHangulVowel + syllable / kTails % kVowels, 0});
    if (syllable % kTails != 0) out->push_back({kHangulTail + syllable % kTails, 0});
    return;
  }
  const auto* found = std::lower_bound(std::begin(tables::kDecomposable), std::end(tables::kDecomposable), code);
  if (found == std::end(tables::kDecomposable) || *found != code) {
    out->push_back({code, combining_class(code)});
    return;
  }
  const uint32_t where = tables::kDecomposition[found - tables::kDecomposable];
  for (uint32_t i = 0; i < (where & 7); ++i) {
    const uint32_t part = tables::kDecomposed[(where >> 3) + i];
    out->push_back({part, combining_class(part)});
  }
}

}  // namespace

uint8_t properties(uint32_t code) { return code < kAscii.size() ? kAscii[code] : look_up_properties(code); }

Character read(std::string_view text, size_t at) {
  const auto byte = [&](size_t i) { return static_cast<uint32_t>(static_cast<uint8_t>(text[at + i])); };
  const uint32_t first = byte(0);
  if (first < 0x80) return {first, 1};
  if (first < 0xE0) return {(first & 0x1F) << 6 | (byte(1) & 0x3F), 2};
  if (first < 0xF0) return {(first & 0x0F) << 12 | (byte(1) & 0x3F) << 6 | (byte(2) & 0x3F), 3};
  return {(first & 0x07) << 18 | (byte(1) & 0x3F) << 12 | (byte(2) & 0x3F) << 6 | (byte(3) & 0x3F), 4};
}

size_t before(std::string_view text, size_t at) {
  do {
    --at;
  } while ((static_cast<uint8_t>(text[at]) & 0xC0) == 0x80);
  return at;
}

void append(uint32_t code, std::string* text) {
  const auto put = [&](uint32_t byte) { text->push_back(static_cast<char>(byte)); };
  if (code < 0x80) {
    put(code);
  } else if (code < 0x800) {
    put(0xC0 | code >> 6);
    put(0x80 | (code & 0x3F));
  } else if (code < 0x10000) {
    put(0xE0 | code >> 12);
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  } else {
    put(0xF0 | code >> 18);
    put(0x80 | (code >> 12 & 0x3F));
    put(0x80 | (code >> 6 & 0x3F));
    put(0x80 | (code & 0x3F));
  }
}

Utf8Step step(std::string_view text) {
  const auto first = static_cast<uint8_t>(text[0]);
  if (first < 0x80) return {1, true, false};
  if (first < 0xC2 || first > 0xF4) return {1, false, false};
  const uint32_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
  // The second byte alone tells overlong forms, surrogates and what lies above U+10FFFF.
  const uint8_t low = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
  const uint8_t high = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
  for (uint32_t i = 1; i < length; ++i) {
    if (i == text.size()) return {i, false, true};
    const auto next = static_cast<uint8_t>(text[i]);
    if (next < (i == 1 ? low : 0x80) || next > (i == 1 ? high : 0xBF)) return {i, false, false};
  }
  return {length, true, false};
}

bool is_utf8(std::string_view text) {
  for (size_t at = 0; at < text.size();) {
    const Utf8Step next = step(text.substr(at));
    if (!next.valid) return false;
    at += next.bytes;
  }
  return true;
}

std::string repaired(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Utf8Step next = step(text.substr(at));
    if (next.valid) {
      out.append(text, at, next.bytes);
    } else {
      append(0xFFFD, &out);
    }
    at += next.bytes;
  }
  return out;
}

std::string nfc(std::string_view text) {
  // Nothing below U+0300 decomposes and recomposes to anything else.
  const auto is_low = [](char byte) { return static_cast<uint8_t>(byte) < 0xCC; };
  if (std::all_of(text.begin(), text.end(), is_low)) return std::string(text);

  std::vector<Mark> marks;
  marks.reserve(text.size());
  for (size_t at = 0; at < text.size();) {
    const Character next = read(text, at);
    decompose(next.code, &marks);
    at += next.bytes;
  }
  std::string out;
  out.reserve(text.size());
  const auto by_class = [](const Mark& a, const Mark& b) { return a.combining_class < b.combining_class; };
  for (size_t start = 0; start < marks.size();) {
    // A run is a starter with the marks on it; the first one may lack its starter.
    size_t end = start + 1;
    while (end < marks.size() && marks[end].combining_class != 0) ++end;
    const bool has_starter = marks[start].combining_class == 0;
    std::stable_sort(marks.begin() + static_cast<ptrdiff_t>(start + (has_starter ? 1 : 0)),
                     marks.begin() + static_cast<ptrdiff_t>(end), by_class);
    start = end;
  }
  // Composition joins a mark, or the next starter, to the last starter unless an equal or higher class lies between.
  constexpr size_t kNoStarter = SIZE_MAX;
  size_t starter = kNoStarter, kept = 0;
  int last_class = -1;  // of the marks kept since the starter
  for (size_t i = 0; i < marks.size(); ++i) {
    const Mark mark = marks[i];
    if (starter != kNoStarter && last_class < static_cast<int>(mark.combining_class)) {
      if (const uint32_t joined = compose(marks[starter].code, mark.code)) {
        marks[starter].code = joined;
        continue;
      }
    }
    if (mark.combining_class == 0) {
      starter = kept;
      last_class = -1;
    } else {
      last_class = mark.combining_class;
    }
    marks[kept++] = mark;
  }
  for (size_t i = 0; i < kept; ++i) append(marks[i].code, &out);
  return out;
}

}  // namespace edgekit::tokenizer
