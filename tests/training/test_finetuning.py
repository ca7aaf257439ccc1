"""Fine-tuning: splits that do not leak, batches, scores, and runs that can be repeated and resumed."""

import dataclasses
import gc
import json
import math
import re
import weakref
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

import had
from had.baselines.evidence import Evidence
from had.dna.alphabet import decode, encode_bytes, reverse_complement
from had.dna.labelled_tasks import Task
from had.errors import UserError
from had.files import sha256_of_file
from had.models.heads import HADClassifierConfig, HADForSequenceClassification
from had.models.student import HADConfig, HADModel
from had.training import finetuning_evidence, finetuning_loop
from had.training.checkpoints import latest_valid
from had.training.finetuning import build_model, finetune
from had.training.finetuning_batches import augmented, collate, make_batches, portions
from had.training.finetuning_config import FinetuneConfig
from had.training.finetuning_data import load_data
from had.training.finetuning_loop import Fit
from had.training.finetuning_plots import draw_pictures
from had.training.finetuning_recipe import FitConfig, schedule_epochs
from had.training.finetuning_report import describe
from had.training.finetuning_scores import score_logits
from had.training.runs import RunOptions

SMALL = HADConfig(
    hidden_size=16, intermediate_size=24, recurrent_blocks=1, attention_heads=1, key_width=4, value_width=8
)
QUICK = FitConfig(epochs=2, batch_size=16, optimizer="adamw", lr=1e-2, ema=0.5)
OPTIONS = RunOptions(device="cpu", threads=1, quiet=True)


def sequence(rng: np.random.Generator, gc: float, length: int = 24) -> str:
    return "".join(rng.choice(list("ACGT"), length, p=[(1 - gc) / 2, gc / 2, gc / 2, (1 - gc) / 2]))


def write_rows(path: Path, rows: list[str], header: str = "sequence,label") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(header + "\n" + "\n".join(rows) + "\n")
    return path


def two_classes(n: int, seed: int = 0) -> list[str]:
    rng = np.random.default_rng(seed)
    return [f"{sequence(rng, 0.9 if i % 2 else 0.1)},{'rich' if i % 2 else 'poor'}" for i in range(n)]


def config(data: Path, **changes) -> FinetuneConfig:
    made = FinetuneConfig(str(data), model="scratch", student=SMALL, training=QUICK)
    return dataclasses.replace(made, **changes)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Data with the user's own split, and one finished run on it."""
    base = tmp_path_factory.mktemp("finetuning")
    for name, n in (("train", 96), ("dev", 24), ("test", 24)):
        write_rows(base / f"data/{name}.csv", two_classes(n, seed=len(name) + n))
    finetune(config(base / "data"), base / "run", OPTIONS)
    return base


def test_a_run_learns_and_writes_its_scores_model_and_pictures(folder: Path) -> None:
    report = json.loads((folder / "run/metrics.json").read_text())
    assert report["test"]["mcc"] > 0.8
    assert report["validation_split"] == "the user's validation rows"
    assert report["data"]["test"]["rows"] == 24
    assert np.sum(report["confusion"]["counts"]) == 24
    for name in ("confusion", "roc", "precision_recall", "calibration"):
        assert (folder / f"run/{name}.png").read_bytes().startswith(b"\x89PNG")
    model = HADForSequenceClassification.from_pretrained(folder / "run")
    assert model.config.classes == ["poor", "rich"]
    assert model.config.conjoin == report["conjoin"]


@pytest.mark.parametrize(("freeze", "split"), [(False, "test"), (True, "validation")])
def test_all_long_work_shows_its_progress(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], freeze: bool, split: str
) -> None:
    write_rows(tmp_path / "data/train.csv", two_classes(260))
    write_rows(tmp_path / f"data/{'test' if split == 'test' else 'dev'}.csv", two_classes(20, seed=1))
    made = config(tmp_path / "data", freeze=freeze)
    finetune(made, tmp_path / "run", dataclasses.replace(OPTIONS, quiet=False))
    text = capsys.readouterr().err
    done = [(what, float(n)) for what, n in re.findall(r"^(.+): 100 %, ([\d.]+) of", text, re.MULTILINE)]
    train = int(json.loads((tmp_path / "run/metrics.json").read_text())["data"]["train"]["rows"])
    expected = [
        ("reading with the frozen student", 280) if freeze else ("asking k-mers about positions", 30),
        ("asking k-mers about strands", 30),
        ("fine-tuning", 2 * train),
        (f"predicting the {split} rows", 20),
    ]
    assert done == expected


def test_a_resumed_run_is_the_uninterrupted_one(folder: Path) -> None:
    out = folder / "resumed"
    assert finetune(config(folder / "data"), out, dataclasses.replace(OPTIONS, stop_after=1)) == {}
    assert not (out / "model").exists()
    finetune(config(folder / "data"), out, dataclasses.replace(OPTIONS, resume="auto"))
    then, now = (load_file(folder / name / "model/model.safetensors") for name in ("run", "resumed"))
    assert then.keys() == now.keys()
    for name in then:
        assert torch.equal(then[name], now[name]), name
    reports = [json.loads((folder / name / "metrics.json").read_text()) for name in ("run", "resumed")]
    assert reports[0]["test"] == reports[1]["test"]
    with pytest.raises(UserError, match="another one"):
        finetune(config(folder / "data", seed=1), out, dataclasses.replace(OPTIONS, resume="auto"))


@pytest.mark.parametrize("training", [{"optimizer": "muon", "muon_lr": 3e-3}, {"optimizer": "muon", "conjoin": "on"}])
def test_muon_repeats_and_resumes_bit_for_bit(folder: Path, tmp_path: Path, training: dict) -> None:
    made = config(folder / "data", training=dataclasses.replace(QUICK, **training))
    once = finetune(made, tmp_path / "once", OPTIONS)
    finetune(made, tmp_path / "resumed", dataclasses.replace(OPTIONS, stop_after=1))
    again = finetune(made, tmp_path / "resumed", dataclasses.replace(OPTIONS, resume="auto"))
    assert once["test"] == again["test"]
    then, now, adamw = (
        load_file(place / "model/model.safetensors")
        for place in (tmp_path / "once", tmp_path / "resumed", folder / "run")
    )
    assert all(torch.equal(then[name], now[name]) for name in then)
    name = "student.blocks.0.mlp.in_proj.weight"
    assert not torch.equal(then[name], adamw[name])


def test_a_resumed_run_shows_strands_as_it_was_decided(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = config(folder / "data", training=dataclasses.replace(QUICK, rc_augment="auto"))
    monkeypatch.setattr(finetuning_loop, "strands_of", lambda *_: Evidence(0.1, 3.01, 300))
    once = finetune(made, tmp_path / "once", OPTIONS)
    finetune(made, tmp_path / "resumed", dataclasses.replace(OPTIONS, stop_after=1))
    # On another number of threads the same sums may end a hair below the threshold.
    monkeypatch.setattr(finetuning_loop, "strands_of", lambda *_: Evidence(0.1, 2.99, 300))
    again = finetune(made, tmp_path / "resumed", dataclasses.replace(OPTIONS, resume="auto"))
    assert once["rc_augment"] is again["rc_augment"] is False
    assert once["test"] == again["test"]
    then, now = (load_file(tmp_path / name / "model/model.safetensors") for name in ("once", "resumed"))
    assert all(torch.equal(then[name], now[name]) for name in then)


def test_a_checkpoint_of_other_optimizers_is_refused_in_words(tmp_path: Path) -> None:
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))

    def fit(optimizer: str) -> Fit:
        model = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL))
        training = FitConfig(epochs=1, optimizer=optimizer, rc_augment=False)
        return Fit(model, data.train, data.valid, training, seed=0)

    fit("muon").run(checkpoints=tmp_path / "states")
    (place,) = (tmp_path / "states").glob("step-*")
    with pytest.raises(UserError, match="a checkpoint of other optimizers"):
        fit("adamw").run(resume_from=place)


def test_muon_has_a_rate_of_its_own_and_needs_matrices(tmp_path: Path) -> None:
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))

    def weights(**changes: float) -> dict[str, torch.Tensor]:
        torch.manual_seed(0)
        model = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL))
        training = FitConfig(epochs=1, optimizer="muon", lr=1e-3, warmup=0.0, batch_size=8, ema=0, **changes)
        Fit(model, data.train, data.valid, training, seed=0).run()
        return {name: tensor.clone() for name, tensor in model.state_dict().items()}

    same, again, faster = weights(), weights(muon_lr=1e-3), weights(muon_lr=1e-1)
    torch.manual_seed(0)
    start = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL)).state_dict()
    matrix, table = "student.blocks.0.mlp.in_proj.weight", "student.embedding.weight"
    assert all(torch.equal(same[name], again[name]) for name in same)
    moved = [float((found[matrix] - start[matrix]).norm()) for found in (same, faster)]
    assert moved[1] > 20 * moved[0] > 0
    assert float((faster[table] - start[table]).abs().max()) < 0.01
    with pytest.raises(UserError, match=r"frozen student.*--optimizer muon out"):
        config(tmp_path / "a.csv", freeze=True, training=FitConfig(optimizer="muon"))
    with pytest.raises(UserError, match=r"frozen student.*training\.muon_lr out"):
        config(tmp_path / "a.csv", freeze=True, training=FitConfig(muon_lr=1e-3))
    with pytest.raises(UserError, match="muon_lr goes with"):
        FitConfig(optimizer="adamw", muon_lr=1e-3)


def test_auto_takes_muon_where_there_are_matrices_to_train(tmp_path: Path) -> None:
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))

    def fit(freeze: bool, **changes: object) -> Fit:
        model = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL))
        return Fit(model, data.train, data.valid, FitConfig(epochs=1, **changes), seed=0, freeze=freeze)

    assert [type(optimizer).__name__ for optimizer in fit(False).optimizers] == ["AdamW", "Muon"]
    assert [schedule.lr for schedule in fit(False).schedules] == [5e-3, 5e-3]
    assert [schedule.lr for schedule in fit(False, optimizer="adamw").schedules] == [1e-3]
    assert [schedule.lr for schedule in fit(True).schedules] == [1e-2]


def test_few_rows_are_passed_over_more_often(tmp_path: Path) -> None:
    plain = FitConfig()
    assert [schedule_epochs(plain, rows) for rows in (100_000, 1904, 1856, 640, 10)] == [5, 5, 6, 15, 150]
    assert schedule_epochs(plain, 100_000, freeze=True) == 20
    assert schedule_epochs(FitConfig(epochs=2), 10) == 2
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))
    model = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL))
    assert Fit(model, data.train, data.valid, FitConfig(batch_size=4), seed=0).total == 150
    with pytest.raises(UserError, match="epochs must be at least 1"):
        FitConfig(epochs=0)


def test_equal_rows_are_asked_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    monkeypatch.setattr(
        finetuning_evidence, "position_evidence", lambda *given, **_: asked.append(given) or Evidence(0.1, 5.0, 300)
    )
    finetuning_evidence._positions.cache_clear()
    rows = two_classes(24)
    for name in ("a", "b"):
        train = load_data(write_rows(tmp_path / f"{name}.csv", rows)).train
        windows, found = finetuning_evidence.windows_of("binary", train, "auto")
        assert found is not None
        assert windows == int(np.median(train.lengths))
    assert len(asked) == 1
    # One letter, or one label, makes other rows.
    for other in (rows[1:], [rows[0].replace("poor", "rich"), *rows[1:]]):
        train = load_data(write_rows(tmp_path / "c.csv", other)).train
        finetuning_evidence.windows_of("binary", train, "auto")
    assert len(asked) == 3
    assert finetuning_evidence.windows_of("binary", train, False) == (0, None)
    assert finetuning_evidence.windows_of("binary", train, True)[0] > 0
    # Between the settings of a search come other tasks; what is remembered holds no rows.
    train = load_data(tmp_path / "a.csv").train
    finetuning_evidence.windows_of("binary", train, "auto")
    assert len(asked) == 3
    sequences, targets = asked[0][:2]
    assert [*sequences] == [decode(row) for row in train.codes]
    assert targets.tolist() == (train.targets[:, None] == np.arange(2)).tolist()
    gone = weakref.ref(train.codes[0])
    asked.clear()
    del train, sequences, targets
    gc.collect()
    assert gone() is None
    finetuning_evidence._positions.cache_clear()


@pytest.mark.parametrize(
    ("z", "without", "with_windows"), [(4.0, False, False), (0.0, True, False), (-4.0, True, True)]
)
def test_rows_are_shown_on_either_strand_unless_it_costs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, z: float, without: bool, with_windows: bool
) -> None:
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))
    monkeypatch.setattr(finetuning_loop, "strands_of", lambda *_: Evidence(0.1, z, 300))
    for windows, expected in ((0, without), (8, with_windows)):
        heads = HADClassifierConfig("binary", ["poor", "rich"], student=SMALL, windows=windows)
        fit = Fit(HADForSequenceClassification(heads), data.train, data.valid, FitConfig(epochs=1), seed=0)
        assert fit.rc_augment is expected
        assert fit.shift == (0 if windows else 2)
        model = HADForSequenceClassification(heads)
        asked = Fit(model, data.train, data.valid, FitConfig(epochs=1, rc_augment=not expected), seed=0)
        assert asked.rc_augment is not expected


@pytest.mark.parametrize("anchored", [True, False])
def test_the_head_knows_positions_where_they_tell_something(tmp_path: Path, anchored: bool) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        codes = rng.integers(0, 4, 60).astype(np.uint8)
        start = 12 if i % 2 and anchored else int(rng.integers(0, 52))
        codes[start : start + 8] = encode_bytes(b"TATAAAAG" if i % 2 or anchored else b"GCCGGCGG")
        rows.append(f"{decode(codes)},{'a' if i % 2 else 'b'}")
    data = write_rows(tmp_path / "a.csv", rows)
    made = config(data, training=dataclasses.replace(QUICK, epochs=1))
    report = finetune(made, tmp_path / "run", OPTIONS)
    assert report["windows"] == (60 if anchored else 0)
    assert (report["position_evidence"]["z"] > 3) is anchored
    assert had.load(tmp_path / "run").config.windows == report["windows"]
    said = f"The head sees {'60 windows beside the mean over all letters' if anchored else 'one mean over all letters'}"
    card = (tmp_path / "run/model/README.md").read_text()
    assert said in card
    assert ("cut around the same anchor" in card) is anchored
    frozen = finetune(dataclasses.replace(made, freeze=True), tmp_path / "frozen", OPTIONS)
    assert (frozen["windows"], frozen["position_evidence"]) == (0, None)
    with pytest.raises(UserError, match=r"leave --freeze or training\.positions out"):
        config(data, freeze=True, training=FitConfig(positions=True))


@pytest.mark.parametrize("oriented", [True, False])
def test_rows_keep_their_strand_where_it_tells_something(tmp_path: Path, oriented: bool) -> None:
    rng = np.random.default_rng(0)
    rows = []
    for i in range(300):
        codes = rng.integers(0, 4, 60).astype(np.uint8)
        codes[20:28] = encode_bytes(b"TATAAAAG")
        # Class b: the other strand's motif; or, where strands say nothing, no motif.
        codes = codes if i % 2 else reverse_complement(codes) if oriented else rng.permutation(codes)
        if not oriented and rng.random() < 0.5:
            codes = reverse_complement(codes)
        rows.append(f"{decode(codes)},{'a' if i % 2 else 'b'}")
    made = config(write_rows(tmp_path / "a.csv", rows), training=dataclasses.replace(QUICK, epochs=1))
    report = finetune(made, tmp_path / "run", OPTIONS)
    assert report["rc_augment"] is not oriented
    assert report["strand_evidence"]["rows"] == report["data"]["train"]["rows"]
    card = (tmp_path / "run/model/README.md").read_text()
    assert f"Training showed rows {'on the strand they are given' if oriented else 'on either strand'}" in card


def test_a_fine_tuned_model_embeds_and_predicts_and_can_be_fine_tuned_again(folder: Path, tmp_path: Path) -> None:
    for place in ("run", "run/model"):
        model = had.load(folder / place)
        assert isinstance(model, HADForSequenceClassification)
        rows = [row.split(",") for row in (folder / "data/test.csv").read_text().splitlines()[1:]]
        texts = [sequence for sequence, _ in rows]
        found = model.predict([*texts, "nnnn"], batch_size=5)
        assert found.shape == (25, 2)
        assert np.isnan(found[-1]).all()
        np.testing.assert_allclose(found[:-1].sum(1), 1, rtol=1e-5)
        right = [model.config.classes[k] == label for k, (_, label) in zip(found[:-1].argmax(1), rows, strict=True)]
        assert np.mean(right) == json.loads((folder / "run/metrics.json").read_text())["test"]["accuracy"]
        vectors = HADModel.from_pretrained(folder / place).embed(texts)
        np.testing.assert_array_equal(model.embed(texts), vectors)
        assert vectors.shape == (24, 16)
    with pytest.raises(UserError, match="sequence 1"):
        model.predict(["ACGT", "ACXT"])
    with pytest.raises(UserError, match="nothing to predict"):
        model.predict([""])
    with pytest.raises(UserError, match="reads up to"):
        model.predict(["A" * (model.config.student.max_length + 1)])
    finetune(config(folder / "data", model=str(folder / "run")), tmp_path / "again", OPTIONS)
    card = (tmp_path / "again/model/README.md").read_text()
    assert f"fine-tuned before on `{folder / 'data'}`" in card
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="not the folder of a saved model"):
        had.load(tmp_path / "empty")


def test_the_card_says_from_what_on_what_how_well_and_under_which_licence(folder: Path, tmp_path: Path) -> None:
    card = (folder / "run/model/README.md").read_text()
    report = json.loads((folder / "run/metrics.json").read_text())
    digest = sha256_of_file(folder / "data/train.csv")
    rows = "Rows: train 96, dev 24, test 24. Validation: the user's validation rows."
    scores = f"| test | {report['test']['mcc']:.4f} |"
    for text in ("`poor`, `rich`", f"train `{digest}`", rows, scores, "drawn afresh", "Seed 0", "had.load"):
        assert text in card, text
    torch.manual_seed(0)
    HADModel(SMALL).save_pretrained(tmp_path / "student")
    facts = {"teacher": "50m", "teacher_licence": "CC BY-NC-SA 4.0", "teacher_digest": "abc", "steps": 3}
    (tmp_path / "student/training.json").write_text(json.dumps(facts))
    data = write_rows(tmp_path / "values.csv", [f"{row.split(',')[0]},{i}.5" for i, row in enumerate(two_classes(20))])
    finetune(config(data, model=str(tmp_path / "student")), tmp_path / "first", OPTIONS)
    finetune(config(data, model=str(tmp_path / "first")), tmp_path / "second", OPTIONS)
    for run in ("first", "second"):
        card = (tmp_path / run / "model/README.md").read_text()
        assert "license: other" in card
        assert "licensed CC BY-NC-SA 4.0" in card
        assert "no test rows" in card
        assert "| validation (chose the epoch: too high) |" in card


def test_test_rows_have_no_part_in_the_choice_of_the_model(folder: Path) -> None:
    base = folder / "other"
    for name in ("train", "dev"):
        write_rows(base / f"data/{name}.csv", (folder / f"data/{name}.csv").read_text().splitlines()[1:])
    rows = (folder / "data/test.csv").read_text().splitlines()[1:]
    turned = [row.replace("rich", "x").replace("poor", "rich").replace("x", "poor") for row in rows]
    write_rows(base / "data/test.csv", [*turned[:-1], turned[-1].split(",")[0] + ",never seen"])
    report = finetune(config(base / "data"), base / "run", OPTIONS)
    first = json.loads((folder / "run/metrics.json").read_text())
    assert report["validation"] == first["validation"]
    then, now = (load_file(place / "run/model/model.safetensors") for place in (folder, base))
    assert all(torch.equal(then[name], now[name]) for name in then)
    assert report["test"]["accuracy"] == pytest.approx(1 - first["test"]["accuracy"], abs=1 / 24 + 1e-9)
    assert report["data"]["test"]["labels_not_in_train"] == ["never seen"]
    assert report["confusion"]["true"] == ["poor", "rich", "(not in train)"]
    assert sum(report["confusion"]["counts"][2]) == 1


def test_regression_multilabel_and_a_frozen_student_run(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    shares = rng.uniform(0.1, 0.9, 48)
    data = write_rows(tmp_path / "values.csv", [f"{sequence(rng, s)},{100 * s:.2f}" for s in shares])
    report = finetune(config(data), tmp_path / "regression", OPTIONS)
    assert report["task"] == "regression"
    assert report["metric"] == "pearson"
    assert (tmp_path / "regression/scatter.png").exists()
    # The same values far from 0 are learnt as well, to the rounding of the values themselves.
    rows = [line.split(",") for line in data.read_text().splitlines()[1:]]
    far = write_rows(tmp_path / "far.csv", [f"{letters},{10**9 + float(value):.2f}" for letters, value in rows])
    assert finetune(config(far), tmp_path / "far", OPTIONS)["validation"] == pytest.approx(
        report["validation"], rel=1e-3
    )
    rows = [f"{sequence(rng, 0.9 if a else 0.1)},{a},{i % 3 == 0:d}" for i, a in enumerate([0, 1] * 24)]
    data = write_rows(tmp_path / "labels.csv", rows, "sequence,gc,third")
    report = finetune(config(data, labels=["third", "gc"]), tmp_path / "multilabel", OPTIONS)
    assert report["classes"] == ["third", "gc"]
    assert 0 <= report["validation"]["exact_match"] <= 1
    torch.manual_seed(0)
    HADModel(SMALL).save_pretrained(tmp_path / "student")
    before = load_file(tmp_path / "student/model.safetensors")
    data = write_rows(tmp_path / "classes.csv", two_classes(48))
    report = finetune(config(data, model=str(tmp_path / "student"), freeze=True), tmp_path / "frozen", OPTIONS)
    assert report["parameters_trained"] == 2 * 16 + 2
    after = load_file(tmp_path / "frozen/model/model.safetensors")
    assert all(torch.equal(after[f"student.{name}"], tensor) for name, tensor in before.items())


def test_the_command_takes_a_recipe_under_its_options(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from had.cli import main

    def had_finetune(*words: str) -> int:
        monkeypatch.setattr("sys.argv", ["had", "finetune", str(folder / "data"), "--device", "cpu", *words])
        with pytest.raises(SystemExit) as stop:
            main()
        return int(stop.value.code or 0)

    # The config of an earlier run is a recipe; options and overrides win over it.
    recipe = ("--recipe", str(folder / "run/config.yaml"), "--threads", "1")
    words = (*recipe, "--optimizer", "muon", "--epochs", "1", "training.dropout=0.3", "--out", str(tmp_path / "run"))
    assert had_finetune(*words, "--dry-run") == 0
    assert re.search(r"would write .* in about \d+ s; nothing was written", capsys.readouterr().err)
    assert not (tmp_path / "run").exists()
    assert had_finetune(*words, "--quiet") == 0
    facts = json.loads((tmp_path / "run/model/finetuning.json").read_text())
    then = dataclasses.asdict(QUICK)
    assert facts["training"] == {**then, "optimizer": "muon", "epochs": 1, "dropout": 0.3}
    assert had_finetune(*recipe, "--model", "student", "student.hidden_size=32", "--out", str(tmp_path / "no")) == 2
    assert "student has its own sizes; name --model scratch" in capsys.readouterr().err
    assert had_finetune(*recipe, "--optimizer", "sgd", "--out", str(tmp_path / "no")) == 2
    assert "one of auto, adamw, muon" in capsys.readouterr().err
    assert not (tmp_path / "no").exists()


def test_nothing_is_written_where_data_or_model_are_wrong(tmp_path: Path) -> None:
    data = write_rows(tmp_path / "a.csv", two_classes(20))
    with pytest.raises(UserError, match="no bundled model"):
        finetune(config(data, model="no_such_model"), tmp_path / "run", OPTIONS)
    with pytest.raises(UserError, match="the one class"):
        finetune(config(write_rows(tmp_path / "b.csv", ["ACGT,1"] * 20)), tmp_path / "run", OPTIONS)
    with pytest.raises(UserError, match="metric of binary"):
        finetune(config(data, training=FitConfig(metric="r2")), tmp_path / "run", OPTIONS)
    assert finetune(config(data), tmp_path / "run", dataclasses.replace(OPTIONS, dry_run=True)) == {}
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("file", "content"),
    [
        *[(name, text) for name in ("training.json", "finetuning.json") for text in ("", "[]", "[" * 100_000)],
        ("training.json", '{"teacher_licence": 3.5}'),
        ("finetuning.json", '{"base": []}'),
        ("finetuning.json", '{"base": {"pretraining": {"teacher": {}}}}'),
        ("finetuning.json", '{"base": {"finetuned_before": ["x"]}}'),
    ],
)
def test_what_a_base_model_says_of_its_licence_is_not_lost_where_the_file_is_damaged(
    tmp_path: Path, file: str, content: str
) -> None:
    HADModel(SMALL).save_pretrained(tmp_path / "student")
    (tmp_path / "student" / file).write_text(content)
    data = write_rows(tmp_path / "a.csv", two_classes(20))
    with pytest.raises(UserError, match=file.replace(".", r"\.")):
        finetune(config(data, model=str(tmp_path / "student")), tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()


def test_a_run_is_not_resumed_in_another_precision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = write_rows(tmp_path / "a.csv", two_classes(20))
    settings = config(data, training=dataclasses.replace(QUICK, precision="auto"))
    monkeypatch.setattr("had.training.devices.native_bf16", lambda _: True)
    finetune(settings, tmp_path / "run", dataclasses.replace(OPTIONS, stop_after=1))
    monkeypatch.setattr("had.training.devices.native_bf16", lambda _: False)
    with pytest.raises(UserError, match=r"bf16 there and float32 here \(pass training.precision=bf16\)"):
        finetune(settings, tmp_path / "run", dataclasses.replace(OPTIONS, resume="auto"))


def test_data_that_no_model_can_learn_from_are_refused_in_words(tmp_path: Path) -> None:
    for task, label in (("auto", "1"), ("regression", "0.5"), ("multilabel", "a;b")):
        data = write_rows(tmp_path / "n.csv", [f"NNNN,{label}"] * 9)
        with pytest.raises(UserError, match=r"n\.csv has no training row with a letter A, C, G or T \(9 rows"):
            load_data(data, task=task)
    with pytest.raises(UserError, match="no label to learn"):
        load_data(write_rows(tmp_path / "none.csv", ["ACGT,;"] * 9))
    data = write_rows(tmp_path / "same.csv", [f"{row.split(',')[0]},0.1" for row in two_classes(9)])
    # Of 7 training values, as 9 rows leave, NumPy's deviation is not 0.
    with pytest.raises(UserError, match=r"all training values are 0\.1, or too near"):
        finetune(config(data, valid_fraction=0.2), tmp_path / "run", OPTIONS)
    data = write_rows(tmp_path / "long.csv", [*two_classes(20), "A" * 150 + ",rich"])
    short = dataclasses.replace(SMALL, max_length=100)
    with pytest.raises(UserError, match="a sequence of 150 bp, but the model reads up to 100; set max_length=100"):
        finetune(config(data, student=short), tmp_path / "run", OPTIONS)
    for seed in (-1, 2**64):
        with pytest.raises(UserError, match=f"a seed is a whole number from 0 to .*; got {seed}"):
            config(data, seed=seed)
    assert not (tmp_path / "run").exists()


def test_a_folder_in_use_is_refused_before_the_data_are_read_and_in_a_dry_run(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("mine")
    for options in (OPTIONS, dataclasses.replace(OPTIONS, dry_run=True)):
        for out, message in (
            (folder / "run", "this folder is not empty; use --resume auto"),
            (tmp_path / "file", "is a file, not a folder"),
            (tmp_path / "file/below/run", "file is a file"),
        ):
            with pytest.raises(UserError, match=message):
                finetune(config(tmp_path / "absent.csv"), out, options)
    monkeypatch.setattr("os.access", lambda path, mode: False)
    with pytest.raises(UserError, match="no permission to write into"):
        finetune(config(tmp_path / "absent.csv"), tmp_path / "run", OPTIONS)
    # What may be gone on with is no obstacle to a dry run of going on.
    again = dataclasses.replace(OPTIONS, dry_run=True, resume="auto")
    assert finetune(config(folder / "data"), folder / "run", again) == {}


def test_stopping_before_the_first_epoch_is_refused() -> None:
    for epochs in (0, -1):
        with pytest.raises(UserError, match=f"--stop-after must be at least 1; got {epochs}"):
            RunOptions(stop_after=epochs)


def described(path: Path, **changes) -> str:
    made = config(path, **changes)
    data = load_data(path, task=made.task, valid_fraction=made.valid_fraction)
    return "\n".join(describe(made, data, build_model(made, data, torch.device("cpu"))[0]))


def test_what_is_said_of_the_data_lets_mistakes_be_seen(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)

    def rows(labels: list[object]) -> Path:
        return write_rows(tmp_path / "a.csv", [f"{sequence(rng, 0.5)},{label}" for label in labels])

    said = described(rows(["yes"] * 10 + ["no"] * 390))
    assert "labels of train: no 351, yes 9" in said
    assert "the largest class has 39 times the rows of the smallest; training.class_weights=balanced" in said
    assert "validation has only 1 rows of yes: its scores move much by chance" in said
    balanced = dataclasses.replace(QUICK, class_weights="balanced")
    assert "training.class_weights" not in described(tmp_path / "a.csv", training=balanced)
    said = described(rows(["yes", "no"] * 150))
    assert "times the rows" not in said
    assert "by chance" not in said
    whole = rows(list(range(20)) * 10)
    assert "20 whole numbers are taken as names of classes; --task regression" in described(whole)
    assert "taken as names" not in described(whole, task="multiclass")
    assert "values of train: from 0 to 19, mean" in described(whole, task="regression")
    said = described(rows([0.5, 1.5] * 20))
    assert "validation has only 4 rows: its scores" in said
    assert re.search(r"labels of train: a \d+, b \d+", described(rows(["a", "a;b"] * 60)))
    assert "differ in case alone are different classes: Yes, yes" in described(rows(["Yes", "yes", "no"] * 30))
    ones = write_rows(tmp_path / "b.csv", [f"{sequence(rng, 0.5)},{i % 2},0" for i in range(60)], "sequence,tata,inr")
    made = config(ones, labels=["tata", "inr"])
    data = load_data(ones, label_columns=made.labels)
    said = "\n".join(describe(made, data, build_model(made, data, torch.device("cpu"))[0]))
    assert "no training row has inr: the model cannot learn that" in said


def test_labels_that_are_names_of_rows_are_told_from_too_few_rows(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    (tmp_path / "a.fa").write_text("".join(f">P{i}|GENE_{i}\n{sequence(rng, 0.5)}\n" for i in range(30)))
    with pytest.raises(UserError, match=r"a\.fa: each of the 30 labels \(GENE_0, .*in FASTA >name\|label"):
        load_data(tmp_path / "a.fa")
    rows = [f"{row},{'train' if i else ''}" for i, row in enumerate(two_classes(9))]
    with pytest.raises(UserError, match="line 2: the split of this row is empty; it is none of train, dev, test"):
        load_data(write_rows(tmp_path / "b.csv", rows, "sequence,label,split"))


def test_equal_sequences_with_different_labels_are_counted(tmp_path: Path) -> None:
    rows = [*two_classes(40), *["ACGTTGCACCAA,rich", "ACGTTGCACCAA,poor", "acgttgcaccaa,poor"] * 2]
    facts = load_data(write_rows(tmp_path / "a.csv", rows), valid_fraction=0.2).facts
    assert sum(facts[name]["sequences_with_several_labels"] for name in ("train", "dev")) == 1


def test_a_value_that_is_no_number_is_named_with_the_file_of_its_split(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    for name in ("train", "dev", "test"):
        write_rows(tmp_path / f"data/{name}.csv", [f"{sequence(rng, 0.5)},{i}.5" for i in range(9)])
    write_rows(tmp_path / "data/test.csv", ["ACGT,1.5", "ACGA,high"])
    with pytest.raises(UserError, match=r"test\.csv, line 3: the label 'high' is no finite number"):
        load_data(tmp_path / "data")


def test_every_reason_for_dropping_has_its_lines(tmp_path: Path) -> None:
    rows = [*two_classes(20), *["ACGT,"] * 120, ",a"]
    fact = load_data(write_rows(tmp_path / "a.csv", rows)).facts["train"]
    assert fact["dropped"] == {"a missing label": 120, "an empty sequence": 1}
    lines = {why: [line for line, reason in fact["dropped_lines"] if reason == why] for why in fact["dropped"]}
    assert lines == {"a missing label": list(range(22, 122)), "an empty sequence": [142]}


def test_repeated_ids_are_counted_before_rows_are_held_out(tmp_path: Path) -> None:
    rng = np.random.default_rng(8)
    rows = [f"s{i // 2},{sequence(rng, 0.5)},{i % 2}" for i in range(40)]
    data = load_data(write_rows(tmp_path / "a.csv", rows, "id,sequence,label"), split="random", valid_fraction=0.4)
    assert data.facts["train"]["duplicated_ids"] == 20
    # Numbers that are those of their rows are names as well; rows without a name repeat nothing.
    rows = [f"{i + 1 if i < 30 else i - 9},{row}" for i, row in enumerate(two_classes(40))]
    data = load_data(write_rows(tmp_path / "b.csv", rows, "id,sequence,label"), split="random")
    assert data.facts["train"]["duplicated_ids"] == 10
    assert load_data(write_rows(tmp_path / "c.csv", two_classes(40))).facts["train"]["duplicated_ids"] == 0


def test_validation_by_locus_never_overlaps_training(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    starts = rng.integers(0, 4000, 200)
    rows = [f"{sequence(rng, 0.5)},{i % 2},chr{1 + i % 3},{s},{s + 24},+" for i, s in enumerate(starts)]
    path = write_rows(tmp_path / "a.csv", rows, "seq,label,region,start,end,strand")
    data = load_data(path, seed=1)
    assert "by locus" in data.split
    place = {line.split(",")[0]: line.split(",")[2:5] for line in rows}
    held = [place[decode(codes)] for codes in data.valid.codes]
    kept = [place[decode(codes)] for codes in data.train.codes]
    assert len(held) + len(kept) == 200
    assert 10 <= len(held) <= 40
    for contig, start, end in held:
        assert not any(c == contig and int(s) < int(end) and int(start) < int(e) for c, s, e in kept)
    assert "coordinates" not in load_data(path, split="random").split
    with pytest.raises(UserError, match="needs columns"):
        load_data(write_rows(tmp_path / "b.csv", two_classes(20)), split="locus")


def test_equal_sequences_on_either_strand_stay_on_one_side(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    rows = []
    for i in range(40):
        text = sequence(rng, 0.5)
        other = decode(reverse_complement(encode_bytes(text.encode())))
        rows += [f"{text},{i % 2}", f"{other.lower()},{i % 2}"]
    data = load_data(write_rows(tmp_path / "a.csv", rows), test_fraction=0.2)

    def keys(part) -> set[str]:
        return {min(decode(c), decode(reverse_complement(c))) for c in part.codes}

    assert data.test is not None
    assert not keys(data.train) & keys(data.valid)
    assert not (keys(data.train) | keys(data.valid)) & keys(data.test)
    assert data.facts["test_rows_also_in_train"] == 0
    assert data.facts["train"]["duplicated_sequences"] == len(data.train) // 2
    assert set(data.train.targets) == set(data.valid.targets) == {0, 1}


def test_rows_of_nothing_are_dropped_and_listed_and_leaks_counted(tmp_path: Path) -> None:
    base = tmp_path / "data"
    train = [*two_classes(12), "NNNN,rich", ",poor", "ACGT,"]
    write_rows(base / "train.csv", train)
    write_rows(base / "dev.csv", two_classes(6, seed=5))
    first = train[0].split(",")[0]
    write_rows(base / "test.csv", [f"{decode(reverse_complement(encode_bytes(first.encode())))},poor", "AC,rich"])
    data = load_data(base)
    assert len(data.train) == 12
    reasons = {"a sequence of N alone": 1, "an empty sequence": 1, "a missing label": 1}
    assert data.facts["train"]["dropped"] == reasons
    assert [14, "a sequence of N alone"] in data.facts["train"]["dropped_lines"]
    assert data.test_in_train.tolist() == [True, False]


def test_a_split_column_is_the_users_split_and_classes_do_not_follow_row_order(tmp_path: Path) -> None:
    rows = [f"{row},{'train' if i < 10 else 'valid' if i < 14 else 'test'}" for i, row in enumerate(two_classes(20))]
    data = load_data(write_rows(tmp_path / "a.csv", rows, "sequence,label,split"))
    assert (len(data.train), len(data.valid), len(data.test or ())) == (10, 4, 6)
    turned = load_data(write_rows(tmp_path / "b.csv", rows[::-1], "sequence,label,split"))
    assert data.task == turned.task
    rows = [*rows, ",rich,test", "ACGT,,valid"]
    facts = load_data(write_rows(tmp_path / "d.csv", rows, "sequence,label,split")).facts
    dropped = {name: facts[name]["dropped"] for name in ("train", "dev", "test")}
    assert dropped == {"train": {}, "dev": {"a missing label": 1}, "test": {"an empty sequence": 1}}
    with pytest.raises(UserError, match="line 2: the split 'fold1'"):
        load_data(write_rows(tmp_path / "c.csv", ["ACGT,1,fold1"], "sequence,label,split"))


def test_batches_hold_every_row_once_and_like_lengths_together() -> None:
    rng = np.random.default_rng(0)
    lengths = rng.integers(2, 1000, 333)
    batches = make_batches(lengths, 32, rng)
    assert sorted(np.concatenate(batches).tolist()) == list(range(333))
    assert max(np.ptp(lengths[batch]) for batch in batches) < 200
    passes = portions(lengths, np.arange(333), 5000)
    assert sorted(np.concatenate(passes).tolist()) == list(range(333))
    assert all(len(p) * lengths[p].max() <= 5000 for p in passes)
    assert [len(p) for p in portions(np.array([9, 9]), np.array([0, 1]), 5)] == [1, 1]


def test_augmentation_turns_the_strand_and_cuts_a_few_letters() -> None:
    codes = encode_bytes(b"ACGTTGCAAACCCGGGTTTACGAT" * 2)
    text, seen = decode(codes), set()
    for seed in range(40):
        made = augmented(codes, np.random.default_rng(seed), True, 2)
        assert len(made) == len(codes) - 2
        forward, back = decode(made), decode(reverse_complement(made))
        assert forward in text or back in text
        seen.add(forward)
    assert len(seen) == 6
    assert np.array_equal(augmented(codes[:10], np.random.default_rng(0), False, 2), codes[:10])
    ids, mask = collate([codes[:3], codes[:1]])
    assert ids.tolist() == [[7, 8, 9], [7, 4, 4]]
    assert mask is not None
    assert mask.tolist() == [[1, 1, 1], [1, 0, 0]]


def test_scores_of_unseen_labels_and_single_classes_are_defined() -> None:
    model = HADForSequenceClassification(HADClassifierConfig("binary", ["a", "b"], student=SMALL))
    logits = np.array([[2.0, 0.0], [0.0, 2.0], [0.0, 2.0], [2.0, 0.0]], dtype=np.float32)
    scores = score_logits(model, np.array([0, 1, 1, -1]), logits)
    assert scores["accuracy"] == 0.75
    assert scores["auroc"] == 1.0
    assert scores["loss"] == pytest.approx(math.log(1 + math.exp(-2)), rel=1e-5)
    scores = score_logits(model, np.array([1, 1, 1, 1]), logits)
    assert scores["mcc"] == 0.0
    assert math.isnan(scores["auroc"])


def test_a_label_unseen_in_training_is_an_error_of_multilabel_too(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for name, labels in (("train", ["a", "b", "a;b"] * 4), ("dev", ["a", "b"]), ("test", ["a", "b", "a;new", "b"])):
        write_rows(tmp_path / f"data/{name}.csv", [f"{sequence(rng, 0.5)},{label}" for label in labels])
    data = load_data(tmp_path / "data")
    assert data.task.classes == ("a", "b")
    assert data.test is not None
    assert data.test.targets.tolist() == [[1, 0, 0], [0, 1, 0], [1, 0, 1], [0, 1, 0]]
    assert data.valid.targets.shape == (2, 2)
    assert data.facts["test"]["rows_of_unseen_labels"] == 1
    assert data.facts["test"]["labels_not_in_train"] == ["new"]
    model = HADForSequenceClassification(HADClassifierConfig("multilabel", ["a", "b"], student=SMALL))
    logits = np.array([[3, -3], [-3, 3], [3, -3], [-3, 3]], dtype=np.float32)
    scores = score_logits(model, data.test.targets, logits)
    # Both known labels are right everywhere; the third, never predicted, has MCC 0 and is right in three rows.
    assert scores["exact_match"] == 0.75
    assert scores["mcc"] == pytest.approx(2 / 3)
    assert scores["accuracy"] == pytest.approx((1 + 1 + 0.75) / 3)
    assert scores["auroc"] == 1.0


def test_the_size_of_a_forward_pass_does_not_change_what_is_learnt(tmp_path: Path) -> None:
    rng = np.random.default_rng(7)
    rows = [f"{sequence(rng, 0.9 if i % 3 else 0.1, 10 + i)},{int(i % 3 > 0)}" for i in range(24)]
    data = load_data(write_rows(tmp_path / "a.csv", rows))
    weights = []
    for letters in (32_768, 40):
        torch.manual_seed(0)
        model = HADForSequenceClassification(HADClassifierConfig("binary", ["0", "1"], student=SMALL))
        training = FitConfig(
            epochs=1, batch_size=12, lr=1e-3, letters_per_pass=letters, class_weights="balanced", label_smoothing=0.1
        )
        Fit(model, data.train, data.valid, training, seed=0).run()
        weights.append(model.state_dict())
    for name, tensor in weights[0].items():
        torch.testing.assert_close(weights[1][name], tensor, rtol=1e-3, atol=2e-5)


def test_class_names_are_drawn_as_they_are_written(tmp_path: Path) -> None:
    outputs = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4]])
    # Between dollar signs matplotlib reads a formula, and this one is none.
    task = Task("binary", ("_none", r"$\foo$"))
    written = draw_pictures(tmp_path, task, np.array([0, 1, -1]), outputs, "test")
    assert len(written) == 4
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in written)


def test_training_stops_when_validation_gets_no_better(tmp_path: Path) -> None:
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))
    torch.manual_seed(0)
    model = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL))
    # At this rate nothing changes that float32 shows in the averaged weights' score.
    fit = Fit(model, data.train, data.valid, FitConfig(epochs=50, lr=1e-30, patience=2), seed=0)
    result = fit.run()
    assert result.finished
    assert result.epochs_run == result.epoch + 2 < 50


def test_patience_counts_from_the_last_better_score_and_the_loss_decides_between_equal_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter(range(100, 0, -1))
    monkeypatch.setattr(finetuning_loop, "score_logits", lambda *_: {"mcc": 0.0, "loss": float(next(losses))})
    data = load_data(write_rows(tmp_path / "a.csv", two_classes(24)))

    def fit(seed: int = 0) -> Fit:
        model = HADForSequenceClassification(HADClassifierConfig("binary", ["poor", "rich"], student=SMALL))
        return Fit(model, data.train, data.valid, FitConfig(epochs=50, patience=3), seed=seed)

    result = fit().run()
    assert (result.finished, result.epochs_run, result.epoch) == (True, 4, 4)
    # A resumed run knows what came before.
    fit().run(checkpoints=tmp_path / "states", stop_after=2)
    resumed = fit().run(resume_from=latest_valid(tmp_path / "states")[0])
    assert resumed.epochs_run == 4


@pytest.mark.parametrize("changes", [{"class_weights": "balanced"}, {"label_smoothing": 0.1}])
def test_settings_of_classes_are_refused_where_values_are_learnt(tmp_path: Path, changes: dict) -> None:
    data = write_rows(tmp_path / "a.csv", [f"{'ACGT' * (2 + i % 5)},{0.5 + i}" for i in range(40)])
    made = config(data, training=dataclasses.replace(QUICK, **changes))
    with pytest.raises(UserError, match=f"{next(iter(changes))} is of classes"):
        finetune(made, tmp_path / "run", OPTIONS)
    assert not (tmp_path / "run").exists()
