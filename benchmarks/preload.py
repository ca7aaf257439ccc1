"""Imported once by the process from which those of the cells are forked: what takes long to import."""

import os
from contextlib import suppress
from importlib import import_module

for _name in filter(None, os.environ.get("HAD_BENCHMARK_PRELOAD", "").split(",")):
    # What is missing or broken is met again, and reported, by the cell that needs it.
    with suppress(Exception):
        import_module(_name)
