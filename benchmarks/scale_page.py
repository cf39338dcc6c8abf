"""The tables of docs/scale.md: ``python -m benchmarks.scale_page`` prints them. Arithmetic, not measurement.

Throughputs are assumptions: the makers' peaks times `SHARE_OF_PEAK`.
"""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.run_cost import (
    GEMMA_2_2B,
    GEMMA_2_9B,
    SPLIT_PRODUCTS,
    cache_bytes,
    cross_bytes,
    encode_flops,
    moments_flops,
    sae_bytes,
    solve_bytes,
    solve_flops,
    sums_bytes,
    sums_traffic,
)

SHARE_OF_PEAK = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A GPU's peaks in TFLOP/s, dense, as its maker states them, its memory in bytes and its bandwidth in TB/s."""

    name: str
    bfloat16: float
    float32: float
    float64: float
    memory: float
    bandwidth: float


DEVICES = (
    Device(name="H100 SXM", bfloat16=989, float32=67, float64=67, memory=80e9, bandwidth=3.35),
    Device(name="A100 80 GB", bfloat16=312, float32=19.5, float64=19.5, memory=80e9, bandwidth=2.04),
    Device(name="RTX 4090", bfloat16=165, float32=82.6, float64=1.29, memory=24e9, bandwidth=1.01),
)


TOKENS = 100_000_000
CONTEXT = 1024
SITE = 20
WIDTHS = {"16k": 16_384, "131k": 131_072}
EXTRA_AT_SITE = 18
"""SAEs at layer 20 beside the one of every layer: 42 + 18 = 60."""

RESERVE = 4e9
"""Bytes kept free for activations and the framework."""

Row = tuple[str, ...]


def _seconds(flops: float, peak: float) -> float:
    return flops / (SHARE_OF_PEAK * peak * 1e12)


def _table(header: Row, rows: list[Row]) -> str:
    lines = [header, tuple("---" if number == 0 else "---:" for number in range(len(header))), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


SUMS = (
    ("float64", "float64", 1),
    ("split, float32 units", "float32", SPLIT_PRODUCTS),
    ("split, bfloat16 units", "bfloat16", SPLIT_PRODUCTS),
)
"""Ways to form the sums: what they are called, where they run, products that replace one."""


def per_token() -> str:
    """Operations per token at layer 20 of Gemma-2-9B, and the time they take at half of each peak."""
    shape, d = GEMMA_2_9B, GEMMA_2_9B.d_model
    work: list[tuple[str, float, str]] = [
        ("forward to layer 20", shape.forward_flops(SITE, CONTEXT), "bfloat16"),
        ("forward through all 42", shape.forward_flops(shape.layers - 1, CONTEXT), "bfloat16"),
        *((f"encoder, {name} latents", encode_flops(d, latents), "float32") for name, latents in WIDTHS.items()),
        ("sums, one SAE", moments_flops(d, 1), "float64"),
        ("sums, one SAE, split", SPLIT_PRODUCTS * moments_flops(d, 1), "float32"),
        ("sums, one SAE, split", SPLIT_PRODUCTS * moments_flops(d, 1), "bfloat16"),
        ("sums, every further SAE", moments_flops(d, 2) - moments_flops(d, 1), "float64"),
    ]
    rows = [
        (
            name,
            f"{flops / 1e9:.3f}",
            precision,
            *(f"{1e6 * _seconds(flops, getattr(device, precision)):.2f}" for device in DEVICES),
        )
        for name, flops, precision in work
    ]
    traffic = sums_traffic(d, 1)
    times = (f"{1e6 * traffic / (SHARE_OF_PEAK * device.bandwidth * 1e12):.2f}" for device in DEVICES)
    rows.append(("sums, one SAE: memory traffic", f"{traffic / 1e6:.2f} MB", "float64", *times))
    return _table(("per token", "GFLOP", "in", *(f"µs, {device.name}" for device in DEVICES)), rows)


def overhead() -> str:
    """The sums' share of model and SAE, from the same assumptions."""
    shape, d = GEMMA_2_9B, GEMMA_2_9B.d_model
    rows: list[Row] = []
    for name, latents in WIDTHS.items():
        for label, precision, products in SUMS:
            shares = []
            for device in DEVICES:
                before = _seconds(shape.forward_flops(SITE, CONTEXT), device.bfloat16)
                before += _seconds(encode_flops(d, latents), device.float32)
                sums = _seconds(products * moments_flops(d, 1), getattr(device, precision))
                shares.append(f"{100 * sums / before:.1f} %")
            rows.append((name, label, *shares))
    return _table(("latents", "sums in", *(device.name for device in DEVICES)), rows)


def memory() -> str:
    """Memory of sums, SAEs and weights."""
    gigabytes = 1e9
    rows: list[Row] = []
    for shape in (GEMMA_2_2B, GEMMA_2_9B):
        d = shape.d_model
        one, two = sums_bytes(d, 1), sums_bytes(d, 2)
        numbers = (
            2 * shape.weights,
            one,
            cross_bytes(d),
            two,
            solve_bytes(d, 1),
            *(sae_bytes(d, latents) for latents in WIDTHS.values()),
            cache_bytes(d, TOKENS),
        )
        rows.append((shape.name, *(f"{number / gigabytes:,.2f}" for number in numbers)))
    header = (
        "GB",
        "weights, bfloat16",
        "sums, 1 SAE",
        "of that per SAE",
        "sums, 2 SAEs",
        "solve adds",
        *(f"SAE, {name}" for name in WIDTHS),
        "cache of x, 100 M tokens",
    )
    return _table(header, rows)


def passes(memory_bytes: float) -> list[list[tuple[int, int]]]:
    """Deal 42 layers with one SAE each, and 18 more at layer 20, to passes whose sums fit in some memory.

    Args:
        memory_bytes: Memory for sums, SAEs and the solve of the largest site.

    Returns:
        For every pass its (layer, number of SAEs).
    """
    d, latents = GEMMA_2_9B.d_model, WIDTHS["16k"]

    def need(group: list[tuple[int, int]]) -> float:
        held = sum(sums_bytes(d, saes) + saes * sae_bytes(d, latents) for _, saes in group)
        return held + max(solve_bytes(d, saes) for _, saes in group)

    done: list[list[tuple[int, int]]] = []
    group: list[tuple[int, int]] = []
    for layer in range(GEMMA_2_9B.layers):
        left = 1 + (EXTRA_AT_SITE if layer == SITE else 0)
        while left:
            most = next((saes for saes in range(left, 0, -1) if need([*group, (layer, saes)]) <= memory_bytes), 0)
            if most:
                group.append((layer, most))
                left -= most
            elif group:
                done.append(group)
                group = []
            else:
                raise ValueError(f"{memory_bytes / 1e9:.0f} GB hold no SAE")
    return [*done, group]


def whole_run() -> str:
    """Passes, operations and hours of 100 million tokens, 60 SAEs, all layers."""
    shape, d, latents = GEMMA_2_9B, GEMMA_2_9B.d_model, WIDTHS["16k"]
    rows: list[Row] = []
    for device in DEVICES:
        room = device.memory - 2 * shape.weights - RESERVE
        if room < sums_bytes(d, 1) + solve_bytes(d, 1) + sae_bytes(d, latents):
            rows.append((device.name, "none", *("–" for _ in range(8))))
            continue
        plan = passes(room)
        counts = [saes for group in plan for _, saes in group]
        forward = TOKENS * sum(shape.forward_flops(group[-1][0], CONTEXT) for group in plan)
        encoders = TOKENS * sum(counts) * encode_flops(d, latents)
        sums = TOKENS * sum(moments_flops(d, saes) for saes in counts)
        solves = sum(solve_flops(d, saes) for saes in counts)
        work = (
            (forward, device.bfloat16),
            (encoders, device.float32),
            (solves, device.float64),
            *((products * sums, getattr(device, precision)) for _, precision, products in SUMS),
        )
        hours = [_seconds(flops, peak) / 3600 for flops, peak in work]
        total = sum(hours[:3]) + min(hours[3:])
        rows.append((
            device.name,
            f"{room / 1e9:.0f}",
            f"{len(plan)}",
            *(f"{hour:.2f}" for hour in hours),
            f"{total:.1f} / {total / 8:.1f}",
        ))
    header = (
        "device",
        "GB for sums",
        "passes",
        "forward h",
        "encoders h",
        "solves h",
        *(f"sums h, {label}" for label, _, _ in SUMS),
        "hours on 1 / on 8",
    )
    return _table(header, rows)


def dealt() -> str:
    """Which layers every pass of the whole run holds, by memory for sums."""
    rows = []
    for gigabytes in (14, 28, 57, 120):
        plan = passes(gigabytes * 1e9)
        spans = (f"{group[0][0]}–{group[-1][0]}" if len(group) > 1 else f"{group[0][0]}" for group in plan)
        rows.append((f"{gigabytes}", f"{len(plan)}", ", ".join(spans)))
    return _table(("GB for sums", "passes", "layers of each"), rows)


def tables() -> dict[str, str]:
    """All tables of docs/scale.md, by name."""
    return {
        "per token": per_token(),
        "overhead": overhead(),
        "memory": memory(),
        "whole run": whole_run(),
        "dealt": dealt(),
    }


def main() -> None:
    """Print the tables."""
    for name, table in tables().items():
        print(f"{name}\n\n{table}\n")


if __name__ == "__main__":
    main()
