"""`python -m moedd` is the `moedd` command (the form that torchrun takes)."""

from moedd.cli import main

if __name__ == "__main__":
    main()
