// Any number of rows, on any backend: everything is computed. A skipped row keeps its state because its updates are
// multiplied by zero; a row that left by an exit keeps it through all that remains.

#include "liquid-graph.h"

// z [1, n_tokens] -> run [1, n_tokens] of zeros and ones; both w and run can be read afterwards
ggml_tensor * liquid_graph::masked_decision(liquid_gate_node & node, ggml_tensor * z) {
    node.w = ggml_sigmoid(ctx0, z);
    ggml_set_output(node.w);

    ggml_tensor * force  = inp_liquid->force;
    ggml_tensor * margin = ggml_sub(ctx0, node.w, inp_liquid->tau);
    margin = ggml_add(ctx0, margin, ggml_view_2d(ctx0, force, 1, n_tokens, force->nb[1], node.index*force->nb[2]));

    node.run = masked_floor(node, ggml_step(ctx0, margin));
    ggml_set_output(node.run);
    // without rows to output the last gates' decisions would be no part of the graph
    ggml_build_forward_expand(gf, node.run);
    return node.run;
}

// min_layers: a skip that would leave too few is none
ggml_tensor * liquid_graph::masked_floor(const liquid_gate_node & node, ggml_tensor * run) {
    const int32_t floor = model.info.min_layers;
    if (floor == 0 || inp_liquid->depth->mode == LIQUID_DEPTH_FORCED || node.gate.scope != LIQUID_SCOPE_LAYER) {
        return run;
    }
    const float others = node.before + node.after - floor;
    if (gated_runs) {
        ggml_tensor * allowed = ggml_step(ctx0, ggml_scale_bias(ctx0, gated_runs, 1.0f, others + 0.5f));
        ggml_tensor * skip    = ggml_mul(ctx0, ggml_scale_bias(ctx0, run, -1.0f, 1.0f), allowed);
        run = ggml_scale_bias(ctx0, skip, -1.0f, 1.0f);
    } else if (others < 0) {
        run = ggml_scale_bias(ctx0, run, 0.0f, 1.0f);
    }
    if (!node.gate.is_exit) {
        ggml_tensor * layers_run = ggml_scale(ctx0, run, node.gate.span);
        gated_runs = gated_runs ? ggml_add(ctx0, gated_runs, layers_run) : layers_run;
    }
    return run;
}

ggml_tensor * liquid_graph::masked_gate(ggml_tensor * h, const liquid_gate & gate, int32_t index) {
    const auto & t = model.gate_tensors[index];
    auto & node = begin_gate(gate, index);

    ggml_tensor * n = gate_norm(h, gate);
    ggml_tensor * z = gate_logit(n, t, gate.layer);
    ggml_tensor * run = masked_decision(node, t.bias ? ggml_add(ctx0, z, t.bias) : z);
    if (gate.is_exit) {
        stayed = stayed ? ggml_mul(ctx0, stayed, run) : run;
        return h;
    }
    ggml_tensor * skip = ggml_scale_bias(ctx0, run, -1.0f, 1.0f);
    if (stayed) {
        run  = ggml_mul(ctx0, run,  stayed);
        skip = ggml_mul(ctx0, skip, stayed);
    }
    liquid_masks m;
    m.run    = run;
    m.c_run  = model.info.ffn_scaled_by_gate     ? ggml_mul(ctx0, run,  node.w) : run;
    m.c_skip = model.info.adapter_scaled_by_gate ? ggml_mul(ctx0, skip, ggml_scale_bias(ctx0, node.w, -1.0f, 1.0f)) : skip;
    return gate.scope == LIQUID_SCOPE_LAYER ? masked_layers(h, n, gate, index, m) : masked_half(h, n, gate, index, m);
}

void liquid_graph::masked_outputs(std::initializer_list<ggml_tensor **> rows) {
    for (ggml_tensor ** t : rows) {
        *t = *t ? ggml_get_rows(ctx0, *t, inp_out_ids) : nullptr;
    }
}

ggml_tensor * liquid_graph::masked_layers(ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, int32_t index, liquid_masks m) {
    const auto & t = model.gate_tensors[index];
    ggml_tensor * a = t.skip_gate ? adapter(h, t, gate.layer) : nullptr;

    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            res->t_layer_inp[il] = h;
            n = attn_norm(h, il);
        }
        if (inp_own && il == gate.layer) {
            running = m.run;
        }
        store_kv(n, il);
        ggml_tensor * x = attention(n, il);
        if (keep_outputs(il)) {
            masked_outputs({ &x, &h, &m.run, &m.c_run, &m.c_skip, &a });
        }
        h = add_state(h, ggml_mul(ctx0, attn_post_norm(x, il), m.run));
        h = add_state(h, ggml_mul(ctx0, ffn(h, il), m.c_run));
        if (il == gate.layer + gate.span - 1 && a) {
            h = add_state(h, ggml_mul(ctx0, a, m.c_skip));
        }
        h = build_cvec(h, il);
        cb(h, "l_out", il);
    }
    return h;
}

ggml_tensor * liquid_graph::masked_half(ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, int32_t index, liquid_masks m) {
    const auto & t  = model.gate_tensors[index];
    const int    il = gate.layer;

    if (gate.scope == LIQUID_SCOPE_ATTN) {
        if (inp_own) {
            running = m.run;
        }
        store_kv(n, il);
        ggml_tensor * x = attention(n, il);
        if (keep_outputs(il)) {
            masked_outputs({ &x, &h, &m.run });
        }
        return add_state(h, ggml_mul(ctx0, attn_post_norm(x, il), m.run));
    }
    ggml_tensor * out = add_state(h, ggml_mul(ctx0, ffn(h, il), m.c_run));
    if (t.skip_gate) {
        out = add_state(out, ggml_mul(ctx0, adapter(h, t, il), m.c_skip));
    }
    out = build_cvec(out, il);
    cb(out, "l_out", il);
    return out;
}
