"""`python -m unime.cli`, where the command's own folder is not on the path."""

from .main import main


if __name__ == "__main__":
    main()
