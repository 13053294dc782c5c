// Sorting of a few things.
#ifndef KVLINGUA_SORTING_H_
#define KVLINGUA_SORTING_H_

#include <algorithm>

namespace kvl {

// By insertion: stable, quick for a handful, without memory of its own.
template <class T, class Before>
void sort_few(T* begin, T* end, Before before) {
    for (T* next = begin; next < end; ++next) std::rotate(std::upper_bound(begin, next, *next, before), next, next + 1);
}

}  // namespace kvl

#endif  // KVLINGUA_SORTING_H_
