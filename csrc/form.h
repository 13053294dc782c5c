// What the objects of one namespace and extent look like, and whether some bytes are one.
#ifndef KVLINGUA_FORM_H_
#define KVLINGUA_FORM_H_

#include <cstdint>
#include <vector>

#include "kvlingua.h"
#include "xxh3.h"

namespace kvl {

constexpr int64_t kChainDigits = 64, kPositionDigits = 10;

// A caller's form, which must outlive this.
class Form {
  public:
    // KVL_OK, or what is wrong with the numbers; nothing else may be called unless they are right.
    static int32_t check(const kvl_form& form);

    Form(const kvl_form& form, Xxh3Blocks blocks);

    const kvl_form& form() const { return form_; }

    // A part, and the byte after its last one.
    struct Part {
        const kvl_part* part;
        uint64_t end;
    };
    // The parts in the order in which they are complete when a file is read from its beginning.
    const std::vector<Part>& parts() const { return parts_; }
    // What has to be read, in order: the header and the parts, joined where they touch.
    const std::vector<kvl_span>& spans() const { return spans_; }

    // KVL_DONE, KVL_OTHER or KVL_DAMAGED, for an object whose header is at `object`.
    int32_t check_header(const char* object, const char* chain) const;
    // Whether a part's bytes have the checksum that the header says.
    bool intact(const char* object, const kvl_part& part) const;
    // Writes the header of an object whose data are there.
    void seal(char* object, const char* chain, int64_t first_token) const;

  private:
    void checksum(const char* object, const kvl_part& part, char (&digits)[Xxh3::kDigits]) const;
    void header_checksum(const char* object, char (&digits)[Xxh3::kDigits]) const;
    bool begins_a_chunk(const char* digits) const;

    const kvl_form& form_;
    Xxh3Blocks blocks_;
    std::vector<Part> parts_;
    std::vector<kvl_span> spans_;
};

}  // namespace kvl

#endif  // KVLINGUA_FORM_H_
