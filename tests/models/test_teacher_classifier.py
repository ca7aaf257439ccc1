"""A fine-tuned Nucleotide Transformer reads what its tokenizer would and is exact under padding."""

import numpy as np
import torch

from had.dna.alphabet import encode_bytes
from had.dna.tokenizers import KmerTokenizer
from had.models.heads import HeadConfig
from had.models.teacher_classifier import TeacherForSequenceClassification
from had.models.teachers import random_teacher
from had.training.finetuning_batches import Part, collate
from had.training.finetuning_loop import Fit
from had.training.finetuning_recipe import FitConfig

TEXTS = ("ACGTTGCAAACC", "ACGTTGCAAACCCGGGTTTAA", "ACNTTGCAAAC", "AC")


def make() -> TeacherForSequenceClassification:
    network = random_teacher("32x2x2x32", seed=0).network
    torch.manual_seed(0)
    return TeacherForSequenceClassification(HeadConfig("binary", ["a", "b"]), network)


def test_tokens_are_those_of_the_publishers_tokenizer() -> None:
    model = make()
    ids, mask = model.tokens(*collate([encode_bytes(text.encode()) for text in TEXTS]))
    for i, text in enumerate(TEXTS):
        assert ids[i][mask[i] == 1].tolist() == KmerTokenizer().encode(text)


def test_padding_changes_nothing_and_pooling_leaves_cls_out() -> None:
    model = make().eval()
    rows = [encode_bytes(text.encode()) for text in TEXTS]
    together = model(*collate(rows)).logits
    alone = torch.cat([model(*collate([row])).logits for row in rows])
    torch.testing.assert_close(together, alone, rtol=1e-4, atol=1e-5)
    teacher = random_teacher("32x2x2x32", seed=0)
    features = teacher.features(torch.from_numpy(rows[0])[None]).mean(1)
    torch.testing.assert_close(model.pool(*collate(rows[:1])), features, rtol=1e-4, atol=1e-5)
    both = model(*collate(rows), conjoin=True).logits
    assert not torch.allclose(both, together)


def test_all_of_it_is_trained() -> None:
    model = make()
    before = {name: tensor.detach().clone() for name, tensor in model.named_parameters()}
    rng = np.random.default_rng(0)
    part = Part([rng.integers(0, 4, 30, dtype=np.uint8) for _ in range(8)], np.arange(8) % 2)
    Fit(model, part, part, FitConfig(epochs=2, batch_size=4, lr=1e-2), seed=0).run()
    still = [name for name, tensor in model.named_parameters() if torch.equal(tensor, before[name])]
    assert still == []
    assert not any("decoder" in name or "head_dense" in name for name in before)
