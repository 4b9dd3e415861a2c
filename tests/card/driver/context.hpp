/* The device's primary context, which of the process's threads have it current, and the beginning of every call. */
#pragma once
#include "state.hpp"

namespace card {
/* Success, or what the call returns at once: the context is broken, or the thread has none, which is refused by name. */
CUresult enter(const char* call);
/* As that, for calls that need no current context. */
CUresult enter_without_context();
/* As that, for calls that need one for the default stream alone: another stream has its own. */
CUresult enter_by_stream(const char* call, CUstream stream);
bool initialized();
CUcontext current_context();
}  // namespace card

/* The first line of a call of the driver. */
#define ENTER(call)        \
    Locked locked_(lock); \
    if (CUresult early_ = enter(call)) return early_;
