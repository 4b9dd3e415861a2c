/* What nvcc includes by itself. */
#pragma once
#include "card/device.hpp"
