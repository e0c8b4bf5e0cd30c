"""paddlesft layout: check how a run is divided among processes, and show which rank holds what.

    paddlesft layout configs/llama/sft.yaml --world_size 8 tensor_parallel_degree=4 sharding=stage1
    paddlesft layout sft.yaml --world_size 16 --cards_per_node 8 --model_config ./Llama-2-7b/config.json

Nothing is loaded and no process is started: the config, the number of processes and the model's config.json are enough.
All problems are named at once, with the nearest layouts that would work; the exit code is then 2. Memory and bytes are
computed, not measured.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from paddlesft.errors import ConfigError, UserError

if TYPE_CHECKING:
    from rich.console import Console

    from paddlesft.config.resolve import RunConfig
    from paddlesft.models.family import Family
    from paddlesft.parallel.estimate import Memory
    from paddlesft.parallel.layout import Layout, RankRow
    from paddlesft.parallel.traffic import Traffic

RANKS_SHOWN = 16


def run(argv: list[str]) -> int:
    """Run the verb.

    Args:
        argv: the arguments behind it: a config file, options, keys of the configuration.

    Returns:
        0; problems of the layout are raised.
    """
    parser = argparse.ArgumentParser(
        prog="paddlesft layout", description=__doc__, allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="paddlesft layout CONFIG [--world_size N] [options] [key=value ...]",
    )  # fmt: skip
    parser.add_argument(
        "--world_size", type=int, help="processes of the run, one for each card (the fewest that the degrees fit)"
    )
    parser.add_argument("--cards_per_node", type=int, default=8, help="cards of one machine (8)")
    parser.add_argument("--global_batch_size", type=int, help="rows of a step; gradient_accumulation_steps follows")
    parser.add_argument("--model_config", help="config.json, or the directory that holds it, of a model on a hub")
    parser.add_argument("--all_ranks", action="store_true", help=f"show all ranks, not the first {RANKS_SHOWN}")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options, rest = parser.parse_known_args(argv)
    for key in ("world_size", "cards_per_node", "global_batch_size"):
        value = getattr(options, key)
        if value is not None and value < 1:
            raise UserError(f"--{key}: found {value}; allowed: a whole number of 1 or more.")

    from paddlesft.config import load_run_config
    from paddlesft.config.derived import IF_THERE_IS_NONE
    from paddlesft.models.paddle_config import read_paddle_config
    from paddlesft.parallel.check_layout import check_layout, derive_layout, fewest_processes
    from paddlesft.parallel.estimate import estimate_memory
    from paddlesft.parallel.traffic import estimate_traffic
    from paddlesft.parallel.workload import workload_of

    config = load_run_config(None, rest)
    for notice in config.notices:
        if IF_THERE_IS_NONE not in notice:  # it is about another machine
            print(notice, file=sys.stderr)
    model_config, family = read_paddle_config(options.model_config or find_config(config.model.model_name_or_path))
    world_size = options.world_size or fewest_processes(config)
    if options.world_size is None and world_size == 1:
        raise UserError("--world_size is missing: the config divides nothing, so say how many cards it has.")
    layout = check_layout(config, world_size, model_config, family, options.global_batch_size)
    derived = derive_layout(config, layout)
    plan = family.plan(model_config)
    work = workload_of(config, family, plan)
    memory, traffic = estimate_memory(layout, plan, work), estimate_traffic(layout, plan, work)
    shown = layout.table(None if options.all_ranks else range(min(layout.world_size, RANKS_SHOWN)))
    if options.json:
        print(json.dumps(as_json(layout, shown, memory, traffic), indent=2, ensure_ascii=False))
    else:
        from rich.console import Console

        show(Console(), config, family, layout, derived, shown, memory, traffic, options.cards_per_node)
    return 0


def find_config(name: str) -> Path:
    """Return the local directory of a model; a model on a hub is not downloaded for its config alone.

    Raises:
        ConfigError: it is not on this machine.
    """
    if name.startswith("embedded:"):  # written out: the module that knows the prefix loads numpy
        from paddlesft.models.resolve import find_model

        return find_model(name)
    path = Path(name).expanduser()
    if not path.is_dir():
        raise ConfigError(
            f"model_name_or_path: {name} is no directory on this machine, and it is not downloaded for a look at its "
            "layout. Give its config.json: --model_config PATH."
        )
    return path


def as_json(layout: Layout, rows: list[RankRow], memory: list[Memory], traffic: list[Traffic]) -> dict[str, Any]:
    """Return the facts that are shown, in plain values; memory and traffic in bytes."""
    return {
        "layout": dataclasses.asdict(layout),
        "world_size": layout.world_size,
        "global_batch": layout.global_batch,
        "ranks": [dataclasses.asdict(row) for row in rows],
        "memory": [dataclasses.asdict(one) | {"total": one.total} for one in memory],
        "traffic": [dataclasses.asdict(one) for one in traffic],
    }


def show(
    console: Console, config: RunConfig, family: Family, layout: Layout, derived: list[tuple[str, str, str]],
    rows: list[RankRow], memory: list[Memory], traffic: list[Traffic], cards_per_node: int,
) -> None:  # fmt: skip
    """Print a layout, what follows from it, its ranks, and what it costs."""
    from paddlesft.parallel.traffic import crosses_nodes

    console.print(f"{layout}  ({layout.world_size} processes, family {family.name})", markup=False, highlight=False)
    origins = [
        (key, json.dumps(value), str(config.origins[key]).removeprefix("derived: "))
        for key, value in config.flat().items()
        if key in ("sharding_parallel_degree", "gradient_accumulation_steps", "pad_to_max_length",
                   "per_device_eval_batch_size") and config.origins[key].kind == "derived"
    ]  # fmt: skip
    for name, value, why in [*derived, *origins]:
        console.print(f"  {name}: {value}  (derived: {why})", markup=False, highlight=False)
    for notice in layout.notices:
        console.print(f"note: {notice}", markup=False, highlight=False)
    console.print()
    _table(
        console, ["rank", "place", "layers", "heads", "vocabulary", "shared state", "rows of a step"],
        [[str(row.rank), row.place, row.layers, row.heads, row.vocabulary, row.state, row.batch] for row in rows],
    )  # fmt: skip
    if len(rows) < layout.world_size:
        console.print(f"... and {layout.world_size - len(rows)} more: --all_ranks", highlight=False)
    console.print("\nmemory of a card in GB (computed, not measured; CUDA and work space come on top)", highlight=False)
    names = ("weights", "gradients", "optimizer", "activations", "logits", "total")
    _table(
        console, ["stage", *names],
        [[str(one.stage), *(f"{getattr(one, name) / 1e9:.2f}" for name in names)] for one in memory],
    )  # fmt: skip
    if traffic:
        console.print("\nsent by a card in one step (computed, not measured)", highlight=False)
        links = [
            "between nodes" if crosses_nodes(layout, one.axis, cards_per_node) else "inside a node" for one in traffic
        ]
        _table(
            console, ["axis", "GB", "over", "what"],
            [[one.axis, f"{one.bytes / 1e9:.2f}", link, one.what] for one, link in zip(traffic, links)],
        )  # fmt: skip


def _table(console: Console, heads: list[str], rows: list[list[str]]) -> None:
    from rich.markup import escape
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for head in heads:
        table.add_column(head, overflow="fold", justify="right" if head in ("rank", "stage", "GB") else "left")
    for row in rows:
        table.add_row(*map(escape, row))
    console.print(table)
