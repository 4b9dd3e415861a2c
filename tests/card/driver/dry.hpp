/* What the host is told in a dry run where it needs more than any number. */
#pragma once
#include <functional>

#include "state.hpp"

namespace card {
struct Invention {
    const char* type = nullptr;
    /* Of the i-th element of the buffer. */
    std::function<double(uint64_t)> number;
};
/* Without a number where the kernel's output has no entry in the table. */
Invention find_invention(const Origin& origin);

/* Which parameters a kernel of ours writes. */
struct KernelRow {
    const char* kernel;
    std::vector<const char*> written;
};
const std::vector<KernelRow>& kernel_rows();
/* The kernels whose output is invented by more than its type. */
std::vector<const char*> invented_kernels();
/* The table names what a kernel does not have. */
void complain_of_table(const char* what);
}  // namespace card
