/* What a compiled module exports; the unit tests' emulator reads the same. */
#pragma once
#include "../../kernels/src/emulator/module.hpp"
