#include "liquid-kv-graph.h"

#include "liquid-graph.h"

#include <algorithm>
#include <cmath>
#include <cstring>

llm_graph_input_liquid_kv::llm_graph_input_liquid_kv(const llama_hparams & hparams, const liquid_kv_context * mctx) :
    hparams(hparams), mctx(mctx), cache(mctx->cache) {
    for (size_t group = 0; group < cache->groups.size(); ++group) {
        n_kv.push_back(mctx->n_kv(group));
    }
}

ggml_tensor * liquid_new_rotation(ggml_context * ctx, int64_t n) {
    if (n == 0) {
        return nullptr;
    }
    ggml_tensor * t = ggml_new_tensor_2d(ctx, GGML_TYPE_F32, n, n);
    ggml_set_input(t);
    return t;
}

void liquid_set_rotation(ggml_tensor * t) {
    if (!t || !t->buffer) {
        return;
    }
    const int64_t n = t->ne[0];
    const float scale = 1.0/sqrtf(n);
    std::vector<float> values(n*n);
    for (int64_t i = 0; i < n*n; ++i) {
        uint64_t odd = (i/n) & (i%n); // the sign is the parity of its ones
        for (int by = 32; by > 0; by /= 2) {
            odd ^= odd >> by;
        }
        values[i] = odd & 1 ? -scale : scale;
    }
    ggml_backend_tensor_set(t, values.data(), 0, ggml_nbytes(t));
}

void llm_graph_input_liquid_kv::make_rotations(ggml_context * ctx) {
    k_rot = liquid_new_rotation(ctx, cache->n_rot_k);
    v_rot = liquid_new_rotation(ctx, cache->n_rot_v);
}

void llm_graph_input_liquid_kv::set_input(const llama_ubatch *) {
    liquid_set_rotation(k_rot);
    liquid_set_rotation(v_rot);
}

bool llm_graph_input_liquid_kv::can_reuse(const llm_graph_params & params) {
    mctx = static_cast<const liquid_kv_context *>(params.mctx);
    for (size_t group = 0; group < n_kv.size(); ++group) {
        if (n_kv[group] != mctx->n_kv(group)) {
            return false;
        }
    }
    return true;
}

//
// ops
//

// dst I64 [rows]; src[0] as node.kind says
static void liquid_slots_op(ggml_tensor * dst, int ith, int, void * userdata) {
    if (ith != 0) {
        return;
    }
    const auto & node = *static_cast<const liquid_kv_node *>(userdata);
    const uint32_t * cells = node.owner->mctx->cells();

    const int64_t n = dst->ne[0];
    std::vector<uint32_t> of_row(n);
    std::vector<uint8_t>  keep(n, 1);
    int64_t n_rows = n;
    for (int64_t i = 0; i < n; ++i) {
        const int32_t * ids = node.kind == LIQUID_ROWS_CHOSEN ? (const int32_t *) dst->src[0]->data : nullptr;
        of_row[i] = cells[ids ? ids[i] : i];
        if (ids && i > 0 && ids[i] == ids[i - 1] && n_rows == n) { // padding repeats the last row
            n_rows = i;
        }
        if (node.kind == LIQUID_ROWS_MASKED) {
            keep[i] = ((const float *) dst->src[0]->data)[i] != 0.0f;
        }
    }
    int64_t * slots = (int64_t *) dst->data;
    node.owner->cache->groups[node.group].place(of_row.data(), keep.data(), n_rows, slots);
    std::fill(slots + n_rows, slots + n, slots[n_rows - 1]);
}

// one row of a group's mask from the graph's row of that token
template <typename T>
static void liquid_mask_row(T * to, const T * from, int64_t n_kv, const liquid_kv_node & node, llama_pos pos, T never) {
    const auto & cache = *node.owner->cache;
    const int32_t * cell_of = node.group < 0 ? nullptr : cache.groups[node.group].data();
    const int64_t   n_slots = node.group < 0 ? n_kv    : cache.groups[node.group].extent();
    for (int64_t slot = 0; slot < n_slots; ++slot) {
        const int64_t cell = cell_of ? cell_of[slot] : slot;
        to[slot] = cell < 0 ? never : from[cell];
    }
    std::fill(to + n_slots, to + n_kv, never);

    const auto & hparams = node.owner->hparams;
    for (int64_t slot = 0; slot < n_slots && node.windowed; ++slot) {
        const int64_t cell = cell_of ? cell_of[slot] : slot;
        if (cell >= 0 && !cache.index().is_empty(cell) && llama_hparams::is_masked_swa(hparams.n_swa, hparams.swa_type, cache.index().pos_get(cell), pos)) {
            to[slot] = never;
        }
    }
}

// dst [n_kv, rows]; src: the graph's mask [n_cells, tokens], what node.kind speaks of
static void liquid_mask_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    const auto & node = *static_cast<const liquid_kv_node *>(userdata);
    const ggml_tensor * from = dst->src[0];
    const ggml_tensor * rows = dst->src[1];
    const auto & ubatch = node.owner->mctx->get_ubatch();

    for (int64_t r = ith; r < dst->ne[1]; r += nth) {
        const int64_t i = node.kind == LIQUID_ROWS_CHOSEN ? ((const int32_t *) rows->data)[r] : r;
        char * to = (char *) dst->data + r*dst->nb[1];
        const char * row = (const char *) from->data + i*from->nb[1];
        if (node.kind == LIQUID_ROWS_MASKED && ((const float *) rows->data)[r] == 0.0f) {
            memset(to, 0, dst->nb[1]); // anything finite: the result is multiplied by zero
        } else if (dst->type == GGML_TYPE_F32) {
            liquid_mask_row((float *) to, (const float *) row, dst->ne[0], node, ubatch.pos[i], -INFINITY);
        } else {
            liquid_mask_row((ggml_fp16_t *) to, (const ggml_fp16_t *) row, dst->ne[0], node, ubatch.pos[i], ggml_fp32_to_fp16(-INFINITY));
        }
    }
}

ggml_tensor * llm_graph_input_liquid_kv::slots(ggml_context * ctx, int32_t group, liquid_rows_kind kind, ggml_tensor * rows, int64_t n_rows) {
    auto & node = nodes.emplace_back(liquid_kv_node { this, group, kind, false });
    ggml_tensor * args[] = { rows };
    return ggml_custom_4d(ctx, GGML_TYPE_I64, n_rows, 1, 1, 1, args, rows ? 1 : 0, liquid_slots_op, 1, &node);
}

ggml_tensor * llm_graph_input_liquid_kv::mask(ggml_context * ctx, int32_t group, liquid_rows_kind kind, ggml_tensor * rows, bool windowed,
        ggml_tensor * of_graph, ggml_tensor * after) {
    auto & node = nodes.emplace_back(liquid_kv_node { this, group, kind, windowed });
    ggml_tensor * args[] = { of_graph, rows ? rows : after, after };
    return ggml_custom_4d(ctx, of_graph->type, mctx->n_kv(group), after->ne[0], 1, 1, args, 3, liquid_mask_op, GGML_N_TASKS_MAX, &node);
}

//
// liquid_graph: its inputs and views
//

void liquid_graph::make_kv_inputs() {
    const auto * own = static_cast<const liquid_kv_context *>(mctx);

    auto index = std::make_unique<llm_graph_input_attn_kv>(hparams, cparams, own);
    index->self_k_idxs  = own->build_input_k_idxs(ctx0, ubatch);
    index->self_v_idxs  = own->build_input_v_idxs(ctx0, ubatch);
    index->self_kq_mask = ggml_new_tensor_4d(ctx0, cparams.flash_attn ? GGML_TYPE_F16 : GGML_TYPE_F32, own->get_n_kv(), n_tokens, 1, 1);
    index->self_kq_mask_cnv = index->self_kq_mask;
    ggml_set_input(index->self_kq_mask);
    inp_kv = (llm_graph_input_attn_kv *) res->add_input(std::move(index));

    inp_own = (llm_graph_input_liquid_kv *) res->add_input(std::make_unique<llm_graph_input_liquid_kv>(hparams, own));
    inp_own->make_rotations(ctx0);
}

// An op of ours is a pointer to a function of this process. Backends that claim every op (RPC) would call it elsewhere.
static ggml_tensor * liquid_on_cpu(const llm_graph_context & graph, ggml_tensor * op) {
    if (graph.backend_cpu) {
        ggml_backend_sched_set_tensor_backend(graph.sched, op, graph.backend_cpu);
    }
    return op;
}

liquid_kv_io liquid_graph::own_kv_io(int il) {
    const int32_t group    = inp_own->cache->group_of[il];
    const bool    windowed = hparams.is_swa(il);

    auto & made = own_kv[{ group, windowed }];
    if (!made.mask) {
        const auto kind = chosen ? LIQUID_ROWS_CHOSEN : running ? LIQUID_ROWS_MASKED : LIQUID_ROWS_ALL;
        ggml_tensor * rows = chosen ? chosen->ids : running;
        ggml_tensor *& idxs = own_idxs[group];
        if (!idxs) {
            idxs = group < 0 ? inp_kv->get_k_idxs() : liquid_on_cpu(*this, inp_own->slots(ctx0, group, kind, rows, n_tokens));
        }
        made.idxs = idxs;
        const bool as_is = group < 0 && !windowed;
        made.mask = inp_kv->get_kq_mask();
        if (!as_is) {
            const auto of_rows = group < 0 ? LIQUID_ROWS_ALL : kind;
            made.mask = liquid_on_cpu(*this, inp_own->mask(ctx0, group, of_rows, group < 0 ? nullptr : rows, windowed, made.mask, idxs));
        }
        if (chosen) {
            chosen->known[made.idxs] = 0;
            chosen->known[made.mask] = 1;
        }
    }
    liquid_kv_io io = {};
    io.k_idxs  = made.idxs;
    io.kq_mask = made.mask;
    io.k_rot   = inp_own->k_rot;
    io.v_rot   = inp_own->v_rot;
    io.own     = &inp_own->cache->layers[il];
    io.n_kv    = inp_own->mctx->n_kv(group);
    return io;
}

ggml_tensor * liquid_graph::own_attention(ggml_tensor * n, int il) {
    running = stayed;
    store_kv(n, il);
    return attention(n, il);
}

ggml_tensor * liquid_graph::kept(ggml_tensor * rows, int64_t n_head, int64_t n_kv) const {
    const int64_t n_head_dim = rows->ne[0]/n_head;
    return ggml_view_4d(ctx0, rows, n_head_dim, n_head, n_kv, 1, ggml_row_size(rows->type, n_head_dim), rows->nb[1], rows->nb[2], 0);
}

ggml_tensor * liquid_graph::keep(ggml_tensor * rows, ggml_tensor * cur, ggml_tensor * idxs) const {
    cur = ggml_view_2d(ctx0, cur, cur->ne[0]*cur->ne[1], cur->ne[2], cur->nb[2], 0);
    return ggml_set_rows(ctx0, rows, cur, idxs);
}
