"""Entry point of `python -m unime.cli`, which works where the command `unime` is not on the path."""

from .main import main


if __name__ == "__main__":
    main()
