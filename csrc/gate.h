// Whether a load may still write to its targets.
#ifndef KVLINGUA_GATE_H_
#define KVLINGUA_GATE_H_

#include "kvlingua.h"

namespace kvl {

// Held while an object is converted. Writers announce themselves before they look whether the gate is closed, and who
// closes it looks for writers after that: one of the two always sees the other.
class Passage {
  public:
    explicit Passage(kvl_gate* gate) : gate_(gate) {
        __atomic_fetch_add(&gate->writing, 1, __ATOMIC_SEQ_CST);
        open_ = !__atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST);
    }
    ~Passage() { __atomic_fetch_sub(&gate_->writing, 1, __ATOMIC_SEQ_CST); }
    Passage(const Passage&) = delete;
    Passage& operator=(const Passage&) = delete;

    bool open() const { return open_; }

  private:
    kvl_gate* gate_;
    bool open_;
};

inline bool closed(const kvl_gate* gate) { return __atomic_load_n(&gate->closed, __ATOMIC_SEQ_CST); }

}  // namespace kvl

#endif  // KVLINGUA_GATE_H_
