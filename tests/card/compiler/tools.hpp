/* Programs, files and folders, for the compiler. */
#pragma once
#include <string>
#include <vector>

namespace card {
/* This library or program. */
std::string own_path();
/* The folder that this toolkit was built into: with include/ and lib64/. */
std::string toolkit();

bool exists(const std::string& path);
/* Throws std::runtime_error with the path, where that is not possible. */
std::string read_file(const std::string& path);
void write_file(const std::string& path, const std::string& bytes);

/* Runs a program with its output in the file `log`, whose text is appended to `said`; the exit status. */
int run_program(const std::vector<std::string>& words, const std::string& log, std::string& said);

/* A folder for one compilation, removed with its files. */
class Scratch {
public:
    Scratch();
    ~Scratch();
    Scratch(const Scratch&) = delete;
    /* The path of a file in it. */
    std::string in(const std::string& name);

private:
    std::string path;
    std::vector<std::string> names;
};

std::string to_base64(const std::string& bytes, size_t line, const char* before_line);
}  // namespace card
