#include "tokenizer/tokenizer.h"

#include <stdio.h>
#include <string.h>

#include <algorithm>

#include "tokenizer/split.h"
#include "tokenizer/unicode.h"

namespace edgekit::tokenizer {
namespace {

using namespace format;

constexpr std::string_view kMarkerText = "\u2581";

edgekit_status fail(edgekit_error* error, edgekit_status status, const char* what) {
  snprintf(error->message, sizeof error->message, "the tokenizer section is damaged: %s", what);
  return status;
}

bool all_below(const uint32_t* ids, uint32_t count, uint32_t limit) {
  return std::all_of(ids, ids + count, [&](uint32_t id) { return id < limit; });
}

// Running ends of `count` groups: rising, and the last one is `total`.
bool are_ends(const uint32_t* ends, uint32_t count, uint32_t total) {
  return std::is_sorted(ends, ends + count) && (count == 0 ? total == 0 : ends[count - 1] == total);
}

}  // namespace

edgekit_status Tokenizer::open(const uint8_t* section, size_t bytes, edgekit_error* error) {
  const auto damaged = [&](const char* what) { return fail(error, EDGEKIT_DAMAGED, what); };
  if (reinterpret_cast<uintptr_t>(section) % alignof(uint32_t) != 0) {
    snprintf(error->message, sizeof error->message, "the tokenizer section is not aligned in memory");
    return EDGEKIT_BAD_ARGUMENT;
  }
  if (bytes < sizeof(Header) || bytes > kMaxSectionBytes) return damaged("its size is out of bounds");
  const auto* header = reinterpret_cast<const Header*>(section);
  if (header->magic != kMagic) return damaged("it does not start with its mark");
  if (header->version != kVersion) return fail(error, EDGEKIT_UNSUPPORTED, "its version is not known to this program");
  if (header->bytes != bytes) return damaged("it gives another size than it has");
  if (header->vocab == 0 || header->vocab > kMaxVocab) return damaged("the vocabulary's size is out of bounds");
  const uint32_t vocab = header->vocab;

  // Points an array at its place, if it lies inside the section and is aligned.
  const auto place = [&]<typename T>(const Span& span, const T** array) {
    if (span.offset % alignof(T) != 0 || span.offset > bytes) return false;
    if (span.count > (bytes - span.offset) / sizeof(T)) return false;
    *array = reinterpret_cast<const T*>(section + span.offset);
    return true;
  };
  const Added* added = nullptr;
  if (!place(header->token_ends, &token_ends_) || !place(header->token_bytes, &token_bytes_) ||
      !place(header->attributes, &attributes_) || !place(header->byte_ids, &byte_ids_) ||
      !place(header->characters, &characters_) || !place(header->strings, &strings_) ||
      !place(header->merge_ends, &merges_.ends) || !place(header->merges, &merges_.entries) ||
      !place(header->added, &added) || !place(header->added_text, &added_text_) ||
      !place(header->normalizers, &normalizers_) || !place(header->steps, &steps_) ||
      !place(header->before, &before_) || !place(header->after, &after_)) {
    return damaged("an array lies outside it");
  }

  if (header->token_ends.count != vocab || header->attributes.count != vocab || header->merge_ends.count != vocab ||
      header->byte_ids.count != 256) {
    return damaged("an array has the wrong length");
  }
  if (!are_ends(token_ends_, vocab, header->token_bytes.count)) return damaged("a token lies outside its bytes");
  if (header->merges.count > kMaxMerges || !are_ends(merges_.ends, vocab, header->merges.count)) {
    return damaged("the merges of a token lie outside the list");
  }
  for (uint32_t i = 0; i < header->merges.count; ++i) {
    if (merges_.entries[i].right >= vocab || merges_.entries[i].result >= vocab) return damaged("a merge has no token");
  }
  const auto is_id = [&](uint32_t id) { return id < vocab; };
  const auto is_id_or_none = [&](uint32_t id) { return id < vocab || id == kNone; };
  if (!is_id_or_none(header->unknown)) return damaged("the unknown token is not in the vocabulary");
  if (!std::all_of(byte_ids_, byte_ids_ + 256, is_id_or_none)) return damaged("a byte has no token");
  for (uint32_t i = 0; i < header->characters.count; ++i) {
    if (!is_id(characters_[i].id)) return damaged("a character has no token");
  }
  if (!all_below(strings_, header->strings.count, vocab)) return damaged("a word has no token");

  if (header->raw_added > header->added.count) return damaged("it counts more added tokens than it has");
  raw_added_ = {added, header->raw_added};
  normalized_added_ = {added + header->raw_added, header->added.count - header->raw_added};
  memset(added_starts_, 0, sizeof added_starts_);
  for (uint32_t i = 0; i < header->added.count; ++i) {
    const Added& entry = added[i];
    if (!is_id(entry.id) || entry.text_bytes == 0 || entry.text_bytes > kMaxAddedBytes ||
        entry.text_offset > header->added_text.count ||
        entry.text_bytes > header->added_text.count - entry.text_offset) {
      return damaged("an added token lies outside its text");
    }
    if (!is_utf8(added_text(entry))) return damaged("an added token is not UTF-8");
    if (i != 0 && i != header->raw_added && added_text(added[i - 1]) >= added_text(entry)) {
      return damaged("the added tokens are out of order");
    }
    added_starts_[static_cast<uint8_t>(added_text(entry)[0])] = true;
  }

  if (header->normalizers.count > kMaxNormalizers || header->steps.count > kMaxSteps ||
      header->before.count > kMaxTemplateIds || header->after.count > kMaxTemplateIds) {
    return damaged("it has too many steps");
  }
  for (uint32_t i = 0; i < header->normalizers.count; ++i) {
    if (normalizers_[i] < static_cast<uint32_t>(NormalizerKind::kNfc) ||
        normalizers_[i] > static_cast<uint32_t>(NormalizerKind::kReplaceSpace)) {
      return fail(error, EDGEKIT_UNSUPPORTED, "a normalizer is not known to this program");
    }
  }
  for (uint32_t i = 0; i < header->steps.count; ++i) {
    const Step& step = steps_[i];
    const bool is_known_pattern = step.argument >= static_cast<uint32_t>(Pattern::kGpt2) &&
                                  step.argument <= static_cast<uint32_t>(Pattern::kCjk);
    if (step.kind < static_cast<uint32_t>(StepKind::kPattern) ||
        step.kind > static_cast<uint32_t>(StepKind::kMetaspace) ||
        (step.kind == static_cast<uint32_t>(StepKind::kPattern) && !is_known_pattern)) {
      return fail(error, EDGEKIT_UNSUPPORTED, "a way to split text is not known to this program");
    }
  }
  if (!all_below(before_, header->before.count, vocab) || !all_below(after_, header->after.count, vocab)) {
    return damaged("the template has an id that is not in the vocabulary");
  }
  if (header->decoder < static_cast<uint32_t>(DecoderKind::kBytes) ||
      header->decoder > static_cast<uint32_t>(DecoderKind::kMetaspace)) {
    return fail(error, EDGEKIT_UNSUPPORTED, "its decoder is not known to this program");
  }
  header_ = header;
  return EDGEKIT_OK;
}

std::string_view Tokenizer::token(uint32_t id) const {
  const uint32_t start = id == 0 ? 0 : token_ends_[id - 1];
  return {token_bytes_ + start, token_ends_[id] - start};
}

std::string_view Tokenizer::added_text(const Added& added) const {
  return {added_text_ + added.text_offset, added.text_bytes};
}

// The longest added token that `text` starts with, or null.
const Added* Tokenizer::longest_added(const AddedTokens& group, std::string_view text) const {
  const Added* low = group.entries;
  const Added* high = group.entries + group.count;
  const Added* longest = nullptr;
  // Narrows the range of tokens that share the first `depth` bytes with the text.
  for (size_t depth = 0; low != high; ++depth) {
    if (low->text_bytes == depth) longest = low++;  // the shortest of a range comes first
    if (depth == text.size()) break;
    const auto byte = static_cast<uint8_t>(text[depth]);
    const auto byte_of = [&](const Added& added) { return static_cast<uint8_t>(added_text(added)[depth]); };
    low = std::partition_point(low, high, [&](const Added& added) { return byte_of(added) < byte; });
    high = std::partition_point(low, high, [&](const Added& added) { return byte_of(added) == byte; });
  }
  return longest;
}

uint32_t Tokenizer::find_string(std::string_view word) const {
  const uint32_t* end = strings_ + header_->strings.count;
  const uint32_t* found =
      std::lower_bound(strings_, end, word, [&](uint32_t id, std::string_view key) { return token(id) < key; });
  return found != end && token(*found) == word ? *found : kNone;
}

uint32_t Tokenizer::find_character(uint32_t code) const {
  const format::Character* end = characters_ + header_->characters.count;
  const format::Character* found = std::lower_bound(
      characters_, end, code, [](const format::Character& entry, uint32_t key) { return entry.code < key; });
  return found != end && found->code == code ? found->id : kNone;
}

// One run of encode: added tokens out of the text, normalization, pre-tokenizer steps, merges.
class Tokenizer::Encoding {
 public:
  Encoding(const Tokenizer& tokenizer, std::vector<uint32_t>* ids)
      : t_(tokenizer), flags_(tokenizer.header_->flags), merger_(tokenizer.merges_), ids_(ids) {}

  void run(std::string_view text) {
    split_added(t_.raw_added_, text, [&](std::string_view piece, bool is_start) {
      std::string buffer;
      const std::string_view normal = normalized(piece, &buffer);
      split_added(t_.normalized_added_, normal, [&](std::string_view part, bool is_part_start) {
        pre_tokenize(0, part, is_start && is_part_start);
      });
    });
  }

 private:
  // Calls `rest(piece, whether it starts the text)` for what lies between added tokens, and appends their ids.
  template <typename Rest>
  void split_added(const AddedTokens& group, std::string_view text, Rest rest) {
    size_t done = 0;
    size_t space_from = 0, space_to = 0;  // the white space looked at last: a run is walked once, not once a match
    for (size_t at = 0; group.count > 0 && at < text.size();) {
      const Added* found = t_.added_starts_[static_cast<uint8_t>(text[at])]
                               ? t_.longest_added(group, text.substr(at))
                               : nullptr;
      if (found == nullptr) {
        ++at;
        continue;
      }
      size_t start = at, end = at + found->text_bytes;
      at = end;
      if ((found->flags & kSingleWord) && touches_word(text, start, end)) continue;
      // White space that an added token before this one took is not taken again.
      if (found->flags & kStripLeft) start = space_start(text, start, done);
      if (found->flags & kStripRight) {
        if (end < space_from || end > space_to) {
          space_from = end;
          space_to = space_end(text, end);
        }
        end = space_to;
      }
      if (done < start) rest(text.substr(done, start - done), done == 0);
      ids_->push_back(found->id);
      done = end;
    }
    if (done < text.size()) rest(text.substr(done), done == 0);
  }

  static bool touches_word(std::string_view text, size_t start, size_t end) {
    const auto is_word = [&](size_t at) { return (properties(read(text, at).code) & kWord) != 0; };
    return (start > 0 && is_word(before(text, start))) || (end < text.size() && is_word(end));
  }

  // The start of the white space before `at`, but not before `least`.
  static size_t space_start(std::string_view text, size_t at, size_t least) {
    while (at > least) {
      const size_t previous = before(text, at);
      if (!(properties(read(text, previous).code) & kSpace)) break;
      at = previous;
    }
    return at;
  }

  static size_t space_end(std::string_view text, size_t at) {
    while (at < text.size()) {
      const tokenizer::Character next = read(text, at);
      if (!(properties(next.code) & kSpace)) break;
      at += next.bytes;
    }
    return at;
  }

  // `text` itself, or what the normalizers make of it in `buffer`.
  std::string_view normalized(std::string_view text, std::string* buffer) const {
    for (uint32_t i = 0; i < t_.header_->normalizers.count; ++i) {
      switch (static_cast<NormalizerKind>(t_.normalizers_[i])) {
        case NormalizerKind::kNfc:
          *buffer = nfc(text);
          break;
        case NormalizerKind::kPrependMarker:
          *buffer = std::string(kMarkerText).append(text);
          break;
        case NormalizerKind::kReplaceSpace:
          *buffer = with_markers(text);
          break;
      }
      text = *buffer;
    }
    return text;
  }

  static std::string with_markers(std::string_view text) {
    std::string out;
    out.reserve(text.size());
    for (const char byte : text) {
      if (byte == ' ') {
        out.append(kMarkerText);
      } else {
        out.push_back(byte);
      }
    }
    return out;
  }

  // Runs `text` through the pre-tokenizer from step `index` on. At most kMaxSteps deep.
  void pre_tokenize(uint32_t index, std::string_view text, bool is_start) {
    if (index == t_.header_->steps.count) return add_word(text);
    const Step step = t_.steps_[index];
    const auto pieces = [&](auto end_of) {
      for (size_t start = 0; start < text.size();) {
        const size_t end = end_of(start);
        pre_tokenize(index + 1, text.substr(start, end - start), is_start && start == 0);
        start = end;
      }
    };
    switch (static_cast<StepKind>(step.kind)) {
      case StepKind::kPattern:
        return pieces([&](size_t start) { return piece_end(static_cast<Pattern>(step.argument), text, start); });
      case StepKind::kDigits:
        return pieces([&](size_t start) { return digits_end(step.argument != 0, text, start); });
      case StepKind::kPrefix: {
        if (text.starts_with(' ')) return pre_tokenize(index + 1, text, is_start);
        const std::string longer = std::string(" ").append(text);
        return pre_tokenize(index + 1, longer, is_start);
      }
      case StepKind::kMetaspace: {
        std::string marked = with_markers(text);
        const bool is_wanted =
            (step.argument & kMetaspaceAlways) || ((step.argument & kMetaspaceFirst) && is_start);
        if (is_wanted && !marked.starts_with(kMarkerText)) marked.insert(0, kMarkerText);
        if (!(step.argument & kMetaspaceSplit)) return pre_tokenize(index + 1, marked, is_start);
        text = marked;
        return pieces([&](size_t start) { return marker_end(text, start); });
      }
    }
  }

  void add_word(std::string_view word) {
    if (flags_ & kIgnoreMerges) {
      if (const uint32_t id = t_.find_string(word); id != kNone) return ids_->push_back(id);
    }
    unknown_pending_ = false;
    if (flags_ & kByteLevel) {
      for (const char byte : word) add_symbol(t_.byte_ids_[static_cast<uint8_t>(byte)]);
    } else {
      for (size_t at = 0; at < word.size();) {
        const tokenizer::Character next = read(word, at);
        const uint32_t id = t_.find_character(next.code);
        if (id != kNone || !add_bytes(word.substr(at, next.bytes))) add_symbol(id);
        at += next.bytes;
      }
    }
    if (unknown_pending_) merger_.add(t_.header_->unknown);
    merger_.finish(ids_);
  }

  // The tokens of the bytes of a character, if it may have them and each byte has one.
  bool add_bytes(std::string_view bytes) {
    const auto id_of = [&](char byte) { return t_.byte_ids_[static_cast<uint8_t>(byte)]; };
    if (!(flags_ & kByteFallback)) return false;
    if (std::any_of(bytes.begin(), bytes.end(), [&](char byte) { return id_of(byte) == kNone; })) return false;
    for (const char byte : bytes) merger_.add(id_of(byte));
    return true;
  }

  // An unknown character waits for the next known one: byte tokens in between overtake it, as in the package.
  void add_symbol(uint32_t id) {
    const uint32_t unknown = t_.header_->unknown;
    if (id != kNone) {
      if (unknown_pending_) merger_.add(unknown);
      unknown_pending_ = false;
      merger_.add(id);
    } else if (unknown != kNone) {
      if (unknown_pending_ && !(flags_ & kFuseUnknown)) merger_.add(unknown);
      unknown_pending_ = true;
    }
  }

  const Tokenizer& t_;
  const uint32_t flags_;
  Merger merger_;
  bool unknown_pending_ = false;
  std::vector<uint32_t>* ids_;
};

edgekit_status Tokenizer::encode(std::string_view text, bool with_template, std::vector<uint32_t>* ids,
                                 edgekit_error* error) const {
  if (text.size() > kMaxTextBytes) {
    snprintf(error->message, sizeof error->message, "the text has %zu bytes; at most %zu can be encoded at once",
             text.size(), kMaxTextBytes);
    return EDGEKIT_BAD_ARGUMENT;
  }
  if (with_template) ids->insert(ids->end(), before_, before_ + header_->before.count);
  if (is_utf8(text)) {
    Encoding(*this, ids).run(text);
  } else {
    Encoding(*this, ids).run(repaired(text));
  }
  if (with_template) ids->insert(ids->end(), after_, after_ + header_->after.count);
  return EDGEKIT_OK;
}

}  // namespace edgekit::tokenizer
