"""Several sites in one pass: each as if it were alone, and killed runs end the same, bit for bit."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import darkmatter.store
from darkmatter import Batch, Checkpoint, FileFormatError, InputError
from darkmatter.batch import OneSite, SitesSource, check_source
from darkmatter.decomposition import decompose_many, decompose_sites
from darkmatter.folds import FoldMoments
from darkmatter.stream import accumulate, accumulate_sites
from tests.helpers import ListSource, tiny_world
from tests.test_store import KilledError, assert_identical

FOLDS = 3
SIZE = 370


@dataclass(frozen=True)
class Sites:
    """Sites cut from list sources; dies when asked for step number `last`."""

    parts: Mapping[str, ListSource]
    last: int | None = None
    asked: list[int] = field(default_factory=list)

    @property
    def sites(self) -> tuple[str, ...]:
        return tuple(self.parts)

    @property
    def widths(self) -> Mapping[str, int]:
        return {site: part.d_model for site, part in self.parts.items()}

    @property
    def names(self) -> Mapping[str, tuple[str, ...]]:
        return {site: part.names for site, part in self.parts.items()}

    @property
    def description(self) -> Mapping[str, Any]:
        return {"name": "sites"}

    def __iter__(self) -> Iterator[Mapping[str, Batch]]:
        return self.batches_from(0)

    def batches_from(self, start: int) -> Iterator[Mapping[str, Batch]]:
        self.asked.append(start)
        steps = zip(*self.parts.values(), strict=True)
        for number, batches in enumerate(steps):
            if number == self.last:
                raise KilledError
            if number >= start:
                yield dict(zip(self.parts, batches, strict=True))


def sites(n: int = 3700) -> Sites:
    """Widths and SAEs differ; names that are no file names; a block is filled at every site."""
    parts = {
        "resid_post:2": replace(tiny_world(n, 4, n_saes=2, per_document=7), batch_size=SIZE),
        "a/b c": replace(tiny_world(n, 6, n_saes=1, per_document=7, seed=1), batch_size=SIZE),
        "a_b_c": replace(tiny_world(n, 3, n_saes=3, per_document=7, seed=2), batch_size=SIZE),
    }
    return Sites(parts)


def always(folder: Path) -> Checkpoint:
    return Checkpoint(folder, every_seconds=0.0)


def alone() -> dict[str, FoldMoments]:
    return {site: accumulate(part, folds=FOLDS) for site, part in sites().parts.items()}


def assert_all_identical(first: Mapping[str, FoldMoments], second: Mapping[str, FoldMoments]) -> None:
    assert list(first) == list(second)
    for site, moments in first.items():
        assert_identical(moments, second[site])


def test_every_site_gets_what_it_would_get_alone() -> None:
    tokens: list[int] = []
    got = accumulate_sites(sites(), folds=FOLDS, progress=tokens.append)
    assert_all_identical(got, alone())
    assert sum(tokens) == 3700
    assert all(fold.n > moments.layout.block_rows for moments in got.values() for fold in moments.folds)
    results = decompose_sites(sites(), folds=FOLDS)
    for site, part in sites().parts.items():
        assert results[site] == decompose_many(part, folds=FOLDS)


def test_one_site_is_a_source() -> None:
    source = sites()
    assert isinstance(source, SitesSource)
    assert check_source(OneSite(source, "a/b c")).n_batches == 4
    assert_identical(accumulate(OneSite(source, "a/b c"), folds=FOLDS), alone()["a/b c"])


@pytest.mark.parametrize("save", range(1, 31))
def test_killed_at_every_save_of_every_site(save: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 10 steps of 3 sites: 30 saves; dying inside one leaves sites at different steps
    real, count = darkmatter.store.write_json, 0

    def killed(path: Path, value: Mapping[str, Any]) -> None:
        nonlocal count
        count += 1
        if count == save:
            raise KilledError
        real(path, value)

    with monkeypatch.context() as patch:
        patch.setattr(darkmatter.store, "write_json", killed)
        with pytest.raises(KilledError):
            accumulate_sites(sites(), folds=FOLDS, checkpoint=always(tmp_path / "run"))
    saved = [json.loads(path.read_text())["batches"] for path in sorted((tmp_path / "run").rglob("checkpoint.json"))]
    assert sum(saved) == save - 1
    again, tokens = sites(), []
    got = accumulate_sites(again, folds=FOLDS, checkpoint=always(tmp_path / "run"), progress=tokens.append)
    assert_all_identical(got, WHOLE)
    behind = min(saved) if len(saved) == 3 else 0
    assert again.asked == [behind]  # nothing earlier is computed again
    assert sum(tokens) == 3700
    always(tmp_path / "run").clear()
    assert not (tmp_path / "run").exists()


WHOLE = alone()


def test_a_run_that_dies_in_its_source_goes_on(tmp_path: Path) -> None:
    for last in (2, 5, 5, 8):
        with pytest.raises(KilledError):
            accumulate_sites(replace(sites(), last=last), folds=FOLDS, checkpoint=always(tmp_path))
    assert_all_identical(accumulate_sites(sites(), folds=FOLDS, checkpoint=always(tmp_path)), WHOLE)


def test_saves_of_other_sites_are_refused(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        accumulate_sites(replace(sites(), last=2), folds=FOLDS, checkpoint=always(tmp_path))
    parts = dict(reversed(sites().parts.items()))
    with pytest.raises(FileFormatError, match="holds the sums of another run") as caught:
        accumulate_sites(Sites({"resid_post:2": parts["a_b_c"]}), folds=FOLDS, checkpoint=always(tmp_path))
    assert "\n" not in str(caught.value)
    # rare saves: none at all
    rare = Checkpoint(tmp_path / "rare", every_seconds=3600.0)
    accumulate_sites(sites(), folds=FOLDS, checkpoint=rare)
    assert not (tmp_path / "rare").exists()


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    with pytest.raises(KilledError):
        accumulate_sites(replace(sites(), last=2), folds=FOLDS, checkpoint=always(tmp_path))
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "checkpoint.json").write_text("{}")
    always(tmp_path).clear()
    assert [path.name for path in tmp_path.rglob("*")] == ["mine", "checkpoint.json"]


class Bad(Sites):
    """Sites whose third step is spoilt."""

    def batches_from(self, start: int) -> Iterator[Mapping[str, Batch]]:
        for number, batches in enumerate(super().batches_from(start)):
            if number == 2:
                batch = batches["a/b c"]
                x = np.array(batch.x)
                x[0, 0] = np.nan
                yield {**batches, "a/b c": replace(batch, x=x)}
            yield batches


def test_what_is_refused() -> None:
    with pytest.raises(InputError, match=r"^batch 3: a/b c: x has 1 entries that are NaN"):
        accumulate_sites(Bad(sites().parts), folds=FOLDS)
    with pytest.raises(InputError, match=r"^ListSource is not a SitesSource: it needs sites, widths, names"):
        accumulate_sites(sites().parts["a_b_c"], folds=FOLDS)  # type: ignore[arg-type]
    with pytest.raises(InputError, match=r"^sites is \(\), expected at least one site, each once"):
        accumulate_sites(Sites({}), folds=FOLDS)

    class Forgetful(Sites):
        def batches_from(self, start: int) -> Iterator[Mapping[str, Batch]]:
            for batches in super().batches_from(start):
                yield {"a_b_c": batches["a_b_c"]}

    with pytest.raises(InputError, match=r"^batch 1: found \['a_b_c'\], expected one batch for each of the sites \["):
        accumulate_sites(Forgetful(sites().parts), folds=FOLDS)

    class Narrow(Sites):
        @property
        def widths(self) -> Mapping[str, int]:
            return {"a_b_c": 3}

    with pytest.raises(InputError, match=r"^widths are given for \['a_b_c'\] and names for"):
        accumulate_sites(Narrow(sites().parts), folds=FOLDS)

    class Nameless(Sites):
        @property
        def names(self) -> Mapping[str, tuple[str, ...]]:
            return {**super().names, "a/b c": ()}

    with pytest.raises(InputError, match=r"^a/b c: names is \(\), expected a non-empty tuple"):
        accumulate_sites(Nameless(sites().parts), folds=FOLDS)
    empty = replace(sites().parts["a_b_c"], x=np.empty((0, 3)), recons={"s": np.empty((0, 3))}, names=())
    with pytest.raises(InputError, match=r"^a_b_c: the source yields no tokens"):
        accumulate_sites(Sites({"a_b_c": empty}), folds=FOLDS)
