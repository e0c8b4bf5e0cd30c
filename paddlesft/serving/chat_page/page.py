"""The page: what happens when somebody does something."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

import gradio as gr

from paddlesft.errors import DataError
from paddlesft.serving.chat_page.backend import Backend, BackendError, ServedName
from paddlesft.serving.chat_page.display import as_written, shown_chat
from paddlesft.serving.chat_page.layout import LONGEST_REPLY, USUAL_REPLY, Layout, View
from paddlesft.serving.chat_page.options import request_options
from paddlesft.serving.chat_page.preferences import PreferenceFile, line
from paddlesft.serving.chat_page.rows import read_row, row_of
from paddlesft.serving.chat_page.session import Place, Session
from paddlesft.serving.chat_page.style import SAVE, TOGGLE_DARK, TOGGLE_SETTINGS
from paddlesft.serving.chat_page.texts import LANGUAGES, preferred_language, say

_QUIET = {"show_progress": "hidden", "api_visibility": "private"}
_AT_ONCE = {**_QUIET, "queue": False}  # shows no notices: Gradio sends those through the queue only


class Page:
    """The page of one server.

    Args:
        backend: the server.
        title: heading of the page.
        language: ``en`` or ``zh``; None: as each browser asks.
        preference_file: collects the pairs of all visitors; None: each can only save their own.
    """

    def __init__(
        self,
        backend: Backend,
        title: str = "LLM",
        language: str | None = None,
        preference_file: PreferenceFile | None = None,
    ) -> None:
        self._backend, self._title, self._language, self._file = backend, title, language, preference_file

    def blocks(self) -> gr.Blocks:
        """Return the page as Gradio runs it."""
        with gr.Blocks(title=self._title, analytics_enabled=False, fill_width=True) as blocks:
            layout = self._layout = Layout().build(self._title, self._language or "en")
            worded = [component for component, _ in layout.words]
            gr.on(
                [blocks.load],
                self._arrive,
                [layout.session],
                [*worded, layout.pairs, *self._model_outputs()],
                **_AT_ONCE,
            )
            layout.looking.tick(self._look_for_models, [layout.session], self._model_outputs(), **_AT_ONCE)
            drawn = [*layout.chat.drawn, *layout.compare.drawn]
            layout.language.click(
                self._switch_language,
                [layout.session, layout.system],
                [*worded, layout.pairs, *drawn],
                **_AT_ONCE,
            )
            layout.dark.click(None, js=TOGGLE_DARK, **_QUIET)
            for button in (layout.settings, layout.close_settings):
                button.click(None, js=TOGGLE_SETTINGS, **_QUIET)
            self._connect(layout.chat, "chat")
            self._connect(layout.compare, "compare")
            self._connect_extras(layout)
        blocks.queue(default_concurrency_limit=None, api_open=False)
        return blocks

    def _connect(self, view: View, name: str) -> None:
        """Connect what both tabs have."""
        layout = self._layout
        asked = [layout.session, *view.models, layout.system, *layout.sampling]
        drawn = [*view.drawn, view.box]

        def place_of(session: Session) -> Place:
            return getattr(session, name)

        async def send(text: str, session: Session, *values: Any) -> AsyncIterator[Any]:
            place = place_of(session)
            if place.running or not text.strip():
                yield [gr.skip() for _ in drawn]
                return
            for chat in place.chats:
                chat.ask(text)
            async for picture in self._answer(view, place, session, values, clear=True):
                yield picture

        async def retry(session: Session, *values: Any) -> AsyncIterator[Any]:
            async for picture in self._answer(view, place_of(session), session, values):
                yield picture

        async def edit(event: gr.EditData, session: Session, *values: Any) -> AsyncIterator[Any]:
            place = place_of(session)
            system = values[len(view.models)]
            _, turns, _ = self._shown(place.chats[0], session, system)
            text = as_written(_plain(event.value))
            if place.running or not text.strip():
                yield [*self._draw(place, session, system), gr.skip()]
                return
            number = turns[_number(event.index)]
            for chat in place.chats:
                chat.edit(number, text)
            async for picture in self._answer(view, place, session, values):
                yield picture

        def undo(session: Session, system: str) -> list[Any]:
            place = place_of(session)
            if place.running:
                return [gr.skip() for _ in drawn]
            texts = [chat.undo() for chat in place.chats]
            return [*self._draw(place, session, system), gr.update(value=texts[0])]

        def clear(session: Session, system: str) -> list[Any]:
            place_of(session).clear()
            return self._draw(place_of(session), session, system)

        async def stop(session: Session) -> None:
            place_of(session).end()

        view.box.submit(send, [view.box, *asked], drawn, **_QUIET)
        view.box.stop(stop, [layout.session], None, **_AT_ONCE)
        view.clear.click(clear, [layout.session, layout.system], view.drawn, **_AT_ONCE)
        for number, chat in enumerate(view.chats):
            chat.retry(retry, asked, drawn, **_QUIET)
            chat.undo(undo, [layout.session, layout.system], drawn, **_AT_ONCE)
            chat.clear(clear, [layout.session, layout.system], view.drawn, **_AT_ONCE)
            chat.like(
                self._voting(name, number),
                [layout.session, layout.system],
                [*view.drawn, layout.pairs],
                **_QUIET,
            )
            if chat.editable:
                chat.edit(edit, asked, drawn, **_QUIET)

    def _connect_extras(self, layout: Layout) -> None:
        """Connect what only one tab has, and the data buttons."""
        saved = [layout.saved_name, layout.saved_text]
        layout.chat.buttons[0].click(self._other_reply, [layout.session, layout.system], layout.chat.drawn, **_AT_ONCE)
        for side, button in enumerate(layout.compare.buttons):
            button.click(
                self._choosing(side), [layout.session, layout.system], [*layout.compare.drawn, layout.pairs], **_QUIET
            )
        for button, rows in ((layout.export, self._export), (layout.pairs, self._save_pairs)):
            button.click(rows, [layout.session, layout.system], saved, **_QUIET).then(
                None, saved, None, js=SAVE, **_QUIET
            )
        layout.load.upload(self._import, [layout.load, layout.session], [*layout.chat.drawn, layout.system], **_QUIET)

    # ---- replies ----

    async def _answer(
        self, view: View, place: Place, session: Session, values: tuple[Any, ...], clear: bool = False
    ) -> AsyncIterator[list[Any]]:
        count = len(view.models)
        models, system, options = values[:count], values[count], request_options(*values[count + 1 :])
        box: dict[str, Any] = {"submit_btn": False, "stop_btn": True}
        if clear:
            box["value"] = ""
        async for _ in place.answer(self._backend, models, system, options):
            yield [*self._draw(place, session, system), gr.update(**box)]
            box = {}
        yield [*self._draw(place, session, system), gr.update(submit_btn=True, stop_btn=False)]

    def _draw(self, place: Place, session: Session, system: str) -> list[Any]:
        drawn = []
        for chat in place.chats:
            messages, _, thumbs = self._shown(chat, session, system)
            drawn.append(gr.update(value=messages, feedback_value=thumbs))
        if len(place.chats) == 1:
            (chat,) = place.chats
            return [*drawn, gr.update(visible=not place.running and chat.has_other_replies)]
        return [*drawn, *[gr.update(visible=session.can_choose)] * 2]

    def _shown(self, chat: Any, session: Session, system: str) -> tuple[list[Any], list[int], list[str | None]]:
        return shown_chat(chat, session.language, self._backend.url, session.votes, system)

    def _other_reply(self, session: Session, system: str) -> list[Any]:
        (chat,) = session.chat.chats
        if chat.has_other_replies and not session.chat.running:
            chat.show_next_reply()
        return self._draw(session.chat, session, system)

    # ---- votes ----

    def _voting(self, name: str, number: int) -> Any:
        def vote(event: gr.LikeData, session: Session, system: str) -> list[Any]:
            place = getattr(session, name)
            chat = place.chats[number]
            _, turns, _ = self._shown(chat, session, system)
            liked = event.liked if isinstance(event.liked, bool) else None  # "" takes a thumb back
            try:
                more = session.vote(chat, turns[_number(event.index)], system, liked, self._file)
            except OSError as error:
                gr.Warning(say(session.language, "not_saved", detail=error.strerror or type(error).__name__))
                more = 0
            count = len(session.votes.pairs())
            if more > 0:
                gr.Info(say(session.language, "pair_made", count=count))
            return [*self._draw(place, session, system), say(session.language, "pairs", count=count)]

        return vote

    def _choosing(self, side: int) -> Any:
        def choose(session: Session, system: str) -> list[Any]:
            try:
                result = session.choose(side, system, self._file)
            except OSError as error:
                result = "pair_made"
                gr.Warning(say(session.language, "not_saved", detail=error.strerror or type(error).__name__))
            count = len(session.votes.pairs())
            if result == "pair_made":
                gr.Info(say(session.language, result, count=count))
            else:
                gr.Warning(say(session.language, result))
            return [*self._draw(session.compare, session, system), say(session.language, "pairs", count=count)]

        return choose

    # ---- files ----

    def _export(self, session: Session, system: str) -> tuple[str, str]:
        row = row_of(session.chat.chats[0], system)
        if row is None:
            gr.Warning(say(session.language, "nothing_to_save"))
        return "conversation.jsonl", row or ""

    def _save_pairs(self, session: Session, system: str) -> tuple[str, str]:
        pairs = session.votes.pairs()
        if not pairs:
            gr.Warning(say(session.language, "no_pairs"))
        return "preferences.jsonl", "".join(line(pair) + "\n" for pair in pairs)

    def _import(self, path: str, session: Session) -> list[Any]:
        try:
            chat, system, more = read_row(path)
        except DataError as error:
            gr.Warning(say(session.language, "not_loaded", detail=str(error)), duration=20)
            return [gr.skip()] * 3
        if more:
            gr.Info(say(session.language, "more_rows"))
        session.chat.clear()
        session.chat.chats[0].turns.extend(chat.turns)
        return [*self._draw(session.chat, session, system), system]

    # ---- languages and models ----

    async def _arrive(self, session: Session, request: gr.Request) -> list[Any]:
        session.language = self._language or preferred_language(request.headers.get("accept-language"))
        return [*self._words(session), *await self._look_for_models(session)]

    def _switch_language(self, session: Session, system: str) -> list[Any]:
        session.language = LANGUAGES[1 - LANGUAGES.index(session.language)]
        drawn = [*self._draw(session.chat, session, system), *self._draw(session.compare, session, system)]
        return [*self._words(session), *drawn]

    def _words(self, session: Session) -> list[Any]:
        texts = [
            gr.update(**{name: say(session.language, key) for name, key in keys.items()})
            for _, keys in self._layout.words
        ]
        return [*texts, say(session.language, "pairs", count=len(session.votes.pairs()))]

    def _model_outputs(self) -> list[Any]:
        layout = self._layout
        return [*layout.chat.models, *layout.compare.models, layout.sampling[0], layout.looking]

    async def _look_for_models(self, session: Session) -> list[Any]:
        try:
            models = await self._backend.models()
        except BackendError:
            models = []
        if not models:
            waiting = gr.update(choices=[(say(session.language, "no_models"), "")], value="")
            return [waiting, waiting, waiting, gr.skip(), gr.Timer(active=True)]
        names = [model.name for model in models]
        base, tuned = base_and_adapter(models)
        longest = min(LONGEST_REPLY, *(model.context - 1 for model in models if model.context), LONGEST_REPLY)
        return [
            *(gr.update(choices=names, value=value) for value in (names[0], base, tuned)),
            gr.update(maximum=longest, value=min(USUAL_REPLY, longest // 2)),
            gr.Timer(active=False),
        ]


def base_and_adapter(models: list[ServedName]) -> tuple[str, str]:
    """Return the two models that are compared at first: the base and its first adapter, else the first two."""
    base = next((model for model in models if not model.adapter), models[0])
    others = [model for model in models if model is not base]
    tuned = next((model for model in others if model.adapter), others[0] if others else base)
    return base.name, tuned.name


def _number(index: int | tuple[int, ...] | list[int]) -> int:
    return index if isinstance(index, int) else index[0]


def _plain(value: Any) -> str:
    """Return the text of an edited message, which comes as a text or as a list of parts."""
    if isinstance(value, list):
        return "".join(_plain(part) for part in value)
    if isinstance(value, dict):
        return str(value.get("text") or value.get("content") or "")
    return str(value or "")
