"""Keys of ``paddlesft chat-page``."""

from dataclasses import dataclass
from typing import Literal

from paddlesft.config.fields import field


@dataclass
class ChatPageConfig:
    """Chat page"""

    url: str = field(
        "http://127.0.0.1:8010",
        "Address of a server of OpenAI's API, with or without /v1. Its key is read from the environment variable "
        "PADDLESFT_API_KEY.",
        aliases=("base_url", "api_base"),
    )
    port: int = field(8011, "Port of the page; 0 takes a free one.", minimum=0, maximum=65535, aliases=("server_port",))
    host: str = field("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.", aliases=("server_name",))
    title: str = field("LLM", "Title of the page.")
    language: Literal["auto", "en", "zh"] = field(
        "auto", "Language of the page: as the browser asks (auto), English or Chinese; readers can switch."
    )
    preference_file: str | None = field(
        None,
        "File for the pairs that thumbs up and down of all visitors make, for preference training (DPO); rows that it "
        "has stay. Unset: each visitor can save their own.",
    )
    end_with_input: bool = field(
        False, "End when standard input is closed, as it is when the server that started the page is gone."
    )
