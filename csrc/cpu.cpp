#include "kvlingua.h"

int32_t kvl_abi_version(void) { return KVL_ABI_VERSION; }
