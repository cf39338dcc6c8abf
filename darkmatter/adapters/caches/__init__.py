"""Activations on disk, as a source and as a sink: our own shards, SAELens caches, array files, raw float32 files."""

from darkmatter.adapters.caches.array_stream import ArrayActivations, array_activations
from darkmatter.adapters.caches.joined import CachedSource
from darkmatter.adapters.caches.locate import open_activations
from darkmatter.adapters.caches.plan import CachePlan, plan_cache
from darkmatter.adapters.caches.raw import ErrorSign, RawSource, raw_activations, raw_source
from darkmatter.adapters.caches.saelens import SaelensActivations, saelens_activations
from darkmatter.adapters.caches.shards import CachedActivations, cached_activations
from darkmatter.adapters.caches.sink import write_cache, write_site_caches
from darkmatter.adapters.caches.stream import ActivationStream, StoredBatch, TokenBatch
from darkmatter.adapters.caches.training import StoredTraining, stored_training

__all__ = [
    "ActivationStream",
    "ArrayActivations",
    "CachePlan",
    "CachedActivations",
    "CachedSource",
    "ErrorSign",
    "RawSource",
    "SaelensActivations",
    "StoredBatch",
    "StoredTraining",
    "TokenBatch",
    "array_activations",
    "cached_activations",
    "open_activations",
    "plan_cache",
    "raw_activations",
    "raw_source",
    "saelens_activations",
    "stored_training",
    "write_cache",
    "write_site_caches",
]
