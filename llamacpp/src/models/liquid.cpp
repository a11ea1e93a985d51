// The `liquid` architecture: file -> hyper-parameters and tensors, and the graph of one ubatch.
//
// A graph takes one of three forms (liquid.h, enum liquid_engine):
//   full   no gate is evaluated; layers are built exactly as the stock architectures build them
//   flags  one token, CPU alone: after a span's K and V are stored, a gate op switches the span's nodes on or off
//   dense  any number of rows, any backend: everything is computed, residual updates are masked row by row
// The flags form rests on today's executor: it tests GGML_TENSOR_FLAG_COMPUTE of each node when its turn comes, and the
// residual state h is one buffer that every update adds to in place, so an update that is not computed leaves h as it was.

#include "liquid-model.h"

#include "liquid-depth.h"

#include "llama-adapter.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <algorithm>
#include <cmath>
#include <stdexcept>

//
// keys of the file
//

namespace {

// typed reads of `liquid.*` keys; a key of another type is an error, never a guess
class liquid_keys {
public:
    explicit liquid_keys(const gguf_context * ctx) : ctx(ctx) {}

    int64_t find(const std::string & key) const {
        return gguf_find_key(ctx, ("liquid." + key).c_str());
    }

    std::string string(const std::string & key, const std::string & otherwise) const {
        const int64_t id = find(key);
        if (id < 0) {
            return otherwise;
        }
        expect(key, gguf_get_kv_type(ctx, id) == GGUF_TYPE_STRING, "a string");
        return gguf_get_val_str(ctx, id);
    }

    uint32_t u32(const std::string & key, uint32_t otherwise) const {
        const int64_t id = find(key);
        if (id < 0) {
            return otherwise;
        }
        switch (gguf_get_kv_type(ctx, id)) {
            case GGUF_TYPE_UINT32: return gguf_get_val_u32(ctx, id);
            case GGUF_TYPE_INT32:
                expect(key, gguf_get_val_i32(ctx, id) >= 0, "not negative");
                return gguf_get_val_i32(ctx, id);
            default: expect(key, false, "a 32-bit integer");
        }
        return 0;
    }

    float f32(const std::string & key, float otherwise) const {
        const int64_t id = find(key);
        if (id < 0) {
            return otherwise;
        }
        expect(key, gguf_get_kv_type(ctx, id) == GGUF_TYPE_FLOAT32, "a 32-bit float");
        return gguf_get_val_f32(ctx, id);
    }

    bool boolean(const std::string & key, bool otherwise) const {
        const int64_t id = find(key);
        if (id < 0) {
            return otherwise;
        }
        expect(key, gguf_get_kv_type(ctx, id) == GGUF_TYPE_BOOL, "a bool");
        return gguf_get_val_bool(ctx, id);
    }

    bool is_array(const std::string & key) const {
        const int64_t id = find(key);
        return id >= 0 && gguf_get_kv_type(ctx, id) == GGUF_TYPE_ARRAY;
    }

    // array[bool], array[u32] or array[i32] of exactly n elements; absent: n times `otherwise`
    std::vector<uint32_t> numbers(const std::string & key, size_t n, uint32_t otherwise) const {
        const int64_t id = find(key);
        std::vector<uint32_t> values(n, otherwise);
        if (id < 0) {
            return values;
        }
        expect(key, gguf_get_kv_type(ctx, id) == GGUF_TYPE_ARRAY, "an array");
        expect(key, gguf_get_arr_n(ctx, id) == n, "one value per layer");
        const gguf_type type = gguf_get_arr_type(ctx, id);
        expect(key, type == GGUF_TYPE_BOOL || type == GGUF_TYPE_UINT32 || type == GGUF_TYPE_INT32, "an array of bool or 32-bit integers");
        const void * data = gguf_get_arr_data(ctx, id);
        for (size_t i = 0; i < n; ++i) {
            values[i] = type == GGUF_TYPE_BOOL ? ((const int8_t *) data)[i] != 0 : ((const uint32_t *) data)[i];
        }
        return values;
    }

    std::vector<std::string> strings(const std::string & key, size_t n) const {
        const int64_t id = find(key);
        std::vector<std::string> values;
        if (id < 0) {
            return values;
        }
        expect(key, gguf_get_kv_type(ctx, id) == GGUF_TYPE_ARRAY && gguf_get_arr_type(ctx, id) == GGUF_TYPE_STRING, "an array of strings");
        expect(key, gguf_get_arr_n(ctx, id) == n, "one value per layer");
        for (size_t i = 0; i < n; ++i) {
            values.push_back(gguf_get_arr_str(ctx, id, i));
        }
        return values;
    }

    static void expect(const std::string & key, bool holds, const char * what) {
        if (!holds) {
            throw std::runtime_error(format("liquid.%s: expected %s", key.c_str(), what));
        }
    }

private:
    const gguf_context * ctx;
};

template <typename T>
T liquid_choice(const std::string & key, const std::string & value, const std::vector<std::pair<const char *, T>> & choices) {
    for (const auto & [name, result] : choices) {
        if (value == name) {
            return result;
        }
    }
    throw std::runtime_error(format("liquid.%s: unknown value '%s'", key.c_str(), value.c_str()));
}

} // namespace

void llama_model_liquid::load_arch_hparams(llama_model_loader & ml) {
    ml.get_key(LLM_KV_ATTENTION_LAYERNORM_RMS_EPS, hparams.f_norm_rms_eps);
    load_attention(ml);
    load_experts(ml);
    load_depth(ml);
    type = LLM_TYPE_UNKNOWN;
}

void llama_model_liquid::load_attention(llama_model_loader & ml) {
    const liquid_keys keys(ml.metadata);
    const uint32_t n_layer = hparams.n_layer();

    const std::string rope_type = keys.string("rope.type", "norm");
    rope = liquid_choice<llama_rope_type>("rope.type", rope_type, {
        { "norm", LLAMA_ROPE_TYPE_NORM }, { "neox", LLAMA_ROPE_TYPE_NEOX }, { "none", LLAMA_ROPE_TYPE_NORM } });
    const auto rope_layers = keys.numbers("rope.layers", n_layer, 1);
    for (uint32_t il = 0; il < n_layer; ++il) {
        hparams.rope_pattern[il] = rope_layers[il] && rope_type != "none";
    }

    hparams.yarn_beta_fast = keys.f32("rope.scaling.yarn_beta_fast", hparams.yarn_beta_fast);
    hparams.yarn_beta_slow = keys.f32("rope.scaling.yarn_beta_slow", hparams.yarn_beta_slow);

    qk_norm = liquid_choice<liquid_qk_norm>("attention.qk_norm", keys.string("attention.qk_norm", "none"), {
        { "none", LIQUID_QK_NORM_NONE }, { "head", LIQUID_QK_NORM_HEAD }, { "full", LIQUID_QK_NORM_FULL }, { "l2", LIQUID_QK_NORM_L2 } });

    hparams.swa_type = liquid_choice<llama_swa_type>("attention.window_type", keys.string("attention.window_type", "none"), {
        { "none", LLAMA_SWA_TYPE_NONE }, { "sliding", LLAMA_SWA_TYPE_STANDARD }, { "chunked", LLAMA_SWA_TYPE_CHUNKED } });
    if (hparams.swa_type != LLAMA_SWA_TYPE_NONE) {
        hparams.n_swa = keys.u32("attention.sliding_window", 0);
        keys.expect("attention.sliding_window", hparams.n_swa > 0, "the size of the window");
        if (keys.is_array("attention.sliding_window_pattern")) {
            const auto pattern = keys.numbers("attention.sliding_window_pattern", n_layer, 0);
            std::copy(pattern.begin(), pattern.end(), hparams.is_swa_impl.begin());
        } else {
            hparams.set_swa_pattern(keys.u32("attention.sliding_window_pattern", 0), false);
        }
        hparams.rope_freq_base_train_swa  = hparams.rope_freq_base_train;
        hparams.rope_freq_scale_train_swa = hparams.rope_freq_scale_train;
    }

    hparams.n_attn_temp_floor_scale = keys.u32("attention.temperature_length", 0);
    hparams.f_attn_temp_scale       = keys.f32("attention.temperature_scale", 0.0f);
    hparams.f_attn_temp_offset      = 1.0f; // positions count from one, ref: Llama 4
    hparams.f_clamp_kqv             = keys.f32("attention.clamp_kqv", 0.0f);
    hparams.f_attention_scale       = keys.f32("attention.scale", 0.0f);

    liquid_keys::expect("attention.value_length", hparams.n_embd_head_k() == hparams.n_embd_head_v(), "the same as attention.key_length");
}

void llama_model_liquid::load_experts(llama_model_loader & ml) {
    const liquid_keys keys(ml.metadata);
    const uint32_t n_layer = hparams.n_layer();

    const auto moe = keys.numbers("moe_layers", n_layer, hparams.n_expert > 0);
    moe_layers.assign(moe.begin(), moe.end());
    const int32_t n_moe_layer = std::count(moe_layers.begin(), moe_layers.end(), true);
    if (n_moe_layer == 0) {
        return;
    }

    liquid_keys::expect("expert_count", hparams.n_expert > 0, "the number of experts, as moe_layers names mixture layers");
    hparams.expert_gating_func = keys.u32("expert_gating_func", 0);
    liquid_keys::expect("expert_gating_func",
        hparams.expert_gating_func == LLAMA_EXPERT_GATING_FUNC_TYPE_SOFTMAX || hparams.expert_gating_func == LLAMA_EXPERT_GATING_FUNC_TYPE_SIGMOID,
        "1 (softmax) or 2 (sigmoid)");
    liquid_keys::expect("expert_weights_norm", keys.find("expert_weights_norm") >= 0, "whether expert weights are renormalised");
    hparams.expert_weights_norm  = keys.boolean("expert_weights_norm", false);
    hparams.expert_weights_scale = keys.f32("expert_weights_scale", 0.0f);
    hparams.n_ff_shexp           = keys.u32("expert_shared_feed_forward_length", 0);
    expert_weight_before_ffn     = keys.boolean("expert_weight_before_ffn", false);

    const uint32_t n_ff_exp = keys.u32("expert_feed_forward_length", hparams.n_ff());
    std::fill(hparams.n_ff_exp_arr.begin(), hparams.n_ff_exp_arr.begin() + n_layer, n_ff_exp);

    info.n_expert      = hparams.n_expert;
    info.n_expert_used = hparams.n_expert_used(0);
    info.n_moe_layer   = n_moe_layer;
}

void llama_model_liquid::load_depth(llama_model_loader & ml) {
    const liquid_keys keys(ml.metadata);
    const uint32_t n_layer = hparams.n_layer();

    info.n_layer   = n_layer;
    info.threshold = 0.5f;
    gate_at.assign(n_layer, -1);

    const auto spans = keys.numbers("depth.gate_span", n_layer, 0);
    if (keys.find("depth.gate_span") < 0) {
        return;
    }

    liquid_keys::expect("depth.version", keys.u32("depth.version", 0) == 1, "1");
    info.gate_kind = liquid_choice<liquid_gate_kind>("depth.gate_kind", keys.string("depth.gate_kind", ""), {
        { "linear", LIQUID_GATE_LINEAR }, { "bottleneck", LIQUID_GATE_BOTTLENECK } });
    info.kv_policy = liquid_choice<liquid_kv_policy>("depth.kv_policy", keys.string("depth.kv_policy", "project"), {
        { "project", LIQUID_KV_PROJECT }, { "drop", LIQUID_KV_DROP } });
    info.threshold = keys.f32("depth.threshold", 0.5f);
    liquid_keys::expect("depth.threshold", info.threshold >= 0.0f && info.threshold <= 1.0f, "a value in [0, 1]");
    info.ffn_scaled_by_gate     = keys.boolean("depth.ffn_scaled_by_gate", false);
    info.adapter_scaled_by_gate = keys.boolean("depth.adapter_scaled_by_gate", false);
    info.min_layers        = std::min<uint32_t>(keys.u32("depth.min_layers", 0), n_layer);
    info.always_run_tokens = std::min<uint32_t>(keys.u32("depth.always_run_tokens", 0), INT32_MAX);

    if (info.kv_policy == LIQUID_KV_DROP) {
        throw std::runtime_error("liquid.depth.kv_policy: this version runs 'project' only, not 'drop'");
    }
    const auto exits = keys.numbers("depth.gate_exit", n_layer, 0);
    if (std::find_if(exits.begin(), exits.end(), [](uint32_t e) { return e != 0; }) != exits.end()) {
        throw std::runtime_error("liquid.depth.gate_exit: this version does not run exit gates");
    }
    for (const auto & scope : keys.strings("depth.gate_scope", n_layer)) {
        if (scope != "layer" && !scope.empty()) {
            throw std::runtime_error(format("liquid.depth.gate_scope: this version runs the scope 'layer' only, not '%s'", scope.c_str()));
        }
    }

    uint32_t end = 0;
    for (uint32_t il = 0; il < n_layer; ++il) {
        if (spans[il] == 0) {
            continue;
        }
        liquid_keys::expect("depth.gate_span", il >= end && spans[il] <= n_layer - il, "spans that do not overlap and end with the last layer");
        end = il + spans[il];
        gate_at[il] = gates.size();
        gates.push_back({ (int32_t) il, (int32_t) spans[il], LIQUID_SCOPE_LAYER, 0 });
    }
    info.n_gate = gates.size();
}

//
// tensors of the file
//

void llama_model_liquid::load_arch_tensors(llama_model_loader &) {
    LLAMA_LOAD_LOCALS;

    tok_embd    = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD,  "weight"), {n_embd, n_vocab}, 0);
    output_norm = create_tensor(tn(LLM_TENSOR_OUTPUT_NORM, "weight"), {n_embd}, 0);
    output      = create_tensor(tn(LLM_TENSOR_OUTPUT,      "weight"), {n_embd, n_vocab}, TENSOR_NOT_REQUIRED);
    if (output == NULL) {
        output = create_tensor(tn(LLM_TENSOR_TOKEN_EMBD, "weight"), {n_embd, n_vocab}, TENSOR_DUPLICATED);
    }

    for (int i = 0; i < n_layer; ++i) {
        auto & layer = layers[i];

        const int64_t n_head_i = hparams.n_head(i);
        const int64_t n_q = n_embd_head_k*n_head_i;
        const int64_t n_k = hparams.n_embd_k_gqa(i);

        layer.attn_norm = create_tensor(tn(LLM_TENSOR_ATTN_NORM, "weight", i), {n_embd}, 0);

        layer.wq   = create_tensor(tn(LLM_TENSOR_ATTN_Q,   "weight", i), {n_embd, n_q}, 0);
        layer.wk   = create_tensor(tn(LLM_TENSOR_ATTN_K,   "weight", i), {n_embd, n_k}, 0);
        layer.wv   = create_tensor(tn(LLM_TENSOR_ATTN_V,   "weight", i), {n_embd, n_k}, 0);
        layer.wo   = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "weight", i), {n_q, n_embd}, 0);
        layer.wq_b = create_tensor(tn(LLM_TENSOR_ATTN_Q,   "bias",   i), {n_q},    TENSOR_NOT_REQUIRED);
        layer.wk_b = create_tensor(tn(LLM_TENSOR_ATTN_K,   "bias",   i), {n_k},    TENSOR_NOT_REQUIRED);
        layer.wv_b = create_tensor(tn(LLM_TENSOR_ATTN_V,   "bias",   i), {n_k},    TENSOR_NOT_REQUIRED);
        layer.wo_b = create_tensor(tn(LLM_TENSOR_ATTN_OUT, "bias",   i), {n_embd}, TENSOR_NOT_REQUIRED);

        if (qk_norm == LIQUID_QK_NORM_HEAD || qk_norm == LIQUID_QK_NORM_FULL) {
            const bool head = qk_norm == LIQUID_QK_NORM_HEAD;
            layer.attn_q_norm = create_tensor(tn(LLM_TENSOR_ATTN_Q_NORM, "weight", i), {head ? n_embd_head_k : n_q}, 0);
            layer.attn_k_norm = create_tensor(tn(LLM_TENSOR_ATTN_K_NORM, "weight", i), {head ? n_embd_head_k : n_k}, 0);
        }

        layer.rope_freqs = create_tensor(tn(LLM_TENSOR_ROPE_FREQS, "weight", i), {n_rot/2}, TENSOR_NOT_REQUIRED | (i != 0 ? TENSOR_DUPLICATED : 0));

        layer.ffn_norm = create_tensor(tn(LLM_TENSOR_FFN_NORM, "weight", i), {n_embd}, 0);

        if (moe_layers[i]) {
            const int64_t n_ff_exp   = hparams.n_ff_exp(i);
            const int64_t n_ff_shexp = hparams.n_ff_shexp;

            layer.ffn_gate_inp  = create_tensor(tn(LLM_TENSOR_FFN_GATE_INP,  "weight", i), {n_embd, n_expert}, 0);
            layer.ffn_gate_exps = create_tensor(tn(LLM_TENSOR_FFN_GATE_EXPS, "weight", i), {n_embd, n_ff_exp, n_expert}, 0);
            layer.ffn_up_exps   = create_tensor(tn(LLM_TENSOR_FFN_UP_EXPS,   "weight", i), {n_embd, n_ff_exp, n_expert}, 0);
            layer.ffn_down_exps = create_tensor(tn(LLM_TENSOR_FFN_DOWN_EXPS, "weight", i), {n_ff_exp, n_embd, n_expert}, 0);
            if (n_ff_shexp > 0) {
                layer.ffn_gate_shexp = create_tensor(tn(LLM_TENSOR_FFN_GATE_SHEXP, "weight", i), {n_embd, n_ff_shexp}, 0);
                layer.ffn_up_shexp   = create_tensor(tn(LLM_TENSOR_FFN_UP_SHEXP,   "weight", i), {n_embd, n_ff_shexp}, 0);
                layer.ffn_down_shexp = create_tensor(tn(LLM_TENSOR_FFN_DOWN_SHEXP, "weight", i), {n_ff_shexp, n_embd}, 0);
            }
        } else {
            const int64_t n_ff_i = hparams.n_ff(i);

            layer.ffn_gate = create_tensor(tn(LLM_TENSOR_FFN_GATE, "weight", i), {n_embd, n_ff_i}, 0);
            layer.ffn_up   = create_tensor(tn(LLM_TENSOR_FFN_UP,   "weight", i), {n_embd, n_ff_i}, 0);
            layer.ffn_down = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "weight", i), {n_ff_i, n_embd}, 0);

            layer.ffn_gate_b = create_tensor(tn(LLM_TENSOR_FFN_GATE, "bias", i), {n_ff_i}, TENSOR_NOT_REQUIRED);
            layer.ffn_up_b   = create_tensor(tn(LLM_TENSOR_FFN_UP,   "bias", i), {n_ff_i}, TENSOR_NOT_REQUIRED);
            layer.ffn_down_b = create_tensor(tn(LLM_TENSOR_FFN_DOWN, "bias", i), {n_embd}, TENSOR_NOT_REQUIRED);
        }
    }

    load_gate_tensors();
}

void llama_model_liquid::load_gate_tensors() {
    const int64_t n_embd = hparams.n_embd;

    for (const auto & gate : gates) {
        const int i = gate.layer;
        liquid_gate_tensors t;

        if (info.gate_kind == LIQUID_GATE_BOTTLENECK) {
            const auto * enc = ml->get_tensor_meta(tn(LLM_TENSOR_DEPTH_GATE_ENC, "weight", i).str().c_str());
            const auto * dec = ml->get_tensor_meta(tn(LLM_TENSOR_DEPTH_GATE_DEC, "weight", i).str().c_str());
            const int64_t rank = enc ? enc->ne[1] : 1;

            t.enc    = create_tensor(tn(LLM_TENSOR_DEPTH_GATE_ENC,  "weight", i), {n_embd, rank}, 0);
            t.norm   = create_tensor(tn(LLM_TENSOR_DEPTH_GATE_NORM, "weight", i), {rank}, 0);
            t.dec    = create_tensor(tn(LLM_TENSOR_DEPTH_GATE_DEC,  "weight", i), {rank, n_embd}, TENSOR_NOT_REQUIRED);
            t.weight = create_tensor(tn(LLM_TENSOR_DEPTH_GATE,      "weight", i), {dec ? n_embd : rank}, 0);
        } else {
            t.weight = create_tensor(tn(LLM_TENSOR_DEPTH_GATE, "weight", i), {n_embd}, 0);
        }
        t.bias = create_tensor(tn(LLM_TENSOR_DEPTH_GATE, "bias", i), {1}, TENSOR_NOT_REQUIRED);

        if (const auto * meta = ml->get_tensor_meta(tn(LLM_TENSOR_DEPTH_SKIP_GATE, "weight", i).str().c_str())) {
            const int64_t m = meta->ne[1];
            t.skip_gate = create_tensor(tn(LLM_TENSOR_DEPTH_SKIP_GATE, "weight", i), {n_embd, m}, 0);
            t.skip_up   = create_tensor(tn(LLM_TENSOR_DEPTH_SKIP_UP,   "weight", i), {n_embd, m}, 0);
            t.skip_down = create_tensor(tn(LLM_TENSOR_DEPTH_SKIP_DOWN, "weight", i), {m, n_embd}, 0);
        }
        gate_tensors.push_back(t);
    }
}

//
// graph
//

namespace {

// what the K and V of one layer are stored to and read from
struct liquid_kv_io {
    const llama_kv_cache_context * mctx;

    ggml_tensor * k_idxs;
    ggml_tensor * v_idxs;
    ggml_tensor * kq_mask;
    ggml_tensor * k_rot;
    ggml_tensor * v_rot;
};

// decision of a gate of the flags form; every evaluation sets or clears the flag of every node it governs
void liquid_gate_op(ggml_tensor * dst, int ith, int nth, void * userdata) {
    GGML_UNUSED(nth);
    if (ith != 0) {
        return;
    }
    auto * gate  = static_cast<liquid_gate_node *>(userdata);
    auto * inp   = const_cast<llm_graph_input_liquid *>(static_cast<const llm_graph_input_liquid *>(gate->owner));
    auto & depth = *inp->depth;

    float z = *(const float *) dst->src[0]->data;
    if (dst->src[1]) {
        z += *(const float *) dst->src[1]->data;
    }
    const float w = 1.0f/(1.0f + expf(-z));

    bool run = (w - depth.threshold) + inp->forced[gate - inp->gates.data()] > 0.0f;
    if (depth.mode != LIQUID_DEPTH_FORCED) {
        run = run || gate->before + inp->gated_runs + gate->after < depth.model->info.min_layers;
    }
    inp->gated_runs += run ? gate->span : 0;

    float * out = (float *) dst->data;
    out[0] = w;
    out[1] = run ? 1.0f : 0.0f;
    out[2] = w;        // scale of the FFN when run
    out[3] = 1.0f - w; // scale of the adapter when skipped

    for (ggml_tensor * node : gate->nodes_run) {
        node->flags = run ? node->flags | GGML_TENSOR_FLAG_COMPUTE : node->flags & ~GGML_TENSOR_FLAG_COMPUTE;
    }
    for (ggml_tensor * node : gate->nodes_skip) {
        node->flags = run ? node->flags & ~GGML_TENSOR_FLAG_COMPUTE : node->flags | GGML_TENSOR_FLAG_COMPUTE;
    }
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

    float kq_scale = 1.0f;
    bool  gated    = false; // gates are part of this graph
    bool  flags    = false; // ... in the flags form

    ggml_tensor * gated_runs  = nullptr; // F32 [1, n_tokens]: gated layers run so far, dense form with min_layers
    int32_t       layers_free = 0;       // ungated layers so far

    bool flags_allowed(const llm_graph_params & params) const;

    liquid_kv_io kv_io(int il) const;

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

    ggml_tensor * residual(ggml_tensor * h, ggml_tensor * x) const;
    ggml_tensor * plain_layer (ggml_tensor * h, int il);
    ggml_tensor * flagged_span(ggml_tensor * h, int32_t g);
    ggml_tensor * masked_span (ggml_tensor * h, int32_t g);
    ggml_tensor * masked_run  (liquid_gate_node & node, ggml_tensor * z);

    void collect_nodes(int from, std::vector<ggml_tensor *> & nodes) const;
};

liquid_graph::liquid_graph(const llama_model_liquid & model, const llm_graph_params & params) : llm_graph_context(params), model(model) {
    auto * depth = cparams.liquid;
    gated = depth && depth->gated(cparams);
    flags = gated && flags_allowed(params);

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

    if (depth) {
        auto input = std::make_unique<llm_graph_input_liquid>(depth, cparams, flags, n_tokens);
        inp_liquid = (llm_graph_input_liquid *) res->add_input(std::move(input));
    }
    if (gated) {
        inp_liquid->gates.resize(model.gates.size());
        if (flags) {
            h = ggml_cont(ctx0, h); // the one buffer that the whole chain of updates lies upon
            cb(h, "depth_state", -1);
        } else {
            inp_liquid->tau   = ggml_new_tensor_1d(ctx0, GGML_TYPE_F32, 1);
            inp_liquid->force = ggml_new_tensor_3d(ctx0, GGML_TYPE_F32, 1, n_tokens, model.gates.size());
            ggml_set_input(inp_liquid->tau);
            ggml_set_input(inp_liquid->force);
        }
    }

    for (int il = 0; il < n_layer; ) {
        const int32_t g = gated ? model.gate_at[il] : -1;
        if (!flags) {
            res->t_layer_inp[il] = h;
        }
        if (g < 0) {
            h = plain_layer(h, il);
            layers_free++;
            il++;
        } else {
            h = flags ? flagged_span(h, g) : masked_span(h, g);
            il += model.gates[g].span;
        }
    }
    if (flags && inp_out_ids) {
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

// The CPU must be the only backend; nothing may look at, or add to, the state between layers.
bool liquid_graph::flags_allowed(const llm_graph_params & params) const {
    if (cparams.liquid->engine == LIQUID_ENGINE_DENSE || n_tokens != 1 || ggml_backend_sched_get_n_backends(params.sched) != 1) {
        return false;
    }
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

liquid_kv_io liquid_graph::kv_io(int il) const {
    if (inp_kv) {
        return { inp_kv->mctx, inp_kv->get_k_idxs(), inp_kv->get_v_idxs(), inp_kv->get_kq_mask(), inp_kv->self_k_rot, inp_kv->self_v_rot };
    }
    if (hparams.is_swa(il)) {
        return { inp_iswa->mctx->get_swa(), inp_iswa->get_k_idxs_swa(), inp_iswa->get_v_idxs_swa(), inp_iswa->get_kq_mask_swa(),
                 inp_iswa->self_k_rot_swa, inp_iswa->self_v_rot_swa };
    }
    return { inp_iswa->mctx->get_base(), inp_iswa->get_k_idxs(), inp_iswa->get_v_idxs(), inp_iswa->get_kq_mask(),
             inp_iswa->self_k_rot, inp_iswa->self_v_rot };
}

ggml_tensor * liquid_graph::rotate(ggml_tensor * x, int il) const {
    return ggml_rope_ext(ctx0, x, inp_pos, model.get_rope_factors(cparams, il), n_rot, rope_type, n_ctx_orig,
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
        return inp_attn_scale ? ggml_mul(ctx0, q, inp_attn_scale) : q;
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

    if (inp_liquid && inp_liquid->depth->trace) {
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

// h + x; on the one buffer of the state in the flags form
ggml_tensor * liquid_graph::residual(ggml_tensor * h, ggml_tensor * x) const {
    if (!flags) {
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

    if (il == n_layer - 1 && inp_out_ids && !flags) {
        cur = ggml_get_rows(ctx0, cur, inp_out_ids);
        h   = ggml_get_rows(ctx0, h,   inp_out_ids);
    }
    h = residual(h, cur);
    cb(h, "ffn_inp", il);
    h = residual(h, ffn(h, il));
    if (!flags) {
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

// One token. Node order: norm, K, V and their stores, gate; then the skip path's nodes, then the run path's.
ggml_tensor * liquid_graph::flagged_span(ggml_tensor * h, int32_t g) {
    const auto & gate = model.gates[g];
    const auto & t    = model.gate_tensors[g];

    auto & node = inp_liquid->gates[g];
    node.owner  = inp_liquid;
    node.index  = g;
    node.layer  = gate.layer;
    node.span   = gate.span;
    node.before = layers_free;
    node.after  = n_layer - gate.layer - gate.span;

    ggml_tensor * n = attn_norm(h, gate.layer);
    cb(n, "attn_norm", gate.layer);
    store_kv(n, gate.layer);

    ggml_tensor * args[] = { gate_logit(n, t, gate.layer), t.bias };
    ggml_tensor * out = ggml_custom_4d(ctx0, GGML_TYPE_F32, 4, 1, 1, 1, args, t.bias ? 2 : 1, liquid_gate_op, 1, &node); // {w, run, c_run, c_skip}
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
        ggml_build_forward_expand(gf, residual(h, a));
    }
    collect_nodes(from, node.nodes_skip);

    from = ggml_graph_n_nodes(gf);
    for (int il = gate.layer; il < gate.layer + gate.span; ++il) {
        if (il > gate.layer) {
            n = attn_norm(h, il);
            store_kv(n, il);
        }
        h = residual(h, attention(n, il));
        ggml_tensor * f = ffn(h, il);
        if (model.info.ffn_scaled_by_gate) {
            f = ggml_mul(ctx0, f, ggml_view_1d(ctx0, out, 1, 2*sizeof(float)));
        }
        h = residual(h, f);
        cb(h, "l_out", il);
        ggml_build_forward_expand(gf, h);
    }
    collect_nodes(from, node.nodes_run);
    return h;
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

    auto & node = inp_liquid->gates[g];
    node.owner  = inp_liquid;
    node.index  = g;
    node.layer  = gate.layer;
    node.span   = gate.span;
    node.before = layers_free;
    node.after  = n_layer - gate.layer - gate.span;

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
        h = residual(h, ggml_mul(ctx0, x, run));
        h = residual(h, ggml_mul(ctx0, ffn(h, il), c_run));
        if (il == gate.layer + gate.span - 1 && a) {
            h = residual(h, ggml_mul(ctx0, a, c_skip));
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
