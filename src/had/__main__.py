"""Makes ``python -m had``, ``accelerate launch -m had`` and ``torchrun -m had`` work."""

from had.cli import main
from had.launch import complete_accelerate_launch

if __name__ == "__main__":
    complete_accelerate_launch()
    main()
