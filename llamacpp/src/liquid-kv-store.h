// Storage of K and V that grows with use: which tokens have them in a layer that not every token runs, and their rows.
//
// A token is named by its cell in the context's cell index (liquid-kv.h), which knows its position and sequences; a
// slot is a row of K and V. Knows nothing of graphs, sequences or models.

#pragma once

#include "liquid-pages.h"

#include "ggml-cpp.h"

#include <cstdint>
#include <memory>
#include <vector>

class llama_kv_cells;

// slot -> cell
class liquid_cells {
public:
    uint32_t extent() const { return cell_of.size(); } // slots beyond hold nothing
    uint32_t used()   const { return cell_of.size() - n_holes; }

    uint32_t extent_with(const uint32_t * cells, uint32_t n) const; // the most that place() can make of it

    int32_t operator[](uint32_t slot) const { return cell_of[slot]; } // -1: a hole

    const int32_t * data() const { return cell_of.data(); } // [extent]

    // Gives each of n tokens a slot of its own: those that stay (keep[i], null: all) a lasting one, numbered as their cell
    // where that can be (where every token stays, all are: sums are then taken in the order of a stock cache); the others
    // any free one.
    void place(const uint32_t * cells, const uint8_t * keep, int64_t n, int64_t * slots);

    void sweep(const llama_kv_cells & index); // forgets tokens whose cell is empty by now
    void clear();

private:
    int64_t next_free(int64_t from) const;
    bool    is_next(int64_t slot) const; // a hole, or the end
    int64_t take(int64_t slot, int32_t cell);

    std::vector<int32_t> cell_of;
    uint32_t n_holes = 0;
};

// K and V of one layer: tensors of a row for every cell of the context, with memory for `capacity` rows
class liquid_kv_rows {
public:
    ggml_tensor * k; // [n_embd_k_gqa, n_cells]
    ggml_tensor * v; // [n_embd_v_gqa, n_cells]

    // throws std::bad_alloc
    liquid_kv_rows(ggml_context * ctx, ggml_type type_k, ggml_type type_v, int64_t n_embd_k, int64_t n_embd_v, int64_t n_cells);

    uint32_t capacity() const { return n_rows; }
    size_t   row_size() const { return k->nb[1] + v->nb[1]; }

    void fit(uint32_t n_needed); // memory for that many rows; gives back what is far too much. Throws std::bad_alloc

private:
    uint32_t n_rows = 0;
    std::unique_ptr<liquid_pages> pages_k, pages_v;
    ggml_backend_buffer_ptr buf_k, buf_v;
};
