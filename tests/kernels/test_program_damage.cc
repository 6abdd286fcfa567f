// Damaged program files: cut short, with bytes flipped, with counts and offsets that lie. Whatever is done to the
// tables, opening gives a status, and what opens runs without touching memory that is not its own (sanitizers watch).
#include <string>

#include "check.h"
#include "program_builder.h"
#include "program_handles.h"

namespace edgekit::testing {
namespace {

using format::SectionKind;

ModelShape small_shape() {
  ModelShape shape;
  shape.layers = 1;
  shape.hidden = 32;
  shape.heads = 2;
  shape.kv_heads = 1;
  shape.head_dim = 8;
  shape.intermediate = 32;
  shape.vocab = 20;
  shape.context = 64;
  shape.max_rows = 4;
  shape.bias = shape.qk_norm = true;
  return shape;
}

// The last buffer ends the arena and is narrower than the norms are long: who norms it reads past the arena.
ModelShape narrow_shape() {
  ModelShape shape = small_shape();
  shape.hidden = 64;
  shape.intermediate = 16;
  return shape;
}

// A valid file, and a place to damage it in.
class Patient {
 public:
  explicit Patient(const ModelShape& shape = small_shape()) {
    ProgramWriter writer(shape);
    writer.tokenizer.assign(100, 0x55);
    writer.probe.assign(64, 0x33);
    writer.bos = 1;
    writer.eos = {2, 3};
    whole_ = writer.write();
    data_ = aligned(whole_.data(), whole_.size());
  }

  size_t bytes() const { return whole_.size(); }
  uint8_t* data() { return data_.get(); }
  const std::vector<uint8_t>& whole() const { return whole_; }

  format::Header header() const { return read<format::Header>(0); }

  format::Section section(size_t i) const {
    return read<format::Section>(sizeof(format::Header) + i * sizeof(format::Section));
  }

  // Where the tables are: everything that is checked at load.
  std::vector<std::pair<size_t, size_t>> tables() const {
    const size_t table_end = sizeof(format::Header) + header().section_count * sizeof(format::Section);
    std::vector<std::pair<size_t, size_t>> ranges = {{0, table_end}};
    for (size_t i = 0; i < header().section_count; i++) {
      if (section(i).kind != static_cast<uint32_t>(SectionKind::kWeights)) {
        ranges.push_back({section(i).offset, section(i).offset + section(i).bytes});
      }
    }
    return ranges;
  }

  void heal() { std::memcpy(data_.get(), whole_.data(), whole_.size()); }

  // Makes every checksum right again, as far as the section table still says where sections are.
  void recompute_checksums() {
    format::Header header;
    std::memcpy(&header, data(), sizeof header);
    const uint64_t count = header.section_count < 16 ? header.section_count : 0;
    for (uint64_t i = 0; i < count; i++) {
      uint8_t* at = data() + sizeof header + i * sizeof(format::Section);
      format::Section section;
      std::memcpy(&section, at, sizeof section);
      if (section.offset <= bytes() && section.bytes <= bytes() - section.offset) {
        section.crc = crc32(data() + section.offset, section.bytes);
        std::memcpy(at, &section, sizeof section);
      }
    }
    header.section_table_crc = crc32(data() + sizeof header, count * sizeof(format::Section));
    std::memcpy(data(), &header, sizeof header);
    header.header_crc = crc32(data(), sizeof header - 4);
    std::memcpy(data(), &header, sizeof header);
  }

 private:
  template <typename T>
  T read(size_t at) const {
    T value;
    std::memcpy(&value, whole_.data() + at, sizeof value);
    return value;
  }

  std::vector<uint8_t> whole_;
  Bytes data_;
};

// Opens, and runs what opens: a prompt, a token, and the first positions again.
edgekit_status try_out(const uint8_t* data, size_t bytes, std::string* message = nullptr) {
  edgekit_program* opened = nullptr;
  edgekit_error error{};
  const edgekit_status status = edgekit_program_open(data, bytes, &opened, &error);
  const Program program(opened);
  if (message != nullptr) *message = error.message;
  CHECK((status == EDGEKIT_OK) == (opened != nullptr));
  CHECK(status == EDGEKIT_OK || std::strlen(error.message) > 10);
  if (status != EDGEKIT_OK) return status;

  const edgekit_session_options options = {0, 1, 1, 0, 0, EDGEKIT_KV_AS_PLANNED, {}};
  edgekit_session* made = nullptr;
  if (edgekit_session_create(opened, &options, &made, &error) != EDGEKIT_OK) return EDGEKIT_OK;
  const Session session(made);
  const uint32_t tokens[] = {1, 2, 3, 4, 5, 6};
  std::vector<float> logits(6 * edgekit_program_get_info(opened)->vocab);
  edgekit_session_forward(made, tokens, 6, logits.data(), 6, &error);
  edgekit_session_forward(made, tokens, 1, logits.data(), 1, &error);
  edgekit_session_reset(made, 0, &error);
  edgekit_session_forward(made, tokens, 5, logits.data(), 1, &error);
  return EDGEKIT_OK;
}

TEST(the_undamaged_file_opens) {
  Patient patient;
  CHECK(try_out(patient.data(), patient.bytes()) == EDGEKIT_OK);
  patient.recompute_checksums();
  CHECK(std::memcmp(patient.data(), patient.whole().data(), patient.bytes()) == 0);
}

TEST(a_file_cut_anywhere_is_refused) {
  Patient patient;
  std::vector<size_t> lengths;
  for (size_t length = 0; length < 400; length++) lengths.push_back(length);
  for (size_t i = 0; i < patient.header().section_count; i++) {
    const format::Section section = patient.section(i);
    for (const uint64_t edge : {section.offset, section.offset + section.bytes}) {
      for (const int64_t delta : {-65, -64, -2, -1, 0, 1, 2, 63, 64}) {
        const int64_t length = static_cast<int64_t>(edge) + delta;
        if (length >= 0 && length < static_cast<int64_t>(patient.bytes())) {
          lengths.push_back(static_cast<size_t>(length));
        }
      }
    }
  }
  for (const size_t length : lengths) {
    const Bytes cut = aligned(patient.whole().data(), length);
    CHECK_THAT(try_out(cut.get(), length) == EDGEKIT_DAMAGED, "length = %zu", length);
    if (length < sizeof(format::Header)) continue;
    // The header agrees with the shorter file; the sections do not.
    format::Header header = patient.header();
    header.file_bytes = length;
    header.header_crc = crc32(reinterpret_cast<const uint8_t*>(&header), sizeof header - 4);
    std::memcpy(cut.get(), &header, sizeof header);
    CHECK_THAT(try_out(cut.get(), length) == EDGEKIT_DAMAGED, "length = %zu, header made to agree", length);
  }
}

TEST(a_file_with_more_bytes_than_it_says_is_refused) {
  Patient patient;
  std::vector<uint8_t> longer = patient.whole();
  longer.push_back(0);
  const Bytes data = aligned(longer.data(), longer.size());
  std::string message;
  CHECK(try_out(data.get(), longer.size(), &message) == EDGEKIT_DAMAGED);
  CHECK(message == "the program file has " + std::to_string(longer.size()) + " bytes and should have " +
                       std::to_string(patient.bytes()));
}

TEST(every_flipped_byte_of_the_tables_is_noticed) {
  Patient patient;
  for (const auto& [begin, end] : patient.tables()) {
    for (size_t at = begin; at < end; at++) {
      for (const uint8_t mask : {0x01, 0x80, 0xff}) {
        patient.data()[at] ^= mask;
        CHECK_THAT(try_out(patient.data(), patient.bytes()) != EDGEKIT_OK, "byte %zu, mask %02x", at, mask);
        patient.data()[at] ^= mask;
      }
    }
  }
}

TEST(flipped_bytes_with_right_checksums_never_lead_outside) {
  Patient patient;
  size_t refused = 0;
  size_t opened = 0;
  for (const auto& [begin, end] : patient.tables()) {
    for (size_t at = begin; at < end; at++) {
      for (const uint8_t mask : {0x01, 0x10, 0x80, 0xff}) {
        patient.data()[at] ^= mask;
        patient.recompute_checksums();
        (try_out(patient.data(), patient.bytes()) == EDGEKIT_OK ? opened : refused)++;
        patient.heal();
      }
    }
  }
  // Some bytes may be anything (the rotary factor, advice on threads); most may not.
  CHECK_THAT(refused > opened, "refused %zu, opened %zu", refused, opened);
}

void tell_lies(Patient patient) {
  for (const auto& [begin, end] : patient.tables()) {
    for (size_t at = begin; at + 4 <= end; at += 4) {
      uint32_t truth;
      std::memcpy(&truth, patient.whole().data() + at, 4);
      for (const uint32_t lie : {0u, 1u, 2u, truth + 1, truth - 1, truth * 2, truth / 2, 16u, 65535u, 65536u, 1u << 20,
                                 0x7fffffffu, 0x80000000u, 0xfffffff0u, 0xfffffffeu, 0xffffffffu}) {
        if (lie == truth) continue;
        std::memcpy(patient.data() + at, &lie, 4);
        patient.recompute_checksums();
        try_out(patient.data(), patient.bytes());
        patient.heal();
      }
    }
    for (size_t at = begin; at + 8 <= end; at += 8) {
      for (const uint64_t lie : {~uint64_t(0), ~uint64_t(0) - 63, uint64_t(1) << 63, uint64_t(1) << 32,
                                 uint64_t(patient.bytes()), uint64_t(patient.bytes()) - 64}) {
        std::memcpy(patient.data() + at, &lie, 8);
        patient.recompute_checksums();
        try_out(patient.data(), patient.bytes());
        patient.heal();
      }
    }
  }
}

TEST(lying_counts_and_offsets_never_lead_outside) {
  tell_lies(Patient());
  tell_lies(Patient(narrow_shape()));
}

TEST(damaged_weights_are_found_by_verifying_and_never_crash) {
  Patient patient;
  const format::Section weights = patient.section(patient.header().section_count - 1);
  edgekit_error error{};
  CHECK(edgekit_verify_weights(open(aligned(patient.data(), patient.bytes()), patient.bytes()).get(), &error) ==
        EDGEKIT_OK);
  for (size_t at = weights.offset; at < weights.offset + weights.bytes; at += 97) {
    patient.data()[at] ^= 0xff;
    CHECK(try_out(patient.data(), patient.bytes()) == EDGEKIT_OK);
    patient.data()[at] ^= 0xff;
  }
  patient.data()[weights.offset + weights.bytes - 1] ^= 1;
  edgekit_program* program = nullptr;
  CHECK(edgekit_program_open(patient.data(), patient.bytes(), &program, &error) == EDGEKIT_OK);
  CHECK(edgekit_verify_weights(program, &error) == EDGEKIT_DAMAGED);
  CHECK(std::strcmp(error.message, "the weights of the program file are damaged") == 0);
  edgekit_program_close(program);
}

TEST(weights_that_are_not_numbers_never_crash) {
  Patient patient;
  const format::Section weights = patient.section(patient.header().section_count - 1);
  std::memset(patient.data() + weights.offset, 0xff, weights.bytes);
  CHECK(try_out(patient.data(), patient.bytes()) == EDGEKIT_OK);
  std::memset(patient.data() + weights.offset, 0x7f, weights.bytes);
  CHECK(try_out(patient.data(), patient.bytes()) == EDGEKIT_OK);
}

TEST(refusals_name_what_is_wrong) {
  Patient patient;
  std::string message;
  patient.data()[0] = 'E';
  CHECK(try_out(patient.data(), patient.bytes(), &message) == EDGEKIT_DAMAGED);
  CHECK(message == "this is not an edgekit program file");
  patient.heal();

  const uint32_t newer = format::kVersion + 1;
  std::memcpy(patient.data() + 8, &newer, 4);
  patient.recompute_checksums();
  CHECK(try_out(patient.data(), patient.bytes(), &message) == EDGEKIT_UNSUPPORTED);
  CHECK(message == "the program file has version 2 and this program reads version 1");
  patient.heal();

  patient.data()[patient.section(1).offset] ^= 1;
  CHECK(try_out(patient.data(), patient.bytes(), &message) == EDGEKIT_DAMAGED);
  CHECK(message == "section 'operators' of the program file is damaged");
  patient.heal();

  const uint32_t unknown = 99;
  std::memcpy(patient.data() + patient.section(1).offset, &unknown, 4);
  patient.recompute_checksums();
  CHECK(try_out(patient.data(), patient.bytes(), &message) == EDGEKIT_UNSUPPORTED);
  CHECK(message == "operator 0 of the program file has the unknown kind 99");
}

TEST(a_cache_of_an_unknown_format_is_refused) {
  Patient patient;
  for (const uint32_t value : {0u, 1u, 2u, 0x100u, UINT32_MAX}) {
    std::memcpy(patient.data() + patient.section(0).offset + offsetof(format::Config, kv_format), &value, 4);
    patient.recompute_checksums();
    CHECK_THAT(try_out(patient.data(), patient.bytes()) == (value < 2 ? EDGEKIT_OK : EDGEKIT_DAMAGED), "%u", value);
    patient.heal();
  }
}

TEST(a_field_that_its_kind_does_not_use_is_refused) {
  struct Lie {
    size_t op, field;  // of 4 bytes; 0 embed, 1 norm and linear, 2 attention, 3 and 5 linear and add, 6 head
    uint32_t value;
  };
  constexpr size_t kLayer = 1, kInput = 2, kOutput = 3, kNorm = 4, kBias = 8, kQNorm = 11, kKNorm = 12, kRope = 13,
                   kDecodeKernel = 14, kPrefillKernel = 15, kWindow = 16, kEps = 17, kScale = 18, kRopeScale = 19,
                   kReserved = 20;
  constexpr uint32_t kHalf = 0x3f000000;  // 0.5f
  Patient patient;
  for (const Lie& lie : std::vector<Lie>{
           {0, kInput, 0},     {0, kNorm, 2},      {0, kBias, 2},      {0, kDecodeKernel, 0}, {0, kPrefillKernel, 0},
           {0, kEps, kHalf},   {1, kLayer, 1},     {1, kQNorm, 0},     {1, kKNorm, 0},        {1, kRope, 0},
           {1, kWindow, 1},    {1, kScale, kHalf}, {1, kRopeScale, 0}, {2, kNorm, 2},         {2, kDecodeKernel, 0},
           {2, kReserved, 1},  {3, kNorm, 2},      {3, kEps, kHalf},   {5, kNorm, 2},         {6, kOutput, 0},
       }) {
    std::memcpy(patient.data() + patient.section(1).offset + lie.op * sizeof(format::Operator) + lie.field * 4,
                &lie.value, 4);
    patient.recompute_checksums();
    std::string message;
    CHECK(try_out(patient.data(), patient.bytes(), &message) == EDGEKIT_DAMAGED);
    CHECK_THAT(message == "operator " + std::to_string(lie.op) +
                              " of the program file has a field that its kind does not use",
               "field %zu: %s", lie.field, message.c_str());
    patient.heal();
  }
}

TEST(data_that_is_not_aligned_is_refused) {
  Patient patient;
  std::vector<uint8_t> shifted(patient.bytes() + 128);
  const size_t misalignment = 64 - reinterpret_cast<uintptr_t>(shifted.data()) % 64 + 8;
  std::memcpy(shifted.data() + misalignment, patient.whole().data(), patient.bytes());
  CHECK(try_out(shifted.data() + misalignment, patient.bytes()) == EDGEKIT_BAD_ARGUMENT);
}

}  // namespace
}  // namespace edgekit::testing

#if defined(__SANITIZE_ADDRESS__)
// A lie may ask for more memory than there is: that is to be a status, too.
extern "C" const char* __asan_default_options() { return "allocator_may_return_null=1"; }
#endif

EDGEKIT_TEST_MAIN
