// What return codes mean.
#include "kvlingua.h"

const char* kvl_message(int32_t code) {
    switch (code) {
        case KVL_OK:
            return "success";
        case KVL_NULL:
            return "a pointer is null";
        case KVL_SIZE:
            return "a count, size, type or operation is out of range";
        case KVL_STRIDE:
            return "a stride or address is negative, no multiple of the item size, or too large";
        case KVL_TABLE:
            return "a block table is shorter than its tokens need, or names a block that doesn't exist";
        case KVL_MEMORY:
            return "no memory for the library's own tables";
        case KVL_UNSUPPORTED:
            return "this CPU lacks the kernels that were asked for";
        case KVL_SPAN:
            return "a plane reaches outside the described memory, or that isn't described in ascending order";
        case KVL_TWICE:
            return "the target's block table names a block twice";
        case KVL_OVERLAP:
            return "what is written overlaps what is read";
        case KVL_SCALES:
            return "scales that must be equal differ";
        default:
            return "unknown error";
    }
}
