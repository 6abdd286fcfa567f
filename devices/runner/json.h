// Writes JSON, value after value. Numbers that JSON does not have become null; text is made valid UTF-8.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace edgekit::runner {

class Json {
 public:
  Json& open_object();
  Json& close_object();
  Json& open_list();
  Json& close_list();
  Json& key(std::string_view name);
  Json& value(std::string_view text);
  Json& value(const char* text) { return value(std::string_view(text)); }
  Json& value(double number);
  Json& value(uint64_t number);
  Json& value(uint32_t number) { return value(uint64_t(number)); }
  Json& value(bool truth);
  Json& null();

  template <typename T>
  Json& member(std::string_view name, const T& content) {
    return key(name).value(content);
  }

  template <typename T>
  Json& list(std::string_view name, const std::vector<T>& values) {
    key(name).open_list();
    for (const T& content : values) {
      value(content);
    }
    return close_list();
  }

  const std::string& text() const { return text_; }

 private:
  void separate();

  std::string text_;
  bool needs_comma_ = false;
};

// Writes text and a newline to a file, or to stdout for "-". Throws Failure.
void write_text(const std::string& path, const std::string& text);

}  // namespace edgekit::runner
