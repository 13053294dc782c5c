// Where a plane's pieces are, and how each is copied.
#ifndef KVLINGUA_PLACES_H_
#define KVLINGUA_PLACES_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kernels.h"
#include "kvlingua.h"
#include "nest.h"
#include "pieces.h"
#include "runs.h"

namespace kvl {

// Pieces of one plane in any layer, for tokens of all runs that were added.
class Places {
  public:
    // axes: all that a token has, on both sides; `stream` as in Nest.
    Places(const kvl_side& source, const kvl_side& target, const std::vector<Axis>& axes, int64_t itemsize,
           const Kernels& kernels, bool stream);

    // How a run of so many tokens that begins where tiles do would be copied.
    Nest nest_of(int64_t tokens) const;

    // Cuts a run into pieces, of at most so many tokens, and adds them. Throws std::bad_alloc.
    void add(const Run& run, int64_t most);

    size_t size() const { return places_.size(); }
    const Place& operator[](size_t i) const { return places_[i]; }
    const Nest& nest(const Place& place) const { return forms_[place.form].nest; }
    // Whether a piece is all of a range of the source.
    bool dense(const Place& place) const { return forms_[place.form].dense; }
    // Bytes of one token.
    int64_t token_bytes() const { return token_bytes_; }

  private:
    struct Form {
        Piece piece;
        Nest nest;
        bool dense;
    };

    Nest make_nest(const Piece& piece) const;
    bool is_dense(const Piece& piece) const;
    uint32_t find_form(const Piece& piece);

    kvl_side source_, target_;
    std::vector<Axis> axes_;
    int64_t itemsize_, token_bytes_;
    const Kernels* kernels_;
    bool stream_;
    std::vector<Form> forms_;
    std::vector<Place> places_;
};

}  // namespace kvl

#endif  // KVLINGUA_PLACES_H_
