// The order in which a copy goes through a plan.
#ifndef KVLINGUA_VISITS_H_
#define KVLINGUA_VISITS_H_

#include <cstdint>

namespace kvl {

// All combinations of a group of tokens, a part of the planes, a layer and a head. They are visited in the order in
// which the source lies in memory: reading on is what memory does best, while writes past the cache cost about the same
// anywhere.
class Visits {
  public:
    enum Axis { kLayer, kPart, kGroup, kHead, kAxes };

    // How many there are of each, and how many bytes of the source apart.
    Visits(const int64_t (&sizes)[kAxes], const int64_t (&steps)[kAxes]);

    // Whether groups are next to each other in the order.
    bool groups_innermost() const;

    // Goes on to the next visit, or from before the first one to it; false behind the last, however often asked.
    bool next();
    // Where the current visit is along an axis.
    int64_t operator[](Axis axis) const { return at_[axis]; }

  private:
    int64_t size_[kAxes], at_[kAxes] = {};
    int order_[kAxes] = {kLayer, kPart, kGroup, kHead};  // outermost first
    bool begun_ = false, ended_ = false;
};

}  // namespace kvl

#endif  // KVLINGUA_VISITS_H_
