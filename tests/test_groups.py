"""Groups of SAEs: plans that fit the memory, results of one pass, finished groups that are not done again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from darkmatter import Batch, Decomposition, FileFormatError, InputError, decompose_many
from darkmatter.groups import clear_groups, decompose_groups, pass_bytes, plan_groups
from tests.helpers import ListSource, tiny_world
from tests.test_decomposition import assert_same
from tests.test_store import Dying, KilledError

D, FOLDS = 6, 4
WORLD = replace(tiny_world(2000, D, n_saes=7), description={"name": "seven"})
TWO = pass_bytes(D, 2, FOLDS)


@dataclass
class Maker:
    """Makes sources of chosen SAEs and keeps count; the source of group `dying` dies at batch `last`."""

    world: ListSource = WORLD
    dying: int = -1
    last: int = 0
    asked: list[tuple[str, ...]] = field(default_factory=list)

    def __call__(self, names: tuple[str, ...]) -> Any:
        self.asked.append(names)
        counted = Counted(self.world.x, {n: self.world.recons[n] for n in names}, self.world.groups, description={})
        counted.read.clear()
        source = replace(counted, description=self.world.description)
        return Dying(source, self.last) if len(self.asked) - 1 == self.dying else source


class Counted(ListSource):
    """Says which SAEs were read."""

    read: list[tuple[str, ...]] = []  # noqa: RUF012 - shared on purpose

    def __iter__(self) -> Iterator[Batch]:
        self.read.append(self.names)
        return super().__iter__()


def run(maker: Maker, folder: Path, *, memory: int = TWO, **options: Any) -> dict[str, Decomposition]:
    return decompose_groups(maker, maker.world.names, d_model=D, memory=memory, folder=folder, folds=FOLDS, **options)


@given(st.integers(1, 70), st.integers(1, 4000), st.integers(2, 30), st.floats(1, 40))
def test_a_plan_fits_and_is_as_short_as_can_be(n_saes: int, d: int, folds: int, times: float) -> None:
    memory = int(pass_bytes(d, 1, folds) * times)
    names = tuple(f"s{i}" for i in range(n_saes))
    plan = plan_groups(d, names, folds, memory)
    assert tuple(name for group in plan for name in group) == names
    sizes = [len(group) for group in plan]
    assert max(sizes) - min(sizes) <= 1
    assert pass_bytes(d, max(sizes), folds) <= memory
    if len(plan) > 1:  # fewer groups would not do
        assert pass_bytes(d, -(-n_saes // (len(plan) - 1)), folds) > memory


def test_the_memory_of_the_layers_of_gemma() -> None:
    # 8 · 20 · 3584 · w bytes of sums, w = 2 · 3584 + 3, and 11 arrays of d × w
    assert pass_bytes(3584, 1, 20) == 8 * 7171 * (20 * 3584 + 11 * 3584)
    assert [len(group) for group in plan_groups(3584, tuple(map(str, range(60))), 20, 40 * 10**9)] == [10] * 6
    # a narrow layer with many folds: waiting rows take more than the solve
    assert pass_bytes(16, 1, 20) == 8 * 35 * (20 * 16 + 20 * 1025)


def test_what_does_not_fit_is_refused() -> None:
    match = r"^the memory is 1 GB, but the sums of one SAE of width 3584 in 20 folds take 6.37 GB: give more memory, or"
    with pytest.raises(InputError, match=match):
        plan_groups(3584, ("a", "b"), 20, 10**9)
    with pytest.raises(InputError, match=r"^names is \(\), expected at least one SAE, each once"):
        plan_groups(4, (), 20, 10**9)
    with pytest.raises(InputError, match="each once"):
        plan_groups(4, ("a", "a"), 20, 10**9)
    with pytest.raises(InputError, match="folds is 1, expected at least 2"):
        plan_groups(4, ("a",), 1, 10**9)


def test_groups_give_what_one_pass_gives(tmp_path: Path) -> None:
    maker, tokens = Maker(), []
    got = run(maker, tmp_path / "g", progress=tokens.append)
    assert maker.asked == [("sae0",), ("sae1", "sae2"), ("sae3", "sae4"), ("sae5", "sae6")]
    assert sum(tokens) == 4 * 2000
    whole = decompose_many(WORLD, folds=FOLDS)
    assert list(got) == list(whole)
    for name, result in got.items():
        group = next(group for group in maker.asked if name in group)
        assert set(result.replicates) == set(group) - {name}
        want = replace(whole[name], replicates={o: whole[name].replicates[o] for o in result.replicates})
        assert_same(result, want, 1e-11 * result.condition)
        assert result.linear_map is not None and want.linear_map is not None
        torch.testing.assert_close(result.linear_map.weight, want.linear_map.weight, rtol=0, atol=1e-11)
        torch.testing.assert_close(result.linear_map.bias, want.linear_map.bias, rtol=0, atol=1e-11)
        assert result.warnings[-1].startswith(f"{', '.join(group)}: compared with each other (T8) but not with sae")
    linear, nonlinear = got["sae3"].split(WORLD.x[:9], WORLD.recons["sae3"][:9])
    assert linear.shape == nonlinear.shape == (9, D)


def test_all_in_one_group_say_nothing_of_others(tmp_path: Path) -> None:
    maker = Maker()
    got = run(maker, tmp_path, memory=10**9)
    assert maker.asked == [WORLD.names]
    assert all("other groups" not in warning for result in got.values() for warning in result.warnings)
    assert all(len(result.replicates) == 6 for result in got.values())


def test_a_long_list_of_others_is_cut(tmp_path: Path) -> None:
    world = tiny_world(300, 2, n_saes=9)
    got = decompose_groups(Maker(world), world.names, d_model=2, memory=pass_bytes(2, 1, 3), folder=tmp_path, folds=3)
    assert "not with sae1, sae2, sae3, sae4, sae5, sae6 and 2 more, which" in got["sae0"].warnings[-1]


@pytest.mark.parametrize("dying", range(4))
@pytest.mark.parametrize("last", [0, 5])
def test_finished_groups_are_not_done_again(dying: int, last: int, tmp_path: Path) -> None:
    want = run(Maker(), tmp_path / "whole")
    with pytest.raises(KilledError):
        run(Maker(dying=dying, last=last), tmp_path / "g", checkpoint_seconds=0.0)
    saved = tmp_path / "g" / f"group-{dying}" / "checkpoint.json"
    assert saved.exists() is (last > 0)
    tokens: list[int] = []
    Counted.read.clear()
    maker = Maker()
    got = run(maker, tmp_path / "g", progress=tokens.append)
    assert got == want
    for name in want:
        first, second = got[name].linear_map, want[name].linear_map
        assert first is not None and second is not None
        assert torch.equal(first.weight, second.weight) and torch.equal(first.bias, second.bias)
    assert sum(tokens) == 4 * 2000
    assert tokens[:dying] == [2000] * dying  # what is done is counted at once
    assert not saved.exists()
    clear_groups(tmp_path / "g")
    assert not (tmp_path / "g").exists()


def test_a_finished_run_reads_no_token(tmp_path: Path) -> None:
    want = run(Maker(), tmp_path)
    world = replace(WORLD, x=WORLD.x * float("nan"))  # any token read would be refused
    assert run(Maker(world), tmp_path) == want


def test_another_run_is_refused(tmp_path: Path) -> None:
    run(Maker(), tmp_path)
    other = Maker(replace(WORLD, description={"name": "other"}))
    for attempt in (lambda: run(other, tmp_path), lambda: run(Maker(), tmp_path, memory=10**9)):
        with pytest.raises(
            FileFormatError, match=r"holds a group of another run .* delete .* to start again"
        ) as caught:
            attempt()
        assert "\n" not in str(caught.value)


DAMAGE: dict[str, Any] = {
    "no json": lambda text: text[:-9],
    "another format": lambda text: text.replace("darkmatter-group", "group"),
    "no saes": lambda text: text.replace('"saes"', '"seas"'),
    "another sae": lambda text: text.replace('"sae0": {', '"sae9": {'),
    "an incomplete result": lambda text: text.replace('"fvu"', '"fuv"'),
    "a list for a result": lambda text: json.dumps({**json.loads(text), "saes": {"sae0": []}}),
}


@pytest.mark.parametrize("case", DAMAGE)
def test_damaged_results_are_refused(case: str, tmp_path: Path) -> None:
    run(Maker(), tmp_path)
    path = tmp_path / "group-0.json"
    path.write_text(DAMAGE[case](path.read_text()))
    with pytest.raises(FileFormatError) as caught:
        run(Maker(), tmp_path)
    assert "\n" not in str(caught.value)


MAPS: dict[str, Any] = {
    "none": lambda t: {},
    "no bias": lambda t: {"0.weight": t["0.weight"]},
    "another width": lambda t: {**t, "0.weight": t["0.weight"][:2].contiguous()},
    "float32": lambda t: {**t, "0.weight": t["0.weight"].float()},
}


@pytest.mark.parametrize("case", MAPS)
def test_damaged_maps_are_refused(case: str, tmp_path: Path) -> None:
    run(Maker(), tmp_path)
    path = tmp_path / "group-0.safetensors"
    save_file(MAPS[case]({k: t.clone() for k, t in load_file(path).items()}), path)
    with pytest.raises(FileFormatError, match=r"group-0\.json is damaged \(.*sae0.*\): delete .* to start again"):
        run(Maker(), tmp_path)


def test_sources_must_agree(tmp_path: Path) -> None:
    with pytest.raises(
        InputError, match=r"the source of group 0 has the SAEs \('sae0',\) of width 6, expected .* width 5"
    ):
        decompose_groups(Maker(), WORLD.names, d_model=5, memory=pass_bytes(5, 2, FOLDS), folder=tmp_path, folds=FOLDS)

    def fewer(names: tuple[str, ...]) -> ListSource:
        n = 2000 if "sae0" in names else 1900
        recons: Mapping[str, Any] = {name: WORLD.recons[name][:n] for name in names}
        return ListSource(WORLD.x[:n], recons, WORLD.groups[:n])

    with pytest.raises(InputError, match=r"groups saw different numbers of tokens \{2000: 'sae0', 1900: 'sae6'\}"):
        decompose_groups(fewer, WORLD.names, d_model=D, memory=TWO, folder=tmp_path, folds=FOLDS)


def test_clearing_leaves_what_is_not_ours(tmp_path: Path) -> None:
    run(Maker(), tmp_path)
    (tmp_path / "group-notes.txt").write_text("mine")
    clear_groups(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["group-notes.txt"]
    clear_groups(tmp_path / "nowhere")
