#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"

namespace edgekit::tokenizer {
namespace {

using namespace format;

constexpr std::string_view kMarkerText = "\u2581";
constexpr std::string_view kReplacement = "\uFFFD";

// The token with U+0020 for each U+2581, or with nothing for it.
std::string without_markers(std::string_view token, bool as_space) {
  std::string out;
  for (size_t at = 0; at < token.size();) {
    if (token.substr(at).starts_with(kMarkerText)) {
      if (as_space) out.push_back(' ');
      at += kMarkerText.size();
    } else {
      out.push_back(token[at++]);
    }
  }
  return out;
}

}  // namespace

std::string Decoder::push(uint32_t id) {
  std::string text;
  if (id >= tokenizer_->vocab() || (tokenizer_->attributes_[id] & kHole)) return text;
  if (skip_special_ && tokenizer_->is_special(id)) return text;
  const std::string_view token = tokenizer_->token(id);
  const Header& header = *tokenizer_->header_;
  const bool is_first = is_first_;
  is_first_ = false;
  switch (static_cast<DecoderKind>(header.decoder)) {
    case DecoderKind::kBytes:
      pending_.append(token);
      take_bytes(&text);
      return text;
    case DecoderKind::kMetaspace:
      return without_markers(token, !(is_first && header.strip_left > 0));
    case DecoderKind::kMarker:
      if (tokenizer_->attributes_[id] & kByteToken) {
        pending_.push_back(static_cast<char>(tokenizer_->attributes_[id] >> 8));
        take_byte_run(false, &text);
      } else {
        take_byte_run(true, &text);
        text.append(without_markers(token, true));
      }
      strip(&text);
      return text;
  }
  return text;
}

std::string Decoder::finish() {
  std::string text;
  if (static_cast<DecoderKind>(tokenizer_->header_->decoder) == DecoderKind::kMarker) {
    take_byte_run(true, &text);
    strip(&text);
  } else if (!pending_.empty()) {
    text = kReplacement;  // what is pending is the start of one character
  }
  *this = Decoder(*tokenizer_, pace_, skip_special_);
  return text;
}

// Moves whole characters from `pending_` to `text`, and U+FFFD for wrong ones; an incomplete one stays.
void Decoder::take_bytes(std::string* text) {
  size_t at = 0;
  while (at < pending_.size()) {
    const Utf8Step next = step(std::string_view(pending_).substr(at));
    if (next.incomplete) break;
    text->append(next.valid ? std::string_view(pending_).substr(at, next.bytes) : kReplacement);
    at += next.bytes;
  }
  pending_.erase(0, at);
}

// A run of byte tokens is text if all of it is UTF-8, else one U+FFFD for each byte. A stream cannot take back what it
// has shown, so there the rule holds from the first wrong byte on.
void Decoder::take_byte_run(bool at_end, std::string* text) {
  if (pace_ == Pace::kExact && !at_end) return;
  size_t at = 0;
  if (pace_ == Pace::kExact) run_broken_ = !is_utf8(pending_);
  while (at < pending_.size()) {
    const Utf8Step next = step(std::string_view(pending_).substr(at));
    if (next.incomplete && !at_end && !run_broken_) break;
    run_broken_ = run_broken_ || !next.valid;
    if (run_broken_) {
      text->append(kReplacement);
      ++at;
    } else {
      text->append(pending_, at, next.bytes);
      at += next.bytes;
    }
  }
  pending_.erase(0, at);
  if (at_end) run_broken_ = false;
}

// Drops up to `strip_left` spaces from the start of the whole text.
void Decoder::strip(std::string* text) {
  const uint32_t limit = tokenizer_->header_->strip_left;
  while (stripped_ < limit && !text->empty()) {
    if ((*text)[0] != ' ') {
      stripped_ = limit;
      return;
    }
    text->erase(0, 1);
    ++stripped_;
  }
}

}  // namespace edgekit::tokenizer
