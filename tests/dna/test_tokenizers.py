import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from had.dna import KmerTokenizer, NucleotideTokenizer, alphabet
from had.errors import UserError

nucleotides = NucleotideTokenizer()
kmers = KmerTokenizer()


@pytest.fixture(scope="module")
def vectors(shared: Path) -> dict:
    return json.loads((shared / "ntv2" / "tokenizer_vectors.json").read_text())


def test_kmer_tokenizer_gives_the_publishers_ids_and_tokens(vectors: dict) -> None:
    assert len(vectors["vectors"]) == 50
    for vector in vectors["vectors"]:
        sequence = vector["sequence"]
        assert kmers.encode(sequence) == vector["input_ids"], vector["name"]
        assert kmers.tokenize(sequence) == vector["tokens"], vector["name"]
        assert kmers.encode(sequence, add_special_tokens=False) == vector["no_special"], vector["name"]
        assert kmers([sequence])["attention_mask"].tolist() == [vector["attention_mask"]], vector["name"]


def test_kmer_batches_are_padded_as_the_publishers(vectors: dict) -> None:
    case = vectors["extra"]["batch_padding_longest"]
    batch = kmers(case["sequences"])
    assert sorted(batch) == case["keys"]
    assert batch["input_ids"].tolist() == case["input_ids"]
    assert batch["attention_mask"].tolist() == case["attention_mask"]
    case = vectors["extra"]["padding_max_length_10"]
    batch = kmers(case["sequences"], padding="max_length", max_length=10)
    assert batch["input_ids"].tolist() == case["input_ids"]
    assert batch["attention_mask"].tolist() == case["attention_mask"]


def test_kmer_batches_are_cut_as_the_publishers(vectors: dict) -> None:
    case = vectors["extra"]["truncation_default_model_max_length"]
    (row,) = kmers(["ACGTTC" * 3_000], truncation=True)["input_ids"].tolist()
    assert len(row) == case["n_tokens"]
    assert row[:3] == case["first"]
    assert row[-1] == case["last"]
    assert kmers(["ACGTTC" * 3_000])["input_ids"].shape == (1, 3_001)
    case = vectors["extra"]["truncation_max_length_2"]
    assert kmers([case["sequence"]], max_length=2)["input_ids"].tolist() == [case["input_ids"]]


def test_kmer_decoding_and_attributes_are_the_publishers(vectors: dict) -> None:
    case = vectors["extra"]["decode"]
    assert kmers.decode(case["ids"]) == case["text"]
    assert kmers.decode(np.array(case["ids"]), skip_special_tokens=True) == case["skip_special"]
    attributes = vectors["extra"]["attrs"]
    for name in (
        "vocab_size",
        "model_max_length",
        "unk_token_id",
        "pad_token_id",
        "mask_token_id",
        "cls_token_id",
    ):
        assert getattr(kmers, name) == attributes[name]
    assert len(kmers) == attributes["len"]
    for token, token_id in vectors["extra"]["token_ids"].items():
        assert kmers.convert_tokens_to_ids([token]) == [token_id]


def slow_kmer_tokens(text: str) -> list[str]:
    """The rules of the tokenizer, one character at a time."""
    specials = ["<unk>", "<pad>", "<mask>", "<cls>", "<eos>", "<bos>"]
    tokens, i, in_unknown = ["<cls>"], 0, False
    while i < len(text):
        special = next((word for word in specials if text.startswith(word, i)), None)
        if special:
            found = special
        elif len(text) >= i + 6 and set(text[i : i + 6]) <= set("ACGT"):
            found = text[i : i + 6]
        elif text[i] in "ACGTN":
            found = text[i]
        else:
            if not text[i].isspace() and not in_unknown:
                tokens.append("<unk>")
            in_unknown = not text[i].isspace()
            i += 1
            continue
        tokens.append(found)
        in_unknown = False
        i += len(found)
    return tokens


@given(st.lists(st.sampled_from(["ACGTAC", "GT", "A", "N", "n", "a", "R", " ", "\n", "<mask>", "<unk>", "<", ">"])))
def test_kmer_tokenizer_follows_its_rules_on_any_text(parts: list[str]) -> None:
    text = "".join(parts)
    assert kmers.tokenize(text) == slow_kmer_tokens(text)


@given(st.text("ACGT", max_size=50))
def test_kmer_tokens_of_plain_dna_are_those_of_the_training_path(sequence: str) -> None:
    whole = len(sequence) // 6 * 6
    codes = alphabet.encode_bytes(sequence[:whole].encode())
    assert kmers.encode(sequence)[1 : 1 + whole // 6] == alphabet.kmer_ids(codes).tolist()
    assert "".join(kmers.tokenize(sequence)[1:]) == sequence


def test_lower_case_vanishes_unless_it_is_turned_to_upper_case() -> None:
    assert kmers.encode("acgtacn") == [3, 0]
    assert KmerTokenizer(uppercase=True).encode("acgtac<mask>n") == [3, 728, 2, 4106]


@given(st.text("ACGTUNacgtun", max_size=60))
def test_nucleotide_ids_are_those_of_the_training_path(sequence: str) -> None:
    ids = nucleotides.encode(sequence)
    assert ids == (alphabet.encode_bytes(sequence.encode()) + 7).tolist()
    assert nucleotides.decode(ids) == sequence.upper().replace("U", "T")


def test_nucleotide_vocabulary_is_that_of_hyenadna() -> None:
    words = ["[CLS]", "[SEP]", "[BOS]", "[MASK]", "[PAD]", "[RESERVED]", "[UNK]", "A", "C", "G", "T", "N"]
    assert nucleotides.get_vocab() == {word: i for i, word in enumerate(words)}
    assert (nucleotides.mask_token_id, nucleotides.pad_token_id, len(nucleotides)) == (3, 4, 12)
    assert nucleotides.encode("") == []
    assert nucleotides.decode([3, 7, 4], skip_special_tokens=True) == "A"
    assert nucleotides.decode([3, 7, 4]) == "[MASK]A[PAD]"


def test_ambiguous_letters_are_n_and_reported() -> None:
    with pytest.warns(UserWarning, match="2 IUPAC letters"):
        assert nucleotides.encode("ARNyn") == [7, 11, 11, 11, 11]
    assert nucleotides.iupac_count("ARNyn") == 2
    assert nucleotides.iupac_count("NNnn") == 0


@pytest.mark.parametrize(
    ("sequence", "message"),
    [
        ("ACGTE", r"'E' at position 5 \(0-based: 4\)"),
        ("AC GT", "' ' at position 3"),
        ("-ACGT", "'-' at position 1"),
        ("AC中", "'中' at position 3"),
        ("A[MASK]", r"'\[' at position 2"),
    ],
)
def test_other_characters_are_refused_with_their_position(sequence: str, message: str) -> None:
    for error in (UserError, ValueError):
        with pytest.raises(error, match=message):
            nucleotides.encode(sequence)
    with pytest.raises(UserError, match=f"sequence 1: .*{message}"):
        nucleotides(["ACGT", sequence])


@pytest.mark.parametrize("tokenizer", [nucleotides, kmers])
@pytest.mark.parametrize("side", ["left", "right"])
def test_padding_stands_on_the_asked_side(tokenizer, side: str) -> None:
    sequences = ["ACGTACGTT", "", "ACN"]
    batch = tokenizer(sequences, padding_side=side)
    assert batch["input_ids"].dtype == batch["attention_mask"].dtype == np.int64
    for ids, mask, sequence in zip(batch["input_ids"], batch["attention_mask"], sequences, strict=True):
        expected = tokenizer.encode(sequence)
        assert ids[mask == 1].tolist() == expected
        assert (ids[mask == 0] == tokenizer.pad_token_id).all()
        real = slice(len(mask) - len(expected), None) if side == "left" else slice(len(expected))
        assert mask[real].all()
        assert mask.sum() == len(expected)


def test_a_batch_may_be_one_string_any_iterable_or_empty() -> None:
    assert nucleotides("ACG")["input_ids"].tolist() == [[7, 8, 9]]
    assert nucleotides(iter(["A", "C"]))["input_ids"].tolist() == [[7], [8]]
    assert nucleotides([])["input_ids"].shape == (0, 0)
    assert nucleotides(["ACGT", "AC"], max_length=3)["input_ids"].tolist() == [[7, 8, 9], [7, 8, 4]]
    assert nucleotides(["ACGT"], max_length=3, truncation=False)["input_ids"].shape == (1, 4)


def test_torch_tensors_on_request() -> None:
    torch = pytest.importorskip("torch")
    batch = kmers(["ACGTAC", "A"], return_tensors="pt")
    assert batch["input_ids"].dtype == torch.int64
    assert batch["input_ids"].tolist() == kmers(["ACGTAC", "A"])["input_ids"].tolist()


@pytest.mark.parametrize(
    "options", [{"padding_side": "middle"}, {"return_tensors": "tf"}, {"max_length": -1}, {"padding": False}]
)
def test_senseless_options_are_refused(options: dict) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        nucleotides(["ACG", "A"], **options)


def test_what_is_no_string_or_no_id_is_refused() -> None:
    with pytest.raises(ValueError, match="got NoneType"):
        nucleotides(["A", None])
    with pytest.raises(ValueError, match="got bytes"):
        kmers.encode(b"ACGT")
    for wrong in (12, -1):
        with pytest.raises(ValueError, match=f"id {wrong} is not in the vocabulary"):
            nucleotides.decode([wrong])
