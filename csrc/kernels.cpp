// Plain C++ kernels for any CPU, and the choice among all of them.
#include "kernels.h"

#include <cstring>

#include "fetch.h"
#include "kvlingua.h"

namespace kvl {
namespace {

void rows(char* dst, const char* src, const Axis* loops, int64_t bytes, int64_t ahead) {
    const Axis &x = loops[0], &y = loops[1], &z = loops[2];
    for (int64_t i = 0; i < x.size; ++i)
        for (int64_t j = 0; j < y.size; ++j)
            for (int64_t k = 0; k < z.size; ++k) {
                const char* from = src + i * x.source + j * y.source + k * z.source;
                fetch_line<false>(beside(from, ahead));
                std::memcpy(dst + i * x.target + j * y.target + k * z.target, from, static_cast<size_t>(bytes));
            }
}

void placed_rows(char* dst, const char* src, const Place* place, size_t count, const Axis* loops, int64_t bytes,
                 size_t ahead) {
    for (size_t i = 0; i < count; ++i)
        rows(dst + place[i].target, src + place[i].source, loops, bytes, place[i + ahead].source - place[i].source);
}

template <int64_t kUnit>
void transpose(char* dst, int64_t dst_stride, const char* src, int64_t src_stride, int64_t rows, int64_t cols, int64_t,
               bool) {
    constexpr int64_t kTile = 64 / kUnit;  // a tile's lines on both sides stay in the first-level cache
    for (int64_t r0 = 0; r0 < rows; r0 += kTile) {
        const int64_t r1 = r0 + kTile < rows ? r0 + kTile : rows;
        for (int64_t c = 0; c < cols; ++c) {
            char* out = dst + c * dst_stride;
            const char* in = src + c * kUnit;
            for (int64_t r = r0; r < r1; ++r) std::memcpy(out + r * kUnit, in + r * src_stride, kUnit);
        }
    }
}

template <int64_t kUnit>
void zip(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t, bool) {
    for (int64_t k = 0; k < blocks.size; ++k, dst += blocks.target, src += blocks.source)
        for (int64_t i = 0; i < units * kUnit; i += kUnit) {
            std::memcpy(dst + 2 * i, src + i, kUnit);
            std::memcpy(dst + 2 * i + kUnit, src + stride + i, kUnit);
        }
}

template <int64_t kUnit>
void unzip(char* dst, const char* src, int64_t stride, int64_t units, const Axis& blocks, int64_t, bool) {
    for (int64_t k = 0; k < blocks.size; ++k, dst += blocks.target, src += blocks.source)
        for (int64_t i = 0; i < units * kUnit; i += kUnit) {
            std::memcpy(dst + i, src + 2 * i, kUnit);
            std::memcpy(dst + stride + i, src + 2 * i + kUnit, kUnit);
        }
}

}  // namespace

const Kernels kPortable = {"portable",
                           rows,
                           rows,
                           placed_rows,
                           placed_rows,
                           {transpose<1>, transpose<2>, transpose<4>, transpose<8>, transpose<16>},
                           {zip<1>, zip<2>, zip<4>},
                           {unzip<1>, unzip<2>, unzip<4>},
                           [] {}};

const Kernels* find_kernels(int32_t which) {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    const bool avx2 = __builtin_cpu_supports("avx2");
    if (which == KVL_AVX512 || (which == KVL_BEST && avx512)) return avx512 ? &kAvx512 : nullptr;
    if (which == KVL_AVX2 || (which == KVL_BEST && avx2)) return avx2 ? &kAvx2 : nullptr;
#elif defined(__AARCH64EL__)
    if (which == KVL_NEON || which == KVL_BEST) return &kNeon;
#endif
    return which == KVL_BEST || which == KVL_PORTABLE ? &kPortable : nullptr;
}

}  // namespace kvl
