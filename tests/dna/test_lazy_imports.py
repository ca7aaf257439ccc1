import subprocess
import sys

import had.dna


def test_the_package_imports_neither_numpy_nor_torch() -> None:
    code = "import sys; sys.path[:0] = sys.argv[1:]; import had.dna; print({'numpy', 'torch'} & {*sys.modules})"
    command = [sys.executable, "-c", code, *sys.path]
    output = subprocess.run(command, capture_output=True, text=True, check=True)
    assert output.stdout.strip() == "set()"


def test_every_public_name_resolves() -> None:
    for name in had.dna.__all__:
        assert getattr(had.dna, name).__name__ == name
    assert set(had.dna.__all__) <= set(dir(had.dna))
    assert not hasattr(had.dna, "Nothing")
