// The `liquid` architecture: file -> hyper-parameters and tensors. The graph is liquid-graph.cpp's.

#include "liquid-model.h"

#include "llama-impl.h"

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
    load_scales(ml);
    load_attention(ml);
    load_experts(ml);
    load_depth(ml);
    type = LLM_TYPE_UNKNOWN;
}

void llama_model_liquid::load_scales(llama_model_loader & ml) {
    const liquid_keys keys(ml.metadata);

    hparams.f_embedding_scale         = keys.f32("embedding_scale", 0.0f);
    hparams.f_attention_scale         = keys.f32("attention.scale", 0.0f);
    hparams.f_final_logit_softcapping = keys.f32("final_logit_softcapping", 0.0f);
    for (const auto * key : { "embedding_scale", "attention.scale", "final_logit_softcapping" }) {
        const float value = keys.f32(key, 1.0f);
        keys.expect(key, value > 0.0f && std::isfinite(value), "a number above 0");
    }
    activation = liquid_choice<llm_ffn_op_type>("feed_forward.activation", keys.string("feed_forward.activation", "silu"), {
        { "silu", LLM_FFN_SILU }, { "gelu", LLM_FFN_GELU } });
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
        load_window_rope(ml);
    }

    hparams.n_attn_temp_floor_scale = keys.u32("attention.temperature_length", 0);
    hparams.f_attn_temp_scale       = keys.f32("attention.temperature_scale", 0.0f);
    hparams.f_attn_temp_offset      = 1.0f; // positions count from one, ref: Llama 4
    hparams.f_clamp_kqv             = keys.f32("attention.clamp_kqv", 0.0f);

    liquid_keys::expect("attention.value_length", hparams.n_embd_head_k() == hparams.n_embd_head_v(), "the same as attention.key_length");
}

// layers with a window may turn by a base of their own, and then without scaling
void llama_model_liquid::load_window_rope(llama_model_loader & ml) {
    const liquid_keys keys(ml.metadata);

    const bool own = keys.find("rope.freq_base_swa") >= 0;
    hparams.rope_freq_base_train_swa  = keys.f32("rope.freq_base_swa", hparams.rope_freq_base_train);
    hparams.rope_freq_scale_train_swa = own ? 1.0f : hparams.rope_freq_scale_train;
    keys.expect("rope.freq_base_swa", hparams.rope_freq_base_train_swa > 0.0f, "a number above 0");

    // what else scales goes to all layers alike
    const std::string scaling = keys.string("rope.scaling.type", "none");
    keys.expect("rope.scaling.type", !own || scaling == "none" || scaling == "linear", "'none' or 'linear' beside rope.freq_base_swa");
    keys.expect("rope.freq_base_swa", !own || !ml.get_tensor_meta("rope_freqs.weight"), "no frequency factors beside it");
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

    liquid_keys::expect("feed_forward.activation", activation == LLM_FFN_SILU, "'silu' where there are mixture layers");
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
    for (auto & at : gate_at) {
        at.assign(n_layer, -1);
    }

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

    load_gates(spans, keys.numbers("depth.gate_exit", n_layer, 0), keys.strings("depth.gate_scope", n_layer));
}

void llama_model_liquid::add_gate(int32_t layer, int32_t span, liquid_scope scope, bool is_exit) {
    gate_at[scope][layer] = gates.size();
    gates.push_back({ layer, span, scope, is_exit });
    info.n_gate = gates.size();
}

void llama_model_liquid::load_gates(const std::vector<uint32_t> & spans, const std::vector<uint32_t> & exits, const std::vector<std::string> & scopes) {
    const uint32_t n_layer = hparams.n_layer();

    uint32_t end = 0; // of the last ordinary span; one within an exit's reach is allowed
    for (uint32_t il = 0; il < n_layer; ++il) {
        const std::string scope = scopes.empty() || scopes[il].empty() ? "layer" : scopes[il];
        if (spans[il] == 0) {
            liquid_keys::expect("depth.gate_exit", !exits[il], "gates only where gate_span is not 0");
            continue;
        }
        liquid_keys::expect("depth.gate_span", il >= end && spans[il] <= n_layer - il, "spans that do not overlap and end with the last layer");
        if (exits[il]) {
            liquid_keys::expect("depth.gate_span", spans[il] == n_layer - il, "all that remains as the span of an exit gate");
            liquid_keys::expect("depth.gate_scope", scope == "layer", "'layer' for an exit gate");
            add_gate(il, spans[il], LIQUID_SCOPE_LAYER, true);
            continue;
        }
        end = il + spans[il];
        if (scope == "layer") {
            add_gate(il, spans[il], LIQUID_SCOPE_LAYER, false);
            continue;
        }
        liquid_keys::expect("depth.gate_span", spans[il] == 1, "1 for gates of half a layer");
        const bool both = scope == "attn+ffn";
        liquid_keys::expect("depth.gate_scope", both || scope == "attn" || scope == "ffn", "'layer', 'attn', 'ffn' or 'attn+ffn'");
        if (both || scope == "attn") {
            add_gate(il, 1, LIQUID_SCOPE_ATTN, false);
        }
        if (both || scope == "ffn") {
            add_gate(il, 1, LIQUID_SCOPE_FFN, false);
        }
    }
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

        layer.attn_post_norm = create_tensor(tn(LLM_TENSOR_ATTN_POST_NORM, "weight", i), {n_embd}, TENSOR_NOT_REQUIRED);
        layer.ffn_post_norm  = create_tensor(tn(LLM_TENSOR_FFN_POST_NORM,  "weight", i), {n_embd}, TENSOR_NOT_REQUIRED);

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
    measure_halves();
}

// names of a gate's tensors by scope
struct liquid_gate_names {
    llm_tensor weight, enc, norm, dec;
};

static const liquid_gate_names LIQUID_GATE_NAMES[] = {
    { LLM_TENSOR_DEPTH_GATE,      LLM_TENSOR_DEPTH_GATE_ENC,      LLM_TENSOR_DEPTH_GATE_NORM,      LLM_TENSOR_DEPTH_GATE_DEC      },
    { LLM_TENSOR_DEPTH_GATE_ATTN, LLM_TENSOR_DEPTH_GATE_ATTN_ENC, LLM_TENSOR_DEPTH_GATE_ATTN_NORM, LLM_TENSOR_DEPTH_GATE_ATTN_DEC },
    { LLM_TENSOR_DEPTH_GATE_FFN,  LLM_TENSOR_DEPTH_GATE_FFN_ENC,  LLM_TENSOR_DEPTH_GATE_FFN_NORM,  LLM_TENSOR_DEPTH_GATE_FFN_DEC  },
};

void llama_model_liquid::load_gate_tensors() {
    const int64_t n_embd = hparams.n_embd;

    for (const auto & gate : gates) {
        const int i = gate.layer;
        const auto & names = LIQUID_GATE_NAMES[gate.scope];
        liquid_gate_tensors t;

        if (info.gate_kind == LIQUID_GATE_BOTTLENECK) {
            const auto * enc = ml->get_tensor_meta(tn(names.enc, "weight", i).str().c_str());
            const auto * dec = ml->get_tensor_meta(tn(names.dec, "weight", i).str().c_str());
            const int64_t rank = enc ? enc->ne[1] : 1;

            t.enc    = create_tensor(tn(names.enc,    "weight", i), {n_embd, rank}, 0);
            t.norm   = create_tensor(tn(names.norm,   "weight", i), {rank}, 0);
            t.dec    = create_tensor(tn(names.dec,    "weight", i), {rank, n_embd}, TENSOR_NOT_REQUIRED);
            t.weight = create_tensor(tn(names.weight, "weight", i), {dec ? n_embd : rank}, 0);
        } else {
            t.weight = create_tensor(tn(names.weight, "weight", i), {n_embd}, 0);
        }
        t.bias = create_tensor(tn(names.weight, "bias", i), {1}, TENSOR_NOT_REQUIRED);

        const auto * meta = ml->get_tensor_meta(tn(LLM_TENSOR_DEPTH_SKIP_GATE, "weight", i).str().c_str());
        if (meta && gate.scope != LIQUID_SCOPE_ATTN && !gate.is_exit) {
            const int64_t m = meta->ne[1];
            t.skip_gate = create_tensor(tn(LLM_TENSOR_DEPTH_SKIP_GATE, "weight", i), {n_embd, m}, 0);
            t.skip_up   = create_tensor(tn(LLM_TENSOR_DEPTH_SKIP_UP,   "weight", i), {n_embd, m}, 0);
            t.skip_down = create_tensor(tn(LLM_TENSOR_DEPTH_SKIP_DOWN, "weight", i), {m, n_embd}, 0);
        }
        gate_tensors.push_back(t);
    }
}

// the attention's share of each layer's active parameters; routed experts count as many as a token uses
void llama_model_liquid::measure_halves() {
    const auto sum = [](std::initializer_list<const ggml_tensor *> tensors) {
        double n = 0;
        for (const ggml_tensor * t : tensors) {
            n += t ? ggml_nelements(t) : 0;
        }
        return n;
    };
    for (const auto & l : layers) {
        const double attn = sum({ l.attn_norm, l.wq, l.wk, l.wv, l.wo, l.wq_b, l.wk_b, l.wv_b, l.wo_b, l.attn_q_norm, l.attn_k_norm,
            l.attn_post_norm });
        const double ffn  = sum({ l.ffn_norm, l.ffn_post_norm, l.ffn_gate, l.ffn_up, l.ffn_down, l.ffn_gate_b, l.ffn_up_b, l.ffn_down_b, l.ffn_gate_inp,
            l.ffn_gate_shexp, l.ffn_up_shexp, l.ffn_down_shexp });
        const double routed = sum({ l.ffn_gate_exps, l.ffn_up_exps, l.ffn_down_exps })*info.n_expert_used/std::max(info.n_expert, 1);
        attn_share.push_back(attn/(attn + ffn + routed));
    }
}
