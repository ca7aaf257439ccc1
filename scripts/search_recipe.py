"""Compare fine-tuning recipes on the training and validation rows of several tasks; test rows are never read.

Example:
    python scripts/search_recipe.py scripts/recipe_grid.yaml --data GUE --tasks tf/0,mouse/2,prom/prom_core_tata \
        --model runs/mine/model --max-train-rows 4000 --max-dev-rows 1000 --seeds 1 --jobs 2 --out runs/search

The same command goes on where it was stopped, and with more settings, tasks or seeds it adds to the tables.
"""

import argparse
import sys
from pathlib import Path

from had.console import setup_logging
from had.errors import RunFault, UserError
from had.evaluation.recipe_search import SearchOptions, search
from had.evaluation.recipe_settings import read_settings


def main() -> int:
    """Run the search; 2 where the input is wrong, 1 on a fault."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("settings", help="YAML of settings: common, settings, one_at_a_time, grid")
    parser.add_argument("--data", required=True, help="folder of the suite")
    parser.add_argument("--tasks", required=True, help="comma-separated")
    parser.add_argument("--out", required=True, type=Path, help="folder of the results; what is there is kept")
    parser.add_argument("--suite", default="gue", help="gue, genomic-benchmarks or nucleotide-transformer")
    parser.add_argument("--model", default="student", help="a pre-trained student, or scratch")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0, help="the first seed")
    parser.add_argument("--max-train-rows", type=int)
    parser.add_argument("--max-dev-rows", type=int)
    parser.add_argument("--jobs", type=int, default=1, help="trials at the same time, each in a process of its own")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of each process")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dry-run", action="store_true", help="say what would be computed")
    parser.add_argument("--quiet", action="store_true")
    given = parser.parse_args()
    setup_logging(given.quiet)
    options = SearchOptions(
        given.data,
        [task.strip() for task in given.tasks.split(",") if task.strip()],
        given.suite,
        given.model,
        given.seeds,
        given.seed,
        given.max_train_rows,
        given.max_dev_rows,
        given.jobs,
        given.threads,
        given.device,
        given.dry_run,
        given.quiet,
    )
    try:
        search(read_settings(given.settings), given.out, options)
    except (UserError, RunFault) as error:
        sys.stderr.write(f"search_recipe: {error}\n")
        return 2 if isinstance(error, UserError) else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
