"""The house: rooms import only from rooms before them, and help imports nothing heavy."""

import ast
import subprocess
import sys
import time
from pathlib import Path

import pytest

SOURCE = Path(__file__).resolve().parents[1] / "src" / "had"
ROOMS = [
    {"errors", "files", "hub", "yaml_text", "schema", "config", "console", "figures", "launch", "assets", "recipes"},
    {"dna"},
    {"ops"},
    {"models"},
    {"metrics", "bootstrap", "baselines"},
    {"training"},
    {"evaluation", "inference"},
    {"demo", "experiment", "doctor"},
    {"cli_options"},
    {"cli_benchmark", "cli_finetune", "cli_teacher"},
    {"cli", "__main__"},
]
FLOOR = {room: i for i, rooms in enumerate(ROOMS) for room in rooms}


def modules() -> list[Path]:
    return sorted(SOURCE.rglob("*.py"))


def imported(path: Path) -> set[str]:
    """Dotted names under had that a module imports, lazily or not; not those only for type checking."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names} if node.module == "had" else {node.module}
    return {name for name in names if name.startswith("had.")}


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(SOURCE)))
def test_rooms_import_only_from_rooms_before_them(path: Path) -> None:
    place = path.relative_to(SOURCE).with_suffix("").parts
    if place == ("__init__",):
        return
    for name in imported(path):
        room = name.split(".")[1]
        if room == "__version__":
            continue
        assert FLOOR[room] <= FLOOR[place[0]], f"{'.'.join(place)} imports {name}"


def test_no_import_cycles_at_module_level() -> None:
    graph: dict[str, set[str]] = {}
    known = {
        ".".join(("had", *p.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__") for p in modules()
    }
    for path in modules():
        name = ".".join(("had", *path.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__")
        tree = ast.parse(path.read_text(encoding="utf-8"))
        top = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
        targets = set()
        for node in top:
            if isinstance(node, ast.ImportFrom) and node.module:
                targets |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
        graph[name] = (targets & known) - {name}
    done: set[str] = set()

    def visit(name: str, trail: tuple[str, ...]) -> None:
        assert name not in trail, " → ".join((*trail, name))
        if name not in done:
            for target in graph[name]:
                visit(target, (*trail, name))
            done.add(name)

    for name in graph:
        visit(name, ())


def test_help_imports_neither_torch_nor_numpy_and_is_quick() -> None:
    script = (
        "import sys\n"
        "sys.argv = ['had', '--help']\n"
        "from had.cli import main\n"
        "try:\n"
        "    main()\n"
        "except SystemExit as stop:\n"
        "    assert not stop.code\n"
        "heavy = {'torch', 'numpy', 'sklearn', 'matplotlib', 'accelerate'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
        seconds.append(time.perf_counter() - start)
        assert result.returncode == 0, result.stderr
    for command in ("pretrain", "teacher", "evaluate"):
        assert command in result.stdout
    # One second on a quiet machine; the bound leaves room for a busy one.
    assert min(seconds) < 2.5


@pytest.mark.parametrize("path", [p for p in modules() if p.parts[-2:] != ("had", "__init__.py")])
def test_modules_are_of_readable_size(path: Path) -> None:
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 400


def test_every_command_shows_an_example() -> None:
    from had import cli

    for command in [*cli.app.registered_commands, *cli.teacher_app.registered_commands]:
        assert command.callback is not None
        assert "Example: had " in (command.callback.__doc__ or ""), command.callback.__name__
