"""`darkmatter per-token`: errors token by token."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

from darkmatter.analyses.controls import is_control
from darkmatter.analyses.per_token import (
    Breakdown,
    Pair,
    PerToken,
    TopToken,
    kind_of_piece,
    per_token_errors,
)
from darkmatter.analyses.per_token.measure import choose_pair
from darkmatter.cli_data import DataOptions
from darkmatter.commands.analyses.data import open_data
from darkmatter.commands.analyses.finish import finish
from darkmatter.commands.console import steps
from darkmatter.inference import Estimate
from darkmatter.plots_analyses.per_token import save_per_token_figure

_SHOWN = 5


@dataclass(frozen=True, slots=True, eq=False)
class TokenizerText:
    """A Hugging Face tokenizer as the analysis sees it.

    Attributes:
        tokenizer: The tokenizer.
        special: Ids of its special tokens.
    """

    tokenizer: Any
    special: frozenset[int]

    @classmethod
    def of(cls, tokenizer: Any) -> TokenizerText:
        """Look up the special tokens once: the tokenizer makes the list anew every time."""
        return cls(tokenizer, frozenset(tokenizer.all_special_ids))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of some tokens in a row."""
        text: str = self.tokenizer.decode(list(ids), skip_special_tokens=False)
        return text

    def kind(self, token_id: int) -> str:
        """Class of a token in writing."""
        piece = self.tokenizer.convert_ids_to_tokens(token_id) if token_id < len(self.tokenizer) else None
        special = piece is None or token_id in self.special
        return kind_of_piece("" if piece is None else piece, special=special)


def run_per_token(options: DataOptions, *, small: str | None, large: str | None, top: int) -> None:
    """Run the analysis.

    Args:
        options: The shared options.
        small: The SAE whose norms predict.
        large: The SAE whose error is predicted.
        top: Tokens to list.
    """
    with steps() as bars:
        data = open_data(options, bars)
        choose_pair(data.source.names, data.saes, small, large)  # a wrong name should fail before the pass
        tokenizer = None if data.activations is None else data.activations.loaded.tokenizer
        moments = data.moments(bars)
        with bars.stage("tokens", moments.n_tokens) as stage:
            result = per_token_errors(
                data.source,
                saes=data.saes,
                small=small,
                large=large,
                text=None if tokenizer is None else TokenizerText.of(tokenizer),
                top=top,
                moments=moments,
                progress=stage,
            )
    finish(
        "per-token",
        result,
        data,
        draw=lambda path: save_per_token_figure(path, result),
        show=lambda: _show(result),
    )


def _show(result: PerToken) -> None:
    console = Console(highlight=False)
    if result.pair is not None:
        console.print(_pair_table(result.pair))
    for name, found in result.saes.items():
        label = f"{name} (null control)" if is_control(name) else name
        for what, breakdown in (
            ("position", found.by_position),
            ("frequency of the token", found.by_frequency),
            ("kind of token", found.by_class),
        ):
            if breakdown is not None and not (is_control(name) and what != "position"):
                console.print(_breakdown_table(f"{label}: error by {what}", breakdown))
                console.print(_constancy(breakdown, found.slope if what == "position" else None), style="dim")
        if found.top_share and found.top_share[0].token_id is not None and not is_control(name):
            console.print(_top_table(f"{label}: largest nonlinear share (upper end of introduced)", found.top_share))
            console.print(_top_table(f"{label}: largest nonlinear error", found.top_square))
    for warning in result.warnings:
        console.print(f"Warning: {warning}", style="yellow", markup=False)
    console.print(_sentence(result), style="bold", markup=False)


def _table(title: str, *columns: str) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE)
    for i, column in enumerate(columns):
        table.add_column(column, justify="right" if i else "left", no_wrap=True)
    return table


def _pair_table(pair: Pair) -> Table:
    table = _table(f"R2 of the error norm of {pair.large} on norms of {pair.small}", "from", "|e|", "|e|^2")
    for features, estimate in pair.norm.r2.items():
        table.add_row(features, _plain(estimate), _plain(pair.square.r2[features]))
    for label, name in (
        ("gain of nonlinear over error", "gain_nonlinear"),
        ("gain of linear over both", "gain_linear"),
        ("gain of error over activation", "gain_over_activation"),
    ):
        table.add_row(label, _plain(getattr(pair.norm, name)), _plain(getattr(pair.square, name)))
    return table


def _breakdown_table(title: str, breakdown: Breakdown) -> Table:
    table = _table(title, "class", "tokens", "fvu", "nonlinear [95 %]", "share of fvu")
    for share in breakdown.shares:
        table.add_row(
            share.name,
            f"{share.tokens:.1%}",
            "–" if math.isnan(share.fvu.value) else f"{share.fvu.value:.3f}",
            _plain(share.nonlinear),
            _plain(share.nonlinear_share),
        )
    return table


def _constancy(breakdown: Breakdown, slope: Estimate | None) -> str:
    found = breakdown.constancy
    p = "too few folds for a test" if math.isnan(found.p_value) else f"p = {found.p_value:.2g} that all are alike"
    text = f"mean |r|^2 over that of all tokens: {_short(found.smallest)} to {_short(found.largest)}; {p}"
    return text if slope is None else f"{text}; {_signed(slope)} per doubling of the position"


def _top_table(title: str, tokens: Sequence[TopToken]) -> Table:
    table = Table(title=title, title_justify="left", header_style="bold", box=box.SIMPLE)
    for column in ("share", "|r|^2 / mean"):
        table.add_column(column, justify="right", no_wrap=True)
    table.add_column("context, token in >< ", overflow="ellipsis", no_wrap=True)
    for token in tokens[:_SHOWN]:
        context = f"{token.before[-30:]}>{token.token}<{token.after[:15]}"
        table.add_row(f"{token.share:.2f}", f"{token.square:.1f}", repr(context)[1:-1].replace("[", "\\["))
    return table


def _sentence(result: PerToken) -> str:
    parts = []
    if result.pair is not None:
        pair = result.pair
        gain = pair.norm.gain_nonlinear
        parts.append(
            f"The error norm of {pair.small} predicts that of {pair.large} with R2 {_plain(pair.norm.r2['error'])}; "
            f"its nonlinear part adds {_plain(gain, digits=4)}."
        )
    parts.append("The nonlinear share is an upper end of what an SAE introduces, in every class of tokens.")
    return " ".join(parts)


def _plain(estimate: Estimate, *, digits: int = 3) -> str:
    return "–" if math.isnan(estimate.value) else f"{estimate:z.{digits}f}"


def _short(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else f"{estimate:.2f}"


def _signed(estimate: Estimate) -> str:
    return "–" if math.isnan(estimate.value) else f"{estimate.value:+.1%} [{estimate.low:+.1%}, {estimate.high:+.1%}]"
