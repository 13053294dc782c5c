#include "xxh3.h"

#include <algorithm>
#include <cstring>

#include "kvlingua.h"

namespace kvl {

const unsigned char kXxh3Secret[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e,
};

namespace {

constexpr uint64_t kPrime32[] = {0x9E3779B1, 0x85EBCA77, 0xC2B2AE3D};
constexpr uint64_t kPrime64[] = {0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63,
                                 0x27D4EB2F165667C5};
constexpr uint64_t kMix1 = 0x165667919E3779F9, kMix2 = 0x9FB21C651E98DF25;
constexpr size_t kSecretBytes = sizeof kXxh3Secret;

// Numbers in the input and in the secret are little-endian.
template <typename T>
T read(const void* p) {
    T value;
    std::memcpy(&value, p, sizeof value);
#if __BYTE_ORDER__ == __ORDER_BIG_ENDIAN__
    value = sizeof value == 8 ? static_cast<T>(__builtin_bswap64(value)) : static_cast<T>(__builtin_bswap32(value));
#endif
    return value;
}

uint64_t secret(size_t place) { return read<uint64_t>(kXxh3Secret + place); }

struct Product {
    uint64_t low, high;
};

Product multiplied(uint64_t a, uint64_t b) {
    const unsigned __int128 product = static_cast<unsigned __int128>(a) * b;
    return {static_cast<uint64_t>(product), static_cast<uint64_t>(product >> 64)};
}

uint64_t folded(uint64_t a, uint64_t b) {
    const Product product = multiplied(a, b);
    return product.low ^ product.high;
}

uint64_t avalanche(uint64_t x) {
    x = (x ^ x >> 37) * kMix1;
    return x ^ x >> 32;
}

uint64_t avalanche64(uint64_t x) {
    x = (x ^ x >> 33) * kPrime64[1];
    x = (x ^ x >> 29) * kPrime64[2];
    return x ^ x >> 32;
}

struct Halves {
    uint64_t low, high;
};

Halves up_to_3(const unsigned char* p, size_t bytes) {
    if (bytes == 0) return {avalanche64(secret(64) ^ secret(72)), avalanche64(secret(80) ^ secret(88))};
    const uint32_t word = uint32_t{p[bytes - 1]} | static_cast<uint32_t>(bytes) << 8 | uint32_t{p[0]} << 16 |
                          uint32_t{p[bytes / 2]} << 24;
    const uint32_t swapped = __builtin_bswap32(word);
    const auto key = [](size_t place) {
        return uint64_t{read<uint32_t>(kXxh3Secret + place) ^ read<uint32_t>(kXxh3Secret + place + 4)};
    };
    return {avalanche64(key(0) ^ word), avalanche64(key(8) ^ (swapped << 13 | swapped >> 19))};
}

Halves up_to_8(const unsigned char* p, size_t bytes) {
    const uint64_t word = read<uint32_t>(p) | uint64_t{read<uint32_t>(p + bytes - 4)} << 32;
    auto [low, high] = multiplied(secret(16) ^ secret(24) ^ word, kPrime64[0] + (bytes << 2));
    high += low << 1;
    low ^= high >> 3;
    low = (low ^ low >> 35) * kMix2;
    return {low ^ low >> 28, avalanche(high)};
}

Halves up_to_16(const unsigned char* p, size_t bytes) {
    const uint64_t first = read<uint64_t>(p), last = read<uint64_t>(p + bytes - 8);
    const uint64_t b = secret(48) ^ secret(56) ^ last;
    const Product a = multiplied(secret(32) ^ secret(40) ^ first ^ last, kPrime64[0]);
    const uint64_t low = a.low + (uint64_t{bytes - 1} << 54);
    const uint64_t high = a.high + b + (b & 0xFFFFFFFF) * (kPrime32[1] - 1);
    const Product result = multiplied(low ^ __builtin_bswap64(high), kPrime64[1]);
    return {avalanche(result.low), avalanche(result.high + high * kPrime64[1])};
}

// Mixes two pieces of 16 bytes into the two sums.
void mix(Halves* sums, const unsigned char* a, const unsigned char* b, size_t place) {
    const auto half = [](const unsigned char* p, size_t at) {
        return folded(read<uint64_t>(p) ^ secret(at), read<uint64_t>(p + 8) ^ secret(at + 8));
    };
    sums->low = (sums->low + half(a, place)) ^ (read<uint64_t>(b) + read<uint64_t>(b + 8));
    sums->high = (sums->high + half(b, place + 16)) ^ (read<uint64_t>(a) + read<uint64_t>(a + 8));
}

Halves up_to_240(const unsigned char* p, size_t bytes) {
    Halves sums = {bytes * kPrime64[0], 0};
    if (bytes <= 128) {
        for (size_t i = (bytes - 1) / 32 + 1; i-- > 0;) mix(&sums, p + 16 * i, p + bytes - 16 * i - 16, 32 * i);
    } else {
        for (size_t i = 0; i < 4; ++i) mix(&sums, p + 32 * i, p + 32 * i + 16, 32 * i);
        sums = {avalanche(sums.low), avalanche(sums.high)};
        for (size_t i = 4; i < bytes / 32; ++i) mix(&sums, p + 32 * i, p + 32 * i + 16, 32 * (i - 4) + 3);
        mix(&sums, p + bytes - 16, p + bytes - 32, 103);
    }
    const uint64_t high = sums.low * kPrime64[0] + sums.high * kPrime64[3] + bytes * kPrime64[1];
    return {avalanche(sums.low + sums.high), 0 - avalanche(high)};
}

void accumulate(uint64_t* acc, const char* stripe, size_t place) {
    for (size_t i = 0; i < 8; ++i) {
        const uint64_t data = read<uint64_t>(stripe + 8 * i), value = data ^ secret(place + 8 * i);
        acc[i ^ 1] += data;
        acc[i] += (value & 0xFFFFFFFF) * (value >> 32);
    }
}

uint64_t merged(const uint64_t* acc, uint64_t start, size_t place) {
    for (size_t i = 0; i < 8; i += 2)
        start += folded(acc[i] ^ secret(place + 8 * i), acc[i + 1] ^ secret(place + 8 * i + 8));
    return avalanche(start);
}

}  // namespace

void xxh3_blocks_portable(uint64_t* acc, const char* data, size_t blocks) {
    for (; blocks; --blocks) {
        for (size_t i = 0; i < kStripesPerBlock; ++i, data += kStripeBytes) accumulate(acc, data, 8 * i);
        for (size_t i = 0; i < 8; ++i)
            acc[i] = (acc[i] ^ acc[i] >> 47 ^ secret(kSecretBytes - kStripeBytes + 8 * i)) * kPrime32[0];
    }
}

Xxh3Blocks find_xxh3(int32_t kernels) {
#if defined(__x86_64__)
    const bool avx512 = __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw");
    const bool avx2 = __builtin_cpu_supports("avx2");
    if (kernels == KVL_AVX512 || (kernels == KVL_BEST && avx512)) return avx512 ? xxh3_blocks_avx512 : nullptr;
    if (kernels == KVL_AVX2 || (kernels == KVL_BEST && avx2)) return avx2 ? xxh3_blocks_avx2 : nullptr;
#elif defined(__AARCH64EL__)
    if (kernels == KVL_NEON || kernels == KVL_BEST) return xxh3_blocks_neon;
#endif
    return kernels == KVL_BEST || kernels == KVL_PORTABLE ? xxh3_blocks_portable : nullptr;
}

Xxh3::Xxh3(Xxh3Blocks blocks)
    : blocks_(blocks), accumulators_{kPrime32[2], kPrime64[0], kPrime64[1], kPrime64[2],
                                     kPrime64[3], kPrime32[1], kPrime64[4], kPrime32[0]} {}

void Xxh3::update(const char* data, size_t bytes) {
    char* const held = buffer_ + kStripeBytes;
    total_ += bytes;
    if (held_ + bytes > kBlockBytes) {
        if (held_) {
            const size_t lacking = kBlockBytes - held_;
            std::memcpy(held + held_, data, lacking);
            blocks_(accumulators_, held, 1);
            std::memcpy(buffer_, held + kBlockBytes - kStripeBytes, kStripeBytes);
            data += lacking;
            bytes -= lacking;
            held_ = 0;
        }
        const size_t blocks = (bytes - 1) / kBlockBytes;
        if (blocks) {
            blocks_(accumulators_, data, blocks);
            data += blocks * kBlockBytes;
            bytes -= blocks * kBlockBytes;
            std::memcpy(buffer_, data - kStripeBytes, kStripeBytes);
        }
    }
    if (bytes) std::memcpy(held + held_, data, bytes);
    held_ += bytes;
}

Xxh3::Value Xxh3::large() const {
    uint64_t acc[8];
    std::copy(accumulators_, accumulators_ + 8, acc);
    const char* held = buffer_ + kStripeBytes;
    for (size_t i = 0; i < (held_ - 1) / kStripeBytes; ++i) accumulate(acc, held + i * kStripeBytes, 8 * i);
    accumulate(acc, held + held_ - kStripeBytes, kSecretBytes - kStripeBytes - 7);
    return {merged(acc, total_ * kPrime64[0], 11),
            merged(acc, ~(total_ * kPrime64[1]), kSecretBytes - kStripeBytes - 11)};
}

Xxh3::Value Xxh3::value() const {
    if (total_ > 240) return large();
    const unsigned char* held = reinterpret_cast<const unsigned char*>(buffer_) + kStripeBytes;
    const auto small = total_ <= 3 ? up_to_3 : total_ <= 8 ? up_to_8 : total_ <= 16 ? up_to_16 : up_to_240;
    const Halves halves = small(held, static_cast<size_t>(total_));
    return {halves.low, halves.high};
}

void Xxh3::digits(char (&out)[kDigits]) const {
    const Value result = value();
    for (size_t i = 0; i < 16; ++i) {
        const int shift = static_cast<int>(60 - 4 * i);
        out[i] = "0123456789abcdef"[result.high >> shift & 15];
        out[16 + i] = "0123456789abcdef"[result.low >> shift & 15];
    }
}

}  // namespace kvl
