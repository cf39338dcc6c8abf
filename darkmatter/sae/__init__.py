"""Sparse autoencoders: one inference record, its files, and a seeded TopK trainer."""

from darkmatter.sae.codes import Codes
from darkmatter.sae.config import TrainConfig
from darkmatter.sae.record import SAE
from darkmatter.sae.store import load_sae, load_sae_metadata, save_sae
from darkmatter.sae.train import TrainedSAE, train_topk

__all__ = ["SAE", "Codes", "TrainConfig", "TrainedSAE", "load_sae", "load_sae_metadata", "save_sae", "train_topk"]
