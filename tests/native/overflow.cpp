// Does on purpose what a sanitizer must stop: `overflow heap` lets the library write behind an allocation, by a plan
// that lies about its memory; `overflow shift` is undefined without touching memory. Prints "unnoticed" if nothing
// stops it.
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <memory>

#include "kvlingua.h"

namespace {

// One plane of `elements` 2-byte numbers; the spans promise memory for all of them on both sides.
int32_t copy(const char* source, char* target, int64_t elements) {
    const int64_t table = 0;
    const uint64_t from = reinterpret_cast<uint64_t>(source), to = reinterpret_cast<uint64_t>(target);
    const uint64_t bytes = static_cast<uint64_t>(elements) * 2;
    const kvl_span source_span = {from, from + bytes}, target_span = {to, to + bytes};
    kvl_plane plane{};
    plane.source_type = plane.target_type = KVL_BF16;
    plane.factor = 1.0f;
    plane.heads = plane.dims = 1;
    plane.dim[0] = {elements, 2, 2};
    plane.source.base = &from;
    plane.target.base = &to;
    kvl_plan plan{};
    plan.threads = 1;
    plan.tokens = plan.heads = plan.layers = plan.planes = 1;
    plan.plane = &plane;
    plan.source = {&table, 1, 1, 1, 0, &source_span, 1};
    plan.target = {&table, 1, 1, 1, 0, &target_span, 1};
    return kvl_convert(&plan);
}

}  // namespace

int main(int argc, char** argv) {
    const bool heap = argc == 2 && !std::strcmp(argv[1], "heap"), shift = argc == 2 && !std::strcmp(argv[1], "shift");
    if (!heap && !shift) {
        std::fprintf(stderr, "usage: overflow heap|shift\n");
        return 2;
    }
    constexpr int64_t kElements = 37;
    const auto source = std::make_unique<char[]>(2 * kElements + 2);
    const auto target = std::make_unique<char[]>(2 * kElements);
    int32_t code = copy(source.get(), target.get(), kElements);  // the control: this one is right
    if (code != KVL_OK) {
        std::fprintf(stderr, "overflow: a right plan is refused with %d\n", code);
        return 3;
    }
    if (heap) code = copy(source.get(), target.get(), kElements + 1);
    if (shift) code = 1 << (31 + argc);
    std::printf("unnoticed %d\n", code);
    return 0;
}
