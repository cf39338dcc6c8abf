"""Training that is killed and resumed: the same bits, and clear refusals."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from torch import Tensor

from darkmatter.errors import FileFormatError, InputError
from darkmatter.sae import Architecture, Restartable, TrainCheckpoint, TrainConfig, TrainedSAE, train_sae
from darkmatter.sae.stream import skip

KINDS: tuple[Architecture, ...] = get_args(Architecture)


def data() -> Tensor:
    g = torch.Generator().manual_seed(0)
    codes = torch.rand(4096, 40, generator=g) * (torch.rand(4096, 40, generator=g) < 0.1)
    return codes @ torch.randn(40, 16, generator=g) + 1


def configure(kind: Architecture = "topk", **fields: Any) -> TrainConfig:
    values: dict[str, Any] = {"d_sae": 24, "n_tokens": 4096, "batch_size": 128, "report_every": 5, "dead_after": 640}
    values |= {"k": 3} if kind in {"topk", "batchtopk", "matryoshka"} else {"l0": 3.0}
    return TrainConfig(architecture=kind, **(values | fields))


class KilledError(Exception):
    """Stands for the end of the process."""


@dataclass
class Stream:
    """A stream that dies after some tokens, and can begin anywhere."""

    x: Tensor
    dies_at: int | None = None
    starts: list[int] = field(default_factory=list)

    def __iter__(self) -> Iterator[Tensor]:
        return self.starting_at(0)

    def starting_at(self, token: int) -> Iterator[Tensor]:
        self.starts.append(token)
        for start in range(token, len(self.x), 100):
            if self.dies_at is not None and start >= self.dies_at:
                raise KilledError
            yield self.x[start : start + 100]


def same(a: TrainedSAE, b: TrainedSAE) -> bool:
    facts = [(t.sae.fingerprint(), t.history, t.n_tokens, t.l0, t.dead_share) for t in (a, b)]
    return facts[0] == facts[1]


def kill(folder: Path, config: TrainConfig, *, after: int = 2200) -> TrainCheckpoint:
    """Train until the stream dies, saving after every step."""
    with pytest.raises(KilledError):
        train_sae(Stream(data(), dies_at=after), config, checkpoint=TrainCheckpoint(folder, every_seconds=0.0))
    return TrainCheckpoint(folder)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("restartable", [True, False])
def test_killed_and_resumed_equals_uninterrupted(kind: Architecture, restartable: bool, tmp_path: Path) -> None:
    config = configure(kind)
    whole = train_sae([data()], config)
    checkpoint = kill(tmp_path, config)
    stream = Stream(data())
    resumed = train_sae(stream if restartable else [data()], config, checkpoint=checkpoint)
    assert same(resumed, whole)
    assert stream.starts == ([17 * 128] if restartable else [])  # nothing seen is generated again
    assert not same(resumed, train_sae([data()], replace(config, seed=1)))


def test_every_point_of_death_gives_the_same_bits(tmp_path: Path) -> None:
    config = configure("batchtopk")
    whole = train_sae([data()], config)
    for after in range(2048, 3800, 400):
        folder = tmp_path / str(after)
        assert same(train_sae(Stream(data()), config, checkpoint=kill(folder, config, after=after)), whole)


def test_the_state_on_disk_is_what_makes_it_so(tmp_path: Path) -> None:
    """The check above can fail: each part of the state that is lost changes the result."""
    config = configure("jumprelu", dead_after=128)
    whole = train_sae([data()], config)
    kill(tmp_path, config)
    index = json.loads((tmp_path / "training.json").read_text())
    for name in ("price", "excess"):
        numbers = index["numbers"] | {name: 1.0}
        digest = hashlib.sha256(json.dumps(numbers, sort_keys=True).encode()).hexdigest()
        altered = index | {"numbers": numbers, "digest": digest}
        (tmp_path / "training.json").write_text(json.dumps(altered))
        assert not same(train_sae([data()], config, checkpoint=TrainCheckpoint(tmp_path)), whole)
    (tmp_path / "training.json").write_text(json.dumps(index))
    assert same(train_sae([data()], config, checkpoint=TrainCheckpoint(tmp_path)), whole)
    assert not same(train_sae([data().roll(1, 0)], config, checkpoint=TrainCheckpoint(tmp_path)), whole)


def test_a_finished_run_keeps_its_save_until_it_is_cleared(tmp_path: Path) -> None:
    folder = tmp_path / "training"
    checkpoint = TrainCheckpoint(folder, every_seconds=0.0)
    first = train_sae([data()], configure(), checkpoint=checkpoint)
    assert sorted(path.name for path in folder.iterdir()) == ["training-32.safetensors", "training.json"]
    stream = Stream(data())
    assert same(first, train_sae(stream, configure(), checkpoint=TrainCheckpoint(folder)))
    assert stream.starts == []  # nothing is left to ask for
    checkpoint.clear()
    assert not folder.exists()
    checkpoint.clear()


def test_saving_waits_its_time(tmp_path: Path) -> None:
    train_sae([data()], configure(), checkpoint=TrainCheckpoint(tmp_path / "training", every_seconds=1e6))
    assert not (tmp_path / "training").exists()


def test_a_save_of_another_run_is_refused(tmp_path: Path) -> None:
    kill(tmp_path, configure())
    with pytest.raises(InputError, match=r"holds a run with k = 3, expected 4: delete .* or choose another folder"):
        train_sae([data()], configure(k=4), checkpoint=TrainCheckpoint(tmp_path))
    with pytest.raises(InputError, match=r"holds a run with source = \{\}, expected \{'world': 1\}"):
        train_sae([data()], configure(), checkpoint=TrainCheckpoint(tmp_path, source={"world": 1}))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ({"format": "other"}, "is not the index of a training run of version 1: delete"),
        ({"version": 2}, "is not the index"),
        ({"tensors": "../training-1.safetensors"}, "is damaged: delete"),
        ({"numbers": None}, "is damaged"),
        ({"numbers": {"n_tokens": 128}}, "is damaged"),
        ({"tensors": "training-99.safetensors"}, "does not exist, expected a saved training run; delete"),
    ],
)
def test_a_damaged_save_is_refused(damage: dict[str, Any], message: str, tmp_path: Path) -> None:
    kill(tmp_path, configure())
    index = json.loads((tmp_path / "training.json").read_text())
    (tmp_path / "training.json").write_text(json.dumps(index | damage))
    with pytest.raises(FileFormatError, match=message):
        train_sae([data()], configure(), checkpoint=TrainCheckpoint(tmp_path))


def test_skipping_tokens() -> None:
    x = torch.arange(20.0).reshape(10, 2)
    for n in range(12):
        for stream in ([x[:3], x[3:3], x[3:]], Stream(x)):
            rest = list(skip(stream, n))
            assert torch.equal(torch.cat([x[:0], *[torch.as_tensor(part) for part in rest]]), x[n:])
    assert isinstance(Stream(x), Restartable)
    assert not isinstance([x], Restartable)


def test_messages_count_tokens_from_the_start_of_the_stream(tmp_path: Path) -> None:
    checkpoint = kill(tmp_path, configure())
    bad = data()
    bad[3000, 2] = torch.nan
    with pytest.raises(InputError, match="token 3000 of the stream"):
        train_sae(Stream(bad), configure(), checkpoint=checkpoint)
