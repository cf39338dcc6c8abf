"""Reading sites of a model, and replacing what flows through one, with plain forward hooks."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from darkmatter.adapters.sites import Hook, Site, resolve_site
from darkmatter.errors import InputError


class _CapturedError(Exception):
    """Ends a forward pass once every wanted site has been reached."""


def capture(model: nn.Module, sites: Sequence[Site], input_ids: Tensor, attention_mask: Tensor) -> dict[Site, Tensor]:
    """Run a model once and return its activations at some sites; what comes after the last of them is not computed.

    Args:
        model: The model, in evaluation mode.
        sites: Where to read.
        input_ids: Token ids, (batch, pos).
        attention_mask: 1 for tokens and 0 for padding, (batch, pos).

    Returns:
        Activations by site, (batch, pos, width), in the model's precision and on the device of their module.

    Raises:
        InputError: A site does not exist, the forward pass never reached it, or it yielded another shape.
    """
    hooks = {site: resolve_site(model, site) for site in sites}
    seen: dict[Site, Tensor] = {}

    def reader(site: Site) -> Callable[[Any], None]:
        def read(value: Any) -> None:
            # a module may run again while others are still to come (shared blocks): the first time counts
            seen.setdefault(site, _first(value))
            if len(seen) == len(hooks):
                raise _CapturedError

        return read

    device = next(model.parameters()).device
    with ExitStack() as stack:
        for site, hook in hooks.items():
            stack.enter_context(_reading(hook, reader(site)))
        try:
            with torch.inference_mode():
                model(input_ids=input_ids.to(device), attention_mask=attention_mask.to(device), use_cache=False)
        except _CapturedError:
            pass
    for site in hooks:
        _check(site, seen.get(site), model, input_ids)
    # copies made outside inference mode, so that an SAE can be trained on them
    return {site: seen[site].clone() for site in hooks}


@contextmanager
def splice(model: nn.Module, site: Site, replace: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """While open, what flows through a site is replaced; the identity reproduces the clean model bit for bit.

    Args:
        model: The model.
        site: Where to replace.
        replace: Maps the activation, (batch, pos, width), to what the model goes on with, of the same shape and dtype.

    Yields:
        Nothing; the hook is removed at the end.

    Raises:
        InputError: The site does not exist, or the replacement has another shape or dtype.
    """

    def exchange(value: Any) -> Any:
        old = _first(value)
        new = replace(old)
        if new.shape != old.shape or new.dtype != old.dtype:
            raise InputError(
                f"the replacement at {site} is {tuple(new.shape)} {new.dtype}, expected {tuple(old.shape)} {old.dtype}"
            )
        return (new, *value[1:]) if isinstance(value, tuple) else new

    hook = resolve_site(model, site)
    handle: Any
    if hook.side == "output":
        handle = hook.module.register_forward_hook(lambda module, args, output: exchange(output))
    else:
        handle = hook.module.register_forward_pre_hook(
            lambda module, args, kwargs: _with_first(args, kwargs, exchange), with_kwargs=True
        )
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def _reading(hook: Hook, read: Callable[[Any], None]) -> Iterator[None]:
    def before(module: nn.Module, args: Any, kwargs: Any) -> None:
        _with_first(args, kwargs, read)

    def after(module: nn.Module, args: Any, output: Any) -> None:
        read(output)

    handle: Any
    if hook.side == "output":
        handle = hook.module.register_forward_hook(after)
    else:
        handle = hook.module.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield
    finally:
        handle.remove()


def _with_first(args: Any, kwargs: Any, function: Callable[[Any], Any]) -> tuple[Any, Any]:
    """Apply a function to a module's first argument, which some models pass by name."""
    if args:
        return (function(args[0]), *args[1:]), kwargs
    name = next(iter(kwargs))
    return args, kwargs | {name: function(kwargs[name])}


def _first(value: Any) -> Any:
    # Older transformers return a tuple; indexing a bare tensor with [0] would take the first sequence only.
    return value[0] if isinstance(value, tuple) else value


def _check(site: Site, seen: Any, model: nn.Module, input_ids: Tensor) -> None:
    if seen is None:
        raise InputError(f"the forward pass of {type(model).__name__} never ran {site}: is this block switched off?")
    if not isinstance(seen, Tensor) or seen.ndim != 3 or seen.shape[:2] != input_ids.shape:
        got = tuple(seen.shape) if isinstance(seen, Tensor) else type(seen).__name__
        raise InputError(f"{site} yields {got}, expected (batch, pos, d) with {tuple(input_ids.shape)} tokens")
