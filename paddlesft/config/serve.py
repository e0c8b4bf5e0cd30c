"""Keys of ``paddlesft serve``, with the names of PaddleNLP's flask_server and predictor where they mean something here.

What a request may say itself (sampling, length) is here only as the default of requests that leave it open.
"""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field
from paddlesft.config.predictor_keys import PredictorKeys

_BY_REQUEST = "each request says it"
_NO_FILES = "a server answers requests; paddlesft predict answers the rows of a file"
_FASTDEPLOY = "it belongs to FastDeploy, which is not used here"
_LARGEST_PORT = 65535


@dataclass
class _ModelKeys:
    """Model and adapters"""

    model_name_or_path: str | None = field(
        None,
        "Model directory, exported graph, hub name, or embedded:smollm2; the first argument without a key. With an "
        "adapter: the base; unset: the adapter names it.",
    )
    served_model_name: str | None = field(
        None, "What requests call the model. Unset: the last part of its path or name."
    )
    lora_path: list[str] = field(
        [],
        "LoRA adapters over the model, each as name=directory or directory; give the key once for each. Requests "
        "choose by name; those that name none get the first.",
        repeatable=True,
    )
    prefix_path: list[str] = field([], "Prefix-Tuning adapters, given like those of lora_path.", repeatable=True)
    base_precision: Literal["quantized", "full"] | None = field(
        None,
        "Base of adapters that were trained over quantized weights: those (quantized, as when unset), or the ones "
        "before they were rounded (full), with which they compute something else.",
    )
    dtype: Literal["float32", "bfloat16", "float16"] | None = field(
        None, "Type of the weights in memory. Unset: as the model directory says."
    )
    device: str = field("auto", "auto (an accelerator if there is one), cpu, gpu, gpu:1, ...")
    mode: Literal["dynamic", "static"] | None = field(
        None,
        "Insist on a model in memory (dynamic) or on a graph that paddlesft export wrote (static). Unset: whichever "
        "the directory holds.",
    )
    chat_template: str | None = field(None, "Template instead of the model's own: a built-in name or a path.")
    system_prompt: str | None = field(None, "System message for conversations that have none.", aliases=("system",))


@dataclass
class _HttpKeys:
    """Addresses, keys and the log"""

    host: str = field("127.0.0.1", "Address to listen on, of API and page; 0.0.0.0 lets other machines in.")
    flask_port: int = field(
        8010, "Port of the API; 0 takes a free one.", minimum=0, maximum=_LARGEST_PORT, aliases=("base_port",)
    )
    port: int = field(8011, "Port of the chat page; 0 takes a free one.", minimum=0, maximum=_LARGEST_PORT)
    page: bool = field(True, "Start the chat page, too.")
    title: str = field("LLM", "Title of the chat page.")
    api_key: list[str] = field(
        [],
        "Key that requests must send as 'Authorization: Bearer KEY'; give it once for each. Every user of this machine "
        "can read a command line; the environment variable PADDLESFT_API_KEY (keys with commas between them) is the "
        "better place.",
        secret=True,
        repeatable=True,
    )
    log_prompts: bool = field(False, "Write texts of requests and replies into the log, too.")
    drain_seconds: float = field(
        30.0, "How long replies may go on after SIGTERM or Ctrl-C; then they end with an error.", minimum=0
    )


@dataclass
class _LimitKeys:
    """Limits"""

    src_length: int | None = field(
        None, "Most tokens of a prompt; longer ones are refused. Unset: what the model's context holds.", minimum=1
    )
    max_length: int | None = field(
        None,
        "Most tokens of prompt and reply together. Unset: the model's context.",
        minimum=2,
        aliases=("max_model_len",),
    )
    max_output_tokens: int | None = field(
        None,
        "Most tokens of a reply. Unset: max_length - src_length where both are given, else 2048.",
        minimum=1,
        aliases=("max_new_tokens",),
    )
    default_max_tokens: int | None = field(
        None, "Most tokens of a reply where the request does not say. Unset: as many as are allowed.", minimum=1
    )
    max_rows: int = field(
        8, "Replies that are written at the same time.", minimum=1, maximum=256, aliases=("max_num_seqs",)
    )
    max_queue: int = field(32, "Requests that may wait besides; more get status 429.", minimum=0, maximum=1024)
    kv_tokens: int | None = field(
        None, "Most tokens that the cache is made for: replies times the longest of them. Unset: no limit.", minimum=16
    )
    prefill_tokens: int | None = field(
        None,
        "Tokens of new prompts that run between two tokens of the replies: less is smoother, more is sooner. Unset: as "
        "many as take a quarter of a second.",
        minimum=1,
        aliases=("max_num_batched_tokens",),
    )
    prefix_cache_tokens: int = field(
        4096,
        "Tokens of earlier prompts and replies that are kept, for prompts that begin with them: shared system "
        "messages, earlier turns. 0: none. They are not part of kv_tokens.",
        minimum=0,
    )
    request_timeout: float | None = field(
        None, "Seconds after which a reply is given up with an error. Unset: never.", over=0
    )
    max_body_bytes: int = field(1 << 20, "Most bytes of a request.", minimum=1024, maximum=1 << 28)
    max_choices: int = field(8, "Most replies to one request (n).", minimum=1, maximum=128)


@dataclass
class _SamplingKeys:
    """Sampling of requests that leave it open"""

    decode_strategy: Literal["sampling", "greedy_search"] | None = field(
        None, "Draw tokens (sampling) or always take the most likely one. Unset: sampling."
    )
    top_k: int | None = field(
        None, "Draw among this many most likely tokens; 0 for all, 1 is greedy. Unset: 0.", minimum=0
    )
    top_p: float | None = field(
        None,
        "Draw among the most likely tokens that together reach this probability. Unset: 1.0; /api/chat: 0.7.",
        over=0,
        maximum=1,
    )
    temperature: float | None = field(
        None, "Divides the logits before drawing; smaller is more certain. Unset: 1.0; /api/chat: 0.95.", minimum=0
    )
    repetition_penalty: float | None = field(
        None, "Above 1 makes tokens that occurred already less likely. Unset: 1.0.", over=0
    )


@dataclass
class _OtherServersKeys:
    """Keys of other servers"""

    inference_model: bool = field(
        False, "PaddleNLP's fused GPU kernels: a line says why it goes without them; the replies stay the same."
    )
    sub_title: str | None = field(None, "Second title of the page.", no_effect="the page says which models it reaches")
    batch_size: int | None = field(
        None, "Rows of a batch.", no_effect="replies join and leave the batch as they come; max_rows bounds it"
    )
    min_new_tokens: int = field(
        0, "Fewest tokens of a reply.", no_effect=_BY_REQUEST, aliases=("min_length", "min_tokens")
    )
    seed: int | None = field(None, "Seed of drawing.", no_effect=_BY_REQUEST)
    data_file: str | None = field(None, "Rows to answer.", no_effect=_NO_FILES)
    output_file: str | None = field(None, "File for replies.", no_effect=_NO_FILES)
    benchmark: bool = field(False, "Measure the speed.", no_effect="paddlesft benchmark does that")
    metrics_port: int | None = field(None, "Port of the figures.", no_effect="the API's own port answers /metrics")
    engine_worker_queue_port: int | None = field(None, "Port between processes.", no_effect=_FASTDEPLOY)
    use_warmup: int | None = field(None, "Warm up.", no_effect=_FASTDEPLOY)
    gpu_memory_utilization: float | None = field(None, "Share of the memory.", no_effect="kv_tokens bounds the cache")
    kv_cache_ratio: float | None = field(None, "Share of the cache.", no_effect="kv_tokens bounds the cache")
    load_choices: str | None = field(None, "How weights are read.", no_effect=_FASTDEPLOY)
    quantization: str | None = field(
        None,
        "Quantize while loading.",
        unbuilt="quantizing while a server loads (paddlesft quantize writes a directory that can be served)",
    )
    enable_mm: bool = field(False, "Images and video.", unbuilt="serving models that see")
    limit_mm_per_prompt: str | None = field(None, "Most images.", no_effect="no model here sees")
    reasoning_parser: str | None = field(
        None, "Separates thinking from the reply.", no_effect="replies are given as the model writes them"
    )
    tool_call_parser: str | None = field(
        None, "Reads calls of tools.", no_effect="the reply's own form says which parser it needs"
    )


@dataclass
class ServeConfig(PredictorKeys, _OtherServersKeys, _SamplingKeys, _LimitKeys, _HttpKeys, _ModelKeys):
    """Serve"""
