#include "liquid-graph.h"

#include "llama-adapter.h"

#include <algorithm>
#include <cmath>

// fewer rows than this are computed densely: kernels for repacked weights work on four rows at a time
static constexpr int64_t LIQUID_MIN_ROWS = 8;

liquid_graph::liquid_graph(const llama_model_liquid & model, const llm_graph_params & params) : llm_graph_context(params), model(model) {
    form     = choose_form(params);
    in_place = form == LIQUID_FORM_FLAGS || form == LIQUID_FORM_ROWS;

    ggml_tensor * h = build_inp_embd(model.tok_embd);
    make_inputs();
    if (in_place) {
        h = ggml_cont(ctx0, h); // the one buffer that all updates lie upon
        cb(h, "depth_state", -1);
    }
    h = layers(h, 0);
    if (inp_out_ids && !outputs_kept) {
        h = ggml_get_rows(ctx0, h, inp_out_ids);
    }

    ggml_tensor * cur = build_norm(h, model.output_norm, NULL, LLM_NORM_RMS, -1);
    cb(cur, "result_norm", -1);
    res->t_embd = cur;

    cur = build_lora_mm(model.output, cur, model.output_s);
    if (const float cap = hparams.f_final_logit_softcapping) {
        cur = ggml_scale(ctx0, ggml_tanh(ctx0, ggml_scale(ctx0, cur, 1.0f/cap)), cap);
    }
    cb(cur, "result_output", -1);
    res->t_logits = cur;

    ggml_build_forward_expand(gf, cur);
}

// an input that no node reads must not be made: it would get no buffer
void liquid_graph::make_inputs() {
    const auto n_nope = std::count(hparams.rope_pattern.begin(), hparams.rope_pattern.begin() + n_layer, 0u);
    if (n_nope < n_layer) {
        inp_pos = build_inp_pos();
    }
    if (n_nope > 0 && hparams.n_attn_temp_floor_scale > 0) {
        inp_attn_scale = build_inp_attn_scale();
    }
    if (model.info.kv_policy == LIQUID_KV_DROP) {
        make_kv_inputs();
    } else if (hparams.swa_type == LLAMA_SWA_TYPE_NONE) {
        inp_kv = build_attn_inp_kv();
    } else {
        inp_iswa = build_attn_inp_kv_iswa();
    }
    inp_out_ids = build_inp_out_ids();
    kq_scale = hparams.f_attention_scale == 0.0f ? 1.0f/sqrtf(float(n_embd_head_k)) : 1.0f;

    auto input = std::make_unique<llm_graph_input_liquid>(cparams.liquid, cparams, form, n_tokens, n_outputs);
    inp_liquid = (llm_graph_input_liquid *) res->add_input(std::move(input));
    if (form == LIQUID_FORM_DENSE) {
        inp_liquid->tau   = ggml_new_tensor_1d(ctx0, GGML_TYPE_F32, 1);
        inp_liquid->force = ggml_new_tensor_3d(ctx0, GGML_TYPE_F32, 1, n_tokens, model.gates.size());
        ggml_set_input(inp_liquid->tau);
        ggml_set_input(inp_liquid->force);
    }
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

int32_t liquid_graph::gate_at(liquid_scope scope, int il) const {
    return form == LIQUID_FORM_FULL ? -1 : model.gate_at[scope][il];
}

ggml_tensor * liquid_graph::layers(ggml_tensor * h, int from) {
    for (int il = from; il < n_layer; ) {
        if (!in_place) {
            res->t_layer_inp[il] = h;
        }
        const int32_t g = gate_at(LIQUID_SCOPE_LAYER, il);
        if (g < 0) {
            h = layer(h, il++);
            continue;
        }
        const auto & gate = model.gates[g];
        h = gated(h, gate, g);
        if (gate.is_exit) {
            // one token: all that remains is a side of the gate; else it is computed for the rows that stayed
            return form == LIQUID_FORM_FLAGS ? h : layers(layer(h, il), il + 1);
        }
        il += gate.span;
    }
    return h;
}

ggml_tensor * liquid_graph::layer(ggml_tensor * h, int il) {
    const int32_t g_attn = gate_at(LIQUID_SCOPE_ATTN, il);
    const int32_t g_ffn  = gate_at(LIQUID_SCOPE_FFN,  il);
    const bool    chosen_rows = form == LIQUID_FORM_ROWS && exits > 0; // those that stayed

    const auto half = [&](liquid_scope scope, int32_t g) {
        return gated(h, g >= 0 ? model.gates[g] : liquid_gate { il, 1, scope, 0 }, g);
    };
    if (g_attn < 0 && g_ffn < 0) {
        h = chosen_rows ? half(LIQUID_SCOPE_LAYER, -1) : plain_layer(h, il);
    } else {
        h = g_attn >= 0 || chosen_rows ? half(LIQUID_SCOPE_ATTN, g_attn) : plain_attention(h, il);
        h = g_ffn  >= 0 || chosen_rows ? half(LIQUID_SCOPE_FFN,  g_ffn)  : plain_ffn      (h, il);
    }
    layers_free++;
    return h;
}

ggml_tensor * liquid_graph::gated(ggml_tensor * h, const liquid_gate & gate, int32_t index) {
    switch (form) {
        case LIQUID_FORM_FLAGS: return flagged_gate(h, gate, index);
        case LIQUID_FORM_ROWS:  return rows_gate   (h, gate, index);
        default:                return masked_gate (h, gate, index);
    }
}

// Not before a gate of the same layer has decided about every row, and not where rows may have left by an exit.
bool liquid_graph::keep_outputs(int il) {
    if (il != n_layer - 1 || !inp_out_ids || exits > 0 || gate_at(LIQUID_SCOPE_FFN, il) >= 0) {
        return false;
    }
    outputs_kept = true;
    return true;
}

void liquid_graph::collect_nodes(int from, std::vector<ggml_tensor *> & nodes) const {
    for (int i = from; i < ggml_graph_n_nodes(gf); ++i) {
        nodes.push_back(ggml_graph_node(gf, i));
    }
}

liquid_gate_node & liquid_graph::begin_gate(const liquid_gate & gate, int32_t index) {
    auto & node = inp_liquid->gates.emplace_back();
    node.owner  = inp_liquid;
    node.gate   = gate;
    node.index  = index;
    node.before = layers_free;
    node.after  = n_layer - gate.layer - gate.span;
    // in a longer span later rows need the last K and V
    const bool last = gate.span == 1 && node.after == 0 && !gate.is_exit;
    const bool stored_before = !inp_own || gate.scope == LIQUID_SCOPE_FFN; // or later rows need its K and V
    node.outputs_only = inp_out_ids && last && stored_before && (gate.scope == LIQUID_SCOPE_FFN || gate_at(LIQUID_SCOPE_FFN, gate.layer) < 0);
    exits += gate.is_exit;
    return node;
}

std::unique_ptr<llm_graph_context> llama_model_liquid::build_arch_graph(const llm_graph_params & params) const {
    return std::make_unique<liquid_graph>(*this, params);
}
