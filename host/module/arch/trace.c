// SPDX-License-Identifier: GPL-2.0-only
/* Floor 0: where the trace events of trace.h are defined. */

#define CREATE_TRACE_POINTS
#include "arch/trace.h"
