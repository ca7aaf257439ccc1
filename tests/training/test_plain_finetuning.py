"""Fine-tuning against a few lines of plain PyTorch, and what its seed and its validation rows decide."""

import copy
import itertools
import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from sklearn.metrics import matthews_corrcoef
from torch import Tensor
from torch.nn import functional as F

from had.dna.alphabet import NUCLEOTIDE_OFFSET
from had.models.cnn import SHORTEST, CNNConfig, CNNForSequenceClassification
from had.models.heads import HADClassifierConfig, HADForSequenceClassification, SequenceClassifier
from had.models.student import HADConfig, HADModel
from had.training.checkpoints import latest_valid
from had.training.finetuning import build_model, finetune, fit_model
from had.training.finetuning_config import FinetuneConfig
from had.training.finetuning_data import load_data
from had.training.finetuning_loop import Fit
from had.training.finetuning_recipe import FitConfig
from had.training.runs import RunOptions

SMALL = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8
)
OPTIONS = RunOptions(device="cpu", threads=1, quiet=True)
CPU = torch.device("cpu")
STILL = 1e-30
"""A learning rate at which no float32 weight changes."""
PLAIN = {"optimizer": "adamw", "dropout": 0.0, "rc_augment": False, "shift": 0, "positions": False, "conjoin": "off"}
"""A recipe in which nothing but the order of the batches is random."""


def made(data: Path, seed: int = 0, model: str = "scratch", freeze: bool = False, **recipe: object) -> FinetuneConfig:
    training = FitConfig(**{**PLAIN, **recipe})  # type: ignore[arg-type]
    return FinetuneConfig(str(data), model=model, student=SMALL, freeze=freeze, seed=seed, training=training)


def random_texts(n: int, seed: int, length: int = 24) -> list[str]:
    codes = np.random.default_rng(seed).integers(0, 4, (n, length))
    return ["".join("ACGT"[code] for code in row) for row in codes]


def turned(text: str) -> str:
    return text[::-1].translate(str.maketrans("ACGT", "TGCA"))


def write_table(path: Path, texts: list[str], labels: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = [f"{text},{label}" for text, label in zip(texts, labels, strict=True)]
    path.write_text("\n".join(["sequence,label", *rows]) + "\n")
    return path


def logits_of(model: SequenceClassifier, texts: list[str]) -> Tensor:
    return model(torch.tensor([["ACGT".index(c) + NUCLEOTIDE_OFFSET for c in text] for text in texts])).logits


def train_plainly(
    model: HADForSequenceClassification,
    texts: list[str],
    loss_of: Callable[[Tensor, list[int]], Tensor],
    epochs: list[list[list[int]]],
    config: FitConfig,
) -> Iterator[tuple[float, HADForSequenceClassification, float, float]]:
    """The documented recipe: after each epoch the mean loss, the averaged model, the last rate and gradient norm."""
    named = dict(model.named_parameters())
    spared = {
        name
        for name, p in named.items()
        if p.ndim < 2 or "embedding" in name or name.endswith(("A_log", "dt_bias", "norm_weight"))
    }
    groups = [[p for name, p in named.items() if (name in spared) is side] for side in (True, False)]
    decays = (0.0, config.weight_decay)
    optimizer = torch.optim.AdamW(
        [{"params": group, "weight_decay": decay} for group, decay in zip(groups, decays, strict=True)],
        betas=(0.9, 0.95),
    )
    average = copy.deepcopy(model).eval()
    total = sum(map(len, epochs))
    warmup = round(config.warmup * total)
    step = 0
    for batches in epochs:
        losses: list[float] = []
        for batch in batches:
            rate = config.lr or math.nan
            if step < warmup:
                rate *= (step + 1) / warmup
            else:
                rate *= (1 + math.cos(math.pi * (step - warmup) / max(1, total - 1 - warmup))) / 2
            each = loss_of(logits_of(model, [texts[i] for i in batch]), batch)
            optimizer.zero_grad()
            each.mean().backward()
            norm = math.sqrt(sum(float((p.grad**2).sum()) for p in named.values() if p.grad is not None))
            for p in named.values():
                if p.grad is not None:
                    p.grad /= max(1.0, norm)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            keep = min(config.ema, (1 + step) / (10 + step)) if config.ema else 0.0
            with torch.no_grad():
                for mean, now in zip(average.parameters(), model.parameters(), strict=True):
                    mean.copy_(keep * mean + (1 - keep) * now)
            losses += each.tolist()
            step += 1
        yield float(np.mean(losses)), copy.deepcopy(average), rate, norm


def multiclass_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    weights = len(targets) / (3 * torch.bincount(targets, minlength=3))
    log_p = logits.log_softmax(1)
    wanted = (1 - smoothing) * F.one_hot(targets, 3) + smoothing / 3
    return -(wanted * log_p).sum(1) * weights[targets]


def multilabel_loss(logits: Tensor, targets: Tensor, smoothing: float) -> Tensor:
    weights = (targets == 0).sum(0) / (targets == 1).sum(0)
    wanted = targets * (1 - smoothing) + smoothing / 2
    return -(weights * wanted * logits.sigmoid().log() + (1 - wanted) * (-logits).sigmoid().log()).mean(1)


CLASSES, SETS = list("aaaaaabbbbcc"), ["x;y", "x", "x", "y", "x", "x", "x;y", "x", "x", "y", "x", "x"]
VALUES = [round(float(v), 2) for v in np.random.default_rng(5).normal(40, 7, 12)]


@pytest.mark.parametrize(("task", "labels"), [("multiclass", CLASSES), ("multilabel", SETS), ("regression", VALUES)])
def test_weights_losses_and_scores_are_those_of_plain_pytorch(tmp_path: Path, task: str, labels: list) -> None:
    train, dev = random_texts(12, 1), random_texts(12, 2)
    write_table(tmp_path / "data/train.csv", train, labels)
    write_table(tmp_path / "data/dev.csv", dev, labels)
    torch.manual_seed(3)
    student = HADModel(SMALL)
    # Large features: gradients above 1, which are clipped.
    student.norm.weight.data *= 20
    student.save_pretrained(tmp_path / "student")
    extra = {} if task == "regression" else {"label_smoothing": 0.2, "class_weights": "balanced"}
    config = made(
        tmp_path / "data", model=str(tmp_path / "student"), epochs=6, batch_size=12, lr=0.02, warmup=0.4, ema=0.3,
        weight_decay=2.0, **extra,
    )  # fmt: skip
    data, lines = load_data(tmp_path / "data"), list[dict[str, Any]]()
    result, _ = fit_model(config, data, build_model(config, data, CPU)[0], log=lines.append)

    if task == "multiclass":
        y = torch.tensor(["abc".index(label) for label in labels])
    elif task == "multilabel":
        y = torch.tensor([[float(name in label) for name in "xy"] for label in labels])
    else:
        values = np.array(labels)
        y = torch.tensor((values - values.mean()) / values.std(), dtype=torch.float32)

    def loss_of(logits: Tensor, batch: list[int], smoothing: float = 0.2) -> Tensor:
        assert batch == list(range(12))
        if task == "multiclass":
            return multiclass_loss(logits, y, smoothing)
        return multilabel_loss(logits, y, smoothing) if task == "multilabel" else (logits[:, 0] - y) ** 2

    def scores_of(model: HADForSequenceClassification) -> tuple[float, float]:
        """The task's metric of the dev rows, and their loss, in which nothing is weighted or smoothed."""
        with torch.no_grad():
            found = logits_of(model, dev)
        if task == "multiclass":
            return float(matthews_corrcoef(y, found.argmax(1))), float(F.cross_entropy(found, y))
        if task == "multilabel":
            parts = [matthews_corrcoef(y[:, k], found[:, k] >= 0) for k in range(2)]
            return float(np.mean(parts)), float(F.binary_cross_entropy_with_logits(found, y))
        return float(np.corrcoef(y, found[:, 0])[0, 1]), float(F.mse_loss(found[:, 0], y))

    model, _ = build_model(config, data, CPU)
    by_split = {name: [line for line in lines if line["split"] == name] for name in ("train", "validation")}
    metric = "pearson" if task == "regression" else "mcc"
    epochs = list(train_plainly(model, train, loss_of, [[list(range(12))]] * 6, config.training))
    assert len(by_split["train"]) == len(epochs) == 6
    assert max(norm for *_, norm in epochs) > 1
    best = max(range(6), key=lambda i: (scores_of(epochs[i][1])[0], -scores_of(epochs[i][1])[1]))
    for (loss, average, rate, _), trained, validated in zip(epochs, *by_split.values(), strict=True):
        assert trained["loss"] == pytest.approx(loss, rel=1e-3)
        assert trained["lr"] == pytest.approx(rate)
        score, dev_loss = scores_of(average)
        assert (validated[metric], validated["loss"]) == pytest.approx((score, dev_loss), rel=1e-3, abs=1e-6)
    assert result.epoch == best + 1
    assert result.validation[metric] == pytest.approx(scores_of(epochs[best][1])[0], rel=1e-3, abs=1e-6)
    kept = result.model.state_dict()
    for name, tensor in epochs[best][1].state_dict().items():
        torch.testing.assert_close(kept[name], tensor, rtol=1e-3, atol=2e-4)


def test_a_run_folder_holds_what_was_fitted(tmp_path: Path) -> None:
    for name, n in (("train", 12), ("dev", 8)):
        write_table(tmp_path / f"data/{name}.csv", random_texts(n, n), VALUES[:n])
    config = made(tmp_path / "data", epochs=3, batch_size=5, lr=0.02)
    report = finetune(config, tmp_path / "run", OPTIONS)
    data, lines = load_data(tmp_path / "data"), list[dict[str, Any]]()
    result, _ = fit_model(config, data, build_model(config, data, CPU)[0], log=lines.append)
    written = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [{name: line[name] for name in fitted} for line, fitted in zip(written, lines, strict=True)] == lines
    assert (report["best_epoch"], report["validation"]) == (result.epoch, result.validation)
    saved, kept = load_file(tmp_path / "run/model/model.safetensors"), result.model.state_dict()
    assert saved.keys() == kept.keys()
    assert all(torch.equal(saved[name], kept[name]) for name in kept)


def test_the_order_of_the_rows_follows_from_the_seed(tmp_path: Path) -> None:
    """Each run is one of the six ways in which three rows make a batch of two and one of one."""
    texts = random_texts(3, 0)
    for name in ("train", "dev"):
        write_table(tmp_path / f"data/{name}.csv", texts, ["a", "b", "a"])
    data = load_data(tmp_path / "data")
    ways = [[[*pair], [({0, 1, 2} - {*pair}).pop()]] for pair in itertools.combinations(range(3), 2)]
    ways += [way[::-1] for way in ways]
    y = torch.tensor([0, 1, 0])
    taken = []
    for seed in range(6):
        config = made(tmp_path / "data", seed, epochs=1, batch_size=2, lr=0.01, warmup=0.5, ema=0.0)
        found, again = (
            fit_model(config, data, build_model(config, data, CPU)[0])[0].model.state_dict() for _ in range(2)
        )
        assert all(torch.equal(found[name], again[name]) for name in found)
        apart = []
        for way in ways:
            model, _ = build_model(config, data, CPU)
            plain = train_plainly(
                model, texts, lambda logits, batch: F.cross_entropy(logits, y[batch], reduction="none"), [way],
                config.training,
            )  # fmt: skip
            (_, trained, _, _) = next(plain)
            apart.append(max(float((trained.state_dict()[n] - found[n]).abs().max()) for n in found))
        taken.append(int(np.argmin(apart)))
        assert sorted(apart)[0] < 1e-5 < 1e-4 < sorted(apart)[1]
    # Rows go into other batches, and the batches into another order.
    assert len({way % 3 for way in taken}) >= 2
    assert {way < 3 for way in taken} == {True, False}


@pytest.mark.parametrize("freeze", [False, True])
@pytest.mark.parametrize(("rc_augment", "shift"), [(False, 0), (True, 0), (False, 1)])
def test_rows_are_shown_as_the_recipe_says_and_anew_in_every_epoch(
    tmp_path: Path, freeze: bool, rc_augment: bool, shift: int
) -> None:
    """At a rate at which nothing is learnt, the loss of two rows tells how each of them was shown."""
    texts = random_texts(2, 4)
    for name in ("train", "dev"):
        write_table(tmp_path / f"data/{name}.csv", texts, ["a", "b"])
    recipe = {"rc_augment": rc_augment, "shift": shift, "epochs": 16, "lr": STILL}
    config, data, lines = made(tmp_path / "data", freeze=freeze, **recipe), load_data(tmp_path / "data"), []
    model = fit_model(config, data, build_model(config, data, CPU)[0], log=lines.append)[0].model
    views = []
    for which, text in enumerate(texts):
        # The features of a frozen student are those of whole rows.
        cuts = {text, text[1:], text[:-1]} if shift and not freeze else {text}
        shown = sorted(cuts | {turned(cut) for cut in cuts} if rc_augment else cuts)
        views.append({view: -math.log(p[which]) for view, p in zip(shown, model.predict(shown), strict=True)})
    seen: tuple[set[str], set[str]] = (set(), set())
    for loss in [line["loss"] for line in lines if line["split"] == "train"]:
        pairs = {pair: abs((views[0][pair[0]] + views[1][pair[1]]) / 2 - loss) for pair in itertools.product(*views)}
        pair = min(pairs, key=pairs.__getitem__)
        assert pairs[pair] < 1e-6
        assert len(pairs) == 1 or sorted(pairs.values())[1] > 2e-6
        for which in range(2):
            seen[which].add(pair[which])
    assert seen == (set(views[0]), set(views[1]))


@pytest.mark.parametrize("freeze", [False, True])
def test_strands_are_averaged_where_that_is_better_on_dev_rows(tmp_path: Path, freeze: bool) -> None:
    texts = random_texts(60, 6)
    palindromes = [text[:12] + turned(text[:12]) for text in texts]
    half = ["a", "b"] * 30
    config = made(tmp_path / "data", freeze=freeze, epochs=1, lr=STILL, conjoin="auto")
    for name in ("train", "dev"):
        write_table(tmp_path / f"data/{name}.csv", texts, half)
    model, _ = build_model(config, load_data(tmp_path / "data"), CPU)
    for dev, both, expected in ((texts, False, False), (texts, True, True), (palindromes, False, False)):
        # Dev labels are what this model says, with the strands averaged or not.
        margins = np.log(model.predict(dev, both_strands=both)) @ [-1, 1]
        with torch.no_grad():
            model.head.bias += torch.tensor([0.5, -0.5]) * float(np.median(margins))
        labels = ["ab"[k] for k in model.predict(dev, both_strands=both).argmax(1)]
        write_table(tmp_path / "data/dev.csv", dev, labels)
        result, _ = fit_model(config, load_data(tmp_path / "data"), model)
        assert result.model.config.conjoin is expected
        assert result.conjoin_scores["on" if both else "off"] == result.validation["mcc"] == 1
        other = result.conjoin_scores["off" if both else "on"]
        assert other == 1 if dev is palindromes else 0 < other < 0.95
        assert result.validation["loss"] == pytest.approx(
            -np.log(model.predict(dev, both_strands=expected).max(1)).mean(), rel=1e-4
        )


def test_a_run_resumed_after_its_best_epoch_keeps_that_epochs_model(tmp_path: Path) -> None:
    texts = random_texts(16, 7)
    labels = ["b" if text.count("C") + text.count("G") > 12 else "a" for text in texts]
    write_table(tmp_path / "data/train.csv", texts, labels)
    # What is learnt makes the opposite labels worse.
    write_table(tmp_path / "data/dev.csv", texts, ["ab"[label == "a"] for label in labels])
    config = made(tmp_path / "data", epochs=4, lr=0.02, warmup=0.0, ema=0.0)
    data = load_data(tmp_path / "data")

    def fit() -> Fit[HADForSequenceClassification]:
        return Fit(build_model(config, data, CPU)[0], data.train, data.valid, config.training, seed=0)

    whole = fit().run()
    assert not fit().run(checkpoints=tmp_path / "states", stop_after=2).finished
    cut = fit().run(resume_from=latest_valid(tmp_path / "states")[0])
    assert (whole.epoch, whole.epochs_run, whole.validation) == (cut.epoch, cut.epochs_run, cut.validation)
    assert (whole.epoch, whole.epochs_run) == (1, 4)
    then, now = whole.model.state_dict(), cut.model.state_dict()
    assert all(torch.equal(then[name], now[name]) for name in then)


@pytest.mark.parametrize("own_dev", [False, True])
def test_test_rows_that_stand_in_train_are_counted_with_what_was_held_out_of_it(tmp_path: Path, own_dev: bool) -> None:
    """Rows held out of the training file are known to whoever chose by them; dev rows of another file are not in it."""
    train, dev, new = random_texts(30, 8), random_texts(4, 9), random_texts(2, 10)
    write_table(tmp_path / "data/train.csv", train, ["a", "b"] * 15)
    if own_dev:
        write_table(tmp_path / "data/dev.csv", dev, ["a", "b"] * 2)
    write_table(tmp_path / "data/test.csv", [*map(turned, train), *dev, *new], ["a", "b"] * 18)
    config, data = made(tmp_path / "data", epochs=1, lr=STILL), load_data(tmp_path / "data")
    assert (len(data.train) + len(data.valid), len(data.valid)) == ((34, 4) if own_dev else (30, 4))
    assert data.facts["test_rows_also_in_train"] == 30
    assert data.test_in_train.tolist() == [True] * 30 + [False] * 6
    result, scores = fit_model(config, data, build_model(config, data, CPU)[0])
    found = result.model.predict([*dev, *new]).argmax(1)
    assert scores["test_not_in_train"]["accuracy"] == pytest.approx(np.mean(found == [0, 1] * 3))


def test_batch_statistics_go_with_the_averaged_weights(tmp_path: Path) -> None:
    texts = random_texts(12, 11, SHORTEST)
    for name in ("train", "dev"):
        write_table(tmp_path / f"data/{name}.csv", texts, ["a", "b"] * 6)
    data = load_data(tmp_path / "data")
    torch.manual_seed(0)
    model = CNNForSequenceClassification(CNNConfig("binary", ["a", "b"], length=SHORTEST))
    plain = copy.deepcopy(model).train()
    recipe = made(tmp_path, epochs=3, batch_size=12, lr=STILL, ema=0.9).training
    found = Fit(model, data.train, data.valid, recipe, seed=0).run().model.state_dict()
    with torch.no_grad():
        for _ in range(3):
            logits_of(plain, texts)
    for name, tensor in plain.state_dict().items():
        torch.testing.assert_close(found[name], tensor, rtol=1e-4, atol=1e-5)


def test_validation_and_test_rows_are_drawn_by_the_seed(tmp_path: Path) -> None:
    alone = write_table(tmp_path / "train.csv", random_texts(60, 13), ["a", "b"] * 30)

    def held(path: Path, seed: int) -> list[set[bytes]]:
        data = load_data(path, valid_fraction=0.3, test_fraction=0.3, seed=seed)
        assert data.test is not None
        return [{row.tobytes() for row in part.codes} for part in (data.valid, data.test)]

    once, again, other = held(alone, 0), held(alone, 0), held(alone, 1)
    assert once == again
    assert once[0] != other[0]
    assert once[1] != other[1]
    # With dev rows of the user's own the seed draws the test alone.
    write_table(tmp_path / "dev.csv", random_texts(6, 15), ["a", "b"] * 3)
    once, other = held(tmp_path, 0), held(tmp_path, 1)
    assert once[0] == other[0]
    assert once[1] != other[1]


def test_dropout_hides_features_in_training_alone(tmp_path: Path) -> None:
    data = load_data(write_table(tmp_path / "a.csv", random_texts(20, 14), ["a", "b"] * 10))
    model, _ = build_model(made(tmp_path, dropout=0.25), data, CPU)
    torch.nn.init.ones_(model.head.weight)
    features = torch.ones(2000, 16)
    whole = model.eval().classify(features)
    assert torch.equal(whole, torch.full_like(whole, 16))
    shown = model.train().classify(features)[:, 0].detach() * 0.75
    # Of 16 features so many are left, as a binomial draw says.
    assert float(shown.mean()) == pytest.approx(12, abs=0.2)
    assert float(shown.var()) == pytest.approx(16 * 0.25 * 0.75, rel=0.2)


def test_a_fresh_head_is_as_small_as_the_students_fresh_weights() -> None:
    torch.manual_seed(0)
    heads = HADClassifierConfig("multiclass", [str(i) for i in range(200)], student=SMALL)
    head = HADForSequenceClassification(heads).head
    assert float(head.weight.detach().std()) == pytest.approx(SMALL.initializer_range, rel=0.05)
    assert not head.bias.any()
