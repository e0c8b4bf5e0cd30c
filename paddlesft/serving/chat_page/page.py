"""The page: what it shows, and what happens when something is pressed."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gradio as gr

from paddlesft.serving.chat_page.client import ApiClient, BackendError
from paddlesft.serving.chat_page.conversation import Talk, Turn, UnreadableFile, lines_of, read_conversation
from paddlesft.serving.chat_page.texts import LANGUAGES, language_of, text
from paddlesft.serving.chat_page.visit import Stops, Visit, ask, problem_of

CSS = """
footer { display: none !important; }
.gradio-container { max-width: 1200px !important; margin: 0 auto !important; }
#head { align-items: center; } #head h2 { margin: 0; }
#language { flex-grow: 0; min-width: 170px !important; }
#refresh { max-width: 3.2rem; min-width: 3.2rem !important; align-self: end; }
#compare { align-self: center; }
#status { min-height: 1.2rem; }
#status .problem { color: #b91c1c; font-weight: 600; } .dark #status .problem { color: #fca5a5; }
small { opacity: .65; }
@media (max-width: 640px) {
  .gradio-container { padding: 6px !important; }
  #left, #right { height: 46vh !important; }
  .controls button { min-width: 30% !important; }
}
"""
SESSION_HOURS = 24
HEIGHT = "58vh"


def build_page(client: ApiClient, title: str) -> gr.Blocks:
    """Return the page.

    Args:
        client: of the service.
        title: at its top.
    """
    return _Page(client, title).blocks


def theme() -> gr.themes.Base:
    """Return how it looks; fonts are those of the visitor's machine, nothing is fetched."""
    plain = ["system-ui", "-apple-system", "Segoe UI", "Noto Sans CJK SC", "Microsoft YaHei", "sans-serif"]
    return gr.themes.Soft(primary_hue="blue", font=plain, font_mono=["ui-monospace", "Consolas", "monospace"])


class _Page:
    def __init__(self, client: ApiClient, title: str) -> None:
        self.client, self.stops = client, Stops()
        self.files = tempfile.TemporaryDirectory(prefix="paddlesft-page-")
        delete = (3600, SESSION_HOURS * 3600)
        with gr.Blocks(title=title, analytics_enabled=False, delete_cache=delete) as self.blocks:
            self._lay_out(title)
            self._connect()

    # --- what is shown ----------------------------------------------------------------------------------------------

    def _lay_out(self, title: str) -> None:
        self.labels: list[tuple[gr.components.Component, dict[str, str]]] = []
        named = self._named
        self.visit = gr.State(Visit())
        with gr.Row(elem_id="head"):
            gr.Markdown(f"## {html.escape(title)}")
            choices = [(name, key) for key, name in LANGUAGES.items()]
            self.language = gr.Radio(
                choices, value="en", show_label=False, container=False, elem_id="language", interactive=True
            )
        self.intro = named(gr.Markdown(text("intro", "en")), value="intro")
        with gr.Row():
            self.models = [
                named(gr.Dropdown([], elem_id="model", interactive=True, min_width=180), label="model"),
                named(gr.Dropdown([], elem_id="other", interactive=True, visible=False, min_width=180), label="other"),
            ]
            self.refresh = gr.Button("⟳", elem_id="refresh")
            self.compare = named(gr.Checkbox(False, elem_id="compare", min_width=180), label="compare")
        with gr.Row(equal_height=True):
            self.chats = [
                named(
                    gr.Chatbot(
                        elem_id=side, height=HEIGHT, show_label=False, visible=side == "left", editable="user",
                        buttons=["copy"], reasoning_tags=[("<think>", "</think>")], group_consecutive_messages=False,
                        latex_delimiters=[
                            {"left": "$$", "right": "$$", "display": True},
                            {"left": "\\[", "right": "\\]", "display": True},
                            {"left": "\\(", "right": "\\)", "display": False},
                        ],
                    ),
                    placeholder="empty",
                )
                for side in ("left", "right")
            ]  # fmt: skip
        with gr.Row(visible=False) as self.choice:
            self.better = [
                named(gr.Button(elem_id=f"{side}_better", size="sm"), value=f"{side}_better")
                for side in ("left", "right")
            ]
        self.status = gr.Markdown("", elem_id="status", sanitize_html=True)
        with gr.Row(equal_height=True):
            self.message = named(
                gr.Textbox(
                    elem_id="message", show_label=False, container=False, lines=1, max_lines=8, scale=8, autofocus=True
                ),
                placeholder="message",
            )
            self.send = named(gr.Button(variant="primary", elem_id="send", scale=1, min_width=80), value="send")
            self.stop = named(
                gr.Button(variant="stop", elem_id="stop", scale=1, min_width=80, visible=False), value="stop"
            )
        with gr.Row(elem_classes="controls"):
            self.retry, self.undo, self.clear = (
                named(gr.Button(elem_id=name, size="sm", min_width=80), value=name)
                for name in ("retry", "undo", "clear")
            )
        self._lay_out_settings()
        self._lay_out_files()

    def _lay_out_settings(self) -> None:
        named = self._named
        with named(gr.Accordion(open=False, elem_id="settings"), label="settings"):
            self.system = named(gr.Textbox(lines=2, elem_id="system"), label="system", info="system_info")
            with gr.Row():
                sliders = (
                    ("max_tokens", 1, 2048, 1, 256),
                    ("temperature", 0, 2, 0.05, 0.7),
                    ("top_p", 0, 1, 0.01, 0.9),
                    ("top_k", 0, 200, 1, 0),
                    ("repetition_penalty", 0.5, 2, 0.01, 1.0),
                )
                self.parameters = [
                    named(
                        gr.Slider(low, high, step=step, value=value, elem_id=name, min_width=220),
                        label=name,
                        info=f"{name}_info",
                    )
                    for name, low, high, step, value in sliders
                ]
                self.parameters.append(
                    named(
                        gr.Number(value=None, precision=0, elem_id="seed", min_width=220),
                        label="seed",
                        info="seed_info",
                    )
                )
                self.parameters.append(
                    named(
                        gr.Textbox(lines=1, max_lines=4, elem_id="stop_strings", min_width=220),
                        label="stop_strings",
                        info="stop_strings_info",
                    )
                )

    def _lay_out_files(self) -> None:
        named = self._named
        with named(gr.Accordion(open=False, elem_id="files"), label="files"):
            with gr.Row():
                with gr.Column(min_width=220):
                    self.export = named(gr.Button(elem_id="export"), value="export")
                    named(gr.Markdown(), value="export_info")
                with gr.Column(min_width=220):
                    self.load = named(gr.UploadButton(elem_id="import", file_types=[".jsonl", ".json"]), label="import")
                with gr.Column(min_width=220):
                    self.preferences = named(gr.Button(elem_id="preferences"), value="preferences")
                    named(gr.Markdown(), value="preferences_info")
            self.file = gr.File(visible=False, elem_id="file", show_label=False, interactive=False)

    def _named(self, component: Any, **keys: str) -> Any:
        """Remember which texts of a component depend on the language."""
        self.labels.append((component, keys))
        for attribute, key in keys.items():
            setattr(component, attribute, text(key, "en"))
        return component

    # --- what happens -----------------------------------------------------------------------------------------------

    def _connect(self) -> None:
        settings = [self.compare, *self.models, self.language, self.system, *self.parameters]
        answered = [self.visit, self.message, *self.chats, self.status, self.send, self.stop]
        many = {"concurrency_limit": 64, "show_progress": "hidden"}
        gr.on(
            [self.message.submit, self.send.click], self._ask, [self.visit, self.message, *settings], answered, **many
        )
        gr.on([self.retry.click], self._ask_again, [self.visit, *settings], answered, **many)
        for chat in self.chats:
            chat.edit(self._edit, [self.visit, *settings], answered, **many)
        self.stop.click(self._stop, None, None, queue=False)
        shown = [self.visit, *self.chats, self.status]
        self.undo.click(self._undo, [self.visit, self.language, self.system], [*shown, self.message], queue=False)
        self.clear.click(self._clear, [self.visit, self.system], shown, queue=False)
        told = [self.visit, self.status]
        for number, chat in enumerate(self.chats):
            like = self._like_left if number == 0 else self._like_right
            chat.like(like, [self.visit, self.language, self.system], told, queue=False)
        for number, button in enumerate(self.better):
            choose = self._choose_left if number == 0 else self._choose_right
            button.click(choose, [self.visit, self.language, self.system], told, queue=False)
        self.compare.change(
            self._compare,
            [self.visit, self.compare],
            [self.visit, self.models[1], self.chats[1], self.choice],
            queue=False,
        )
        self.export.click(
            self._export, [self.visit, self.compare, self.language, self.system], [self.file, self.status]
        )
        self.preferences.click(
            self._export_preferences, [self.visit, self.language, self.system], [self.file, self.status]
        )
        self.load.upload(self._load, [self.visit, self.load, self.language], [*shown, self.system])
        self.refresh.click(self._models, [self.language, *self.models], [*self.models, self.status])
        labelled = [component for component, _ in self.labels]
        self.language.change(self._relabel, [self.language], labelled, queue=False)
        self.blocks.load(self._arrive, None, [self.language, *self.models, self.status])
        self.blocks.unload(self._leave)

    def _arrive(self, request: gr.Request) -> list[Any]:
        language = language_of(request.headers.get("accept-language"))
        return [gr.update(value=language), *self._models(language, None, None)]

    def _leave(self, request: gr.Request) -> None:
        self.stops.stop(request.session_hash)

    def _relabel(self, language: str) -> list[Any]:
        updates = []
        for _, keys in self.labels:
            updates.append(gr.update(**{attribute: text(key, language) for attribute, key in keys.items()}))
        return updates

    def _models(self, language: str, first: str | None, second: str | None) -> list[Any]:
        try:
            models = self.client.models()
        except BackendError as error:
            return [gr.skip(), gr.skip(), _problem(problem_of(error, self.client.url, language))]
        names = [model["id"] for model in models]
        kinds = {model["id"]: model.get("adapter") or text("base", language) for model in models}
        choices = [(f"{name} ({kinds[name]})" if len(names) > 1 else name, name) for name in names]
        first = first if first in names else next(iter(names), None)
        second = second if second in names else next((name for name in names if name != first), first)
        return [gr.update(choices=choices, value=first), gr.update(choices=choices, value=second), ""]

    def _compare(self, visit: Visit, compare: bool) -> list[Any]:
        if compare:  # both begin with the same messages
            visit.right = Talk([Turn(turn.message, turn.replies[-1:]) for turn in visit.left.turns])
        seen = gr.update(visible=compare)
        return [visit, seen, gr.update(visible=compare, value=visit.right.shown()), seen]

    def _ask(self, visit: Visit, message: str, *settings: Any, request: gr.Request) -> Iterator[list[Any]]:
        if not message.strip():
            yield [gr.skip()] * 7
            return
        for talk, _ in self._sides(visit, settings):
            talk.turns.append(Turn(message))
        yield from self._answer(visit, settings, request, "")

    def _ask_again(self, visit: Visit, *settings: Any, request: gr.Request) -> Iterator[list[Any]]:
        if not visit.left.turns:
            yield [gr.skip()] * 4 + [text("no_message", settings[3]), gr.skip(), gr.skip()]
            return
        yield from self._answer(visit, settings, request, gr.skip())

    def _edit(self, visit: Visit, *settings: Any, edited: gr.EditData, request: gr.Request) -> Iterator[list[Any]]:
        index = edited.index if isinstance(edited.index, int) else edited.index[0]
        number, _ = visit.left.place(index)
        for talk in (visit.left, visit.right):
            talk.cut(number, settings[4])
        for talk, _ in self._sides(visit, settings):
            talk.turns.append(Turn(_plain(edited.value)))
        yield from self._answer(visit, settings, request, gr.skip())

    def _sides(self, visit: Visit, settings: tuple[Any, ...]) -> list[tuple[Talk, str]]:
        compare, first, second = settings[:3]
        return [(visit.left, first), *([(visit.right, second)] if compare else [])]

    def _answer(
        self, visit: Visit, settings: tuple[Any, ...], request: gr.Request, message: Any
    ) -> Iterator[list[Any]]:
        language, system = settings[3:5]
        sides = self._sides(visit, settings)
        writing = [gr.update(visible=False), gr.update(visible=True)]
        waiting = [gr.update(visible=True), gr.update(visible=False)]

        def shown() -> list[Any]:
            return [talk.shown() for talk in (visit.left, visit.right)]

        if not all(model for _, model in sides):
            yield [visit, message, *shown(), _problem(text("no_model", language)), *waiting]
            return
        stop = self.stops.begin(request.session_hash)
        problems: list[str] = []
        try:
            yield [visit, message, *shown(), "", *writing]
            for problems in ask(self.client, sides, system, _parameters(settings[5:]), language, stop):
                yield [gr.skip(), gr.skip(), *shown(), gr.skip(), gr.skip(), gr.skip()]
        finally:
            stop.set()
        yield [visit, gr.skip(), *shown(), _problem(" ".join(problems)) if problems else "", *waiting]

    def _stop(self, request: gr.Request) -> None:
        self.stops.stop(request.session_hash)

    def _undo(self, visit: Visit, language: str, system: str, request: gr.Request) -> list[Any]:
        self.stops.stop(request.session_hash)
        if not visit.left.turns:
            return [gr.skip(), gr.skip(), gr.skip(), text("nothing_back", language), gr.skip()]
        message, last = visit.left.turns[-1].message, len(visit.left.turns) - 1
        for talk in (visit.left, visit.right):
            talk.cut(last, system)
        return [visit, visit.left.shown(), visit.right.shown(), "", message]

    def _clear(self, visit: Visit, system: str, request: gr.Request) -> list[Any]:
        self.stops.stop(request.session_hash)
        for talk in (visit.left, visit.right):
            talk.cut(0, system)
        return [visit, [], [], ""]

    def _like_left(self, visit: Visit, language: str, system: str, like: gr.LikeData) -> list[Any]:
        return self._liked(visit, visit.left, language, system, like)

    def _like_right(self, visit: Visit, language: str, system: str, like: gr.LikeData) -> list[Any]:
        return self._liked(visit, visit.right, language, system, like)

    @staticmethod
    def _liked(visit: Visit, talk: Talk, language: str, system: str, like: gr.LikeData) -> list[Any]:
        number, is_reply = talk.place(like.index if isinstance(like.index, int) else like.index[0])
        if is_reply:
            known = {True: True, "Like": True, False: False, "Dislike": False}
            talk.turns[number].replies[-1].liked = known.get(like.liked)
        return [visit, text("pairs", language, count=len(visit.preferences(system)))]

    def _choose_left(self, visit: Visit, language: str, system: str) -> list[Any]:
        return self._chosen(visit, True, language, system)

    def _choose_right(self, visit: Visit, language: str, system: str) -> list[Any]:
        return self._chosen(visit, False, language, system)

    @staticmethod
    def _chosen(visit: Visit, left: bool, language: str, system: str) -> list[Any]:
        if not visit.choose(left, system):
            return [visit, text("not_both", language)]
        pairs = text("pairs", language, count=len(visit.preferences(system)))
        return [visit, text("chose", language, pairs=pairs)]

    # --- files --------------------------------------------------------------------------------------------------------

    def _export(self, visit: Visit, compare: bool, language: str, system: str) -> list[Any]:
        talks = [visit.left, visit.right] if compare else [visit.left]
        rows = [row for talk in talks if (row := talk.row(system)) is not None]
        return self._written("conversation.jsonl", rows, text("nothing", language))

    def _export_preferences(self, visit: Visit, language: str, system: str) -> list[Any]:
        return self._written("preferences.jsonl", visit.preferences(system), text("no_pairs", language))

    def _written(self, name: str, rows: list[dict[str, Any]], otherwise: str) -> list[Any]:
        if not rows:
            return [gr.update(visible=False), otherwise]
        path = Path(tempfile.mkdtemp(dir=self.files.name)) / name
        path.write_text(lines_of(rows), encoding="utf-8")
        return [gr.update(value=str(path), visible=True), ""]

    def _load(self, visit: Visit, file: str, language: str) -> list[Any]:
        name = Path(file).name
        try:
            system, talk = read_conversation(Path(file).read_text(encoding="utf-8-sig"))
        except UnreadableFile as error:
            reason = text(error.key, language, **error.values)
        except UnicodeDecodeError:
            reason = "UTF-8?"
        else:
            visit.left, visit.right = talk, Talk([Turn(turn.message, list(turn.replies)) for turn in talk.turns])
            count = sum(1 + (turn.reply is not None) for turn in talk.turns)
            shown = [visit.left.shown(), visit.right.shown()]
            return [visit, *shown, text("loaded", language, count=count), system]
        problem = _problem(text("not_loaded", language, file=name, reason=reason))
        return [gr.skip(), gr.skip(), gr.skip(), problem, gr.skip()]


def _parameters(values: tuple[Any, ...]) -> dict[str, Any]:
    max_tokens, temperature, top_p, top_k, repetition_penalty, seed, stop = values
    found = {
        "max_tokens": int(max_tokens), "temperature": temperature, "top_p": top_p, "top_k": int(top_k),
        "repetition_penalty": repetition_penalty,
    }  # fmt: skip
    if seed is not None:
        found["seed"] = int(seed)
    strings = [line for line in (stop or "").splitlines() if line]
    return found | ({"stop": strings} if strings else {})


def _problem(sentence: str) -> str:
    return f'<span class="problem">{html.escape(sentence)}</span>'


def _plain(value: Any) -> str:
    """Return the text of a message, which gradio gives as a text or as a list of parts."""
    if isinstance(value, list):
        return "".join(_plain(part) for part in value)
    return str(value.get("text", value.get("content", ""))) if isinstance(value, dict) else str(value)
