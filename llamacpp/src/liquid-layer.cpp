// The parts of a layer of a `liquid` model: attention, feed-forward network, gate and adapter, and a layer without a gate.

#include "liquid-graph.h"

#include "llama-adapter.h"
#include "llama-impl.h"

#include <cmath>

// an input of the graph for the rows being built: itself, or its chosen rows
ggml_tensor * liquid_graph::rows_of(ggml_tensor * input, int dim) const {
    if (!chosen || !input) {
        return input;
    }
    ggml_tensor *& rows = chosen->gathered[input];
    if (!rows) {
        rows = liquid_gather(ctx0, input, dim, chosen->ids, input->type);
        chosen->known[rows] = dim;
    }
    return rows;
}

liquid_kv_io liquid_graph::kv_io(int il) {
    if (inp_own) {
        return own_kv_io(il);
    }
    if (inp_kv) {
        return { inp_kv->mctx, rows_of(inp_kv->get_k_idxs(), 0), rows_of(inp_kv->get_v_idxs(), 0), rows_of(inp_kv->get_kq_mask(), 1),
                 inp_kv->self_k_rot, inp_kv->self_v_rot, nullptr, 0 };
    }
    if (hparams.is_swa(il)) {
        return { inp_iswa->mctx->get_swa(), rows_of(inp_iswa->get_k_idxs_swa(), 0), rows_of(inp_iswa->get_v_idxs_swa(), 0),
                 rows_of(inp_iswa->get_kq_mask_swa(), 1), inp_iswa->self_k_rot_swa, inp_iswa->self_v_rot_swa, nullptr, 0 };
    }
    return { inp_iswa->mctx->get_base(), rows_of(inp_iswa->get_k_idxs(), 0), rows_of(inp_iswa->get_v_idxs(), 0),
             rows_of(inp_iswa->get_kq_mask(), 1), inp_iswa->self_k_rot, inp_iswa->self_v_rot, nullptr, 0 };
}

ggml_tensor * liquid_graph::rotate(ggml_tensor * x, int il) const {
    return ggml_rope_ext(ctx0, x, rows_of(inp_pos, 0), model.get_rope_factors(cparams, il), n_rot, rope_type, n_ctx_orig,
            model.get_rope_freq_base(cparams, il), model.get_rope_freq_scale(cparams, il), ext_factor, attn_factor, beta_fast, beta_slow);
}

ggml_tensor * liquid_graph::norm_qk(ggml_tensor * x, ggml_tensor * weight, int il) const {
    switch (model.qk_norm) {
        case LIQUID_QK_NORM_HEAD:
            return build_norm(x, weight, NULL, LLM_NORM_RMS, il);
        case LIQUID_QK_NORM_FULL:
            {
                ggml_tensor * flat = ggml_reshape_2d(ctx0, x, x->ne[0]*x->ne[1], x->ne[2]);
                flat = build_norm(flat, weight, NULL, LLM_NORM_RMS, il);
                return ggml_reshape_3d(ctx0, flat, x->ne[0], x->ne[1], x->ne[2]);
            }
        default:
            return x;
    }
}

ggml_tensor * liquid_graph::place_q(ggml_tensor * q, int il) const {
    q = norm_qk(q, model.layers[il].attn_q_norm, il);
    if (hparams.has_rope(il)) {
        q = rotate(q, il);
        q = model.qk_norm == LIQUID_QK_NORM_L2 ? ggml_rms_norm(ctx0, q, hparams.f_norm_rms_eps) : q;
    } else if (inp_attn_scale) {
        q = ggml_mul(ctx0, q, rows_of(inp_attn_scale, 2));
    }
    return hparams.f_attention_scale == 0.0f ? q : ggml_scale(ctx0, q, hparams.f_attention_scale);
}

ggml_tensor * liquid_graph::place_k(ggml_tensor * k, int il) const {
    k = norm_qk(k, model.layers[il].attn_k_norm, il);
    if (!hparams.has_rope(il)) {
        return k;
    }
    k = rotate(k, il);
    return model.qk_norm == LIQUID_QK_NORM_L2 ? ggml_rms_norm(ctx0, k, hparams.f_norm_rms_eps) : k;
}

// n [n_embd, n_tokens] -> this layer's K and V of all rows in the cache; nodes are placed at once
void liquid_graph::store_kv(ggml_tensor * n, int il) {
    const auto io = kv_io(il);

    auto [q, k, v] = build_qkv(model.layers[il], n, n_embd_head_k, hparams.n_head(il), hparams.n_head_kv(il), il);
    GGML_UNUSED(q);

    k = place_k(k, il);
    if (io.k_rot) {
        k = llama_mul_mat_hadamard(ctx0, k, io.k_rot);
    }
    if (io.v_rot) {
        v = llama_mul_mat_hadamard(ctx0, v, io.v_rot);
    }
    ggml_build_forward_expand(gf, v);
    ggml_build_forward_expand(gf, k);
    ggml_build_forward_expand(gf, io.own ? keep(io.own->k, k, io.k_idxs) : io.mctx->cpy_k(ctx0, k, io.k_idxs, il));
    ggml_build_forward_expand(gf, io.own ? keep(io.own->v, v, io.k_idxs) : io.mctx->cpy_v(ctx0, v, io.v_idxs, il));
}

// n [n_embd, n_tokens], K and V stored -> attention output [n_embd, n_tokens], not yet normed
ggml_tensor * liquid_graph::attention(ggml_tensor * n, int il) {
    const auto & layer = model.layers[il];
    const auto io = kv_io(il);

    auto [q, k, v] = build_qkv(layer, n, n_embd_head_k, hparams.n_head(il), hparams.n_head_kv(il), il);
    q = place_q(q, il);
    cb(q, "Qcur", il);
    if (io.k_rot) {
        q = llama_mul_mat_hadamard(ctx0, q, io.k_rot);
    }
    k = io.own ? kept(io.own->k, hparams.n_head_kv(il), io.n_kv) : io.mctx->get_k(ctx0, il);
    v = io.own ? kept(io.own->v, hparams.n_head_kv(il), io.n_kv) : io.mctx->get_v(ctx0, il);

    ggml_tensor * cur = build_attn_mha(q, k, v, nullptr, io.kq_mask, nullptr, nullptr, 0, kq_scale, il);
    cb(cur, "kqv_out", il);
    if (io.v_rot) {
        cur = llama_mul_mat_hadamard(ctx0, cur, io.v_rot);
    }
    cur = build_lora_mm(layer.wo, cur);
    if (layer.wo_b) {
        cur = ggml_add(ctx0, cur, layer.wo_b);
    }
    cb(cur, "attn_out", il);
    return cur;
}

// experts whose input, not output, is multiplied by the router's weight; ref: Llama 4
ggml_tensor * liquid_graph::experts_weighted_before(ggml_tensor * x, int il) const {
    const auto & layer = model.layers[il];
    const int64_t n_rows = x->ne[1];

    ggml_tensor * logits = build_lora_mm(layer.ffn_gate_inp, x); // [n_expert, n_rows]
    ggml_tensor * probs  = hparams.expert_gating_func == LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID ? ggml_sigmoid(ctx0, logits) : ggml_soft_max(ctx0, logits);
    ggml_tensor * chosen = ggml_argsort_top_k(ctx0, logits, n_expert_used); // [n_expert_used, n_rows]
    cb(chosen, "ffn_moe_topk", il);

    ggml_tensor * weights = ggml_get_rows(ctx0, ggml_reshape_3d(ctx0, probs, 1, n_expert, n_rows), chosen); // [1, n_expert_used, n_rows]
    if (hparams.expert_weights_norm) {
        weights = ggml_reshape_2d(ctx0, weights, n_expert_used, n_rows);
        ggml_tensor * sum = ggml_clamp(ctx0, ggml_sum_rows(ctx0, weights), 6.103515625e-5, INFINITY); // smallest normal F16
        weights = ggml_reshape_3d(ctx0, ggml_div(ctx0, weights, sum), 1, n_expert_used, n_rows);
    }
    if (hparams.expert_weights_scale != 0.0f && hparams.expert_weights_scale != 1.0f) {
        weights = ggml_scale(ctx0, weights, hparams.expert_weights_scale);
    }

    ggml_tensor * in   = ggml_repeat_4d(ctx0, ggml_reshape_3d(ctx0, x, n_embd, 1, n_rows), n_embd, n_expert_used, n_rows, 1);
    in = ggml_mul(ctx0, in, weights); // [n_embd, n_expert_used, n_rows]
    ggml_tensor * up   = build_lora_mm_id(layer.ffn_up_exps,   in, chosen); // [n_ff_exp, n_expert_used, n_rows]
    ggml_tensor * gate = build_lora_mm_id(layer.ffn_gate_exps, in, chosen);
    ggml_tensor * out  = build_lora_mm_id(layer.ffn_down_exps, ggml_swiglu_split(ctx0, gate, up), chosen); // [n_embd, n_expert_used, n_rows]

    ggml_tensor * sum = nullptr;
    for (int64_t e = 0; e < n_expert_used; ++e) {
        ggml_tensor * one = ggml_view_2d(ctx0, out, n_embd, n_rows, out->nb[2], e*out->nb[1]);
        sum = sum ? ggml_add(ctx0, sum, one) : one;
    }
    return n_expert_used == 1 ? ggml_cont(ctx0, sum) : sum;
}

ggml_tensor * liquid_graph::experts(ggml_tensor * x, int il) const {
    const auto & layer = model.layers[il];

    ggml_tensor * out = model.expert_weight_before_ffn ? experts_weighted_before(x, il) :
        build_moe_ffn(x, layer.ffn_gate_inp, layer.ffn_up_exps, layer.ffn_gate_exps, layer.ffn_down_exps, nullptr,
                n_expert, n_expert_used, LLM_FFN_SILU, hparams.expert_weights_norm, hparams.expert_weights_scale,
                (llama_expert_gating_func_type) hparams.expert_gating_func, il);
    cb(out, "ffn_moe_out", il);

    if (inp_liquid->depth->trace) {
        const std::string name = format("ffn_moe_topk-%d", il);
        ggml_build_forward_expand(gf, out);
        ggml_tensor * chosen = ggml_cont(ctx0, ggml_graph_get_tensor(gf, name.c_str()));
        ggml_set_output(chosen);
        ggml_build_forward_expand(gf, chosen);
        inp_liquid->experts.push_back(chosen);
    }
    if (layer.ffn_up_shexp) {
        ggml_tensor * shared = build_ffn(x, layer.ffn_up_shexp, NULL, NULL, layer.ffn_gate_shexp, NULL, NULL, layer.ffn_down_shexp, NULL, NULL,
                NULL, LLM_FFN_SILU, LLM_FFN_PAR, il);
        out = ggml_add(ctx0, out, shared);
    }
    return out;
}

// h [n_embd, rows] -> FFN(RMSNorm(h)) [n_embd, rows], normed where the model does so
ggml_tensor * liquid_graph::ffn(ggml_tensor * h, int il) const {
    const auto & layer = model.layers[il];

    ggml_tensor * cur = ffn_norm(h, il);
    cb(cur, "ffn_norm", il);
    if (model.moe_layers[il]) {
        cur = experts(cur, il);
    } else {
        cur = build_ffn(cur, layer.ffn_up, layer.ffn_up_b, NULL, layer.ffn_gate, layer.ffn_gate_b, NULL, layer.ffn_down, layer.ffn_down_b, NULL,
                NULL, model.activation, LLM_FFN_PAR, il);
    }
    cb(cur, "ffn_out", il);
    return ffn_post_norm(cur, il);
}

// of what a half of the layer adds to the state, in models that norm it
ggml_tensor * liquid_graph::post_norm(ggml_tensor * x, ggml_tensor * weight, const char * name, int il) const {
    if (!weight) {
        return x;
    }
    x = build_norm(x, weight, NULL, LLM_NORM_RMS, il);
    cb(x, name, il);
    return x;
}

ggml_tensor * liquid_graph::adapter(ggml_tensor * h, const liquid_gate_tensors & t, int il) const {
    ggml_tensor * x  = ffn_norm(h, il);
    ggml_tensor * up = build_lora_mm(t.skip_up,   x); // [m, n_tokens]
    ggml_tensor * a  = build_lora_mm(t.skip_gate, x);
    a = build_lora_mm(t.skip_down, ggml_swiglu_split(ctx0, a, up)); // [n_embd, n_tokens]
    cb(a, "depth_skip_out", il);
    return a;
}

// what the gate reads
ggml_tensor * liquid_graph::gate_norm(ggml_tensor * h, const liquid_gate & gate) const {
    ggml_tensor * n = gate.scope == LIQUID_SCOPE_FFN ? ffn_norm(h, gate.layer) : attn_norm(h, gate.layer);
    cb(n, gate.scope == LIQUID_SCOPE_FFN ? "ffn_norm" : "attn_norm", gate.layer);
    return n;
}

// n [n_embd, n_tokens] -> z [1, n_tokens], without the bias
ggml_tensor * liquid_graph::gate_logit(ggml_tensor * n, const liquid_gate_tensors & t, int il) const {
    ggml_tensor * x = n;
    if (t.enc) {
        x = ggml_mul_mat(ctx0, t.enc, x); // [r, n_tokens]
        x = ggml_tanh(ctx0, build_norm(x, t.norm, NULL, LLM_NORM_RMS, il));
    }
    if (t.dec) {
        x = ggml_mul_mat(ctx0, t.dec, x); // [n_embd, n_tokens]
    }
    ggml_tensor * z = ggml_mul_mat(ctx0, t.weight, x);
    cb(z, "depth_gate_logit", il);
    return z;
}

// h + x; on the one buffer of the state where it is one
ggml_tensor * liquid_graph::add_state(ggml_tensor * h, ggml_tensor * x) const {
    if (!in_place) {
        return ggml_add(ctx0, x, h);
    }
    ggml_tensor * sum = ggml_add_inplace(ctx0, h, x);
    inp_liquid->in_place.emplace_back(sum, h);
    return sum;
}


// a layer without a gate, built as the stock architectures build theirs
ggml_tensor * liquid_graph::plain_layer(ggml_tensor * h, int il) {
    return plain_ffn(plain_attention(h, il), il);
}

ggml_tensor * liquid_graph::stock_attention(ggml_tensor * n, int il) {
    const auto & layer = model.layers[il];

    auto [q, k, v] = build_qkv(layer, n, n_embd_head_k, hparams.n_head(il), hparams.n_head_kv(il), il);
    q = place_q(q, il);
    k = place_k(k, il);
    cb(q, "Qcur", il);
    cb(k, "Kcur", il);
    cb(v, "Vcur", il);
    return inp_kv ?
        build_attn(inp_kv,   layer.wo, layer.wo_b, nullptr, q, k, v, nullptr, nullptr, nullptr, kq_scale, il) :
        build_attn(inp_iswa, layer.wo, layer.wo_b, nullptr, q, k, v, nullptr, nullptr, nullptr, kq_scale, il);
}

ggml_tensor * liquid_graph::plain_attention(ggml_tensor * h, int il) {
    ggml_tensor * n = attn_norm(h, il);
    cb(n, "attn_norm", il);
    ggml_tensor * cur = inp_own ? own_attention(n, il) : stock_attention(n, il);
    cb(cur, "attn_out", il);

    if (keep_outputs(il)) {
        cur = ggml_get_rows(ctx0, cur, inp_out_ids);
        h   = ggml_get_rows(ctx0, h,   inp_out_ids);
        in_place = false; // a state of its own from here on
    }
    cur = attn_post_norm(cur, il);
    h = add_state(h, stayed ? ggml_mul(ctx0, cur, stayed) : cur);
    cb(h, "ffn_inp", il);
    return h;
}

ggml_tensor * liquid_graph::plain_ffn(ggml_tensor * h, int il) {
    ggml_tensor * cur = ffn(h, il);
    h = add_state(h, stayed ? ggml_mul(ctx0, cur, stayed) : cur);
    if (!in_place) {
        h = build_cvec(h, il);
    }
    cb(h, "l_out", il);
    return h;
}
