// XXH3-128 with seed 0 and the default secret, after the algorithm's published description.
#ifndef KVLINGUA_XXH3_H_
#define KVLINGUA_XXH3_H_

#include <cstddef>
#include <cstdint>

namespace kvl {

constexpr size_t kStripeBytes = 64;
constexpr size_t kStripesPerBlock = 16;
constexpr size_t kBlockBytes = kStripesPerBlock * kStripeBytes;

extern const unsigned char kXxh3Secret[192];

// Adds whole blocks of 1,024 bytes to the eight accumulators.
using Xxh3Blocks = void (*)(uint64_t* accumulators, const char* data, size_t blocks);
void xxh3_blocks_portable(uint64_t* accumulators, const char* data, size_t blocks);
#if defined(__x86_64__)
void xxh3_blocks_avx2(uint64_t* accumulators, const char* data, size_t blocks);
void xxh3_blocks_avx512(uint64_t* accumulators, const char* data, size_t blocks);
#elif defined(__AARCH64EL__)
void xxh3_blocks_neon(uint64_t* accumulators, const char* data, size_t blocks);
#endif

// The function for a KVL_* number of kernels, or null if this CPU can't run it.
Xxh3Blocks find_xxh3(int32_t kernels);

// The checksum of some runs of bytes, one after the other.
class Xxh3 {
  public:
    static constexpr size_t kDigits = 32;

    explicit Xxh3(Xxh3Blocks blocks);

    void update(const char* data, size_t bytes);

    // The checksum of all so far in its canonical form (most significant byte first), as lower-case hexadecimal digits.
    void digits(char (&out)[kDigits]) const;

  private:
    struct Value {
        uint64_t low, high;
    };
    Value value() const;
    Value large() const;

    Xxh3Blocks blocks_;
    uint64_t accumulators_[8];
    uint64_t total_ = 0;
    size_t held_ = 0;
    // The last stripe before the held bytes, then those: a block is taken only once it is known not to be the last.
    char buffer_[kStripeBytes + kBlockBytes];
};

}  // namespace kvl

#endif  // KVLINGUA_XXH3_H_
