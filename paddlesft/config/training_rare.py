"""Keys of paddlenlp's training arguments that are seldom set. Most do nothing here; each says why."""

from dataclasses import dataclass

from paddlesft.config.fields import field

_CHECKPOINTS = "checkpoints are written before the next step begins, in one format"
_CLOUD = "it belongs to a cloud service that this package does not talk to"


@dataclass
class RareConfig:
    """Seldom needed"""

    output_signal_dir: str | None = field(None, "Where signals of asynchronous saving go.", no_effect=_CHECKPOINTS)
    use_async_save: bool = field(False, "Save in the background.", no_effect=_CHECKPOINTS)
    ordered_save_group_size: int = field(0, "Processes that save at the same time.", no_effect=_CHECKPOINTS)
    unified_checkpoint: bool = field(
        True,
        "Checkpoints hold whole weights and optimizer state, from which any layout goes on; false: each process writes "
        "its own part, from which only the same layout goes on.",
    )
    unified_checkpoint_config: str = field("", "Switches of those checkpoints.", no_effect=_CHECKPOINTS)
    ckpt_quant_stage: str = field("O0", "Compress the optimiser state in checkpoints.", no_effect=_CHECKPOINTS)
    skip_data_intervals: list[list[int]] | None = field(
        None, "Ranges of steps whose data are left out.", unbuilt="skipping ranges of steps"
    )
    count_trained_tokens: bool = field(
        False, "Count trained tokens.", no_effect="they are always counted and shown in the log line"
    )
    pad_token_id: int = field(0, "Id of the padding token.", no_effect="the tokenizer's own padding token is used")
    label_names: list[str] | None = field(
        None, "Inputs that are labels.", no_effect="a batch of this package has exactly one: labels"
    )
    remove_unused_columns: bool = field(
        True, "Drop columns that the model does not take.", no_effect="rows hold only what the model takes"
    )
    lazy_data_processing: bool = field(True, "Prepare rows when needed.", no_effect="the key lazy decides this")
    past_index: int = field(-1, "Output with the past state.", no_effect="no model family here has such an output")
    flatten_param_grads: bool = field(
        False, "Flat gradients in the optimiser (NPU).", no_effect="it is for NPU optimisers that are not used here"
    )
    use_ssa: bool = field(False, "Shifted sparse attention (LongLoRA).", unbuilt="shifted sparse attention")
    ssa_group_size_ratio: float = field(0.25, "Group size of that attention.", no_effect="it belongs to use_ssa")
    model_init_kwargs: dict[str, object] | None = field(
        None, "More arguments of the model's constructor.", no_effect="the model directory's config.json says it all"
    )
    autotuner_benchmark: bool = field(False, "Five steps for paddle's tuner.", no_effect="use benchmark: true")
    wandb_api_key: str | None = field(None, "Key for Weights & Biases.", secret=True)
    wandb_http_proxy: str | None = field(None, "Proxy for Weights & Biases.")
    pdc_download_ckpt: bool = field(False, "Fetch checkpoints in a cloud job.", no_effect=_CLOUD)
    pdc_download_timeout: int = field(300, "Seconds that this may take.", no_effect=_CLOUD)
