// What happens to stored K and V between evaluations: saving, loading, and moving keys to other positions.

#include "liquid-kv.h"

#include "liquid-depth.h"
#include "liquid-kv-graph.h"
#include "liquid-model.h"

#include "llama-context.h"
#include "llama-impl.h"
#include "llama-io.h"

#include <numeric>
#include <stdexcept>

//
// state: the index as upstream writes it; then each group's tokens, by their order there, and the rows of each layer
//

// upstream's order: ascending by cell
static std::vector<uint32_t> liquid_cells_of(const llama_kv_cells & index, llama_seq_id seq_id) {
    std::vector<uint32_t> cells;
    for (uint32_t i = 0; i < index.size(); ++i) {
        if (!index.is_empty(i) && (seq_id == -1 || index.seq_has(i, seq_id))) {
            cells.push_back(i);
        }
    }
    return cells;
}

std::vector<uint32_t> liquid_kv_cache::slots_of_state(int32_t group, const std::vector<uint32_t> & cells, std::vector<uint32_t> & ordinals) const {
    std::vector<int32_t> ordinal_of(get_size(), -1);
    for (size_t i = 0; i < cells.size(); ++i) {
        ordinal_of[cells[i]] = i;
    }
    std::vector<uint32_t> slots;
    for (uint32_t slot = 0; slot < groups[group].extent(); ++slot) {
        const int32_t cell = groups[group][slot];
        if (cell >= 0 && ordinal_of[cell] >= 0) {
            slots.push_back(slot);
            ordinals.push_back(ordinal_of[cell]);
        }
    }
    return slots;
}

void liquid_kv_cache::state_write(llama_io_write_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) const {
    llama_kv_cache::state_write(io, seq_id, flags);

    const auto cells = liquid_cells_of(index(), seq_id);
    std::vector<std::vector<uint32_t>> slots;
    for (size_t group = 0; group < groups.size(); ++group) {
        std::vector<uint32_t> ordinals;
        slots.push_back(slots_of_state(group, cells, ordinals));
        const uint32_t n = ordinals.size();
        io.write(&n, sizeof(n));
        io.write(ordinals.data(), n*sizeof(uint32_t));
    }
    for (size_t il = 0; il < layers.size(); ++il) {
        for (const ggml_tensor * t : { layers[il].k, layers[il].v }) {
            for (const uint32_t row : group_of[il] < 0 ? cells : slots[group_of[il]]) {
                io.write((const char *) t->data + row*t->nb[1], t->nb[1]);
            }
        }
    }
}

void liquid_kv_cache::state_read(llama_io_read_i & io, llama_seq_id seq_id, llama_state_seq_flags flags) {
    slot_info_vec_t sinfos;
    state_read_sinfo(io, seq_id, flags, &sinfos, nullptr);
    const std::vector<uint32_t> cells = sinfos[0].empty() ? std::vector<uint32_t>() : sinfos[0].idxs[0];
    try {
        read_rows(io, cells);
    } catch (...) {
        state_clear(seq_id);
        throw std::runtime_error("failed to restore K and V");
    }
}

void liquid_kv_cache::read_rows(llama_io_read_i & io, const std::vector<uint32_t> & cells) {
    if (!fit(index().used_max_p1(), cells.data(), cells.size())) {
        throw std::bad_alloc();
    }
    std::vector<std::vector<int64_t>> slots;
    for (auto & group : groups) {
        uint32_t n;
        io.read(&n, sizeof(n));
        if (n > cells.size()) {
            throw std::runtime_error("more tokens than cells");
        }
        std::vector<uint32_t> ordinals(n);
        io.read(ordinals.data(), n*sizeof(uint32_t));
        for (uint32_t & ordinal : ordinals) {
            ordinal = cells.at(ordinal);
        }
        group.place(ordinals.data(), nullptr, n, slots.emplace_back(n).data());
    }
    const std::vector<int64_t> by_cell(cells.begin(), cells.end());
    for (size_t il = 0; il < layers.size(); ++il) {
        for (ggml_tensor * t : { layers[il].k, layers[il].v }) {
            for (const int64_t row : group_of[il] < 0 ? by_cell : slots[group_of[il]]) {
                io.read((char *) t->data + row*t->nb[1], t->nb[1]);
            }
        }
    }
}

//
// shift
//

namespace {

class liquid_input_shift : public llm_graph_input_i {
public:
    explicit liquid_input_shift(const liquid_kv_cache & cache) : cache(cache) {}

    // I32 [rows of the group], how far each row's token moved
    ggml_tensor * of_group(ggml_context * ctx, int32_t group) {
        ggml_tensor *& t = by_group[group];
        if (!t) {
            t = ggml_new_tensor_1d(ctx, GGML_TYPE_I32, n_rows(group));
            ggml_set_input(t);
        }
        return t;
    }

    int64_t n_rows(int32_t group) const {
        return group < 0 ? cache.index().used_max_p1() : cache.groups[group].extent();
    }

    void set_input(const llama_ubatch *) override {
        liquid_set_rotation(rotation);
        for (const auto & [group, t] : by_group) {
            for (int64_t row = 0; row < t->ne[0]; ++row) {
                const int32_t cell = group < 0 ? row : cache.groups[group][row];
                ((int32_t *) t->data)[row] = cell < 0 || cache.index().is_empty(cell) ? 0 : cache.index().get_shift(cell);
            }
        }
    }

    ggml_tensor * rotation = nullptr; // of quantized keys

private:
    const liquid_kv_cache & cache;
    std::map<int32_t, ggml_tensor *> by_group;
};

} // namespace

static ggml_tensor * liquid_multiply(ggml_context * ctx, ggml_tensor * k, ggml_tensor * rotation) {
    return rotation ? llama_mul_mat_hadamard(ctx, k, rotation) : k;
}

// k [n_embd_head, n_head_kv, rows], rotated in place; quantized: as upstream's cache does it
static ggml_tensor * liquid_rotate_keys(const llama_model_liquid & model, const llama_cparams & cparams, ggml_context * ctx, ggml_tensor * k,
        ggml_tensor * by, ggml_tensor * rotation, int il) {
    const float freq_scale = model.get_rope_freq_scale(cparams, il);
    const bool  quantized  = ggml_is_quantized(k->type);
    const auto  rope       = quantized ? ggml_rope_ext : ggml_rope_ext_inplace;

    ggml_tensor * rotated = rope(ctx, quantized ? liquid_multiply(ctx, ggml_cast(ctx, k, GGML_TYPE_F32), rotation) : k, by, model.get_rope_factors(cparams, il), model.hparams.n_rot(il),
            model.hparams.rope_type, cparams.n_ctx_orig_yarn, model.get_rope_freq_base(cparams, il), freq_scale, cparams.yarn_ext_factor,
            liquid_shift_attn_factor(cparams, freq_scale), cparams.yarn_beta_fast, cparams.yarn_beta_slow);
    return quantized ? ggml_cpy(ctx, liquid_multiply(ctx, rotated, rotation), k) : rotated;
}

void liquid_kv_cache::shift(llama_context * lctx) {
    const auto & hparams = model.hparams;
    if (!get_has_shift() || hparams.rope_type == LLAMA_ROPE_TYPE_NONE) {
        return;
    }
    auto * sched = lctx->get_sched();
    auto * res   = lctx->get_gf_res_reserve();
    ggml_backend_sched_reset(sched);
    res->reset();

    auto shifts = std::make_unique<liquid_input_shift>(*this);
    shifts->rotation = liquid_new_rotation(res->get_ctx(), n_rot_k);
    for (size_t il = 0; il < layers.size(); ++il) {
        const int64_t n_rows = shifts->n_rows(group_of[il]);
        if (!hparams.has_rope(il) || n_rows == 0) {
            continue;
        }
        ggml_tensor * k = layers[il].k;
        k = ggml_view_3d(res->get_ctx(), k, hparams.n_embd_head_k(il), hparams.n_head_kv(il), n_rows,
                ggml_row_size(k->type, hparams.n_embd_head_k(il)), k->nb[1], 0);
        k = liquid_rotate_keys(model, lctx->get_cparams(), res->get_ctx(), k, shifts->of_group(res->get_ctx(), group_of[il]), shifts->rotation, il);
        ggml_build_forward_expand(res->get_gf(), k);
    }
    res->add_input(std::move(shifts));
    if (ggml_graph_n_nodes(res->get_gf()) == 0) {
        return;
    }
    if (!ggml_backend_sched_alloc_graph(sched, res->get_gf())) {
        throw std::runtime_error("failed to allocate the graph that moves keys");
    }
    res->set_inputs(nullptr);
    if (lctx->graph_compute(res->get_gf(), false) != GGML_STATUS_SUCCESS) {
        throw std::runtime_error("failed to move keys");
    }
}
