"""Teachers: tokens, features, masked view, names, a class of one's own."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from had.dna import KmerTokenizer
from had.dna.alphabet import decode
from had.errors import UserError
from had.models import ntv2_published
from had.models.teacher_loading import load_teacher
from had.models.teachers import NTv2Teacher, check_window, random_teacher
from tests.models.ntv2_reference import tiny_config, tiny_network


def make_teacher(**options) -> NTv2Teacher:
    return NTv2Teacher(tiny_network(tiny_config(vocabulary=4107)), "tiny", **options)


def windows(n: int = 3, groups: int = 5, seed: int = 0) -> torch.Tensor:
    return torch.from_numpy(np.random.default_rng(seed).integers(0, 4, (n, 6 * groups)).astype(np.uint8))


def hide(*groups: tuple[int, int], n: int = 3, of: int = 5) -> torch.Tensor:
    hidden = torch.zeros(n, of, dtype=torch.bool)
    for row, group in groups:
        hidden[row, group] = True
    return hidden


def test_tokens_are_those_of_the_tokenizer():
    codes = windows(20, 7)
    wanted = [KmerTokenizer().encode(decode(row)) for row in codes.numpy()]
    assert make_teacher().tokens(codes).tolist() == wanted
    assert make_teacher().tokens(codes.long()).tolist() == wanted


def test_hidden_groups_are_mask_tokens():
    ids = make_teacher().tokens(windows(), hide((0, 0), (2, 4)))
    plain = make_teacher().tokens(windows())
    changed = (ids != plain).nonzero().tolist()
    assert changed == [[0, 1], [2, 5]]
    assert ids[0, 1] == ids[2, 5] == 2


def test_the_feature_of_group_i_is_the_last_hidden_state_at_token_1_plus_i():
    teacher = make_teacher()
    codes, hidden = windows(), hide((1, 2))
    features = teacher.features(codes, hidden)
    wanted = teacher.network.hidden_states(teacher.tokens(codes, hidden))[-1][:, 1:]
    assert features.shape == (3, 5, teacher.width)
    assert features.dtype == torch.float32
    assert not features.requires_grad
    torch.testing.assert_close(features, wanted)


@pytest.mark.parametrize("group", range(5))
def test_changing_group_i_changes_embeddings_at_index_1_plus_i_only(group):
    teacher = make_teacher()
    codes = windows()
    other = codes.clone()
    other[:, 6 * group + 3] = 3 - other[:, 6 * group + 3]
    before, after = (teacher.network.hidden_states(teacher.tokens(x))[0] for x in (codes, other))
    changed = (before != after).any(-1)
    assert changed.nonzero()[:, 1].tolist() == [1 + group] * 3


def test_hidden_letters_change_nothing_and_visible_ones_do():
    teacher = make_teacher()
    codes, hidden = windows(), hide((0, 1), (1, 4), (2, 0))
    other = codes.clone()
    letters = hidden.repeat_interleave(6, 1)
    other[letters] = 3 - other[letters]
    assert torch.equal(teacher.features(codes, hidden), teacher.features(other, hidden))
    assert not torch.allclose(teacher.features(codes), teacher.features(other))
    assert not torch.allclose(teacher.features(codes), teacher.features(codes, hidden))


@pytest.mark.parametrize("tokens_at_once", [1, 6, 13, 10_000])
def test_features_do_not_depend_on_how_batches_are_cut(tokens_at_once):
    codes, hidden = windows(7), torch.rand(7, 5, generator=torch.Generator().manual_seed(0)) < 0.5
    cut = make_teacher(tokens_at_once=tokens_at_once)
    whole = make_teacher().features(codes, hidden)
    assert (cut.features(codes, hidden) - whole).abs().max() <= 1e-5 * whole.abs().max()
    assert cut.features(codes[:0], hidden[:0]).shape == (0, 5, 24)


def test_bf16_is_near_float32_and_says_so_in_the_digest():
    exact, rounded = make_teacher(), make_teacher(precision="bf16")
    assert rounded.network.layers[0].query.weight.dtype == torch.bfloat16
    assert rounded.network.final_norm.weight.dtype == torch.float32
    wanted, found = exact.features(windows()), rounded.features(windows())
    assert found.dtype == torch.float32
    assert not torch.equal(found, wanted)
    assert (found - wanted).norm() / wanted.norm() < 0.03
    assert exact.digest() != rounded.digest()


def test_the_callers_autocast_and_gradient_mode_do_not_reach_the_teacher():
    teacher = make_teacher()
    alone = teacher.features(windows())
    projection = torch.nn.Linear(24, 24)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        features = teacher.features(windows())
    projection(features).sum().backward()
    assert torch.equal(features, alone)
    assert projection.weight.grad.isfinite().all()
    assert not any(parameter.requires_grad for parameter in teacher.network.parameters())


def test_the_digest_is_that_of_the_weights():
    assert make_teacher().digest() == make_teacher().to("cpu").digest()
    changed = tiny_network(tiny_config(vocabulary=4107))
    with torch.no_grad():
        changed.decoder.bias[7] += 1e-3
    assert NTv2Teacher(changed, "tiny").digest() != make_teacher().digest()


def test_windows_that_are_too_long_are_refused():
    teacher = make_teacher()
    assert teacher.max_groups == 2047
    check_window(teacher, 2047)
    with pytest.raises(UserError, match=r"12288 letters \(2048 groups\) are too long"):
        teacher.features(torch.zeros(1, 6 * 2048, dtype=torch.uint8))


@pytest.mark.parametrize(
    ("codes", "hidden", "message"),
    [
        (torch.zeros(1, 7, dtype=torch.uint8), None, r"6·groups"),
        (torch.zeros(1, 6), None, "integers"),
        (torch.full((1, 6), 4), None, "0 … 3"),
        (torch.zeros(1, 6, dtype=torch.uint8), torch.zeros(1, 2, dtype=torch.bool), "hidden must be bool"),
        (torch.zeros(1, 6, dtype=torch.uint8), torch.zeros(1, 1), "hidden must be bool"),
    ],
)
def test_arrays_of_a_wrong_kind_are_refused(codes, hidden, message):
    with pytest.raises(ValueError, match=message):
        make_teacher().features(codes, hidden)


def test_a_network_without_6mers_is_no_teacher():
    with pytest.raises(UserError, match="vocabulary of 80"):
        NTv2Teacher(tiny_network(), "tiny")


def test_random_teachers_follow_their_seed_and_leave_the_generator_alone():
    state = torch.get_rng_state()
    one = load_teacher("random:24x2x3x20", seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    assert one.digest() == random_teacher("24x2x3x20", 1).digest()
    assert one.digest() != load_teacher("random:24x2x3x20", seed=2).digest()
    assert (one.name, one.licence, one.width, one.max_groups) == ("random:24x2x3x20", "", 24, 2047)
    assert one.features(windows(), None).isfinite().all()


def test_random_teachers_come_in_the_published_sizes(monkeypatch):
    made = []

    def make(config):
        made.append(config)
        return tiny_network()

    monkeypatch.setattr("had.models.teachers.NucleotideTransformer", make)
    with pytest.raises(UserError, match="vocabulary of 80"):
        random_teacher("500M")
    assert (made[0].hidden_size, made[0].num_hidden_layers, made[0].intermediate_size) == (1024, 29, 4096)


@pytest.mark.parametrize("size", ["", "7m", "24x2x3", "24x2x5x20", "24x0x3x20"])
def test_random_teachers_of_no_size_are_refused(size):
    with pytest.raises(UserError, match=f"random:{size}"):
        load_teacher(f"random:{size}")


def test_a_folder_is_a_teacher_with_options(tmp_path):
    network = tiny_network(tiny_config(vocabulary=4107))
    network.licence = "CC0"
    network.save_pretrained(tmp_path / "a:b")
    teacher = load_teacher(tmp_path / "a:b", {"precision": "bf16", "tokens_at_once": 12})
    assert isinstance(teacher, NTv2Teacher)
    assert (teacher.precision, teacher.tokens_at_once, teacher.licence) == ("bf16", 12, "CC0")
    assert torch.equal(load_teacher(tmp_path / "a:b").features(windows(), None), make_teacher().features(windows()))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precison": "bf16"}, "no option precison"),
        ({"precision": "fp8"}, "float32 or bf16; got 'fp8'"),
        ({"tokens_at_once": 0}, "positive whole number; got 0"),
    ],
)
@pytest.mark.parametrize("spec", ["random:24x2x3x20", "folder"])
def test_unknown_options_are_refused(tmp_path, monkeypatch, spec, options, message):
    monkeypatch.chdir(tmp_path)
    tiny_network(tiny_config(vocabulary=4107)).save_pretrained("folder")
    with pytest.raises(UserError, match=message):
        load_teacher(spec, options)


def test_names_of_nothing_are_refused(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(ntv2_published, "BUNDLED_FOLDER", tmp_path / "absent")
    for spec in ("bundled", "nothing", "no/such/thing", "C:\\teachers\\x", "a b:c d"):
        with pytest.raises(UserError):
            load_teacher(spec)


def test_the_bundled_teacher_comes_with_the_package():
    teacher = load_teacher("bundled")
    assert teacher.features(windows(), hide((0, 1))).shape == (3, 5, teacher.width)
    assert isinstance(teacher, NTv2Teacher)


EXAMPLE = re.search(
    r"```python\n(.*?)```", (Path(__file__).resolve().parents[2] / "docs" / "teachers.md").read_text("utf-8"), re.S
)[1]


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """Put a module in the working directory; give back its name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    names = []

    def write(text: str) -> str:
        names.append(f"own_teacher_{tmp_path.name}_{len(names)}".replace("-", "_"))
        (tmp_path / f"{names[-1]}.py").write_text(text, encoding="utf-8")
        return names[-1]

    yield write
    for name in names:
        sys.modules.pop(name, None)


def test_the_documented_teacher_of_ones_own_works(own_module):
    spec = f"{own_module(EXAMPLE)}:LetterTeacher"
    teacher = load_teacher(spec, {"reach": 0})
    poly_a = torch.zeros(1, 12, dtype=torch.uint8)
    assert teacher.features(poly_a, None).tolist() == [[[1, 0, 0, 0]] * 2]
    assert teacher.features(poly_a, torch.tensor([[False, True]])).tolist() == [[[1, 0, 0, 0], [0.25] * 4]]
    assert teacher.digest() != load_teacher(spec).digest()
    assert load_teacher(spec).features(windows(), hide((0, 1))).shape == (3, 5, 4)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('"CC0"', "None", "attribute licence that is a text; got None"),
        ("self.width, self.max_groups", "self.breadth, self.max_groups", "attribute width"),
        ("self.max_groups = 4, 100_000", "self.max_groups = 4, 0", "attribute max_groups"),
        ("def digest", "def digests", r"method digest\(\)"),
        ("def features", "def feature", r"method features\(\)"),
        ("return f", "return 7 and f'' or f''; f", r"digest\(\) must give a text that is not empty"),
        ("        return self\n", "        return None\n", r"to\(\) must give the teacher itself"),
        ("count_include_pad=False).mT", "count_include_pad=False)", r"shape .* = \(2, 5, 4\); got \(2, 4, 5\)"),
        ("= 4, 100_000", "= 5, 100_000", r"shape .* = \(2, 4, 5\); got \(2, 4, 4\)"),
        ("count_include_pad=False).mT", "count_include_pad=False).mT.double()", "float32; got torch.float64"),
        ("count_include_pad=False).mT", "count_include_pad=False).mT / 0", "NaN or infinity"),
        ("count_include_pad=False).mT", "count_include_pad=False).mT.numpy()", "torch tensor; got ndarray"),
        ("count_include_pad=False).mT", "count_include_pad=False).mT.requires_grad_()", "no gradients"),
        ("count_include_pad=False).mT", "count_include_pad=False).mT + torch.rand(1)", r"call eval\(\)"),
        ("if hidden is not None", "if False", "looks at hidden letters"),
    ],
)
def test_a_class_that_is_no_teacher_is_refused_with_the_reason(own_module, old, new, message):
    assert old in EXAMPLE
    with pytest.raises(UserError, match=message):
        load_teacher(f"{own_module(EXAMPLE.replace(old, new))}:LetterTeacher")


def test_a_class_that_cannot_be_made_is_refused(own_module):
    name = own_module(EXAMPLE)
    with pytest.raises(UserError, match="has no class Teacher"):
        load_teacher(f"{name}:Teacher")
    with pytest.raises(UserError, match=r"does not take the options given .*'raech'"):
        load_teacher(f"{name}:LetterTeacher", {"raech": 1})
    with pytest.raises(UserError, match="could not be imported"):
        load_teacher("no_such_module_here:LetterTeacher")
    with pytest.raises(UserError, match="no_such_package"):
        load_teacher(f"{own_module('import no_such_package')}:LetterTeacher")


def test_what_is_not_a_class_of_a_teacher_is_never_called(own_module, tmp_path):
    options = {"command": f"touch {tmp_path / 'ran'}"}
    with pytest.raises(UserError, match="os has no class system"):
        load_teacher("os:system", options)
    with pytest.raises(UserError, match=r"subprocess:Popen needs a method digest\(\)"):
        load_teacher("subprocess:Popen", {"args": ["touch", str(tmp_path / "ran")]})
    name = own_module(
        "class Half:\n"
        "    def __init__(self, command): open('ran', 'w')\n"
        "    def digest(self): return 'x'\n"
        "    def features(self, codes, hidden): ...\n"
    )
    with pytest.raises(UserError, match=r"needs a method to\(\)"):
        load_teacher(f"{name}:Half", options)
    assert not (tmp_path / "ran").exists()


def test_a_file_in_the_working_directory_does_not_replace_an_installed_module(own_module, tmp_path):
    (tmp_path / "json.py").write_text("raise SystemExit")
    with pytest.raises(UserError, match="json has no class Teacher"):
        load_teacher("json:Teacher")
