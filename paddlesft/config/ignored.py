"""Keys of PaddleNLP and PaddleFormers that change nothing in a training run here, with the reason for each."""

from __future__ import annotations

_BY_REASON: dict[str, str] = {
    "it belongs to preference training (DPO), which this verb does not run": (
        "num_of_gpus normalize_logps label_smoothing ignore_eos_token ref_model_update_steps reference_free loss_type "
        "pref_loss_ratio sft_loss_ratio beta offset_alpha simpo_gamma dpop_lambda model_with_dpo_criterion"
    ),
    "it belongs to vision-language models, which this verb does not train": (
        "vision_config rope_3d factor balanced_image_preprocess processor_use_fast attn_sep depth embed_dim hidden_act "
        "hidden_size in_channels mlp_ratio num_heads patch_size spatial_merge_size vit_num_recompute_layers video_fps "
        "video_min_frames video_max_frames video_target_frames video_frames_sample corpus_name im_prefix_length "
        "use_pic_id prompt_dir serialize_output one_sample_in_one_seq variable_resolution spatial_conv_size "
        "adaptive_max_imgtoken_option adaptive_max_imgtoken_rate max_pixels min_pixels video_max_pixels "
        "video_min_pixels drop_untrainble_sample image_token_len image_dtype render_timestamp sft_shift_by_one "
        "load_args_from_api freeze_vision enable_mm limit_mm_per_prompt moe_multimodal_dispatch_use_allgather"
    ),
    "it belongs to mixture-of-experts models, which no model family here is": (
        "use_moe moe_group moe_group_experts moe_orthogonal_loss_lambda moe_use_hard_gate moe_use_aux_free moe_gate "
        "moe_num_experts moe_k moe_logging moe_dropout_prob moe_with_send_router_loss use_ortho_loss_callback "
        "use_quant_before_a2a use_async_a2a use_ep_comm_overlap use_combine_before_a2a transpose_split_quant "
        "fp8_mem_configs fp8_fused_ops_configs shared_expert recompute_fwd_gate_up dequant_input "
        "offline_quant_expert_weight stack_quant swiglu_probs_bwd split_group_gemm spaq fuse_gate_detach_matmul"
    ),
    "it belongs to pre-training on prepared binary data, which this verb does not read": (
        "input_dir split data_impl skip_warmup warmup_only_rank0 data_cache truncate_packing num_consecutive "
        "shuffle_consecutive same_data"
    ),
    "the model directory's config.json says it": (
        "ernie_model_config num_hidden_layers num_empty_layers_add_in_tail max_position_embeddings "
        "bos_token_id eos_token_id"
    ),
    "attention is chosen by use_flash_attention alone; packed rows never see each other": (
        "use_mem_eff_attn use_attn_mask_startend_row_indices use_sparse_flash_attn fuse_softmax_mask"
    ),
    "packing works on all rows at once": "buffer_size packing_interval packed_idx_cache_dir",
    "rows are read by the datasets library; lazy decides whether as needed or all at the start": "dataset_type",
    "an epoch is one pass over all rows; use max_train_samples or max_steps for less": "num_samples_each_epoch",
    "evaluation uses every row of every path": "eval_dataset_prob",
    "the whole conversation is rendered in one piece and every trained turn counts": "encode_one_turn split_multi_turn",
    "one renderer serves the tokenizer's jinja template and the built-in ones alike": "template_backend",
    "data and results are read and written by each process under the paths given": "share_folder dataset_output_dir",
    "checkpoints are always complete directories that any later run reads": (
        "save_checkpoint_format load_checkpoint_format"
    ),
    "which layers are recomputed is said by no_recompute_layers": "recompute_num_layers recompute_modules",
    "hub names are looked up on every hub, in the order that the environment variables give": "download_hub",
    "the result holds all files it needs, tokenizer included": "copy_custom_file_list copy_tokenizer",
    "logits are made at trained positions only, which saves that memory anyway": "loss_subbatch_seqlen",
    "it belongs to the wsd schedule; allowed schedules are those of lr_scheduler_type": "decay_function",
    "memory is left to paddle's allocator": "pre_alloc_memory gc_interval",
    "gradient norm, loss and memory are always in train_log.jsonl": (
        "log_global_grad_norm global_logging_interval internal_medicine_monitors internal_medicine_monitor_interval"
    ),
    "the number of steps is computed exactly and shown at the start": "max_estimate_samples estimation_output_file",
    "the stages of a pipeline hold equal numbers of layers, and those that need a step's rows read them": (
        "pp_seg_method pp_need_data_degree pp_need_data"
    ),
    "it is a speed-up of kernels that are not used here": "enable_linear_fused_grad_add use_rms_qkv_recompute",
    "it belongs to the server, not to training": (
        "host port metrics_port engine_worker_queue_port max_model_len max_num_seqs use_warmup gpu_memory_utilization "
        "quantization reasoning_parser max_num_batched_tokens block_size kv_cache_ratio load_choices tool_call_parser "
        "flask_port title"
    ),
    "replies are generated only to be scored during evaluation": (
        "stream stream_options enable_thinking frequency_penalty presence_penalty"
    ),
    "it belongs to another verb (merge-lora, predict); training does not read it": (
        "merge_model_path merge_lora_model_path output_path data_file output_file batch_size mode inference_model "
        "model_prefix export_precache model_type"
    ),
    "prepared rows are kept by their content (lazy), so nothing has to be overwritten": (
        "overwrite_cache preprocessing_num_workers"
    ),
    "loss.png is always drawn": "plot_loss",
    "hang_timeout says how long a run may stand still": "ddp_timeout",
    "data files are named themselves, in dataset_name_or_path": "dataset_dir",
    "no code of a model directory is run here": "trust_remote_code",
    "the tokenizer is found by tokenizer_name_or_path": "tokenizer",
}

WITHOUT_EFFECT: dict[str, str] = {key: reason for reason, keys in _BY_REASON.items() for key in keys.split()}
