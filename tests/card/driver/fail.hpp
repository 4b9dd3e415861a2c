/* Failures that a test asks for: an allocation without memory, a device that is lost. */
#pragma once

namespace card {
/* Counts an allocation, and says whether it must fail. */
bool allocation_must_fail();
/* Counts a launch, or what a library launches, and says whether the device is lost at it. */
bool device_is_lost();
}  // namespace card
