"""`python -m hessdist`: the command line."""

from hessdist.cli.app import main

if __name__ == "__main__":
    main()
