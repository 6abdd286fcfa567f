// Scanners written by hand for a known list of regular expressions. Each comment gives the expression; each branch
// follows one alternative, in order. The first five match at every position, so that a piece is a match.
#include "tokenizer/split.h"

#include "tokenizer/unicode.h"

namespace edgekit::tokenizer {
namespace {

using format::Pattern;

constexpr size_t kNoMatch = SIZE_MAX;
constexpr uint32_t kLongS = 0x17F;  // (?i:s) matches it

bool is_letter(uint8_t p) { return p & kLetter; }
bool is_number(uint8_t p) { return p & kNumber; }
bool is_space(uint8_t p) { return p & kSpace; }
bool is_other(uint8_t p) { return !(p & (kLetter | kNumber | kSpace)); }
bool is_punctuation(uint8_t p) { return p & kPunctuation; }
bool is_upper_side(uint8_t p) { return p & kUpperSide; }
bool is_lower_side(uint8_t p) { return p & kLowerSide; }

// The end of the run of characters with `belongs` from `at` on; at most `most` of them.
template <typename Belongs>
size_t run_end(std::string_view text, size_t at, Belongs belongs, size_t most = SIZE_MAX) {
  for (; at < text.size() && most > 0; --most) {
    const Character next = read(text, at);
    if (!belongs(properties(next.code))) break;
    at += next.bytes;
  }
  return at;
}

bool is_at(std::string_view text, size_t at, bool (*belongs)(uint8_t)) {
  return at < text.size() && belongs(properties(read(text, at).code));
}

char lower(char letter) { return letter >= 'A' && letter <= 'Z' ? static_cast<char>(letter + 32) : letter; }

// 's|'t|'re|'ve|'m|'ll|'d, or the same within (?i:...).
size_t contraction_end(std::string_view text, size_t at, bool any_case) {
  if (at + 1 >= text.size() || text[at] != '\'') return kNoMatch;
  const auto letter = [&](size_t i) {
    return i >= text.size() ? '\0' : any_case ? lower(text[i]) : text[i];
  };
  const char first = letter(at + 1), second = letter(at + 2);
  if (first == 's' || first == 't' || first == 'm' || first == 'd') return at + 2;
  if ((first == 'r' || first == 'v') && second == 'e') return at + 3;
  if (first == 'l' && second == 'l') return at + 3;
  if (any_case && read(text, at + 1).code == kLongS) return at + 3;
  return kNoMatch;
}

// \s+(?!\S)|\s+ where a space character is: all of a run that ends the text, else all but its last character.
size_t space_end(std::string_view text, size_t start) {
  const size_t end = run_end(text, start, is_space);
  if (end == text.size()) return end;
  const size_t last = before(text, end);
  return last == start ? end : last;
}

// \s*[\r\n]+ first.
size_t space_or_lines_end(std::string_view text, size_t start) {
  const size_t end = run_end(text, start, is_space);
  const size_t line = text.substr(start, end - start).find_last_of("\r\n");
  return line != std::string_view::npos ? start + line + 1 : space_end(text, start);
}

// 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+
size_t gpt2_end(std::string_view text, size_t start) {
  if (const size_t end = contraction_end(text, start, false); end != kNoMatch) return end;
  const size_t word = text[start] == ' ' ? start + 1 : start;
  if (is_at(text, word, is_letter)) return run_end(text, word, is_letter);
  if (is_at(text, word, is_number)) return run_end(text, word, is_number);
  if (is_at(text, word, is_other)) return run_end(text, word, is_other);
  return space_end(text, start);
}

// [^\r\n\p{L}\p{N}]?
bool is_prefix(Character first) {
  return first.code != '\r' && first.code != '\n' && !(properties(first.code) & (kLetter | kNumber));
}

// [^\r\n\p{L}\p{N}]?\p{L}+
size_t word_end(std::string_view text, size_t start) {
  const Character first = read(text, start);
  const size_t word = is_prefix(first) ? start + first.bytes : start;
  return is_at(text, word, is_letter) ? run_end(text, word, is_letter) : kNoMatch;
}

// U*D+ with U = [\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}], D = [\p{Ll}\p{Lm}\p{Lo}\p{M}]
size_t capitalized_end(std::string_view text, size_t start) {
  size_t at = start, shared_end = kNoMatch;  // of the last character that is in both classes
  while (at < text.size()) {
    const Character next = read(text, at);
    const uint8_t p = properties(next.code);
    if (!is_upper_side(p)) break;
    at += next.bytes;
    if (is_lower_side(p)) shared_end = at;
  }
  // Without a D behind it, U* gives back characters until D+ finds one that is in both.
  return is_at(text, at, is_lower_side) ? run_end(text, at, is_lower_side) : shared_end;
}

// U+D*
size_t upper_end(std::string_view text, size_t start) {
  if (!is_at(text, start, is_upper_side)) return kNoMatch;
  return run_end(text, run_end(text, start, is_upper_side), is_lower_side);
}

// [^\r\n\p{L}\p{N}]?U*D+|[^\r\n\p{L}\p{N}]?U+D*
size_t cased_word_end(std::string_view text, size_t start) {
  const Character first = read(text, start);
  for (const auto end_of : {capitalized_end, upper_end}) {
    if (is_prefix(first)) {
      if (const size_t end = end_of(text, start + first.bytes); end != kNoMatch) return end;
    }
    if (const size_t end = end_of(text, start); end != kNoMatch) return end;
  }
  return kNoMatch;
}

// What the alternatives of the newer patterns differ in.
struct Modern {
  bool contractions;         // (?i:'s|'t|'re|'ve|'m|'ll|'d) as the first alternative
  bool cased;                // words change from capitals to small letters only once
  bool contracted_words;     // (?i:'s|'t|'re|'ve|'m|'ll|'d)? after a cased word
  uint32_t digits;           // \p{N}{1,digits}
  std::string_view closers;  // what may follow other characters: [\r\n]* or [\r\n/]*
};

// contractions | word | \p{N}{1,digits} | ?[^\s\p{L}\p{N}]+closers* | \s*[\r\n]+ | \s+(?!\S) | \s+
size_t modern_end(const Modern& pattern, std::string_view text, size_t start) {
  if (pattern.contractions) {
    if (const size_t end = contraction_end(text, start, true); end != kNoMatch) return end;
  }
  if (const size_t end = pattern.cased ? cased_word_end(text, start) : word_end(text, start); end != kNoMatch) {
    const size_t contracted = pattern.contracted_words ? contraction_end(text, end, true) : kNoMatch;
    return contracted != kNoMatch ? contracted : end;
  }
  if (is_at(text, start, is_number)) return run_end(text, start, is_number, pattern.digits);
  const size_t other = text[start] == ' ' ? start + 1 : start;
  if (is_at(text, other, is_other)) {
    const size_t end = text.find_first_not_of(pattern.closers, run_end(text, other, is_other));
    return end == std::string_view::npos ? text.size() : end;
  }
  return space_or_lines_end(text, start);
}

// A match of up to `most` characters with `belongs`, or what lies before one.
template <typename Belongs>
size_t class_end(std::string_view text, size_t start, Belongs belongs, size_t most) {
  const size_t end = run_end(text, start, belongs, most);
  return end != start ? end : run_end(text, start, [&](uint8_t p) { return !belongs(p); });
}

// \s?C+ or what lies before it.
template <typename Belongs>
size_t spaced_end(std::string_view text, size_t start, Belongs belongs) {
  const Character first = read(text, start);
  const size_t word = is_space(properties(first.code)) ? start + first.bytes : start;
  if (const size_t end = run_end(text, word, belongs); end != word) return end;
  const size_t end = run_end(text, start, [&](uint8_t p) { return !belongs(p); });
  if (end == text.size()) return end;
  const size_t last = before(text, end);  // not the first character: with it, the match would begin at `start`
  return is_space(properties(read(text, last).code)) ? last : end;
}

// [\u4E00-\u9FA5\u0800-\u4E00\uAC00-\uD7FF]+ or what lies before it.
size_t cjk_end(std::string_view text, size_t start) {
  const auto is_cjk = [](uint32_t code) { return (code >= 0x800 && code <= 0x9FA5) || (code >= 0xAC00 && code <= 0xD7FF); };
  const bool is_match = is_cjk(read(text, start).code);
  while (start < text.size()) {
    const Character next = read(text, start);
    if (is_cjk(next.code) != is_match) break;
    start += next.bytes;
  }
  return start;
}

// A match of one of `bytes`, or of a run of them, or what lies before it.
size_t bytes_end(std::string_view text, size_t start, std::string_view bytes, bool alone) {
  if (bytes.find(text[start]) == std::string_view::npos) {
    const size_t end = text.find_first_of(bytes, start);
    return end == std::string_view::npos ? text.size() : end;
  }
  if (alone) return start + 1;
  const size_t end = text.find_first_not_of(bytes, start);
  return end == std::string_view::npos ? text.size() : end;
}

}  // namespace

size_t piece_end(Pattern pattern, std::string_view text, size_t start) {
  switch (pattern) {
    case Pattern::kGpt2:
      return gpt2_end(text, start);
    case Pattern::kLlama3:
      return modern_end({true, false, false, 3, "\r\n"}, text, start);
    case Pattern::kQwen2:
      return modern_end({true, false, false, 1, "\r\n"}, text, start);
    case Pattern::kTekken:
      return modern_end({false, true, false, 1, "\r\n/"}, text, start);
    case Pattern::kGpt4o:
      return modern_end({false, true, true, 3, "\r\n/"}, text, start);
    case Pattern::kNewline:
      return bytes_end(text, start, "\n", true);
    case Pattern::kNewlines:
      return bytes_end(text, start, "\n", false);
    case Pattern::kLineBreak:
      return bytes_end(text, start, "\r\n", true);
    case Pattern::kNumber:
      return class_end(text, start, is_number, 1);
    case Pattern::kNumberTriples:
      return class_end(text, start, is_number, 3);
    case Pattern::kLetters:
      return spaced_end(text, start, is_letter);
    case Pattern::kPunctuation:
      return spaced_end(text, start, is_punctuation);
    case Pattern::kCjk:
      return cjk_end(text, start);
  }
  return text.size();
}

size_t digits_end(bool individual, std::string_view text, size_t start) {
  const auto is_digit = [](uint8_t p) { return (p & kNumeric) != 0; };
  return class_end(text, start, is_digit, individual ? 1 : SIZE_MAX);
}

size_t marker_end(std::string_view text, size_t start) {
  const size_t end = text.find("\u2581", start + 1);
  return end == std::string_view::npos ? text.size() : end;
}

}  // namespace edgekit::tokenizer
