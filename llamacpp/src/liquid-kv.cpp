#include "liquid-kv.h"

#include "liquid-depth.h"
#include "liquid-model.h"

#include "llama-batch.h"
#include "llama-context.h"
#include "llama-impl.h"
#include "llama-kv-cache-iswa.h"
#include "llama-model.h"

#include <algorithm>
#include <cstdlib>
#include <new>

// Hadamard matrices spread what is quantized; ref: attn_rot_k, attn_rot_v of llama_kv_cache
static int64_t liquid_rotation_size(ggml_type type, int64_t n_embd_head, int64_t n_most) {
    const char * off = getenv("LLAMA_ATTN_ROT_DISABLE");
    if (!ggml_is_quantized(type) || n_embd_head % 64 != 0 || (off && atoi(off))) {
        return 0;
    }
    int64_t n = 64;
    while (2*n <= n_most && n_embd_head % (2*n) == 0) {
        n *= 2;
    }
    return n;
}

static bool liquid_no_layer(int32_t) {
    return false;
}

// Layers that run for the same tokens share a group; layers that every token runs have none. Behind an exit none is such.
static std::vector<int32_t> liquid_kv_groups(const llama_model_liquid & model, int32_t & n_group) {
    std::vector<int32_t> group_of(model.info.n_layer, -1);
    for (const auto & gate : model.gates) {
        if (gate.is_exit || gate.scope == LIQUID_SCOPE_FFN) {
            continue;
        }
        std::fill_n(group_of.begin() + gate.layer, gate.span, n_group++);
    }
    const auto exit = std::find_if(model.gates.begin(), model.gates.end(), [](const liquid_gate & gate) { return gate.is_exit; });
    for (int32_t il = exit == model.gates.end() ? model.info.n_layer : exit->layer; il < model.info.n_layer; ++il) {
        group_of[il] = group_of[il] < 0 ? n_group++ : group_of[il];
    }
    return group_of;
}

liquid_kv_cache::liquid_kv_cache(const llama_model_liquid & model, const llama_memory_params & params, const llama_cparams & cparams) :
    llama_kv_cache(model, model.hparams, params.type_k, params.type_v, false, false, true, cparams.n_ctx, cparams.n_seq_max, 1, 0,
        LLAMA_SWA_TYPE_NONE, nullptr, liquid_no_layer, nullptr, nullptr),
    model(model) {
    const int32_t n_layer = model.info.n_layer;
    ctx.reset(ggml_init({ 2*n_layer*ggml_tensor_overhead(), nullptr, true }));
    for (int32_t il = 0; il < n_layer; ++il) {
        const auto & hparams = model.hparams;
        layers.emplace_back(ctx.get(), params.type_k, params.type_v, hparams.n_embd_k_gqa(il), hparams.n_embd_v_gqa(il), get_size());
    }
    n_rot_k = liquid_rotation_size(params.type_k, model.hparams.n_embd_head_k(), model.hparams.n_embd_head_k());
    n_rot_v = liquid_rotation_size(params.type_v, model.hparams.n_embd_head_v(), 64);

    int32_t n_group = 0;
    group_of = liquid_kv_groups(model, n_group);
    groups.resize(n_group);
    LLAMA_LOG_INFO("%s: K and V are kept for the layers a token ran: %d of %d layers grow with their own tokens\n", __func__,
            (int) (n_layer - std::count(group_of.begin(), group_of.end(), -1)), n_layer);
}

//
// llama_memory_i
//

llama_memory_context_ptr liquid_kv_cache::init_batch(llama_batch_allocr & balloc, uint32_t n_ubatch, bool) {
    balloc.split_reset();
    std::vector<llama_ubatch> ubatches;
    for (auto ubatch = balloc.split_simple(n_ubatch); ubatch.n_tokens > 0; ubatch = balloc.split_simple(n_ubatch)) {
        ubatches.push_back(std::move(ubatch));
    }
    auto sinfos = balloc.get_n_used() < balloc.get_n_tokens() ? slot_info_vec_t() : prepare(ubatches);
    if (sinfos.empty()) {
        return std::make_unique<llama_kv_cache_context>(LLAMA_MEMORY_STATUS_FAILED_PREPARE);
    }
    return std::make_unique<liquid_kv_context>(this, std::move(sinfos), std::move(ubatches));
}

llama_memory_context_ptr liquid_kv_cache::init_full() {
    return std::make_unique<liquid_kv_context>(this);
}

llama_memory_context_ptr liquid_kv_cache::init_update(llama_context * lctx, bool) {
    return std::make_unique<liquid_kv_context>(this, lctx, get_has_shift());
}

void liquid_kv_cache::sweep() {
    for (auto & group : groups) {
        group.sweep(index());
    }
}

void liquid_kv_cache::clear(bool data) {
    llama_kv_cache::clear(data);
    for (auto & group : groups) {
        group.clear();
    }
    for (auto & layer : layers) {
        layer.fit(0);
    }
}

bool liquid_kv_cache::seq_rm(llama_seq_id seq_id, llama_pos p0, llama_pos p1) {
    const bool removed = llama_kv_cache::seq_rm(seq_id, p0, p1);
    sweep();
    return removed;
}

void liquid_kv_cache::seq_keep(llama_seq_id seq_id) {
    llama_kv_cache::seq_keep(seq_id);
    sweep();
}

void liquid_kv_cache::seq_add(llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) {
    llama_kv_cache::seq_add(seq_id, p0, p1, shift);
    sweep();
}

std::map<ggml_backend_buffer_type_t, size_t> liquid_kv_cache::memory_breakdown() const {
    size_t n_bytes = 0;
    for (const auto & layer : layers) {
        n_bytes += layer.row_size()*(model.hparams.no_alloc ? get_size() : layer.capacity());
    }
    return { { ggml_backend_cpu_buffer_type(), n_bytes } };
}

//
// storage
//

static uint32_t liquid_pad_cells(uint32_t n, uint32_t n_max) {
    return std::min(n_max, std::max(256u, GGML_PAD(n, 256u)));
}

uint32_t liquid_kv_cache::extent_of(int32_t group, const uint32_t * cells, uint32_t n) const {
    return liquid_pad_cells(groups[group].extent_with(cells, n), get_size());
}

bool liquid_kv_cache::fit(uint32_t by_cell, const uint32_t * cells, uint32_t n) {
    try {
        for (size_t il = 0; il < layers.size(); ++il) {
            const int32_t group = group_of[il];
            layers[il].fit(group < 0 ? by_cell : extent_of(group, cells, n));
        }
        return true;
    } catch (const std::bad_alloc &) {
        LLAMA_LOG_ERROR("%s: no memory left for K and V\n", __func__);
        return false;
    }
}

size_t liquid_kv_cache::bytes_in_use() const {
    size_t n_bytes = 0;
    for (size_t il = 0; il < layers.size(); ++il) {
        n_bytes += layers[il].row_size()*(group_of[il] < 0 ? index().get_used() : groups[group_of[il]].used());
    }
    return n_bytes;
}

//
// liquid_kv_context
//

liquid_kv_context::liquid_kv_context(liquid_kv_cache * cache, llama_context * lctx, bool do_shift) :
    llama_kv_cache_context(cache, lctx, do_shift, {}), cache(cache), lctx(lctx) {
}

liquid_kv_context::liquid_kv_context(liquid_kv_cache * cache, llama_kv_cache::slot_info_vec_t sinfos, std::vector<llama_ubatch> ubatches) :
    llama_kv_cache_context(cache, sinfos, std::move(ubatches)), cache(cache), sinfos(std::move(sinfos)) {
}

liquid_kv_context::liquid_kv_context(liquid_kv_cache * cache) : llama_kv_cache_context(cache), cache(cache) {
    n_kv_of.assign(cache->groups.size(), cache->get_size());
}

bool liquid_kv_context::next() {
    i_cur++;
    return llama_kv_cache_context::next();
}

bool liquid_kv_context::apply() {
    if (lctx) {
        cache->shift(lctx);
        return llama_kv_cache_context::apply();
    }
    if (!llama_kv_cache_context::apply()) {
        return false;
    }
    const uint32_t n_tokens = get_ubatch().n_tokens;
    n_kv_of.clear();
    for (size_t group = 0; group < cache->groups.size(); ++group) {
        n_kv_of.push_back(cache->extent_of(group, cells(), n_tokens));
    }
    return cache->fit(get_n_kv(), cells(), n_tokens);
}

uint32_t liquid_kv_context::n_kv(int32_t group) const {
    return group < 0 ? get_n_kv() : n_kv_of[group];
}

llama_memory_i * liquid_create_memory(const llama_model & model, const llama_memory_params & params, llama_cparams & cparams) {
    const auto * liquid = model.arch == LLM_ARCH_LIQUID ? static_cast<const llama_model_liquid *>(&model) : nullptr;
    if (!liquid || liquid->info.kv_policy != LIQUID_KV_DROP) {
        return model.create_memory(params, cparams);
    }
    cparams.kv_unified = true;
    return new liquid_kv_cache(*liquid, params, cparams);
}

//
// C API
//

static size_t liquid_cache_bytes(const llama_model & model, const llama_kv_cache & cache) {
    size_t n_used = 0;
    for (uint32_t s = 0; s < cache.get_n_stream(); ++s) {
        n_used += cache.get_cells(s).get_used();
    }
    size_t n_row = 0;
    for (const uint32_t il : cache.get_layer_ids()) {
        n_row += ggml_row_size(cache.type_k(), model.hparams.n_embd_k_gqa(il)) + ggml_row_size(cache.type_v(), model.hparams.n_embd_v_gqa(il));
    }
    return n_used*n_row;
}

int64_t liquid_kv_bytes(const llama_context * ctx) {
    const auto & model  = ctx->get_model();
    const auto * memory = ctx->get_memory();
    if (const auto * own = dynamic_cast<const liquid_kv_cache *>(memory)) {
        return own->bytes_in_use();
    }
    if (const auto * one = dynamic_cast<const llama_kv_cache *>(memory)) {
        return liquid_cache_bytes(model, *one);
    }
    if (const auto * two = dynamic_cast<const llama_kv_cache_iswa *>(memory)) {
        return liquid_cache_bytes(model, *two->get_base()) + liquid_cache_bytes(model, *two->get_swa());
    }
    return -1;
}
