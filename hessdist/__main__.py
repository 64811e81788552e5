"""`python -m hessdist`: the command line."""

from hessdist.cli import main

if __name__ == "__main__":
    main()
