// The depth state of one context: policy, trace, statistics, and the graph input that carries them into a graph.
// Knows the graph and the batch; knows nothing of how a layer is computed (models/liquid.cpp) nor of the KV cache.

#pragma once

#include "liquid.h"

#include "liquid-rows.h"

#include "llama-graph.h"

#include <deque>
#include <memory>
#include <vector>

struct llama_model;
struct llama_model_liquid;
class  llama_io_write_i;
class  llama_io_read_i;

class llm_graph_input_liquid;

struct liquid_depth {
    const llama_model        & base;
    const llama_model_liquid * model; // null: another architecture, nothing applies

    int32_t mode      = LIQUID_DEPTH_AUTO;
    int32_t engine    = LIQUID_ENGINE_AUTO;
    float   threshold = 0.5f;
    bool    trace     = false;

    // bumped by every change that needs another graph
    uint64_t topology = 0;

    std::vector<uint8_t> forced; // [n_seq][n_pos][n_gate]
    int32_t forced_n_seq = 0;
    int32_t forced_n_pos = 0;

    ggml_type type_k;
    ggml_type type_v;

    liquid_depth_stats stats = {};

    mutable uint64_t model_hash = 0; // 0: not computed yet

    std::vector<int32_t> trace_pos;
    std::vector<int32_t> trace_seq;
    std::vector<float>   trace_w;
    std::vector<uint8_t> trace_run;
    std::vector<int32_t> trace_experts;

    liquid_depth(const llama_model & base, ggml_type type_k, ggml_type type_v);

    bool gated(const llama_cparams & cparams) const; // are gates part of the graph?
};

struct liquid_depth_deleter {
    void operator()(liquid_depth * depth) const;
};

using liquid_depth_ptr = std::unique_ptr<liquid_depth, liquid_depth_deleter>;

// calls placed in llama-context.cpp
liquid_depth * liquid_depth_init(const llama_model & model, ggml_type type_k, ggml_type type_v);
void liquid_depth_begin  (liquid_depth * depth);
void liquid_depth_collect(liquid_depth * depth, const llama_cparams & cparams, const llm_graph_result * res, const llama_ubatch & ubatch, ggml_backend_sched_t sched);
void liquid_state_write  (llama_context & ctx, llama_io_write_i & io); // keys that wait to be moved are moved first
void liquid_state_read   (const liquid_depth * depth, const llama_cparams & cparams, llama_io_read_i & io); // throws std::runtime_error

// called in llama-kv-cache.cpp: the magnitude by which moving a cached key multiplies it
float liquid_shift_attn_factor(const llama_cparams & cparams, float freq_scale);

// How a graph executes depth. Full graphs hold no gate.
enum liquid_form {
    LIQUID_FORM_FULL,
    LIQUID_FORM_FLAGS, // one token: the nodes of a skipped span are switched off
    LIQUID_FORM_ROWS,  // several: the rows that run are gathered, computed and scattered back
    LIQUID_FORM_DENSE, // any backend: all rows are computed, skipped ones masked out
};

// what a gate governs on one side: the nodes, and which dimension of them counts rows (rows form)
struct liquid_side {
    std::vector<ggml_tensor *> nodes;
    liquid_row_nodes           rows;
};

// One gate of a graph.
struct liquid_gate_node {
    llm_graph_input_liquid * owner = nullptr;

    liquid_gate gate   = {};
    int32_t     index  = 0; // into the model's gates; -1: no gate, the rows that took no exit run (rows form)
    int32_t     before = 0; // layers below that no gate governs whole
    int32_t     after  = 0; // layers above the span

    bool outputs_only = false; // rows form: nothing follows, rows that are no output need not run it

    ggml_tensor * w   = nullptr; // F32, one value per token; dense form
    ggml_tensor * run = nullptr;

    liquid_side side_run;
    liquid_side side_skip;
};

class llm_graph_input_liquid : public llm_graph_input_i {
public:
    llm_graph_input_liquid(liquid_depth * depth, const llama_cparams & cparams, liquid_form form, int64_t n_tokens, int64_t n_outputs);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    // the decision of gate `node` for row i with logit z: {w, run}; kept in w, run and left
    std::pair<float, bool> decide(const liquid_gate_node & node, int64_t i, float z);

    // dense form: the decisions, from the tensors of a graph that has run
    void read_decisions();

    // layers that ran for row i, from its decisions: r [n_layer] as a share, ffn [n_layer]
    void layers_run(int64_t i, std::vector<double> & r, std::vector<uint8_t> & ffn) const;

    liquid_depth *    depth;
    const uint64_t    topology;
    const bool        warmup;
    const liquid_form form;
    const int64_t     n_tokens;
    const int64_t     n_outputs;

    ggml_tensor * tau   = nullptr; // F32 [1], dense form
    ggml_tensor * force = nullptr; // F32 [1, n_tokens, n_gate], dense form: +4 run, -4 skip, 0 as the gate says

    std::vector<float>   forced;     // [n_gate][n_tokens], the same values on the host
    std::vector<float>   w;          // [n_gate][n_tokens], NaN: not evaluated
    std::vector<uint8_t> run;        // [n_gate][n_tokens]
    std::vector<uint8_t> left;       // [n_tokens] took an exit
    std::vector<int32_t> gated_runs; // [n_tokens] gated layers that ran so far in this evaluation
    std::vector<uint8_t> is_output;  // [n_tokens]

    std::deque<liquid_gate_node> gates; // in the order of the graph; ops hold pointers into it

    std::vector<std::pair<ggml_tensor *, ggml_tensor *>> in_place; // (result, the state it must lie upon)
    std::vector<ggml_tensor *> experts;                            // I32 [n_expert_used, n_tokens] per mixture layer, trace only
};
