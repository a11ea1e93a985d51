// Row lists decided at run time: nodes of one graph that compute only the rows a gate has chosen.
//
// On the CPU an op reads the shape of its operands when it runs, its buffers were planned for all rows, and rows are the
// outermost extent in memory. So a gate may write the chosen rows' numbers into its output and set the row extent of every
// node of a block; the block gathers those rows, computes, and scatters back. Knows tensors; knows nothing of layers.

#pragma once

#include "ggml.h"

#include <cstdint>
#include <map>
#include <utility>
#include <vector>

// nodes of one block with the dimension that counts rows
using liquid_row_nodes = std::vector<std::pair<ggml_tensor *, int>>;

// The row dimension of every node in `nodes` that has one, found from its operands. `known`: tensors whose dimension is
// given (the ids and what is gathered by custom ops); n_rows: the extent they were built with, at least 2.
liquid_row_nodes liquid_find_row_nodes(const std::vector<ggml_tensor *> & nodes, std::map<const ggml_tensor *, int> known, int64_t n_rows);

void liquid_set_rows(const liquid_row_nodes & nodes, int64_t n_rows);

// rows of `table` (dimension `dim`, which is its outermost) in the order of ids, bytes copied: a custom op on all threads
ggml_tensor * liquid_gather(ggml_context * ctx, ggml_tensor * table, int dim, ggml_tensor * ids, ggml_type type);

// The library's get_rows and set_rows work in one thread, so rows are moved by ops of our own, on all threads. F32, with
// the rows in dimension 1 and ids as the second side of the copy:
//   add_rows  x + h[ids], as rows of their own
//   put_rows  h[ids] = x, or x + y where y is given; in place, the result is a view of h
// Rows may be named twice (padding): what is put for them is then the same.
ggml_tensor * liquid_add_rows(ggml_context * ctx, ggml_tensor * x, ggml_tensor * h, ggml_tensor * ids);
ggml_tensor * liquid_put_rows(ggml_context * ctx, ggml_tensor * h, ggml_tensor * x, ggml_tensor * y, ggml_tensor * ids);

// Kernels for repacked weights work on four rows at a time and on the rest one by one. Three such rows cost more than
// four, so the last row is repeated then; one or two cost less. ids has room for n_max; returns the padded count.
int64_t liquid_pad_rows(int32_t * ids, int64_t n, int64_t n_max);
