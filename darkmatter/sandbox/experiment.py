"""An experiment: a world, an SAE on it, and how both are measured. One JSON file says it all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from darkmatter.errors import InputError
from darkmatter.sae import TrainConfig
from darkmatter.sandbox.config import check_int
from darkmatter.sandbox.surgical import Surgical
from darkmatter.sandbox.world import World

FORMAT = "darkmatter-experiment"
VERSION = 1

DEFAULT_SAE = TrainConfig(d_sae=1024, k=32, n_tokens=700_000)
DEFAULT_SURGICAL = Surgical(learned=1024, shrinkage=0.1, introduced="independent", introduced_share=0.03)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """A world, one SAE on it, and the sizes of what is drawn. Equal experiments give equal reports, byte for byte.

    (On one machine, numpy version and number of threads.)

    Attributes:
        world: The world.
        sae: How to train an SAE, or the surgical SAE to take.
        n_tokens: Tokens to decompose.
        folds: Folds K of documents, at least 2.
        truth: Measure what the error is really made of.
        truth_tokens: Tokens regressed on the true factors where there is no closed form; None for 20 per factor.
        recovery: Compare the latents of a trained SAE with the true features.
    """

    world: World = field(default_factory=World)
    sae: TrainConfig | Surgical = DEFAULT_SAE
    n_tokens: int = 32_768
    folds: int = 20
    truth: bool = True
    truth_tokens: int | None = None
    recovery: bool = True

    def __post_init__(self) -> None:
        check_int(self.n_tokens, "n_tokens", 1)
        if isinstance(self.folds, bool) or not isinstance(self.folds, int) or self.folds < 2:
            raise InputError(f"folds is {self.folds!r}, expected at least 2: an interval needs two folds that differ")
        if self.truth_tokens is not None:
            check_int(self.truth_tokens, "truth_tokens", 1)
        for name in ("truth", "recovery"):
            if not isinstance(getattr(self, name), bool):
                raise InputError(f"{name} is {getattr(self, name)!r}, expected true or false")

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types, complete: three groups of settings, "world", "sae" (with its kind) and "run"."""
        sae = self.sae.to_dict() if isinstance(self.sae, Surgical) else {"kind": "trained", **asdict(self.sae)}
        run = {name: getattr(self, name) for name in RUN_FIELDS}
        return {"format": FORMAT, "version": VERSION, "world": self.world.to_dict(), "sae": sae, "run": run}

    @staticmethod
    def from_dict(data: Mapping[str, Any]) -> Experiment:
        """Rebuild an experiment from `to_dict`.

        Args:
            data: What `to_dict` gave, perhaps through JSON.

        Returns:
            An equal experiment.

        Raises:
            InputError: Another format or version, settings missing or unknown, or values that do not go together.
        """
        got = (data.get("format"), data.get("version"))
        if got != (FORMAT, VERSION):
            raise InputError(
                f"experiment has format {got[0]!r} version {got[1]!r}, expected {FORMAT!r} version {VERSION}"
            )
        _check_names(data, {"format", "version", "world", "sae", "run"}, "experiment")
        for name in ("world", "sae", "run"):
            if not isinstance(data[name], Mapping):
                raise InputError(f"experiment has {name} = {data[name]!r}, expected an object with its settings")
        _check_names(data["run"], set(RUN_FIELDS), "run")
        try:
            return Experiment(world=World.from_dict(data["world"]), sae=_sae(data["sae"]), **data["run"])
        except TypeError as error:  # a list in place of a number, say: comparing it fails before its check can speak
            raise InputError(f"experiment has a value of a wrong type ({error}): write its JSON again") from None


RUN_FIELDS = tuple(f.name for f in fields(Experiment) if f.name not in {"world", "sae"})
"""What belongs neither to the world nor to the SAE."""


def _sae(data: Mapping[str, Any]) -> TrainConfig | Surgical:
    values = dict(data)
    kind = values.pop("kind", None)
    if kind not in {"trained", "surgical"}:
        raise InputError(f"sae has kind {kind!r}, expected 'trained' or 'surgical'")
    _check_names(values, {f.name for f in fields(Surgical if kind == "surgical" else TrainConfig)}, "sae")
    return Surgical(**values) if kind == "surgical" else TrainConfig(**values)


def _check_names(data: Mapping[str, Any], known: set[str], what: str) -> None:
    if set(data) != known:
        raise InputError(
            f"{what} lacks {sorted(known - set(data))} and has unknown {sorted(set(data) - known)}: "
            "expected exactly the fields that to_dict writes"
        )
