// The memory of a `liquid` model with kv_policy = drop: a token has K and V only in layers whose attention it ran.
//
// Upstream's cache without a layer serves as the cell index: one cell per token of the context, with its position and
// sequences, so every operation on sequences, every slot and every mask is upstream's. K and V lie beside it in storage that
// grows with use (liquid-kv-store.h). Layers that every token runs are stored by cell; the others, in groups whose layers
// run together, by slot. After the index lost cells the groups are swept. Windowed layers keep what their windows have passed,
// so that a rewind finds it, as upstream's caches do with swa_full. Knows nothing of gates (liquid-kv-graph.h).

#pragma once

#include "liquid-kv-store.h"

#include "llama-kv-cache.h"

#include <map>
#include <memory>
#include <vector>

struct llama_model_liquid;

class liquid_kv_cache : public llama_kv_cache {
public:
    liquid_kv_cache(const llama_model_liquid & model, const llama_memory_params & params, const llama_cparams & cparams);

    llama_memory_context_ptr init_batch (llama_batch_allocr & balloc, uint32_t n_ubatch, bool embd_all) override;
    llama_memory_context_ptr init_full  () override;
    llama_memory_context_ptr init_update(llama_context * lctx, bool optimize) override;

    void clear(bool data) override;
    bool seq_rm  (llama_seq_id seq_id, llama_pos p0, llama_pos p1) override;
    void seq_keep(llama_seq_id seq_id) override;
    void seq_add (llama_seq_id seq_id, llama_pos p0, llama_pos p1, llama_pos shift) override; // may move tokens out: before 0

    std::map<ggml_backend_buffer_type_t, size_t> memory_breakdown() const override;

    void state_write(llama_io_write_i & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) const override;
    void state_read (llama_io_read_i  & io, llama_seq_id seq_id = -1, llama_state_seq_flags flags = 0) override;

    const llama_kv_cells & index() const { return get_cells(0); }

    // memory for what the layers hold, and the tokens of n cells more; by_cell: rows of layers that every token runs
    bool fit(uint32_t by_cell, const uint32_t * cells, uint32_t n);

    uint32_t extent_of(int32_t group, const uint32_t * cells, uint32_t n) const; // slots to attend to when these come, padded
    size_t   bytes_in_use() const;
    void     shift(llama_context * lctx); // rotates the keys of cells whose position changed

    std::vector<liquid_kv_rows> layers;   // [n_layer]
    std::vector<int32_t>        group_of; // [n_layer], -1: every token runs this layer
    std::vector<liquid_cells>   groups;

    // sizes of the matrices that quantized keys and values are multiplied by, as in upstream's cache; 0: none
    int64_t n_rot_k = 0;
    int64_t n_rot_v = 0;

private:
    void sweep();
    void read_rows(llama_io_read_i & io, const std::vector<uint32_t> & cells);
    std::vector<uint32_t> slots_of_state(int32_t group, const std::vector<uint32_t> & cells, std::vector<uint32_t> & ordinals) const;

    const llama_model_liquid & model;
    ggml_context_ptr ctx;
};

class liquid_kv_context : public llama_kv_cache_context {
public:
    liquid_kv_context(liquid_kv_cache * cache, llama_context * lctx, bool do_shift);
    liquid_kv_context(liquid_kv_cache * cache, llama_kv_cache::slot_info_vec_t sinfos, std::vector<llama_ubatch> ubatches);
    explicit liquid_kv_context(liquid_kv_cache * cache); // as if it were full

    bool next()  override;
    bool apply() override;

    uint32_t n_kv(int32_t group) const; // group -1: layers that every token runs

    const uint32_t * cells() const { return sinfos[i_cur].idxs[0].data(); } // of the ubatch's tokens

    liquid_kv_cache * cache;

private:
    llama_context * lctx = nullptr; // of an update
    size_t i_cur = 0;

    llama_kv_cache::slot_info_vec_t sinfos;
    std::vector<uint32_t> n_kv_of; // [n_group]
};

// called in llama-context.cpp: the memory of any model; sequences of a drop model share one cache
llama_memory_i * liquid_create_memory(const llama_model & model, const llama_memory_params & params, llama_cparams & cparams);
