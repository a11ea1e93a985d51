// One token at its own depth, on a CPU alone: after the gate has decided, the nodes of one of its sides are switched off.
//
// Node order: norm, K, V and their stores, gate; then the skip side's nodes, then the run side's. An exit's run side is all
// that remains of the model, gates included; they decide only when it is on.

#include "liquid-graph.h"

// dst is F32 {c_run, c_skip} of a gate that scales
static void liquid_flags_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);
    if (ith != 0) { // every thread calls a custom op
        return;
    }
    const auto & node = *static_cast<const liquid_gate_node *>(userdata);
    const auto [w, run] = node.owner->decide(node, 0, liquid_logit(dst, 0));

    float * out = (float *) dst->data;
    out[0] = w;
    out[1] = 1.0f - w;
    liquid_switch(node.side_run,  run);
    liquid_switch(node.side_skip, !run);
}

ggml_tensor * liquid_graph::flagged_gate(ggml_tensor * h, const liquid_gate & gate, int32_t index) {
    const auto & t = model.gate_tensors[index];
    auto & node = begin_gate(gate, index);

    ggml_tensor * n = gate_norm(h, gate);
    if (stores_before(gate)) {
        store_kv(n, gate.layer);
    }
    ggml_tensor * args[] = { gate_logit(n, t, gate.layer), t.bias };
    ggml_tensor * out = ggml_custom_4d(ctx0, GGML_TYPE_F32, 2, 1, 1, 1, args, t.bias ? 2 : 1, liquid_flags_op, 1, &node);
    cb(out, "depth_gate", gate.layer);
    ggml_build_forward_expand(gf, out);

    int from = ggml_graph_n_nodes(gf);
    flagged_skip(h, gate, t, ggml_view_1d(ctx0, out, 1, 1*sizeof(float)));
    collect_nodes(from, node.side_skip.nodes);

    from = ggml_graph_n_nodes(gf);
    h = flagged_run(h, n, gate, ggml_view_1d(ctx0, out, 1, 0));
    ggml_build_forward_expand(gf, h);
    collect_nodes(from, node.side_run.nodes);
    return h;
}

// K and V of the layers skipped, if there are more than the gate's own, and the adapter
ggml_tensor * liquid_graph::flagged_skip(ggml_tensor * h, const liquid_gate & gate, const liquid_gate_tensors & t, ggml_tensor * c_skip) {
    for (int il = gate.layer + !gate.is_exit; il < gate.layer + gate.span && !inp_own; ++il) {
        store_kv(attn_norm(h, il), il);
    }
    if (!t.skip_gate) {
        return h;
    }
    ggml_tensor * a = adapter(h, t, gate.layer);
    if (model.info.adapter_scaled_by_gate) {
        a = ggml_mul(ctx0, a, c_skip);
    }
    h = add_state(h, a);
    ggml_build_forward_expand(gf, h);
    return h;
}

ggml_tensor * liquid_graph::flagged_run(ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, ggml_tensor * c_run) {
    if (gate.is_exit) {
        return layers(layer(h, gate.layer), gate.layer + 1);
    }
    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            n = attn_norm(h, il);
        }
        if (stores_within(gate, il)) {
            store_kv(n, il);
        }
        if (gate.scope != LIQUID_SCOPE_FFN) {
            h = add_state(h, attn_post_norm(attention(n, il), il));
        }
        if (gate.scope != LIQUID_SCOPE_ATTN) {
            ggml_tensor * f = ffn(h, il);
            h = add_state(h, model.info.ffn_scaled_by_gate ? ggml_mul(ctx0, f, c_run) : f);
            cb(h, "l_out", il);
        }
        ggml_build_forward_expand(gf, h);
    }
    return h;
}
