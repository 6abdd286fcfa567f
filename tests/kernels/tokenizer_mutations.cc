// Opens damaged copies of a tokenizer section and works with those that open. A sanitizer build must find nothing.
//
//   tokenizer_mutations SECTION    the same mutations every time; prints how many opened
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <random>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace {

using namespace edgekit::tokenizer;
using format::Header;

constexpr int kRandomMutations = 3000;
const char* const kTexts[] = {
    "Hello, it's 12345 o'clock.\r\n\n  <s><|endoftext|> x",
    "\u2581 caf\u0065\u0301 \u65e5\u672c\u8a9e \U0001F600 \uAC00\u11A8\t\u3000A\u6f22B",
    "\xff\xf0\x9f <|im_start|><both>  <n> <n>",
    "",
};

int opened = 0;

// On a heap block of exactly that size, so that reading past it is seen.
void try_section(const std::vector<uint8_t>& bytes) {
  const auto copy = std::make_unique<uint8_t[]>(bytes.size());
  std::copy(bytes.begin(), bytes.end(), copy.get());
  Tokenizer tokenizer;
  edgekit_error error{};
  if (tokenizer.open(copy.get(), bytes.size(), &error) != EDGEKIT_OK) {
    if (error.message[0] == '\0') abort();
    return;
  }
  ++opened;
  for (const char* text : kTexts) {
    std::vector<uint32_t> ids;
    if (tokenizer.encode(text, true, &ids, &error) != EDGEKIT_OK) abort();
    // Steps that add a character to a piece can do so only a few times.
    if (ids.size() > 2 * format::kMaxTemplateIds + 64 * (strlen(text) + 1)) abort();
    for (const auto pace : {Decoder::Pace::kStream, Decoder::Pace::kExact}) {
      Decoder decoder(tokenizer, pace, true);
      for (const uint32_t id : ids) decoder.push(id);
      decoder.push(0xffffffff);
      decoder.finish();
    }
  }
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  std::vector<uint8_t> section;
  FILE* file = fopen(argv[1], "rb");
  if (file == nullptr) return 2;
  for (int byte; (byte = fgetc(file)) != EOF;) section.push_back(static_cast<uint8_t>(byte));
  fclose(file);
  try_section(section);
  if (opened != 1) return 1;

  Header header;
  memcpy(&header, section.data(), sizeof header);
  const format::Span* spans = &header.token_ends;
  constexpr size_t kSpans = (sizeof(Header) - offsetof(Header, token_ends)) / sizeof(format::Span);

  // Cut at and around each boundary; the second time with a header that tells the new size.
  for (size_t i = 0; i <= kSpans; ++i) {
    for (const int shift : {-4, -1, 0, 1, 4}) {
      std::vector<uint8_t> cut = section;
      const size_t boundary = i == kSpans ? sizeof header : spans[i].offset;
      cut.resize(std::min(section.size(), boundary + static_cast<size_t>(shift)));
      try_section(cut);
      if (cut.size() < sizeof header) continue;
      const auto size = static_cast<uint32_t>(cut.size());
      memcpy(cut.data() + offsetof(Header, bytes), &size, sizeof size);
      try_section(cut);
    }
  }
  // Each number of the header.
  for (size_t at = 0; at < sizeof header; at += 4) {
    uint32_t value;
    memcpy(&value, section.data() + at, 4);
    const auto size = static_cast<uint32_t>(section.size());
    for (const uint32_t lie : {0u, 1u, value - 1, value + 1, value - 4, value + 4, value * 2, size, size - 1, size - 4,
                               0x7fffffffu, 0x80000000u, 0xfffffffcu, 0xffffffffu}) {
      std::vector<uint8_t> lying = section;
      memcpy(lying.data() + at, &lie, 4);
      try_section(lying);
    }
    for (int bit = 0; bit < 32; ++bit) {
      std::vector<uint8_t> flipped = section;
      flipped[at + static_cast<size_t>(bit / 8)] ^= static_cast<uint8_t>(1 << bit % 8);
      try_section(flipped);
    }
  }
  // Numbers inside the arrays, several at a time.
  std::mt19937 random(1);
  for (int i = 0; i < kRandomMutations; ++i) {
    std::vector<uint8_t> lying = section;
    for (uint32_t changes = 1 + random() % 4; changes > 0; --changes) {
      const format::Span& span = spans[random() % kSpans];
      const size_t at = std::min<size_t>(span.offset + random() % (span.count * 4 + 4), section.size() - 4) / 4 * 4;
      const uint32_t lies[] = {static_cast<uint32_t>(random()), 0, header.vocab - 1, header.vocab, 0xffffffff};
      memcpy(lying.data() + at, &lies[random() % 5], 4);
    }
    try_section(lying);
  }
  printf("%d opened\n", opened);
  return 0;
}
