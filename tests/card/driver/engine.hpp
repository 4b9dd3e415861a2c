/* Runs one launch of a module's kernel; the unit tests' emulator does it in the same way. */
#pragma once
#include "../../../kernels/src/emulator/launch.hpp"
