// The graph of one ubatch of a `liquid` model, and the words its builders share.
//
// It takes one of four forms (enum liquid_form); one file each builds what a gate governs:
//   full   no gate is evaluated; layers are built exactly as the stock architectures build them (liquid-layer.cpp)
//   flags  one token, CPU alone: the gate op switches the nodes of its two sides on or off (liquid-form-flags.cpp)
//   rows   many tokens, CPU alone: the gate op writes the numbers of the rows that run, and sets the row extent of its
//          sides' nodes; these rows are gathered, computed, and scattered back (liquid-form-rows.cpp, liquid-rows.h)
//   dense  any number of rows, any backend: everything is computed, updates are masked row by row (liquid-form-dense.cpp)
// Flags and rows rest on today's executor, which looks at a node's flags and extents when its turn comes. In both, the
// residual state h is one buffer that every update is written to in place: what is not computed leaves h as it was.

#pragma once

#include "liquid-depth.h"
#include "liquid-kv-graph.h"
#include "liquid-model.h"

#include "llama-kv-cache-iswa.h"
#include "llama-kv-cache.h"

#include <initializer_list>
#include <map>
#include <vector>

// what the K and V of one layer are stored to and read from, for the rows at hand
struct liquid_kv_io {
    const llama_kv_cache_context * mctx;

    ggml_tensor * k_idxs;
    ggml_tensor * v_idxs;
    ggml_tensor * kq_mask;
    ggml_tensor * k_rot;
    ggml_tensor * v_rot;

    const liquid_kv_rows * own; // kv_policy = drop: instead of mctx
    int64_t n_kv;
};

// The chosen rows of a gate's one side, and the graph's inputs for them, gathered when first asked for.
struct liquid_chosen {
    ggml_tensor * ids; // I32 [rows]

    std::map<const ggml_tensor *, ggml_tensor *> gathered; // input -> its chosen rows
    std::map<const ggml_tensor *, int>           known;    // tensors whose row dimension is given
};

// Dense form: what the updates of a row are multiplied by, each F32 [1, rows].
struct liquid_masks {
    ggml_tensor * run;    // attention
    ggml_tensor * c_run;  // feed-forward network
    ggml_tensor * c_skip; // adapter
};

struct liquid_graph : public llm_graph_context {
    liquid_graph(const llama_model_liquid & model, const llm_graph_params & params);

private:
    const llama_model_liquid & model;

    llm_graph_input_liquid       * inp_liquid = nullptr;
    llm_graph_input_attn_kv      * inp_kv     = nullptr;
    llm_graph_input_attn_kv_iswa * inp_iswa   = nullptr;
    llm_graph_input_liquid_kv    * inp_own    = nullptr; // kv_policy = drop

    ggml_tensor * inp_pos        = nullptr;
    ggml_tensor * inp_out_ids    = nullptr;
    ggml_tensor * inp_attn_scale = nullptr;

    liquid_form form     = LIQUID_FORM_FULL;
    bool        in_place = false; // the state is one buffer
    float       kq_scale = 1.0f;  // 1 where q is scaled before

    bool    outputs_kept = false; // the state holds the rows to output, no others
    int32_t layers_free  = 0;     // layers so far that no gate governs whole
    int32_t exits        = 0;     // exit gates so far

    liquid_chosen * chosen = nullptr; // rows form: the rows being built for; null: all

    ggml_tensor * running = nullptr; // F32 [1, rows] of ones and zeros: who runs the layer being built, dense form with inp_own

    std::map<int32_t, ggml_tensor *>                      own_idxs; // by group
    std::map<std::pair<int32_t, bool>, liquid_kv_tensors> own_kv;   // by group and window

    ggml_tensor * gated_runs = nullptr; // F32 [1, rows]: gated layers run so far, dense form with min_layers
    ggml_tensor * stayed     = nullptr; // F32 [1, rows] of ones and zeros: rows that took no exit, dense form with exits

    // liquid-graph.cpp: inputs, the choice of a form, the way through the layers
    void          make_inputs();
    liquid_form   choose_form(const llm_graph_params & params) const;
    bool          untouched_states() const;
    int32_t       gate_at(liquid_scope scope, int il) const; // index, or -1: no such gate in this graph
    ggml_tensor * layers (ggml_tensor * h, int from);        // layers [from, n_layer)
    ggml_tensor * layer  (ggml_tensor * h, int il);          // one that no gate governs whole
    ggml_tensor * gated  (ggml_tensor * h, const liquid_gate & gate, int32_t index);
    bool          keep_outputs(int il); // is this the moment to drop the rows that nobody asked for? (then do)

    liquid_gate_node & begin_gate(const liquid_gate & gate, int32_t index);
    // are K and V of the gate's first layer stored whatever it decides, those of layer il when its span runs?
    bool stores_before(const liquid_gate & gate)         const { return gate.scope != LIQUID_SCOPE_FFN && !gate.is_exit && !inp_own; }
    bool stores_within(const liquid_gate & gate, int il) const { return gate.scope != LIQUID_SCOPE_FFN && (il > gate.layer || inp_own); }

    void               collect_nodes(int from, std::vector<ggml_tensor *> & nodes) const;

    // liquid-layer.cpp: the parts of a layer
    ggml_tensor * rows_of(ggml_tensor * input, int dim) const;
    liquid_kv_io  kv_io  (int il);

    ggml_tensor * attn_norm(ggml_tensor * h, int il) const { return build_norm(h, model.layers[il].attn_norm, NULL, LLM_NORM_RMS, il); }
    ggml_tensor * ffn_norm (ggml_tensor * h, int il) const { return build_norm(h, model.layers[il].ffn_norm,  NULL, LLM_NORM_RMS, il); }

    ggml_tensor * rotate (ggml_tensor * x, int il) const;
    ggml_tensor * place_q(ggml_tensor * q, int il) const;
    ggml_tensor * place_k(ggml_tensor * k, int il) const;
    ggml_tensor * norm_qk(ggml_tensor * x, ggml_tensor * weight, int il) const;

    void          store_kv (ggml_tensor * n, int il);
    ggml_tensor * attention(ggml_tensor * n, int il);

    ggml_tensor * experts(ggml_tensor * x, int il) const;
    ggml_tensor * experts_weighted_before(ggml_tensor * x, int il) const;
    ggml_tensor * ffn    (ggml_tensor * h, int il) const;
    ggml_tensor * post_norm(ggml_tensor * x, ggml_tensor * weight, const char * name, int il) const;
    ggml_tensor * attn_post_norm(ggml_tensor * x, int il) const { return post_norm(x, model.layers[il].attn_post_norm, "attn_post_norm", il); }
    ggml_tensor * ffn_post_norm (ggml_tensor * x, int il) const { return post_norm(x, model.layers[il].ffn_post_norm,  "ffn_post_norm",  il); }
    ggml_tensor * adapter(ggml_tensor * h, const liquid_gate_tensors & t, int il) const;

    ggml_tensor * gate_norm (ggml_tensor * h, const liquid_gate & gate) const;
    ggml_tensor * gate_logit(ggml_tensor * n, const liquid_gate_tensors & t, int il) const;
    ggml_tensor * add_state (ggml_tensor * h, ggml_tensor * x) const;

    ggml_tensor * plain_layer    (ggml_tensor * h, int il);
    ggml_tensor * plain_attention(ggml_tensor * h, int il);
    ggml_tensor * stock_attention(ggml_tensor * n, int il);
    ggml_tensor * plain_ffn      (ggml_tensor * h, int il);

    // liquid-kv-graph.cpp: K and V under kv_policy = drop
    void          make_kv_inputs();
    liquid_kv_io  own_kv_io(int il);
    ggml_tensor * own_attention(ggml_tensor * n, int il); // of rows that stayed
    ggml_tensor * kept(ggml_tensor * rows, int64_t n_head, int64_t n_kv) const;             // [n_embd_head, n_head, n_kv]
    ggml_tensor * keep(ggml_tensor * rows, ggml_tensor * cur, ggml_tensor * idxs) const;

    // one file per form
    ggml_tensor * flagged_gate   (ggml_tensor * h, const liquid_gate & gate, int32_t index);
    ggml_tensor * flagged_skip   (ggml_tensor * h, const liquid_gate & gate, const liquid_gate_tensors & t, ggml_tensor * c_skip);
    ggml_tensor * flagged_run    (ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, ggml_tensor * c_run);

    ggml_tensor * rows_gate      (ggml_tensor * h, const liquid_gate & gate, int32_t index);
    ggml_tensor * rows_weight    (ggml_tensor * out) const; // w of the chosen rows, F32 [1, rows]
    ggml_tensor * rows_skip_path (ggml_tensor * h, const liquid_gate & gate, const liquid_gate_tensors & t, ggml_tensor * out, liquid_gate_node & node);
    ggml_tensor * rows_run_path  (ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, ggml_tensor * out, liquid_gate_node & node);

    ggml_tensor * masked_gate    (ggml_tensor * h, const liquid_gate & gate, int32_t index);
    ggml_tensor * masked_layers  (ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, int32_t index, liquid_masks m);
    ggml_tensor * masked_half    (ggml_tensor * h, ggml_tensor * n, const liquid_gate & gate, int32_t index, liquid_masks m);
    ggml_tensor * masked_decision(liquid_gate_node & node, ggml_tensor * z);
    ggml_tensor * masked_floor   (const liquid_gate_node & node, ggml_tensor * run);
    void          masked_outputs (std::initializer_list<ggml_tensor **> rows);
};

// the logit that a gate op is given for row i
inline float liquid_logit(const ggml_tensor * op, int64_t i) {
    const float z = ((const float *) op->src[0]->data)[i];
    return op->src[1] ? z + *(const float *) op->src[1]->data : z;
}

inline void liquid_switch(const liquid_side & side, bool on) {
    for (ggml_tensor * node : side.nodes) {
        node->flags = on ? node->flags | GGML_TENSOR_FLAG_COMPUTE : node->flags & ~GGML_TENSOR_FLAG_COMPUTE;
    }
}
