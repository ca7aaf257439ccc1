"""A `had` that is ended by a signal at a known place: what a scheduler, or a cut in power, does at the worst moment."""

_SCRIPT = """
import importlib, os, signal, sys
owner, name = importlib.import_module({module!r}), {name!r}
*classes, name = name.split(".")
for part in classes:
    owner = getattr(owner, part)
whole, calls = getattr(owner, name), 0

def dying(*arguments):
    global calls
    calls += 1
    if calls == {call}:
        {last_words}
        os.kill(os.getpid(), signal.{signal})
    return whole(*arguments)

setattr(owner, name, dying)
sys.argv = ["had", *sys.argv[1:]]
from had.cli import main
main()
"""


def dying_script(module: str, name: str, call: int, last_words: str = "pass", signal: str = "SIGKILL") -> str:
    """Python text that runs `had` and is sent a signal before the given call of ``module.name``, after a statement."""
    return _SCRIPT.format(module=module, name=name, call=call, last_words=last_words, signal=signal)
