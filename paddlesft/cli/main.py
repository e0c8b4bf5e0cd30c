"""``paddlesft VERB ...``: find the verb, run it, turn errors into messages and exit codes."""

from __future__ import annotations

import contextlib
import difflib
import errno
import importlib
import logging
import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from paddlesft import __version__
from paddlesft.errors import FileProblem, PaddleSFTError, UserError

# verb -> (module with run(argv) -> exit code, one line of help); modules are imported when their verb is called
VERBS = {
    "demo": ("paddlesft.cli.demo", "fine-tune the embedded model on this machine and show the difference"),
    "doctor": ("paddlesft.cli.doctor", "check versions, device, memory and optional parts, and say what to do"),
    "models": ("paddlesft.cli.models", "show what each model family can do, or everything about one"),
    "train": ("paddlesft.cli.train", "fine-tune a model from one config file: LoRA, Prefix-Tuning or full"),
    "layout": ("paddlesft.cli.layout", "check how a run is divided among cards, and what each of them holds"),
    "rehearse": ("paddlesft.cli.rehearse", "run a config for many cards small, on CPU processes, against one process"),
    "check-data": ("paddlesft.cli.check_data", "check data files and show what would be trained"),
    "merge-lora": ("paddlesft.cli.merge_lora", "merge a LoRA adapter into its base model and prove the result"),
    "merge-shards": ("paddlesft.cli.merge_shards", "merge the files of a parallel run into one model or adapter"),
    "split-shards": ("paddlesft.cli.split_shards", "split a model or adapter into one file per card"),
    "quantize": ("paddlesft.cli.quantize", "store a model in 8 or 4 bits, and measure what that costs"),
    "dequantize": ("paddlesft.cli.dequantize", "write the float weights that a quantized directory stands for"),
    "predict": ("paddlesft.cli.predict", "answer the rows of a data file with a model"),
    "chat": ("paddlesft.cli.chat", "talk to a model in the terminal"),
    "serve": ("paddlesft.cli.serve", "answer requests over HTTP, as OpenAI and PaddleNLP do, with a chat page"),
    "chat-page": ("paddlesft.cli.chat_page", "show a page for talking to the models of a server"),
    "export": ("paddlesft.cli.export", "write a model as a static graph, or in another tool's format, and prove it"),
    "benchmark": ("paddlesft.cli.benchmark", "measure how fast a model or an exported graph is on this machine"),
    "import-gguf": ("paddlesft.cli.import_gguf", "turn a GGUF file into a model directory"),
    "import-peft": ("paddlesft.cli.import_peft", "turn a LoRA adapter of Hugging Face PEFT into one that is read here"),
    "export-hf": ("paddlesft.cli.export_hf", "write a model directory in Hugging Face's layout"),
}


DISK_FULL = (errno.ENOSPC, errno.EDQUOT)  # these name no file


def usage() -> str:
    """Return the text of ``paddlesft --help``."""
    width = max(len(verb) for verb in VERBS)
    lines = [f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items()]
    return (
        f"PaddleSFT {__version__}: from a base language model to a fine-tuned one, on PaddlePaddle.\n\n"
        "usage: paddlesft VERB [options]\n\nverbs:\n" + "\n".join(lines) + "\n\n"
        "paddlesft VERB --help shows what a verb takes. First time here? Run: paddlesft demo\n"
    )


def program() -> str:
    """Return how this command can be called from the current directory: by name, else by path."""
    script = Path(sys.executable).with_name("paddlesft")
    if shutil.which("paddlesft") == str(script):
        return "paddlesft"
    if not script.is_file():
        return f"{sys.executable} -m paddlesft"
    return os.path.relpath(script) if script.is_relative_to(Path.cwd()) else str(script)


@contextlib.contextmanager
def plain_log() -> Iterator[None]:
    """Show the library's warnings as plain lines on stderr; paddle would put time and source line before them."""
    log = logging.getLogger("paddlesft")
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("Note: %(message)s"))
    handler.setLevel(logging.WARNING)
    propagated, log.propagate = log.propagate, False
    log.addHandler(handler)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.propagate = propagated


def run_verb(verb: str, argv: Sequence[str]) -> int:
    """Run one verb and return its exit code.

    Args:
        verb: a key of ``VERBS``.
        argv: the arguments behind the verb.

    Returns:
        0 for success, 2 for bad input (message on stderr, no traceback), 1 for other failures foreseen by the package,
        130 when interrupted, 141 when the reader of the output has gone.
    """
    try:
        with plain_log():
            return importlib.import_module(VERBS[verb][0]).run(list(argv)) or 0
    except PaddleSFTError as error:
        print(f"paddlesft {verb}: {error}", file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        print(f"paddlesft {verb}: interrupted", file=sys.stderr)
        return 130
    except ImportError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):  # which paddle's core turns into an error of its own
            raise
        print(f"paddlesft {verb}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # the reader (`| head`) has gone; point stdout elsewhere so that the interpreter's last flush is silent too
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except OSError as error:
        # a path that the system refuses (no space, no permission, a file in the way); anything else is a fault of ours
        if error.filename is None and error.errno not in DISK_FULL:
            raise
        print(f"paddlesft {verb}: {FileProblem(error)}", file=sys.stderr)
        return FileProblem.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run the ``paddlesft`` command.

    Args:
        argv: arguments without the program's name; those of the process when None.

    Returns:
        The exit code.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(usage(), end="")
        return 0
    if argv[0] in ("-V", "--version"):
        print(f"paddlesft {__version__}")
        return 0
    if argv[0] not in VERBS:
        near = difflib.get_close_matches(argv[0], VERBS, n=1)
        hint = f" Did you mean {near[0]!r}?" if near else ""
        error = UserError(f"unknown verb {argv[0]!r}.{hint} Allowed: {', '.join(VERBS)}.")
        print(f"paddlesft: {error}", file=sys.stderr)
        return error.exit_code
    return run_verb(argv[0], argv[1:])
