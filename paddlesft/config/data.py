"""Keys about the training, evaluation and test data."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field

DatasetType = Literal["auto", "paddlenlp", "messages", "alpaca", "sharegpt", "columns", "erniekit"]
TruncationPolicy = Literal["error", "drop", "truncate_left_prompt", "truncate_right"]
MixStrategy = Literal["concat", "interleave_under", "interleave_over", "random"]


@dataclass
class DataConfig:
    """Data"""

    dataset_name_or_path: str | None = field(
        None,
        "Directory with train.json and dev.json (or train/*.json and dev/*.json, test.json, quant.json), or one "
        "data file.",
        aliases=("task_name_or_path",),
    )
    task_name: str | None = field(
        None, "Subset of a hub data set.", no_effect="data is read from local files; give the subset's directory"
    )
    train_dataset_path: list[str] | None = field(
        None, "Training files or directories, instead of dataset_name_or_path.", aliases=("train_dataset",)
    )
    eval_dataset_path: list[str] | None = field(
        None, "Evaluation files or directories.", aliases=("eval_dataset", "dev_dataset_path")
    )
    test_dataset_path: list[str] | None = field(
        None, "Test files or directories for do_predict.", aliases=("test_dataset",)
    )
    train_dataset_type: DatasetType = field("auto", "Format of the training files; auto detects it and says so.")
    eval_dataset_type: DatasetType = field("auto", "Format of the evaluation files; auto detects it and says so.")
    train_dataset_prob: list[float] | None = field(
        None, "Share of each training path in a mix (mix_strategy other than concat); they add up to 1."
    )
    mix_strategy: MixStrategy = field(
        "concat",
        "How several training paths are joined: one after the other (concat), or drawn in turn until the first "
        "(interleave_under) or the last (interleave_over) is used up, or drawn at random (random).",
    )
    column_map: dict[str, str] | None = field(
        None, "Column names of plain tables, e.g. {prompt: question, response: answer}."
    )
    src_length: int = field(
        1024,
        "Most tokens of the prompt that stay of an over-long row (truncation: truncate_left_prompt). Unset while "
        "max_length is 1024 or less: half of max_length.",
        minimum=1,
        aliases=("max_prompt_len", "max_source_length"),
    )
    max_length: int = field(
        2048,
        "Most tokens of a row (prompt and reply; the length of a packed row).",
        minimum=2,
        aliases=("max_seq_length", "max_seq_len", "max_source_and_target_length", "cutoff_len"),
    )
    truncation: TruncationPolicy = field(
        "truncate_left_prompt",
        "What happens to over-long rows. The default keeps PaddleNLP's way: the prompt loses its beginning, then the "
        "reply its end.",
    )
    packing: bool = field(
        False,
        "Put several conversations in one row; they do not see each other.",
        aliases=("intokens", "zero_padding", "padding_free", "neat_packing"),
    )
    greedy_packing: bool = field(
        False,
        "Look for rows that fill the gaps instead of keeping the order.",
        aliases=("greedy_intokens", "greedy_zero_padding", "binpacking"),
    )
    eval_packing: bool | None = field(None, "Pack the evaluation data too. Unset: like packing.")
    pad_to_multiple_of: int | None = field(None, "Pad batches to a multiple of this many tokens.", minimum=1)
    pad_to_max_length: bool = field(False, "Pad every batch to max_length.")
    length_grouping: bool = field(
        False, "Build batches of rows of similar length to save padding.", aliases=("group_by_length",)
    )
    chat_template: str | None = field(
        None,
        "Template that turns a conversation into text: a built-in name, or the path of a chat_template.json or .jinja "
        "file. Unset: the tokenizer's own.",
    )
    system_prompt: str | None = field(None, "System message for conversations that have none.", aliases=("system",))
    max_train_samples: int | None = field(
        None, "Use only this many training rows.", minimum=1, aliases=("max_samples",)
    )
    max_eval_samples: int | None = field(None, "Use only this many evaluation rows.", minimum=1)
    eval_split_ratio: float | None = field(
        None, "Share of the training rows set aside for evaluation.", over=0, maximum=0.9, aliases=("val_size",)
    )
    lazy: bool = field(False, "Read the training rows as they are needed instead of all at the start.")
    eval_with_do_generation: bool = field(
        False, "Also generate replies in evaluations and score them (BLEU-4, ROUGE-1/2/L)."
    )
    save_generation_output: bool = field(False, "Write generated replies to generated_output.json.")
    autoregressive: bool = field(
        False,
        "Leave the label shift to the model.",
        no_effect="labels are shifted in the data and the loss expects them so; results are the same",
    )
    use_pose_convert: bool = field(False, "PoSE position conversion for long contexts.", unbuilt="PoSE")
    dataset_text_field: str = field("text", "Column of plain text.", no_effect="name columns with column_map instead")
    dataset_num_proc: int | None = field(
        None, "Processes that tokenise.", no_effect="rows are tokenised by the tokenizer's own threads"
    )
    dataset_batch_size: int = field(
        1000, "Rows tokenised at once.", no_effect="the batch size of tokenising does not change results"
    )
    dataset_kwargs: dict[str, object] | None = field(
        None, "More arguments of the data set's constructor.", no_effect="every setting of the data has its own key"
    )
