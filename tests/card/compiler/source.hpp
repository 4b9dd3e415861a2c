/* Reads preprocessed CUDA C++: finds its kernels, and says in C++ what is CUDA's own. */
#pragma once
#include <string>
#include <vector>

namespace card {
struct SourceEntry {
    std::string name;
    std::string max_threads;  // the first argument of __launch_bounds__, as written; empty without
    std::vector<std::string> parameters;  // their names
};

struct Source {
    std::string text;                     // C++ for an ordinary compiler
    std::vector<SourceEntry> entries;     // in the order of the text
    std::vector<std::string> host_entries;  // functions that are extern "C" and no kernels
    std::string error;                    // what could not be said in C++; empty where nothing
};

Source translate(const std::string& preprocessed);
}  // namespace card
