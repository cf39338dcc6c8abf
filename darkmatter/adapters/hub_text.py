"""Text of a data set on the Hugging Face hub, streamed; `datasets` is imported inside."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from darkmatter.errors import DarkmatterError, InputError

HUB_ID = re.compile(r"[\w][\w.-]{0,95}/[\w][\w.-]{0,95}")
"""How a data set on the hub is named."""

SHUFFLE_BUFFER = 10_000
"""Documents held while shuffling; the authors' choice."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HubText:
    """The documents of a data set, as a re-iterable stream; build it with `hub_text`.

    Attributes:
        name: ``owner/name``.
        subset: Its configuration, where there are several.
        split: Such as "train".
        column: Where the text stands.
        commit: Commit of the repository, so that iterating again gives the same documents.
        shuffle: Seed of a shuffle through a buffer of `SHUFFLE_BUFFER` documents; None keeps the order.
    """

    name: str
    subset: str | None
    split: str
    column: str
    commit: str
    shuffle: int | None = None

    @property
    def description(self) -> Mapping[str, Any]:
        """What identifies the documents."""
        return {
            "text": self.name,
            "text_fingerprint": self.commit,
            "text_subset": self.subset,
            "text_split": self.split,
            "text_column": self.column,
            "text_shuffle": None if self.shuffle is None else {"seed": self.shuffle, "buffer": SHUFFLE_BUFFER},
        }

    def __iter__(self) -> Iterator[str]:
        """Yield the documents; a document's index in this order is its id.

        Raises:
            InputError: The hub cannot be read, or a row has no such text.
        """
        with _one_line(self.name) as datasets:
            code = {} if int(datasets.__version__.split(".")[0]) >= 4 else {"trust_remote_code": False}
            rows = datasets.load_dataset(
                self.name, self.subset, split=self.split, revision=self.commit, streaming=True, **code
            )
            if self.shuffle is not None:
                rows = rows.shuffle(seed=self.shuffle, buffer_size=SHUFFLE_BUFFER)
            index = -1
            for index, row in enumerate(rows):
                document = row.get(self.column)
                if not isinstance(document, str):
                    raise InputError(
                        f"{self.name} row {index} has {type(document).__name__} under {self.column!r}, expected a "
                        f"string; its columns: {', '.join(map(str, row))}"
                    )
                yield document
            if index < 0:
                raise InputError(f"{self.name} split {self.split!r} holds no document")


def hub_text(
    name: str,
    *,
    subset: str | None = None,
    split: str = "train",
    column: str = "text",
    revision: str | None = None,
    shuffle: int | None = None,
) -> HubText:
    """Find a data set on the hub; nothing is downloaded yet, and code from the repository is never run.

    Args:
        name: ``owner/name``, or ``owner/name@revision``.
        subset: Its configuration, where there are several.
        split: Such as "train".
        column: Where the text stands.
        revision: Branch, tag or commit; None takes the main branch as it is now.
        shuffle: Seed of a shuffle through a buffer; None keeps the order.

    Returns:
        The stream, bound to the commit that the revision means now.

    Raises:
        InputError: `datasets` is missing, two revisions, or the hub refuses or cannot be reached.
    """
    name, _, behind = name.partition("@")
    if behind and revision is not None:
        raise InputError(f"{name} is given with revision {behind!r} and revision {revision!r}, expected one of the two")
    with _one_line(name):
        commit = import_module("huggingface_hub").HfApi().dataset_info(name, revision=behind or revision).sha
    return HubText(name=name, subset=subset, split=split, column=column, commit=str(commit), shuffle=shuffle)


@contextmanager
def _one_line(name: str) -> Iterator[Any]:
    try:
        datasets = import_module("datasets")
        errors = import_module("huggingface_hub.errors")
    except ImportError as error:
        raise InputError(
            f"{name} is no local file, and streaming it from the hub needs datasets, which cannot be imported "
            f"({error}): run `pip install 'darkmatter[datasets]'`"
        ) from None
    try:
        yield datasets
    except DarkmatterError:
        raise
    except errors.RevisionNotFoundError:
        remedy = "the revision does not exist: check branch, tag or commit"
    except Exception as error:  # whatever a library raises on a refusal, a broken connection or a strange answer
        remedy = _remedy(error, errors)
    else:
        return
    raise InputError(f"{name} is no local file and cannot be streamed from the hub: {remedy}")


def _remedy(error: Exception, errors: Any) -> str:
    reason = " ".join((str(error).strip().splitlines() or [""])[0].split())[:160]
    if isinstance(error, errors.GatedRepoError) or "gated" in reason:
        return "it is gated: accept its terms on the hub, then run `hf auth login`"
    if isinstance(error, errors.RepositoryNotFoundError) or type(error).__name__ == "DatasetNotFoundError":
        return "the data set does not exist or is private: check owner/name, or run `hf auth login`"
    if isinstance(error, ValueError):  # a subset or split that does not exist
        return f"{reason}: check subset and split"
    return f"{type(error).__name__}: {reason}: check the network and HF_HUB_OFFLINE, or give a local file"
