#include "form.h"

#include <algorithm>
#include <cstring>

namespace kvl {
namespace {

constexpr int64_t kDigits = static_cast<int64_t>(Xxh3::kDigits);
constexpr int64_t kMostHeader = 1 << 20, kMostObject = int64_t{1} << 40;

bool within(int64_t begin, int64_t bytes, int64_t end) { return begin >= 0 && begin <= end - bytes; }

}  // namespace

int32_t Form::check(const kvl_form& form) {
    if (!form.header || (form.fields && !form.field) || (form.runs && !form.run) || (form.parts && !form.part))
        return KVL_NULL;
    if (form.header_bytes < 8 || form.header_bytes > kMostHeader || form.object_bytes < form.header_bytes ||
        form.object_bytes > kMostObject || form.chunk_tokens < 1 || form.fields < 0 || form.runs < 0 || form.parts < 0)
        return KVL_SIZE;
    if (!within(form.chain, kChainDigits, form.header_bytes) ||
        !within(form.first_token, kPositionDigits, form.header_bytes) ||
        !within(form.header_checksum, kDigits, form.header_bytes))
        return KVL_SIZE;
    uint64_t end = 0;
    for (const kvl_span* field = form.field; field < form.field + form.fields; end = field++->end)
        if (field->begin < end || field->end < field->begin) return KVL_SIZE;
    if (end > static_cast<uint64_t>(form.header_bytes)) return KVL_SIZE;
    for (const kvl_span* run = form.run; run < form.run + form.runs; ++run)
        if (run->begin < static_cast<uint64_t>(form.header_bytes) || run->end <= run->begin ||
            run->end > static_cast<uint64_t>(form.object_bytes))
            return KVL_SIZE;
    for (const kvl_part* part = form.part; part < form.part + form.parts; ++part)
        if (!within(part->place, kDigits, form.header_bytes) || part->runs < 1 || part->runs > form.runs ||
            !within(part->run, part->runs, form.runs))
            return KVL_SIZE;
    return KVL_OK;
}

Form::Form(const kvl_form& form, Xxh3Blocks blocks) : form_(form), blocks_(blocks) {
    std::vector<kvl_span> spans = {{0, static_cast<uint64_t>(form.header_bytes)}};
    for (const kvl_part* part = form.part; part < form.part + form.parts; ++part) {
        uint64_t end = 0;
        for (const kvl_span* run = form.run + part->run; run < form.run + part->run + part->runs; ++run) {
            spans.push_back(*run);
            end = std::max(end, run->end);
        }
        parts_.push_back({part, end});
    }
    std::sort(parts_.begin(), parts_.end(), [](const Part& a, const Part& b) { return a.end < b.end; });
    std::sort(spans.begin(), spans.end(), [](const kvl_span& a, const kvl_span& b) { return a.begin < b.begin; });
    for (const kvl_span& span : spans) {
        if (spans_.empty() || span.begin > spans_.back().end)
            spans_.push_back(span);
        else
            spans_.back().end = std::max(spans_.back().end, span.end);
    }
}

int32_t Form::check_header(const char* object, const char* chain) const {
    uint64_t begin = 0;
    for (const kvl_span* field = form_.field; field < form_.field + form_.fields; begin = field++->end)
        if (std::memcmp(object + begin, form_.header + begin, field->begin - begin) != 0) return KVL_OTHER;
    if (std::memcmp(object + begin, form_.header + begin, static_cast<uint64_t>(form_.header_bytes) - begin) != 0)
        return KVL_OTHER;
    if (std::memcmp(object + form_.chain, chain, kChainDigits) != 0 || !begins_a_chunk(object + form_.first_token))
        return KVL_OTHER;
    char digits[Xxh3::kDigits];
    header_checksum(object, digits);
    return std::memcmp(object + form_.header_checksum, digits, sizeof digits) == 0 ? KVL_DONE : KVL_DAMAGED;
}

bool Form::intact(const char* object, const kvl_part& part) const {
    char digits[Xxh3::kDigits];
    checksum(object, part, digits);
    return std::memcmp(object + part.place, digits, sizeof digits) == 0;
}

void Form::seal(char* object, const char* chain, int64_t first_token) const {
    std::memcpy(object, form_.header, static_cast<size_t>(form_.header_bytes));
    std::memcpy(object + form_.chain, chain, kChainDigits);
    for (int64_t i = kPositionDigits; i-- > 0; first_token /= 10)
        object[form_.first_token + i] = static_cast<char>('0' + first_token % 10);
    char digits[Xxh3::kDigits];
    for (const Part& part : parts_) {
        checksum(object, *part.part, digits);
        std::memcpy(object + part.part->place, digits, sizeof digits);
    }
    header_checksum(object, digits);
    std::memcpy(object + form_.header_checksum, digits, sizeof digits);
}

void Form::checksum(const char* object, const kvl_part& part, char (&digits)[Xxh3::kDigits]) const {
    Xxh3 sum(blocks_);
    for (const kvl_span* run = form_.run + part.run; run < form_.run + part.run + part.runs; ++run)
        sum.update(object + run->begin, run->end - run->begin);
    sum.digits(digits);
}

void Form::header_checksum(const char* object, char (&digits)[Xxh3::kDigits]) const {
    std::memset(digits, '0', sizeof digits);
    const int64_t rest = form_.header_checksum + kDigits;
    Xxh3 sum(blocks_);
    sum.update(object, static_cast<size_t>(form_.header_checksum));
    sum.update(digits, sizeof digits);
    sum.update(object + rest, static_cast<size_t>(form_.header_bytes - rest));
    sum.digits(digits);
}

bool Form::begins_a_chunk(const char* digits) const {
    int64_t position = 0;
    for (int64_t i = 0; i < kPositionDigits; ++i) {
        if (digits[i] < '0' || digits[i] > '9') return false;
        position = 10 * position + (digits[i] - '0');
    }
    return position % form_.chunk_tokens == 0;
}

}  // namespace kvl
