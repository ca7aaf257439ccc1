"""Genomic Benchmarks' network: its size, its input, and its training by the common loop."""

import numpy as np
import pytest
import torch

from had.dna.alphabet import encode_bytes
from had.models.cnn import CNNConfig, CNNForSequenceClassification
from had.training.finetuning_batches import Part, collate
from had.training.finetuning_loop import Fit
from had.training.finetuning_recipe import FitConfig
from had.training.finetuning_scores import predict_logits


def count(length: int) -> int:
    return sum(p.numel() for p in CNNForSequenceClassification(CNNConfig(length=length)).parameters())


def test_its_size_is_the_described_one_and_follows_the_input() -> None:
    # By hand: embedding 6·100; blocks 100·16·8+16+32, 16·8·8+8+16, 8·4·8+4+8; dense (4·121+1)·512; output 513·2.
    assert count(1020) == 600 + 12_848 + 1_048 + 268 + (4 * 121 + 1) * 512 + 513 * 2
    assert count(1020) == pytest.approx(264_000, rel=0.01)
    assert count(251) < count(500) < count(1020)
    with pytest.raises(ValueError, match="57 letters or more"):
        CNNConfig(length=56)
    torch.manual_seed(0)
    shortest = CNNForSequenceClassification(CNNConfig(length=57)).train()
    assert torch.isfinite(shortest(*collate([encode_bytes(b"ACGT" * 14)])).logits).all()


def test_padding_of_a_batch_does_not_change_a_row_and_longer_rows_are_cut() -> None:
    torch.manual_seed(0)
    model = CNNForSequenceClassification(CNNConfig(length=80)).eval()
    rows = [encode_bytes(text) for text in (b"ACGTT" * 13, b"GGCAN" * 20)]
    together = model(*collate(rows)).logits
    alone = torch.cat([model(*collate([row])).logits for row in rows])
    torch.testing.assert_close(together, alone)
    torch.testing.assert_close(model(*collate([rows[1][:80]])).logits, together[1:])
    assert not torch.allclose(model(*collate([rows[1][19:]])).logits, together[1:])
    # N and padding are letters of their own.
    changed = model(*collate([np.concatenate([rows[0], encode_bytes(b"N")])])).logits
    assert not torch.allclose(changed, together[:1])


def test_it_is_the_network_described_layer_by_layer() -> None:
    torch.manual_seed(0)
    model = CNNForSequenceClassification(CNNConfig(length=70)).train().double()
    inner = model.backbone
    codes = torch.randint(0, 6, (5, 70))
    grads = []
    outputs = (inner(codes), inner.dense(inner.blocks(inner.embedding(codes).transpose(1, 2)).flatten(1)))
    for output in outputs:
        model.zero_grad()
        output.square().sum().backward()
        grads.append([p.grad.clone() for p in inner.parameters()])
    torch.testing.assert_close(outputs[0], outputs[1])
    for ours, plain in zip(*grads, strict=True):
        torch.testing.assert_close(ours, plain)


def test_the_common_loop_trains_it_with_its_running_statistics() -> None:
    rng = np.random.default_rng(0)
    labels = np.arange(48) % 2
    part = Part(
        [rng.choice(4, 64, p=(0.4, 0.1, 0.1, 0.4) if y else (0.1, 0.4, 0.4, 0.1)).astype(np.uint8) for y in labels],
        labels,
    )
    torch.manual_seed(0)
    model = CNNForSequenceClassification(CNNConfig("binary", ["a", "b"], length=64))
    config = FitConfig(epochs=5, batch_size=16, lr=3e-3, ema=0.0, rc_augment=False, shift=0, conjoin="off", dropout=0.0)
    fit = Fit(model, part, part, config, seed=0)
    result = fit.run()
    # What is tested is the trained network, batch statistics included, and not a copy of its start.
    for name, kept in fit.shadow.named_buffers():
        if "running" in name:
            assert not torch.equal(kept, torch.zeros_like(kept))
            assert not torch.equal(kept, torch.ones_like(kept))
    assert result.validation["accuracy"] > 0.9
    assert (predict_logits(result.model, part, False).argmax(1) == labels).mean() == result.validation["accuracy"]
