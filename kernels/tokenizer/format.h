// The tokenizer section of a program file, version 1. Little-endian. Written by edgekit/tokenizer.py, read in place by
// tokenizer.cc, which checks every count, offset and id before use; tests/test_tokenizer.py holds the two together.
//
//   Header | arrays, in any order, each 4-byte aligned and inside the section
//
// Ids run from 0 to vocab - 1, added tokens included; an id that stands for nothing is a hole.
#pragma once

#include <stdint.h>

namespace edgekit::tokenizer::format {

constexpr uint32_t kMagic = 0x6b6f7465;  // "etok"
constexpr uint32_t kVersion = 1;
constexpr uint32_t kNone = 0xffffffff;  // "no id"

// Bounds that keep a lying section from costing memory or time.
constexpr uint32_t kMaxSectionBytes = 1u << 28;
constexpr uint32_t kMaxVocab = 1u << 22;
constexpr uint32_t kMaxMerges = 1u << 24;
constexpr uint32_t kMaxAddedBytes = 256;  // of one added token: searching costs text x this at worst
constexpr uint32_t kMaxNormalizers = 4;
constexpr uint32_t kMaxSteps = 8;
constexpr uint32_t kMaxTemplateIds = 64;

struct Span {
  uint32_t offset;  // from the start of the section, in bytes
  uint32_t count;   // elements
};

enum HeaderFlag : uint32_t {
  kByteLevel = 1,      // words are bytes, each a symbol; else words are UTF-8, each character a symbol
  kByteFallback = 2,   // a character without a token becomes the tokens of its bytes
  kFuseUnknown = 4,    // neighbouring unknown characters become one unknown token
  kIgnoreMerges = 8,   // a word that is a token is that token, whatever the merges say
};

enum class NormalizerKind : uint32_t {
  kNfc = 1,            // canonical composition
  kPrependMarker = 2,  // U+2581 before the text
  kReplaceSpace = 3,   // U+0020 becomes U+2581
};

enum class StepKind : uint32_t {
  kPattern = 1,    // argument: Pattern
  kDigits = 2,     // argument 1: each digit is a piece; 0: each run of digits
  kPrefix = 3,     // U+0020 before a piece that does not start with it
  kMetaspace = 4,  // U+0020 becomes U+2581; argument: kMetaspace... flags
};

// Each is one regular expression of the published tokenizers; split.cc gives the expression and scans for it by hand.
enum class Pattern : uint32_t {
  kGpt2 = 1,
  kLlama3 = 2,
  kQwen2 = 3,
  kTekken = 4,
  kGpt4o = 5,
  kNewline = 6,        // \n, alone
  kNewlines = 7,       // runs of \n
  kLineBreak = 8,      // \r or \n, alone
  kNumber = 9,         // a number character, alone
  kNumberTriples = 10,  // up to three number characters
  kLetters = 11,       // letters, with a white space before them
  kPunctuation = 12,   // punctuation, with a white space before it
  kCjk = 13,           // runs of Chinese, Japanese, Korean and their neighbours in Unicode
};

enum MetaspaceFlag : uint32_t {
  kMetaspaceAlways = 1,  // U+2581 before every piece that does not start with it
  kMetaspaceFirst = 2,   // the same, but only before the start of the text
  kMetaspaceSplit = 4,   // a piece starts at each U+2581
};

enum class DecoderKind : uint32_t {
  kBytes = 1,      // tokens are bytes
  kMarker = 2,     // U+2581 becomes U+0020; strip_left spaces go from the start of the text
  kMetaspace = 3,  // U+2581 becomes U+0020; with strip_left, it vanishes from the first token
};

struct Header {  // 152 bytes
  uint32_t magic;
  uint32_t version;
  uint32_t bytes;    // of the section
  uint32_t flags;    // HeaderFlag
  uint32_t vocab;
  uint32_t unknown;  // id for a character without a token; kNone: it is dropped
  uint32_t decoder;  // DecoderKind
  uint32_t strip_left;
  uint32_t raw_added;  // how many of `added` are searched before normalization; the rest after it
  uint32_t reserved0;  // zero
  Span token_ends;     // u32 [vocab]: where the bytes of each id end in token_bytes
  Span token_bytes;    // u8: a token as the model sees it (byte level: raw bytes, not the printable alphabet)
  Span attributes;     // u16 [vocab]: Attribute; the value of a byte token in the high byte
  Span byte_ids;       // u32 [256]: token of each byte, or kNone
  Span characters;     // Character [], rising: tokens of one character (none in byte level)
  Span strings;        // u32: ids whose bytes a whole word is looked up in, in rising order of bytes (kIgnoreMerges)
  Span merge_ends;     // u32 [vocab]: where the merges with this left id end in merges
  Span merges;         // Merge [], rising by left, then right
  Span added;          // Added []: raw_added of them in rising order of text, then the rest in rising order of text
  Span added_text;     // u8
  Span normalizers;    // u32: NormalizerKind
  Span steps;          // Step []: the pre-tokenizer
  Span before;         // u32: ids the template puts before a text
  Span after;          // u32: and after it
};

enum Attribute : uint16_t {
  kSpecial = 1,
  kByteToken = 2,  // decodes to the one byte in the high half
  kHole = 4,
};

struct Character {
  uint32_t code;
  uint32_t id;
};

struct Merge {
  uint32_t right;
  uint32_t rank;
  uint32_t result;
};

enum AddedFlag : uint32_t {
  kStripLeft = 1,   // takes the white space before it along
  kStripRight = 2,  // and after it
  kSingleWord = 4,  // only where no word character touches it
};

struct Added {
  uint32_t id;
  uint32_t flags;  // AddedFlag
  uint32_t text_offset;
  uint32_t text_bytes;
};

struct Step {
  uint32_t kind;
  uint32_t argument;
};

static_assert(sizeof(Header) == 152 && sizeof(Added) == 16 && sizeof(Merge) == 12);

}  // namespace edgekit::tokenizer::format
