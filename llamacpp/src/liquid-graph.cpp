// The graph of one ubatch of a `liquid` model.
//
// It takes one of four forms (liquid-depth.h, enum liquid_form):
//   full   no gate is evaluated; layers are built exactly as the stock architectures build them
//   flags  one token, CPU alone: after a span's K and V are stored, a gate op switches the span's nodes on or off
//   rows   many tokens, CPU alone: the gate op writes the numbers of the rows that run, and sets the row extent of the
//          span's nodes; these rows are gathered, computed, and scattered back (liquid-rows.h)
//   dense  any number of rows, any backend: everything is computed, residual updates are masked row by row
// Flags and rows rest on today's executor, which looks at a node's flags and extents when its turn comes. In both, the
// residual state h is one buffer that every update is written to in place: what is not computed leaves h as it was.

#include "liquid-depth.h"
#include "liquid-model.h"

#include "llama-adapter.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <cmath>

namespace {

// fewer rows than this are computed densely: kernels for repacked weights work on four rows at a time
constexpr int64_t LIQUID_MIN_ROWS = 8;

// what the K and V of one layer are stored to and read from, for the rows at hand
struct liquid_kv_io {
    const llama_kv_cache_context * mctx;

    ggml_tensor * k_idxs;
    ggml_tensor * v_idxs;
    ggml_tensor * kq_mask;
    ggml_tensor * k_rot;
    ggml_tensor * v_rot;
};

// The chosen rows of a gate's one side, and the graph's inputs for them, gathered when first asked for.
struct liquid_chosen {
    ggml_tensor * ids; // I32 [rows]

    std::map<const ggml_tensor *, ggml_tensor *> gathered; // input -> its chosen rows
    std::map<const ggml_tensor *, int>           known;    // tensors whose row dimension is given
};

// flags form: the decision about the one token; dst is F32 {w, run, c_run, c_skip}
void liquid_flags_op(ggml_tensor * dst, int ith, int nth, void * userdata);

// rows form: dst is I32 [n_tokens, 4]: ids of rows that run, ids of rows that skip, w and run as float bits
void liquid_rows_op(ggml_tensor * dst, int ith, int nth, void * userdata);

float liquid_logit(const ggml_tensor * op, int64_t i) {
    const float z = ((const float *) op->src[0]->data)[i];
    return op->src[1] ? z + *(const float *) op->src[1]->data : z;
}

void liquid_switch(const liquid_side & side, bool on) {
    for (ggml_tensor * node : side.nodes) {
        node->flags = on ? node->flags | GGML_TENSOR_FLAG_COMPUTE : node->flags & ~GGML_TENSOR_FLAG_COMPUTE;
    }
}

void liquid_flags_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);
    if (ith != 0) { // every thread calls a custom op
        return;
    }
    const auto & gate = *static_cast<const liquid_gate_node *>(userdata);
    const auto [w, run] = gate.owner->decide(gate, 0, liquid_logit(dst, 0));

    float * out = (float *) dst->data;
    out[0] = w;
    out[1] = run ? 1.0f : 0.0f;
    out[2] = w;
    out[3] = 1.0f - w;
    liquid_switch(gate.side_run,  run);
    liquid_switch(gate.side_skip, !run);
}

void liquid_rows_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);
    if (ith != 0) {
        return;
    }
    const auto & gate = *static_cast<const liquid_gate_node *>(userdata);
    auto & inp = *gate.owner;

    const int64_t n = dst->ne[0];
    int32_t * ids_run  = (int32_t *) dst->data;
    int32_t * ids_skip = ids_run + n;
    float   * w_out    = (float *) (ids_run + 2*n);
    float   * run_out  = (float *) (ids_run + 3*n);

    int64_t n_run  = 0;
    int64_t n_skip = 0;
    for (int64_t i = 0; i < n; ++i) {
        const auto [w, run] = inp.decide(gate, i, liquid_logit(dst, i));
        w_out[i]   = w;
        run_out[i] = run ? 1.0f : 0.0f;
        if (gate.outputs_only && !inp.is_output[i]) {
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

    liquid_switch(gate.side_run,  n_run  > 0);
    liquid_switch(gate.side_skip, n_skip > 0);
    liquid_set_rows(gate.side_run .rows, std::max<int64_t>(n_run,  1));
    liquid_set_rows(gate.side_skip.rows, std::max<int64_t>(n_skip, 1));
}

struct liquid_graph : public llm_graph_context {
    liquid_graph(const llama_model_liquid & model, const llm_graph_params & params);

private:
    const llama_model_liquid & model;

    llm_graph_input_liquid       * inp_liquid = nullptr;
    llm_graph_input_attn_kv      * inp_kv     = nullptr;
    llm_graph_input_attn_kv_iswa * inp_iswa   = nullptr;

    ggml_tensor * inp_pos        = nullptr;
    ggml_tensor * inp_out_ids    = nullptr;
    ggml_tensor * inp_attn_scale = nullptr;

    liquid_form form     = LIQUID_FORM_FULL;
    bool        in_place = false; // the state is one buffer
    float       kq_scale = 1.0f;

    liquid_chosen * chosen = nullptr; // rows form: the rows being built for; null: all

    ggml_tensor * gated_runs  = nullptr; // F32 [1, n_tokens]: gated layers run so far, dense form with min_layers
    int32_t       layers_free = 0;       // ungated layers so far

    liquid_form choose_form(const llm_graph_params & params) const;
    bool        untouched_states() const;

    ggml_tensor * rows_of(ggml_tensor * input, int dim) const;
    liquid_kv_io  kv_io  (int il) const;

    ggml_tensor * attn_norm(ggml_tensor * h, int il) const { return build_norm(h, model.layers[il].attn_norm, NULL, LLM_NORM_RMS, il); }
    ggml_tensor * ffn_norm (ggml_tensor * h, int il) const { return build_norm(h, model.layers[il].ffn_norm,  NULL, LLM_NORM_RMS, il); }

    ggml_tensor * rotate (ggml_tensor * x, int il) const;
    ggml_tensor * place_q(ggml_tensor * q, int il) const;
    ggml_tensor * place_k(ggml_tensor * k, int il) const;
    ggml_tensor * norm_qk(ggml_tensor * x, ggml_tensor * weight, int il) const;

    void          store_kv (ggml_tensor * n, int il) const;
    ggml_tensor * attention(ggml_tensor * n, int il) const;

    ggml_tensor * experts(ggml_tensor * x, int il) const;
    ggml_tensor * experts_weighted_before(ggml_tensor * x, int il) const;
    ggml_tensor * ffn    (ggml_tensor * h, int il) const;
    ggml_tensor * adapter(ggml_tensor * h, const liquid_gate_tensors & t, int il) const;

    ggml_tensor * gate_logit(ggml_tensor * n, const liquid_gate_tensors & t, int il) const;
    ggml_tensor * add_state (ggml_tensor * h, ggml_tensor * x) const;

    liquid_gate_node & begin_span(int32_t g) const;

    ggml_tensor * plain_layer (ggml_tensor * h, int il);
    ggml_tensor * flagged_span(ggml_tensor * h, int32_t g);
    ggml_tensor * rows_span   (ggml_tensor * h, int32_t g);
    ggml_tensor * masked_span (ggml_tensor * h, int32_t g);
    ggml_tensor * masked_run  (liquid_gate_node & node, ggml_tensor * z);

    ggml_tensor * rows_skip_path(ggml_tensor * h, int32_t g, ggml_tensor * out, liquid_gate_node & node);
    ggml_tensor * rows_run_path (ggml_tensor * h, ggml_tensor * n, int32_t g, ggml_tensor * out, liquid_gate_node & node);

    void collect_nodes(int from, std::vector<ggml_tensor *> & nodes) const;
};

liquid_graph::liquid_graph(const llama_model_liquid & model, const llm_graph_params & params) : llm_graph_context(params), model(model) {
    auto * depth = cparams.liquid;
    form     = choose_form(params);
    in_place = form == LIQUID_FORM_FLAGS || form == LIQUID_FORM_ROWS;

    ggml_tensor * h = build_inp_embd(model.tok_embd);

    // an input that no node reads must not be made: it would get no buffer
    const auto n_nope = std::count(hparams.rope_pattern.begin(), hparams.rope_pattern.begin() + n_layer, 0u);
    if (n_nope < n_layer) {
        inp_pos = build_inp_pos();
    }
    if (n_nope > 0 && hparams.n_attn_temp_floor_scale > 0) {
        inp_attn_scale = build_inp_attn_scale();
    }
    if (hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        inp_kv = build_attn_inp_kv();
    } else {
        inp_iswa = build_attn_inp_kv_iswa();
    }
    inp_out_ids = build_inp_out_ids();
    kq_scale = hparams.f_attention_scale == 0.0f ? 1.0f/sqrtf(float(n_embd_head_k)) : hparams.f_attention_scale;

    auto input = std::make_unique<llm_graph_input_liquid>(depth, cparams, form, n_tokens, n_outputs);
    inp_liquid = (llm_graph_input_liquid *) res->add_input(std::move(input));
    if (form != LIQUID_FORM_FULL) {
        inp_liquid->gates.resize(model.gates.size());
    }
    if (in_place) {
        h = ggml_cont(ctx0, h); // the one buffer that all updates lie upon
        cb(h, "depth_state", -1);
    }
    if (form == LIQUID_FORM_DENSE) {
        inp_liquid->tau   = ggml_new_tensor_1d(ctx0, GGML_TYPE_F32, 1);
        inp_liquid->force = ggml_new_tensor_3d(ctx0, GGML_TYPE_F32, 1, n_tokens, model.gates.size());
        ggml_set_input(inp_liquid->tau);
        ggml_set_input(inp_liquid->force);
    }

    for (int il = 0; il < n_layer; ) {
        const int32_t g = form == LIQUID_FORM_FULL ? -1 : model.gate_at[il];
        if (!in_place) {
            res->t_layer_inp[il] = h;
        }
        if (g < 0) {
            h = plain_layer(h, il);
            layers_free++;
            il++;
            continue;
        }
        switch (form) {
            case LIQUID_FORM_FLAGS: h = flagged_span(h, g); break;
            case LIQUID_FORM_ROWS:  h = rows_span   (h, g); break;
            default:                h = masked_span (h, g); break;
        }
        il += model.gates[g].span;
    }
    if (in_place && inp_out_ids) {
        h = ggml_get_rows(ctx0, h, inp_out_ids);
    }

    ggml_tensor * cur = build_norm(h, model.output_norm, NULL, LLM_NORM_RMS, -1);
    cb(cur, "result_norm", -1);
    res->t_embd = cur;

    cur = build_lora_mm(model.output, cur, model.output_s);
    cb(cur, "result_output", -1);
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}

liquid_form liquid_graph::choose_form(const llm_graph_params & params) const {
    const auto * depth = cparams.liquid;
    if (!depth->gated(cparams)) {
        return LIQUID_FORM_FULL;
    }
    if (depth->engine == LIQUID_ENGINE_DENSE || ggml_backend_sched_get_n_backends(params.sched) != 1 || !untouched_states()) {
        return LIQUID_FORM_DENSE;
    }
    if (n_tokens == 1) {
        return LIQUID_FORM_FLAGS;
    }
    // attention without flash attention, several streams and rotated quantized caches have extents that are not simply rows
    const bool plain_rows = cparams.flash_attn && (cparams.kv_unified || ubatch.n_seqs_unq == 1) &&
        !ggml_is_quantized(depth->type_k) && !ggml_is_quantized(depth->type_v);
    const bool traceable  = !depth->trace || model.info.n_moe_layer == 0;
    return depth->engine == LIQUID_ENGINE_AUTO && n_tokens >= LIQUID_MIN_ROWS && plain_rows && traceable ? LIQUID_FORM_ROWS : LIQUID_FORM_DENSE;
}

// nothing looks at, or adds to, the state between layers
bool liquid_graph::untouched_states() const {
    if (cparams.cb_eval || cparams.training) {
        return false;
    }
    for (int il = 0; il < n_layer; ++il) {
        if (cvec->tensor_for(il)) {
            return false;
        }
    }
    return std::find(cparams.embeddings_layer_inp.begin(), cparams.embeddings_layer_inp.end(), true) == cparams.embeddings_layer_inp.end();
}

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

liquid_kv_io liquid_graph::kv_io(int il) const {
    if (inp_kv) {
        return { inp_kv->mctx, rows_of(inp_kv->get_k_idxs(), 0), rows_of(inp_kv->get_v_idxs(), 0), rows_of(inp_kv->get_kq_mask(), 1),
                 inp_kv->self_k_rot, inp_kv->self_v_rot };
    }
    if (hparams.is_swa(il)) {
        return { inp_iswa->mctx->get_swa(), rows_of(inp_iswa->get_k_idxs_swa(), 0), rows_of(inp_iswa->get_v_idxs_swa(), 0),
                 rows_of(inp_iswa->get_kq_mask_swa(), 1), inp_iswa->self_k_rot_swa, inp_iswa->self_v_rot_swa };
    }
    return { inp_iswa->mctx->get_base(), rows_of(inp_iswa->get_k_idxs(), 0), rows_of(inp_iswa->get_v_idxs(), 0),
             rows_of(inp_iswa->get_kq_mask(), 1), inp_iswa->self_k_rot, inp_iswa->self_v_rot };
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
    if (!hparams.has_rope(il)) {
        return inp_attn_scale ? ggml_mul(ctx0, q, rows_of(inp_attn_scale, 2)) : q;
    }
    q = rotate(q, il);
    return model.qk_norm == LIQUID_QK_NORM_L2 ? ggml_rms_norm(ctx0, q, hparams.f_norm_rms_eps) : q;
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
void liquid_graph::store_kv(ggml_tensor * n, int il) const {
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
    ggml_build_forward_expand(gf, io.mctx->cpy_k(ctx0, k, io.k_idxs, il));
    ggml_build_forward_expand(gf, io.mctx->cpy_v(ctx0, v, io.v_idxs, il));
}

// n [n_embd, n_tokens], K and V stored -> attention output [n_embd, n_tokens]
ggml_tensor * liquid_graph::attention(ggml_tensor * n, int il) const {
    const auto & layer = model.layers[il];
    const auto io = kv_io(il);

    auto [q, k, v] = build_qkv(layer, n, n_embd_head_k, hparams.n_head(il), hparams.n_head_kv(il), il);
    q = place_q(q, il);
    cb(q, "Qcur", il);
    if (io.k_rot) {
        q = llama_mul_mat_hadamard(ctx0, q, io.k_rot);
    }
    k = io.mctx->get_k(ctx0, il);
    v = io.mctx->get_v(ctx0, il);

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

// h [n_embd, rows] -> FFN(RMSNorm(h)) [n_embd, rows]
ggml_tensor * liquid_graph::ffn(ggml_tensor * h, int il) const {
    const auto & layer = model.layers[il];

    ggml_tensor * cur = ffn_norm(h, il);
    cb(cur, "ffn_norm", il);
    if (model.moe_layers[il]) {
        cur = experts(cur, il);
    } else {
        cur = build_ffn(cur, layer.ffn_up, layer.ffn_up_b, NULL, layer.ffn_gate, layer.ffn_gate_b, NULL, layer.ffn_down, layer.ffn_down_b, NULL,
                NULL, LLM_FFN_SILU, LLM_FFN_PAR, il);
    }
    cb(cur, "ffn_out", il);
    return cur;
}

ggml_tensor * liquid_graph::adapter(ggml_tensor * h, const liquid_gate_tensors & t, int il) const {
    ggml_tensor * x  = ffn_norm(h, il);
    ggml_tensor * up = build_lora_mm(t.skip_up,   x); // [m, n_tokens]
    ggml_tensor * a  = build_lora_mm(t.skip_gate, x);
    a = build_lora_mm(t.skip_down, ggml_swiglu_split(ctx0, a, up)); // [n_embd, n_tokens]
    cb(a, "depth_skip_out", il);
    return a;
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
    const auto & layer = model.layers[il];

    ggml_tensor * n = attn_norm(h, il);
    cb(n, "attn_norm", il);
    auto [q, k, v] = build_qkv(layer, n, n_embd_head_k, hparams.n_head(il), hparams.n_head_kv(il), il);
    q = place_q(q, il);
    k = place_k(k, il);
    cb(q, "Qcur", il);
    cb(k, "Kcur", il);
    cb(v, "Vcur", il);
    ggml_tensor * cur = inp_kv ?
        build_attn(inp_kv,   layer.wo, layer.wo_b, nullptr, q, k, v, nullptr, nullptr, nullptr, kq_scale, il) :
        build_attn(inp_iswa, layer.wo, layer.wo_b, nullptr, q, k, v, nullptr, nullptr, nullptr, kq_scale, il);
    cb(cur, "attn_out", il);

    if (il == n_layer - 1 && inp_out_ids) {
        cur = ggml_get_rows(ctx0, cur, inp_out_ids);
        h   = ggml_get_rows(ctx0, h,   inp_out_ids);
        in_place = false; // a state of its own from here on
    }
    h = add_state(h, cur);
    cb(h, "ffn_inp", il);
    h = add_state(h, ffn(h, il));
    if (!in_place) {
        h = build_cvec(h, il);
    }
    cb(h, "l_out", il);
    return h;
}

void liquid_graph::collect_nodes(int from, std::vector<ggml_tensor *> & nodes) const {
    for (int i = from; i < ggml_graph_n_nodes(gf); ++i) {
        nodes.push_back(ggml_graph_node(gf, i));
    }
}

liquid_gate_node & liquid_graph::begin_span(int32_t g) const {
    const auto & gate = model.gates[g];

    auto & node = inp_liquid->gates[g];
    node.owner  = inp_liquid;
    node.index  = g;
    node.layer  = gate.layer;
    node.span   = gate.span;
    node.before = layers_free;
    node.after  = n_layer - gate.layer - gate.span;
    node.outputs_only = inp_out_ids && gate.span == 1 && node.after == 0; // in a longer span later rows need the last K and V
    return node;
}

// One token. Node order: norm, K, V and their stores, gate; then the skip path's nodes, then the run path's.
ggml_tensor * liquid_graph::flagged_span(ggml_tensor * h, int32_t g) {
    const auto & gate = model.gates[g];
    const auto & t    = model.gate_tensors[g];
    auto & node = begin_span(g);

    ggml_tensor * n = attn_norm(h, gate.layer);
    cb(n, "attn_norm", gate.layer);
    store_kv(n, gate.layer);

    ggml_tensor * args[] = { gate_logit(n, t, gate.layer), t.bias };
    ggml_tensor * out = ggml_custom_4d(ctx0, GGML_TYPE_F32, 4, 1, 1, 1, args, t.bias ? 2 : 1, liquid_flags_op, 1, &node);
    ggml_set_output(out);
    cb(out, "depth_gate", gate.layer);
    ggml_build_forward_expand(gf, out);
    node.w   = ggml_view_1d(ctx0, out, 1, 0);
    node.run = ggml_view_1d(ctx0, out, 1, 1*sizeof(float));
    ggml_build_forward_expand(gf, node.w);
    ggml_build_forward_expand(gf, node.run);

    int from = ggml_graph_n_nodes(gf);
    for (int il = gate.layer + 1; il < gate.layer + gate.span; ++il) {
        store_kv(attn_norm(h, il), il);
    }
    if (t.skip_gate) {
        ggml_tensor * a = adapter(h, t, gate.layer);
        if (model.info.adapter_scaled_by_gate) {
            a = ggml_mul(ctx0, a, ggml_view_1d(ctx0, out, 1, 3*sizeof(float)));
        }
        ggml_build_forward_expand(gf, add_state(h, a));
    }
    collect_nodes(from, node.side_skip.nodes);

    from = ggml_graph_n_nodes(gf);
    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            n = attn_norm(h, il);
            store_kv(n, il);
        }
        h = add_state(h, attention(n, il));
        ggml_tensor * f = ffn(h, il);
        if (model.info.ffn_scaled_by_gate) {
            f = ggml_mul(ctx0, f, ggml_view_1d(ctx0, out, 1, 2*sizeof(float)));
        }
        h = add_state(h, f);
        cb(h, "l_out", il);
        ggml_build_forward_expand(gf, h);
    }
    collect_nodes(from, node.side_run.nodes);
    return h;
}

// Many tokens. Node order as in flagged_span; both paths gather their rows of h first and scatter them back last.
ggml_tensor * liquid_graph::rows_span(ggml_tensor * h, int32_t g) {
    const auto & gate = model.gates[g];
    const auto & t    = model.gate_tensors[g];
    auto & node = begin_span(g);

    ggml_tensor * n = attn_norm(h, gate.layer);
    cb(n, "attn_norm", gate.layer);
    store_kv(n, gate.layer);

    ggml_tensor * args[] = { gate_logit(n, t, gate.layer), t.bias };
    ggml_tensor * out = ggml_custom_4d(ctx0, GGML_TYPE_I32, n_tokens, 4, 1, 1, args, t.bias ? 2 : 1, liquid_rows_op, 1, &node);
    ggml_set_output(out);
    cb(out, "depth_gate", gate.layer);
    ggml_build_forward_expand(gf, out);
    node.w   = ggml_view_1d(ctx0, out, n_tokens, 2*out->nb[1]);
    node.run = ggml_view_1d(ctx0, out, n_tokens, 3*out->nb[1]);
    ggml_build_forward_expand(gf, node.w);
    ggml_build_forward_expand(gf, node.run);

    h = rows_skip_path(h, g, out, node);
    return rows_run_path(h, n, g, out, node);
}

ggml_tensor * liquid_graph::rows_skip_path(ggml_tensor * h, int32_t g, ggml_tensor * out, liquid_gate_node & node) {
    const auto & gate = model.gates[g];
    const auto & t    = model.gate_tensors[g];
    const int from = ggml_graph_n_nodes(gf);

    liquid_chosen rows;
    rows.ids = ggml_view_1d(ctx0, out, n_tokens, 1*out->nb[1]);
    rows.known[rows.ids] = 0;
    chosen = &rows;

    ggml_tensor * state = ggml_get_rows(ctx0, h, rows.ids); // [n_embd, rows]
    for (int il = gate.layer + 1; il < gate.layer + gate.span; ++il) {
        store_kv(attn_norm(state, il), il);
    }
    ggml_tensor * after = h;
    if (t.skip_gate) {
        ggml_tensor * a = adapter(state, t, gate.layer);
        if (model.info.adapter_scaled_by_gate) {
            ggml_tensor * w = ggml_reshape_2d(ctx0, liquid_gather(ctx0, node.w, 0, rows.ids, GGML_TYPE_F32), 1, n_tokens);
            rows.known[w->src[0]] = 0;
            a = ggml_mul(ctx0, a, ggml_scale_bias(ctx0, w, -1.0f, 1.0f));
        }
        after = ggml_set_rows(ctx0, h, ggml_add(ctx0, a, state), rows.ids);
        inp_liquid->in_place.emplace_back(after, h);
        ggml_build_forward_expand(gf, after);
    }
    chosen = nullptr;

    collect_nodes(from, node.side_skip.nodes);
    node.side_skip.rows = liquid_find_row_nodes(node.side_skip.nodes, rows.known, n_tokens);
    return after;
}

ggml_tensor * liquid_graph::rows_run_path(ggml_tensor * h, ggml_tensor * n, int32_t g, ggml_tensor * out, liquid_gate_node & node) {
    const auto & gate = model.gates[g];
    const int from = ggml_graph_n_nodes(gf);

    liquid_chosen rows;
    rows.ids = ggml_view_1d(ctx0, out, n_tokens, 0);
    rows.known[rows.ids] = 0;
    chosen = &rows;

    ggml_tensor * c_run = nullptr;
    if (model.info.ffn_scaled_by_gate) {
        c_run = ggml_reshape_2d(ctx0, liquid_gather(ctx0, node.w, 0, rows.ids, GGML_TYPE_F32), 1, n_tokens);
        rows.known[c_run->src[0]] = 0;
    }
    ggml_tensor * state = ggml_get_rows(ctx0, h, rows.ids); // [n_embd, rows]
    n = ggml_get_rows(ctx0, n, rows.ids);
    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            n = attn_norm(state, il);
            store_kv(n, il);
        }
        state = ggml_add(ctx0, attention(n, il), state);
        ggml_tensor * f = ffn(state, il);
        state = ggml_add(ctx0, c_run ? ggml_mul(ctx0, f, c_run) : f, state);
        cb(state, "l_out", il);
    }
    ggml_tensor * after = ggml_set_rows(ctx0, h, state, rows.ids);
    inp_liquid->in_place.emplace_back(after, h);
    ggml_build_forward_expand(gf, after);
    chosen = nullptr;

    collect_nodes(from, node.side_run.nodes);
    node.side_run.rows = liquid_find_row_nodes(node.side_run.nodes, rows.known, n_tokens);
    return after;
}

// z [1, n_tokens] -> run [1, n_tokens] of zeros and ones; sets node.w and node.run
ggml_tensor * liquid_graph::masked_run(liquid_gate_node & node, ggml_tensor * z) {
    const bool learned = inp_liquid->depth->mode != LIQUID_DEPTH_FORCED;

    node.w = ggml_sigmoid(ctx0, z);
    ggml_set_output(node.w);

    ggml_tensor * force  = inp_liquid->force;
    ggml_tensor * margin = ggml_sub(ctx0, node.w, inp_liquid->tau);
    margin = ggml_add(ctx0, margin, ggml_view_2d(ctx0, force, 1, n_tokens, force->nb[1], node.index*force->nb[2]));
    ggml_tensor * run = ggml_step(ctx0, margin);

    const int32_t floor = model.info.min_layers;
    if (floor > 0 && learned) {
        // allowed = 1 where a skip still leaves min_layers
        const float others = node.before + node.after - floor;
        if (gated_runs) {
            ggml_tensor * allowed = ggml_step(ctx0, ggml_scale_bias(ctx0, gated_runs, 1.0f, others + 0.5f));
            ggml_tensor * skip    = ggml_mul(ctx0, ggml_scale_bias(ctx0, run, -1.0f, 1.0f), allowed);
            run = ggml_scale_bias(ctx0, skip, -1.0f, 1.0f);
        } else if (others < 0) {
            run = ggml_scale_bias(ctx0, run, 0.0f, 1.0f);
        }
        ggml_tensor * layers = ggml_scale(ctx0, run, node.span);
        gated_runs = gated_runs ? ggml_add(ctx0, gated_runs, layers) : layers;
    }
    ggml_set_output(run);
    node.run = run;
    return run;
}

// All rows. A skipped row keeps its state through the span because its updates are multiplied by zero.
ggml_tensor * liquid_graph::masked_span(ggml_tensor * h, int32_t g) {
    const auto & gate = model.gates[g];
    const auto & t    = model.gate_tensors[g];
    auto & node = begin_span(g);

    ggml_tensor * n = attn_norm(h, gate.layer);
    cb(n, "attn_norm", gate.layer);
    ggml_tensor * z = gate_logit(n, t, gate.layer);
    if (t.bias) {
        z = ggml_add(ctx0, z, t.bias);
    }
    ggml_tensor * run    = masked_run(node, z); // [1, n_tokens]
    ggml_tensor * c_run  = model.info.ffn_scaled_by_gate ? ggml_mul(ctx0, run, node.w) : run;
    ggml_tensor * skip   = ggml_scale_bias(ctx0, run, -1.0f, 1.0f);
    ggml_tensor * c_skip = model.info.adapter_scaled_by_gate ? ggml_mul(ctx0, skip, ggml_scale_bias(ctx0, node.w, -1.0f, 1.0f)) : skip;
    ggml_tensor * a      = t.skip_gate ? adapter(h, t, gate.layer) : nullptr;

    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            res->t_layer_inp[il] = h;
            n = attn_norm(h, il);
        }
        store_kv(n, il);
        ggml_tensor * x = attention(n, il);
        if (il == n_layer - 1 && inp_out_ids) {
            for (ggml_tensor ** rows : { &x, &h, &run, &c_run, &c_skip, &a }) {
                *rows = *rows ? ggml_get_rows(ctx0, *rows, inp_out_ids) : nullptr;
            }
        }
        h = add_state(h, ggml_mul(ctx0, x, run));
        h = add_state(h, ggml_mul(ctx0, ffn(h, il), c_run));
        if (il == gate.layer + gate.span - 1 && a) {
            h = add_state(h, ggml_mul(ctx0, a, c_skip));
        }
        h = build_cvec(h, il);
        cb(h, "l_out", il);
    }
    // without rows to output the last span's decisions would be no part of the graph
    ggml_build_forward_expand(gf, node.run);
    return h;
}

} // namespace

std::unique_ptr<llm_graph_context> llama_model_liquid::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<liquid_graph>(*this, params);
}
