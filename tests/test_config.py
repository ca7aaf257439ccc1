"""Recipes, overrides, and the errors a user meets in them."""

import dataclasses
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from had import config
from had.config import apply_overrides, build, describe, dump_yaml, load_recipe, parse_yaml, to_dict
from had.errors import UserError


@dataclass
class OptimizerOptions:
    """Stands in for a module's own options."""

    learning_rate: float = 8e-3
    """Peak learning
    rate."""
    betas: tuple[float, float] = (0.9, 0.95)
    clip: float | None = 1.0
    """Largest gradient norm."""


@dataclass
class Recipe:
    """A small recipe."""

    genome: str
    """FASTA file."""
    steps: int = 10
    precision: Literal["auto", "float32", "bf16"] = "auto"
    """How numbers are held."""
    flip: bool = True
    contigs: list[str] | None = None
    layer: int | Literal["all"] = "all"
    folder: Path | None = None
    weights: dict[str, float] = field(default_factory=dict)
    shape: tuple[int, ...] = ()
    optimizer: OptimizerOptions = field(default_factory=lambda: OptimizerOptions(clip=2.0))

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError("steps must be at least 1.")


def message_of(mapping: dict[str, Any]) -> str:
    with pytest.raises(UserError) as caught:
        build(Recipe, {"genome": "g.fa", **mapping}, "my.yaml")
    text = str(caught.value)
    assert text.startswith("my.yaml: ")
    return text


def test_plain_values_become_nested_dataclasses() -> None:
    made = build(
        Recipe,
        {
            "genome": "g.fa",
            "steps": 1e4,
            "precision": "bf16",
            "flip": "no",
            "contigs": [21, "X"],
            "layer": 3,
            "folder": "a/b",
            "weights": {"align": 1},
            "shape": [1, 2, 3],
            "optimizer": {"learning_rate": 1, "betas": [0.9, 0.99], "clip": None},
        },
    )
    assert made == Recipe(
        "g.fa",
        10_000,
        "bf16",
        False,
        ["21", "X"],
        3,
        Path("a/b"),
        {"align": 1.0},
        (1, 2, 3),
        OptimizerOptions(1.0, (0.9, 0.99), None),
    )
    assert type(made.optimizer.learning_rate) is float
    assert type(made.steps) is int


def test_absent_keys_keep_their_defaults_and_required_ones_are_named() -> None:
    assert build(Recipe, {"genome": "g.fa"}) == Recipe("g.fa")
    with pytest.raises(UserError, match="`genome` is required"):
        build(Recipe, {})


@pytest.mark.parametrize(
    ("mapping", "parts"),
    [
        ({"optimizer": {"lerning_rate": 1}}, ["`optimizer.lerning_rate`", "mean `optimizer.learning_rate`?"]),
        ({"learning_rate": 1}, ["unknown key `learning_rate`", "mean `optimizer.learning_rate`?"]),
        ({"stesp": 1}, ["unknown key `stesp`", "mean `steps`?"]),
        ({"zzz": 1}, ["unknown key `zzz`", "genome", "precision"]),
        ({"precision": "bf61"}, ["`precision`", "auto, float32, bf16", "mean bf16?", "'bf61'"]),
        ({"steps": 1.5}, ["`steps`", "whole number", "1.5"]),
        ({"steps": True}, ["`steps`", "whole number", "true"]),
        ({"steps": "many"}, ["`steps`", "whole number", "'many'"]),
        ({"steps": None}, ["`steps`", "whole number", "null"]),
        ({"flip": 1}, ["`flip`", "true or false"]),
        ({"layer": "al"}, ["`layer`", "whole number or one of all", "mean all?"]),
        ({"contigs": "chr1"}, ["`contigs`", "list of text"]),
        ({"contigs": ["a", 1.5]}, ["`contigs[1]`", "text"]),
        ({"optimizer": 3}, ["`optimizer`", "section"]),
        ({"optimizer": {"betas": [1.0]}}, ["`optimizer.betas`", "exactly 2"]),
        ({"optimizer": {"betas": [1.0, "x"]}}, ["`optimizer.betas[1]`", "number", "'x'"]),
        ({"optimizer": {"clip": float("nan")}}, ["`optimizer.clip`"]),
        ({"weights": {"align": "x"}}, ["`weights.align`", "number"]),
        ({"steps": 0}, ["steps must be at least 1"]),
    ],
)
def test_an_error_names_the_whole_key_and_what_is_allowed(mapping: dict[str, Any], parts: list[str]) -> None:
    text = message_of(mapping)
    for part in parts:
        assert part in text


def test_numbers_written_as_people_write_them_are_numbers() -> None:
    assert yaml.safe_load("1e-3") == "1e-3", "YAML 1.1 reads text: the reason for an own loader"
    values = parse_yaml("[1e-3, 8E-3, -1e5, 1_000, .5, 3., 1.5e+2, -2, 0]", "here")
    assert values == [0.001, 0.008, -100_000.0, 1000, 0.5, 3.0, 150.0, -2, 0]
    assert [type(v) for v in values] == [float, float, float, int, float, float, float, int, int]


def test_words_and_contig_names_stay_text() -> None:
    text = "[no, on, NO, Y, 010, 1:30, 2026-01-02, e3, chr1, 1e, '7']"
    assert parse_yaml(text, "here") == [
        "no", "on", "NO", "Y", "010", "1:30", "2026-01-02", "e3", "chr1", "1e", "7",
    ]  # fmt: skip


def test_overrides_set_dotted_keys_of_a_new_recipe() -> None:
    recipe = {"a": {"b": 1, "c": [1]}, "d": "x"}
    made = apply_overrides(
        recipe, ["a.b=1e-3", "d=[chr1, 2]", "new.deep.key=true", "e=", "f=module:Class", "g='1'", "a.b=5e-4"]
    )
    assert made == {
        "a": {"b": 5e-4, "c": [1]},
        "d": ["chr1", 2],
        "new": {"deep": {"key": True}},
        "e": None,
        "f": "module:Class",
        "g": "1",
    }
    made["a"]["c"].append(2)
    assert recipe == {"a": {"b": 1, "c": [1]}, "d": "x"}


@pytest.mark.parametrize("override", ["steps", "=3", "a..b=3", "a b=3", "d.e=3", "a=[1"])
def test_a_wrong_override_is_named(override: str) -> None:
    with pytest.raises(UserError) as caught:
        apply_overrides({"d": "x"}, [override])
    assert repr(override) in str(caught.value)


texts = st.text(max_size=12) | st.sampled_from(["1e-3", "no", "null", "~", "", "0x1", "1_0", "1:30", "=", "<<", "\x85"])


@settings(max_examples=50, deadline=None)
@given(
    st.builds(
        Recipe,
        genome=texts,
        steps=st.integers(1, 10**12),
        precision=st.sampled_from(["auto", "float32", "bf16"]),
        flip=st.booleans(),
        contigs=st.none() | st.lists(texts, max_size=3),
        layer=st.integers(1 - 10**18, 10**18 - 1) | st.just("all"),
        weights=st.dictionaries(texts, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
        optimizer=st.builds(
            OptimizerOptions,
            learning_rate=st.floats(allow_nan=False, allow_infinity=False),
            clip=st.none() | st.floats(allow_nan=False, allow_infinity=False),
        ),
    )
)
def test_a_written_config_is_read_back_the_same(recipe: Recipe) -> None:
    text = dump_yaml(recipe)
    assert build(Recipe, parse_yaml(text, "config.yaml")) == recipe
    assert parse_yaml(text, "config.yaml") == to_dict(recipe)
    ours, standard = parse_yaml(text, "config.yaml"), yaml.safe_load(text)
    assert standard == ours, "other YAML readers must see the same values"


def test_keys_are_written_in_the_order_of_the_fields() -> None:
    names = [line.split(":")[0] for line in dump_yaml(Recipe("g.fa")).splitlines() if line[0].isalpha()]
    assert names == [f.name for f in dataclasses.fields(Recipe)]


def test_keys_are_described_with_type_default_and_docstring() -> None:
    rows = {row.key: row for row in describe(Recipe)}
    assert list(rows)[:2] == ["genome", "steps"]
    assert rows["genome"].default is dataclasses.MISSING
    assert rows["genome"].doc == "FASTA file."
    assert rows["steps"].doc == ""
    assert rows["optimizer.learning_rate"].doc == "Peak learning rate."
    assert rows["optimizer.learning_rate"].default == 8e-3
    assert rows["optimizer.clip"].default == 2.0, "the default of the outer class counts"
    assert rows["precision"].type == "one of auto, float32, bf16"
    assert rows["optimizer.clip"].type == "number or null"


def test_docstrings_of_a_base_class_are_found() -> None:
    @dataclass
    class Longer(OptimizerOptions):
        """A subclass."""

        extra: int = 0
        """One more."""

    rows = {row.key: row.doc for row in describe(Longer)}
    assert rows["learning_rate"] == "Peak learning rate."
    assert rows["extra"] == "One more."


@pytest.fixture
def packaged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Stand in for the package's folder, with two recipes."""
    recipes = tmp_path / "had" / "recipes"
    recipes.mkdir(parents=True)
    (recipes / "laptop.yaml").write_text("steps: 5\n")
    (recipes / "had-1.1m.yaml").write_text("steps: 10_000\n")
    (recipes / "README.md").write_text("not a recipe")
    monkeypatch.setattr(config.resources, "files", lambda package: tmp_path / package)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_recipe_is_found_by_name_or_path(packaged: Path) -> None:
    (packaged / "mine.yaml").write_text("\ufeffsteps: 7\n", encoding="utf-8")
    (packaged / "laptop").write_text("steps: 9\n")
    assert config.packaged_recipes() == ["had-1.1m", "laptop"]
    assert load_recipe("had-1.1m") == {"steps": 10_000}
    assert load_recipe("mine.yaml") == load_recipe(packaged / "mine.yaml") == {"steps": 7}
    assert load_recipe("laptop") == {"steps": 5}
    assert load_recipe("./laptop") == {"steps": 9}


def test_an_unknown_recipe_is_answered_with_the_known_ones(packaged: Path) -> None:
    with pytest.raises(UserError, match=r"'labtop' .*mean laptop\?.*had-1\.1m, laptop"):
        load_recipe("labtop")
    with pytest.raises(UserError, match=r"mean laptop\?"):
        load_recipe("recipes/laptop.yml")
    with pytest.raises(UserError, match="is a folder"):
        load_recipe(packaged)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a: 1\nb: [1\nc: 3\n", "line 3"),
        (b"a: 1\nb:\n  c: 1\n  c: 2\n", "line 4.*'c' stands twice"),
        (b"a: 1\n\tb: 2\n", "line 2"),
        (b"a: &x [1]\nb: *x\n", "line 2.*alias"),
        (b"a: " + b"[" * 5000, "line 1.*50 levels"),
        (b"a: " + b"9" * 5000, "not readable"),
        (b"a: \x00\n", "not readable"),
        (b"a: \xff\n", "UTF-8"),
        (b"", "empty"),
        (b"- a\n- b\n", "mapping"),
        (b"a: !!python/object/apply:os.getcwd []\n", "line 1"),
    ],
)
def test_a_broken_recipe_is_an_error_with_file_and_line(tmp_path: Path, content: bytes, expected: str) -> None:
    path = tmp_path / "broken.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=expected) as caught:
        load_recipe(path)
    assert str(path) in str(caught.value)


def test_reading_recipes_needs_neither_torch_nor_numpy() -> None:
    code = "import sys, had.config; print([m for m in ('torch', 'numpy') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("text", ["9" * 400, '"' + "9" * 5000 + '"', "1e18", "-" + "9" * 30])
def test_a_number_beyond_64_bits_is_refused(text: str) -> None:
    @dataclass
    class Sizes:
        """Of two kinds."""

        whole: int = 0
        real: float = 0.0

    with pytest.raises(UserError, match="`whole`: expected a whole number"):
        build(Sizes, apply_overrides({}, [f"whole={text}"]))
    if len(text) >= 400:
        with pytest.raises(UserError, match="`real`: expected a finite number"):
            build(Sizes, apply_overrides({}, [f"real={text}"]))
