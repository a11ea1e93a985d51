#include "liquid-rows.h"

#include <cstring>

// a row extent above one is outermost in memory and, where no permutation happened, the highest dimension in use
static int liquid_outermost(const ggml_tensor * t) {
    int dim = GGML_MAX_DIMS - 1;
    while (dim > 0 && t->ne[dim] == 1) {
        dim--;
    }
    return dim;
}

static int liquid_row_dim(const ggml_tensor * t, const std::map<const ggml_tensor *, int> & known) {
    const auto of = [&](const ggml_tensor * src) {
        const auto it = src ? known.find(src) : known.end();
        return it == known.end() ? -1 : it->second;
    };
    switch (t->op) {
        case GGML_OP_GET_ROWS:
            return of(t->src[0]) >= 0 ? of(t->src[0]) : of(t->src[1]) >= 0 ? 1 : -1;
        case GGML_OP_MUL_MAT:
            return of(t->src[1]);
        case GGML_OP_MUL_MAT_ID:
            return of(t->src[1]) >= 0 ? 2 : -1;
        case GGML_OP_FLASH_ATTN_EXT:
            return of(t->src[0]) >= 0 ? 2 : -1;
        case GGML_OP_PERMUTE:
            return of(t->src[0]) >= 0 ? ((const int32_t *) t->op_params)[of(t->src[0])] : -1;
        case GGML_OP_RESHAPE:
        case GGML_OP_VIEW:
        case GGML_OP_CONT:
        case GGML_OP_REPEAT:
            return of(t->src[0]) >= 0 ? liquid_outermost(t) : -1;
        case GGML_OP_SET_ROWS: // a view of what is written to: its shape is not the rows'
            return -1;
        default:
            return of(t->src[0]);
    }
}

liquid_row_nodes liquid_find_row_nodes(const std::vector<ggml_tensor *> & nodes, std::map<const ggml_tensor *, int> known, int64_t n_rows) {
    liquid_row_nodes found;
    for (ggml_tensor * t : nodes) {
        const auto given = known.find(t);
        const int dim = given != known.end() ? given->second : liquid_row_dim(t, known);
        if (dim >= 0) {
            GGML_ASSERT(t->ne[dim] == n_rows);
            known[t] = dim;
            found.emplace_back(t, dim);
        }
    }
    return found;
}

void liquid_set_rows(const liquid_row_nodes & nodes, int64_t n_rows) {
    for (const auto & [tensor, dim] : nodes) {
        tensor->ne[dim] = n_rows;
    }
}

// dst and the table share their row size; userdata holds it
static void liquid_gather_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const ggml_tensor * table = dst->src[0];
    const ggml_tensor * ids   = dst->src[1];

    const size_t row_size = (size_t) (uintptr_t) userdata;
    const int32_t * rows = (const int32_t *) ids->data;
    for (int64_t i = ith; i < ids->ne[0]; i += nth) {
        memcpy((char *) dst->data + i*row_size, (const char *) table->data + rows[i]*row_size, row_size);
    }
}

ggml_tensor * liquid_gather(ggml_context * ctx, ggml_tensor * table, int dim, ggml_tensor * ids, ggml_type type) {
    const size_t row_size = table->nb[dim];
    GGML_ASSERT(ggml_is_contiguous(table) && ggml_nbytes(table) == row_size*table->ne[dim]);

    ggml_tensor * args[] = { table, ids };
    return ggml_custom_4d(ctx, type, table->ne[0], table->ne[1], table->ne[2], table->ne[3], args, 2, liquid_gather_op, GGML_N_TASKS_MAX,
            (void *) (uintptr_t) row_size);
}

static const float * liquid_row(const ggml_tensor * t, int64_t i) {
    return (const float *) ((const char *) t->data + i*t->nb[1]);
}

// the rows [first, second) of thread ith
static std::pair<int64_t, int64_t> liquid_share(int64_t n, int ith, int nth) {
    return { n*ith/nth, n*(ith + 1)/nth };
}

static void liquid_sum(int64_t n, float * out, const float * x, const float * y) {
    for (int64_t i = 0; i < n; ++i) {
        out[i] = x[i] + y[i];
    }
}

static void liquid_add_rows_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(userdata);
    const ggml_tensor * x = dst->src[0];
    const ggml_tensor * h = dst->src[1];
    const int32_t * ids = (const int32_t *) dst->src[2]->data;

    const auto [from, to] = liquid_share(dst->ne[1], ith, nth);
    for (int64_t i = from; i < to; ++i) {
        liquid_sum(dst->ne[0], (float *) liquid_row(dst, i), liquid_row(x, i), liquid_row(h, ids[i]));
    }
}

ggml_tensor * liquid_add_rows(ggml_context * ctx, ggml_tensor * x, ggml_tensor * h, ggml_tensor * ids) {
    GGML_ASSERT(x->type == GGML_TYPE_F32 && h->type == GGML_TYPE_F32 && ggml_are_same_shape(x, h));

    ggml_tensor * args[] = { x, h, ids };
    return ggml_custom_4d(ctx, GGML_TYPE_F32, x->ne[0], x->ne[1], 1, 1, args, 3, liquid_add_rows_op, GGML_N_TASKS_MAX, nullptr);
}

static void liquid_put_rows_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(userdata);
    const ggml_tensor * x = dst->src[1];
    const ggml_tensor * y = dst->src[3];
    const ggml_tensor * ids = dst->src[2];
    const int32_t * rows = (const int32_t *) ids->data;

    const auto [from, to] = liquid_share(ids->ne[0], ith, nth);
    for (int64_t i = from; i < to; ++i) {
        float * row = (float *) liquid_row(dst, rows[i]);
        if (y) {
            liquid_sum(dst->ne[0], row, liquid_row(x, i), liquid_row(y, i));
        } else {
            memcpy(row, liquid_row(x, i), dst->ne[0]*sizeof(float));
        }
    }
}

ggml_tensor * liquid_put_rows(ggml_context * ctx, ggml_tensor * h, ggml_tensor * x, ggml_tensor * y, ggml_tensor * ids) {
    GGML_ASSERT(x->type == GGML_TYPE_F32 && h->type == GGML_TYPE_F32 && ggml_are_same_shape(x, h));
    GGML_ASSERT(!y || (y->type == GGML_TYPE_F32 && ggml_are_same_shape(x, y)));

    ggml_tensor * args[] = { x, ids, y };
    return ggml_custom_inplace(ctx, h, args, y ? 3 : 2, liquid_put_rows_op, GGML_N_TASKS_MAX, nullptr);
}

int64_t liquid_pad_rows(int32_t * ids, int64_t n, int64_t n_max) {
    if (n % 4 != 3 || n == n_max) {
        return n;
    }
    ids[n] = ids[n - 1];
    return n + 1;
}
