"""The page's components, and which of their words are in which language."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import gradio as gr

from paddlesft.serving.chat_page.session import Session
from paddlesft.serving.chat_page.style import HEIGHT
from paddlesft.serving.chat_page.texts import say

LATEX = [  # no single $: it stands before prices as often as before formulas
    {"left": "$$", "right": "$$", "display": True},
    {"left": "\\[", "right": "\\]", "display": True},
    {"left": "\\(", "right": "\\)", "display": False},
]

LONGEST_REPLY, USUAL_REPLY = 4096, 512  # tokens; less where the models hold less


@dataclass
class View:
    """One tab: its chat components, their models, the box for messages, and the buttons that are there at times."""

    chats: list[gr.Chatbot]
    models: list[gr.Dropdown]
    box: gr.Textbox
    clear: gr.Button
    buttons: list[gr.Button]

    @property
    def drawn(self) -> list[Any]:
        """What changes with the conversations."""
        return [*self.chats, *self.buttons]


@dataclass
class Layout:
    """All components that events need.

    Attributes:
        words: components with the texts they show: property -> key of the text.
    """

    words: list[tuple[Any, dict[str, str]]] = field(default_factory=list)

    def worded(self, component: Any, **keys: str) -> Any:
        """Remember which texts a component shows."""
        self.words.append((component, keys))
        return component

    def build(self, title: str, language: str) -> Layout:
        """Make the components, inside of ``gr.Blocks``.

        Args:
            title: heading of the page.
            language: of the words until the browser's is known.
        """

        def words(kind: Any, *args: Any, keys: dict[str, str], **rest: Any) -> Any:
            first = {name: say(language, key) for name, key in keys.items()}
            return self.worded(kind(*args, **first, **rest), **keys)

        self.session = gr.State(Session())
        with gr.Row(elem_id="top"):
            self.title = gr.Markdown(f"## {title}")
            self.settings = words(
                gr.Button, keys={"value": "settings"}, size="sm", min_width=72, scale=0, elem_id="open-settings"
            )
            self.dark = gr.Button("◐", size="sm", min_width=44, scale=0, elem_id="dark")
            self.language = words(
                gr.Button, keys={"value": "other_language"}, size="sm", min_width=72, scale=0, elem_id="language"
            )
        with gr.Sidebar(position="right", open=False, width=340):
            self._settings(words)
        with gr.Tabs(elem_id="tabs"):
            with words(gr.Tab, keys={"label": "chat"}, id="chat"):
                self.chat = self._view(words, ["model"], ["empty_chat"], "message", ["other_reply"], "chat")
            with words(gr.Tab, keys={"label": "compare"}, id="compare"):
                self.compare = self._view(
                    words,
                    ["left", "right"],
                    ["empty_compare", "empty_compare_right"],
                    "message_compare",
                    ["left_better", "right_better"],
                    "compare",
                )
        self.looking = gr.Timer(3.0, active=True)  # for models, until there are some
        return self

    def _view(
        self, words: Any, labels: list[str], empty: list[str], message: str, buttons: list[str], name: str
    ) -> View:
        chats, models = [], []
        with gr.Row(elem_classes="columns"):
            for number, (label, placeholder) in enumerate(zip(labels, empty)):
                with gr.Column(min_width=300):
                    models.append(
                        words(
                            gr.Dropdown,
                            choices=[],
                            value=None,
                            keys={"label": label},
                            allow_custom_value=False,
                            container=False,
                            show_label=False,
                            elem_id=f"{name}-model-{number}",
                        )
                    )
                    chats.append(
                        words(
                            gr.Chatbot,
                            keys={"placeholder": placeholder},
                            show_label=False,
                            height=HEIGHT,
                            layout="bubble",
                            buttons=[],
                            editable="user" if len(labels) == 1 else None,
                            latex_delimiters=LATEX,
                            sanitize_html=True,
                            allow_tags=False,
                            elem_id=f"{name}-{number}",
                        )
                    )
        box = words(
            gr.Textbox,
            keys={"placeholder": message},
            show_label=False,
            lines=1,
            max_lines=8,
            submit_btn=True,
            autofocus=name == "chat",
            elem_id=f"{name}-box",
        )
        with gr.Row():
            made = [
                words(
                    gr.Button,
                    keys={"value": key},
                    size="sm",
                    min_width=100,
                    visible=False,
                    elem_id=key.replace("_", "-"),
                )
                for key in buttons
            ]
            clear = words(gr.Button, keys={"value": "clear"}, size="sm", min_width=100, elem_id=f"{name}-clear")
        return View(chats, models, box, clear, made)

    def _settings(self, words: Any) -> None:
        with gr.Row(elem_id="settings-head"):
            words(gr.Markdown, keys={"value": "settings"})
            self.close_settings = gr.Button("✕", size="sm", min_width=44, scale=0, elem_id="close-settings")

        def explained(kind: Any, key: str, **rest: Any) -> Any:
            return words(kind, keys={"label": key, "info": f"{key}_info"}, elem_id=key, **rest)

        self.system = explained(gr.Textbox, "system", lines=3, max_lines=10)
        self.sampling = [
            explained(gr.Slider, "max_tokens", minimum=1, maximum=LONGEST_REPLY, value=USUAL_REPLY, step=1),
            explained(gr.Slider, "temperature", minimum=0, maximum=2, value=0.7, step=0.05),
            explained(gr.Slider, "top_p", minimum=0.01, maximum=1, value=0.95, step=0.01),
            explained(gr.Slider, "top_k", minimum=0, maximum=200, value=0, step=1),
            explained(gr.Slider, "repetition_penalty", minimum=0.8, maximum=2, value=1, step=0.01),
            explained(gr.Number, "seed", value=0, precision=0, minimum=0),
            explained(gr.Textbox, "stop", lines=2, max_lines=6),
        ]
        self.data_heading = words(gr.Markdown, keys={"value": "data"})
        words(gr.Markdown, keys={"value": "data_info"}, elem_classes="explained")
        self.export = words(gr.Button, keys={"value": "export"}, size="sm", elem_id="export")
        self.load = words(
            gr.UploadButton,
            keys={"label": "import"},
            size="sm",
            file_types=[".jsonl", ".json"],
            elem_id="import",
        )
        words(gr.Markdown, keys={"value": "pairs_info"}, elem_classes="explained")
        self.pairs = gr.Button(say("en", "pairs", count=0), size="sm", elem_id="pairs")
        self.saved_name = gr.Textbox(elem_classes="saved")
        self.saved_text = gr.Textbox(elem_classes="saved")
