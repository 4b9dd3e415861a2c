/* Host memory that was made known to the card. */
#pragma once
#include "state.hpp"

namespace card {
/* Whether all the bytes lie in memory of cuMemHostAlloc or cuMemHostRegister. */
bool is_pinned(const void* at, uint64_t bytes);
/* Where operations reach these bytes of the host's while the host itself must keep off them. */
void* seen_by_card(const void* at);
/* From now on the host must not read what the operation writes of pinned memory, nor write what it reads, before it has waited for it.
 * nullptr, or what another operation does with these bytes that nothing orders with this one. */
const char* begin_flight(const void* at, uint64_t bytes, bool written, const Stream& stream, const Operation& operation);
/* What the clock holds has been waited for. */
void end_flights(const Clock& waited_for);
void end_all_flights();
/* What an operation that was not waited for does at an address of pinned memory, in words; nullptr where none does. */
const char* describe_flight(uint64_t address);
}  // namespace card
