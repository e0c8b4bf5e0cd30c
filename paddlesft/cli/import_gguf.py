"""paddlesft import-gguf: turn a GGUF file into a model directory.

    paddlesft import-gguf model.gguf models/mine
    paddlesft import-gguf embedded:smollm2 models/smollm2

FILE is a GGUF file of the architecture llama (Mistral included), qwen2, gemma, gpt2 or bloom, or embedded:smollm2 for
the model that comes with the [demo] extra. DIR is created, complete or not at all; FILE is only read.
"""

from __future__ import annotations

import shlex
import time
from pathlib import Path

from paddlesft.cli.verb_arguments import read_arguments, show_help, split_positionals, wants_help

USAGE = "usage: paddlesft import-gguf FILE DIR [--overwrite] [--dtype TYPE]"


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it.

    Returns:
        0; errors are raised.
    """
    from paddlesft.config.verbs import ImportGgufConfig

    if wants_help(argv):
        return show_help(f"{__doc__}\n{USAGE}\n", "import_gguf", ImportGgufConfig)
    (source, target), options = split_positionals(argv, ("FILE", "DIR"), USAGE)
    config = read_arguments("import_gguf", ImportGgufConfig, options)

    from paddlesft.models.embedded import PREFIX, embedded_gguf
    from paddlesft.models.gguf import import_gguf

    file = embedded_gguf(source.removeprefix(PREFIX)) if source.startswith(PREFIX) else Path(source)
    began = time.perf_counter()
    directory = import_gguf(file, target, overwrite=config.overwrite, dtype=config.dtype)
    _show(file, directory, time.perf_counter() - began)
    return 0


def _show(file: Path, directory: Path, seconds: float) -> None:
    from rich.console import Console

    from paddlesft.models.directory import read_config
    from paddlesft.models.families import family_of
    from paddlesft.models.provenance import read_provenance

    console = Console(highlight=False, soft_wrap=True)
    config, facts = read_config(directory), read_provenance(directory)
    family = family_of(config)
    heads, context = config[family.num_heads_key], config.get(family.context_key)
    shared = config.get(family.num_kv_heads_key, heads)
    title = facts["source"].get("title") or file.stem
    console.print(f"Imported {title} in {seconds:.1f} s", markup=False)
    console.print(f"  from        {file} ({', '.join(facts['source']['stored_types'])})", markup=False)
    console.print(
        f"  model       {config[family.num_layers_key]} layers, hidden {config['hidden_size']}, "
        f"{heads} heads{f' ({shared} key/value)' if shared != heads else ''}, vocabulary {config['vocab_size']}"
        f"{f', context {context}' if context else ''}"
    )
    console.print(f"  stored as   {facts['dtype']}")
    console.print(f"  fingerprint {facts['fingerprint']}")
    if facts["source"].get("license"):
        console.print(f"  license     {facts['source']['license']}", markup=False)
    console.print(f"Directory: {directory}", markup=False)
    console.print(f"Next: paddlesft chat --model_name_or_path {shlex.quote(str(directory))}", markup=False)
