"""``python -m vrnn_fast``: the command line, for torchrun too."""

from .cli import main

if __name__ == "__main__":
    main()
