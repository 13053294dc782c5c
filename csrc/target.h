// Compiles a region of a file for one instruction set, chosen at run time; the rest of the library stays baseline.
#ifndef KVLINGUA_TARGET_H_
#define KVLINGUA_TARGET_H_

#define KVL_PRAGMA(text) _Pragma(#text)
#if defined(__clang__)
#define KVL_TARGET_BEGIN(isa) KVL_PRAGMA(clang attribute push(__attribute__((target(isa))), apply_to = function))
#define KVL_TARGET_END KVL_PRAGMA(clang attribute pop)
#else
#define KVL_TARGET_BEGIN(isa) KVL_PRAGMA(GCC push_options) KVL_PRAGMA(GCC target(isa))
#define KVL_TARGET_END KVL_PRAGMA(GCC pop_options)
#endif

#endif  // KVLINGUA_TARGET_H_
