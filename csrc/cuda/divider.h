// Division by a number that is known before the launch.
#ifndef KVLINGUA_CUDA_DIVIDER_H_
#define KVLINGUA_CUDA_DIVIDER_H_

#include <cstdint>

#include "../anywhere.h"

namespace kvl {

constexpr int64_t kMostIndex = int64_t{1} << 31;  // indices, and what they are divided by, are less

// A multiplication and a shift instead of a division, exact for dividends below 2^31.
class Divider {
  public:
    Divider() = default;
    // From 1 to 2^31.
    explicit Divider(uint32_t divisor) : divisor_(divisor) {
        while ((uint64_t{1} << shift_) < divisor) ++shift_;
        magic_ = static_cast<uint32_t>((uint64_t{1} << 32) * ((uint64_t{1} << shift_) - divisor) / divisor + 1);
    }

    KVL_ANYWHERE uint32_t divisor() const { return divisor_; }
    KVL_ANYWHERE uint32_t divide(uint32_t n) const {
        return (static_cast<uint32_t>(static_cast<uint64_t>(n) * magic_ >> 32) + n) >> shift_;
    }
    // The remainder stays in n.
    KVL_ANYWHERE uint32_t divide_out(uint32_t* n) const {
        const uint32_t quotient = divide(*n);
        *n -= quotient * divisor_;
        return quotient;
    }

  private:
    uint32_t divisor_ = 1, magic_ = 1, shift_ = 0;
};

}  // namespace kvl

#endif  // KVLINGUA_CUDA_DIVIDER_H_
