// The tokenizer on sections built by hand. tests/test_tokenizer.py compares whole tokenizers with the package.
#include <initializer_list>

#include "check.h"
#include "tokenizer/split.h"
#include "tokenizer/tokenizer.h"
#include "tokenizer/unicode.h"
#include "tokenizer_section.h"

namespace {

using namespace edgekit::tokenizer;
using edgekit::testing::Section;
using edgekit::testing::SectionParts;
using format::DecoderKind;
using format::NormalizerKind;
using format::Pattern;
using format::StepKind;
using Ids = std::vector<uint32_t>;

constexpr uint32_t kFirstWord = 256;

// Every byte is the token of its value; then `words`.
SectionParts bytes_and(std::initializer_list<const char*> words) {
  SectionParts parts;
  for (int byte = 0; byte < 256; ++byte) {
    parts.tokens.emplace_back(1, static_cast<char>(byte));
    parts.byte_ids[static_cast<size_t>(byte)] = static_cast<uint32_t>(byte);
  }
  for (const char* word : words) parts.tokens.emplace_back(word);
  parts.merges.resize(parts.tokens.size());
  return parts;
}

Ids encode(SectionParts parts, std::string_view text, bool with_template = false) {
  Section section(std::move(parts));
  Tokenizer tokenizer;
  edgekit_error error{};
  Ids ids;
  CHECK_THAT(tokenizer.open(section.data(), section.size(), &error) == EDGEKIT_OK, "%s", error.message);
  CHECK(tokenizer.encode(text, with_template, &ids, &error) == EDGEKIT_OK);
  return ids;
}

edgekit_status status_of(Section& section, edgekit_error* error) {
  Tokenizer tokenizer;
  return tokenizer.open(section.data(), section.size(), error);
}

std::string pieces(Pattern pattern, std::string_view text) {
  std::string shown;
  for (size_t start = 0; start < text.size();) {
    const size_t end = piece_end(pattern, text, start);
    shown.append(shown.empty() ? "" : "|").append(text.substr(start, end - start));
    start = end;
  }
  return shown;
}

TEST(the_pair_of_lowest_rank_merges_first) {
  SectionParts parts = bytes_and({"he", "el"});
  parts.merges['h'] = {{'e', 1, kFirstWord}};
  parts.merges['e'] = {{'l', 0, kFirstWord + 1}};
  CHECK((encode(parts, "hel") == Ids{'h', kFirstWord + 1}));
  CHECK((encode(parts, "heh") == Ids{kFirstWord, 'h'}));
}

TEST(of_equal_pairs_the_leftmost_merges_first) {
  SectionParts parts = bytes_and({"aa"});
  parts.merges['a'] = {{'a', 0, kFirstWord}};
  CHECK((encode(parts, "aaa") == Ids{kFirstWord, 'a'}));
}

TEST(a_word_that_is_a_token_can_ignore_the_merges) {
  SectionParts parts = bytes_and({"ab"});
  parts.strings = {kFirstWord};
  CHECK((encode(parts, "ab") == Ids{'a', 'b'}));
  parts.flags |= format::kIgnoreMerges;
  CHECK((encode(parts, "ab") == Ids{kFirstWord}));
  CHECK((encode(parts, "abb") == Ids{'a', 'b', 'b'}));
}

TEST(the_longest_added_token_is_found) {
  SectionParts parts = bytes_and({"<s", "<s>"});
  parts.raw_added = 2;
  parts.added = {{kFirstWord, 0, 0, 0}, {kFirstWord + 1, 0, 0, 0}};
  parts.added_texts = {"<s", "<s>"};
  CHECK((encode(parts, "<s><s <") == Ids{kFirstWord + 1, kFirstWord, ' ', '<'}));
}

TEST(an_added_token_takes_the_white_space_that_its_flags_name) {
  SectionParts parts = bytes_and({"<s>"});
  parts.raw_added = 1;
  parts.added_texts = {"<s>"};
  parts.added = {{kFirstWord, format::kStripLeft, 0, 0}};
  CHECK((encode(parts, "a \u3000<s> b") == Ids{'a', kFirstWord, ' ', 'b'}));
  parts.added = {{kFirstWord, format::kStripRight, 0, 0}};
  CHECK((encode(parts, "a <s>\n\t b") == Ids{'a', ' ', kFirstWord, 'b'}));
}

TEST(a_single_word_is_not_found_inside_another) {
  SectionParts parts = bytes_and({"ab"});
  parts.raw_added = 1;
  parts.added_texts = {"ab"};
  parts.added = {{kFirstWord, format::kSingleWord, 0, 0}};
  CHECK((encode(parts, "ab,ab") == Ids{kFirstWord, ',', kFirstWord}));
  CHECK((encode(parts, "ab_") == Ids{'a', 'b', '_'}));
  CHECK((encode(parts, "1ab") == Ids{'1', 'a', 'b'}));
}

TEST(the_template_goes_around_the_text_when_asked_for) {
  SectionParts parts = bytes_and({"<s>", "</s>"});
  parts.before = {kFirstWord};
  parts.after = {kFirstWord + 1};
  CHECK((encode(parts, "a", true) == Ids{kFirstWord, 'a', kFirstWord + 1}));
  CHECK((encode(parts, "a", false) == Ids{'a'}));
}

TEST(wrong_bytes_encode_like_the_replacement_character) {
  const SectionParts parts = bytes_and({});
  const Ids replacement{0xEF, 0xBF, 0xBD};
  const auto times = [&](size_t count) {
    Ids all;
    for (size_t i = 0; i < count; ++i) all.insert(all.end(), replacement.begin(), replacement.end());
    return all;
  };
  CHECK(encode(parts, "\x80") == times(1));
  CHECK(encode(parts, "\xF0\x9F\x98") == times(1));         // the start of one character
  CHECK(encode(parts, "\xC0\xAF") == times(2));             // overlong: no byte of it starts one
  CHECK(encode(parts, "\xED\xA0\x80") == times(3));         // a surrogate
  CHECK(encode(parts, "\xF4\x90\x80\x80") == times(4));     // above U+10FFFF
  CHECK((encode(parts, "\xE2\x82z") == [&] { Ids ids = times(1); ids.push_back('z'); return ids; }()));
}

TEST(a_character_without_a_token_becomes_its_bytes_or_unknown) {
  SectionParts parts;
  parts.flags = 0;
  parts.decoder = DecoderKind::kMarker;
  parts.tokens = {"<unk>", "a"};
  parts.characters = {{'a', 1}};
  CHECK((encode(parts, "abba") == Ids{1, 1}));
  parts.unknown = 0;
  CHECK((encode(parts, "abba") == Ids{1, 0, 0, 1}));
  parts.flags = format::kFuseUnknown;
  CHECK((encode(parts, "abba") == Ids{1, 0, 1}));
  parts.flags |= format::kByteFallback;
  parts.tokens.push_back("<0x62>");
  parts.byte_ids['b'] = 2;
  CHECK((encode(parts, "abca") == Ids{1, 2, 0, 1}));
  // A character is its bytes only if each has a token.
  CHECK((encode(parts, "\u0162") == Ids{0}));
}

TEST(the_marker_stands_before_the_start_or_before_every_piece) {
  SectionParts parts;
  parts.flags = 0;
  parts.decoder = DecoderKind::kMetaspace;
  parts.tokens = {"\u2581", "a", "<s>"};
  parts.characters = {{'a', 1}, {0x2581, 0}};
  parts.raw_added = 1;
  parts.added = {{2, 0, 0, 0}};
  parts.added_texts = {"<s>"};
  const auto kind = static_cast<uint32_t>(StepKind::kMetaspace);
  parts.steps = {{kind, format::kMetaspaceFirst}};
  CHECK((encode(parts, "a a<s>a") == Ids{0, 1, 0, 1, 2, 1}));
  CHECK((encode(parts, "<s>a") == Ids{2, 1}));
  parts.steps = {{kind, format::kMetaspaceAlways | format::kMetaspaceSplit}};
  CHECK((encode(parts, "a a<s>a") == Ids{0, 1, 0, 1, 2, 0, 1}));
  CHECK((encode(parts, " a") == Ids{0, 1}));
}

TEST(text_comes_out_in_whole_characters) {
  Section section(bytes_and({}));
  Tokenizer tokenizer;
  edgekit_error error{};
  CHECK(tokenizer.open(section.data(), section.size(), &error) == EDGEKIT_OK);
  Decoder decoder(tokenizer);
  CHECK(decoder.push(0xF0).empty() && decoder.push(0x9F).empty() && decoder.push(0x98).empty());
  CHECK(decoder.push(0x80) == "\U0001F600");
  CHECK(decoder.push(0xE2).empty());
  CHECK(decoder.push('a') == "\uFFFDa");
  CHECK(decoder.push(0xE2).empty());
  CHECK(decoder.finish() == "\uFFFD");
  CHECK(decoder.finish().empty());
  CHECK(decoder.push(tokenizer.vocab()).empty());
}

TEST(a_broken_run_of_byte_tokens_is_replaced_byte_by_byte) {
  SectionParts parts;
  parts.flags = format::kByteFallback;
  parts.decoder = DecoderKind::kMarker;
  parts.strip_left = 1;
  parts.tokens = {"<0xC3>", "<0xA9>", "<0xFF>", "\u2581a"};
  parts.attributes = {format::kByteToken | 0xC3 << 8, format::kByteToken | 0xA9 << 8, format::kByteToken | 0xFF << 8, 0};
  Section section(parts);
  Tokenizer tokenizer;
  edgekit_error error{};
  CHECK(tokenizer.open(section.data(), section.size(), &error) == EDGEKIT_OK);
  const auto decode = [&](Decoder::Pace pace, const Ids& ids) {
    Decoder decoder(tokenizer, pace);
    std::string text;
    for (const uint32_t id : ids) text += decoder.push(id);
    return text + decoder.finish();
  };
  for (const auto pace : {Decoder::Pace::kStream, Decoder::Pace::kExact}) {
    CHECK(decode(pace, {3, 3, 0, 1, 3}) == "a a\u00E9 a");
    CHECK(decode(pace, {0, 3, 0}) == "\uFFFD a\uFFFD");
    CHECK(decode(pace, {2, 0, 1}) == "\uFFFD\uFFFD\uFFFD");
  }
  CHECK(decode(Decoder::Pace::kExact, {0, 1, 2}) == "\uFFFD\uFFFD\uFFFD");
  CHECK(decode(Decoder::Pace::kStream, {0, 1, 2}) == "\u00E9\uFFFD");
}

TEST(composition_joins_what_nothing_blocks) {
  CHECK(nfc("e\u0301") == "\u00E9");
  CHECK(nfc("e\u0316\u0301") == "\u00E9\u0316");        // a mark below lets one above pass
  CHECK(nfc("e\u0301\u0301") == "\u00E9\u0301");
  CHECK(nfc("q\u0307\u0323") == "q\u0323\u0307");        // sorted: below first
  CHECK(nfc("\u212B") == "\u00C5");
  CHECK(nfc("\u1100\u1161\u11A8") == "\uAC01");
  CHECK(nfc("\uAC00\u0301\u11A8") == "\uAC00\u0301\u11A8");
  CHECK(nfc("\u0958") == "\u0915\u093C");                // excluded from composition
  CHECK(nfc("\u0301e") == "\u0301e");
  CHECK(nfc("plain").compare("plain") == 0 && nfc("").empty());
}

TEST(pieces_follow_the_pattern_of_gpt2) {
  CHECK(pieces(Pattern::kGpt2, "I'll go'S  12ab\n\n x!?'d ") == "I|'ll| go|'|S| | 12|ab|\n\n| x|!?'|d| ");
  CHECK(pieces(Pattern::kGpt2, "a \u3000b") == "a| |\u3000|b");
}

TEST(pieces_follow_the_patterns_of_llama3_and_qwen2) {
  CHECK(pieces(Pattern::kLlama3, "I'LL (go)!\r\n\n 12345 x") == "I|'LL| (|go|)!\r\n\n| |123|45| x");
  CHECK(pieces(Pattern::kQwen2, "a\n \n  b 12") == "a|\n \n| | b| |1|2");
  CHECK(pieces(Pattern::kLlama3, "it'\u017F $x") == "it|'\u017F| $|x");
}

TEST(pieces_follow_the_patterns_of_tekken_and_gpt4o) {
  CHECK(pieces(Pattern::kTekken, "XMLHttp //\n/ aBC") == "XMLHttp| //\n/| a|BC");
  CHECK(pieces(Pattern::kTekken, "\u6F22A \u6F22b A\u6F22B") == "\u6F22|A| \u6F22b| A\u6F22|B");
  CHECK(pieces(Pattern::kTekken, "\u0301AB") == "\u0301|AB");
  CHECK(pieces(Pattern::kGpt4o, "Don'T 1234 CamelCase's") == "Don'T| |123|4| Camel|Case's");
}

TEST(pieces_of_other_patterns_are_matches_and_what_lies_between) {
  CHECK(pieces(Pattern::kLetters, "a b, cd  e1") == "a| b|,| cd| | e|1");
  CHECK(pieces(Pattern::kPunctuation, "a !b  ..") == "a| !|b | ..");
  CHECK(pieces(Pattern::kNumberTriples, "a12345b") == "a|123|45|b");
  CHECK(pieces(Pattern::kNewlines, "a\n\nb") == "a|\n\n|b");
  CHECK(pieces(Pattern::kLineBreak, "a\r\nb") == "a|\r|\n|b");
}

TEST(a_word_of_a_million_letters_is_one_chain_of_merges) {
  SectionParts parts = bytes_and({"aa", "aaaa", "aaaaaaaa"});
  parts.merges['a'] = {{'a', 0, kFirstWord}};
  parts.merges[kFirstWord] = {{kFirstWord, 1, kFirstWord + 1}};
  parts.merges[kFirstWord + 1] = {{kFirstWord + 1, 2, kFirstWord + 2}};
  CHECK(encode(parts, std::string(1'000'000, 'a')) == Ids(125'000, kFirstWord + 2));
}

TEST(a_section_that_lies_is_refused_with_a_sentence) {
  const auto refused = [](auto change, edgekit_status status, const char* what) {
    Section section(bytes_and({"<s>"}));
    change(section.header());
    edgekit_error error{};
    CHECK_THAT(status_of(section, &error) == status, "%s", what);
    CHECK_THAT(strstr(error.message, what) != nullptr, "%s, not %s", error.message, what);
  };
  using format::Header;
  refused([](Header& h) { h.magic ^= 1; }, EDGEKIT_DAMAGED, "mark");
  refused([](Header& h) { h.version = 2; }, EDGEKIT_UNSUPPORTED, "version");
  refused([](Header& h) { h.bytes -= 4; }, EDGEKIT_DAMAGED, "size");
  refused([](Header& h) { h.vocab = 0; }, EDGEKIT_DAMAGED, "vocabulary");
  refused([](Header& h) { h.vocab -= 1; }, EDGEKIT_DAMAGED, "length");
  refused([](Header& h) { h.merges.offset = 0xfffffffc; }, EDGEKIT_DAMAGED, "outside");
  refused([](Header& h) { h.token_bytes.count = 0xffffffff; }, EDGEKIT_DAMAGED, "outside");
  refused([](Header& h) { h.token_ends.offset += 2; }, EDGEKIT_DAMAGED, "outside");
  refused([](Header& h) { h.token_bytes.count -= 1; }, EDGEKIT_DAMAGED, "token");
  refused([](Header& h) { h.unknown = 257; }, EDGEKIT_DAMAGED, "unknown");
  refused([](Header& h) { h.raw_added = 1; }, EDGEKIT_DAMAGED, "added");
  refused([](Header& h) { h.decoder = 9; }, EDGEKIT_UNSUPPORTED, "decoder");
}

TEST(an_id_outside_the_vocabulary_is_refused_wherever_it_stands) {
  const auto refused = [](auto change) {
    SectionParts parts = bytes_and({"<s>"});
    change(parts);
    Section section(parts);
    edgekit_error error{};
    CHECK(status_of(section, &error) == EDGEKIT_DAMAGED);
  };
  constexpr uint32_t kOutside = 257;
  refused([](SectionParts& parts) { parts.byte_ids[3] = kOutside; });
  refused([](SectionParts& parts) { parts.characters = {{'a', kOutside}}; });
  refused([](SectionParts& parts) { parts.strings = {kOutside}; });
  refused([](SectionParts& parts) { parts.before = {kOutside}; });
  refused([](SectionParts& parts) { parts.after = {kOutside}; });
  refused([](SectionParts& parts) { parts.merges[0] = {{kOutside, 0, 0}}; });
  refused([](SectionParts& parts) { parts.merges[0] = {{0, 0, kOutside}}; });
  refused([](SectionParts& parts) { parts.added = {{kOutside, 0, 0, 0}}, parts.added_texts = {"x"}; });
}

TEST(what_this_program_does_not_know_is_not_supported) {
  const auto refused = [](auto change) {
    SectionParts parts = bytes_and({});
    change(parts);
    Section section(parts);
    edgekit_error error{};
    CHECK(status_of(section, &error) == EDGEKIT_UNSUPPORTED);
  };
  refused([](SectionParts& parts) { parts.steps = {{0, 0}}; });
  refused([](SectionParts& parts) { parts.steps = {{static_cast<uint32_t>(StepKind::kPattern), 14}}; });
  refused([](SectionParts& parts) { parts.normalizers = {static_cast<NormalizerKind>(4)}; });
}

}  // namespace

EDGEKIT_TEST_MAIN
