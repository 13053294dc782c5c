// The loops over one run of tokens, put into an order that is good for memory.
#ifndef KVLINGUA_NEST_H_
#define KVLINGUA_NEST_H_

#include <cstdint>

#include "kernels.h"

namespace kvl {

// A run is a block of elements, at most plane x head x token x dim. Its axes are sorted in the source's order and
// joined where both sides allow it; what remains is a copy of rows, or a transposition, inside at most two loops.
class Nest {
  public:
    static constexpr int kAxes = 4;

    Nest() = default;
    Nest(const Axis (&axes)[kAxes], int64_t itemsize, const Kernels& kernels, bool stream);

    // Copies one run. What lies `ahead` bytes from its source is fetched into the cache meanwhile.
    void run(char* target, const char* source, int64_t ahead) const;

  private:
    const Kernels* kernels_ = nullptr;
    bool stream_ = false;
    bool transpose_ = false;
    int64_t itemsize_ = 0;
    int64_t row_bytes_ = 0;                                             // of a row copy
    Axis loops_[kAxes] = {{1, 0, 0}, {1, 0, 0}, {1, 0, 0}, {1, 0, 0}};  // what is left, slowest first
    Axis rows_{1, 0, 0};  // of a transposition: the axis that is contiguous in the target
    Axis cols_{1, 0, 0};  // of a transposition: the axis that is contiguous in the source
};

}  // namespace kvl

#endif  // KVLINGUA_NEST_H_
