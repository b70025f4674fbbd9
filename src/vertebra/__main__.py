"""`python -m vertebra`: the command, also where its script is not on the path."""

from vertebra.cli import main

if __name__ == "__main__":
    main()
