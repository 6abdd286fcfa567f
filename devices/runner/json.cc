#include "json.h"

#include <cmath>
#include <cstdio>

#include "failure.h"

namespace edgekit::runner {
namespace {

// Length of the UTF-8 character at the start of `text`, or 0 if there is none: overlong forms, surrogates and code
// points above U+10FFFF are not characters.
size_t character_length(std::string_view text) {
  const auto byte = [&](size_t i) { return static_cast<unsigned char>(text[i]); };
  const unsigned char lead = byte(0);
  if (lead < 0x80) {
    return 1;
  }
  size_t length = lead >= 0xc2 && lead <= 0xdf ? 2 : 0;
  length = lead >= 0xe0 && lead <= 0xef ? 3 : length;
  length = lead >= 0xf0 && lead <= 0xf4 ? 4 : length;
  if (length == 0 || text.size() < length) {
    return 0;
  }
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) {
      return 0;
    }
  }
  const bool possible = !(lead == 0xe0 && byte(1) < 0xa0) && !(lead == 0xed && byte(1) > 0x9f) &&
                        !(lead == 0xf0 && byte(1) < 0x90) && !(lead == 0xf4 && byte(1) > 0x8f);
  return possible ? length : 0;
}

}  // namespace

void Json::separate() {
  if (needs_comma_) {
    text_ += ',';
  }
  needs_comma_ = true;
}

Json& Json::open_object() {
  separate();
  text_ += '{';
  needs_comma_ = false;
  return *this;
}

Json& Json::close_object() {
  text_ += '}';
  needs_comma_ = true;
  return *this;
}

Json& Json::open_list() {
  separate();
  text_ += '[';
  needs_comma_ = false;
  return *this;
}

Json& Json::close_list() {
  text_ += ']';
  needs_comma_ = true;
  return *this;
}

Json& Json::key(std::string_view name) {
  value(name);
  text_ += ':';
  needs_comma_ = false;
  return *this;
}

Json& Json::value(std::string_view content) {
  separate();
  text_ += '"';
  while (!content.empty()) {
    const size_t length = character_length(content);
    const auto first = static_cast<unsigned char>(content[0]);
    if (length == 0) {
      text_ += "\xef\xbf\xbd";
    } else if (first == '"' || first == '\\') {
      text_ += '\\';
      text_ += content[0];
    } else if (first < 0x20 || first == 0x7f) {
      char escaped[8];
      std::snprintf(escaped, sizeof escaped, "\\u%04x", first);
      text_ += escaped;
    } else {
      text_ += content.substr(0, length);
    }
    content.remove_prefix(length > 0 ? length : 1);
  }
  text_ += '"';
  return *this;
}

Json& Json::value(double number) {
  if (!std::isfinite(number)) {
    return null();
  }
  separate();
  char digits[32];
  std::snprintf(digits, sizeof digits, "%.9g", number);
  text_ += digits;
  return *this;
}

Json& Json::value(uint64_t number) {
  separate();
  text_ += std::to_string(number);
  return *this;
}

Json& Json::value(bool truth) {
  separate();
  text_ += truth ? "true" : "false";
  return *this;
}

Json& Json::null() {
  separate();
  text_ += "null";
  return *this;
}

void write_text(const std::string& path, const std::string& text) {
  std::FILE* file = path == "-" ? stdout : std::fopen(path.c_str(), "wb");
  const bool opened = file != nullptr;
  bool written = opened && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  if (opened) {
    written = std::fputc('\n', file) != EOF && written;
    written = (file == stdout ? std::fflush(file) : std::fclose(file)) == 0 && written;
  }
  if (!written) {
    throw Failure{kUsage, "'" + path + "' cannot be written", "name a file in a folder that you may write to"};
  }
}

}  // namespace edgekit::runner
