// How a block of some tokens and heads is cast.
#ifndef KVLINGUA_CAST_FORM_H_
#define KVLINGUA_CAST_FORM_H_

#include <cstdint>
#include <optional>

#include "cast_kernels.h"
#include "kernels.h"
#include "kvlingua.h"
#include "nest.h"

namespace kvl {

// What one head of one token has: the dims of a plane, in an order in which they follow each other without a gap in the
// source, or in the target, or neither.
struct CastRow {
    explicit CastRow(const kvl_plane& plane);

    Axis dim[4];  // slowest first
    int dims = 0;
    int64_t size = 1, source_bytes, target_bytes;
    bool dense_source, dense_target;
};

// Blocks of so many tokens and heads that lie alike. Their rows are counted head by head if `by_head`, else token by
// token. Rows that aren't dense in the source are gathered to scratch memory, those that aren't in the target scattered
// from there.
class CastForm {
  public:
    // one_factor: all rows have the same factors.
    CastForm(const kvl_plane& plane, const CastRow& row, const Axis& tokens, int64_t heads, bool by_head,
             bool one_factor, const Kernels& kernels, bool stream);

    int64_t tokens() const { return tokens_; }
    int64_t heads() const { return heads_; }
    // Bytes of scratch memory that a block needs.
    int64_t source_scratch() const { return gather_ ? tokens_ * heads_ * row_.source_bytes : 0; }
    int64_t target_scratch() const { return scatter_ ? tokens_ * heads_ * row_.target_bytes : 0; }

    // A block's rows, without factors, their numbers where they are or gathered.
    CastRows gather(const char* source, char* scratch, int64_t ahead) const;
    // Casts them.
    void cast(CastRows rows, char* target, char* scratch) const;

  private:
    CastRow row_;
    int64_t tokens_, heads_;
    bool stream_;
    void (*cast_)(const CastRows& rows);
    CastRows rows_{};
    std::optional<Nest> gather_, scatter_;
};

}  // namespace kvl

#endif  // KVLINGUA_CAST_FORM_H_
