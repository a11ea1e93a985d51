#include "liquid-depth.h"

#include "liquid-model.h"
#include "liquid-stamp.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <stdexcept>

//
// liquid_depth
//

liquid_depth::liquid_depth(const llama_model & base, ggml_type type_k, ggml_type type_v) :
    base(base),
    model(base.arch == LLM_ARCH_LIQUID ? static_cast<const llama_model_liquid *>(&base) : nullptr),
    type_k(type_k),
    type_v(type_v) {
    if (model) {
        threshold = model->info.threshold;
    }
}

bool liquid_depth::gated(const llama_cparams & cparams) const {
    return model && !model->gates.empty() && mode != LIQUID_DEPTH_FULL && !cparams.warmup;
}

void liquid_depth_deleter::operator()(liquid_depth * depth) const {
    delete depth;
}

liquid_depth * liquid_depth_init(const llama_model & model, ggml_type type_k, ggml_type type_v) {
    return new liquid_depth(model, type_k, type_v);
}

void liquid_depth_begin(liquid_depth * depth) {
    depth->trace_pos.clear();
    depth->trace_seq.clear();
    depth->trace_w.clear();
    depth->trace_run.clear();
    depth->trace_experts.clear();
}

static llm_graph_input_liquid * liquid_find_input(const llm_graph_result * res) {
    for (const auto & input : res->inputs) {
        if (auto * found = dynamic_cast<llm_graph_input_liquid *>(input.get())) {
            return found;
        }
    }
    return nullptr;
}

static void liquid_count_gates(liquid_depth_stats & stats, const llm_graph_input_liquid & inp) {
    const int64_t n = inp.n_tokens;
    for (size_t g = 0; g < inp.w.size()/n; ++g) {
        const int64_t n_evals = std::count_if(&inp.w[g*n], &inp.w[g*n] + n, [](float w) { return !std::isnan(w); });
        const int64_t n_runs  = std::count(&inp.run[g*n], &inp.run[g*n] + n, 1);
        stats.n_gate_evals += n_evals;
        stats.n_gate_runs  += n_runs;
        stats.n_blocks_unread += inp.form != LIQUID_FORM_DENSE && n_runs == 0;
    }
}

static void liquid_count_layers(liquid_depth_stats & stats, const llm_graph_input_liquid & inp, const llama_model_liquid & model) {
    std::vector<double>  r;
    std::vector<uint8_t> ffn;
    for (int64_t i = 0; i < inp.n_tokens; ++i) {
        inp.layers_run(i, r, ffn);
        stats.n_layer_runs += std::accumulate(r.begin(), r.end(), 0.0);
        for (size_t il = 0; il < r.size(); ++il) {
            stats.n_expert_hits += ffn[il] && model.moe_layers[il] ? model.info.n_expert_used : 0;
        }
    }
    stats.n_tokens += inp.n_tokens;
}

// experts of the traced tokens, reordered to [n_tokens][n_moe_layer][n_expert_used], -1 where the layer was skipped
static void liquid_trace_moe(liquid_depth * depth, const llm_graph_input_liquid & inp) {
    const auto & model = *depth->model;
    const int64_t n_moe  = model.info.n_moe_layer;
    const int64_t n_used = model.info.n_expert_used;
    const int64_t n_tokens = inp.n_tokens;

    const size_t base = depth->trace_experts.size();
    depth->trace_experts.resize(base + n_tokens*n_moe*n_used, -1);

    std::vector<std::vector<uint8_t>> ffn(n_tokens);
    std::vector<double> r;
    for (int64_t i = 0; i < n_tokens; ++i) {
        inp.layers_run(i, r, ffn[i]);
    }
    std::vector<int32_t> rows;
    int64_t m = 0;
    for (int il = 0; il < model.info.n_layer && n_moe > 0; ++il) {
        if (!model.moe_layers[il]) {
            continue;
        }
        const ggml_tensor * t = inp.experts[m]; // I32 [n_used, rows]
        rows.resize(ggml_nelements(t));
        ggml_backend_tensor_get(t, rows.data(), 0, ggml_nbytes(t));
        // the last layer of a full-depth graph holds output rows only: it cannot be traced for the others
        for (int64_t i = 0; i < n_tokens && t->ne[1] == n_tokens; ++i) {
            if (ffn[i][il]) {
                memcpy(depth->trace_experts.data() + base + (i*n_moe + m)*n_used, rows.data() + i*n_used, n_used*sizeof(int32_t));
            }
        }
        m++;
    }
}

static void liquid_trace_rows(liquid_depth * depth, const llm_graph_input_liquid & inp, const llama_ubatch & ubatch) {
    const size_t n_gate = depth->model->gates.size();

    for (int64_t i = 0; i < inp.n_tokens; ++i) {
        depth->trace_pos.push_back(ubatch.pos[i]);
        depth->trace_seq.push_back(ubatch.seq_id[i][0]);
        for (size_t g = 0; g < n_gate; ++g) {
            const bool gated = !inp.w.empty();
            depth->trace_w  .push_back(gated ? inp.w[g*inp.n_tokens + i] : std::numeric_limits<float>::quiet_NaN());
            depth->trace_run.push_back(gated ? inp.run[g*inp.n_tokens + i] : 1);
        }
    }
    liquid_trace_moe(depth, inp);
}

void liquid_depth_collect(liquid_depth * depth, const llama_cparams & cparams, const llm_graph_result * res, const llama_ubatch & ubatch, ggml_backend_sched_t sched) {
    if (!depth->model || cparams.warmup) {
        return;
    }
    llm_graph_input_liquid * inp = liquid_find_input(res);
    if (!inp) {
        return;
    }
    const bool drops = depth->model->info.kv_policy == LIQUID_KV_DROP; // what holds K and V may move before the next ubatch
    if (!inp->gates.empty() || !inp->experts.empty() || drops) {
        ggml_backend_sched_synchronize(sched);
    }
    if (inp->form == LIQUID_FORM_DENSE) {
        inp->read_decisions();
    }
    liquid_count_gates (depth->stats, *inp);
    liquid_count_layers(depth->stats, *inp, *depth->model);
    if (depth->trace) {
        liquid_trace_rows(depth, *inp, ubatch);
    }
}

//
// llm_graph_input_liquid
//

llm_graph_input_liquid::llm_graph_input_liquid(liquid_depth * depth, const llama_cparams & cparams, liquid_form form, int64_t n_tokens, int64_t n_outputs) :
    depth(depth),
    topology(depth->topology),
    warmup(cparams.warmup),
    form(form),
    n_tokens(n_tokens),
    n_outputs(n_outputs) {
    if (form != LIQUID_FORM_FULL) {
        forced.resize(depth->model->gates.size()*n_tokens);
        w     .resize(forced.size());
        run   .resize(forced.size());
        left      .resize(n_tokens);
        gated_runs.resize(n_tokens);
        is_output.resize(n_tokens);
    }
}

bool llm_graph_input_liquid::can_reuse(const llm_graph_params & params) {
    return params.cparams.liquid == depth && topology == depth->topology && warmup == params.cparams.warmup;
}

// +4 and -4 decide for every threshold in [0, 1]
static float liquid_forced_value(const liquid_depth & depth, int32_t gate, llama_pos pos, llama_seq_id seq) {
    if (depth.mode != LIQUID_DEPTH_FORCED) {
        return pos < depth.model->info.always_run_tokens ? 4.0f : 0.0f;
    }
    if (depth.forced.empty()) {
        return 4.0f;
    }
    const size_t row = (size_t) (seq % depth.forced_n_seq)*depth.forced_n_pos + pos % depth.forced_n_pos;
    return depth.forced[row*depth.model->gates.size() + gate] ? 4.0f : -4.0f;
}

void llm_graph_input_liquid::set_input(const llama_ubatch * ubatch) {
    for (const auto & [result, state] : in_place) {
        GGML_ASSERT(result->data == state->data);
    }
    std::fill(w.begin(), w.end(), std::numeric_limits<float>::quiet_NaN());
    std::fill(run.begin(), run.end(), 0);
    std::fill(left.begin(), left.end(), 0);
    std::fill(gated_runs.begin(), gated_runs.end(), 0);
    for (size_t i = 0; i < is_output.size(); ++i) {
        is_output[i] = n_outputs == n_tokens || ubatch->output[i] != 0;
    }
    for (auto & node : gates) {
        // work buffers are planned from the extents, before the gates decide
        liquid_set_rows(node.side_run .rows, n_tokens);
        liquid_set_rows(node.side_skip.rows, n_tokens);
    }
    for (size_t k = 0; k < forced.size(); ++k) {
        const int64_t i = k % n_tokens;
        forced[k] = liquid_forced_value(*depth, k/n_tokens, ubatch->pos[i], ubatch->seq_id[i][0]);
    }
    if (force && force->buffer) {
        ggml_backend_tensor_set(force, forced.data(), 0, forced.size()*sizeof(float));
    }
    if (tau && tau->buffer) {
        ggml_backend_tensor_set(tau, &depth->threshold, 0, sizeof(float));
    }
}

std::pair<float, bool> llm_graph_input_liquid::decide(const liquid_gate_node & node, int64_t i, float z) {
    const auto &  info = depth->model->info;
    const int64_t at   = node.index*n_tokens + i;

    w[at] = 1.0f/(1.0f + expf(-z));
    bool runs = (w[at] - depth->threshold) + forced[at] > 0.0f;
    if (depth->mode != LIQUID_DEPTH_FORCED && node.gate.scope == LIQUID_SCOPE_LAYER) {
        runs = runs || node.before + gated_runs[i] + node.after < info.min_layers;
    }
    gated_runs[i] += runs && node.gate.scope == LIQUID_SCOPE_LAYER && !node.gate.is_exit ? node.gate.span : 0;
    run [at] = runs;
    left[i]  = !runs && node.gate.is_exit;
    return { w[at], runs };
}

void llm_graph_input_liquid::read_decisions() {
    std::vector<float> runs(n_tokens);
    for (const auto & node : gates) {
        float * w_at = w.data() + node.index*n_tokens;
        ggml_backend_tensor_get(node.w,   w_at,        0, n_tokens*sizeof(float));
        ggml_backend_tensor_get(node.run, runs.data(), 0, n_tokens*sizeof(float));
        for (int64_t i = 0; i < n_tokens; ++i) {
            w_at[i] = left[i] ? std::numeric_limits<float>::quiet_NaN() : w_at[i];
            run[node.index*n_tokens + i] = !left[i] && runs[i] != 0.0f;
            left[i] = left[i] || (node.gate.is_exit && runs[i] == 0.0f);
        }
    }
}

void llm_graph_input_liquid::layers_run(int64_t i, std::vector<double> & r, std::vector<uint8_t> & ffn) const {
    const auto & model = *depth->model;
    r  .assign(model.info.n_layer, 1.0);
    ffn.assign(model.info.n_layer, 1);
    for (size_t g = 0; g < w.size()/n_tokens; ++g) {
        if (run[g*n_tokens + i] || std::isnan(w[g*n_tokens + i])) {
            continue;
        }
        const auto & gate  = model.gates[g];
        const double share = model.attn_share[gate.layer];
        if (gate.scope == LIQUID_SCOPE_LAYER) {
            std::fill_n(r.begin() + gate.layer, gate.span, 0.0);
        } else {
            r[gate.layer] -= gate.scope == LIQUID_SCOPE_ATTN ? share : 1.0 - share;
        }
        if (gate.scope != LIQUID_SCOPE_ATTN) {
            std::fill_n(ffn.begin() + gate.layer, gate.span, 0);
        }
    }
}

//
// state: a header before the memory of every saved state
//

static constexpr uint32_t LIQUID_STATE_MAGIC  = 0x7164696c; // "lidq"
static constexpr uint32_t LIQUID_STATE_LAYOUT = 1;

struct liquid_state_header {
    uint32_t magic;
    uint32_t layout;
    char     stamp[32];
    uint64_t model_hash;
    int32_t  kv_policy;
    int32_t  type_k;
    int32_t  type_v;
    uint32_t n_ctx;
};

static void liquid_hash(uint64_t & hash, const void * data, size_t size) {
    for (size_t i = 0; i < size; ++i) { // FNV-1a, 64 bit
        hash = (hash ^ ((const uint8_t *) data)[i])*0x100000001b3ull;
    }
}

// every tensor's name, type and shape, and the values of the F32 ones (norms and gates: they tell fine-tunes apart)
static uint64_t liquid_model_hash(const llama_model & model) {
    uint64_t hash = 0xcbf29ce484222325ull;
    for (const auto & [name, tensor] : model.tensors_by_name) {
        liquid_hash(hash, name.data(), name.size());
        liquid_hash(hash, &tensor->type, sizeof(tensor->type));
        liquid_hash(hash, tensor->ne, sizeof(tensor->ne));
        if (tensor->type == GGML_TYPE_F32) {
            std::vector<uint8_t> values(std::min<size_t>(ggml_nbytes(tensor), 1u << 16));
            ggml_backend_tensor_get(tensor, values.data(), 0, values.size());
            liquid_hash(hash, values.data(), values.size());
        }
    }
    return hash;
}

static liquid_state_header liquid_state_describe(const liquid_depth & depth, const llama_cparams & cparams) {
    liquid_state_header header;
    memset(&header, 0, sizeof(header));
    header.magic  = LIQUID_STATE_MAGIC;
    header.layout = LIQUID_STATE_LAYOUT;
    strncpy(header.stamp, LIQUID_BUILD_STAMP, sizeof(header.stamp) - 1);
    if (depth.model_hash == 0) {
        depth.model_hash = liquid_model_hash(depth.base);
    }
    header.model_hash = depth.model_hash;
    header.kv_policy  = depth.model->info.kv_policy;
    header.type_k     = depth.type_k;
    header.type_v     = depth.type_v;
    header.n_ctx      = cparams.n_ctx;
    return header;
}

void liquid_state_write(llama_context & ctx, llama_io_write_i & io) {
    const auto & cparams = ctx.get_cparams();
    if (cparams.liquid->model) {
        ctx.memory_update(false);
        const auto header = liquid_state_describe(*cparams.liquid, cparams);
        io.write(&header, sizeof(header));
    }
}

void liquid_state_read(const liquid_depth * depth, const llama_cparams & cparams, llama_io_read_i & io) {
    if (!depth->model) {
        return;
    }
    const auto want = liquid_state_describe(*depth, cparams);
    liquid_state_header found;
    io.read(&found, sizeof(found));

    const auto require = [](bool same, const char * what) {
        if (!same) {
            throw std::runtime_error(format("this state was saved with another %s", what));
        }
    };
    require(found.magic == want.magic && found.layout == want.layout, "state format");
    require(memcmp(found.stamp, want.stamp, sizeof(want.stamp)) == 0, "build of the library");
    require(found.model_hash == want.model_hash, "model");
    require(found.kv_policy  == want.kv_policy,  "kv_policy");
    require(found.type_k == want.type_k && found.type_v == want.type_v, "KV cache type");
    require(found.n_ctx == want.n_ctx, "context size");
}

// A shift rotates every key of the cache once more. YaRN's magnitude is in them already, so what ggml multiplies by is undone.
float liquid_shift_attn_factor(const llama_cparams & cparams, float freq_scale) {
    if (!cparams.liquid || !cparams.liquid->model) {
        return cparams.yarn_attn_factor;
    }
    return cparams.yarn_ext_factor == 0.0f ? 1.0f : 1.0f/(1.0f + 0.1f*logf(1.0f/freq_scale));
}

//
// C API
//

int32_t liquid_api_version(void) {
    return LIQUID_API_VERSION;
}

const char * liquid_build_stamp(void) {
    return LIQUID_BUILD_STAMP;
}

static const llama_model_liquid * liquid_model_of(const llama_model * model) {
    return model->arch == LLM_ARCH_LIQUID ? static_cast<const llama_model_liquid *>(model) : nullptr;
}

static liquid_depth * liquid_depth_of(const llama_context * ctx) {
    return ctx->get_cparams().liquid;
}

int32_t liquid_get_model_info(const llama_model * model, liquid_model_info * info) {
    const auto * liquid = liquid_model_of(model);
    if (!liquid) {
        return -1;
    }
    *info = liquid->info;
    return 0;
}

int32_t liquid_get_gate(const llama_model * model, int32_t i, liquid_gate * gate) {
    const auto * liquid = liquid_model_of(model);
    if (!liquid || i < 0 || i >= (int32_t) liquid->gates.size()) {
        return -1;
    }
    *gate = liquid->gates[i];
    return 0;
}

int32_t liquid_set_depth(llama_context * ctx, int32_t mode, float threshold) {
    auto * depth = liquid_depth_of(ctx);
    const bool needs_threshold = mode == LIQUID_DEPTH_THRESHOLD;
    if (!depth->model || mode < LIQUID_DEPTH_AUTO || mode > LIQUID_DEPTH_FORCED || (needs_threshold && !(threshold >= 0.0f && threshold <= 1.0f))) {
        return -1;
    }
    if (depth->mode != mode) {
        depth->mode = mode;
        depth->topology++;
    }
    depth->threshold = needs_threshold ? threshold : depth->model->info.threshold;
    return 0;
}

int32_t liquid_get_depth(const llama_context * ctx, int32_t * mode, float * threshold) {
    const auto * depth = liquid_depth_of(ctx);
    if (!depth->model) {
        return -1;
    }
    *mode = depth->mode;
    *threshold = depth->threshold;
    return 0;
}

int32_t liquid_set_engine(llama_context * ctx, int32_t engine) {
    auto * depth = liquid_depth_of(ctx);
    if (!depth->model || engine < LIQUID_ENGINE_AUTO || engine > LIQUID_ENGINE_DENSE) {
        return -1;
    }
    if (depth->engine != engine) {
        depth->engine = engine;
        depth->topology++;
    }
    return 0;
}

int32_t liquid_set_forced(llama_context * ctx, const uint8_t * run, int32_t n_seq, int32_t n_pos) {
    auto * depth = liquid_depth_of(ctx);
    if (!depth->model || !run || n_seq <= 0 || n_pos <= 0) {
        return -1;
    }
    depth->forced.assign(run, run + (size_t) n_seq*n_pos*depth->model->gates.size());
    depth->forced_n_seq = n_seq;
    depth->forced_n_pos = n_pos;
    return 0;
}

void liquid_set_trace(llama_context * ctx, int32_t on) {
    auto * depth = liquid_depth_of(ctx);
    liquid_depth_begin(depth);
    if (depth->trace != (on != 0)) {
        depth->trace = on != 0;
        depth->topology++;
    }
}

int32_t liquid_trace_n_tokens(const llama_context * ctx) {
    return liquid_depth_of(ctx)->trace_pos.size();
}

const int32_t * liquid_trace_pos(const llama_context * ctx) {
    return liquid_depth_of(ctx)->trace_pos.data();
}

const int32_t * liquid_trace_seq(const llama_context * ctx) {
    return liquid_depth_of(ctx)->trace_seq.data();
}

const float * liquid_trace_w(const llama_context * ctx) {
    return liquid_depth_of(ctx)->trace_w.data();
}

const uint8_t * liquid_trace_run(const llama_context * ctx) {
    return liquid_depth_of(ctx)->trace_run.data();
}

const int32_t * liquid_trace_experts(const llama_context * ctx) {
    const auto & experts = liquid_depth_of(ctx)->trace_experts;
    return experts.empty() ? nullptr : experts.data();
}

void liquid_get_stats(const llama_context * ctx, liquid_depth_stats * stats) {
    *stats = liquid_depth_of(ctx)->stats;
}

void liquid_reset_stats(llama_context * ctx) {
    liquid_depth_of(ctx)->stats = {};
}
