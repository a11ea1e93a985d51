// liquid: per-token depth control and trace for models of the `liquid` architecture.
//
// Everything here is inert for other architectures: setters return -1 and change nothing, and every layer counts as run.
// Pointers returned by liquid_trace_* stay valid until the next llama_decode, liquid_set_trace or llama_free on that context.
// A context is used by one thread at a time, as in llama.h.

#pragma once

#include "llama.h"

#include <stdint.h>

#define LIQUID_API_VERSION 3

#ifdef __cplusplus
extern "C" {
#endif

enum liquid_gate_kind {
    LIQUID_GATE_LINEAR     = 0,
    LIQUID_GATE_BOTTLENECK = 1,
};

enum liquid_kv_policy {
    LIQUID_KV_PROJECT = 0,
    LIQUID_KV_DROP    = 1,
};

enum liquid_scope {
    LIQUID_SCOPE_LAYER = 0,
    LIQUID_SCOPE_ATTN  = 1,
    LIQUID_SCOPE_FFN   = 2,
};

enum liquid_depth_mode {
    LIQUID_DEPTH_AUTO      = 0, // run a span when w > the model's own threshold
    LIQUID_DEPTH_FULL      = 1, // run every layer, evaluate no gate
    LIQUID_DEPTH_THRESHOLD = 2, // run a span when w > the threshold given
    LIQUID_DEPTH_FORCED    = 3, // take the decisions from a table (liquid_set_forced)
};

// How skipping is executed. The forms take the same decisions and agree bit for bit for equal decisions.
enum liquid_engine {
    LIQUID_ENGINE_AUTO  = 0, // what skips, where it is safe and faster; dense elsewhere
    LIQUID_ENGINE_FLAGS = 1, // as auto, for one token at a time alone: the nodes of a skipped span are not computed
    LIQUID_ENGINE_DENSE = 2, // any backend: everything is computed, skipped rows are masked out
};

struct liquid_model_info {
    int32_t n_layer;
    int32_t n_gate;
    int32_t gate_kind; // enum liquid_gate_kind
    int32_t kv_policy; // enum liquid_kv_policy
    float   threshold;
    int32_t ffn_scaled_by_gate;
    int32_t adapter_scaled_by_gate;
    int32_t min_layers;
    int32_t always_run_tokens;
    int32_t n_expert;
    int32_t n_expert_used;
    int32_t n_moe_layer;
};

struct liquid_gate {
    int32_t layer;   // first layer of the span
    int32_t span;    // layers governed
    int32_t scope;   // enum liquid_scope
    int32_t is_exit; // the token leaves before `layer` instead of skipping it
};

// Sums since the context was made or liquid_reset_stats was called; warm-up runs are not counted.
struct liquid_depth_stats {
    int64_t n_tokens;        // tokens evaluated
    double  n_layer_runs;    // layers executed, over all tokens; a half that ran alone counts by its share of the parameters
    int64_t n_gate_evals;
    int64_t n_gate_runs;     // gate evaluations that let their span run
    int64_t n_expert_hits;   // routed experts applied, over all tokens and mixture layers that ran
    int64_t n_blocks_unread; // evaluations of a span whose weights were not read, because no token ran it
};

LLAMA_API int32_t      liquid_api_version(void);
LLAMA_API const char * liquid_build_stamp(void); // "<pin>-<patches and sources>", hex digits

// 0, or -1 when the model is of another architecture (or i is out of range)
LLAMA_API int32_t liquid_get_model_info(const struct llama_model * model, struct liquid_model_info * info);
LLAMA_API int32_t liquid_get_gate      (const struct llama_model * model, int32_t i, struct liquid_gate * gate);

// 0, or -1: another architecture, an unknown mode, or a threshold outside [0, 1]
LLAMA_API int32_t liquid_set_depth (struct llama_context * ctx, int32_t mode, float threshold);
LLAMA_API int32_t liquid_get_depth (const struct llama_context * ctx, int32_t * mode, float * threshold);
LLAMA_API int32_t liquid_set_engine(struct llama_context * ctx, int32_t engine);

// Decisions for LIQUID_DEPTH_FORCED: run[n_seq][n_pos][n_gate], copied; a token of sequence s at position p reads row
// [s % n_seq][p % n_pos]. min_layers and always_run_tokens do not apply to forced decisions.
LLAMA_API int32_t liquid_set_forced(struct llama_context * ctx, const uint8_t * run, int32_t n_seq, int32_t n_pos);

// Trace of the last llama_decode, in the order of evaluation.
LLAMA_API void            liquid_set_trace     (struct llama_context * ctx, int32_t on);
LLAMA_API int32_t         liquid_trace_n_tokens(const struct llama_context * ctx);
LLAMA_API const int32_t * liquid_trace_pos     (const struct llama_context * ctx); // [n_tokens]
LLAMA_API const int32_t * liquid_trace_seq     (const struct llama_context * ctx); // [n_tokens]
LLAMA_API const float   * liquid_trace_w       (const struct llama_context * ctx); // [n_tokens][n_gate], NaN: not evaluated
LLAMA_API const uint8_t * liquid_trace_run     (const struct llama_context * ctx); // [n_tokens][n_gate]
// [n_tokens][n_moe_layer][n_expert_used], -1 where the layer was skipped; NULL for dense models
LLAMA_API const int32_t * liquid_trace_experts (const struct llama_context * ctx);

LLAMA_API void liquid_get_stats  (const struct llama_context * ctx, struct liquid_depth_stats * stats);
LLAMA_API void liquid_reset_stats(struct llama_context * ctx);

// Bytes of K and V that the tokens in the context's memory have now; -1 for memories that are no cache of K and V. Under
// LIQUID_KV_DROP memory grows with it, else it was taken when the context was made.
LLAMA_API int64_t liquid_kv_bytes(const struct llama_context * ctx);

#ifdef __cplusplus
}
#endif
