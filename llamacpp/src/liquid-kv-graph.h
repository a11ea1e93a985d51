// The way of K and V under kv_policy = drop through one graph.
//
// Two custom ops stand before the first layer of a group. The first gives the tokens that run a slot each (the index
// for storing K and V); tokens that skip, where everything is computed, get one that nothing remembers. The second gathers
// the group's mask from the graph's: one column per slot, that of its token's cell. Windowed layers have their mask cut to
// the window by the same op. Both run where the group's layers run: a side that is switched off stores nothing.

#pragma once

#include "liquid-kv.h"

#include "llama-graph.h"

#include <deque>
#include <map>

class llm_graph_input_liquid_kv;

// which tokens the rows at hand are, and which of them run
enum liquid_rows_kind {
    LIQUID_ROWS_ALL,    // all tokens, all run
    LIQUID_ROWS_CHOSEN, // those numbered by an I32 tensor, all run
    LIQUID_ROWS_MASKED, // all tokens; an F32 tensor of zeros and ones says who runs
};

// what the ops of one group (or of windowed layers that every token runs: group -1) know
struct liquid_kv_node {
    llm_graph_input_liquid_kv * owner;
    int32_t group;
    liquid_rows_kind kind;
    bool windowed;
};

struct liquid_kv_tensors {
    ggml_tensor * idxs; // I64 [rows]
    ggml_tensor * mask; // [n_kv, rows], type of the graph's mask
};

// F32 [n, n], orthonormal, symmetric, its own inverse; none for n = 0. An input: liquid_set_rotation() fills it.
ggml_tensor * liquid_new_rotation(ggml_context * ctx, int64_t n);
void          liquid_set_rotation(ggml_tensor * t);

class llm_graph_input_liquid_kv : public llm_graph_input_i {
public:
    llm_graph_input_liquid_kv(const llama_hparams & hparams, const liquid_kv_context * mctx);

    void set_input(const llama_ubatch * ubatch) override;
    bool can_reuse(const llm_graph_params & params) override;

    // rows: the tensor that `kind` speaks of
    ggml_tensor * slots(ggml_context * ctx, int32_t group, liquid_rows_kind kind, ggml_tensor * rows, int64_t n_rows);
    ggml_tensor * mask (ggml_context * ctx, int32_t group, liquid_rows_kind kind, ggml_tensor * rows, bool windowed,
            ggml_tensor * of_graph, ggml_tensor * after);

    void make_rotations(ggml_context * ctx);

    const llama_hparams & hparams;
    const liquid_kv_context * mctx;
    liquid_kv_cache * cache;

    ggml_tensor * k_rot = nullptr; // quantized keys and values are multiplied by these
    ggml_tensor * v_rot = nullptr;

private:
    std::vector<uint32_t> n_kv; // [n_group]
    std::deque<liquid_kv_node> nodes; // ops hold pointers into it
};
