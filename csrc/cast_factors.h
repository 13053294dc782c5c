// What the numbers of a cast plane are multiplied by.
#ifndef KVLINGUA_CAST_FACTORS_H_
#define KVLINGUA_CAST_FACTORS_H_

#include <cstdint>
#include <vector>

#include "cast_form.h"
#include "cast_kernels.h"
#include "kvlingua.h"

namespace kvl {

// The scales of a plane on one side, for tokens [first, last) of a checked plan.
class Scales {
  public:
    Scales(const kvl_side& side, const kvl_view& view, int64_t first, int64_t last);

    bool exist() const { return side_->base; }
    // Whether a layer has one for all tokens and heads.
    bool single(int64_t heads) const;
    // Where the scale of a token (0: the first) and head is.
    float* at(int64_t layer, int64_t token, int64_t head) const {
        return reinterpret_cast<float*>(side_->base[layer] + static_cast<uint64_t>(head * side_->head) +
                                        static_cast<uint64_t>(offset_[static_cast<size_t>(token)]));
    }
    // Calls line(address) for the lines in which those of tokens in one block, and of heads, lie: for nearly all, as it
    // isn't asked where in its line the first one is.
    template <typename F>
    void each_line(int64_t layer, int64_t token, int64_t tokens, int64_t head, int64_t heads, const F& line) const;

  private:
    const kvl_side* side_;
    std::vector<int64_t> offset_;  // of each token
};

// Fills in the factors of blocks' rows; with KVL_QUANTISE, makes the scales and writes them.
class CastFactors {
  public:
    CastFactors(const kvl_plan& plan, const kvl_plane& plane, const CastKernels& kernels, int64_t first, int64_t last);

    // Whether all rows of a layer have the same.
    bool single() const { return single_; }
    // Makes room for so many rows.
    void reserve(int64_t rows);
    // Fetches the scales of the block of `form` that begins at a token (0: the first) and head into the cache.
    void fetch(const CastForm& form, int64_t layer, int64_t token, int64_t head) const;
    // Fills in the factors of such a block. Rows are counted as the form says.
    void fill(CastRows* rows, const CastForm& form, bool by_head, int64_t layer, int64_t token, int64_t head);

  private:
    template <typename F>
    void each_row(const CastForm& form, bool by_head, int64_t token, int64_t head, const F& row) const;

    const kvl_plane& plane_;
    const CastKernels& kernels_;
    Scales source_, target_;
    float type_largest_;
    bool single_;
    std::vector<float> factor_[3];
};

}  // namespace kvl

#endif  // KVLINGUA_CAST_FACTORS_H_
