// Encodes and decodes many texts in one process, so that a test can compare them with the `tokenizers` package.
//
//   tokenizer_cli SECTION < requests > replies
//
// A request is a letter, a u32 count and its payload: e/E encode (E with the template) that many bytes; d/D/x/X decode
// that many u32 ids (capital: skip special tokens; x: exact pace). A reply is a u32 count and its payload: ids for
// encode, bytes for decode. A section that does not open gives one line on stderr and exit code 10 + status.
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <string>
#include <vector>

#include "tokenizer/tokenizer.h"

namespace {

using edgekit::tokenizer::Decoder;
using edgekit::tokenizer::Tokenizer;

std::vector<uint8_t> read_file(const char* path) {
  std::vector<uint8_t> content;
  FILE* file = fopen(path, "rb");
  if (file == nullptr) exit(2);
  uint8_t chunk[65536];
  for (size_t got; (got = fread(chunk, 1, sizeof chunk, file)) > 0;) content.insert(content.end(), chunk, chunk + got);
  fclose(file);
  return content;
}

template <typename Items>
void reply(const Items& items) {
  const auto count = static_cast<uint32_t>(items.size());
  fwrite(&count, sizeof count, 1, stdout);
  fwrite(items.data(), sizeof items[0], items.size(), stdout);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 2) return 2;
  const std::vector<uint8_t> section = read_file(argv[1]);
  Tokenizer tokenizer;
  edgekit_error error{};
  if (const edgekit_status status = tokenizer.open(section.data(), section.size(), &error); status != EDGEKIT_OK) {
    fprintf(stderr, "%s\n", error.message);
    return 10 + static_cast<int>(status);
  }
  char kind = 0;
  uint32_t count = 0;
  while (fread(&kind, 1, 1, stdin) == 1 && fread(&count, sizeof count, 1, stdin) == 1) {
    if (kind == 'e' || kind == 'E') {
      std::string text(count, '\0');
      if (fread(text.data(), 1, count, stdin) != count) return 2;
      std::vector<uint32_t> ids;
      if (tokenizer.encode(text, kind == 'E', &ids, &error) != EDGEKIT_OK) return 3;
      reply(ids);
    } else {
      std::vector<uint32_t> ids(count);
      if (fread(ids.data(), sizeof ids[0], count, stdin) != count) return 2;
      const bool is_exact = kind == 'x' || kind == 'X';
      Decoder decoder(tokenizer, is_exact ? Decoder::Pace::kExact : Decoder::Pace::kStream, kind == 'D' || kind == 'X');
      std::string text;
      for (const uint32_t id : ids) text += decoder.push(id);
      reply(text += decoder.finish());
    }
  }
  return 0;
}
