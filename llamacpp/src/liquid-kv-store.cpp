#include "liquid-kv-store.h"

#include "ggml-backend.h"

#include "llama-kv-cells.h"

#include <algorithm>

int64_t liquid_cells::next_free(int64_t from) const {
    const int64_t end = extent();
    if (n_holes == 0) {
        return std::max(from, end);
    }
    while (from < end && cell_of[from] >= 0) {
        from++;
    }
    return from;
}

uint32_t liquid_cells::extent_with(const uint32_t * cells, uint32_t n) const {
    uint32_t end = extent();
    for (uint32_t i = 0; i < n; ++i) {
        end += cells[i] == end;
    }
    return std::max(end, used() + n);
}

int64_t liquid_cells::take(int64_t slot, int32_t cell) {
    if (slot < extent()) {
        n_holes--;
        cell_of[slot] = cell;
    } else {
        cell_of.push_back(cell);
    }
    return slot;
}

bool liquid_cells::is_next(int64_t slot) const {
    return slot < extent() ? cell_of[slot] < 0 : slot == extent();
}

void liquid_cells::place(const uint32_t * cells, const uint8_t * keep, int64_t n, int64_t * slots) {
    int64_t next = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (keep && !keep[i]) {
            continue;
        }
        next = next_free(next);
        slots[i] = take(is_next(cells[i]) ? cells[i] : next, cells[i]);
    }
    next = 0;
    for (int64_t i = 0; keep && i < n; ++i) {
        if (!keep[i]) {
            slots[i] = next_free(next);
            next = slots[i] + 1;
        }
    }
}

void liquid_cells::sweep(const llama_kv_cells & index) {
    for (int32_t & cell : cell_of) {
        if (cell >= 0 && index.is_empty(cell)) {
            cell = -1;
            n_holes++;
        }
    }
    while (!cell_of.empty() && cell_of.back() < 0) {
        cell_of.pop_back();
        n_holes--;
    }
}

void liquid_cells::clear() {
    cell_of.clear();
    n_holes = 0;
}

liquid_kv_rows::liquid_kv_rows(ggml_context * ctx, ggml_type type_k, ggml_type type_v, int64_t n_embd_k, int64_t n_embd_v, int64_t n_cells) :
    k(ggml_new_tensor_2d(ctx, type_k, n_embd_k, n_cells)),
    v(ggml_new_tensor_2d(ctx, type_v, n_embd_v, n_cells)),
    pages_k(std::make_unique<liquid_pages>(ggml_nbytes(k))),
    pages_v(std::make_unique<liquid_pages>(ggml_nbytes(v))),
    buf_k(ggml_backend_cpu_buffer_from_ptr(pages_k->data(), ggml_nbytes(k))),
    buf_v(ggml_backend_cpu_buffer_from_ptr(pages_v->data(), ggml_nbytes(v))) {
    k->data   = pages_k->data();
    v->data   = pages_v->data();
    k->buffer = buf_k.get();
    v->buffer = buf_v.get();
}

void liquid_kv_rows::fit(uint32_t n_needed) {
    if (n_needed <= n_rows && n_rows <= 2*n_needed + 256) {
        return;
    }
    pages_k->resize(n_needed*k->nb[1]);
    pages_v->resize(n_needed*v->nb[1]);
    n_rows = n_needed;
}
