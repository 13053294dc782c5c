// Rows that don't fill a line: nothing to be gained from wide vectors, much from a size that the compiler knows.
#include <cstring>

#include "kernels.h"

namespace kvl {
namespace {

template <size_t kBytes>
void fixed(char* dst, const char* src, const Axis* loops, int64_t) {
    const Axis &x = loops[0], &y = loops[1], &z = loops[2];
    for (int64_t i = 0; i < x.size; ++i)
        for (int64_t j = 0; j < y.size; ++j) {
            char* to = dst + i * x.target + j * y.target;
            const char* from = src + i * x.source + j * y.source;
            for (int64_t k = 0; k < z.size; ++k, to += z.target, from += z.source) std::memcpy(to, from, kBytes);
        }
}

void any(char* dst, const char* src, const Axis* loops, int64_t bytes) {
    const Axis &x = loops[0], &y = loops[1], &z = loops[2];
    for (int64_t i = 0; i < x.size; ++i)
        for (int64_t j = 0; j < y.size; ++j)
            for (int64_t k = 0; k < z.size; ++k)
                std::memcpy(dst + i * x.target + j * y.target + k * z.target,
                            src + i * x.source + j * y.source + k * z.source, static_cast<size_t>(bytes));
}

}  // namespace

void short_rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t) {
    switch (bytes) {
        case 1:
            return fixed<1>(dst, src, loops, bytes);
        case 2:
            return fixed<2>(dst, src, loops, bytes);
        case 4:
            return fixed<4>(dst, src, loops, bytes);
        case 8:
            return fixed<8>(dst, src, loops, bytes);
        case 16:
            return fixed<16>(dst, src, loops, bytes);
        case 32:
            return fixed<32>(dst, src, loops, bytes);
        case 48:
            return fixed<48>(dst, src, loops, bytes);
        default:
            return any(dst, src, loops, bytes);
    }
}

}  // namespace kvl
