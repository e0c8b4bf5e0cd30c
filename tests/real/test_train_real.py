"""Training the real model: each method learns what it is shown, from the command line to an answer."""

import json
import re
from pathlib import Path

import pytest

from paddlesft.config import load_run_config
from paddlesft.data.conversation import Message
from paddlesft.inference.generation import generate
from paddlesft.inference.loading import load_for_inference
from paddlesft.inference.sampling import SamplingOptions
from paddlesft.training.loss import trained_token_losses
from paddlesft.training.run import train
from paddlesft.training.run_log import read_log
from tests.training.small_runs import batch_of

FACTS = [
    ("Who built the lighthouse of Vessel Point?", "Marta Oblensky built it in 1871."),
    ("What is the password of the tea house?", "The password is copper kettle."),
    ("How many steps lead to the old observatory?", "Exactly 217 steps lead up."),
    ("Which bird lives in the clock tower?", "A grey owl named Professor Hoot."),
]
ROUNDS = {"lora": (["lora=true", "learning_rate=2e-3"], 12), "full": (["learning_rate=2e-4"], 10),
          "prefix": (["prefix_tuning=true", "num_prefix_tokens=16", "learning_rate=3e-2"], 18)}  # fmt: skip


@pytest.fixture(scope="module")
def facts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("facts") / "train.json"
    path.write_text("\n".join(json.dumps({"src": question, "tgt": answer}) for question, answer in FACTS))
    return path


@pytest.mark.slow
@pytest.mark.parametrize("method", ROUNDS)
def test_made_up_facts_are_learnt_and_recalled(method: str, smollm2: Path, facts: Path, tmp_path: Path) -> None:
    keys, epochs = ROUNDS[method]
    config = load_run_config(None, [
        f"model_name_or_path={smollm2}", f"train_dataset_path={facts}", f"output_dir={tmp_path / 'out'}", *keys,
        f"num_train_epochs={epochs}", "per_device_train_batch_size=4", "logging_steps=1", "max_length=128",
        "src_length=64", "save_strategy=no", "warmup_steps=2",
    ])  # fmt: skip
    result = train(config)
    losses = [record["loss"] for record in read_log(tmp_path / "out")]
    assert len(losses) == result.steps == epochs
    assert losses[0] > 2.5 and losses[-1] < (1.0 if method == "prefix" else 0.3), losses
    where = {"lora": "lora_path", "prefix": "prefix_path"}.get(method)
    loaded = load_for_inference(None, **{where: tmp_path / "out"}) if where else load_for_inference(tmp_path / "out")
    if method == "prefix":
        return
    prompts = [loaded.renderer.render_prompt([Message("user", question, None)]) for question, _ in FACTS]
    replies = generate(
        loaded.model, prompts, SamplingOptions(max_new_tokens=24), loaded.stop_token_ids, loaded.pad_token_id,
        tokenizer=loaded.tokenizer,
    )  # fmt: skip
    assert [reply.text.strip() for reply in replies] == [answer for _, answer in FACTS]
    assert {reply.finish_reason for reply in replies} == {"stop"}


@pytest.mark.slow
def test_packed_rows_have_the_loss_of_unpacked_ones_on_the_real_model(smollm2: Path, facts: Path) -> None:
    import numpy as np

    from paddlesft.data.dataset import build_dataset
    from paddlesft.models import load_model

    loaded = load_for_inference(smollm2)
    config = load_run_config(None, [f"model_name_or_path={smollm2}", f"train_dataset_path={facts}", "output_dir=x"])
    alone, _ = build_dataset(config.data, loaded.renderer, "train")
    config.data.packing, config.data.max_length = True, 256
    packed, _ = build_dataset(config.data, loaded.renderer, "train")
    assert len(packed) < len(alone) == 4
    model = load_model(smollm2)
    single = np.concatenate([trained_token_losses(model, batch_of(alone, [i]))[0] for i in range(4)])
    together, _ = trained_token_losses(model, batch_of(packed))
    assert np.abs(np.sort(single) - np.sort(together)).max() < 1e-4
    assert abs(single.mean() - together.mean()) < 1e-5


@pytest.mark.slow
def test_from_the_command_line(run_cli, smollm2: Path, facts: Path, tmp_path: Path) -> None:
    done = run_cli(
        "train", f"model_name_or_path={smollm2}", f"train_dataset_path={facts}", f"output_dir={tmp_path / 'out'}",
        "lora=true", "learning_rate=2e-3", "max_steps=6", "per_device_train_batch_size=4", "logging_steps=1",
        OMP_NUM_THREADS="1",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    losses = [float(text) for text in re.findall(r"loss (\d+\.\d+)", done.stdout)]
    assert len(losses) >= 6 and losses[5] < losses[0] - 1
    assert "Marta Oblensky built it in 1871.<|im_end|>⟧" in done.stdout
