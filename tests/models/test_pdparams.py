"""``.pdparams`` files: read array by array, as paddle writes them; written as paddle reads them."""

from __future__ import annotations

import pickle
from pathlib import Path

import ml_dtypes
import numpy as np
import paddle
import pytest

from paddlesft.errors import ModelDirectoryError
from paddlesft.models.pdparams import PARTS, pickled_arrays, walk_pickle, write_pdparams


def arrays(path: Path) -> dict[str, np.ndarray]:
    found = {name: (dtype, shape, load()) for name, dtype, shape, load in pickled_arrays(path)}
    assert all(array.dtype == dtype and array.shape == shape for dtype, shape, array in found.values())
    return {name: array for name, (_, _, array) in found.items()}


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_what_paddle_writes(protocol: int, tmp_path: Path) -> None:
    content = {
        "large": paddle.randn([300, 400]), "small": paddle.randn([3]), "none": paddle.zeros([0, 3]),
        "one": paddle.to_tensor(3.0), "half": paddle.randn([64, 65]).astype("bfloat16"), "whole": paddle.arange(900),
    }  # fmt: skip
    extra = {"array": np.random.rand(50, 60), "columns": np.asfortranarray(np.random.rand(50, 60)), "words": ["a", 1]}
    paddle.save({**content, **extra}, str(tmp_path / "x.pdparams"), protocol=protocol)
    found = arrays(tmp_path / "x.pdparams")
    assert list(found) == [*content, "array", "columns"]
    for name, value in content.items():
        assert found[name].tobytes() == value.numpy().tobytes(), name
    assert found["half"].dtype == ml_dtypes.bfloat16
    np.testing.assert_array_equal(found["columns"], extra["columns"])


def test_layers_optimizers_and_cut_arrays(tmp_path: Path) -> None:
    layer = paddle.nn.Linear(40, 50)
    adam = paddle.optimizer.AdamW(paddle.optimizer.lr.NoamDecay(10, 10), parameters=layer.parameters())
    layer(paddle.randn([3, 40])).sum().backward()
    adam.step()
    paddle.save(layer.state_dict(), str(tmp_path / "layer.pdparams"))
    paddle.save(adam.state_dict(), str(tmp_path / "adam.pdopt"))
    np.testing.assert_array_equal(arrays(tmp_path / "layer.pdparams")["weight"], layer.weight.numpy())
    assert walk_pickle(tmp_path / "adam.pdopt")["LR_Scheduler"]["last_epoch"] == 0
    cut = {"a@@.0": np.arange(4.0), "a@@.1": np.arange(4.0, 6.0), "b": np.ones(2)}
    cut[PARTS] = {"a": {"OriginShape": (2, 3), "slices": ["a@@.0", "a@@.1"]}}
    (tmp_path / "cut.pdparams").write_bytes(pickle.dumps(cut, protocol=2))
    found = arrays(tmp_path / "cut.pdparams")
    assert set(found) == {"a", "b"}
    np.testing.assert_array_equal(found["a"], np.arange(6.0).reshape(2, 3))


def test_what_is_written(tmp_path: Path) -> None:
    rows = {"f": np.random.rand(70, 80).astype(np.float32), "b": np.ones((40, 30), ml_dtypes.bfloat16)}
    rows["i"] = np.arange(3)
    write_pdparams(tmp_path / "x.pdparams", {name: lambda array=array: array for name, array in rows.items()})
    by_paddle = paddle.load(str(tmp_path / "x.pdparams"))
    assert by_paddle["b"].dtype == paddle.bfloat16
    for name, array in rows.items():
        assert by_paddle[name].numpy().tobytes() == array.tobytes() == arrays(tmp_path / "x.pdparams")[name].tobytes()


class Harm:
    def __reduce__(self) -> tuple:
        return print, ("the code of a file must not run",)


def test_what_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "x.pdparams"
    paddle.save({"a": paddle.randn([300, 400])}, str(file))
    whole = file.read_bytes()
    for content, reason in (
        (pickle.dumps({"a": Harm()}), "it holds a builtins.print, which is no array"),
        (whole[:5000], "it ends after 5000 bytes and promises"),
        (b"nonsense", ""),
        (None, "No such file"),
    ):
        file.unlink() if content is None else file.write_bytes(content)
        with pytest.raises(ModelDirectoryError, match=r"damaged or incomplete \(.*\). Copy it again.") as caught:
            arrays(file)
        assert reason in str(caught.value)
    assert "must not run" not in capsys.readouterr().out
    file.write_bytes(pickle.dumps([1, 2]))
    with pytest.raises(ModelDirectoryError, match=r"x.pdparams holds a list instead of weights by name."):
        arrays(file)
