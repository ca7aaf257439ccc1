"""`had pretrain` and `had teacher train` against the method written out in plain PyTorch: float64, whole batches.

The plain form shares with the package only what other tests compare with slow references: the sampler, the masks, the
tokenizers, the layers of the networks and their weights at the start.
"""

import json
import math
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor, nn

from had.dna import KmerTokenizer, NucleotideTokenizer, WindowSampler
from had.dna.masking import group_masks
from had.models import HADConfig, HADModel, NucleotideTransformer, NucleotideTransformerConfig
from had.models.teacher_loading import load_teacher
from had.training.data import DataConfig, WindowData
from had.training.distillation import DistillationModule, ObjectiveConfig

SEED, WINDOW, GROUP, BATCH, STEPS = 7, 60, 6, 5, 5
TRAIN, HELD_OUT, TEST = [(0, 4_000), (4_100, 9_000)], (9_100, 12_000), (12_100, 12_580)
W_ALIGN, W_REC = 0.5, 2.0
LR, MIN_LR, START_LR, WARMUP, DECAY, BETA1, BETA2, CLIP = 4e-3, 1e-3, 1e-3, 2, 3.0, 0.7, 0.6, 0.05
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 24,
    "recurrent_blocks": 1,
    "key_width": 8,
    "value_width": 8,
    "attention_heads": 1,
    "decoder_heads": 1,
}
RECIPE = (
    "training.precision=float32",
    f"data.window={WINDOW}",
    "data.validation_windows=0",
    *(f"model.{name}={value}" for name, value in SIZES.items()),
    "objective.fit_windows=16",
    "objective.align_head=mean",
    f"objective.w_align={W_ALIGN}",
    f"objective.w_rec={W_REC}",
    f"training.global_batch={BATCH}",
    "training.micro_batch=2",
    "training.validate_every=2",
    "training.checkpoint_every=2",
    "training.keep_checkpoints=3",
    "training.log_windows=true",
    "training.optimizer.name=adamw",
    f"training.optimizer.lr={LR}",
    f"training.optimizer.min_lr={MIN_LR}",
    f"training.optimizer.start_lr={START_LR}",
    f"training.optimizer.warmup_steps={WARMUP}",
    f"training.optimizer.weight_decay={DECAY}",
    f"training.optimizer.beta1={BETA1}",
    f"training.optimizer.beta2={BETA2}",
    f"training.optimizer.clip={CLIP}",
)
TEACHER_CONFIG = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 24}
Record = dict[str, Any]
COMPLEMENT = str.maketrans("ACGT", "TGCA")


class Material(NamedTuple):
    letters: str
    genome: Path
    bed: Path
    teacher: Path

    def words(self, out: Path) -> tuple[str | Path, ...]:
        return ("--genome", self.genome, "--bed", self.bed, "--out", out, "--threads", "1", "--device", "cpu")


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    """A genome of uneven letters, its splits, and a teacher whose features are far from normalised."""
    folder = tmp_path_factory.mktemp("material")
    codes = np.random.default_rng(5).choice(4, 12_600, p=[0.4, 0.1, 0.15, 0.35])
    letters = "".join("ACGT"[code] for code in codes)
    genome, bed = folder / "genome.fa", folder / "splits.bed"
    genome.write_text(f">one\n{letters}\n")
    rows = [(*span, "train") for span in TRAIN] + [(*HELD_OUT, "valid"), (*TEST, "test")]
    bed.write_text("".join(f"one\t{start}\t{end}\t{split}\n" for start, end, split in rows))
    torch.manual_seed(1)
    network = NucleotideTransformer(NucleotideTransformerConfig(**TEACHER_CONFIG))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.3)
    network.save_pretrained(folder / "teacher")
    return Material(letters, genome, bed, folder / "teacher")


@pytest.fixture(scope="module")
def command() -> Callable[..., None]:
    """Run a command in this process; pictures and Markov chains, which other tests are about, are left out."""
    from had.cli import main
    from had.training import distillation, masked_lm, runs

    def call(*words: str | Path) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(runs, "plot_losses", lambda *_: None)
            for module in (distillation, masked_lm):
                patch.setattr(module, "fit_markov", lambda *_: None)
                patch.setattr(module, "markov_sums", lambda *_: ({}, {}))
            patch.setattr("sys.argv", ["had", *map(str, words)])
            with pytest.raises(SystemExit) as stop:
                main()
        assert not stop.value.code

    return call


@pytest.fixture(scope="module")
def trained(material: Material, command: Callable[..., None], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("run") / "run"
    words = ("--teacher", material.teacher, "--steps", str(STEPS), "--seed", str(SEED), *RECIPE)
    command("pretrain", "laptop", *material.words(out), *words)
    return out


def records(run: Path, split: str) -> list[Record]:
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["split"] == split]


def windows_of_step(letters: str, step: int, fraction: float) -> tuple[list[str], np.ndarray]:
    """Letters and hidden groups (n, T) of one step: window k of step s is window s·batch + k of the run."""
    indices = np.arange(step * BATCH, (step + 1) * BATCH)
    starts, turned = WindowSampler(np.array(TRAIN), WINDOW, SEED).draw(indices)
    windows = []
    for start, reverse in zip(starts, turned, strict=True):
        window = letters[start : start + WINDOW]
        windows.append(window[::-1].translate(COMPLEMENT) if reverse else window)
    return windows, group_masks(SEED, indices, WINDOW // GROUP, fraction)


class PlainDistillation:
    """Student, projection and decoder at the start of the run, in float64."""

    def __init__(self, teacher: Path) -> None:
        self.teacher = NucleotideTransformer.from_pretrained(teacher).double()
        torch.manual_seed(SEED)
        start = DistillationModule(HADModel(HADConfig(**SIZES)), self.teacher.config.hidden_size, ObjectiveConfig())
        self.parts: dict[str, nn.Module] = {
            "model": start.student.double(),
            "projection": start.projection.double(),
            "decoder": start.decoder.double(),
        }

    def weights(self) -> dict[str, Tensor]:
        return {f"{part}/{k}": p for part, module in self.parts.items() for k, p in module.named_parameters()}

    def losses(self, windows: list[str], hidden: np.ndarray) -> dict[str, Tensor]:
        """Means over all windows: squared error of visible groups, cross-entropy and accuracy of hidden letters."""
        groups = torch.from_numpy(hidden)
        letters = groups.repeat_interleave(GROUP, dim=1)
        tokens = torch.tensor([NucleotideTokenizer().encode(window) for window in windows])
        kmers = torch.tensor([KmerTokenizer().encode(window) for window in windows])
        kmers[:, 1:][groups] = KmerTokenizer.mask_token_id
        with torch.no_grad():
            taught = self.teacher(kmers).hidden_states[-1][:, 1:]
        centred = taught - taught.mean(-1, keepdim=True)
        taught = centred / (centred.square().mean(-1, keepdim=True) + 1e-5).sqrt()
        features = self.parts["model"](tokens.masked_fill(letters, 3)).last_hidden_state
        six = features.unflatten(1, (-1, GROUP)).mean(2)
        align = (self.parts["projection"](six) - taught).square().mean(-1)[~groups].mean()
        query, key = (part.nonzero()[:, 1].view(len(windows), -1) for part in (letters, ~letters))
        logits = self.parts["decoder"](features, query, key_index=key).flatten(0, 1)
        truth = tokens.gather(1, query).flatten() - NucleotideTokenizer().encode("A")[0]
        right = (logits.argmax(-1) == truth).double().mean()
        return {"loss_align": align, "loss_rec": F.cross_entropy(logits, truth), "acc_rec": right}


def decays(name: str, weight: Tensor) -> bool:
    """Matrices of linear layers decay; norms, gates, biases, embeddings and convolutions' taps by their rule."""
    last = name.rpartition(".")[2]
    return weight.ndim > 1 and "embedding" not in name and last not in ("A_log", "dt_bias", "norm_weight")


def rate_of(step: int) -> float:
    """Linear warm-up to the step WARMUP - 1, then a cosine that ends at the last step."""
    if step < WARMUP:
        return START_LR + (LR - START_LR) * (step + 1) / WARMUP
    turn = math.pi * (step - WARMUP) / (STEPS - 1 - WARMUP)
    return MIN_LR + (LR - MIN_LR) * (1 + math.cos(turn)) / 2


def plain_adamw(
    weights: dict[str, Tensor], terms_of: Callable[[int], tuple[Tensor, dict[str, Tensor]]]
) -> list[Record]:
    """Train ``weights`` in place with AdamW on a clipped gradient; return a record per step."""
    mean = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    square = {name: torch.zeros_like(weight) for name, weight in weights.items()}
    log = []
    for step in range(STEPS):
        loss, terms = terms_of(step)
        gradients = dict(zip(weights, torch.autograd.grad(loss, list(weights.values())), strict=True))
        norm = math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients.values()))
        rate, values = rate_of(step), {name: value.item() for name, value in terms.items()}
        bp = (step + 1) * BATCH * WINDOW
        log.append({"step": step + 1, "bp": bp, "lr": rate, "loss": loss.item(), "gradient_norm": norm, **values})
        with torch.no_grad():
            for name, weight in weights.items():
                gradient = gradients[name] * min(1.0, CLIP / norm)
                mean[name] = BETA1 * mean[name] + (1 - BETA1) * gradient
                square[name] = BETA2 * square[name] + (1 - BETA2) * gradient**2
                update = mean[name] / (1 - BETA1 ** (step + 1))
                update /= (square[name] / (1 - BETA2 ** (step + 1))).sqrt() + 1e-8
                weight.mul_(1 - rate * DECAY * decays(name, weight)).sub_(rate * update)
    return log


def assert_same_log(run: Path, expected: list[Record]) -> None:
    """Equal up to the rounding of sums of some ten thousand float32 terms: about √10,000 · 2⁻²⁴ of their size."""
    logged = records(run, "train")
    assert len(logged) == len(expected) == STEPS
    for record, plain in zip(logged, expected, strict=True):
        assert record["gradient_norm"] > 2 * CLIP, "clipping would not matter"
        assert {name: record[name] for name in plain} == pytest.approx(plain, rel=1e-5)


def assert_same_weights(weights: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    """Equal up to a thousandth of AdamW's largest step, but for 1 weight in 1,000 and 1 of each tensor.

    AdamW divides a gradient by its size, so that its step errs by the gradient's relative error. In float32 that is
    about 1e-6 of the largest gradients of the tensor, and 1e-3 of one a thousandth as large; smaller ones are rare.
    """
    assert weights.keys() == expected.keys()
    bound = 1e-3 * sum(rate_of(step) for step in range(STEPS))
    for name, plain in expected.items():
        wrong = ((weights[name].double() - plain).abs() > bound).sum()
        assert wrong <= 1 + plain.numel() // 1_000, f"{name}: {wrong} of {plain.numel()}"


@pytest.fixture(scope="module")
def plain(material: Material) -> tuple[PlainDistillation, list[Record]]:
    """The plain form after training, and its log."""
    plain = PlainDistillation(material.teacher)

    def terms_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        terms = plain.losses(*windows_of_step(material.letters, step, 0.15))
        return W_ALIGN * terms["loss_align"] + W_REC * terms["loss_rec"], terms

    return plain, plain_adamw(plain.weights(), terms_of)


def evaluated(
    material: Material, command: Callable[..., None], run: Path, folder: Path, split: str = "validation"
) -> Record:
    """Report of `had evaluate` on the tiles of a split, with the masks of the run."""
    options = ("--genome", material.genome, "--bed", material.bed, "--split", split, "--window", str(WINDOW))
    seed = ("--seed", str(SEED), "--threads", "1")
    command("evaluate", run / "model", *options, *seed, "--out", folder / "report.json")
    return json.loads((folder / "report.json").read_text())


def test_losses_and_learning_rates_are_those_of_plain_pytorch(trained: Path, plain) -> None:
    assert_same_log(trained, plain[1])


def test_exported_weights_are_those_of_plain_pytorch(trained: Path, plain) -> None:
    weights = {}
    for part in plain[0].parts:
        tensors = load_file(trained / "model" / f"{part}.safetensors")
        weights |= {f"{part}/{name}": weight for name, weight in tensors.items()}
    assert_same_weights(weights, plain[0].weights())


def held_out_windows(material: Material, fraction: float = 0.15) -> tuple[list[str], np.ndarray]:
    """Letters and hidden groups (n, T) of the tiles on which the run validates."""
    options: dict[str, Any] = {"window": WINDOW, "mask_fraction": fraction, "validation_windows": 0}
    data = DataConfig([str(material.genome)], str(material.bed), **options)
    hidden = WindowData.open(data, SEED, progress=False).validation_hidden[:, ::GROUP]
    starts = range(HELD_OUT[0], HELD_OUT[1] - WINDOW + 1, WINDOW)
    return [material.letters[start : start + WINDOW] for start in starts], hidden


def test_held_out_losses_are_those_of_plain_pytorch_and_of_had_evaluate(
    material: Material, command: Callable[..., None], trained: Path, plain, tmp_path: Path
) -> None:
    windows, hidden = held_out_windows(material)
    with torch.no_grad():
        terms = plain[0].losses(windows, hidden)
    expected = {name: value.item() for name, value in terms.items()}
    at_end, report = (
        json.loads((trained / "validation.json").read_text()),
        evaluated(material, command, trained, tmp_path),
    )
    for found in (at_end, report):
        assert {name: found[name]["model"][0] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert {found[name]["windows"] for name in expected} == {len(windows)}
    validations = records(trained, "validation")
    assert {name: validations[-1][name] for name in expected} == pytest.approx(expected, rel=1e-5)
    assert [record["step"] for record in validations] == [0, 2, 4, STEPS]
    for record in validations:
        weighted = W_ALIGN * record["loss_align"] + W_REC * record["loss_rec"]
        assert record["loss"] == pytest.approx(weighted, rel=1e-6)
    of_test = evaluated(material, command, trained, tmp_path, "test")
    assert of_test["loss_rec"]["windows"] == (TEST[1] - TEST[0]) // WINDOW


def test_every_window_is_logged_with_its_step_place_and_strand(material: Material, trained: Path) -> None:
    lines = [line.split("\t") for line in (trained / "windows-rank0.tsv").read_text().splitlines()]
    windows = [window for step in range(STEPS) for window in windows_of_step(material.letters, step, 0.15)[0]]
    assert [int(line[0]) for line in lines] == [step for step in range(STEPS) for _ in range(BATCH)]
    assert {line[3] for line in lines} == {"+", "-"}
    for (_, contig, start, strand), window in zip(lines, windows, strict=True):
        letters = material.letters[int(start) : int(start) + WINDOW]
        assert contig == "one"
        assert (letters if strand == "+" else letters[::-1].translate(COMPLEMENT)) == window


def test_a_run_taken_up_at_an_earlier_checkpoint_is_the_uninterrupted_one(
    material: Material, command: Callable[..., None], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    shutil.copytree(trained, out)
    assert sorted(path.name[-1] for path in (out / "checkpoints").iterdir()) == ["2", "4", "5"]
    shutil.rmtree(out / "model")
    words = ("--teacher", material.teacher, "--steps", str(STEPS), "--seed", str(SEED), *RECIPE)
    resume = ("--resume", out / "checkpoints" / "step-00000002")
    command("pretrain", "laptop", *material.words(out), *words, *resume, "--stop-after", "3")
    assert not (out / "model").exists()
    command("pretrain", "laptop", *material.words(out), *words, "--resume", "auto")
    for name in ("windows-rank0.tsv", "model/model.safetensors", "model/decoder.safetensors"):
        assert (out / name).read_bytes() == (trained / name).read_bytes(), name
    for split in ("baseline", "train", "validation"):
        both = [[{**line, "seconds": 0} for line in records(run, split)] for run in (out, trained)]
        assert both[0] == both[1]


def test_steps_and_windows_without_a_visible_group_align_nothing(
    material: Material, command: Callable[..., None], tmp_path: Path
) -> None:
    # Single letters are hidden: a group of six is visible in one of seven windows of 18 letters.
    out, options = tmp_path / "run", ("data.mask=nucleotide", "data.window=18", "objective.fit_windows=64")
    words = ("--teacher", material.teacher, "--steps", "5", *RECIPE, *options)
    command("pretrain", "laptop", *material.words(out), *words)
    losses = [record["loss_align"] for record in records(out, "train")]
    assert 0 in losses
    assert any(loss > 0 for loss in losses)
    assert all(math.isfinite(record["loss"]) for record in records(out, "train"))
    report = json.loads((out / "validation.json").read_text())
    assert 0 < report["loss_align"]["windows"] < report["loss_rec"]["windows"]
    assert all(math.isfinite(values[0]) for values in report["loss_align"]["baselines"].values())


def test_a_random_teacher_follows_the_seed_of_the_run(
    material: Material, command: Callable[..., None], tmp_path: Path
) -> None:
    out, name = tmp_path / "run", "random:16x1x2x24"
    words = ("--teacher", name, "--steps", "1", "--seed", str(SEED), *RECIPE)
    command("pretrain", "laptop", *material.words(out), *words)
    facts = json.loads((out / "model" / "training.json").read_text())
    assert facts["teacher_digest"] == load_teacher(name, seed=SEED).digest()
    assert facts["teacher_digest"] != load_teacher(name, seed=SEED + 1).digest()
    # Its teacher is made again from the seed that the folder names.
    last, found = records(out, "validation")[-1], evaluated(material, command, out, tmp_path)
    assert found["loss_align"]["model"][0] == pytest.approx(last["loss_align"], rel=1e-5)


def test_longer_training_exports_a_student_with_lower_held_out_losses(
    material: Material, command: Callable[..., None], trained: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("--teacher", material.teacher, "--steps", "40", "--seed", str(SEED), *RECIPE, "training.validate_every=0")
    command("pretrain", "laptop", *material.words(out), *words, "training.optimizer.weight_decay=0")
    short, long = evaluated(material, command, trained, tmp_path), evaluated(material, command, out, tmp_path)
    assert long["loss_align"]["model"][0] < 0.8 * short["loss_align"]["model"][0]
    # Fresh, it predicts letters evenly; the genome's frequencies alone save 0.14 nats.
    assert long["loss_rec"]["model"][0] < short["loss_rec"]["model"][0] - 0.06


def teacher_words(material: Material, out: Path, *more: str) -> tuple[str | Path, ...]:
    sizes = [f"model.{name}={value}" for name, value in TEACHER_CONFIG.items()]
    recipe = [word for word in RECIPE if word.startswith(("training", "data"))]
    steps = ("--steps", str(STEPS), "--seed", str(SEED))
    return ("teacher", "train", "teacher", *material.words(out), *steps, *sizes, *recipe, *more)


def test_teacher_training_is_that_of_plain_pytorch(
    material: Material, command: Callable[..., None], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    command(*teacher_words(material, out, "model.start=normal"))
    torch.manual_seed(SEED)
    network = NucleotideTransformer(NucleotideTransformerConfig(**TEACHER_CONFIG)).double()

    def losses(windows: list[str], hidden: np.ndarray) -> dict[str, Tensor]:
        true = torch.tensor([KmerTokenizer().encode(window) for window in windows])
        masked = F.pad(torch.from_numpy(hidden), (1, 0))
        logits = network(true.masked_fill(masked, KmerTokenizer.mask_token_id)).logits[masked]
        right = (logits.argmax(-1) == true[masked]).double().mean()
        return {"loss_mlm": F.cross_entropy(logits, true[masked]), "acc_mlm": right}

    def terms_of(step: int) -> tuple[Tensor, dict[str, Tensor]]:
        terms = losses(*windows_of_step(material.letters, step, 0.25))
        return terms["loss_mlm"], terms

    weights = dict(network.named_parameters())
    assert_same_log(out, plain_adamw(weights, terms_of))
    found = dict(NucleotideTransformer.from_pretrained(out / "model").named_parameters())
    # A bias of keys changes no attention: its gradient is rounding alone.
    some = [name for name in weights if not name.endswith("key.bias")]
    assert_same_weights({name: found[name] for name in some}, {name: weights[name] for name in some})
    for fraction, report in (
        (0.25, json.loads((out / "validation.json").read_text())),
        (0.15, evaluated(material, command, out, tmp_path)),  # no option of `had evaluate` changes the fraction
    ):
        windows, hidden = held_out_windows(material, fraction)
        with torch.no_grad():
            terms = losses(windows, hidden)
        expected = {name: value.item() for name, value in terms.items()}
        assert {name: report[name]["model"][0] for name in expected} == pytest.approx(expected, rel=1e-5)
        assert {report[name]["windows"] for name in expected} == {len(windows)}
    at_end = json.loads((out / "validation.json").read_text())["loss_mlm"]["model"][0]
    last = records(out, "validation")[-1]
    assert last["loss"] == last["loss_mlm"] == pytest.approx(at_end, rel=1e-6)


NO_LEARNING = ("training.optimizer.lr=0", "training.optimizer.min_lr=0", "training.optimizer.start_lr=0")


def test_a_teacher_may_start_from_weights_and_by_default_starts_from_letters(
    material: Material, command: Callable[..., None], tmp_path: Path
) -> None:
    # Without learning the exported network is the one at the start.
    command(*teacher_words(material, tmp_path / "weights", *NO_LEARNING, f"model.weights={material.teacher}"))
    command(*teacher_words(material, tmp_path / "letters", *NO_LEARNING))
    networks = (tmp_path / "weights" / "model", material.teacher, tmp_path / "letters" / "model")
    given, expected, letters = (NucleotideTransformer.from_pretrained(folder) for folder in networks)
    assert all(torch.equal(*pair) for pair in zip(given.parameters(), expected.parameters(), strict=True))
    # The output bias is the log frequency of each 6-mer in the training part, on both strands, at every offset.
    counts: Counter[str] = Counter()
    for start, end in TRAIN:
        for text in (material.letters[start:end], material.letters[start:end][::-1].translate(COMPLEMENT)):
            counts.update(text[i : i + GROUP] for i in range(len(text) - GROUP + 1))
    total = sum(counts.values()) + 4**GROUP
    for kmer in ("AAAAAA", "ACGTTT", "CCCCCC"):
        token = KmerTokenizer().encode(kmer)[1]
        assert letters.decoder.bias[token].item() == pytest.approx(math.log((counts[kmer] + 1) / total), rel=1e-5)
