// Many tokens, on a CPU alone: the rows that run are gathered, computed and scattered back (liquid-rows.h).
//
// Node order as in liquid-form-flags.cpp. Behind an exit every layer is computed for the rows that stayed: a gate node
// without a gate (index -1) lets all of them run.

#include "liquid-graph.h"

#include <algorithm>

// dst is I32 [n_tokens, 3]: ids of rows that run, ids of rows that skip, w as float bits
static void liquid_rows_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);
    if (ith != 0) {
        return;
    }
    const auto & node = *static_cast<const liquid_gate_node *>(userdata);
    auto & inp = *node.owner;

    const int64_t n = dst->ne[0];
    int32_t * ids_run  = (int32_t *) dst->data;
    int32_t * ids_skip = ids_run + n;
    float   * w_out    = (float *) (ids_run + 2*n);

    int64_t n_run  = 0;
    int64_t n_skip = 0;
    for (int64_t i = 0; i < n; ++i) {
        if (inp.left[i]) {
            continue;
        }
        const auto [w, run] = node.index < 0 ? std::pair(1.0f, true) : inp.decide(node, i, liquid_logit(dst, i));
        w_out[i] = w;
        if (node.outputs_only && !inp.is_output[i]) {
            continue;
        }
        if (run) {
            ids_run[n_run++] = i;
        } else {
            ids_skip[n_skip++] = i;
        }
    }
    n_run  = liquid_pad_rows(ids_run,  n_run,  n);
    n_skip = liquid_pad_rows(ids_skip, n_skip, n);

    liquid_switch(node.side_run,  n_run  > 0);
    liquid_switch(node.side_skip, n_skip > 0);
    liquid_set_rows(node.side_run .rows, std::max<int64_t>(n_run,  1));
    liquid_set_rows(node.side_skip.rows, std::max<int64_t>(n_skip, 1));
}

ggml_tensor * liquid_graph::rows_gate(ggml_tensor * h, const liquid_gate & gate, int32_t index) {
    static const liquid_gate_tensors none;
    const auto & t = index < 0 ? none : model.gate_tensors[index];
    auto & node = begin_gate(gate, index);

    ggml_tensor * n = gate_norm(h, gate);
    if (stores_before(gate)) {
        store_kv(n, gate.layer);
    }
    ggml_tensor * args[] = { index < 0 ? n : gate_logit(n, t, gate.layer), t.bias };
    ggml_tensor * out = ggml_custom_4d(ctx0, GGML_TYPE_I32, n_tokens, 3, 1, 1, args, t.bias ? 2 : 1, liquid_rows_op, 1, &node);
    cb(out, "depth_gate", gate.layer);
    ggml_build_forward_expand(gf, out);
    if (gate.is_exit) {
        return h;
    }
    h = rows_skip_path(h, gate, t, out, node);
    return rows_run_path(h, n, gate, out, node);
}

ggml_tensor * liquid_graph::rows_weight(ggml_tensor * out) const {
    ggml_tensor * w = liquid_gather(ctx0, ggml_view_1d(ctx0, out, n_tokens, 2*out->nb[1]), 0, chosen->ids, GGML_TYPE_F32);
    chosen->known[w] = 0;
    return ggml_reshape_2d(ctx0, w, 1, n_tokens);
}

ggml_tensor * liquid_graph::rows_skip_path(ggml_tensor * h, const liquid_gate & gate, const liquid_gate_tensors & t, ggml_tensor * out, liquid_gate_node & node) {
    if ((gate.span == 1 || inp_own) && !t.skip_gate) {
        return h;
    }
    const int from = ggml_graph_n_nodes(gf);

    liquid_chosen rows;
    rows.ids = ggml_view_1d(ctx0, out, n_tokens, 1*out->nb[1]);
    rows.known[rows.ids] = 0;
    chosen = &rows;

    ggml_tensor * state = rows_of(h, 1); // [n_embd, rows]
    for (int il = gate.layer + 1; il < gate.layer + gate.span && !inp_own; ++il) {
        store_kv(attn_norm(state, il), il);
    }
    ggml_tensor * after = h;
    if (t.skip_gate) {
        ggml_tensor * a = adapter(state, t, gate.layer);
        if (model.info.adapter_scaled_by_gate) {
            a = ggml_mul(ctx0, a, ggml_scale_bias(ctx0, rows_weight(out), -1.0f, 1.0f));
        }
        after = liquid_put_rows(ctx0, h, a, state, rows.ids);
        inp_liquid->in_place.emplace_back(after, h);
        ggml_build_forward_expand(gf, after);
    }
    chosen = nullptr;

    collect_nodes(from, node.side_skip.nodes);
    node.side_skip.rows = liquid_find_row_nodes(node.side_skip.nodes, rows.known, n_tokens);
    return after;
}

ggml_tensor * liquid_graph::rows_run_path(ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, ggml_tensor * out, liquid_gate_node & node) {
    const int from = ggml_graph_n_nodes(gf);

    liquid_chosen rows;
    rows.ids = ggml_view_1d(ctx0, out, n_tokens, 0);
    rows.known[rows.ids] = 0;
    chosen = &rows;

    ggml_tensor * c_run = model.info.ffn_scaled_by_gate && node.index >= 0 ? rows_weight(out) : nullptr;
    ggml_tensor * state = nullptr; // [n_embd, rows]; null: still in h
    ggml_tensor * added = nullptr; // what is yet to be added to it
    if (gate.scope == LIQUID_SCOPE_FFN) {
        state = rows_of(h, 1);
    } else {
        n = rows_of(n, 1);
    }
    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            state = ggml_add(ctx0, added, state);
            n = attn_norm(state, il);
        }
        if (stores_within(gate, il)) {
            store_kv(n, il);
        }
        if (gate.scope != LIQUID_SCOPE_FFN) {
            ggml_tensor * x = attn_post_norm(attention(n, il), il);
            state = state ? ggml_add(ctx0, x, state) : liquid_add_rows(ctx0, x, h, rows.ids);
        }
        if (gate.scope != LIQUID_SCOPE_ATTN) {
            added = ffn(state, il);
            added = c_run ? ggml_mul(ctx0, added, c_run) : added;
            cb(added, "ffn_added", il);
        }
    }
    ggml_tensor * after = added ? liquid_put_rows(ctx0, h, added, state, rows.ids) : liquid_put_rows(ctx0, h, state, nullptr, rows.ids);
    inp_liquid->in_place.emplace_back(after, h);
    ggml_build_forward_expand(gf, after);
    chosen = nullptr;

    collect_nodes(from, node.side_run.nodes);
    node.side_run.rows = liquid_find_row_nodes(node.side_run.nodes, rows.known, n_tokens);
    return after;
}
