"""Many SAEs by one pattern, on disk and on the hub."""

from __future__ import annotations

from pathlib import Path

import pytest

from darkmatter.adapters.saes import pattern
from darkmatter.adapters.saes.pattern import expand_pattern
from darkmatter.errors import InputError

FILES = [
    "README.md",
    "layer_20/width_16k/average_l0_58/params.npz",
    "layer_20/width_16k/average_l0_116/params.npz",
    "layer_20/width_131k/average_l0_62/params.npz",
    "layer_21/width_16k/average_l0_57/params.npz",
    "layer_20/width_16k/notes.txt",
]


def test_local_folders_are_named_by_their_wildcards(tmp_path: Path) -> None:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = expand_pattern(f"{tmp_path}/layer_20/width_*/average_l0_*")
    assert list(found) == ["width_131k/average_l0_62", "width_16k/average_l0_116", "width_16k/average_l0_58"]
    assert found["width_16k/average_l0_58"] == f"{tmp_path}/layer_20/width_16k/average_l0_58"
    assert list(expand_pattern(f"{tmp_path}/layer_2?/width_16k/average_l0_5*")) == [
        "layer_20/average_l0_58",
        "layer_21/average_l0_57",
    ]


@pytest.mark.parametrize(("revision", "behind"), [(None, ""), ("abc", "@abc")])
def test_folders_on_the_hub(revision: str | None, behind: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    asked: list[tuple[str, str | None]] = []

    def listed(repo: str, revision: str | None) -> list[str]:
        asked.append((repo, revision))
        return FILES

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(pattern, "list_files", listed)
    found = expand_pattern(f"google/scope/layer_20/width_*/average_l0_*{behind}")
    assert asked == [("google/scope", revision)]
    assert found == {
        "width_131k/average_l0_62": f"google/scope/layer_20/width_131k/average_l0_62{behind}",
        "width_16k/average_l0_116": f"google/scope/layer_20/width_16k/average_l0_116{behind}",
        "width_16k/average_l0_58": f"google/scope/layer_20/width_16k/average_l0_58{behind}",
    }


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("layer_20/width_16k", "has no wildcard"),
        ("./nothing/*", "nothing fits"),
        ("owner/*", "nothing fits"),  # a repository itself cannot be a wildcard
    ],
)
def test_patterns_that_mean_nothing(text: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=words):
        expand_pattern(text)


def test_offline_the_hub_is_not_listed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    constants = pytest.importorskip("huggingface_hub.constants")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(InputError, match="cannot be listed offline"):
        expand_pattern("owner/name/layer_*")
