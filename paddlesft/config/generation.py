"""Keys about generating replies during evaluation and prediction."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field

DecodeStrategy = Literal["sampling", "greedy_search"]


@dataclass
class GenerationConfig:
    """Generation"""

    decode_strategy: DecodeStrategy = field("sampling", "Draw tokens (sampling) or always take the most likely one.")
    top_k: int = field(1, "Draw among this many most likely tokens; 0 for all, 1 is greedy.", minimum=0)
    top_p: float = field(
        1.0, "Draw among the most likely tokens that together reach this probability.", over=0, maximum=1
    )
    temperature: float = field(1.0, "Divides the logits before drawing; smaller is more certain.", minimum=0)
    repetition_penalty: float = field(1.0, "Above 1 makes tokens that occurred already less likely.", over=0)
    max_new_tokens: int | None = field(
        None, "Most tokens of a reply. Unset: max_length - src_length.", minimum=1, aliases=("max_gen_len",)
    )
    min_new_tokens: int = field(0, "Fewest tokens of a reply.", minimum=0, aliases=("min_tokens",))
    stop: list[str] | None = field(None, "Texts at which a reply ends, besides the model's own stop tokens.")
