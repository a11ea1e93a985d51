// The `liquid` architecture: what a model file of it says (architecture.md of the project, docs/), tensors included.

#pragma once

#include "liquid.h"

#include "models/models.h"

#include <vector>

enum liquid_qk_norm {
    LIQUID_QK_NORM_NONE,
    LIQUID_QK_NORM_HEAD, // per head, weight [n_embd_head], before RoPE
    LIQUID_QK_NORM_FULL, // all heads at once, weight [n_head*n_embd_head], before RoPE
    LIQUID_QK_NORM_L2,   // per head, no weight, after RoPE, on layers with RoPE
};

struct liquid_gate_tensors {
    ggml_tensor * weight = nullptr; // [n_embd] linear or unfolded, [r] bottleneck
    ggml_tensor * bias   = nullptr; // [1]
    ggml_tensor * enc    = nullptr; // [n_embd, r]
    ggml_tensor * norm   = nullptr; // [r]
    ggml_tensor * dec    = nullptr; // [r, n_embd]

    ggml_tensor * skip_gate = nullptr; // [n_embd, m]
    ggml_tensor * skip_up   = nullptr; // [n_embd, m]
    ggml_tensor * skip_down = nullptr; // [m, n_embd]
};

struct llama_model_liquid : public llama_model_base {
    llama_model_liquid(const struct llama_model_params & params) : llama_model_base(params) {}

    void load_arch_hparams(llama_model_loader & ml) override;
    void load_arch_tensors(llama_model_loader & ml) override;

    std::unique_ptr<llm_graph_context> build_arch_graph(const llm_graph_params & params) const override;

    llama_rope_type rope    = LLAMA_ROPE_TYPE_NORM;
    liquid_qk_norm  qk_norm = LIQUID_QK_NORM_NONE;

    llm_ffn_op_type activation = LLM_FFN_SILU; // of dense layers

    bool expert_weight_before_ffn = false;

    std::vector<bool> moe_layers; // [n_layer]

    liquid_model_info                info = {};
    std::vector<liquid_gate>         gates;        // ascending by layer, attn before ffn
    std::vector<liquid_gate_tensors> gate_tensors; // one per gate
    std::vector<int32_t>             gate_at[3];   // by scope, [n_layer]: index of the gate whose span begins here, or -1
    std::vector<double>              attn_share;   // [n_layer] of the layer's active parameters

private:
    void load_scales     (llama_model_loader & ml);
    void load_attention  (llama_model_loader & ml);
    void load_window_rope(llama_model_loader & ml);
    void load_experts    (llama_model_loader & ml);
    void load_depth      (llama_model_loader & ml);
    void load_gates   (const std::vector<uint32_t> & spans, const std::vector<uint32_t> & exits, const std::vector<std::string> & scopes);
    void add_gate     (int32_t layer, int32_t span, liquid_scope scope, bool is_exit);
    void load_gate_tensors();
    void measure_halves();
};
