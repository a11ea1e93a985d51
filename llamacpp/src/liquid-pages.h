// One array that grows and shrinks in place: address space for all it may ever hold, memory for its first part only.
//
// The data never moves, so nothing is copied, no tensor has to be told, and growing many arrays by turns leaves no holes in
// a heap. Knows pages; knows nothing of tensors.

#pragma once

#include <cstddef>

class liquid_pages {
public:
    explicit liquid_pages(size_t n_bytes_max); // throws std::bad_alloc
    ~liquid_pages();

    liquid_pages(const liquid_pages &) = delete;
    liquid_pages & operator=(const liquid_pages &) = delete;

    void * data() const { return base; }

    void resize(size_t n_bytes); // at least; what is new is zeros. Throws std::bad_alloc and is then as before

private:
    char * base = nullptr;
    size_t n_reserved  = 0;
    size_t n_committed = 0;
};
