"""Makes ``python -m had``, ``accelerate launch -m had`` and ``torchrun -m had`` work."""

from had.cli import main

if __name__ == "__main__":
    main()
