"""The layout of a run: checked before a model is loaded, and written into the run's config."""

from __future__ import annotations

from typing import TYPE_CHECKING

from paddlesft.config.derived import number_of_processes
from paddlesft.models.paddle_config import read_paddle_config
from paddlesft.models.resolve import find_model
from paddlesft.parallel.check_layout import check_layout, derive_layout
from paddlesft.parallel.layout import Layout

if TYPE_CHECKING:
    from paddlesft.config import RunConfig
    from paddlesft.training.events import Observer

DEGREES = ("tensor_parallel_degree", "pipeline_parallel_degree", "sharding_parallel_degree")


def run_layout(run_config: RunConfig, observer: Observer) -> Layout:
    """Check how a run is divided among the processes that were started, and derive what follows.

    Args:
        run_config: the resolved config, whose model is named; changed.
        observer: told what is worth knowing about the layout.

    Returns:
        The layout; of a single process where nothing is divided.

    Raises:
        ConfigError: all problems of the layout, with the nearest layouts that would work.
        ModelDirectoryError: the model's config cannot be used.
    """
    training, world = run_config.training, number_of_processes()
    if world == 1 and all(getattr(training, key) <= 1 for key in DEGREES):
        if training.sharding:
            run_config.derive("sharding", "", "one process has nothing to share")
        return Layout(
            micro_batch=training.per_device_train_batch_size, accumulation=training.gradient_accumulation_steps
        )
    model_config, family = read_paddle_config(find_model(run_config.model.model_name_or_path))
    layout = check_layout(run_config, world, model_config, family)
    derive_layout(run_config, layout)
    for notice in layout.notices:
        observer.message(notice)
    return layout
