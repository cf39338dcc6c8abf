"""Sparse autoencoders: one inference record, its files, and a seeded, resumable trainer of six architectures."""

from darkmatter.sae.checkpoint import TrainCheckpoint
from darkmatter.sae.codes import Codes
from darkmatter.sae.config import Architecture, TrainConfig
from darkmatter.sae.record import SAE
from darkmatter.sae.store import load_sae, load_sae_metadata, save_sae
from darkmatter.sae.stream import Restartable
from darkmatter.sae.train import TrainedSAE, train_sae

__all__ = [
    "SAE",
    "Architecture",
    "Codes",
    "Restartable",
    "TrainCheckpoint",
    "TrainConfig",
    "TrainedSAE",
    "load_sae",
    "load_sae_metadata",
    "save_sae",
    "train_sae",
]
