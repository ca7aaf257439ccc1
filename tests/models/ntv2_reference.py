"""A slow, obvious Nucleotide Transformer v2 in numpy float64, and tiny random networks to compare with it."""

import json
import math
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.numpy import load_file

from had.models import NucleotideTransformer, NucleotideTransformerConfig

Floats = NDArray[np.float64]


def tiny_config(width=24, layers=2, heads=3, ffn=20, vocabulary=80, **values) -> NucleotideTransformerConfig:
    return NucleotideTransformerConfig(vocabulary, width, layers, heads, ffn, **values)


def tiny_network(config: NucleotideTransformerConfig | None = None, seed: int = 0) -> NucleotideTransformer:
    """Every tensor random, norms and biases too, large enough that each of them matters."""
    network = NucleotideTransformer(config or tiny_config())
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            parameter.normal_(1.0 if "norm.weight" in name else 0.0, 0.3, generator=generator)
    return network.eval()


class Reference:
    """The forward pass of a saved checkpoint from the description, one sequence and head at a time."""

    def __init__(self, folder: Path) -> None:
        self.config = json.loads((folder / "config.json").read_text())
        self.weights = {k: v.astype(np.float64) for k, v in load_file(folder / "model.safetensors").items()}

    def linear(self, x: Floats, name: str) -> Floats:
        return x @ self.weights[f"{name}.weight"].T + self.weights.get(f"{name}.bias", 0.0)

    def norm(self, x: Floats, name: str) -> Floats:
        centred = x - x.mean(-1, keepdims=True)
        variance = (centred**2).mean(-1, keepdims=True)
        scaled = centred / np.sqrt(variance + self.config["layer_norm_eps"])
        return scaled * self.weights[f"{name}.weight"] + self.weights[f"{name}.bias"]

    def rotate(self, x: Floats) -> Floats:
        """Turn pair (i, i + d/2) of the vector at position p by p · 10000^(−2i/d)."""
        turned, half = x.copy(), x.shape[1] // 2
        for position in range(len(x)):
            for i in range(half):
                # The checkpoints hold the frequencies in float32.
                angle = position * float(np.float32(1.0) / np.float32(10000.0 ** (i / half)))
                first, second = x[position, i], x[position, i + half]
                turned[position, i] = first * math.cos(angle) - second * math.sin(angle)
                turned[position, i + half] = second * math.cos(angle) + first * math.sin(angle)
        return turned

    def attention(self, x: Floats, mask: NDArray | None, name: str) -> Floats:
        query, key, value = (self.linear(x, f"{name}.self.{part}") for part in ("query", "key", "value"))
        heads = self.config["num_attention_heads"]
        width = x.shape[1] // heads
        context = np.empty_like(x)
        for head in range(heads):
            part = slice(head * width, (head + 1) * width)
            score = self.rotate(query[:, part] / math.sqrt(width)) @ self.rotate(key[:, part]).T
            if mask is not None and mask.any():
                score[:, mask == 0] = -np.inf
            elif mask is not None:
                score[:] = 0.0
            weight = np.exp(score - score.max(1, keepdims=True))
            context[:, part] = weight / weight.sum(1, keepdims=True) @ value[:, part]
        return self.linear(context, f"{name}.output.dense")

    def hidden_states(self, ids: NDArray, mask: NDArray | None) -> list[Floats]:
        """Embeddings and layer outputs (T, D) of one sequence (T,)."""
        x = self.weights["esm.embeddings.word_embeddings.weight"][ids]
        if mask is not None:
            x = x * mask[:, None]
        states = [x]
        for layer in range(self.config["num_hidden_layers"]):
            name = f"esm.encoder.layer.{layer}"
            x = x + self.attention(self.norm(x, f"{name}.attention.LayerNorm"), mask, f"{name}.attention")
            both = self.linear(self.norm(x, f"{name}.LayerNorm"), f"{name}.intermediate.dense")
            gate, up = both[:, : both.shape[1] // 2], both[:, both.shape[1] // 2 :]
            x = x + self.linear(gate / (1 + np.exp(-gate)) * up, f"{name}.output.dense")
            states.append(x)
        states[-1] = self.norm(x, "esm.encoder.emb_layer_norm_after")
        return states

    def logits(self, hidden: Floats) -> Floats:
        x = self.linear(hidden, "lm_head.dense")
        x = x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))
        x = self.norm(x, "lm_head.layer_norm")
        return self.linear(x, "lm_head.decoder") + self.weights["lm_head.bias"]
