"""Keys of ``paddlesft chat-page``."""

from dataclasses import dataclass

from paddlesft.config.fields import field


@dataclass
class ChatPageConfig:
    """Chat page"""

    url: str = field("http://127.0.0.1:8010", "The server whose models are asked; any that speaks OpenAI's API.")
    host: str = field("127.0.0.1", "Address to listen on; 0.0.0.0 lets other machines in.")
    port: int = field(8011, "Port of the page; 0 takes a free one.", minimum=0, maximum=65535)
    title: str = field("LLM", "Title of the page.")
    end_with_input: bool = field(
        False, "End when standard input is closed, as it is when the server that started the page is gone."
    )
