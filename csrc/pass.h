// One pass through the source.
#ifndef KVLINGUA_PASS_H_
#define KVLINGUA_PASS_H_

#include <cstddef>
#include <cstdint>
#include <vector>

#include "kvlingua.h"
#include "part.h"
#include "runs.h"
#include "visits.h"

namespace kvl {

// Tokens [first, last) of all layers of some parts, which are staged only if there is one.
class Pass {
  public:
    Pass(const kvl_plan& plan, std::vector<Part> parts, const Table& source, const Table& target, int64_t first,
         int64_t last);

    // Copies, once.
    void run();

  private:
    // Goes through all pieces of the source in the order in which they are copied.
    class Cursor {
      public:
        explicit Cursor(const Pass& pass);

        // Goes on to the first piece of the next visit; false, and nothing changes, behind the last.
        bool next_visit();
        // Goes on by some pieces, at most to the last one.
        void skip(size_t pieces);

        const Places& places() const { return part->ways[0]; }
        const Place& place() const { return places()[piece]; }
        uint64_t address() const { return source + static_cast<uint64_t>(place().source); }

        const Part* part = nullptr;
        size_t group = 0, piece = 0, end = 0;  // pieces of the visit
        uint64_t source = 0, target = 0;       // the bases

      private:
        const Pass& pass_;
        Visits visits_;
    };

    void begin_group();
    void add_groups(const Table& source, const Table& target, int64_t first, int64_t last);
    void add_staged_groups(const Table& source, const Table& target, int64_t first, int64_t last);
    void set_ahead(int64_t tokens);
    Visits order() const;
    void copy_pieces(const Cursor& here, uint64_t target, Cursor* ahead) const;

    const kvl_plan& plan_;
    std::vector<Part> parts_;
    size_t groups_ = 0;
    bool groups_together_ = false;  // visited all at once
    std::vector<char> memory_;
    uint64_t stage_ = 0;  // where in memory_ the stage begins
    size_t ahead_ = 1;    // the source is fetched so many pieces ahead of the copy
};

}  // namespace kvl

#endif  // KVLINGUA_PASS_H_
