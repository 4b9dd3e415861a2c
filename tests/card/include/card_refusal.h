/* The body of a function that this stand-in does not have: says so, and ends the program. */
#pragma once
#include <cstdio>
#include <cstdlib>
#include <string>

[[noreturn]] static void card_refuse_entry(const char* name) {
    std::string words = std::string("card: refused: libmoe entry ") + name + " is not part of the stand-in\n";
    fputs(words.c_str(), stderr);
    const char* folder = getenv("CARD_DIR");
    FILE* file = folder ? fopen((std::string(folder) + "/refusals").c_str(), "a") : nullptr;
    if (file) {
        fputs(words.c_str(), file);
        fclose(file);
    }
    abort();
}
