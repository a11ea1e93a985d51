#include "liquid-pages.h"

#include <new>

#if defined(_WIN32)
#define WIN32_LEAN_AND_MEAN
#ifndef NOMINMAX
#define NOMINMAX
#endif
#include <windows.h>

static size_t liquid_page_size() {
    SYSTEM_INFO info;
    GetSystemInfo(&info);
    return info.dwPageSize;
}

static char * liquid_reserve(size_t n)               { return (char *) VirtualAlloc(nullptr, n, MEM_RESERVE, PAGE_NOACCESS); }
static bool   liquid_commit (char * at, size_t n)    { return VirtualAlloc(at, n, MEM_COMMIT, PAGE_READWRITE) != nullptr; }
static bool   liquid_decommit(char * at, size_t n)   { return VirtualFree(at, n, MEM_DECOMMIT) != 0; }
static void   liquid_release(char * at, size_t)      { VirtualFree(at, 0, MEM_RELEASE); }
#else
#include <sys/mman.h>
#include <unistd.h>

#ifndef MAP_ANONYMOUS
#define MAP_ANONYMOUS MAP_ANON
#endif

static size_t liquid_page_size() {
    return sysconf(_SC_PAGESIZE);
}

static char * liquid_map(char * at, size_t n, int flags) {
    void * found = mmap(at, n, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | flags, -1, 0);
    return found == MAP_FAILED ? nullptr : (char *) found;
}

static char * liquid_reserve(size_t n)               { return liquid_map(nullptr, n, 0); }
static bool   liquid_commit (char * at, size_t n)    { return mprotect(at, n, PROT_READ | PROT_WRITE) == 0; }
static bool   liquid_decommit(char * at, size_t n)   { return liquid_map(at, n, MAP_FIXED) != nullptr; }
static void   liquid_release(char * at, size_t n)    { munmap(at, n); }
#endif

static size_t liquid_whole_pages(size_t n) {
    static const size_t page = liquid_page_size();
    return (n + page - 1)/page*page;
}

liquid_pages::liquid_pages(size_t n_bytes_max) : n_reserved(liquid_whole_pages(n_bytes_max)) {
    base = liquid_reserve(n_reserved);
    if (!base) {
        throw std::bad_alloc();
    }
}

liquid_pages::~liquid_pages() {
    liquid_release(base, n_reserved);
}

void liquid_pages::resize(size_t n_bytes) {
    const size_t n = liquid_whole_pages(n_bytes);
    if (n > n_reserved || (n > n_committed && !liquid_commit(base + n_committed, n - n_committed))) {
        throw std::bad_alloc();
    }
    if (n < n_committed && !liquid_decommit(base + n, n_committed - n)) {
        return; // it stays
    }
    n_committed = n;
}
