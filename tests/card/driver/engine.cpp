/* The engine that runs modules' kernels, and what modules call. */
#include "../../../kernels/src/emulator/hooks.hpp"
#include "race_check.hpp"
