#include "call.h"

int32_t call_library(const kvl_plan& plan) { return kvl_convert(&plan); }
